"""What `inferencegym control` shows and takes: the table, ranges of knobs, names of policies. How it steers is in tests/control."""

from __future__ import annotations

import io
from collections import deque
from dataclasses import replace

import pytest
from rich.console import Console

from inferencegym.cli.control import _line, _named, _ranges, _table
from inferencegym.control.loop import Window
from inferencegym.control.remote import MOST_NAME, RemotePlant
from inferencegym.decision.knobs import Applied, Knobs
from inferencegym.decision.snapshot import Snapshot
from inferencegym.ground.errors import ConfigError
from inferencegym.policies.trained import shipped

SEEN = Snapshot(3, 1, 0.2, batch_cap=64.0, p99_ttft_ms=1234.5, slo_compliance_rate=0.9, goodput_rps=7.25)
TURNED = Window(
    4, 20.0, SEEN, None, None, "policy", Knobs(batch_cap=16, quantization_tier="FP16"), Applied({"batch_cap": 16, "quantization_tier": "FP16"}), (), {}, 0.0, 0.0
)  # fmt: skip
GONE = replace(TURNED, number=5, snapshot=None, driver="nobody", applied=Applied(), reasons=("no snapshot [/]: nothing is sent",))  # fmt: skip


def test_a_line_says_what_was_seen_turned_and_judged():
    assert _line(TURNED) == (
        "window 4: goodput 7.2/s, p99 TTFT 1,234 ms, SLO 90%, queue 3"
        " | seats 64→16, kv 1, drafts 0, tier FP16, split off, priority off | policy: as it wants"
    )
    assert _line(GONE).endswith("| - | nobody: no snapshot [/]: nothing is sent")


def test_the_table_shows_the_same():
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(_table("head", deque([TURNED, GONE])))
    text = console.export_text()
    for part in ("head", "seats 64→16", "1,234 ms", "90%", "as it wants", "[/]: nothing is sent"):
        assert part in text


def test_ranges_of_knobs():
    assert _ranges(["batch_cap=8..128", "quantization_tier=FP16..INT8", "speculation_depth=0"]) == {
        "batch_cap": (8, 128), "quantization_tier": (0, 1), "speculation_depth": (0, 0),
    }  # fmt: skip
    for wrong in ("batch_cap", "batch_cap=", "batch_cap=few..many"):
        with pytest.raises(ConfigError, match=r"NAME=LEAST\.\.MOST"):
            _ranges([wrong])


def test_names_fit_what_a_gateway_takes():
    assert _named(str(shipped("bursty_workload"))).name == "bursty_workload.npz"
    plant = RemotePlant("http://127.0.0.1:1", policy="x" * 500, guard="a\nb")
    assert len(plant._who["policy"]) == MOST_NAME
    assert plant._who["guard"] == "a?b"
