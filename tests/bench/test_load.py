"""The load generator against a scripted server: what is sent when, what is counted, what every way to fail is called, and how runs are compared."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("aiohttp", reason="the extra 'serve' is not installed")
pytest.importorskip("starlette", reason="the extra 'openenv' is not installed")

from inferencegym.bench.client import Target
from inferencegym.bench.kept import Kept, differences, keep, read_kept
from inferencegym.bench.load import Plan, run, synthetic, timeline_of
from inferencegym.bench.prompts import Prompts
from inferencegym.cli.main import app
from inferencegym.ground.errors import ConfigError, InferenceGymError, InputError
from inferencegym.metrics.record import Outcome, Records
from inferencegym.metrics.slo import Slo
from inferencegym.workload import Workload
from tests.openenv.scripted import Script, ScriptedServer
from tests.starting import free_port


@pytest.fixture
def server():
    made = ScriptedServer()
    yield made
    made.stop()


def load(server, plan, **given):
    target = Target(url=server.url.removesuffix("/v1"), model="m", **given)
    return asyncio.run(run(plan, target))


def test_tokens_gaps_and_usage_are_those_of_the_stream(server):
    server.script = lambda body, number: Script(first_s=0.05, gap_s=0.02)
    found = load(server, Plan(synthetic(requests=3, rate_rps=None, prompt_tokens=40, output_tokens=5), concurrency=1))
    records = found.records
    assert records.observer == "client"
    assert records.ok.all()
    assert records.output_tokens.tolist() == [5, 5, 5]
    assert records.prompt_tokens.tolist() == [40, 40, 40]  # as the server counted the words
    assert found.itl.count == 3 * 4
    # Never earlier than scripted; how much later is the machine's business.
    assert (records.ttft_s >= 0.049).all()
    assert (records.e2e_s >= 0.129).all()
    assert len(records.out_of_order()) == 0
    assert len(set(found.request_ids)) == 3
    body = server.bodies[0]
    assert body["stream_options"] == {"include_usage": True}
    assert body["max_tokens"] == 5


def test_closed_loop_keeps_so_many_under_way(server):
    server.script = lambda body, number: Script(first_s=0.05, tokens=1)
    found = load(server, Plan(synthetic(requests=12, rate_rps=None, prompt_tokens=5, output_tokens=1), concurrency=3))
    assert found.records.ok.all()
    assert server.most_running == 3


def test_open_loop_sends_at_the_workloads_times_and_counts_from_them(server):
    # One request at a time may be under way: the second is late through no fault of the server, and its latency says so.
    server.script = lambda body, number: Script(first_s=0.2, tokens=1)
    work = Workload.of(arrival_s=[0.0, 0.05], prompt_tokens=[4, 4], output_tokens=[1, 1])
    records = load(server, Plan(work, most_in_flight=1)).records
    assert records.enqueued_s[1] >= 0.2
    assert records.arrival_s[1] == pytest.approx(0.05, abs=0.02)
    assert records.ttft_s[1] >= 0.34
    assert records.queue_s[1] >= 0.14


def test_a_follower_waits_for_its_predecessor_and_the_pause(server):
    server.script = lambda body, number: Script(first_s=0.1, tokens=1)
    work = Workload.of(
        arrival_s=[0.0, 0.01], prompt_tokens=[4, 4], output_tokens=[1, 1], after=[-1, 0], think_s=[0.0, 0.15]
    )
    records = load(server, Plan(work)).records
    assert records.enqueued_s[1] >= records.finish_s[0] + 0.149


def test_every_way_to_fail_has_its_name(server):
    kinds = [Script(status=503), Script(status=429), Script(status=400), Script(break_after=2), Script(first_s=5.0), Script(tokens=0), Script(tokens=3)]  # fmt: skip
    server.script = lambda body, number: kinds[number]
    plan = Plan(synthetic(requests=7, rate_rps=None, prompt_tokens=4, output_tokens=4), concurrency=1)
    found = load(server, plan, timeout_s=0.5)
    O = Outcome  # noqa: E741
    wanted = [O.REJECTED, O.REJECTED, O.FAILED, O.FAILED, O.ABORTED, O.FAILED, O.OK]
    assert [Outcome(code) for code in found.records.outcome.tolist()] == wanted
    assert sum(found.errors.values()) >= 5
    assert any("hung up after 0.5 s" in text for text in found.errors)
    assert len(found.records.out_of_order()) == 0


def test_nobody_there_is_a_failure_of_each_request():
    target = Target(url=f"http://127.0.0.1:{free_port()}", model="m")
    plan = Plan(synthetic(requests=2, rate_rps=None, prompt_tokens=4, output_tokens=4), concurrency=1)
    found = asyncio.run(run(plan, target))
    assert (found.records.outcome == Outcome.FAILED).all()
    assert any("Connect" in text for text in found.errors)


def test_clients_hang_up_as_often_as_asked(server):
    server.script = lambda body, number: Script(first_s=0.01, gap_s=0.05, tokens=100)
    plan = Plan(
        synthetic(requests=6, rate_rps=None, prompt_tokens=4, output_tokens=100),
        concurrency=6,
        hang_up_share=1.0,
        hang_up_after_s=0.2,
    )
    found = load(server, plan)
    assert (found.records.outcome == Outcome.ABORTED).all()
    assert (found.records.output_tokens < 100).all()


def test_warmup_is_sent_and_not_counted(server):
    plan = Plan(synthetic(requests=5, rate_rps=None, prompt_tokens=4, output_tokens=1), concurrency=1, warmup=2)
    found = load(server, plan)
    assert len(server.bodies) == 5
    assert found.records.row.tolist() == [2, 3, 4]


def test_equal_prefix_ids_are_equal_text():
    work = Workload.of(
        arrival_s=[0.0, 1.0, 2.0], prompt_tokens=[40, 36, 40], output_tokens=[1, 1, 1], prefix_offsets=[0, 2, 4, 6], prefix_ids=[7, 8, 7, 8, 7, 9],
        prefix_block_tokens=16,
    )  # fmt: skip
    texts = [Prompts(work).text(row).split() for row in range(3)]
    assert [len(text) for text in texts] == [40, 36, 40]
    assert texts[0][:32] == texts[1][:32]
    assert texts[0][32:36] != texts[1][32:]
    assert texts[0][:16] == texts[2][:16]
    assert texts[0][16:32] != texts[2][16:32]
    assert Prompts(work, seed=1).text(0) != Prompts(work, seed=0).text(0)


def test_runs_share_no_prompt_unless_asked_to(server):
    work = synthetic(requests=1, rate_rps=None, prompt_tokens=20, output_tokens=1)
    for same in (False, False, True, True):
        load(server, Plan(work, concurrency=1, same_prompts=same))
    texts = [body["messages"][0]["content"] for body in server.bodies]
    assert len(set(texts)) == 3
    assert texts[2] == texts[3]


def test_synthetic_arrivals_have_the_rate_and_the_burstiness():
    for burstiness in (0.0, 1.0, 4.0):
        work = synthetic(requests=4000, rate_rps=5.0, prompt_tokens=1, output_tokens=1, burstiness=burstiness)
        gaps = np.diff(work.arrival_s)
        assert gaps.mean() == pytest.approx(0.2, rel=0.12)
        assert gaps.var() / gaps.mean() ** 2 == pytest.approx(burstiness, rel=0.35, abs=1e-9)
    with pytest.raises(ConfigError, match="rate"):
        synthetic(requests=1, rate_rps=0.0, prompt_tokens=1, output_tokens=1)


def test_the_timeline_counts_who_waits_and_who_runs():
    records = Records.of(
        observer="client", arrival_s=[0.0, 0.0], scheduled_s=[0.0, 0.0], first_token_s=[1.0, 2.0], finish_s=[3.0, 4.0], output_tokens=[20, 20]
    )  # fmt: skip
    found = timeline_of(records, points=9)
    assert found["t_s"].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]
    assert found["waiting"].tolist() == [2, 2, 1, 1, 0, 0, 0, 0, 0]
    assert found["running"].tolist() == [0, 0, 1, 1, 2, 2, 1, 1, 0]
    assert found["output_tps"].tolist() == [0, 0, 10, 10, 20, 20, 10, 10, 0]


def _kept(label, factor):
    chance = np.random.default_rng(1)
    n = 400
    arrival = np.arange(n) * 0.1
    ttft = factor * chance.gamma(4.0, 0.05, n)
    records = Records.of(
        observer="client", arrival_s=arrival, scheduled_s=arrival, first_token_s=arrival + ttft, finish_s=arrival + ttft + 0.5, output_tokens=np.full(n, 11)
    )  # fmt: skip
    return Kept(label, records, itl_of(records), Slo(ttft_s=0.3), ("default",), timeline_of(records), {"seed": "0"}, {}, ("a",))  # fmt: skip


def itl_of(records):
    from inferencegym.metrics.itl import ItlHistogram

    return ItlHistogram.of_gaps(np.full(len(records) * 10, 50_000_000_000))


def test_runs_are_kept_read_again_and_compared(tmp_path):
    one, slower = _kept("one", 1.0), _kept("slower", 1.5)
    keep(tmp_path / "runs", [one, slower])
    again = read_kept(tmp_path / "runs")
    assert [kept.label for kept in again] == ["one", "slower"]
    assert again[0].summary.to_dict() == one.summary.to_dict()
    assert again[1].records.ttft_s.tolist() == slower.records.ttft_s.tolist()
    found = differences(slower, one, [("ttft_s", "p50"), ("tpot_s", "p50"), ("goodput_rps", "")])
    assert found["TTFT (ms) p50"].startswith("+")
    assert found["TTFT (ms) p50"].endswith("*")
    assert not found["TPOT (ms) p50"].endswith("*")
    assert found["Goodput (requests/s)"].startswith("-")
    assert not any(text.endswith("*") for text in differences(one, one, [("ttft_s", "p50"), ("ttft_s", "p99")]).values())  # fmt: skip


@pytest.mark.parametrize("damage", ["", "{", '{"format": 9, "runs": []}', '{"format": 1, "runs": [{}]}'])
def test_a_folder_that_is_no_kept_run_is_one_clear_error(tmp_path, damage):
    if damage:
        (tmp_path / "runs.json").write_text(damage)
    with pytest.raises(InputError, match=r"kept load test|format 9"):
        read_kept(tmp_path)


def command(*options):
    return CliRunner().invoke(app, ["load", *[str(option) for option in options]])


def test_the_command_makes_a_table_json_and_a_report(server, tmp_path):
    common = ["--url", server.url.removesuffix("/v1"), "--model", "m", "--requests", 4, "--prompt-tokens", 5, "--output-tokens", 3]  # fmt: skip
    done = command(*common, "--concurrency", "1,2", "--save", tmp_path / "kept", "--report", tmp_path / "a.html")
    assert done.exit_code == 0, done.output
    for word in ("1 at once", "2 at once", "TTFT (ms) p99", "report:"):
        assert word in done.stdout
    page = (tmp_path / "a.html").read_text()
    assert "Tokens out" in page
    for unseen in ("KV memory in use", "Preemptions", "low .. high"):
        assert unseen not in page
    one = tmp_path / "one"
    assert command(*common, "--concurrency", 1, "--save", one).exit_code == 0
    told = json.loads(command(*common, "--rate", 50, "--compare", one, "--json").stdout)
    assert [run["label"] for run in told["runs"]] == ["1 at once", "50 requests/s"]
    assert "TTFT (ms) p50" in told["against_earlier"]["50 requests/s"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rate", "1", "--concurrency", "1"], "--concurrency"), (["--rate", "x"], "--rate"), (["--endpoint", "chats"], "--endpoint"),
        (["--requests", "3", "--warmup", "3"], "warmup"), (["--url", "http://127.0.0.1:9"], "does not answer"),
    ],
)  # fmt: skip
def test_wrong_options_are_one_clear_error(options, said):
    error = command(*options).exception
    assert isinstance(error, InferenceGymError)
    assert said in str(error)
