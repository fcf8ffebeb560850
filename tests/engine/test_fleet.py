"""The fleet against the engine and against itself: live knobs to the bit, rows, branches, processes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from inferencegym.decision.knobs import LEVERS
from inferencegym.decision.snapshot import NAMES
from inferencegym.engine.engine import Engine
from inferencegym.engine.fleet import Asking, Fleet, Plan, Steering
from inferencegym.engine.invariants import check_arena
from inferencegym.ground.errors import ConfigError
from inferencegym.ground.rng import stream
from inferencegym.metrics.record import Records
from tests.engine import fleets
from tests.engine.fleets import (
    SECOND_PS,
    any_levers,
    asking,
    core_of,
    crowd,
    gap_counts,
    levers,
    play,
    ps,
    started,
    windows_of,
)

RESTART_KNOBS = ("quantization_tier", "prefill_decode_split")


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


# --- rows, branches, processes ----------------------------------------------------------------------------------------


def test_a_row_among_many_is_a_fleet_of_one() -> None:
    of = fleets.plan(replicas=2, kv_blocks=200)
    workloads = [crowd(20 + k, 200) for k in range(3)]
    questions = [asking(of, workload) for workload in workloads]
    rng = stream(4, "rows")
    starts = any_levers(rng, 7)
    many = Fleet(of, 7, capacity=8)
    ones = [Fleet(of, 1) for _ in range(7)]  # with another capacity: room is no part of the result
    for row in range(7):
        many.start(row, questions[row % 3], starts[row], row)
        ones[row].start(0, questions[row % 3], starts[row], row)
    for window_ps in windows_of(rng, 14):
        many.want[:] = any_levers(rng, 7, share=0.3)
        many.step(window_ps)
        for row, one in enumerate(ones):
            one.want[0] = many.want[row]
            one.step(window_ps)
            assert np.array_equal(one.seen[0], many.seen[row], equal_nan=True)
            assert np.array_equal(one.tally[0], many.tally[row])
            assert np.array_equal(one.levers[0], many.levers[row])
            assert one.records(0).tobytes() == many.records(row).tobytes()
    assert len({digest(many, row) for row in range(7)}) == 7


def digest(fleet: Fleet, row: int) -> str:
    return hashlib.sha256(fleet.seen[row].tobytes() + core_of(fleet, row).tobytes()).hexdigest()


def test_a_row_that_starts_again_remembers_nothing() -> None:
    of, workload = fleets.plan(), crowd(31, 200)
    rng = stream(6, "again")
    used, fresh = started(of, workload), started(of, workload)
    play(used, rng, 8, share=0.5)
    used.start(0, asking(of, workload), levers(batch_cap=64), 7)
    fresh.start(0, asking(of, workload), levers(batch_cap=64), 7)
    assert np.array_equal(used.seen, fresh.seen, equal_nan=True)
    for window_ps in windows_of(rng, 8):
        used.want[:] = fresh.want[:] = any_levers(rng, 1, share=0.3)
        used.step(window_ps)
        fresh.step(window_ps)
        assert np.array_equal(used.seen, fresh.seen, equal_nan=True)
        assert np.array_equal(used.tally, fresh.tally)
        assert used.records(0).tobytes() == fresh.records(0).tobytes()


@pytest.mark.parametrize("seed", range(4))
def test_branches_go_on_like_the_original_and_leave_it_alone(seed: int) -> None:
    of, workload = fleets.plan(prefix_caching=seed % 2 == 0), crowd(40 + seed, 250)
    rng = stream(seed, "branches")
    fleet, alone = started(of, workload, 2), started(of, workload, 2)
    for window_ps in windows_of(rng, 6):
        fleet.want[:] = alone.want[:] = any_levers(rng, 2, share=0.4)
        fleet.step(window_ps)
        alone.step(window_ps)
    twins = fleet.branch(1, 3)
    assert np.array_equal(twins.seen, np.repeat(fleet.seen[1:2], 3, axis=0), equal_nan=True)
    for window_ps in windows_of(rng, 8):
        fleet.want[:] = alone.want[:] = any_levers(rng, 2, share=0.3)
        # One branch does what the original does, the others do as they like and go first.
        twins.want[:] = any_levers(rng, 3)
        twins.want[1] = fleet.want[1]
        twins.step(window_ps)
        fleet.step(window_ps)
        alone.step(window_ps)
        assert np.array_equal(twins.seen[1], fleet.seen[1], equal_nan=True)
        assert np.array_equal(twins.tally[1], fleet.tally[1])
        assert twins.records(1).tobytes() == fleet.records(1).tobytes()
        assert np.array_equal(fleet.seen, alone.seen, equal_nan=True)
        assert fleet.records(1).tobytes() == alone.records(1).tobytes()
        for row in range(3):
            assert check_arena(twins.arena(row)) == []
    assert not np.array_equal(twins.seen[0], twins.seen[1], equal_nan=True)


def test_rows_that_are_not_active_stand_still() -> None:
    fleet = started(fleets.plan(), crowd(8), 3)
    fleet.active = 1
    fleet.step(SECOND_PS)
    assert fleet.stands["until_ps"].tolist() == [SECOND_PS, 0, 0]
    assert [int(fleet.header(row)["arrived"][0]) > 0 for row in range(3)] == [True, False, False]


def test_two_processes_agree_to_the_bit() -> None:
    code = (
        "import numpy as np\n"
        "from inferencegym.ground.rng import stream\n"
        "from tests.engine import fleets\n"
        "from tests.engine.fleets import play\n"
        "from tests.engine.test_fleet import digest\n"
        "f = fleets.started(fleets.plan(), fleets.crowd(77, 200), 3)\n"
        "play(f, stream(1, 'process'), 10, share=0.4)\n"
        "print(*(digest(f, row) for row in range(3)))\n"
    )
    said = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(said) == 1
    assert len(set(said.pop().split())) == 3


def test_what_cannot_be_steered_is_refused() -> None:
    deployment, settings = fleets.plan().deployment, fleets.plan().settings
    with pytest.raises(ConfigError, match="max_model_len"):
        Plan(deployment, settings.with_(max_model_len=None), Steering())
    with pytest.raises(ConfigError, match="'orca' cannot be steered"):
        Plan(deployment, settings.with_(scheduler="orca"), Steering())
    with pytest.raises(ConfigError, match="no room for KV"):
        Plan(deployment.with_(gpu="rtx-4090", kv_blocks=None), settings, Steering(resident=("FP16", "INT8")))
    with pytest.raises(ConfigError, match="2 classes"):
        Asking.of(crowd(1), settings, ttft_s=[1.0], tpot_s=[0.1, 0.1], weight=[1.0, 1.0])
    with pytest.raises(ConfigError, match="batch_cap"):
        Fleet(fleets.plan(), 1).start(0, asking(fleets.plan(), crowd(1)), np.array([0.0, 1, 0, 0, 0, 0]), 1)
