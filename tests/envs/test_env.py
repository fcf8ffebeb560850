"""The environment as Gymnasium's users meet it: its conventions, its errors, its pictures, pickling, and the same numbers every time."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from inferencegym.decision.knobs import LEVERS, Knobs
from inferencegym.decision.paging import NOTHING
from inferencegym.envs.catalogue import task
from inferencegym.envs.env import PlantEnv
from inferencegym.envs.registration import LLMSERVE, PAGEDKV
from inferencegym.ground.errors import ConfigError, UnknownNameError
from tests.envs.toy import ADMIT, STEPS, ToyTask

STEADY = np.array([64.0, 1.0, 0.0, 0.0, 0.0, 0.0])
BOTH = (PAGEDKV, LLMSERVE)


def play(env, actions, **reset):
    """Observations, rewards and the last info of an episode."""
    observation, info = env.reset(**reset)
    seen, rewards = [observation], []
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        seen.append(observation)
        rewards.append(reward)
        if terminated or truncated:
            break
    return np.array(seen), rewards, info


def legal(env, n, seed=0):
    """N random legal actions of an environment that is already reset, one by one."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        if env.unwrapped.task.surface.name == "paging":
            yield int(rng.choice(np.flatnonzero(env.unwrapped.action_masks())))
        else:
            yield STEADY * [rng.choice([0.5, 1, 2]), 1, 1, 1, 1, 1]


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("mode", [None, "ansi", "rgb_array"])
def test_gymnasiums_own_check(name, mode):
    with warnings.catch_warnings():
        # A KV share runs from 0.1 to 1; the recommendation is for policies with Gaussian heads, which take the encoding `box`.
        warnings.filterwarnings("ignore", message=".*we recommend using a symmetric and normalized space.*")
        check_env(gym.make(name, render_mode=mode).unwrapped)


@pytest.mark.parametrize("name", BOTH)
def test_a_seed_fixes_the_scenarios_and_a_scenario_fixes_the_episode(name):
    env = gym.make(name)
    first = [env.reset(seed=7)[1]["scenario"], env.reset()[1]["scenario"], env.reset()[1]["scenario"]]
    again = [env.reset(seed=7)[1]["scenario"], env.reset()[1]["scenario"], env.reset()[1]["scenario"]]
    assert first == again
    assert len(set(first)) == 3
    env.reset(options={"scenario": 3, "split": "test"})
    actions = list(legal(env, 1)) * 20
    one = play(env, actions, options={"scenario": 3, "split": "test"})
    two = play(env, actions, seed=99, options={"scenario": 3, "split": "test"})
    other = play(env, actions, options={"scenario": 4, "split": "test"})
    np.testing.assert_array_equal(one[0], two[0])
    assert one[1] == two[1]
    assert one[1] != other[1] or (one[0] != other[0]).any()


def test_the_info_of_reset_names_the_episode():
    env = gym.make(PAGEDKV, task="easy", split="validation")
    _, info = env.reset(seed=0)
    assert (info["split"], info["task"], info["digest"]) == ("validation", "easy", env.unwrapped.task.digest)
    assert info["action_mask"].dtype == np.int8
    assert info["action_mask"].shape == (18,)


def test_scenarios_come_from_as_many_as_were_asked_for():
    env = PlantEnv(ToyTask(), scenarios=3)
    drawn = {env.reset(seed=seed)[1]["scenario"] for seed in range(40)}
    assert drawn == {0, 1, 2}


