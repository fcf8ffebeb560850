"""Replays believe nothing, and grades cannot be had by forging, stopping early, or copying another's log."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from inferencegym.decision.paging import NOTHING
from inferencegym.envs.catalogue import task
from inferencegym.envs.episode import Episode, record
from inferencegym.envs.grade import Anchors, grade, load_anchors, replay
from inferencegym.ground.errors import ConfigError, InputError
from inferencegym.policies.simple import DoNothing, Fixed, Random
from tests.envs.toy import ADMIT, STEPS, ToyTask


class Sensible:
    """Admits while there is room."""

    name, surface = "sensible", "paging"

    def start(self, seed):
        pass

    def act(self, observation, mask):
        return ADMIT if mask[ADMIT] and observation[0] < 0.7 else NOTHING


class Lookahead:
    """Admits if the house still stands three steps later: a planner on copies."""

    name, surface = "lookahead", "paging"

    def start(self, seed):
        pass

    def decide(self, batch):
        twin = batch.branch(0, 1)
        twin.actions[0] = ADMIT
        twin.step()
        return ADMIT if batch.masks[0, ADMIT] and not twin.terminated[0] else NOTHING


@pytest.fixture
def honest():
    return record(ToyTask(), Sensible(), split="test", scenario=5)


def refused(episode, task=None):
    report = replay(episode, task or ToyTask())
    assert not report.genuine
    return report


def test_an_honest_record_is_genuine_and_the_outcome_is_what_was_claimed(honest):
    report = replay(honest, ToyTask())
    assert (report.genuine, report.problem, report.step) == (True, "", None)
    assert report.outcome.value == honest.value
    assert report.outcome.parts == honest.parts


@pytest.mark.parametrize(
    ("name", "actor"),
    [
        ("easy", Random("paging")),
        ("medium", DoNothing("paging")),
        ("bursty_workload", Random("knobs")),
        ("bursty_workload", Fixed("knobs", {"batch_cap": 64})),
    ],
)
def test_records_of_the_shipped_tasks_are_genuine_after_a_trip_through_a_file(tmp_path, name, actor):
    episode = record(task(name), actor, split="test", scenario=1)
    loaded = Episode.load(episode.save(tmp_path / "one.parquet"))
    report = replay(loaded)
    assert report.genuine, report.problem
    assert report.outcome.value == episode.value


def test_a_planner_is_recorded_like_a_policy():
    episode = record(ToyTask(), Lookahead(), split="test", scenario=5)
    assert replay(episode, ToyTask()).genuine
    assert episode.value >= record(ToyTask(), Sensible(), split="test", scenario=5).value


def test_one_edited_observation_is_named(honest):
    forged = honest.observations.copy()
    forged[17, 3] += 0.02
    report = refused(replace(honest, observations=forged))
    assert report.step == 17
    assert "step 17: free_queue_pressure" in report.problem
    assert "was claimed" in report.problem


def test_nan_differs_from_everything(honest):
    forged = honest.observations.copy()
    forged[4, 0] = np.nan
    assert refused(replace(honest, observations=forged)).step == 4
    rewards = honest.rewards.copy()
    rewards[8] = np.nan
    assert refused(replace(honest, rewards=rewards)).step == 9


def test_one_edited_reward_is_named(honest):
    forged = honest.rewards.copy()
    forged[9] += 0.001
    report = refused(replace(honest, rewards=forged))
    assert report.step == 10
    assert "reward" in report.problem


def test_another_action_than_was_taken_is_found_where_it_first_matters(honest):
    forged = honest.actions.copy()
    at = int(np.flatnonzero(forged == ADMIT)[2])
    forged[at] = NOTHING
    assert refused(replace(honest, actions=forged)).step == at + 1


def test_illegal_numbers_in_a_record_are_refused(honest):
    forged = honest.actions.copy()
    forged[6] = 99
    report = refused(replace(honest, actions=forged))
    assert report.step == 7
    assert "out of range" in report.problem


def test_a_record_of_another_scenario_is_found_out(honest):
    report = refused(replace(honest, scenario=6))
    assert report.step is not None
    assert refused(replace(honest, split="train")).step is not None


def test_a_claimed_value_is_checked(honest):
    report = refused(replace(honest, value=0.99))
    assert "value 0.99 was claimed" in report.problem
    assert report.outcome.value == honest.value


def test_an_empty_record_is_refused(honest):
    empty = replace(
        honest, actions=honest.actions[:0], rewards=honest.rewards[:0], observations=honest.observations[:1]
    )
    assert "no actions" in refused(empty).problem


def test_right_after_reset_or_before_the_end_there_is_no_grade(honest):
    for steps in (1, STEPS - 1):
        part = replace(
            honest,
            actions=honest.actions[:steps],
            rewards=honest.rewards[:steps],
            observations=honest.observations[: steps + 1],
        )
        report = refused(part)
        assert f"has not ended after {steps}" in report.problem
        assert report.outcome is None


def test_too_long_a_record_is_refused_without_being_run(honest):
    class Never(ToyTask):
        def batch(self, n):
            raise AssertionError("ran it")

    long = replace(
        honest,
        actions=np.full(10_000, NOTHING),
        rewards=np.zeros(10_000),
        observations=np.zeros((10_001, 20), np.float32),
    )
    assert "at most 40" in refused(long, Never()).problem


def test_what_follows_the_end_is_refused():
    crash = record(ToyTask(), Fixed("paging", ADMIT), split="test", scenario=0)
    assert crash.terminated
    n = len(crash.actions)
    longer = replace(
        crash,
        actions=np.append(crash.actions, NOTHING),
        rewards=np.append(crash.rewards, 0.1),
        observations=np.vstack([crash.observations, crash.observations[-1:]]),
    )
    report = refused(longer)
    assert f"ends at step {n}" in report.problem
    assert "claimed to be the horizon" in refused(replace(crash, terminated=False, truncated=True)).problem


def test_records_of_another_version_or_task_are_refused(honest):
    assert "digest" in refused(replace(honest, digest="toy-0")).problem
    assert "toy2" in refused(replace(honest, task="toy2")).problem
    assert "no split" in refused(replace(honest, split="final")).problem
    assert "columns" in refused(replace(honest, observations=honest.observations[:, :19])).problem


def test_a_record_cannot_name_a_file_or_an_unknown_task(honest, tmp_path):
    for name in ("/etc/passwd", str(tmp_path / "mine.toml"), "../tasks/easy", "toy"):
        report = replay(replace(honest, task=name))
        assert not report.genuine
        assert "not one of the package's" in report.problem


# --- the scale --------------------------------------------------------------------------------------------------------


def scale(**changes):
    given = {
        "task": "toy", "digest": "toy-1", "split": "test", "scenarios": [0, 1, 2, 5], "values": {"random": [0.1, 0.2, 0.3, 0.2], "clairvoyant": [0.9, 0.8, 0.31, 0.6]},
        "settings": {"best_static": "fixed:8"}, "version": "0", "made_by": "a test",
    }  # fmt: skip
    return Anchors(**(given | changes))


def test_the_scale_is_the_scenarios_own():
    anchors = scale()
    assert anchors.grade(0.1, "test", 0).grade == 0.0
    assert anchors.grade(0.9, "test", 0).grade == 1.0
    assert anchors.grade(0.5, "test", 1).grade == pytest.approx(0.5)
    below, above = anchors.grade(0.0, "test", 0), anchors.grade(1.0, "test", 0)
    assert (below.grade, above.grade) == (0.0, 1.0)
    assert below.unclipped == pytest.approx(-0.125)
    assert above.unclipped == pytest.approx(1.125)


def test_scenarios_that_were_not_measured_or_have_no_span_get_the_means():
    anchors = scale()
    means = (pytest.approx(0.2), pytest.approx(0.6525))
    assert anchors.bounds("test", 77) == means
    assert anchors.bounds("train", 0) == means
    assert anchors.bounds("test", 2) == means, "0.30 to 0.31 is no scale"


def test_a_grade_is_of_the_replayed_outcome(honest):
    anchors = scale()
    got = grade(honest, ToyTask(), anchors)
    assert got.value == honest.value
    assert got.unclipped == pytest.approx((honest.value - 0.2) / 0.4)
    for forged in (replace(honest, value=1.0), replace(honest, rewards=honest.rewards + 1)):
        with pytest.raises(InputError, match="refused"):
            grade(forged, ToyTask(), anchors)


def test_crashing_early_is_never_better_than_doing_nothing():
    anchors = scale()
    crash = record(ToyTask(), Fixed("paging", ADMIT), split="test", scenario=5)
    nothing = record(ToyTask(), DoNothing("paging"), split="test", scenario=5)
    assert crash.terminated
    assert grade(crash, ToyTask(), anchors).unclipped <= grade(nothing, ToyTask(), anchors).unclipped


def test_anchors_are_read_from_a_file_and_checked(tmp_path):
    path = tmp_path / "toy.json"
    assert load_anchors(ToyTask(), tmp_path) is None
    path.write_text(json.dumps(asdict(scale())))
    assert load_anchors(ToyTask(), tmp_path) == scale()
    path.write_text(json.dumps(asdict(scale(digest="toy-0"))))
    with pytest.raises(ConfigError, match=r"runs/anchors\.sh"):
        load_anchors(ToyTask(), tmp_path)
    for broken in (
        {"values": {"random": [0.1] * 4}},
        {"values": {"random": [0.1], "clairvoyant": [0.2]}},
        {"values": {"random": [0.3] * 4, "clairvoyant": [0.3] * 4}},
    ):
        path.write_text(json.dumps(asdict(scale(**broken))))
        with pytest.raises(InputError, match=r"toy\.json"):
            load_anchors(ToyTask(), tmp_path)
    path.write_text("{}")
    with pytest.raises(InputError, match="not a file of anchors"):
        load_anchors(ToyTask(), tmp_path)


def test_without_anchors_a_grade_says_how_to_make_them(honest):
    with pytest.raises(ConfigError, match=r"runs/anchors\.sh"):
        grade(honest, ToyTask())
