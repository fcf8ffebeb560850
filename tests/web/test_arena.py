"""The Arena over HTTP: the catalogue, the same numbers as everywhere else, streams that can be taken up again, and clear refusals."""

from __future__ import annotations

import numpy as np
import pytest

from inferencegym.envs import catalogue
from inferencegym.envs.actors import actor
from inferencegym.envs.episode import record
from inferencegym.learn.evaluate import evaluate
from inferencegym.web import frames

SHORT = {"horizon_ticks": 400}


@pytest.mark.parametrize(
    ("task", "policies"), [("easy", ["lru", "random"]), ("static_workload", ["aimd", "best-static"])]
)
def test_the_same_numbers_as_evaluate_to_the_last_digit(arena, task, policies):
    run = arena.played(task, policies, split="test", seed=1)
    theirs = evaluate(policies, [task], split="test", scenarios=[1]).episodes
    assert run["state"] == "done"
    for ours, other in zip(run["policies"], theirs, strict=True):
        result = ours["result"]
        for name in ("value", "grade", "total_reward", "steps", "crashed", "parts", "facts"):
            assert result[name] == getattr(other, name), name
        assert result["graded"]
        assert ours["state"] == "completed"
    assert run["task_digest"] == theirs[0].digest


def test_the_same_numbers_as_the_simulate_route(arena):
    pytest.importorskip("openenv.core")
    from inferencegym.envs.openenv.api import Settings, _simulated

    own = Settings(gpu_total_blocks=2000, tokens_per_block=32, max_ticks=800)
    log = _simulated("lru", "hard", "validation", 4, own).log
    overrides = {"gpu_blocks": 2000, "block_tokens": 32, "horizon_ticks": 800}
    run = arena.played("hard", ["lru"], seed=4, overrides=overrides)
    result = run["policies"][0]["result"]
    assert (result["value"], result["total_reward"], result["facts"], result["parts"]) == (
        log["value"], log["total_reward"], log["facts"], log["parts"],
    )  # fmt: skip
    assert run["task_digest"] == log["digest"]
    assert result["grade"] is None
    assert run["command"] is None


def test_the_stream_is_the_episode(arena):
    run = arena.played("hard", ["sieve", "lru"], seed=2, overrides=SHORT)
    assert run["samples"] == 400
    names = [column["name"] for column in run["columns"]]
    for i, policy in enumerate(["sieve", "lru"]):
        samples, first = [], 0
        for header, payload in arena.frames(run["id"]):
            if header["type"] == "samples" and header["policy"] == i:
                assert header["first"] == first
                samples.append(np.frombuffer(payload, "<f4").reshape(len(names), header["rows"]))
                first += header["rows"]
        rows = dict(zip(names, np.concatenate(samples, axis=1), strict=True))
        assert first == 400
        base = catalogue.task("hard")
        from inferencegym.envs.overrides import overridden

        episode = record(overridden(base, SHORT), actor(policy, base), split="validation", scenario=2)
        assert (rows["action_0"] == episode.actions[0::2]).all()
        assert (rows["action_1"] == episode.actions[1::2]).all()
        assert rows["score_so_far"][-1] == np.float32(episode.value)
        assert rows["reward_total"][-1] == pytest.approx(episode.total_reward, rel=1e-6)
        assert rows["completed"][-1] == episode.facts["completed"]
        spec, actions = arena.table.actions(run["id"], i)
        assert actions == episode.actions.tobytes()
        assert spec.overrides == SHORT


def test_a_stream_is_taken_up_at_any_frame(arena):
    run = arena.played("hard", ["lru"], seed=3, overrides=SHORT)
    all_ = arena.frames(run["id"])
    assert [header["frame"] for header, _ in all_] == list(range(len(all_)))
    assert all_[0][0]["state"] == "running"
    assert all_[-1][0]["state"] == "done"
    assert arena.frames(run["id"], 2) == all_[2:]
    assert arena.frames(run["id"], len(all_)) == []


def test_two_who_ask_for_the_same_share_a_run(arena):
    first = arena.start("hard", ["lru"], seed=5, overrides=SHORT | {"gpu_blocks": 10_000})
    second = arena.start("hard", ["lru"], seed=5, overrides={"horizon_ticks": "400"})
    assert first["id"] == second["id"]
    assert second["spec"]["overrides"] == SHORT
    assert arena.frames(first["id"]) == arena.frames(second["id"])


