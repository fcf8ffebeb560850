"""What the predecessors' own tests and clients expect, over real HTTP: one test an expectation, named after its line in seeds.md section 4.

Where an expectation is one of their faults, the test shows that we refuse it; docs/openenv.md tells of it under "Where we differ".
"""

from __future__ import annotations

import itertools
import json
import math

import pytest

pytest.importorskip("openenv.core", reason="the extra 'openenv' is not installed")

from inferencegym.envs.openenv import baseline

TASKS = ("static_workload", "bursty_workload", "adversarial_multitenant")
NPA_COLUMNS = (
    "gpu_utilization_pct", "cpu_utilization_pct", "memory_pressure_trend", "free_queue_pressure", "vip_queue_pressure", "free_max_wait_time_pct",
    "vip_max_wait_time_pct", "yield_preempt_active", "free_size_max", "free_size_mean", "free_size_std_dev", "vip_size_max", "vip_size_mean",
    "vip_size_std_dev", "free_age_max", "free_age_mean", "free_age_std_dev", "vip_age_max", "vip_age_mean", "vip_age_std_dev",
)  # fmt: skip


class Session:
    """An episode over plain HTTP, without our client: as a stranger writes it."""

    def __init__(self, http, url, **reset):
        self.http, self.url = http, url
        answer = http.post(f"{url}/reset", json=reset)
        assert answer.status_code == 200, answer.text
        self.first = answer.json()
        self.id = self.first["session_id"]

    def step(self, action, **beside):
        answer = self.http.post(f"{self.url}/step", json={"session_id": self.id, "action": action} | beside)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def whole(self, action):
        seen = []
        while not seen or not seen[-1]["done"]:
            seen.append(self.step(action))
        return seen

    def log(self, steps, action):
        about = self.first["metadata"]
        return {name: about[name] for name in ("task_id", "split", "seed", "digest")} | {
            "actions": [action] * len(steps), "rewards": [step["reward"] for step in steps],
            "observations": [step["observation"]["encoded"] for step in (self.first, *steps)],
            "terminated": steps[-1]["observation"]["terminated"], "truncated": steps[-1]["observation"]["truncated"],
            "value": steps[-1]["metadata"]["grade"]["value"],
        }  # fmt: skip

    def end(self):
        assert self.http.delete(f"{self.url}/sessions/{self.id}").status_code == 200


@pytest.fixture
def opened(http):
    """Opens sessions, and ends them after the test."""
    made = []

    def make(server, **reset):
        made.append(Session(http, server.url, **reset))
        return made[-1]

    yield make
    for session in made:
        session.end()


# --- IG, "Routes" ----------------------------------------------------------------------------------------------------------


def test_ig_health_says_healthy(serve_server, http):
    assert http.get(f"{serve_server.url}/health").json()["status"] in ("ok", "healthy")


@pytest.mark.parametrize("path", ["/metadata", "/schema", "/state", "/tasks", "/openapi.json"])
def test_ig_routes_answer(serve_server, http, path):
    answer = http.get(serve_server.url + path)
    assert answer.status_code == 200
    assert answer.json()


