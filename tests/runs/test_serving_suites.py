"""The serving suites and the fuzz run: short pieces of each repeat, show what they are for, and make their page; the seed makes the bytes."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path

import pytest

from inferencegym.ground.clock import run_virtual

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def scripts():
    sys.path.insert(0, str(ROOT / "runs"))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(ROOT / "runs"))


def test_batches_grow_with_the_timeout_and_a_run_repeats(scripts, monkeypatch):
    suites = scripts("serving_suites")
    monkeypatch.setattr(suites, "FOR_S", 20.0)
    runs = [
        suites.batch_run(suites.ENGINES["static"], suites.MODES[mode], 4.0, 1)
        for mode in ("off", "by size (8, 2 s)", "off")
    ]
    assert runs[0] == runs[2]
    assert runs[0]["mean_batch"] == 1.0 < runs[1]["mean_batch"]
    assert runs[1]["ttft_p50_s"] > runs[0]["ttft_p50_s"], "who waits for company waits longer"


def test_priority_starves_and_aging_does_not(scripts, monkeypatch):
    suites = scripts("serving_suites")
    monkeypatch.setattr(suites, "FOR_S", 25.0)
    told = {}
    for order in ("priority", "aging (1 s a level)", "vtc"):
        settings = suites.Settings(queue=suites.ORDERS[order], classes=suites.CLASSES, dispatch=suites.MODES["off"])
        gateway = run_virtual(suites.played(settings, 20.0, 25.0, 1, suites.TENANTS, suites.ENGINES["vllm"]))
        names = list(gateway.recorder.journal.tenant_names())
        told[order] = suites.waits(
            suites.measured(gateway.recorder.records()), [one.name for one in suites.CLASSES], names
        )
    assert told["priority"]["background"]["p50_s"] > 5 * told["priority"]["urgent"]["p50_s"]
    assert told["aging (1 s a level)"]["starved"] < told["priority"]["starved"]
    assert told["vtc"]["quiet"]["p99_s"] < told["vtc"]["loud"]["p50_s"]


def test_the_page_is_that_of_the_figures(scripts):
    suites = scripts("serving_suites")
    folder = ROOT / "docs" / "results"
    found = json.loads((folder / "serving.json").read_text())
    assert suites.page(found) == (folder / "serving.md").read_text()


def test_the_seed_makes_the_bytes_and_a_moment_of_them_finds_nothing(scripts):
    fuzz = scripts("fuzz_wire")
    one, other = fuzz.Maker(7, "fuzz.http"), fuzz.Maker(7, "fuzz.http")
    assert [one.connection() for _ in range(50)] == [other.connection() for _ in range(50)]
    finds = fuzz.Finds()
    fuzz.in_process(finds, fuzz.Maker(3, "fuzz.read"), time.monotonic() + 0.2)
    assert sum(finds.tried.values()) >= 200
    assert finds.found == []