def test_the_end_is_a_crash_or_the_horizon_and_says_what_came_of_it():
    env = PlantEnv(ToyTask())
    _, rewards, info = play(env, [NOTHING] * 100, seed=0)
    assert len(rewards) == STEPS
    assert not {"outcome", "facts"} & set(env.reset()[1])
    assert info["outcome"]["value"] == 0.0
    assert info["facts"]["step"] == STEPS
    env.reset(seed=0)
    crashed = False
    for _ in range(STEPS):
        _, reward, terminated, truncated, info = env.step(ADMIT if env.action_masks()[ADMIT] else NOTHING)
        assert sum(info["reward_terms"].values()) == pytest.approx(reward)
        if terminated:
            crashed = True
            assert not truncated
            break
    assert crashed, "admitting whoever comes fills the house"


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        (PAGEDKV, -1), (PAGEDKV, 18), (PAGEDKV, 2.5), (PAGEDKV, float("nan")), (PAGEDKV, "sleep"), (PAGEDKV, None), (PAGEDKV, [1, 2]),
        (LLMSERVE, np.full(6, np.nan)), (LLMSERVE, STEADY[:5]), (LLMSERVE, {"batch_cap": 0}), (LLMSERVE, {"batch_cap": float("nan")}),
        (LLMSERVE, {"kv_budget_fraction": 0.05}), (LLMSERVE, {"quantization_tier": "INT3"}), (LLMSERVE, {"speed": 11}),
        (LLMSERVE, np.array([64.5, 1, 0, 0, 0, 0])), (LLMSERVE, np.array([64, 1, 9, 0, 0, 0])),
    ],
)  # fmt: skip
def test_a_wrong_action_is_one_clear_error_and_changes_nothing(name, bad):
    env = gym.make(name, disable_env_checker=True)
    env.reset(seed=1)
    before = pickle.dumps(env.unwrapped.branch(1).observations), env.unwrapped.steps_taken
    with pytest.raises(ConfigError) as error:
        env.step(bad)
    assert error.value.allowed, "the error says what is allowed"
    assert (pickle.dumps(env.unwrapped.branch(1).observations), env.unwrapped.steps_taken) == before
    clean = gym.make(name, disable_env_checker=True)
    clean.reset(seed=1)
    good = NOTHING if name == PAGEDKV else STEADY
    np.testing.assert_array_equal(env.step(good)[0], clean.step(good)[0])


@pytest.mark.parametrize("name", BOTH)
def test_out_of_order_calls_are_refused(name):
    env = gym.make(name, disable_env_checker=True)
    with pytest.raises(ConfigError, match=r"call reset\(\) first"):
        env.step(NOTHING if name == PAGEDKV else STEADY)
    with pytest.raises(ConfigError, match=r"call reset\(\) first"):
        env.unwrapped.action_masks()
    over = PlantEnv(ToyTask())
    play(over, [NOTHING] * STEPS, seed=0)
    with pytest.raises(ConfigError, match="the episode has ended"):
        over.step(NOTHING)
    over.reset()
    over.step(NOTHING)


def test_wrong_arguments_say_what_is_known():
    with pytest.raises(UnknownNameError, match="medium"):
        gym.make(PAGEDKV, task="meduim")
    with pytest.raises(ConfigError, match="is a task of"):
        gym.make(PAGEDKV, task="bursty_workload")
    with pytest.raises(UnknownNameError, match="validation"):
        gym.make(PAGEDKV, split="tests")
    with pytest.raises(UnknownNameError, match="rgb_array"):
        PlantEnv(ToyTask(), render_mode="human")
    env = PlantEnv(ToyTask())
    with pytest.raises(ConfigError, match="scenario, split"):
        env.reset(options={"seed": 3})
    with pytest.raises(ConfigError, match="no whole number"):
        env.reset(options={"scenario": 1.5})
    with pytest.raises(ConfigError, match="out of range"):
        env.reset(options={"scenario": -1})


@pytest.mark.parametrize("name", BOTH)
def test_what_is_handed_out_belongs_to_the_caller(name):
    env = gym.make(name)
    kept, info = env.reset(seed=0)
    copied, mask = kept.copy(), info["action_mask"].copy()
    kept[:] = -1
    info["action_mask"][:] = 9
    for action in legal(env, 3):
        observation, *_, info = env.step(action)
        assert observation is not kept
        assert (info["action_mask"] <= 1).all()
    again, info = env.reset(seed=0)
    np.testing.assert_array_equal(again, copied)
    np.testing.assert_array_equal(info["action_mask"], mask)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("how", [lambda env: pickle.loads(pickle.dumps(env)), copy.deepcopy])