def test_ig_demo_leads_to_the_page(serve_server, http):
    for path in ("/demo", "/"):
        answer = http.get(serve_server.url + path, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (307, "/web")


def test_ig_exactly_one_reset_step_and_state(serve_server, http):
    paths = http.get(f"{serve_server.url}/openapi.json").json()["paths"]
    assert {path: list(paths[path]) for path in ("/reset", "/step", "/state")} == {
        "/reset": ["post"], "/step": ["post"], "/state": ["get"],
    }  # fmt: skip
    # The one that is documented is the one that answers: it knows sessions.
    assert "session_id" in http.post(f"{serve_server.url}/reset").json()


@pytest.mark.parametrize("body", [None, b"{}", b"null"])
def test_ig_reset_takes_no_body_and_an_empty_one(serve_server, http, body):
    answer = http.post(f"{serve_server.url}/reset", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    told = answer.json()
    assert {"session_id", "observation", "reward", "done", "metadata"} <= set(told)
    assert told["metadata"]["task_id"] == "static_workload"
    http.delete(f"{serve_server.url}/sessions/{told['session_id']}")


# --- IG, "Steps within a session" ------------------------------------------------------------------------------------------


def test_ig_steps_advance_and_rewards_differ(serve_server, http, opened):
    session = opened(serve_server, task_id="bursty_workload", seed=1)
    steps = [session.step({"batch_cap": 64}) for _ in range(5)]
    assert [step["observation"]["step_index"] for step in steps] == [1, 2, 3, 4, 5]
    assert len({step["reward"] for step in steps}) == 5
    state = http.get(f"{serve_server.url}/state", params={"session_id": session.id}).json()
    assert state["step_count"] == 5


# --- IG, "/tasks", "/grader", "/baseline" ----------------------------------------------------------------------------------


def test_ig_three_tasks_from_easy_to_hard(serve_server, http):
    told = http.get(f"{serve_server.url}/tasks").json()
    difficulty = {task["id"]: task["difficulty"] for task in told["tasks"]}
    assert [difficulty[name] for name in TASKS] == ["easy", "medium", "hard"]
    assert "batch_cap" in told["action_schema"]["properties"]


def test_ig_an_episode_that_has_not_begun_is_not_graded(serve_server, http, opened):
    assert http.post(f"{serve_server.url}/grader", json={}).status_code == 422
    session = opened(serve_server)
    refused = http.post(f"{serve_server.url}/grader", json={"session_id": session.id})
    assert refused.status_code == 400
    assert "0 of" in refused.json()["detail"]


@pytest.mark.parametrize("task", TASKS)
def test_ig_the_baseline_is_deterministic_and_reaches_a_quarter(serve_server, http, task):
    asked = {"task_id": task, "seed": 0}
    first = http.get(f"{serve_server.url}/baseline", params=asked).json()
    assert first["mode"] == "deterministic"
    assert first["baseline"][task]["grader"]["score"] >= 0.25
    baseline._ruled.cache_clear()
    assert http.get(f"{serve_server.url}/baseline", params=asked).json() == first


# --- IG, "ServeAction" -----------------------------------------------------------------------------------------------------


def test_ig_knobs_and_ranges_of_the_readme(serve_server, http):
    knobs = http.get(f"{serve_server.url}/tasks").json()["action_schema"]["properties"]
    assert {name: (knobs[name]["minimum"], knobs[name]["maximum"]) for name in ("batch_cap", "kv_budget_fraction", "speculation_depth")} == {
        "batch_cap": (1, 512), "kv_budget_fraction": (0.1, 1.0), "speculation_depth": (0, 8),
    }  # fmt: skip
    assert knobs["quantization_tier"]["enum"] == ["FP16", "INT8", "INT4"]
    assert {knobs[name]["type"] for name in ("prefill_decode_split", "priority_routing")} == {"boolean"}


def test_ig_the_default_action_is_valid(opened, serve_server):
    assert opened(serve_server).step({})["observation"]["step_index"] == 1


@pytest.mark.parametrize(
    "knob",
    [
        {"batch_cap": 0}, {"batch_cap": 9999}, {"kv_budget_fraction": 30}, {"speculation_depth": 40}, {"quantization_tier": "8"},
        {"quantization_tier": "int3"}, {"batch_cap": "64"}, {"batch_cap": True},
    ],
)  # fmt: skip
def test_ig_fault_27_nothing_is_repaired_in_silence(serve_server, http, opened, knob):
    session = opened(serve_server)
    refused = http.post(f"{serve_server.url}/step", json={"session_id": session.id, "action": knob})
    assert refused.status_code == 422
    assert next(iter(knob)) in json.dumps(refused.json()["detail"])
    assert http.get(f"{serve_server.url}/state", params={"session_id": session.id}).json()["step_count"] == 0


# --- IG, "Environment" -----------------------------------------------------------------------------------------------------


def test_ig_the_first_observation_is_step_0_of_a_named_task(serve_server, opened):
    first = opened(serve_server, task_id="bursty_workload").first
    assert (first["observation"]["step_index"], first["done"], first["reward"]) == (0, False, None)
    assert first["metadata"]["task_name"] == "bursty_workload"


def test_ig_without_a_session_there_is_no_episode_to_step_in(serve_server, http):
    refused = http.post(f"{serve_server.url}/step", json={"session_id": "never-opened", "action": {}})
    assert refused.status_code == 404
    assert "/reset" in refused.json()["detail"]


def test_ig_after_the_last_step_done_stays_true_with_a_message(serve_server, opened):
    session = opened(serve_server, seed=2)
    last = session.whole({"batch_cap": 128})[-1]
    after = session.step({"batch_cap": 128})
    assert after["done"] is True
    assert "over" in after["metadata"]["message"]
    assert after["observation"]["step_index"] == last["observation"]["step_index"]


def test_ig_episode_ids_are_unique_within_a_session_and_time_goes_on(serve_server, http, opened):
    session = opened(serve_server)
    again = http.post(f"{serve_server.url}/reset", json={"session_id": session.id}).json()
    assert again["metadata"]["episode_id"] != session.first["metadata"]["episode_id"]
    elapsed = [session.step({})["observation"]["episode_fraction"] for _ in range(4)]
    assert elapsed == sorted(elapsed)
    assert elapsed[0] < elapsed[-1]


def test_ig_an_exported_log_has_one_observation_more_than_actions_and_is_graded(serve_server, http, opened):
    session = opened(serve_server, seed=3)
    log = session.log(session.whole({"batch_cap": 128}), {"batch_cap": 128})
    assert len(log["observations"]) == len(log["actions"]) + 1 == len(log["rewards"]) + 1
    graded = http.post(f"{serve_server.url}/grader", json={"episode_log": log}).json()
    own = http.post(f"{serve_server.url}/grader", json={"session_id": session.id}).json()
    assert graded["score"] == own["score"]


# --- IG, "Grader", and its faults ------------------------------------------------------------------------------------------


def test_ig_a_score_is_in_0_to_1_and_the_same_every_time(serve_server, http, opened):
    session = opened(serve_server, seed=4)
    session.whole({"batch_cap": 128})
    told = [http.post(f"{serve_server.url}/grader", json={"session_id": session.id}).json() for _ in range(2)]
    assert told[0] == told[1]
    assert 0.0 <= told[0]["score"] <= 1.0
    assert all(math.isfinite(part) for part in told[0]["parts"].values())


def test_ig_an_empty_log_is_refused_where_theirs_scores_0(serve_server, http, opened):
    about = opened(serve_server).first["metadata"]
    empty = {name: about[name] for name in ("task_id", "split", "seed", "digest")} | {
        "actions": [], "rewards": [], "observations": [], "terminated": False, "truncated": False, "value": 0.0,
    }  # fmt: skip
    assert http.post(f"{serve_server.url}/grader", json={"episode_log": empty}).status_code == 422


def test_ig_faults_17_and_18_partial_and_forged_logs_are_refused(serve_server, http, opened):
    session = opened(serve_server, seed=5)
    log = session.log(session.whole({"batch_cap": 128}), {"batch_cap": 128})
    partial = log | {name: log[name][:3] for name in ("actions", "rewards")} | {"observations": log["observations"][:4]}
    forged = log | {"rewards": [1.0] * len(log["rewards"])}
    absurd = log | {"value": 1e9}
    for changed in (partial, forged, absurd):
        refused = http.post(f"{serve_server.url}/grader", json={"episode_log": changed})
        assert refused.status_code == 400
        assert "refused" in refused.json()["detail"]


def test_ig_fault_1_two_clients_do_not_share_an_episode(serve_server, http, opened):
    one, other = opened(serve_server, task_id="bursty_workload"), opened(serve_server)
    assert one.id != other.id
    assert one.step({})["observation"]["task_id"] == "bursty_workload"
    assert other.step({})["observation"]["step_index"] == 1


def test_ig_fault_28_unknown_names_are_4xx_that_list_the_known_ones(serve_server, http):
    for answer in (
        http.post(f"{serve_server.url}/reset", json={"task_id": "nope"}),
        http.get(f"{serve_server.url}/baseline", params={"task_id": "nope"}),
    ):
        assert answer.status_code == 400
        assert "static_workload" in answer.json()["detail"]


# --- IG, "Simulator" and "Workload", as a client sees them -----------------------------------------------------------------


def test_ig_measures_are_ordered_and_positive(serve_server, opened):
    steps = opened(serve_server, seed=6).whole({"batch_cap": 128})
    for seen in (step["observation"] for step in steps):
        assert seen["p99_ttft_ms"] >= seen["p50_ttft_ms"] >= 0
        assert seen["p99_itl_ms"] >= seen["p50_itl_ms"] >= 0
        assert seen["gpu_memory_used_gb"] > 0
        assert 0 <= seen["slo_compliance_rate"] <= 1
    busy = [step["observation"] for step in steps if step["observation"]["throughput_tps"] > 0]
    assert len(busy) > len(steps) / 2
    assert all(seen["estimated_cost_per_1k"] > 0 for seen in busy)


def test_ig_throughput_does_not_fall_with_the_batch(serve_server, opened):
    means = []
    for cap in (1, 4, 32, 128):
        steps = opened(serve_server, seed=7).whole({"batch_cap": cap})
        means.append(sum(step["observation"]["throughput_tps"] for step in steps) / len(steps))
    # All that arrives is served from some batch on: then there is nothing more to gain.
    assert all(more >= 0.98 * less for less, more in itertools.pairwise(means))
    assert means[-1] > 1.5 * means[0]


def test_ig_int8_is_not_dearer_than_fp16(serve_server, opened):
    cost = {}
    for tier in ("FP16", "INT8"):
        steps = opened(serve_server, seed=8).whole({"batch_cap": 128, "quantization_tier": tier})[10:]
        cost[tier] = sum(step["observation"]["estimated_cost_per_1k"] for step in steps) / len(steps)
    assert cost["INT8"] <= 1.02 * cost["FP16"]


def test_ig_without_drafts_nothing_is_accepted(serve_server, opened):
    steps = opened(serve_server, seed=9).whole({"speculation_depth": 0})
    assert all(step["observation"]["spec_acceptance_rate"] == 0 for step in steps)


def test_ig_the_same_seed_is_the_same_episode(serve_server, opened):
    told = [opened(serve_server, seed=10, task_id="bursty_workload") for _ in range(2)]
    assert told[0].first["observation"] == told[1].first["observation"]
    for _ in range(6):
        assert told[0].step({"batch_cap": 32}) | {"session_id": None} == told[1].step({"batch_cap": 32}) | {
            "session_id": None
        }


# --- NPA -------------------------------------------------------------------------------------------------------------------


def test_npa_observation_keys(paging_server, opened):
    assert set(NPA_COLUMNS) <= set(opened(paging_server).first["observation"])


def test_npa_a_step_takes_action_or_action_id(paging_server, http, opened):
    one, other = opened(paging_server, seed=1), opened(paging_server, seed=1)
    by_number = one.step(8)
    answer = http.post(f"{paging_server.url}/step", json={"session_id": other.id, "action_id": 8}).json()
    assert answer["observation"] == by_number["observation"]


def test_npa_eighteen_actions_and_the_nineteenth_is_refused(paging_server, http, opened):
    session = opened(paging_server)
    for number in range(18):
        session.step(number)
    refused = http.post(f"{paging_server.url}/step", json={"session_id": session.id, "action": 18})
    assert refused.status_code == 422


def test_npa_agents_and_tasks_are_listed(paging_server, http):
    told = http.get(f"{paging_server.url}/api/agents").json()
    assert {"lru", "random"} <= {agent["id"] for agent in told["agents"]}
    assert told["tasks"] == ["easy", "medium", "hard"]


def test_npa_settings_keys(paging_server, http):
    for own in http.get(f"{paging_server.url}/api/settings").json()["settings"].values():
        assert {"gpu_total_blocks", "cpu_total_blocks", "tokens_per_block", "max_ticks"} <= set(own)


def test_npa_simulation_takes_agent_task_ticks_and_tells_session_and_tick_logs(paging_server, http):
    told = http.post(f"{paging_server.url}/api/simulate", json={"agent": "lru", "task": "easy", "ticks": 20}).json()
    assert {"task", "total_reward", "final_score", "ticks_run", "crashed"} <= set(told["session"])
    assert told["session"]["ticks_run"] == 20
    assert {"tick", "action", "reward", *NPA_COLUMNS} <= set(told["ticks"][0])


def test_npa_fault_11_a_short_run_does_not_shorten_the_next(paging_server, http):
    run = f"{paging_server.url}/api/simulate"
    assert http.post(run, json={"ticks": 10, "limit": 0}).json()["session"]["ticks_run"] == 10
    assert http.post(run, json={"limit": 0}).json()["session"]["ticks_run"] > 10


def test_npa_fault_12_settings_are_checked_and_reach_nobody_else(paging_server, http, opened):
    url = paging_server.url
    before = http.get(f"{url}/api/settings").json()
    assert http.post(f"{url}/api/settings", json={"gpu_total_blocks": 0}).status_code == 422
    assert http.post(f"{url}/api/settings", json={"gpu_total_blocks": 1000}).json()["kept"] is False
    assert http.get(f"{url}/api/settings").json() == before


def test_npa_fault_13_unknown_agents_and_tasks_are_400(paging_server, http):
    for body in ({"agent": "nobody"}, {"task": "nope"}):
        answer = http.post(f"{paging_server.url}/api/simulate", json=body)
        assert answer.status_code == 400
        assert "known" in answer.json()["detail"]


def test_npa_state_keys(paging_server, http, opened):
    session = opened(paging_server)
    told = http.get(f"{paging_server.url}/state", params={"session_id": session.id}).json()
    assert {"episode_id", "task_id", "step_count", "total_reward"} <= set(told)
