"""Why an episode ended as it did: every sentence against an episode of which the answer is known, or found by other means."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from inferencegym.envs.actors import actor
from inferencegym.envs.catalogue import task
from inferencegym.envs.episode import record
from inferencegym.envs.overrides import overridden
from inferencegym.envs.splits import scenario
from inferencegym.web import detail, why
from inferencegym.web.costs import most

ADMIT = "fixed:8"


def played(name, policy, overrides=None, *, others=(), number=0):
    """How an episode is asked for, the episode, and what is told of it."""
    overrides = overrides or {}
    made = overridden(task(name), overrides)
    episode = record(made, actor(policy, task(name)), split="validation", scenario=number)
    key = f"why-{name}-{policy}-{sorted(overrides.items())}-{number}"
    asked = detail.Asked(key, name, "validation", number, episode.actions.tobytes(), overrides, tuple(others))
    return asked, episode, why.why(asked)


def crashes(made, actions, number=0):
    """Whether an episode of these actions ends in a crash, played from its beginning."""
    batch = made.batch(1)
    batch.start(0, scenario("validation", number))
    for action in actions:
        batch.actions[0] = action
        batch.step()
    return bool(batch.terminated[0])


@pytest.fixture(scope="module")
def greedy():
    """Lets everybody in and never throws anything out: it crashes beside a pile of idle caches."""
    return played("hard", ADMIT, {"gpu_blocks": 1500})


@pytest.fixture(scope="module")
def tight():
    """A rule that evicts, in a pool far too small for its caution."""
    return played("hard", "cautious", {"gpu_blocks": 900})


@pytest.mark.parametrize("which", ["greedy", "tight"])
def test_a_crash_tells_what_was_wanted_and_what_was_free(which, request):
    asked, episode, told = request.getfixturevalue(which)
    assert episode.terminated
    assert told["crashed"]
    found = detail.replay(asked)
    before, after = found.at(found.total - 1).facts(0), found.at(found.total).facts(0)
    tick, blocks = int(after["tick"]), asked.overrides["gpu_blocks"]
    wants, of = len(why.growing(found.head)), blocks - int(after["gpu_used"])
    assert wants > of >= 0
    assert told["words"][0].startswith(f"Crashed at tick {tick:,} of 10,000: {wants} active request")
    assert f"and {of:,} block" in told["words"][0]
    assert f"of {blocks:,}" in told["words"][0]
    # Whoever it names was active one decision earlier, and wants one block more than it had then.
    held = {request: size for _, size, request in detail.state(asked, found.total - 1)["pool"]["owners"]}
    named = re.findall(r"request (\d+) \((VIP|free), (\d+) blocks with the new one\)", told["words"][1])
    assert len(named) == min(wants, 5)
    for request_, _, size in named:
        assert int(size) == held[int(request_)] + 1
    assert before["crashed"] == 0


def test_idle_caches_that_could_have_gone_are_counted(greedy):
    asked, _, told = greedy
    facts = detail.replay(asked).head.facts(0)
    caches, blocks = (
        int(facts["free_idle"] + facts["vip_idle"]),
        int(facts["free_idle_blocks"] + facts["vip_idle_blocks"]),
    )
    assert caches > 1
    assert f"The {caches} idle caches ({blocks:,} blocks) could have been evicted." in told["words"][2]
    held = [int(x.replace(",", "")) for x in re.findall(r"(?:held|ones|caches|and) (\d[\d,]*)", told["words"][2])]
    assert sum(held[:4]) == int(facts["gpu_used"])


def test_where_nothing_was_idle_it_says_so(tight):
    asked, _, told = tight
    assert detail.replay(asked).head.facts(0)["free_idle_blocks"] == 0
    assert "Nothing lay idle" in told["words"][2]
    assert "could have been evicted" not in " ".join(told["words"])


@pytest.mark.parametrize("which", ["greedy", "tight"])
def test_when_memory_was_first_full_is_when_it_was(which, request):
    asked, _, told = request.getfixturevalue(which)
    found = detail.replay(asked)
    blocks = asked.overrides["gpu_blocks"]
    use = [found.at(d).facts(0)["gpu_used"] / blocks for d in range(found.total)]
    first = next(d for d, share in enumerate(use) if share >= why.FULL)
    unbroken = found.total
    while unbroken and use[unbroken - 1] >= why.FULL:
        unbroken -= 1
    assert why.full_since(found) == (first, unbroken if unbroken < found.total else None)
    said = [text for _, text in told["moments"] if "95%" in text]
    assert any(f"at tick {first // 2:,}" in text or f"from tick {first // 2:,}" in text for text in said)


@pytest.mark.parametrize("which", ["greedy", "tight"])
def test_the_last_way_out_is_one_and_none_comes_later(which, request):
    asked, episode, told = request.getfixturevalue(which)
    made = overridden(task("hard"), asked.overrides)
    found = detail.replay(asked)
    decision, saving = why.way_out(found)
    assert decision in [at for at, text in told["moments"] if "last way out" in text]
    actions = episode.actions.tolist()
    assert crashes(made, actions)
    for action in np.flatnonzero(found.masks[decision]).tolist():
        if action != actions[decision]:
            assert crashes(made, [*actions[:decision], action, *actions[decision + 1 :]]) == (action not in saving)
    for later in range(decision + 1, len(actions)):
        for action in np.flatnonzero(found.masks[later]).tolist():
            assert crashes(made, [*actions[:later], action, *actions[later + 1 :]])


def test_a_crash_that_no_single_action_averts_says_so(monkeypatch, greedy):
    asked, _, _ = greedy
    monkeypatch.setattr(why, "way_out", lambda found: None)
    assert any(text.startswith("No single other action in the last 50 ticks") for text in why.why(asked)["words"])


def test_the_last_ticks_are_told_one_by_one(greedy):
    asked, episode, told = greedy
    json.dumps(told, allow_nan=False)
    found = detail.replay(asked)
    assert len(told["samples"]) == why.LAST_TICKS + 1
    for line in told["samples"]:
        facts = found.at(line["decision"]).facts(0)
        assert (line["gpu_used"], line["free"]) == (facts["gpu_used"], 1500 - facts["gpu_used"])
        assert line["waiting"] == facts["free_waiting"] + facts["vip_waiting"]
    last, crash = told["samples"][-2:]
    assert crash["actions"] == []
    assert crash["wanted"] > crash["free"]
    assert last["wanted"] <= crash["wanted"]  # those who load may begin to make tokens
    assert [name for line in told["samples"] for name in line["actions"]] == [
        row["words"] for row in detail.rows(asked, found.total - 100, 100)["rows"]
    ]
    admitted = sum(
        episode.actions[-100:][[row["legal"] for row in detail.rows(asked, found.total - 100, 100)["rows"]]] == 8
    )
    assert any(f"It admitted {admitted} request" in text for text in told["words"])


def test_without_a_crash_it_says_what_it_lost_and_to_whom():
    better = {
        "value": 0.95,
        "crashed": False,
        "parts": {"goodput": 0.68, "latency": 0.23, "residency": 0.039, "floor": 0.001},
    }
    worse = better | {"value": 0.1}
    _, episode, told = played("easy", "lru", others=(("planner", better), ("other", worse)))
    assert not told["crashed"]
    assert told["samples"] == []
    text = " ".join(told["words"])
    assert f"{0.95 - episode.value:.4f} below planner, the best of this run (0.9500)" in text
    top = most(task("easy"))
    lost = {name: top[name] - episode.parts[name] for name in top}
    worst = max(lost, key=lost.get)
    assert f"It lost most in {worst}: {lost[worst]:.3f}." in text
    assert f"goodput {0.68 - episode.parts['goodput']:+.4f}" in text
    assert f"{int(episode.facts['completed']):,} were completed" in text


def test_the_costliest_stretch_is_where_the_penalties_fell():
    asked, episode, told = played("hard", "random", {"horizon_ticks": 2000})
    sla = detail.replay(asked).terms[: len(episode.actions), 3]
    sums = sla.reshape(20, -1).sum(axis=1)
    worst = int(np.argmin(sums))
    at, text = told["moments"][0]
    assert at == worst * 200
    assert f"cost {-sla.sum():.3f} of reward; {sums[worst] / sla.sum():.0%} of that" in text


def test_the_worst_windows_of_a_deployment_are_found():
    asked, _, told = played("bursty_workload", "random", {"windows": 40})
    found = detail.replay(asked)
    share = np.array([found.at(d).facts(0)["slo_compliance_rate"] for d in range(1, 41)])
    assert f"{(share < 0.9).sum()} of 40 windows" in " ".join(told["words"])
    queue = max(found.at(d).facts(0)["queue_depth"] for d in range(1, 41))
    text = next(text for _, text in told["moments"] if "worst stretch" in text)
    assert re.search(r"windows? (\d+)", text)
    assert f"up to {queue:,.0f} requests" in text


def test_an_episode_under_way_is_not_explained():
    asked, _, _ = played("easy", "lru")
    begun = detail.Asked("begun", "easy", "validation", 0, asked.actions[:800])
    told = why.why(begun)
    assert not told["over"]
    assert told["words"] == ["The episode is still being played; come back when it has ended."]
