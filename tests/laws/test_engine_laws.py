"""The numbered laws of `engine/invariants.py` on the fast engine: random workloads under every rule, looked at window by window."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from inferencegym.engine.codes import Stop
from inferencegym.engine.engine import Engine
from inferencegym.engine.invariants import LAWS, check, check_records
from inferencegym.engine.loop import FAR_PS, one_instant
from inferencegym.metrics.record import Records, concat
from tests.parity.cases import any_features, random_case
from tests.parity.fast import build


def engine_of(seed: int) -> Engine:
    rng = random.Random(seed)
    case = random_case(rng, any_features(rng))
    return build(replace(case, changes=[]))


def same(a: Records, b: Records) -> bool:
    """Equal in every column, to the bit."""
    return a.sorted_by_row().to_table().equals(b.sorted_by_row().to_table()) or all(
        np.array_equal(getattr(a.sorted_by_row(), name), getattr(b.sorted_by_row(), name), equal_nan=True)
        for name in ("row", "finish_s", "first_token_s", "scheduled_s", "preemptions", "cached_tokens", "outcome")
    )


@pytest.mark.parametrize("seed", range(16))
def test_laws_hold_at_every_step(seed: int) -> None:
    engine, parts = engine_of(seed), []
    while True:
        before = engine.totals()["steps"]
        parts.append(engine.run(steps=1))
        assert check(engine) == []
        if engine.totals()["steps"] == before:
            break
    records = concat(parts)
    assert engine.done
    assert check_records(records, engine.workload) == []
    gauges = engine.gauges()
    assert (gauges.running, gauges.waiting, gauges.on_wire, gauges.kv_used_blocks) == (0, 0, 0, 0)


@pytest.mark.parametrize("seed", range(60, 72))
def test_leap_is_step_by_step(seed: int) -> None:
    leaping, stepping = engine_of(seed), engine_of(seed)
    assert same(leaping.run(), stepping.run(leaps=False))
    assert leaping.totals() == stepping.totals()
    assert np.array_equal(leaping.itl().counts, stepping.itl().counts)


@pytest.mark.parametrize("seed", range(90, 96))
def test_the_same_arguments_give_the_same_bytes(seed: int) -> None:
    one, two = engine_of(seed), engine_of(seed)
    assert same(one.run(), two.run())
    assert one.totals() == two.totals()


@pytest.mark.parametrize("seed", range(110, 122))
def test_a_fork_goes_on_exactly_as_its_original(seed: int) -> None:
    engine = engine_of(seed)
    engine.run(steps=random.Random(seed).randrange(1, 40))
    twin, saved = engine.fork(), engine.save()
    theirs = twin.run()
    mine = engine.run()
    assert same(mine, theirs)
    engine.restore(saved)
    assert same(engine.run(), mine)


@pytest.mark.parametrize("seed", range(140, 146))
def test_a_fork_does_not_touch_its_original(seed: int) -> None:
    engine, alone = engine_of(seed), engine_of(seed)
    for e in (engine, alone):
        e.run(steps=5)
    twin = engine.fork()
    if twin.settings.scheduler != "llamacpp":
        twin.change(max_num_seqs=1)
    twin.run()
    assert same(engine.run(), alone.run())


@pytest.mark.parametrize("seed", range(150, 162))
def test_loop_in_numba_is_loop_in_python(seed: int) -> None:
    """P1: one instant at a time, called from Python, against the whole run inside Numba."""
    whole, single = engine_of(seed), engine_of(seed)
    expected = whole.run()
    parts = [single.run_ps(-1)]  # hands over a buffer of records
    while True:
        parts.append(single.run(instants=1))
        if single.done and single.gauges().running == 0:
            break
    assert same(concat(parts), expected)
    assert single.totals() == whole.totals()


@pytest.mark.parametrize("seed", range(190, 200))
def test_plans_do_not_read_the_oracle(seed: int) -> None:
    """Law 5: answers that are longer than anything emitted so far change nothing up to now."""
    engine, other = engine_of(seed), engine_of(seed)
    horizon_s = float(np.median(engine.workload.arrival_s)) + 1e-9
    longest = int(engine.workload.output_tokens.max())
    other._question.rows["target"][engine.workload.output_tokens == longest] += 3
    mine, theirs = engine.run(until_s=horizon_s), other.run(until_s=horizon_s)
    shorter = mine.output_tokens < longest
    cut = mine.finish_s[~shorter].min() if (~shorter).any() else np.inf
    before = mine.finish_s < cut
    assert np.array_equal(mine.row[before], theirs.row[: before.sum()])
    assert np.array_equal(mine.finish_s[before], theirs.finish_s[: before.sum()])


def test_every_law_is_on_the_page() -> None:
    with open("docs/invariants.md", encoding="utf-8") as page:
        text = page.read()
    for number, name, sentence in LAWS:
        assert f"| {number} | {name} | {sentence}" in text


def test_far_is_beyond_every_clock() -> None:
    assert FAR_PS > 106 * 86_400 * 10**9
    assert {stop.name for stop in Stop} >= {"DRAINED", "UNTIL"}
    assert callable(one_instant)
