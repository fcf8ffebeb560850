"""The environment classes: the same episode as in process, bounded actions, honest states and grades, and nothing after close."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

pytest.importorskip("openenv.core", reason="the extra 'openenv' is not installed")

from pydantic import ValidationError

from inferencegym.decision.knobs import COLUMNS
from inferencegym.envs import catalogue
from inferencegym.envs.openenv import tasks
from inferencegym.envs.openenv.environment import ENVIRONMENTS, LLMServeEnvironment, PagedKVEnvironment
from inferencegym.envs.openenv.models import PagingAction, ServeAction, as_action
from inferencegym.envs.splits import scenario
from inferencegym.ground.errors import ConfigError, InferenceGymError, UnknownNameError
from inferencegym.ground.rng import stream


def legal(rng, mask):
    choices = np.flatnonzero(mask)
    return int(choices[int(rng.random() * len(choices))])


@pytest.mark.parametrize("task_id", ["easy", "hard"])
def test_a_paging_session_is_the_in_process_episode_step_for_step(task_id):
    environment = PagedKVEnvironment()
    batch = catalogue.task(task_id).batch(1)
    batch.start(0, scenario("train", 5))
    seen = environment.reset(seed=5, task_id=task_id, split="train")
    rng = stream(1, "test")
    for step in range(1, 400):
        assert seen.encoded == batch.observations[0].tolist()
        assert seen.action_mask == batch.masks[0].tolist()
        action = legal(rng, seen.action_mask)
        seen = environment.step(PagingAction(action_id=action))
        batch.actions[0] = action
        batch.step()
        assert seen.reward == batch.rewards[0]
        assert (seen.terminated, seen.truncated) == (bool(batch.terminated[0]), bool(batch.truncated[0]))
        assert environment.state.step_count == step
        if seen.done:
            break


def test_a_serving_session_is_the_in_process_episode_and_tells_natural_units():
    environment = LLMServeEnvironment()
    batch = catalogue.task("bursty_workload").batch(1)
    batch.start(0, scenario("validation", 2))
    seen = environment.reset(seed=2, task_id="bursty_workload")
    caps = [4, 512, 16, 128]
    for step in range(24):
        seen = environment.step(ServeAction(batch_cap=caps[step % 4], speculation_depth=step % 3))
        batch.actions[0] = [caps[step % 4], np.nan, step % 3, np.nan, np.nan, np.nan]
        batch.step()
        assert seen.encoded == batch.observations[0].tolist()
        assert seen.reward == batch.rewards[0]
        assert sum(seen.reward_terms.values()) == pytest.approx(batch.terms[0].sum())
        natural = COLUMNS.read(batch.observations[0])
        assert seen.p99_ttft_ms == natural["p99_ttft_ms"]
        assert seen.batch_cap == pytest.approx(caps[step % 4], rel=1e-3)


@pytest.mark.parametrize("family", list(ENVIRONMENTS))
def test_what_is_served_fits_the_published_schema_and_json(family):
    environment = ENVIRONMENTS[family]()
    first = environment.reset(seed=0)
    action = as_action(family, {} if family == "llmserve" else 17)
    for observation in (first, environment.step(action)):
        wire = observation.model_dump()
        assert type(observation).model_validate(wire) == observation
        assert json.loads(json.dumps(wire, allow_nan=False)) == wire
        assert list(wire) == list(type(observation).model_fields)
        # What OpenEnv sends takes a shorter way; it must be the same letters.
        short = observation.model_dump(exclude={"reward", "done"})
        again = type(observation).model_validate(wire)
        assert json.dumps(short) == json.dumps(again.model_dump(exclude={"done", "reward"}, by_alias=False))
        assert "reward" in observation.__dict__


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_cap": 0}, {"batch_cap": 513}, {"batch_cap": 1.5}, {"batch_cap": True}, {"batch_cap": math.nan}, {"kv_budget_fraction": 0.05},
        {"kv_budget_fraction": math.inf}, {"speculation_depth": 9}, {"quantization_tier": "int3"}, {"prefill_decode_split": 1},
        {"priority_routing": "yes"}, {"batchcap": 3},
    ],
)  # fmt: skip
def test_a_knob_out_of_range_is_refused_and_not_clamped(wrong):
    with pytest.raises(ValidationError):
        ServeAction(**wrong)


@pytest.mark.parametrize("wrong", [-1, 18, 2.5, True, "evict", None, math.nan])
def test_a_paging_action_out_of_range_is_refused(wrong):
    with pytest.raises(ValidationError):
        as_action("pagedkv", wrong)


def test_a_paging_action_has_a_number_and_a_name():
    assert as_action("pagedkv", "admit_free") == as_action("pagedkv", {"action": 8}) == PagingAction(action_id=8)


def test_a_knob_left_out_stays_as_it_is():
    environment = LLMServeEnvironment()
    environment.reset(seed=0)
    environment.step(ServeAction(batch_cap=32))
    assert environment.step(ServeAction()).batch_cap == pytest.approx(32, rel=1e-3)


def test_a_knob_that_cannot_be_actuated_is_said_to_be_refused():
    environment = LLMServeEnvironment()
    seen = environment.reset(seed=0)
    assert "refused" not in environment.step(ServeAction(prefill_decode_split=True)).metadata
    # A deployment of one replica masks the choice.
    split_on = 10 + 10 + 9 + 3 + 1
    assert len(seen.action_mask) == split_on + 3
    environment._batch.masks[0, split_on] = 0
    seen = environment.step(ServeAction(prefill_decode_split=True))
    assert "prefill_decode_split" in seen.metadata["refused"]
    assert "refused" not in environment.step(ServeAction(prefill_decode_split=False)).metadata


def test_an_impossible_paging_action_is_harmless_and_told():
    environment = PagedKVEnvironment()
    seen = environment.reset(seed=0)
    impossible = seen.action_mask.index(0)
    assert "illegal_action" in environment.step(PagingAction(action_id=impossible)).metadata


def test_the_state_echoes_the_episode_id_and_counts_from_zero():
    environment = PagedKVEnvironment()
    environment.reset(seed=3, episode_id="mine", task_id="medium", split="test")
    state = environment.state
    assert (state.episode_id, state.step_count, state.task_id, state.split, state.seed) == (
        "mine",
        0,
        "medium",
        "test",
        3,
    )
    assert state.digest == catalogue.task("medium").digest


def test_resets_without_a_seed_go_through_the_scenarios_and_ids_differ():
    environment = PagedKVEnvironment()
    states = [(environment.reset(), environment.state)[1] for _ in range(3)]
    assert [state.seed for state in states] == [0, 1, 2]
    assert len({state.episode_id for state in states}) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"task_id": "nope"}, {"task_id": "../../etc/passwd.toml"}, {"split": "nope"}, {"seed": -1}, {"seed": True}, {"index": 10**6},
        {"index": 0, "seed": 1}, {"episode_id": ""}, {"colour": "red"}, {"task_id": "easy"},
    ],
)  # fmt: skip
def test_a_wrong_reset_says_what_to_type(wrong):
    environment = LLMServeEnvironment()
    with pytest.raises(InferenceGymError):
        environment.reset(**wrong)
    assert environment.state.episode_id is None


def test_step_before_reset_and_after_close_raise():
    environment = PagedKVEnvironment()
    with pytest.raises(RuntimeError, match="reset"):
        environment.step(PagingAction(action_id=17))
    environment.reset()
    environment.close()
    with pytest.raises(RuntimeError, match="closed"):
        environment.step(PagingAction(action_id=17))
    with pytest.raises(RuntimeError, match="closed"):
        environment.reset()


def test_the_end_stays_the_end_and_only_whole_episodes_are_graded():
    environment = LLMServeEnvironment()
    seen = environment.reset(seed=1)
    with pytest.raises(ConfigError, match="whole episodes"):
        environment.grade()
    rewards = []
    while not seen.done:
        seen = environment.step(ServeAction(batch_cap=256))
        rewards.append(seen.reward)
    assert (seen.truncated, seen.terminated) == (True, False)
    assert len(rewards) == environment.state.steps == environment.state.step_count
    grade = environment.grade()
    assert seen.metadata["grade"] == grade
    assert 0.0 <= grade["score"] <= 1.0
    after = environment.step(ServeAction(batch_cap=1))
    assert (after.done, after.reward) == (True, 0.0)
    assert "reset" in after.metadata["message"]
    assert environment.grade() == grade
    assert environment.state.step_count == len(rewards)


def test_rewards_stay_in_the_declared_range_and_the_rubric_tells_their_terms():
    environment = PagedKVEnvironment()
    seen = environment.reset(seed=0, task_id="hard")
    rng = stream(2, "test")
    while not seen.done and environment.state.step_count < 3000:
        seen = environment.step(PagingAction(action_id=legal(rng, seen.action_mask)))
        assert -1.0 <= seen.reward <= 1.0
    scores = {name: rubric.last_score for name, rubric in environment.rubric.named_rubrics() if name}
    assert scores == seen.reward_terms
    assert environment.rubric.last_score == seen.reward


@pytest.mark.parametrize("family", list(ENVIRONMENTS))
def test_the_task_api_and_reset_by_index_agree(family):
    environment = ENVIRONMENTS[family]()
    assert environment.list_splits() == ["train", "validation", "test"]
    count = environment.num_tasks("test")
    assert count == len(environment.list_tasks("test")) == len(tasks.offered(family)) * tasks.SCENARIOS_LISTED
    spec = environment.get_task("test", 7)
    environment.reset(split="test", index=7)
    state = environment.state
    assert (state.task_id, state.seed, state.split) == (spec["task_id"], spec["seed"], "test")
    assert [one["index"] for one in environment.get_task_range("test", 2, 5)] == [2, 3, 4]
    with pytest.raises(IndexError):
        environment.get_task("test", count)
    with pytest.raises(UnknownNameError):
        environment.num_tasks("nope")


def test_tasks_that_need_a_trace_are_described_but_not_numbered():
    described = {one["id"]: one for one in tasks.described("llmserve")}
    assert described["azure_code"]["needs_trace"]
    assert "azure_code" not in tasks.offered("llmserve")
    assert described["static_workload"]["difficulty"] == "easy"


def test_two_sessions_do_not_touch_each_other():
    one, two, alone = PagedKVEnvironment(), PagedKVEnvironment(), PagedKVEnvironment()
    one.reset(seed=1)
    two.reset(seed=2, task_id="hard")
    alone.reset(seed=1)
    for _ in range(50):
        seen = one.step(PagingAction(action_id=8))
        two.step(PagingAction(action_id=17))
        assert seen.model_dump() == alone.step(PagingAction(action_id=8)).model_dump()


def test_the_page_offers_what_is_possible():
    environment = PagedKVEnvironment()
    seen = environment.reset(seed=0).model_dump()
    assert {"action_id": 17} in [action for _, action in environment.web_actions(seen)]
