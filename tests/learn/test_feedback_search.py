"""The search over the feedback rule: it begins at the best of its beginnings, values are those of single episodes, and a seed is a curve that resumes."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("cma")

from inferencegym.envs import catalogue
from inferencegym.envs.actors import BEST_STATIC, actor
from inferencegym.envs.episode import record
from inferencegym.envs.splits import scenario
from inferencegym.ground.errors import ConfigError
from inferencegym.learn import feedback_search
from inferencegym.learn.config import defaults
from inferencegym.learn.feedback_search import FeedbackLearner, beginnings, first_parameters, play, play_varied
from inferencegym.learn.randomise import Randomise
from inferencegym.learn.train import train
from inferencegym.learn.validate import values_of
from inferencegym.policies import trained
from inferencegym.policies.feedback import FACTORS, HIGHS, LOWS, NAMES, FeedbackKnobs
from inferencegym.policies.serving import SloFeedback

#: What `brief` and `quick` (conftest.py) are made of.
BRIEF_OF = "static_workload"


def _config(task, generations=4, **given):
    base = defaults(task, "feedback")
    settings = replace(base.settings, population=6)
    return replace(base, rows=12, steps=12 * 12 * generations, validation_scenarios=2, validate_every=12 * 12 * 2, settings=settings, **given)  # fmt: skip


def test_values_are_those_of_single_episodes_and_the_beginnings_are_what_they_say(monkeypatch):
    monkeypatch.setattr(feedback_search, "_COMPARED", 2)
    task = catalogue.task("static_workload")
    found = beginnings(task, 2)
    values = play(found, task, [scenario("validation", i) for i in range(2)])
    fixed = actor(BEST_STATIC, task)
    for index in range(2):
        for row, policy in ((0, fixed), (1, SloFeedback()), (len(found) - 1, FeedbackKnobs(found[-1]))):
            episode = record(task, policy, split="validation", scenario=index)
            assert episode.value == pytest.approx(values[row, index], abs=1e-9)
    assert len(np.unique(found, axis=0)) == len(found)
    on_train = play(found, task, [scenario("train", i) for i in range(2)])
    assert (first_parameters(task, Randomise(), 2) == found[on_train.mean(axis=1).argmax()]).all()
    assert values_of(FeedbackKnobs(found[-1]), task, range(2)) == values[-1].tolist()
    # What is busy is above the task's own rate: about 30 a second.
    assert found[0][NAMES.index("busy_rate")] == pytest.approx(30.0, rel=0.05)


def test_a_seed_is_a_curve_and_an_interrupted_search_is_the_same_search(brief, quick, tmp_path):
    config = _config(brief)
    whole = train(config, tmp_path / "whole")
    train(config, tmp_path / "cut", stop=lambda now: now.update == 1)
    rest = train(None, tmp_path / "cut", resume=True)
    assert (tmp_path / "cut" / "curve.csv").read_text() == (tmp_path / "whole" / "curve.csv").read_text()
    assert rest.best == whole.best
    found = trained.load(whole.policy, "knobs")
    assert isinstance(found, FeedbackKnobs)
    assert found.parameters.tolist() == trained.load(rest.policy, "knobs").parameters.tolist()
    other = FeedbackLearner(_config(brief, seed=1), catalogue.task(brief))
    other.update()
    assert not np.array_equal(other.arrays()["parameters"], found.parameters)


def test_half_of_the_episodes_are_as_the_task_has_them(brief, quick):
    task, numbers = catalogue.task(brief), [scenario("train", i) for i in range(3)]
    found = beginnings(task, 1)[:2]
    faster = play_varied(found, task, Randomise(rate=(1.5, 1.5)), numbers)
    plain = play_varied(found, task, Randomise(), numbers)
    assert plain.tolist() == play(found, task, numbers).tolist()
    assert faster[:, :2].tolist() == plain[:, :2].tolist()
    assert (faster[:, 2] != plain[:, 2]).all()
    learner = FeedbackLearner(_config(brief, randomise=Randomise(rate=(0.5, 1.5))), task)
    assert learner.update()["best_of_generation"] > 0


def test_points_of_the_search_stay_within_bounds_and_some_are_factors(brief, quick):
    learner = FeedbackLearner(_config(brief), catalogue.task(brief))
    at_rest = learner._parameters(np.zeros(learner._dimensions()))
    assert at_rest.tolist() == learner.first.tolist()
    for point in (np.full(learner._dimensions(), 50.0), np.full(learner._dimensions(), -50.0)):
        far = learner._parameters(point)
        assert (far >= LOWS).all()
        assert (far <= HIGHS).all()
    near = learner._parameters(np.full(learner._dimensions(), -1.0))
    for name in FACTORS:
        at = NAMES.index(name)
        assert 0 < near[at] < at_rest[at]


def test_on_traces_arrival_rates_vary_unless_one_says_otherwise():
    assert defaults("static_workload", "feedback").randomise == Randomise()
    assert defaults("azure_conversation", "feedback").randomise == Randomise(rate=(0.75, 1.5))
    assert defaults("azure_conversation", "forks").randomise == Randomise()


def test_it_is_for_knobs_only():
    with pytest.raises(ConfigError, match="knobs"):
        defaults("medium", "feedback")
    with pytest.raises(ConfigError, match="medium"):
        FeedbackLearner(defaults("medium", "cma"), catalogue.task("medium"))
