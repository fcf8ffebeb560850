"""Stable-Baselines3's view of the environments: the same numbers, its conventions at the end of episodes, and learners that run."""

# ruff: noqa: E402 (without the extra `train` the file is skipped before its imports)
from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")

from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import DQN, PPO

from inferencegym.decision.paging import NOTHING
from inferencegym.envs.catalogue import task
from inferencegym.envs.episode import record
from inferencegym.envs.vector import PlantVectorEnv
from inferencegym.ground.errors import ConfigError
from inferencegym.learn.evaluate import evaluate
from inferencegym.learn.sb3 import LearnedPolicy, PlantVecEnv, vec_env
from tests.envs.toy import ADMIT, STEPS, ToyTask

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_steps_are_the_vector_environments():
    ours, theirs = PlantVectorEnv(4, ToyTask()), vec_env(ToyTask(), 4, seed=5)
    observations, _ = ours.reset(seed=5)
    np.testing.assert_array_equal(theirs.reset(), observations)
    rng = np.random.default_rng(0)
    ended = 0
    for _ in range(90):
        masks = ours.action_masks()
        actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])
        np.testing.assert_array_equal(theirs.env_method("action_masks"), masks.astype(bool))
        observations, rewards, terminated, truncated, found = ours.step(actions)
        seen, got, over, infos = theirs.step(actions)
        np.testing.assert_array_equal(seen, observations)
        np.testing.assert_array_equal(got, rewards.astype(np.float32))
        np.testing.assert_array_equal(over, terminated | truncated)
        for i, info in enumerate(infos):
            assert ("terminal_observation" in info) == over[i]
            if over[i]:
                ended += 1
                np.testing.assert_array_equal(info["terminal_observation"], found["final_obs"][i])
                assert info["TimeLimit.truncated"] == truncated[i]
    assert ended >= 6


def test_the_end_says_return_length_and_whether_time_ran_out():
    env = vec_env(ToyTask(), 2, seed=0)
    env.reset()
    total = np.zeros(2)
    for _ in range(STEPS):
        _, rewards, over, infos = env.step(np.full(2, NOTHING))
        total += rewards
    assert over.all()
    for i in range(2):
        assert infos[i]["episode"]["r"] == pytest.approx(total[i], rel=1e-5)
        assert infos[i]["episode"]["l"] == STEPS
        assert infos[i]["TimeLimit.truncated"]
        assert infos[i]["value"] == 0.0
    crashes = 0
    for _ in range(20 * STEPS):
        masks = env.action_masks()
        _, _, over, infos = env.step(np.where(masks[:, ADMIT], ADMIT, NOTHING))
        for i in np.flatnonzero(over):
            crashed = infos[i]["episode"]["l"] < STEPS
            assert infos[i]["TimeLimit.truncated"] != crashed, "a crash is no lack of time"
            crashes += crashed
    assert crashes


def test_what_learners_ask_for():
    env = vec_env(ToyTask(), 3)
    env.reset()
    assert is_masking_supported(env)
    assert get_action_masks(env).shape == (3, 18)
    assert env.get_attr("render_mode") == [None] * 3
    assert env.env_is_wrapped(object, [0]) == [False]
    assert not is_masking_supported(vec_env("bursty_workload", 1, encoding="box"))
    with pytest.raises(ConfigError, match="action_masks"):
        env.env_method("reset")
    with pytest.raises(ConfigError, match="share one environment"):
        env.set_attr("x", 1)


def test_masked_ppo_learns_the_toy():
    env = vec_env(ToyTask(), 8, seed=0)
    model = MaskablePPO(
        "MlpPolicy", env, n_steps=64, batch_size=128, n_epochs=4, learning_rate=2e-3, seed=0, device="cpu", gamma=0.95
    )
    model.learn(6000)
    learned = LearnedPolicy(model, ToyTask())
    from inferencegym.policies.simple import Random

    ours = [record(ToyTask(), learned, split="test", scenario=i).value for i in range(20)]
    chance = [record(ToyTask(), Random("paging"), split="test", scenario=i).value for i in range(20)]
    assert np.mean(ours) > np.mean(chance) + 0.15


def test_learners_run_on_the_shipped_tasks_and_are_evaluated(tmp_path):
    ppo = PPO(
        "MlpPolicy",
        vec_env("bursty_workload", 2, seed=0, scenarios=2),
        n_steps=16,
        batch_size=16,
        n_epochs=1,
        seed=0,
        device="cpu",
    )
    ppo.learn(64)
    found = evaluate([LearnedPolicy(ppo, task("bursty_workload"), name="ppo")], ["bursty_workload"], scenarios=1)
    assert found.policies("bursty_workload") == ("ppo",)
    again = LearnedPolicy(PPO.load(saved(ppo, tmp_path), device="cpu"), task("bursty_workload"), name="ppo")
    assert evaluate([again], ["bursty_workload"], scenarios=1).episodes == found.episodes
    masked = MaskablePPO(
        "MlpPolicy", vec_env("medium", 4, seed=0), n_steps=32, batch_size=64, n_epochs=1, seed=0, device="cpu"
    )
    masked.learn(128)
    dqn = DQN(
        "MlpPolicy",
        vec_env("bursty_workload", 2, encoding="delta", seed=0, scenarios=2),
        learning_starts=16,
        seed=0,
        device="cpu",
    )
    dqn.learn(40)
    LearnedPolicy(dqn, task("bursty_workload"), encoding="delta").start(0)


def saved(model, folder):
    model.save(folder / "model.zip")
    return folder / "model.zip"


def test_it_is_a_vec_env():
    assert isinstance(vec_env(ToyTask(), 1), PlantVecEnv)
