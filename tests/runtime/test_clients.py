"""Clients we did not write against our server, each from an environment of its own: aiperf, guidellm and Prometheus; and our own load generator beside the log.

What aiperf measured of each request is joined with our log by request id. `make test-clients` runs them; without INFERENCEGYM_CLIENTS they are skipped.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

pytest.importorskip("aiohttp", reason="the extra 'serve' is not installed")

from inferencegym.bench.client import Target
from inferencegym.bench.load import Plan, run, synthetic
from inferencegym.metrics.record import Outcome
from inferencegym.runtime.settings import QueueSettings, ServerSettings, Settings
from tests.installed import NotInstalledError, venv_of
from tests.runtime.fakes import HANG, FakeBackend, Served, until, words
from tests.starting import free_port

AIPERF, GUIDELLM = "aiperf==0.13.0", "guidellm==0.8.1"
MODEL = "llama-3.1-8b"
#: Digits of a commit that the hub's cache would hold.
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKENIZER = """
import json, sys
from pathlib import Path
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
home, texts = Path(sys.argv[1]), sys.argv[2:]
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
special = ["<s>", "</s>", "<pad>"]
tokenizer.train(texts, trainers.BpeTrainer(vocab_size=2000, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
hub = home / "hf/hub/models--bench--tok"
(hub / "refs").mkdir(parents=True)
(hub / "refs/main").write_text("COMMIT")
for folder in (home / "local", hub / "snapshots/COMMIT"):
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    template = "{% for m in messages %}{{ m['content'] }}\\n{% endfor %}"
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template} | names
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
""".replace("COMMIT", COMMIT)

asked_for = pytest.mark.skipif(not os.environ.get("INFERENCEGYM_CLIENTS"), reason="type make test-clients")


def bin_of(requirement):
    try:
        return venv_of(requirement)
    except NotInstalledError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A folder with a tokenizer that needs no network: local/ as files, hf/ as the hub's cache."""
    home = tmp_path_factory.mktemp("tokenizer")
    texts = sorted(str(file) for file in (Path(__file__).parents[2] / "docs").glob("*.md"))
    subprocess.run([bin_of(AIPERF) / "python", "-c", TOKENIZER, home, *texts], check=True, timeout=120)
    return home


def offline(tokenizer):
    return os.environ | {"HF_HOME": str(tokenizer / "hf"), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def aiperf(url, tokenizer, out, *given):
    command = [
        bin_of(AIPERF) / "aiperf", "profile", "-m", MODEL, "--endpoint-type", "chat", "--streaming", "-u", url, "--tokenizer", "bench/tok",
        "--synthetic-input-tokens-mean", "64", "--output-artifact-dir", out, "--ui", "none", "--no-gpu-telemetry", "--workers-max", "1",
        "--record-processor-service-count", "1", "--random-seed", "7", *given,
    ]  # fmt: skip
    done = subprocess.run(
        [str(one) for one in command], env=offline(tokenizer), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = list(out.rglob("profile_export.jsonl"))
    assert len(found) == 1, sorted(str(file) for file in out.rglob("*"))
    return [json.loads(line) for line in found[0].read_text().splitlines()]


def logged(log):
    """Our log's lines of requests, by id."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return {line["id"]: line for line in lines if line["event"] == "request"}


def ended(process, log):
    """The log, whole."""
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    return logged(log)


@asked_for
@pytest.mark.clients
@pytest.mark.slow
def test_aiperf_sees_the_latencies_that_we_log(start, tokenizer, tmp_path):
    process, url, log = start()
    seen = aiperf(url, tokenizer, tmp_path / "out", "--concurrency", "4", "--request-count", "60", "--warmup-request-count", "5", "--output-tokens-mean", "32")  # fmt: skip
    ours = ended(process, log)
    rows = [
        one
        for one in seen
        if one["metadata"]["x_request_id"] in ours and one["metadata"]["benchmark_phase"] == "profiling"
    ]
    assert len(rows) == 60
    differences = {}
    for theirs, mine in (("time_to_first_token", "ttft_ms"), ("request_latency", "total_ms")):
        both = [(one["metrics"][theirs]["value"], ours[one["metadata"]["x_request_id"]][mine]) for one in rows]
        differences[mine] = np.array([client - server for client, server in both])
        # A client cannot see an answer before the server has it, but for a rounded microsecond.
        assert differences[mine].min() > -0.5
    told = {name: {"p50": np.quantile(gap, 0.5), "p95": np.quantile(gap, 0.95)} for name, gap in differences.items()}
    print("aiperf minus our log, ms:", told)
    # On a quiet machine 2; others may work on this one, so it is asked for.
    if limit_ms := os.environ.get("INFERENCEGYM_CLIENTS_P95_MS"):
        assert max(one["p95"] for one in told.values()) <= float(limit_ms)


@asked_for
@pytest.mark.clients
@pytest.mark.slow
def test_aiperfs_cancellations_are_our_aborts(start, tokenizer, tmp_path):
    process, url, log = start()
    cancel = ("--request-cancellation-rate", "50", "--request-cancellation-delay", "0.1")
    seen = aiperf(
        url,
        tokenizer,
        tmp_path / "out",
        "--concurrency",
        "8",
        "--request-count",
        "80",
        "--output-tokens-mean",
        "200",
        *cancel,
    )
    aborts = httpx.get(f"{url}/metrics?format=json").json()["by_reason"]["aborted"]
    ours = ended(process, log)
    cancelled = {one["metadata"]["x_request_id"] for one in seen if one["metadata"]["was_cancelled"]}
    assert len(cancelled) > 10
    assert {name for name, line in ours.items() if line["outcome"] == "aborted"} == cancelled
    assert sum(aborts.values()) == len(cancelled)


@asked_for
@pytest.mark.clients
@pytest.mark.slow
def test_guidellm_counts_what_we_count(start, tokenizer, tmp_path):
    process, url, log = start()
    command = [
        bin_of(GUIDELLM) / "guidellm", "run", "--backend", f"kind=openai_http,target={url},model={MODEL}", "--profile", "kind=concurrent,streams=4",
        "--constraint", "kind=max_requests,count=40", "--tokenizer", f"kind=hf_auto,model={tokenizer / 'local'}",
        "--data", "kind=synthetic_text,prompt_tokens=64,output_tokens=32", "--output", f"kind=json,path={tmp_path / 'g.json'}", "--disable-console",
    ]  # fmt: skip
    done = subprocess.run(
        [str(one) for one in command],
        env=offline(tokenizer),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    ours = ended(process, log)
    told = json.loads((tmp_path / "g.json").read_text())["benchmarks"][0]
    requests = told["requests"]
    assert (len(requests["successful"]), len(requests["errored"])) == (40, 0)
    assert [line["outcome"] for line in ours.values()].count("ok") >= 40
    assert {line["output_tokens"] for line in ours.values() if line["outcome"] == "ok"} == {32}


def test_the_openai_client_comes_back_when_we_said():
    # Seat and queue are full for 0.3 s: refused 503 with Retry-After, then served.
    backend = FakeBackend(lambda ask: [0.3, *words(1)], seats=1)
    settings = Settings(server=ServerSettings(port=0, log="error"), queue=QueueSettings(max_requests=1))
    asked = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    with (
        Served(backend, settings=settings) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client,
    ):
        holders = [threading.Thread(target=lambda: client.chat.completions.create(**asked)) for _ in range(2)]
        holders[0].start()
        until(lambda: server.gateway.in_flight() == 1)
        holders[1].start()
        until(lambda: server.gateway.waiting() == 1)
        answer = client.chat.completions.with_raw_response.create(**asked)
        assert answer.retries_taken >= 1
        assert answer.parse().choices[0].message.content == "w0 "
        assert server.app.responses["/v1/chat/completions", 503] >= 1
        for holder in holders:
            holder.join()


def test_the_openai_client_that_closes_a_stream_stops_the_backend():
    backend = FakeBackend(lambda ask: [*words(1), HANG])
    settings = Settings(server=ServerSettings(port=0, log="error"))
    with (
        Served(backend, settings=settings) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client,
    ):
        stream = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}], stream=True)
        assert next(iter(stream)).choices[0].delta.content == "w0 "
        stream.close()
        until(lambda: len(backend.aborted) == 1 and server.gateway.under_way() == 0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus (Debian package) is not installed")
def test_a_real_prometheus_scrapes_us_and_finds_nothing_wrong(start, tmp_path):
    _, url, _ = start()
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "stream": True}
    for _ in range(3):
        assert httpx.post(f"{url}/v1/chat/completions", json=body).status_code == 200
    page = httpx.get(f"{url}/metrics").text
    told = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True, check=False)
    ours = [line for line in told.stderr.splitlines() if not line.startswith("vllm:")]
    # vLLM's names break some of Prometheus' habits, and must be as they are.
    assert ours == []
    port = free_port()
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "scrape_configs:\n- job_name: gateway\n  scrape_interval: 200ms\n  scrape_timeout: 200ms\n"
        f"  static_configs: [{{targets: ['{url.removeprefix('http://')}']}}]\n"
    )
    scraper = subprocess.Popen(
        ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: value(port, 'up{job="gateway"}') == 1.0, 30)
        assert value(port, "inferencegym_requests_total") == 3.0
        assert value(port, "histogram_quantile(0.5, sum by (le) (vllm:time_to_first_token_seconds_bucket))") > 0
        targets = httpx.get(f"http://127.0.0.1:{port}/api/v1/targets").json()["data"]["activeTargets"]
        assert [one["lastError"] for one in targets] == [""]
    finally:
        scraper.terminate()
        scraper.wait(20)


def value(port, query):
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": query})
    except httpx.TransportError:
        return None
    if answer.status_code == 503:
        # It listens before it is ready.
        return None
    found = answer.json()["data"]["result"]
    return float(found[0]["value"][1]) if found else None


@pytest.mark.slow
def test_the_load_generator_and_the_server_tell_the_same_of_each_request(start):
    process, url, log = start("--set", "dispatch.max_concurrency=4", "--set", "queue.max_requests=6")
    plan = Plan(
        synthetic(requests=80, rate_rps=60.0, prompt_tokens=32, output_tokens=24),
        hang_up_share=0.2,
        hang_up_after_s=0.08,
    )
    found = asyncio.run(run(plan, Target(url=url, model=MODEL, extra={"ignore_eos": True})))
    refused = {one["id"] for one in map(json.loads, log_lines(process, log)) if one["event"] == "refused"}
    ours = logged(log)
    records = found.records
    kinds = dict.fromkeys(Outcome, 0)
    gaps = []
    for i, name in enumerate(found.request_ids):
        outcome = Outcome(int(records.outcome[i]))
        kinds[outcome] += 1
        if outcome is Outcome.REJECTED:
            assert name in refused
            continue
        line = ours[name]
        assert line["outcome"] == outcome.name.lower()
        if outcome is Outcome.OK:
            assert (line["prompt_tokens"], line["output_tokens"]) == (
                records.prompt_tokens[i],
                records.output_tokens[i],
            )
            sent = records.finish_s[i] - records.enqueued_s[i]
            gaps.append(
                (
                    sent * 1e3 - line["total_ms"],
                    (records.first_token_s[i] - records.enqueued_s[i]) * 1e3 - line["ttft_ms"],
                )
            )
    assert set(ours) | refused == set(found.request_ids)
    assert kinds[Outcome.OK] > 10
    assert kinds[Outcome.FAILED] == 0
    late_ms = np.array(gaps)
    print(
        "client minus server, ms, p50 and p95 of (total, ttft):",
        np.quantile(late_ms, 0.5, axis=0),
        np.quantile(late_ms, 0.95, axis=0),
        kinds,
    )
    # The client is never quicker than the server it asks.
    assert late_ms.min() > -0.5


def log_lines(process, log):
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    return [line for line in log.read_text().splitlines() if line.startswith("{")]
