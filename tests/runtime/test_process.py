"""The server as a process of its own: signals, the command line, schemathesis."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import httpx
import pytest

from tests.runtime.fakes import until

BODY = {"model": "llama-3.1-8b", "messages": [{"role": "user", "content": "hi"}], "ignore_eos": True}


def stream(url, tokens, lines):
    with httpx.stream(
        "POST", f"{url}/v1/chat/completions", json=BODY | {"stream": True, "max_tokens": tokens}, timeout=60
    ) as answer:
        lines += answer.iter_lines()


@pytest.mark.slow
def test_sigterm_loses_nothing_that_was_accepted_and_takes_nothing_new(start):
    process, url, log = start("--set", "backends.main.time_scale=0.5")
    streams = [[] for _ in range(4)]
    threads = [threading.Thread(target=stream, args=(url, 60, lines)) for lines in streams]
    for thread in threads:
        thread.start()
    until(lambda: all(streams))
    process.send_signal(signal.SIGTERM)
    until(lambda: httpx.get(f"{url}/readyz").status_code == 503)
    refused = httpx.post(f"{url}/v1/chat/completions", json=BODY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert "retry-after" in refused.headers
    assert httpx.get(f"{url}/livez").status_code == 200
    for thread in threads:
        thread.join(60)
    for lines in streams:
        assert sum('"content"' in line for line in lines) == 60
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert process.wait(20) == 0
    events = [json.loads(line)["event"] for line in log.read_text().splitlines() if line.startswith("{")]
    assert events.count("request") == 4
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("twice", [True, False])
def test_a_second_signal_or_the_end_of_patience_ends_streams_with_an_error(start, twice):
    flags = () if twice else ("--set", "server.drain_timeout_s=0.3")
    process, url, _ = start("--set", "backends.main.time_scale=0.05", *flags)
    lines = []
    thread = threading.Thread(target=stream, args=(url, 2000, lines))
    thread.start()
    until(lambda: lines)
    process.send_signal(signal.SIGTERM)
    if twice:
        until(lambda: httpx.get(f"{url}/readyz").status_code == 503)
        process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    thread.join(20)
    told = [line for line in lines if line]
    assert '"code":"shutdown"' in told[-1]
    assert "data: [DONE]" not in told


@pytest.mark.slow
def test_workers_share_a_port_and_end_together(start):
    process, url, _ = start("--workers", "2", "--set", "backends.main.time_scale=100")
    answers = [httpx.post(f"{url}/v1/chat/completions", json=BODY | {"max_tokens": 4}, timeout=30) for _ in range(8)]
    assert {answer.status_code for answer in answers} == {200}
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def test_settings_are_checked_before_anything_starts():
    def run(*words):
        return subprocess.run(
            [sys.executable, "-m", "inferencegym", "serve", *words], capture_output=True, text=True, timeout=60
        )

    for words, told in [
        (("--host", "0.0.0.0"), "no API key"),
        (("--set", "queue.ordr=vtc"), "did you mean 'order'"),
        (("config", "check", "--set", "queue.max_requests=many"), "a whole number"),
        (
            ("--set", "keys.a.sha256=" + "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            "everybody tries first",
        ),
    ]:
        done = run(*words)
        assert (done.returncode, told in done.stderr) == (1, True), done.stderr
        assert "Traceback" not in done.stderr
    assert run("config", "check", "--set", "queue.order=vtc").returncode == 0
    assert "queue.order" in run("config", "show", "--set", "queue.order=vtc").stdout


def test_a_new_key_opens_a_server_that_has_its_hash():
    words = [sys.executable, "-m", "inferencegym", "serve", "key", "lena"]
    told = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
    secret = told.splitlines()[0].rpartition(" ")[2]
    held = tomllib.loads(told)["keys"][0]
    assert held == {"name": "lena", "sha256": hashlib.sha256(secret.encode()).hexdigest()}


@pytest.mark.slow
def test_schemathesis_finds_no_server_error_and_no_undocumented_answer(start, tmp_path):
    pytest.importorskip("schemathesis", reason="the extra 'dev' is not installed")
    _, url, log = start("--set", "backends.main.time_scale=10000", "--set", "backends.main.max_model_len=256")
    done = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "--config-file", str(Path(__file__).with_name("schemathesis.toml")), "run", f"{url}/openapi.json",
            "--checks", "all", "--phases", "coverage,fuzzing", "--max-examples", "3", "--max-time", "20", "--no-color",
            # A server that drains answers 503, and so do the others from then on.
            "--exclude-path", "/v1/runtime/drain",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    assert int(re.search(r"(\d+) generated", done.stdout).group(1)) >= 200
    assert "unhandled" not in log.read_text()
