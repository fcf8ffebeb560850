"""The script that measures overload: its yardsticks, and that one short run of the whole gateway repeats to the last figure."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from inferencegym.ground.clock import run_virtual

RUNS = Path(__file__).resolve().parent.parent.parent / "runs"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(RUNS))
    try:
        yield importlib.import_module("overload")
    finally:
        sys.path.remove(str(RUNS))


def test_fair_shares_are_max_min_and_jain_knows_the_extremes(script):
    assert script.entitled(np.array([10.0, 1.0, 4.0]), 9.0).tolist() == [4.0, 1.0, 4.0]
    assert script.entitled(np.array([1.0, 1.0]), 9.0).tolist() == [1.0, 1.0]
    assert script.jain(np.ones(4)) == 1.0
    assert script.jain(np.array([1.0, 0.0, 0.0, 0.0])) == 0.25


def test_what_is_said_follows_from_the_figures(script):
    stored = json.loads((RUNS.parent / "docs" / "results" / "overload.json").read_text())
    assert script.page(stored) == (RUNS.parent / "docs" / "results" / "overload.md").read_text()
    rows = stored["rows"]
    other = [row for row in rows if "predicted" in row and row != "fcfs, predicted wait"]
    turned = stored | {"rows": {row: rows[row] for row in rows if row not in other} | {"fcfs": rows["fcfs, predicted wait"], "fcfs, predicted wait": rows["fcfs"]}}  # fmt: skip
    said = "\n".join(script.reading(turned))
    assert "fcfs, predicted wait has most: 0.0" in said
    assert "a second, less than any order alone" in said
    assert "a second, less than without it" in said


def test_a_run_repeats_and_early_refusal_keeps_goodput_under_overload(script, monkeypatch):
    monkeypatch.setattr(script, "WARM_S", 4.0)
    monkeypatch.setattr(script, "MEASURED_S", 12.0)

    def play(row: str) -> dict[str, float]:
        return script.figures(*run_virtual(script.offered(script.settings_of(row), 60.0, 16.0, 3)))

    plain, early = play("fcfs"), play("vtc, predicted wait")
    assert early == play("vtc, predicted wait")
    assert early["goodput_rps"] > 2 * plain["goodput_rps"]
    assert early["jain"] > plain["jain"]
