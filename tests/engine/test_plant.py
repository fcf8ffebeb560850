"""A simulated deployment through the port that policies use: snapshots are of the last window, commands count from the next one."""

from __future__ import annotations

import numpy as np
import pytest

from inferencegym.decision.knobs import LEVERS, Knobs
from inferencegym.decision.plant import Plant
from inferencegym.decision.snapshot import NAMES, Snapshot
from inferencegym.engine.fleet import Plan
from inferencegym.engine.plant import EnginePlant
from inferencegym.ground.errors import ConfigError
from inferencegym.ground.rng import stream
from inferencegym.ground.units import to_ps
from tests.engine import fleets
from tests.engine.fleets import any_levers, asking, crowd, levers, started

START = Knobs.of(levers())


def plant_of(of: Plan, seed: int = 7) -> EnginePlant:
    return EnginePlant(of, asking(of, crowd(1, 300)), START, seed=seed)


def test_a_plant_accepts_what_it_can_and_refuses_the_rest_aloud() -> None:
    plant: EnginePlant = plant_of(fleets.plan(replicas=1))
    port: Plant = plant
    plant.run_window(2.0)
    before = port.snapshot()
    assert before.window_s == 2.0
    assert before.throughput_tps > 0
    assert before.request_arrival_rate == pytest.approx(60.0, rel=0.3)
    applied = port.apply(Knobs(batch_cap=4, prefill_decode_split=True, priority_routing=True))
    assert applied.accepted == {"batch_cap": 4, "priority_routing": True}
    assert list(applied.refused) == ["prefill_decode_split"]
    assert "two replicas" in applied.refused["prefill_decode_split"]
    # Nothing has happened yet.
    assert np.array_equal(port.snapshot().values(), before.values(), equal_nan=True)
    plant.run_window(1.0)
    after = port.snapshot()
    assert (after.batch_cap, after.priority_routing, after.prefill_decode_split) == (4.0, 1.0, 0.0)
    assert after.pause_left_s == 0.0


def test_a_split_is_accepted_where_there_are_two_replicas() -> None:
    plant = plant_of(fleets.plan())
    plant.run_window(0.5)
    applied = plant.apply(Knobs(prefill_decode_split=True, quantization_tier="INT8"))
    assert applied.accepted == {"prefill_decode_split": True, "quantization_tier": "INT8"}
    assert applied.refused == {}
    plant.run_window(0.1)
    during = plant.snapshot()
    assert during.throughput_tps == 0.0
    assert during.pause_left_s > 0.0
    assert (during.prefill_decode_split, during.quantization_tier) == (1.0, 1.0)


def test_the_last_word_on_a_knob_counts() -> None:
    plant = plant_of(fleets.plan())
    plant.apply(Knobs(batch_cap=2, speculation_depth=3))
    plant.apply(Knobs(batch_cap=9))
    plant.run_window(0.5)
    assert (plant.snapshot().batch_cap, plant.snapshot().speculation_depth) == (9.0, 3.0)


def test_an_empty_command_is_accepted_and_changes_nothing() -> None:
    told, still = plant_of(fleets.plan()), plant_of(fleets.plan())
    for _ in range(4):
        applied = told.apply(Knobs())
        assert (applied.accepted, applied.refused) == ({}, {})
        assert told.run_window(0.7).tobytes() == still.run_window(0.7).tobytes()
        assert np.array_equal(told.snapshot().values(), still.snapshot().values(), equal_nan=True)


def test_a_plant_is_a_row_of_a_fleet() -> None:
    of, rng = fleets.plan(), stream(3, "plant")
    plant, fleet = plant_of(of), started(of, crowd(1, 300))
    for _ in range(10):
        wanted, window_s = any_levers(rng, 1, share=0.3), float(rng.uniform(0.1, 0.9))
        plant.apply(Knobs.of(wanted[0]))
        fleet.want[:] = wanted
        records = plant.run_window(window_s)
        fleet.step(to_ps(window_s, field="window_s"))
        assert records.tobytes() == fleet.records(0).tobytes()
        assert np.array_equal(plant.snapshot().values(), fleet.seen[0], equal_nan=True)
    assert tuple(NAMES) == tuple(Snapshot.__dataclass_fields__)


def test_a_plant_begins_with_every_knob_set() -> None:
    of = fleets.plan()
    with pytest.raises(ConfigError, match=LEVERS[2]):
        EnginePlant(of, asking(of, crowd(1, 10)), Knobs(batch_cap=4, kv_budget_fraction=0.5, quantization_tier="FP16", prefill_decode_split=False, priority_routing=False))  # fmt: skip
    with pytest.raises(ConfigError, match="two replicas"):
        EnginePlant(fleets.plan(replicas=1), asking(of, crowd(1, 10)), Knobs.of(levers(prefill_decode_split=True)))
