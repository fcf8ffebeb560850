"""Learning from advantages measured on forks: they are what replaying says, for any number of processes; and a policy that starts badly gets better."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

from inferencegym.decision.knobs import GRID, LEVERS, OFFSETS
from inferencegym.envs import catalogue
from inferencegym.envs.serve_planner import unfinished
from inferencegym.envs.splits import scenario
from inferencegym.ground.errors import ConfigError
from inferencegym.ground.rng import stream
from inferencegym.learn.config import defaults
from inferencegym.learn.forklearner import ForkLearner
from inferencegym.learn.forks import Crew, Teacher, _notes
from inferencegym.learn.train import train
from inferencegym.policies.trained import build, load

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
START = "fixed:batch_cap=64,kv_budget_fraction=1,speculation_depth=0,quantization_tier=FP16,prefill_decode_split=off,priority_routing=off"
KV = LEVERS.index("kv_budget_fraction")


def small(task, **given):
    return defaults(task, "forks").with_(
        **{"start": START, "episodes": 4, "measured_windows": 5, "horizon": 2, "hidden": (16,), "validation_scenarios": 2, "batch_size": 32} | given
    )  # fmt: skip


def learner(task, **given):
    config = small(task, **given)
    return ForkLearner(config, catalogue.task(task), workers=1)


def test_an_advantage_is_what_replaying_the_other_choice_says(calm):
    arrays, config = learner(calm).arrays(), small(calm)
    task = catalogue.task(calm)
    number = scenario("train", 3)
    found = Teacher(task, replace(config.settings, measured_windows=10, least_chance=1.0)).measure(
        arrays, number, stream(0, "test")
    )
    assert len(found.observations) == 10
    policy = build(_notes(), arrays)
    main = task.batch(1)
    main.start(0, number)
    np.testing.assert_array_equal(found.observations[0], main.observations[0])

    def follow(levers):
        twin = main.branch(0, 1)
        twin.actions[:] = levers
        twin.step()
        twin.actions[:] = policy.head.rows(policy.scores_of(twin.observations), twin.observations, twin.masks)
        twin.step()
        return float(twin.value_terms.sum() + unfinished(twin)[0])

    own = policy.head.rows(policy.scores_of(main.observations), main.observations, main.masks)[0]
    lent = own.copy()
    lent[KV] = 0.3
    choice = OFFSETS[KV] + GRID["kv_budget_fraction"].index(0.3)
    assert found.advantages[0, choice] == pytest.approx(follow(lent) - follow(own), abs=1e-7)
    assert found.advantages[0, choice] > 0, "memory that nobody needs is worth lending"
    kept = OFFSETS[KV] + GRID["kv_budget_fraction"].index(1.0)
    assert found.advantages[0, kept] == 0
    assert found.weights[0, kept] == 1


def test_choices_that_were_not_tried_weigh_nothing_and_the_tried_ones_make_up_for_it(calm):
    arrays, config = learner(calm).arrays(), small(calm)
    task = catalogue.task(calm)
    weights = []
    for i in range(12):
        teacher = Teacher(task, replace(config.settings, measured_windows=10))
        weights.append(teacher.measure(arrays, scenario("train", i), stream(i, "test")).weights)
    weights = np.concatenate(weights)
    allowed = weights.any(axis=0)
    assert ((weights == 0) | (weights >= 1)).all()
    # One over the chance, where it was tried: one on average, whatever the chance.
    assert weights[:, allowed].mean() == pytest.approx(1.0, abs=0.12)


def test_what_is_measured_does_not_depend_on_the_number_of_processes(calm):
    arrays, config = learner(calm).arrays(), small(calm, episodes=3)
    alone, together = (Crew(calm, config.settings, 5, 100, workers) for workers in (1, 2))
    a, b = alone.measure(arrays, 7), together.measure(arrays, 7)
    for name in ("observations", "masks", "advantages", "weights"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.windows == b.windows > 3 * 10


def test_a_policy_that_starts_badly_gets_better(calm):
    of = learner(calm, epochs=30)
    task = catalogue.task(calm)

    def value():
        policy, batch = build(_notes(), of.arrays()), task.batch(4)
        for row in range(4):
            batch.start(row, scenario("validation", row))
        for _ in range(task.steps):
            batch.actions[:] = policy.head.rows(policy.scores_of(batch.observations), batch.observations, batch.masks)
            batch.step()
        return float(batch.value_terms.sum(axis=1).mean())

    before = value()
    for _ in range(4):
        of.update()
    assert value() > before + 0.02


def test_a_training_that_was_interrupted_goes_on_as_if_it_had_not_been(calm, tmp_path):
    config = small(calm, steps=2000, epochs=2)
    whole = train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", stop=lambda progress: progress.update >= 1)
    parts = train(config, tmp_path / "parts", resume=True)
    assert parts.steps == whole.steps >= 2000
    assert (tmp_path / "whole" / "curve.csv").read_text() == (tmp_path / "parts" / "curve.csv").read_text()
    for one, other in zip(load(whole.policy).layers, load(parts.policy).layers, strict=True):
        np.testing.assert_array_equal(one[0], other[0])


def test_what_it_cannot_learn_is_refused(calm):
    with pytest.raises(ConfigError, match="knobs only"):
        defaults("easy", "forks")
    with pytest.raises(ConfigError, match="start"):
        learner(calm, start="aimd")
    with pytest.raises(ConfigError, match="grid"):
        ForkLearner(small(calm, encoding="preset"), catalogue.task(calm), workers=1)
