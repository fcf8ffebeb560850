"""The fleet against the engine, against itself and against NumPy: live knobs, restarts, rows, branches, and what a policy is shown."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from inferencegym import Workload
from inferencegym.decision.knobs import LEVERS
from inferencegym.decision.snapshot import NAMES
from inferencegym.engine import memory
from inferencegym.engine.codes import Ending
from inferencegym.engine.engine import Engine
from inferencegym.engine.fleet import Asking, Fleet, Plan, Steering
from inferencegym.engine.invariants import check_arena
from inferencegym.engine.window import TALLY
from inferencegym.ground.errors import ConfigError
from inferencegym.ground.rng import stream
from inferencegym.ground.units import to_ps
from inferencegym.metrics.itl import bin_edges_ps
from inferencegym.metrics.record import Records
from tests.engine import fleets
from tests.engine.fleets import OBJECTIVES, SECOND_PS, any_levers, asking, core_of, crowd, gap_counts, levers, live, started

RESTART_KNOBS = ("quantization_tier", "prefill_decode_split")


def windows_of(rng: np.random.Generator, count: int) -> list[int]:
    """Lengths of windows, ps: none a multiple of another."""
    return [int(x) for x in rng.integers(20_000_000_000, 900_000_000_000, count)]


def play(fleet: Fleet, rng: np.random.Generator, count: int, **how: Any) -> list[np.ndarray]:
    """Step random windows with random knobs; the records of row 0, window by window."""
    ended = []
    for window_ps in windows_of(rng, count):
        fleet.want[:] = any_levers(rng, fleet.n, **how)
        fleet.step(window_ps)
        ended.append(fleet.records(0).copy())
    return ended


def drain(fleet: Fleet) -> list[np.ndarray]:
    """Step on with plain knobs until all have ended; the records of row 0."""
    ended = []
    for _ in range(200):
        if int(fleet.header(0)["ended"][0]) == len(fleet.asking(0).workload):
            return ended
        fleet.want[:] = levers()
        fleet.step(SECOND_PS)
        ended.append(fleet.records(0).copy())
    raise AssertionError(f"{fleet.header(0)['ended']} of {len(fleet.asking(0).workload)} have ended")


def ps(seconds: np.ndarray) -> np.ndarray:
    """Seconds of `Records` back to whole picoseconds; -1 where there is no time."""
    return np.where(np.isnan(seconds), -1, np.rint(np.nan_to_num(seconds) * 1e12)).astype(np.int64)


def assert_same_records(ended: np.ndarray, expected: Records) -> None:
    assert ended["row"].tolist() == expected.row.tolist()
    for name, column in (
        ("arrival_ps", ps(expected.arrival_s)), ("scheduled_ps", ps(expected.scheduled_s)),
        ("first_ps", ps(expected.first_token_s)), ("finish_ps", ps(expected.finish_s)),
        ("output", expected.output_tokens), ("cached", expected.cached_tokens), ("preemptions", expected.preemptions),
        ("swaps", expected.swaps), ("replica", expected.replica), ("outcome", expected.outcome),
    ):  # fmt: skip
        assert ended[name].tolist() == column.tolist(), name


# --- live knobs: the same as Engine.change ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(14))
def test_live_knobs_are_the_engines_own_settings(seed: int) -> None:
    rng = stream(seed, "live knobs")
    split, caching, swap = seed % 3 == 1, seed % 2 == 0, seed % 5 == 4
    of = fleets.plan(
        replicas=2 if split else 1 + seed % 2,
        prefix_caching=caching,
        watermark=0.1 if seed % 4 == 3 else 0.0,
        preemption="swap" if swap else "recompute",
        cpu_kv_gib=0.25 if swap else 0.0,
    )
    workload = crowd(seed, 250)
    fleet = started(of, workload, prefill_decode_split=split)
    settings = of.settings.with_(max_num_seqs=256, kv_budget_fraction=1.0, speculation_depth=0)
    engine = Engine(workload, of.machines[int(split)], settings, seed=7)
    until_ps, changed = 0, 0
    for window_ps in windows_of(rng, 16):
        wanted = any_levers(rng, 1, dict.fromkeys(RESTART_KNOBS, np.nan), share=0.4)
        fleet.want[:] = wanted
        fleet.step(window_ps)
        changes: dict[str, Any] = {}
        for name, value in zip(LEVERS, wanted[0].tolist(), strict=True):
            if np.isnan(value):
                continue
            if name == "priority_routing":
                changes |= {"order": "priority", "victims": "rank"} if value else {"order": "fcfs", "victims": "lifo"}
            else:
                name = {"batch_cap": "max_num_seqs"}.get(name, name)
                changes[name] = value if name == "kv_budget_fraction" else int(value)
        changed += len(changes)
        if changes:
            engine.change(**changes)
        until_ps += window_ps
        assert_same_records(fleet.records(0), engine.run_ps(until_ps))
        theirs = engine.totals()
        assert {name: int(core_of(fleet)[name].sum()) for name in theirs} == theirs
        assert np.array_equal(gap_counts(fleet), engine.itl().counts)
        assert core_of(fleet)["gap_sum_ps"].sum() == engine.itl().sum_ps
        gauges, seen = engine.gauges(), dict(zip(NAMES, fleet.seen[0].tolist(), strict=True))
        assert (seen["queue_depth"], seen["active_requests"]) == (gauges.waiting, gauges.running)
        assert seen["kv_cache_occupancy"] == pytest.approx(max(gauges.kv_used_fraction, 0.0))
        assert check_arena(fleet.arena(0)) == []
    assert changed > 10
    assert engine.totals()["preemptions"] > 0


def test_a_knob_set_to_what_it_is_changes_nothing() -> None:
    of, workload = fleets.plan(), crowd(3)
    still, told = started(of, workload), started(of, workload)
    for _ in range(6):
        told.want[:] = levers()
        still.step(SECOND_PS)
        told.step(SECOND_PS)
        assert np.array_equal(still.seen, told.seen, equal_nan=True)
        assert np.array_equal(still.records(0), told.records(0))


# --- restarts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_laws_hold_and_nobody_is_lost_under_all_six_knobs(seed: int) -> None:
    rng = stream(seed, "six knobs")
    swap = seed % 3 == 2
    of = fleets.plan(
        replicas=2 + seed % 2,
        kv_blocks=180,
        prefix_caching=seed % 2 == 0,
        preemption="swap" if swap else "recompute",
        cpu_kv_gib=0.25 if swap else 0.0,
    )
    workload = crowd(100 + seed, 300)
    fleet = started(of, workload)
    ended: list[np.ndarray] = []
    reloads = 0.0
    for window_ps in windows_of(rng, 24):
        fleet.want[:] = any_levers(rng, 1, share=0.25)
        fleet.step(window_ps)
        ended.append(fleet.records(0).copy())
        reloads += fleet.tally[0, TALLY.index("reloads")]
        assert check_arena(fleet.arena(0)) == []
        header, core = fleet.header(0)[0], core_of(fleet)
        here = int(core["waiting"].sum() + core["running"].sum() + header["wire_len"])
        assert header["arrived"] == (workload.arrival_s * 1e12 <= fleet.stands["until_ps"][0]).sum()
        assert header["arrived"] == here + sum(map(len, ended))
        assert np.isfinite(np.delete(fleet.seen[0], [i for i, name in enumerate(NAMES) if name in MAY_BE_NAN])).all()
    assert reloads >= 4
    ended += drain(fleet)
    records = np.concatenate(ended)
    assert sorted(records["row"].tolist()) == list(range(len(workload)))
    done = records["outcome"] == Ending.OK
    assert done.sum() > 120
    assert np.array_equal(records["output"][done], workload.output_tokens[records["row"][done]])
    assert (records["arrival_ps"] <= records["scheduled_ps"])[done].all()
    assert (records["scheduled_ps"] < records["first_ps"])[done].all()
    assert (records["first_ps"] <= records["finish_ps"])[done].all()
    # Gaps are counted once each, pauses and preemptions included: they fill first token to last exactly.
    got_some = records["first_ps"] >= 0
    if done[got_some].all():
        assert core_of(fleet)["gap_sum_ps"].sum() == (records["finish_ps"] - records["first_ps"])[done].sum()
        assert core_of(fleet)["gap_count"].sum() <= (records["output"] - 1)[done].sum()  # drafts come together
    core, last = core_of(fleet), live(fleet)
    assert len(last) == 0
    assert (core["blank"] + core["cached_free"] == core["pool_blocks"]).all()
    assert (core["cpu_free"] == of.machines[0].cpu_blocks).all()


MAY_BE_NAN = {
    "mean_prompt_length", "p50_ttft_ms", "p99_ttft_ms", "p50_itl_ms", "p99_itl_ms", "estimated_cost_per_1k",
    "spec_acceptance_rate", "mean_output_length",
}  # fmt: skip


@pytest.mark.parametrize("knob", [{"quantization_tier": "INT8"}, {"prefill_decode_split": True}])
def test_a_restart_computes_nothing_for_its_pause_and_forgets_only_kv(knob: dict[str, object]) -> None:
    of, workload = fleets.plan(kv_blocks=2000), crowd(5)
    fleet = started(of, workload)
    fleet.step(2 * SECOND_PS)
    before = {int(slot["row"]): slot.copy() for slot in live(fleet)}
    running = int(core_of(fleet)["running"].sum())
    totals = {name: int(core_of(fleet)[name].sum()) for name in ("emitted_tokens", "gap_count", "preemptions", "busy_ps")}
    assert running > 5
    target = levers(**knob)
    pause_ps = int(of.pause_ps[0, 2 * int(target[3]) + int(target[4])])
    assert pause_ps > 200_000_000_000
    fleet.want[:] = target
    fleet.step(pause_ps - 1)
    assert fleet.tally[0, TALLY.index("emitted_tokens")] == 0
    assert fleet.tally[0, TALLY.index("reloads")] == 1
    assert fleet.tally[0, TALLY.index("preemptions")] == running
    assert len(fleet.records(0)) == (fleet.records(0)["outcome"] == Ending.REFUSED_LENGTH).sum()
    assert fleet.seen[0, NAMES.index("kv_cache_occupancy")] == 0
    assert fleet.seen[0, NAMES.index("active_requests")] == 0
    assert fleet.seen[0, NAMES.index("pause_left_s")] == pytest.approx(1e-12)
    assert int(core_of(fleet)["busy_ps"].sum()) == totals["busy_ps"]
    after = {int(slot["row"]): slot.copy() for slot in live(fleet)}
    assert set(before) <= set(after)
    emitted_in_flight = totals["emitted_tokens"] - sum(int(slot["generated"]) for slot in after.values())
    assert emitted_in_flight == sum(workload.output_tokens[r] for r in finished_rows(workload, after, fleet))
    for row, slot in before.items():
        # Tokens that were emitted stay emitted, and times stay what they were.
        assert after[row]["generated"] >= slot["generated"]
        for name in ("arrival_ps", "scheduled_ps", "first_ps", "cached"):
            assert after[row][name] == slot[name]
        assert after[row]["computed"] == 0
        assert after[row]["blocks"] == 0
    fleet.want[:] = np.nan
    fleet.step(SECOND_PS)
    assert fleet.tally[0, TALLY.index("emitted_tokens")] > 0
    records = np.concatenate([fleet.records(0).copy(), *drain(fleet)])
    of_before = {int(record["row"]): record for record in records}
    for row, slot in before.items():
        if slot["first_ps"] >= 0:
            assert of_before[row]["first_ps"] == slot["first_ps"]
        assert of_before[row]["output"] == workload.output_tokens[row]
        if slot["state"] == 2:
            assert of_before[row]["preemptions"] >= 1
    # Whoever had a token before the pause has a gap as long as the pause.
    spans = np.array([of_before[row]["finish_ps"] - slot["first_ps"] for row, slot in before.items() if slot["first_ps"] >= 0])
    assert (spans > pause_ps).all()
    lower, upper = bin_edges_ps()
    assert gap_counts(fleet)[upper > pause_ps].sum() >= (np.array([s["generated"] for s in before.values()]) > 0).sum()


def finished_rows(workload: Workload, alive: dict[int, np.ndarray], fleet: Fleet) -> list[int]:
    """Rows that arrived, were short enough and have ended."""
    arrived = np.flatnonzero(workload.arrival_s * 1e12 <= fleet.stands["until_ps"][0]).tolist()
    longest = fleet.plan.settings.max_model_len or 0
    return [row for row in arrived if row not in alive and workload.prompt_tokens[row] < longest]
