"""What /metrics says: valid Prometheus text, both vocabularies, numbers that are the recorder's, labels that stay few, GPUs that may not be there."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from inferencegym.ground.units import MIB
from inferencegym.metrics.vocabulary import METRICS
from inferencegym.runtime.errors import ApiError
from inferencegym.runtime.exporter import MOST_CLASSES, Exporter
from inferencegym.runtime.gpu import GpuReader, parse
from inferencegym.runtime.histogram import BUCKETS_S
from inferencegym.runtime.settings import QueueSettings, ServiceClass, Settings
from tests.runtime.virtual import House, run_house

TWO = Settings(classes=(ServiceClass("a"), ServiceClass('b"\\', priority=1)), queue=QueueSettings(max_requests=1))
NO_GPU = GpuReader("no-such-program")


def families(text: str) -> dict[str, list]:
    return {family.name: family.samples for family in text_string_to_metric_families(text)}


def value(text: str, name: str, **labels: str) -> float:
    found = [
        s.value
        for samples in families(text).values()
        for s in samples
        if s.name == name and labels.items() <= s.labels.items()
    ]
    assert found, f"there is no {name}{labels}"
    return sum(found)


async def some_traffic(house: House) -> None:
    flows = [house.begin(most=10, slo_class='b"\\' if i % 3 == 0 else "a") for i in range(9)]
    with pytest.raises(ApiError):
        house.begin()
    flows[0].leave()
    await asyncio.gather(*(house.read(flow) for flow in flows))


def scraped(settings: Settings = TWO) -> tuple[str, dict]:
    told = {}

    async def test(house: House) -> None:
        exporter = Exporter(house.gateway, NO_GPU)
        await some_traffic(house)
        told["text"], told["json"] = exporter.prometheus(), exporter.json()

    run_house(test, settings)
    return told["text"], told["json"]


def test_the_figures_are_the_recorders():
    text, told = scraped()
    assert value(text, "inferencegym_requests_total") == 10
    assert value(text, "inferencegym_ok_total", reason="length") == 8
    ended = {
        why: value(text, "vllm:request_success_total", finished_reason=why)
        for why in ("stop", "length", "abort", "error")
    }
    assert ended == {"stop": 0, "length": 8, "abort": 1, "error": 0}
    assert value(text, "inferencegym_refused_total", reason="requests") == 1
    assert value(text, "inferencegym_rejected_total", reason="queue_full") == 1
    assert value(text, "inferencegym_aborted_total", reason="client_left") == 1
    assert value(text, "inferencegym_output_tokens_total") == value(text, "vllm:generation_tokens_total") == 80
    assert value(text, "inferencegym_ttft_seconds_count") == value(text, "vllm:time_to_first_token_seconds_count") == 8
    assert value(text, "inferencegym_ttft_seconds_count", **{"class": 'b"\\'}) == 2
    assert value(text, "inferencegym_itl_seconds_count") == 72
    assert value(text, "inferencegym_itl_seconds_bucket", le="+Inf") == 72
    assert value(text, "inferencegym_released_total", reason="immediate") == 9
    assert value(text, "vllm:num_requests_running", model_name="m") == 0
    assert value(text, "inferencegym_backend_up", backend="main") == 1
    assert told["counters"]["requests"] == 10
    assert told["by_reason"]["rejected"] == {"queue_full": 1}
    assert told["latencies"]["itl_s"]["count"] == 72
    assert told["window"]["finished"] == 8
    assert value(text, "inferencegym_itl_seconds_sum") == pytest.approx(72 * told["latencies"]["itl_s"]["mean"])


def test_while_it_runs_and_waits():
    async def test(house: House) -> None:
        exporter = Exporter(house.gateway, NO_GPU)
        flows = [house.begin(prompt=100, most=50) for _ in range(9)]
        await asyncio.sleep(0.02)
        text = exporter.prometheus()
        assert value(text, "inferencegym_requests_running") == value(text, "vllm:num_requests_running") == 8
        assert value(text, "inferencegym_requests_waiting") == value(text, "vllm:num_requests_waiting") == 1
        assert value(text, "inferencegym_oldest_wait_seconds") == pytest.approx(0.02)
        assert value(text, "inferencegym_waiting_prompt_tokens") == 100
        assert value(text, "inferencegym_kv_tokens_in_flight") == 8 * 150
        assert 0 < value(text, "vllm:kv_cache_usage_perc") < 1
        assert value(text, "inferencegym_backend_in_flight", backend="main") == 8
        for flow in flows:
            await house.read(flow)

    run_house(test, Settings(queue=QueueSettings(max_requests=5)))


def test_buckets_grow_and_end_with_the_count():
    text, _ = scraped()
    for name, samples in families(text).items():
        buckets = [s for s in samples if s.name.endswith("_bucket")]
        groups: dict[tuple, list[float]] = {}
        for sample in buckets:
            groups.setdefault(tuple(v for k, v in sample.labels.items() if k != "le"), []).append(sample.value)
        for counts in groups.values():
            assert counts == sorted(counts), name
            assert len(counts) == len(BUCKETS_S) + 1


def test_every_series_is_in_the_vocabulary():
    text, _ = scraped()
    known = {entry.prometheus for entry in METRICS} | {entry.vllm for entry in METRICS}
    assert {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")} <= known
    assert len(text.splitlines()) == len(set(text.splitlines())), "no line twice"


def test_labels_stay_few():
    many = tuple(ServiceClass(f"c{i}") for i in range(MOST_CLASSES + 40))
    told = {}

    async def test(house: House) -> None:
        for i in range(MOST_CLASSES + 40):
            await house.ask(most=2, slo_class=f"c{i}")
        told["text"] = Exporter(house.gateway, NO_GPU).prometheus()

    run_house(test, Settings(classes=many))
    labels = {s.labels["class"] for s in families(told["text"])["inferencegym_ttft_seconds"]}
    assert len(labels) == MOST_CLASSES + 1
    assert value(told["text"], "inferencegym_ttft_seconds_count", **{"class": "other"}) == 40


def test_json_can_be_written():
    _, told = scraped()
    assert json.loads(json.dumps(told, allow_nan=False)) == told


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian package prometheus) is not installed")
def test_promtool_finds_nothing_wrong_with_our_names():
    text, _ = scraped()
    ours = "\n".join(line for line in text.splitlines() if "vllm:" not in line) + "\n"
    done = subprocess.run(["promtool", "check", "metrics"], input=ours, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- GPUs -----------------------------------------------------------------------------------------------------------------


def program(folder: Path, text: str) -> str:
    file = folder / "nvidia-smi"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return str(file)


CARDS = "0, NVIDIA H200, 37, 1024, 143771, 301.5, 61\n1, A card, with a comma, [N/A], 5, 10, [N/A], 33"


def test_what_nvidia_smi_says():
    first, second = parse(CARDS + "\nnonsense\n")
    assert (first.index, first.name, first.busy_fraction, first.memory_used_bytes, first.power_w) == (
        "0",
        "NVIDIA H200",
        0.37,
        1024 * MIB,
        301.5,
    )
    assert (second.name, second.memory_bytes) == ("A card, with a comma", 10 * MIB)
    assert math.isnan(second.busy_fraction)


def test_a_reader_asks_in_the_background(tmp_path: Path):
    async def main() -> None:
        reader = GpuReader(program(tmp_path, f"printf '{CARDS}'"))
        assert reader.look() == ()
        assert reader.problem == "not asked yet"
        await reader.close()
        assert [gpu.index for gpu in reader.look()] == ["0", "1"]
        assert reader.problem == ""
        await reader.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("script", "told"), [("exit 9", "exit code 9"), ("exec sleep 30", "did not answer within 0.2 s")]
)
def test_a_driver_that_fails_or_hangs(tmp_path: Path, script: str, told: str):
    async def main() -> None:
        reader = GpuReader(program(tmp_path, script), timeout_s=0.2)
        await reader.ask()
        assert told in reader.problem
        assert reader.gpus == ()

    asyncio.run(main())


def test_without_a_gpu_it_says_so():
    text, told = scraped()
    assert value(text, "inferencegym_gpu_telemetry_up") == 0
    assert told["gpu_telemetry"] == "unavailable: there is no no-such-program on this machine"
    assert "inferencegym_gpu_busy_ratio" not in text