def test_an_environment_is_pickled_in_the_middle_and_goes_on_as_if_nothing_had_been(name, how):
    env = gym.make(name)
    env.reset(seed=3)
    for action in legal(env, 15):
        env.step(action)
    twin = how(env)
    for action in legal(env, 15, seed=1):
        ours, theirs = env.step(action), twin.step(action)
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert ours[1:4] == theirs[1:4]
    assert env.reset()[1]["scenario"] == twin.reset()[1]["scenario"], "the chance that draws scenarios came along"


def test_a_pickle_remembers_that_the_episode_had_ended():
    env = PlantEnv(ToyTask())
    play(env, [NOTHING] * STEPS, seed=0)
    twin = pickle.loads(pickle.dumps(env))
    with pytest.raises(ConfigError, match="has ended"):
        twin.step(NOTHING)


def test_an_environment_never_reset_can_be_pickled():
    env = pickle.loads(pickle.dumps(gym.make(PAGEDKV)))
    assert env.reset(seed=0)[1]["task"] == "medium"


def test_a_shipped_task_given_as_an_object_is_pickled_as_its_name():
    env = PlantEnv(task("bursty_workload"))
    env.reset(seed=0)
    env.step(STEADY)
    pickled = pickle.dumps(env)
    assert len(pickled) < 10_000, "no machine, no table of step times, and no address goes along"
    np.testing.assert_array_equal(pickle.loads(pickled).step(STEADY)[0], env.step(STEADY)[0])


def test_a_spec_makes_the_same_environment():
    env = gym.make(PAGEDKV, task="easy", split="validation")
    twin = env.spec.make()
    other = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    for same in (twin, other):
        a, b = env.reset(seed=1), same.reset(seed=1)
        np.testing.assert_array_equal(a[0], b[0])
        assert a[1]["scenario"] == b[1]["scenario"]
        assert b[1]["split"] == "validation"


def test_the_name_alone_is_enough_to_make_one():
    code = (
        "import gymnasium as gym; env = gym.make('inferencegym.envs:inferencegym/PagedKV-v0', task='easy');"
        "print(env.reset(seed=5)[1]['scenario'])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed) == gym.make(PAGEDKV, task="easy").reset(seed=5)[1]["scenario"]


def test_a_branch_goes_into_the_same_future_and_leaves_the_episode_alone():
    env = gym.make(PAGEDKV)
    env.reset(seed=0)
    for action in legal(env, 30):
        env.step(action)
    twin = env.unwrapped.branch(2)
    for _ in range(5):
        twin.actions[:] = NOTHING
        twin.step()
    for _ in range(5):
        observation, *_ = env.step(NOTHING)
    np.testing.assert_array_equal(twin.observations[1], observation)


def test_text_shows_every_column_in_its_unit():
    env = gym.make(LLMSERVE, render_mode="ansi")
    env.reset(seed=0)
    env.step(Knobs(batch_cap=32))
    shown = env.render()
    for column in env.unwrapped.task.surface.columns:
        assert column.name in shown
    assert "step 1 of 120" in shown
    assert "batch_cap 32" in shown
    assert "throughput" in shown


@pytest.mark.parametrize("name", BOTH)
def test_pictures_change_with_the_episode(name):
    env = gym.make(name, render_mode="rgb_array")
    env.reset(seed=0)
    before = env.render()
    for action in legal(env, 40):
        env.step(action)
    after = env.render()
    assert before.shape == after.shape
    assert after.dtype == np.uint8
    assert (before != after).mean() > 0.002
    twin = pickle.loads(pickle.dumps(env))
    np.testing.assert_array_equal(twin.render(), after)


def test_a_dict_sample_and_levers_and_knobs_are_one_command():
    env = gym.make(LLMSERVE)
    seen = []
    for command in (
        Knobs(32, 0.5, 2, "INT8", False, True),
        np.array([32, 0.5, 2, 1, 0, 1.0]),
        dict(zip(LEVERS, (32, np.array([0.5]), 2, 1, 0, 1), strict=True)),
    ):
        env.reset(seed=0)
        seen.append(env.step(command)[0])
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0], seen[2])
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(5):
        env.step(env.action_space.sample())
