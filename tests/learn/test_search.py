"""Searching a rule's parameters: values are those of episodes played one by one, a seed is a curve, and an interrupted search is the same search."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("cma")

from inferencegym.envs import catalogue
from inferencegym.envs.episode import record
from inferencegym.envs.splits import scenario
from inferencegym.ground.errors import ConfigError
from inferencegym.learn.config import defaults
from inferencegym.learn.search import RuleLearner, play
from inferencegym.learn.train import train
from inferencegym.policies import trained
from inferencegym.policies.tuned import DEFAULTS, HIGHS, LOWS, TunedSieve, parameters_of


def _config(task, seed=0, generations=4):
    base = defaults(task, "cma")
    settings = replace(base.settings, population=6)
    return replace(base, seed=seed, rows=12, steps=12 * 800 * generations, validation_scenarios=4, validate_every=12 * 800 * 2, settings=settings)  # fmt: skip


def test_values_are_those_of_single_episodes():
    task = catalogue.task("medium")
    # One that admits without any room: it crashes.
    rash = parameters_of(
        {"danger": 0.0, "critical": 0.0, "hold_free": 0.0, "hold_vip": 0.0, "brim_free": 0.0, "brim_vip": 0.0}
    )
    both = np.stack([DEFAULTS, rash])
    values, crashed = play(both, task, [scenario("train", i) for i in range(2)])
    for row, parameters in enumerate(both):
        for index in range(2):
            episode = record(task, TunedSieve(parameters), split="train", scenario=index, name="tuned")
            assert episode.value == values[row, index]
            assert episode.terminated == crashed[row, index]
    assert not crashed[0].any()
    assert crashed[1].all()


def test_a_seed_is_a_curve_whatever_else_draws(short_task):
    task = catalogue.task(short_task)
    curves = []
    for other in (1, 2):
        np.random.seed(other)  # noqa: NPY002 (the library draws from it unless told otherwise)
        learner = RuleLearner(_config(short_task, seed=5), task)
        curves.append([learner.update() for _ in range(3)])
    assert repr(curves[0]) == repr(curves[1])
    different = RuleLearner(_config(short_task, seed=6), task)
    for _ in range(3):
        different.update()
    parameters = learner.arrays()["parameters"]
    assert not np.array_equal(parameters, different.arrays()["parameters"])
    assert (parameters >= LOWS).all()
    assert (parameters <= HIGHS).all()
    assert not np.array_equal(parameters, DEFAULTS)


def test_an_interrupted_search_is_the_same_search(short_task, tmp_path):
    config = _config(short_task)
    whole = train(config, tmp_path / "whole")
    train(config, tmp_path / "cut", stop=lambda now: now.update == 1)
    rest = train(None, tmp_path / "cut", resume=True)
    assert (tmp_path / "cut" / "curve.csv").read_text() == (tmp_path / "whole" / "curve.csv").read_text()
    assert rest.best == whole.best
    found = trained.load(whole.policy, "paging")
    assert isinstance(found, TunedSieve)
    assert found.parameters.tolist() == trained.load(rest.policy, "paging").parameters.tolist()


def test_what_cannot_be_searched_is_said():
    with pytest.raises(ConfigError, match="paging"):
        RuleLearner(defaults("bursty_workload", "cma"), catalogue.task("bursty_workload"))
    config = replace(defaults("easy", "cma"), rows=3)
    with pytest.raises(ConfigError, match="rows"):
        RuleLearner(config, catalogue.task("easy"))
