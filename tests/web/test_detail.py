"""An episode played again: any moment of it is what it was, in whatever order it is asked for, and while it is still being played."""

from __future__ import annotations

import json

import numpy as np
import pytest

from inferencegym.decision.knobs import LEVERS
from inferencegym.envs.actors import actor
from inferencegym.envs.catalogue import task
from inferencegym.envs.episode import record
from inferencegym.envs.overrides import overridden
from inferencegym.envs.splits import scenario
from inferencegym.ground.errors import ConfigError
from inferencegym.web import detail

CASES = {
    "paging": ("hard", "sieve", {"horizon_ticks": 1500, "gpu_blocks": 1500}),
    "knobs": ("bursty_workload", "random", {"windows": 40}),
}


@pytest.fixture(scope="module", params=list(CASES))
def case(request):
    """(how it is asked for, the episode, its task)"""
    name, policy, overrides = CASES[request.param]
    played = overridden(task(name), overrides)
    episode = record(played, actor(policy, task(name)), split="validation", scenario=5)
    asked = detail.Asked(f"case-{request.param}", name, "validation", 5, episode.actions.tobytes(), overrides)
    return asked, episode, played


def states(played, episode, number=5):
    """The facts before every decision and at the end, by playing straight on."""
    batch = played.batch(1)
    batch.start(0, scenario("validation", number))
    found = [batch.facts(0)]
    for action in episode.actions:
        batch.actions[0] = action
        batch.step()
        found.append(batch.facts(0))
    return found


def same(one, other):
    return all((one[name] is None and np.isnan(value)) or one[name] == value for name, value in other.items())


def test_the_replay_is_the_episode_to_the_bit(case):
    asked, episode, _ = case
    found = detail.replay(asked)
    assert found.over
    assert found.head.outcome(0).value == episode.value
    assert found.rewards[: found.total].tobytes() == episode.rewards.tobytes()
    assert found.observations[: found.total + 1].tobytes() == episode.observations.tobytes()


def test_any_moment_in_any_order_is_what_it_was(case):
    asked, episode, played = case
    straight = states(played, episode)
    n = len(episode.actions)
    order = [0, n, n - 1, *np.random.default_rng(3).permutation(n + 1)[:40].tolist(), 17, 18, 19, 17]
    for decision in order:
        told = detail.state(asked, decision)
        json.dumps(told, allow_nan=False)
        assert same(told["facts"], straight[decision]), decision
        assert told["sample"] == decision // detail.replay(asked).per_sample


def test_an_episode_under_way_grows_and_stays_the_same(case):
    asked, episode, played = case
    width = episode.actions[:1].nbytes
    straight = states(played, episode)
    for count in (0, 7, 8, 23, len(episode.actions)):
        sofar = detail.Asked(
            f"growing-{asked.key}", asked.task, "validation", 5, asked.actions[: count * width], asked.overrides
        )
        assert detail.course(sofar)["total"] == count
        assert same(detail.state(sofar, count)["facts"], straight[count])
    assert detail.course(sofar) == detail.course(asked)


def test_rows_tell_what_was_done_and_what_it_earned(case):
    asked, episode, played = case
    told = detail.rows(asked, 10, 20)
    json.dumps(told, allow_nan=False)
    assert [row["decision"] for row in told["rows"]] == list(range(10, 30))
    for row in told["rows"]:
        d = row["decision"]
        assert row["reward"] == episode.rewards[d]
        assert row["terms"] == detail.replay(asked).terms[d].tolist()
        assert row["observation"] == pytest.approx(
            played.surface.columns.decode(episode.observations[d]), rel=1e-5, abs=1e-12
        )


def test_the_course_sums_to_the_episode(case):
    asked, episode, _ = case
    told = detail.course(asked)
    assert told["over"]
    assert told["terms"]["samples"][-1] == len(episode.actions) // told["per_sample"]
    assert sum(one[-1] for one in told["terms"]["sums"]) == pytest.approx(detail.replay(asked).terms.sum())
    later = detail.course(asked, 12)
    if told["codes"] is None:
        assert later["knobs"]["batch_cap"] == told["knobs"]["batch_cap"][12:]
    else:
        assert told["codes"] == episode.actions.tolist()
        assert later["codes"] == told["codes"][12:]


