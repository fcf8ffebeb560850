"""Policies whose news is old: they act on exactly what was there some decisions ago, and are told how old it is."""

from __future__ import annotations

import numpy as np
import pytest

from inferencegym.decision.knobs import COLUMNS
from inferencegym.envs import catalogue
from inferencegym.envs.actors import actor
from inferencegym.envs.episode import record
from inferencegym.ground.errors import ConfigError
from inferencegym.learn.delay import Delayed
from inferencegym.policies.catalogue import policy

AGE, CLOCK = COLUMNS.index("snapshot_age_s"), COLUMNS.index("episode_fraction")


class Watcher:
    """Remembers what it was shown; lowers the batch cap when it sees a queue."""

    name, surface = "watcher", "knobs"

    def __init__(self):
        self.seen = []

    def start(self, seed):
        self.seen.clear()

    def act(self, observation, mask):
        self.seen.append(observation.copy())
        depth = COLUMNS.read(observation)["queue_depth"]
        return {"batch_cap": 64 if depth > 3 else 256, "priority_routing": depth > 3}


@pytest.fixture(scope="module")
def bursty():
    return catalogue.task("bursty_workload")


@pytest.mark.parametrize("decisions", [1, 3])
def test_a_delayed_policy_sees_the_past_with_todays_clock_and_its_age(bursty, decisions):
    watcher = Watcher()
    episode = record(bursty, Delayed(watcher, decisions), split="validation", scenario=0)
    seen = np.array(watcher.seen)
    true = episode.observations[: len(seen)]
    now = np.arange(len(seen))
    then = np.maximum(now - decisions, 0)
    others = [
        i for i, name in enumerate(COLUMNS.names) if name not in ("window_s", "episode_fraction", "snapshot_age_s")
    ]
    np.testing.assert_array_equal(seen[:, others], true[then][:, others])
    np.testing.assert_array_equal(seen[:, CLOCK], true[now, CLOCK])
    age_s = COLUMNS.decode(seen)[:, AGE]
    np.testing.assert_allclose(age_s, 5.0 * (now - then), atol=1e-4)


def test_a_policy_that_is_not_told_reads_an_age_of_nought(bursty):
    watcher = Watcher()
    record(bursty, Delayed(watcher, 2, tell_age=False), split="validation", scenario=0)
    assert np.array(watcher.seen)[:, AGE].max() == 0.0


def test_no_delay_changes_nothing_and_old_news_changes_what_is_done(bursty):
    fresh = record(bursty, Watcher(), split="validation", scenario=1)
    same = record(bursty, Delayed(Watcher(), 0), split="validation", scenario=1)
    late = record(bursty, Delayed(Watcher(), 2), split="validation", scenario=1)
    np.testing.assert_array_equal(fresh.actions, same.actions)
    assert fresh.value == same.value
    assert not np.array_equal(fresh.actions, late.actions)


def test_a_new_episode_has_no_past(bursty):
    watcher = Watcher()
    delayed = Delayed(watcher, 3)
    first = record(bursty, delayed, split="validation", scenario=0)
    again = record(bursty, delayed, split="validation", scenario=0)
    np.testing.assert_array_equal(first.actions, again.actions)
    np.testing.assert_array_equal(watcher.seen[0], first.observations[0])


def test_memory_rules_can_be_delayed_too_and_fare_worse():
    hard = catalogue.task("hard")
    fresh = record(hard, policy("sieve", "paging"), split="validation", scenario=0)
    late = record(hard, Delayed(policy("sieve", "paging"), 3), split="validation", scenario=0)
    assert late.value < fresh.value


def test_planners_and_the_future_are_refused(bursty):
    with pytest.raises(ConfigError, match="plans on the simulator"):
        Delayed(actor("model-predictive", bursty), 1)
    with pytest.raises(ConfigError, match="0 or more"):
        Delayed(Watcher(), -1)
