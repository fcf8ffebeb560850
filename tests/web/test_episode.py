"""The Episode page's interface over HTTP: the run's own numbers, while it is played and after, and clear refusals."""

from __future__ import annotations

import pytest

SHORT = {"horizon_ticks": 400}


def get(arena, run, path, status=200, **params):
    answer = arena.client.get(f"/runs/{run['id']}/policies/{path}", params=params)
    assert answer.status_code == status, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def run(arena):
    """Two policies on a short hard episode."""
    return arena.played("hard", ["sieve", "fixed:8"], overrides=SHORT)


def test_rewards_of_all_rows_are_the_runs_total(arena, run):
    for i, policy in enumerate(run["policies"]):
        rewards, first = [], 0
        while True:
            told = get(arena, run, f"{i}/rows", first=first, count=300)
            rewards += [row["reward"] for row in told["rows"]]
            first += 300
            if first >= told["total"]:
                break
        assert len(rewards) == policy["result"]["steps"]
        assert sum(rewards) == pytest.approx(policy["result"]["total_reward"], rel=1e-12)


def test_the_state_at_the_end_is_the_runs_result(arena, run):
    for i, policy in enumerate(run["policies"]):
        total = get(arena, run, f"{i}/course")["total"]
        told = get(arena, run, f"{i}/state", decision=total)
        assert told["facts"]["score_so_far"] == policy["result"]["value"]
        assert told["facts"]["completed"] == policy["result"]["facts"]["completed"]


def test_why_knows_the_others_of_the_run(arena, run):
    told = get(arena, run, "0/why")
    value, other = (policy["result"]["value"] for policy in run["policies"])
    assert told["over"]
    best = "fixed:8, the best of this run" if other > value else "next is fixed:8"
    assert best in " ".join(told["words"])


def test_a_deployment_answers_too(arena):
    run = arena.played("bursty_workload", ["best-static"], overrides={"windows": 6})
    assert len(get(arena, run, "0/state", decision=6)["machine"]["classes"]) == 2
    assert len(get(arena, run, "0/course")["knobs"]["batch_cap"]) == 6
    assert get(arena, run, "0/why")["over"]


def test_what_is_not_there_is_refused_in_words(arena, run):
    unknown = arena.client.get("/runs/0123456789abcdef01234567/policies/0/rows")
    assert unknown.status_code == 404
    assert "start it again" in unknown.json()["error"]["message"]
    assert "policies 0 to 1" in get(arena, run, "7/why", status=404)["error"]["message"]
    assert get(arena, run, "0/state", status=400, decision=801)["error"]["allowed"] == "0..800"
    assert get(arena, run, "9" * 5000 + "/why", status=404)["error"]["message"]
    assert get(arena, run, "0/rows", status=400, first="9" * 5000)["error"]["field"] == "first"
    assert get(arena, run, "0/rows", status=400, count=501)["error"]["field"] == "count"
    assert get(arena, run, "0/rows", status=400, first="-1")["error"]["field"] == "first"
    assert get(arena, run, "0/rows", status=400, only="99")["error"]["field"] == "only"


def test_decisions_that_are_played_can_be_seen_while_others_are_to_come(own_arena):
    arena = own_arena(share=0.02)
    run = arena.start("hard", ["sieve"])
    total = 0
    while not total:
        told = get(arena, run, "0/course")
        total = told["total"]
    assert total < 20_000
    assert not told["over"]
    assert get(arena, run, "0/state", decision=total)["decision"] == total
    assert not get(arena, run, "0/why")["over"]
    assert get(arena, run, "0/course", first=total)["total"] >= total
