"""The search over a linear rule: it starts at the best static setting, values are those of single episodes, and a seed is a curve that resumes."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("cma")

from inferencegym.envs import catalogue
from inferencegym.envs.actors import BEST_STATIC, actor
from inferencegym.envs.episode import record
from inferencegym.envs.splits import scenario
from inferencegym.ground.errors import ConfigError
from inferencegym.learn.config import defaults
from inferencegym.learn.linear_search import LinearLearner, first_frame, play
from inferencegym.learn.train import train
from inferencegym.learn.validate import values_of
from inferencegym.policies import trained
from inferencegym.policies.linear import LinearKnobs

#: What `brief` and `quick` (conftest.py) are made of.
BRIEF_OF = "bursty_workload"


def _config(task, generations=4, **given):
    base = defaults(task, "cma")
    settings = replace(base.settings, population=6)
    return replace(base, rows=12, steps=12 * 12 * generations, validation_scenarios=2, validate_every=12 * 12 * 2, settings=settings, **given)  # fmt: skip


def test_it_starts_at_the_best_static_setting():
    task = catalogue.task("bursty_workload")
    frame = first_frame(task, 2)
    fixed = actor(BEST_STATIC, task)
    assert frame.base.tolist() == fixed.action.levers().tolist()
    assert (frame.scale[:4] > 0.01).all()
    chance = np.random.default_rng(2)
    weights = np.stack([frame.resting(), frame.resting() + 0.3 * chance.standard_normal(frame.resting().shape)])
    values = play(weights, frame, task, [scenario("validation", i) for i in range(2)])
    for index in range(2):
        assert record(task, fixed, split="validation", scenario=index).value == pytest.approx(
            values[0, index], abs=1e-9
        )
        moving = LinearKnobs(frame, weights[1])
        assert record(task, moving, split="validation", scenario=index).value == pytest.approx(values[1, index], abs=1e-9)  # fmt: skip
    assert not np.allclose(values[0], values[1])
    assert values_of(LinearKnobs(frame, weights[1]), task, range(2)) == values[1].tolist()


def test_a_seed_is_a_curve_and_an_interrupted_search_is_the_same_search(brief, quick, tmp_path):
    config = _config(brief)
    whole = train(config, tmp_path / "whole")
    train(config, tmp_path / "cut", stop=lambda now: now.update == 1)
    rest = train(None, tmp_path / "cut", resume=True)
    assert (tmp_path / "cut" / "curve.csv").read_text() == (tmp_path / "whole" / "curve.csv").read_text()
    assert rest.best == whole.best
    found = trained.load(whole.policy, "knobs")
    assert isinstance(found, LinearKnobs)
    assert found.weights.tolist() == trained.load(rest.policy, "knobs").weights.tolist()
    other = LinearLearner(_config(brief, seed=1), catalogue.task(brief))
    other.update()
    assert not np.array_equal(other.arrays()["weights"], found.weights)


def test_it_is_for_knobs_only():
    with pytest.raises(ConfigError, match="medium"):
        LinearLearner(defaults("medium", "cma"), catalogue.task("medium"))