@pytest.mark.parametrize("case", ["paging"], indirect=True)
def test_the_pool_has_every_block_once(case):
    asked, episode, _ = case
    crowded = 0
    for decision in range(0, len(episode.actions), 50):
        told = detail.state(asked, decision)
        pool, facts = told["pool"], told["facts"]
        assert sum(blocks for _, blocks, _ in pool["owners"]) == facts["gpu_used"]
        assert sum(blocks for _, blocks, _ in pool["cpu_owners"]) == sum(pool["cpu"].values()) == facts["cpu_used"]
        requests = [request for _, _, request in pool["owners"] + pool["cpu_owners"] if request >= 0]
        assert len(requests) == len(set(requests))
        crowded += len(requests) > 5 and len(pool["cpu_owners"]) > 0
    assert crowded > 3


@pytest.mark.parametrize("case", ["paging"], indirect=True)
def test_decisions_are_found_by_what_was_done(case):
    asked, episode, _ = case
    where = np.flatnonzero(episode.actions == 8)
    told = detail.rows(asked, 1, 5, "8")
    assert told["total"] == len(where) > 6
    assert [row["decision"] for row in told["rows"]] == where[1:6].tolist()
    assert {row["words"] for row in told["rows"]} == {"admit free"}
    barred = detail.Asked("barred", "hard", "validation", 5, np.full(30, 16).tobytes(), asked.overrides)
    assert detail.rows(barred, 0, 3, "illegal")["total"] == 30 == len(detail.course(barred)["illegal"])
    assert all(16 not in row["mask"] and not row["legal"] for row in detail.rows(barred, 0, 30)["rows"])


@pytest.mark.parametrize("case", ["knobs"], indirect=True)
def test_the_classes_add_up_to_the_deployment(case):
    asked, episode, played = case
    busy = 0
    for decision in range(1, len(episode.actions) + 1):
        told = detail.state(asked, decision)
        facts, classes = told["facts"], told["machine"]["classes"]
        assert sum(one["waiting"] for one in classes) == facts["queue_depth"]
        assert classes[0]["waiting"] == facts["vip_queue_depth"]
        assert sum(one["arrived"] for one in classes) == pytest.approx(
            facts["request_arrival_rate"] * played.file.window_s
        )
        assert sum(one["in_slo"] for one in classes) == pytest.approx(facts["goodput_rps"] * played.file.window_s)
        assert told["machine"]["knobs"] == {name: facts[name] for name in LEVERS}
        assert all(one["in_slo"] <= one["finished"] and one["overdue"] <= one["waiting"] for one in classes)
        busy += classes[0]["finished"] > 0 and classes[1]["finished"] > 0
    assert busy > 5


@pytest.mark.parametrize("case", ["knobs"], indirect=True)
def test_knobs_are_told_as_they_were_turned(case):
    asked, _, _ = case
    first, second = detail.rows(asked, 0, 2)["rows"]
    before, after = (detail.state(asked, d)["machine"]["knobs"] for d in (1, 2))
    turned = [name for name in LEVERS if before[name] != after[name]]
    assert turned
    assert second["words"].count("→") == len(turned)
    assert f"batch cap {64:g} → {first['action']['batch_cap']:g}" in first["words"]


def test_what_has_not_been_played_is_refused(case):
    asked, episode, _ = case
    with pytest.raises(ConfigError, match="has not been played"):
        detail.state(asked, len(episode.actions) + 1)
    with pytest.raises(ConfigError, match=r"1\.\.500"):
        detail.rows(asked, 0, 501)
    with pytest.raises(ConfigError, match="only"):
        detail.rows(asked, 0, 5, "99")