def test_a_crash_is_told(arena):
    run = arena.played("medium", ["fixed:admit_free"], overrides={"gpu_blocks": 500})
    (policy,) = run["policies"]
    assert policy["state"] == "crashed"
    assert policy["result"]["crashed"]
    assert policy["samples"] == policy["result"]["last_sample"] + 1 < run["samples"]


def test_the_catalogue_says_what_can_be_played(arena):
    told = arena.client.get("/catalogue").json()
    tasks = {task["name"]: task for task in told["tasks"]}
    assert set(tasks) == set(catalogue.task_names())
    assert told["most_policies"] == 6
    assert {one["name"]: one["kind"] for one in tasks["hard"]["policies"]}.items() >= {
        "lru": "rule", "learned": "learned", "best-static": "static", "clairvoyant": "planner",
    }.items()  # fmt: skip
    assert not any(one["quick"] for one in tasks["hard"]["policies"] if one["kind"] == "planner")
    pool = next(one for one in tasks["hard"]["overrides"] if one["name"] == "gpu_blocks")
    assert (pool["default"], pool["min"], pool["max"], pool["unit"]) == (10_000, 500, 100_000, "blocks")
    for task in tasks.values():
        assert task["available"] == (task["why_not"] is None)
        groups = [column["group"] for column in task["columns"]]
        assert groups == sorted(groups, key=["score", "queues", "memory", "latency", "load", "knobs", "actions"].index)
    latency = next(one for one in tasks["bursty_workload"]["columns"] if one["name"] == "p99_ttft_ms")
    assert (latency["objective"], latency["unit"]) == (300.0, "ms")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"task": "hard", "policies": ["lru"], "overrides": {"gpu_blocks": 9}}, "gpu_blocks"),
        ({"task": "hard", "policies": ["os:system"]}, "policies"),
        ({"task": "nope", "policies": ["lru"]}, "task"),
        ({"task": "hard", "policies": "lru"}, "body"),
        ({"task": "hard", "policies": ["lru"], "speed": 9}, "body"),
        ({"task": "hard", "policies": ["lru"], "overrides": {"gpu_blocks": None}}, "body"),
    ],
)
def test_a_bad_spec_is_refused_with_its_field(arena, body, field):
    answer = arena.client.post("/runs", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["field"] == field
    assert error["message"]


def test_what_is_not_there_is_a_404_and_what_is_no_number_a_400(arena):
    run = arena.start("hard", ["lru"], seed=3, overrides=SHORT)
    for path, status in (
        ("/runs/none", 404), ("/runs/none/stream", 404), ("/runs/none/export.json", 404), (f"/runs/{run['id']}/stream?frame=x", 400),
        (f"/runs/{run['id']}/stream?frame=-1", 400), (f"/runs/{run['id']}/stream?frame={'9' * 5000}", 400), (f"/runs/{run['id']}/export.exe", 404),
    ):  # fmt: skip
        answer = arena.client.get(path)
        assert (answer.status_code, bool(answer.json()["error"]["message"])) == (status, True), path


def test_a_form_from_a_foreign_page_starts_nothing(arena):
    answer = arena.client.post(
        "/runs", content=b'{"task": "hard", "policies": ["lru"]}', headers={"content-type": "text/plain"}
    )
    assert answer.status_code == 415


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_foreign_page_can_ask_for_nothing(arena, site):
    for path in ("/catalogue", "/runs/none", "/runs/none/stream"):
        answer = arena.client.get(path, headers={"sec-fetch-site": site})
        assert answer.status_code == 403
        assert "open the dashboard itself" in answer.json()["error"]["message"]
    assert arena.client.get("/catalogue", headers={"sec-fetch-site": "same-origin"}).status_code == 200


def test_frames_that_are_cut_off_are_an_error():
    whole = frames.state(0, "running") + frames.samples(1, 0, 0, 2, bytes(16))
    assert [header["type"] for header, _ in frames.read(whole)] == ["state", "samples"]
    from inferencegym.ground.errors import InputError

    for cut in (1, 17, len(whole) - 1):
        with pytest.raises(InputError):
            list(frames.read(whole[:cut]))
