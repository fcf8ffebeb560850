"""The server over real HTTP: an episode holds, strangers' sessions are safe, wrong input is a clear 4xx, and the predecessors' routes answer."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("openenv.core", reason="the extra 'openenv' is not installed")

from inferencegym.envs.openenv.client import EpisodeClient, LLMServeEnv, ServerError
from inferencegym.envs.openenv.environment import PagedKVEnvironment
from inferencegym.envs.openenv.models import PagingAction
from inferencegym.ground.errors import ConfigError

JSON = {"content-type": "application/json"}


def whole_serving_episode(client, **reset):
    client.reset(**reset)
    done = False
    while not done:
        _, _, done, info = client.step({"batch_cap": 128})
    return info


def test_plain_http_holds_an_episode(serve_server, http):
    url = serve_server.url
    opened = http.post(f"{url}/reset", json={"task_id": "static_workload", "seed": 4}).json()
    assert opened["session_id"]
    assert (opened["reward"], opened["done"]) == (None, False)
    assert opened["metadata"]["task_name"] == "static_workload"
    body = {"session_id": opened["session_id"], "action": {"batch_cap": 64}}
    steps = [http.post(f"{url}/step", json=body).json() for _ in range(3)]
    assert [step["observation"]["step_index"] for step in steps] == [1, 2, 3]
    state = http.get(f"{url}/state", params={"session_id": opened["session_id"]}).json()
    assert (state["step_count"], state["seed"], state["task_id"]) == (3, 4, "static_workload")
    assert state["total_reward"] == pytest.approx(sum(step["reward"] for step in steps))


def test_two_http_sessions_interleave_without_effect(paging_server, http):
    url = paging_server.url
    ids = [http.post(f"{url}/reset", json={"seed": seed}).json()["session_id"] for seed in (1, 2)]
    alone = [PagedKVEnvironment(), PagedKVEnvironment()]
    for environment, seed in zip(alone, (1, 2), strict=True):
        environment.reset(seed=seed)
    for action in (8, 17, 8, 8, 10, 12):
        for session_id, environment in zip(ids, alone, strict=True):
            answer = http.post(f"{url}/step", json={"session_id": session_id, "action_id": action}).json()
            expected = environment.step(PagingAction(action_id=action))
            assert answer["observation"]["encoded"] == expected.encoded
            assert answer["reward"] == expected.reward


def test_reset_in_a_session_begins_again_in_it(paging_server, http):
    url = paging_server.url
    first = http.post(f"{url}/reset").json()
    again = http.post(f"{url}/reset", json={"session_id": first["session_id"]}).json()
    assert again["session_id"] == first["session_id"]
    assert again["metadata"]["seed"] == first["metadata"]["seed"] + 1


def test_without_a_session_id_a_step_is_openenvs_own(paging_server, http):
    answers = [http.post(f"{paging_server.url}/step", json={"action": {"action_id": 8}}).json() for _ in range(2)]
    assert answers[0] == answers[1]
    assert answers[0]["observation"]["step_index"] == 1
    assert answers[0]["session_id"] is None
    assert http.get(f"{paging_server.url}/state").json()["step_count"] == 0


@pytest.mark.parametrize(
    ("path", "text", "status"),
    [
        ("/step", '{"action": {"action_id": 18}}', 422),
        ("/step", '{"action": {"action_id": NaN}}', 422),
        ("/step", '{"action": {"action_id": 1e999}}', 422),
        ("/step", '{"action": {"action_id": 3, "hack": 1}}', 422),
        ("/step", '{"action": {"action_id": 3}, "action_id": 3}', 422),
        ("/step", '{"action": [3]}', 422),
        ("/step", "{}", 422),
        ("/step", "not json", 422),
        ("/step", '{"action": "fly"}', 422),
        ("/step", '{"action": 3, "session_id": "nobody"}', 404),
        ("/reset", '{"task_id": "static_workload"}', 400),
        ("/reset", '{"task_id": "/etc/passwd"}', 400),
        ("/reset", '{"seed": -1}', 422),
        ("/reset", '{"seed": NaN}', 422),
        ("/reset", '{"seed": 1099511627776}', 422),
        ("/reset", '{"split": "nope"}', 400),
        ("/reset", '{"colour": 1}', 422),
        ("/reset", '{"index": 100000}', 400),
        ("/reset", '{"session_id": "nobody"}', 404),
        ("/reset", '{"task_id": "\\ud800"}', 422),
        ("/reset", '{"episode_id": "\\ud800"}', 422),
        ("/step", '{"action": "\\ud800"}', 422),
        ("/step", '{"\\ud800": 1}', 422),
        ("/grader", '{"session_id": "\\ud800"}', 422),
        ("/grader", "{}", 422),
        ("/grader", '{"session_id": "nobody"}', 404),
        ("/api/simulate", '{"agent": "nobody"}', 400),
        ("/api/simulate", '{"task": "nope"}', 400),
        ("/api/simulate", '{"split": "nope"}', 400),
        ("/api/simulate", '{"agent": "os:system"}', 400),
        ("/api/simulate", '{"settings": {"gpu_total_blocks": 0}}', 422),
        ("/api/simulate", '{"ticks": 5, "settings": {"max_ticks": 6}}', 400),
        ("/api/settings", '{"gpu_total_blocks": "NaN"}', 422),
    ],
)
def test_wrong_input_is_a_clear_4xx(paging_server, http, path, text, status):
    before = http.get(f"{paging_server.url}/runtime").json()["active_sessions"]
    answer = http.post(f"{paging_server.url}{path}", content=text, headers=JSON)
    assert answer.status_code == status
    assert answer.json()["detail"]
    assert http.get(f"{paging_server.url}/runtime").json()["active_sessions"] == before


def test_a_body_that_is_too_large_is_refused_announced_or_not(paging_server, http):
    megabyte = b" " * 2**20
    assert http.post(f"{paging_server.url}/grader", content=megabyte * 33, headers=JSON).status_code == 413
    assert (
        http.post(f"{paging_server.url}/grader", content=(megabyte for _ in range(33)), headers=JSON).status_code == 413
    )


def test_a_full_table_says_429_and_a_deleted_session_makes_room(small_server, http):
    url = small_server.url
    ids = [http.post(f"{url}/reset").json()["session_id"] for _ in range(3)]
    full = http.post(f"{url}/reset")
    assert full.status_code == 429
    assert int(full.headers["retry-after"]) > 0
    assert "3 sessions" in full.json()["detail"]
    listed = http.get(f"{url}/sessions").json()
    assert (listed["open"], listed["cap"]) == (3, 3)
    assert not any(session_id in json.dumps(listed) for session_id in ids)
    assert http.delete(f"{url}/sessions/{ids[0]}").json() == {"deleted": True}
    assert http.delete(f"{url}/sessions/{ids[0]}").status_code == 404
    assert http.post(f"{url}/step", json={"action": 17, "session_id": ids[0]}).status_code == 404
    ids.append(http.post(f"{url}/reset").json()["session_id"])
    for session_id in ids[1:]:
        http.delete(f"{url}/sessions/{session_id}")


def test_only_whole_episodes_are_graded_over_http(serve_server):
    with LLMServeEnv.from_url(serve_server.url) as client:
        client.reset(task_id="static_workload", seed=0)
        with pytest.raises(ServerError, match="whole episodes") as refusal:
            client.grade()
        assert refusal.value.status == 400


def test_the_predecessors_client_plays_grades_and_replays(serve_server):
    with LLMServeEnv.from_url(serve_server.url) as client:
        observation = client.reset(task_id="static_workload", seed=7)
        assert observation["step_index"] == 0
        info = whole_serving_episode(client, task_id="static_workload", seed=7)
        grade = client.grade()
        assert grade == info["grade"]
        assert 0.0 <= grade["score"] <= 1.0
        log = client.episode_log()
        replayed = client.grade_log(log)
        assert {name: replayed[name] for name in ("score", "value", "parts")} == {
            name: grade[name] for name in ("score", "value", "parts")
        }

        forged = json.loads(json.dumps(log))
        forged["rewards"][10] += 0.5
        with pytest.raises(ServerError, match="step 11: reward"):
            client.grade_log(forged)
        for change in (
            {"actions": log["actions"][:-1]},
            {"digest": "0" * 64},
            {"seed": 8},
            {"task_id": "easy"},
            {"value": 1e6},
            {"observations": [[0.0]] * 61},
        ):
            with pytest.raises(ServerError) as refusal:
                client.grade_log(log | change)
            assert refusal.value.status in (400, 422)
        assert client.grade() == grade


def test_the_client_refuses_before_it_asks(serve_server):
    with LLMServeEnv.from_url(serve_server.url) as client:
        with pytest.raises(ConfigError, match="reset"):
            client.step({"batch_cap": 1})
        client.reset()
        with pytest.raises(ConfigError, match="batch_cap"):
            client.step({"batch_cap": 9999})
        assert client.state()["step_count"] == 0
    nobody = EpisodeClient("http://127.0.0.1:9", "llmserve", timeout_s=2)
    with pytest.raises(ServerError):
        nobody.reset()


@pytest.mark.parametrize(
    "route",
    ["/health", "/metadata", "/schema", "/state", "/tasks", "/runtime", "/openapi.json", "/docs", "/list_environments"],
)
def test_routes_that_people_know_answer(serve_server, http, route):
    assert http.get(serve_server.url + route).status_code == 200


def test_the_predecessors_expectations(serve_server, http):
    url = serve_server.url
    assert http.get(f"{url}/health").json()["status"] == "healthy"
    told = http.get(f"{url}/tasks").json()
    assert {"static_workload", "bursty_workload", "adversarial_multitenant"} <= {task["id"] for task in told["tasks"]}
    knobs = told["action_schema"]["properties"]
    assert (knobs["batch_cap"]["minimum"], knobs["batch_cap"]["maximum"]) == (1, 512)
    assert knobs["quantization_tier"]["enum"] == ["FP16", "INT8", "INT4"]
    assert http.post(f"{url}/reset").json()["metadata"]["task_id"] == "static_workload"
    assert http.post(f"{url}/reset", json={}).json()["observation"]["task_id"] == "static_workload"
    assert http.get(f"{url}/demo", follow_redirects=False).headers["location"] == "/web"
    assert http.get(f"{url}/", follow_redirects=False).headers["location"] == "/web"
    assert http.get(f"{url}/web").status_code == 200
    paths = serve_server.app.router.routes
    for path in ("/reset", "/step", "/state"):
        assert len([route for route in paths if getattr(route, "path", "") == path]) <= 1
    spec = http.get(f"{url}/openapi.json").json()["paths"]
    assert all(path in spec for path in ("/reset", "/step", "/state", "/grader", "/baseline", "/mcp"))


def test_the_deterministic_baseline_is_the_same_every_time(serve_server, http):
    first = http.get(f"{serve_server.url}/baseline", params={"task_id": "static_workload"}).json()
    assert first["mode"] == "deterministic"
    assert first["baseline"]["static_workload"]["grader"]["score"] >= 0.25
    assert http.get(f"{serve_server.url}/baseline", params={"task_id": "static_workload"}).json() == first
    assert http.get(f"{serve_server.url}/baseline", params={"task_id": "nope"}).status_code == 400


def test_a_model_without_a_key_is_one_clear_error(serve_server, http, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "API_BASE_URL", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    answer = http.get(f"{serve_server.url}/baseline", params={"use_openai": "true"})
    assert answer.status_code == 400
    assert "OPENAI_API_KEY" in answer.json()["detail"]


def test_a_simulation_is_told_page_by_page(paging_server, http):
    url = paging_server.url
    asked = {"agent": "lru", "task": "easy", "ticks": 40, "limit": 30}
    pages, offset = [], 0
    while offset is not None:
        answer = http.post(f"{url}/api/simulate", json=asked | {"offset": offset}).json()
        pages += answer["ticks"]
        offset = answer["next_offset"]
    assert [row["decision"] for row in pages] == list(range(80))
    assert pages[-1]["tick"] == 39
    assert answer["session"]["ticks_run"] == 40
    assert sum(row["reward"] for row in pages) == pytest.approx(answer["session"]["total_reward"])
    assert {"gpu_utilization_pct", "vip_age_std_dev", "action", "reward"} <= set(pages[0])


def test_settings_belong_to_the_request(paging_server, http):
    url = paging_server.url
    before = http.get(f"{url}/api/settings").json()
    told = http.post(f"{url}/api/settings", json={"gpu_total_blocks": 2000}).json()
    assert told["settings"]["easy"]["gpu_total_blocks"] == 2000
    assert http.get(f"{url}/api/settings").json() == before
    small = http.post(
        f"{url}/api/simulate", json={"settings": {"gpu_total_blocks": 2000}, "ticks": 50, "limit": 0}
    ).json()["session"]
    usual = http.post(f"{url}/api/simulate", json={"ticks": 50, "limit": 0}).json()["session"]
    assert small["facts"]["gpu_blocks"] == 2000
    assert usual["facts"]["gpu_blocks"] == 10_000
    assert small["digest"] != usual["digest"]
    assert not small["graded"]
    assert "lru" in {agent["id"] for agent in http.get(f"{url}/api/agents").json()["agents"]}
