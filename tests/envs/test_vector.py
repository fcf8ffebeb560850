"""Many episodes in one call are the same episodes as one by one, through every automatic reset."""

from __future__ import annotations

import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from inferencegym.decision.paging import NOTHING
from inferencegym.envs.encodings import EncodedAction
from inferencegym.envs.env import PlantEnv
from inferencegym.envs.registration import LLMSERVE, PAGEDKV
from inferencegym.envs.vector import PlantVectorEnv
from inferencegym.ground.errors import ConfigError, UnknownNameError
from tests.envs.toy import ToyTask


def same_as_single(vector, singles, choose, steps, seed=11):
    """Every row against a single environment, step for step; returns how many episodes ended on the way."""
    observations, infos = vector.reset(seed=seed)
    ended = 0
    masks = []
    for i, env in enumerate(singles):
        observation, info = env.reset(seed=seed + i)
        np.testing.assert_array_equal(observations[i], observation)
        assert infos["scenario"][i] == info["scenario"]
        np.testing.assert_array_equal(infos["action_mask"][i], info["action_mask"])
        masks.append(info["action_mask"])
    for t in range(steps):
        actions = np.array([choose(t, i, mask) for i, mask in enumerate(masks)])
        observations, rewards, terminated, truncated, infos = vector.step(actions)
        for i, env in enumerate(singles):
            observation, reward, stop, cut, info = env.step(actions[i])
            assert (rewards[i], terminated[i], truncated[i]) == (reward, stop, cut)
            for name, value in info["reward_terms"].items():
                assert infos["reward_terms"][name][i] == value
            if stop or cut:
                ended += 1
                np.testing.assert_array_equal(infos["final_obs"][i], observation)
                assert infos["_final_info"][i]
                assert infos["final_info"]["outcome"]["value"][i] == info["outcome"]["value"]
                np.testing.assert_array_equal(infos["final_info"]["action_mask"][i], info["action_mask"])
                observation, info = env.reset()
                assert infos["scenario"][i] == info["scenario"]
            else:
                assert "final_obs" not in infos or infos["final_obs"][i] is None
            np.testing.assert_array_equal(observations[i], observation)
            np.testing.assert_array_equal(infos["action_mask"][i], info["action_mask"])
            masks[i] = info["action_mask"]
    return ended


def random_legal(t, i, mask):
    return np.random.default_rng([t, i]).choice(np.flatnonzero(mask))


def test_rows_are_single_environments_on_the_toy():
    vector = PlantVectorEnv(5, ToyTask())
    assert same_as_single(vector, [PlantEnv(ToyTask()) for _ in range(5)], random_legal, 100) >= 10


def test_rows_are_single_environments_on_pagedkv_to_the_end():
    vector = gym.make_vec(PAGEDKV, num_envs=3, vectorization_mode="vector_entry_point", task="easy")
    singles = [gym.make(PAGEDKV, task="easy") for _ in range(3)]
    assert same_as_single(vector, singles, random_legal, singles[0].unwrapped.task.steps + 5) >= 3


def test_rows_are_single_environments_on_llmserve_to_the_end():
    vector = gym.make_vec(LLMSERVE, num_envs=2, vectorization_mode="vector_entry_point")
    singles = [EncodedAction(gym.make(LLMSERVE), "multidiscrete") for _ in range(2)]

    def wander(t, i, mask):
        return np.array([4 + (t // 9 + i) % 4, 9 - t % 2, t % 3, (t // 20) % 2, 0, i])

    assert same_as_single(vector, singles, wander, 122) == 2


@pytest.mark.parametrize("name", [PAGEDKV, LLMSERVE])
def test_conventions(name):
    vector = gym.make_vec(name, num_envs=4, vectorization_mode="vector_entry_point")
    assert vector.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    observations, infos = vector.reset(seed=0)
    assert observations in vector.observation_space
    assert infos["_scenario"].all()
    vector.action_space.seed(0)
    observations, rewards, terminated, truncated, infos = vector.step(vector.action_space.sample())
    assert observations in vector.observation_space
    assert (rewards.shape, terminated.dtype, truncated.dtype) == ((4,), np.bool_, np.bool_)
    assert infos["action_mask"].shape == (4, 18 if name == PAGEDKV else 36)
    np.testing.assert_array_equal(vector.unwrapped.action_masks(), infos["action_mask"])


def test_seeds_one_by_one_and_chosen_scenarios():
    vector = PlantVectorEnv(3, ToyTask())
    together = vector.reset(seed=4)[1]["scenario"]
    apart = vector.reset(seed=[6, 5, 4])[1]["scenario"]
    assert apart.tolist() == together.tolist()[::-1]
    assert vector.reset(options={"scenario": [7, 8, 9]})[1]["scenario"].tolist() == [7, 8, 9]
    assert vector.reset(options={"scenario": 2, "split": "test"})[1]["split"].tolist() == ["test"] * 3


def test_levers_are_taken_as_they_are():
    vector = gym.make_vec(LLMSERVE, num_envs=2, vectorization_mode="vector_entry_point")
    vector.reset(seed=0)
    levers = np.array([[48, 0.85, 3, 0, 0, 1], [64, 1.0, 0, 0, 0, 0]])
    observations = vector.step(levers)[0]
    single = gym.make(LLMSERVE)
    single.reset(seed=0)
    np.testing.assert_array_equal(single.step(levers[0])[0], observations[0])


@pytest.mark.parametrize(
    "actions",
    [np.zeros(2, int), np.full(3, 18), np.array([0, -1, 2]), np.zeros(3), np.full(3, np.nan), ["a", "b", "c"], None],
)
def test_wrong_actions_are_refused_and_change_nothing(actions):
    vector, clean = PlantVectorEnv(3, ToyTask()), PlantVectorEnv(3, ToyTask())
    vector.reset(seed=0)
    clean.reset(seed=0)
    with pytest.raises(ConfigError):
        vector.step(actions)
    for _ in range(3):
        np.testing.assert_array_equal(vector.step(np.full(3, NOTHING))[0], clean.step(np.full(3, NOTHING))[0])


def test_wrong_levers_and_indices_are_refused():
    vector = gym.make_vec(LLMSERVE, num_envs=1, vectorization_mode="vector_entry_point")
    vector.reset(seed=0)
    for bad in (
        np.array([[10, 0, 0, 0, 0, 0]]),
        np.array([[64, 0.0, 0, 0, 0, 0.0]]),
        np.full((1, 6), np.nan),
        np.zeros((1, 5), int),
    ):
        with pytest.raises(ConfigError):
            vector.step(bad)


def test_other_mistakes():
    with pytest.raises(ConfigError, match="call reset"):
        PlantVectorEnv(2, ToyTask()).step(np.zeros(2, int))
    with pytest.raises(ConfigError, match="num_envs"):
        PlantVectorEnv(0, ToyTask())
    with pytest.raises(UnknownNameError, match="multidiscrete"):
        gym.make_vec(LLMSERVE, num_envs=1, vectorization_mode="vector_entry_point", encoding="binary")
    with pytest.raises(ConfigError, match="2 seeds for 3 rows"):
        PlantVectorEnv(3, ToyTask()).reset(seed=[1, 2])
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(PlantVectorEnv(2, ToyTask()))
