"""Several workers tell as one: sums that never go down, gauges only of who runs, whoever is asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import httpx
import pytest

from inferencegym.metrics.itl import ItlHistogram
from inferencegym.runtime.exporter import Exporter, counters, gauges
from inferencegym.runtime.siblings import Siblings, Worker, new_folder
from inferencegym.runtime.told import Durations, Engine, Now, Told, Window, decode, encode, together
from tests.runtime.fakes import until
from tests.runtime.test_exporter import NO_GPU, value
from tests.runtime.virtual import House, run_house

BODY = {"model": "llama-3.1-8b", "messages": [{"role": "user", "content": "hi"}], "ignore_eos": True, "max_tokens": 4}


def window(met: int, decided: int, *gaps_ps: int) -> Window:
    gaps = Durations(ItlHistogram.of_gaps(gaps_ps))
    return Window(10.0, 4, 3, 12, 0.3, decided, met, gaps, gaps)


def told(pid: int, requests: int, *, own: bool = True, kv: float | None = 0.5, redis: bool | None = None) -> Told:
    now = Now(2, float(pid % 7), 30, 100, {"a": 2}, window(1, 2, 10**10), redis)
    engine = Engine(own, 3, True, 2.0, 1.0, kv, 5.0, {"steps": 50.0})
    latency = {"a": Durations(ItlHistogram.of_gaps([10**9 * pid] * requests))}
    return Told(pid, now, {"main": engine}, {"requests": requests}, {"ok": {"stop": requests}}, {"ttft_s": latency})


def test_what_is_added_and_what_is_not():
    both = together([told(3, 4, redis=True), told(4, 6, redis=False)])
    assert both.workers == 2
    assert counters(both) == {"requests": 10, "preemptions": 10, "steps": 100}
    assert both.reasons == {"ok": {"stop": 10}}
    assert both.latencies["ttft_s"]["a"].histogram.count == 10
    assert both.latencies["ttft_s"]["a"].histogram.sum_ps == 10**9 * (3 * 4 + 4 * 6)
    seen = gauges(both)
    assert (seen["running_mean"], seen["waiting_mean"], seen["kv_used_mean"]) == (4, 6, 0.5)
    assert (seen["oldest_wait_s"], seen["slo_attainment"], seen["goodput_rps"]) == (4, 0.5, 0.6)
    assert (seen["shared_up"], seen["workers"]) == (0, 2)


def test_one_engine_behind_two_workers_is_counted_once():
    both = together([told(3, 4, own=False), told(4, 6, own=False)])
    assert both.engines["main"].in_flight == 6
    assert counters(both)["preemptions"] == 5
    assert (gauges(both)["running_mean"], gauges(both)["waiting_mean"]) == (2, 5)


def test_who_has_ended_counts_on_and_holds_nothing():
    both = together([told(3, 4).ended(), told(4, 6)])
    assert counters(both) == {"requests": 10, "preemptions": 10, "steps": 100}
    seen = gauges(both)
    assert (seen["workers"], seen["running_mean"], seen["waiting_mean"], seen["oldest_wait_s"]) == (1, 2, 3, 4)
    assert both.now.by_class == {"a": 2}
    assert both.engines["main"].in_flight == 3


def test_bytes_keep_all_of_it():
    one = told(3, 4, redis=True)
    one.latencies["ttft_s"]["a"] = Durations(ItlHistogram(one.latencies["ttft_s"]["a"].histogram.counts, 10**25, 4))
    again = decode(encode(one))
    assert encode(decode(encode(again))) == encode(again)
    assert (again.counters, again.now.by_class, again.engines) == (one.counters, one.now.by_class, one.engines)
    assert (
        again.latencies["ttft_s"]["a"].histogram.counts.tolist()
        == one.latencies["ttft_s"]["a"].histogram.counts.tolist()
    )
    assert again.latencies["ttft_s"]["a"].histogram.sum_ps == 10**25


def test_files_of_a_folder_are_the_workers(tmp_path):
    """The process of this test stands for one worker; one that has ended has left its file."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / f"0-{gone.pid}.json").write_bytes(encode(told(gone.pid, 4)))
    mine = Siblings(Worker(1, tmp_path), lambda: told(os.getpid(), 6))
    found = together(mine.all_told())
    assert (found.workers, found.counters["requests"], found.now.waiting) == (1, 10, 2)
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".json", ".json"]


def test_a_page_of_two_gateways(tmp_path):
    """Two houses in one process: the second one's page has both."""
    files = []

    async def first(house: House) -> None:
        await house.ask(most=5)
        files.append(encode(Exporter(house.gateway, NO_GPU).told()))

    async def second(house: House) -> None:
        await house.ask(most=7)
        (tmp_path / "0-1.json").write_bytes(
            files[0].replace(f'"pid":{os.getpid()}'.encode(), b'"pid":%d' % os.getppid())
        )
        exporter = Exporter(house.gateway, NO_GPU)
        exporter.others = Siblings(Worker(1, tmp_path), exporter.told)
        text = exporter.prometheus()
        assert value(text, "inferencegym_requests_total") == 2
        assert value(text, "vllm:generation_tokens_total") == 12
        assert value(text, "inferencegym_ttft_seconds_count") == 2
        assert value(text, "inferencegym_workers") == 2
        assert exporter.json()["counters"]["output_tokens"] == 12

    run_house(first)
    run_house(second)


def test_the_folder_is_a_new_one():
    one, other = new_folder(), new_folder()
    assert one != other
    one.rmdir()
    other.rmdir()


@pytest.mark.slow
def test_any_of_two_workers_tells_of_both_also_of_one_that_died(start):
    process, url, _ = start("--workers", "2", "--set", "backends.main.time_scale=100")

    def page():
        return httpx.get(f"{url}/metrics", timeout=30).text

    until(lambda: value(page(), "inferencegym_workers") == 2, 60)
    # Each on a connection of its own, so both workers get some.
    for _ in range(12):
        assert httpx.post(f"{url}/v1/chat/completions", json=BODY, timeout=30).status_code == 200
    until(lambda: value(page(), "inferencegym_ok_total") == 12)
    counts = [value(page(), "vllm:generation_tokens_total") for _ in range(10)]
    assert counts == [48] * 10, "whoever is asked"
    children = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "spawn_main"], capture_output=True, text=True, check=True)  # fmt: skip
    os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
    until(lambda: value(page(), "inferencegym_workers") == 1)
    assert value(page(), "vllm:generation_tokens_total") == 48
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
