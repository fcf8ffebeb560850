"""A policy file acts as the model it came from: scores to 1e-5, the same choices under masks, on both surfaces and for every algorithm."""

# ruff: noqa: E402 (without the extra `train` the file is skipped before its imports)
from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sb3_contrib")

from sb3_contrib import QRDQN, MaskablePPO
from stable_baselines3 import DQN, PPO

import inferencegym
from inferencegym.decision.encodings import find_encoding
from inferencegym.envs.catalogue import task
from inferencegym.ground.errors import ConfigError
from inferencegym.learn.export import Normalised, export, network
from inferencegym.learn.sb3 import LearnedPolicy, vec_env
from inferencegym.policies.trained import load, read
from tests.policies.test_network import situations

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
NORMALISED = {"features_extractor_class": Normalised, "net_arch": [16, 16]}


def taught(kind, name, **given):
    """A model that has learned a little, so that no weight is where it began."""
    encoding = given.pop("encoding", "multidiscrete")
    env = vec_env(name, 2, seed=0, scenarios=2, encoding=encoding)
    model = kind("MlpPolicy", env, seed=0, device="cpu", **given)
    model.learn(64)
    if hasattr(model.policy, "action_net") and model.policy.features_extractor_class is Normalised:
        model.policy.features_extractor.see(model.rollout_buffer.observations)
    return model


def ppo(kind, name):
    return taught(kind, name, n_steps=16, batch_size=16, policy_kwargs=NORMALISED, learning_rate=0.01)


@pytest.mark.parametrize("kind", [PPO, MaskablePPO])
@pytest.mark.parametrize("name", ["medium", "static_workload"])
def test_a_policy_network_acts_the_same(tmp_path, kind, name):
    model, found = ppo(kind, name), task(name)
    path = export(model, tmp_path / "policy.npz", task=name)
    ours = load(path, found.surface.name)
    observations, masks = situations(found.surface.name, 300)
    with torch.no_grad():
        features = model.policy.extract_features(torch.as_tensor(observations), model.policy.pi_features_extractor)
        logits = model.policy.action_net(model.policy.mlp_extractor.forward_actor(features)).numpy()
    np.testing.assert_allclose(ours.scores_of(observations), logits, atol=1e-5)
    np.testing.assert_allclose([ours.scores(one).copy() for one in observations], logits, atol=1e-5)
    theirs = LearnedPolicy(model, found)
    if kind is PPO:  # It knows no masks: the same where everything is allowed.
        masks[:] = 1
    for observation, mask in zip(observations, masks, strict=True):
        assert ours.act(observation, mask) == theirs.act(observation, mask)


@pytest.mark.parametrize(("kind", "own"), [(DQN, {}), (QRDQN, {"policy_kwargs": {"n_quantiles": 7, "net_arch": [16]}})])
@pytest.mark.parametrize(
    ("name", "encoding"), [("medium", ""), ("static_workload", "preset"), ("static_workload", "delta")]
)
def test_values_of_actions_are_the_same(tmp_path, kind, own, name, encoding):
    given = {"encoding": encoding} if encoding else {}
    model = taught(kind, name, learning_starts=8, batch_size=8, learning_rate=0.01, **given, **own)
    ours = load(export(model, tmp_path / "policy.npz", task=name, encoding=encoding))
    observations, masks = situations(task(name).surface.name, 200)
    masks[:] = 1
    with torch.no_grad():
        seen = torch.as_tensor(observations)
        values = model.policy.quantile_net(seen).mean(dim=1) if kind is QRDQN else model.policy.q_net(seen)
    np.testing.assert_allclose(ours.scores_of(observations), values.numpy(), atol=1e-5)
    chosen, _ = model.predict(observations, deterministic=True)
    rows = ours.head.rows(ours.scores_of(observations), observations, masks)
    if name == "medium":
        np.testing.assert_array_equal(rows, chosen)
        return
    allowed = find_encoding(encoding).mask(masks, observations)[np.arange(200), chosen] == 1
    assert allowed.any()
    np.testing.assert_array_equal(rows[allowed], find_encoding(encoding).levers(chosen, observations)[allowed])


def test_statistics_of_observations_are_those_of_all_that_was_seen():
    env = vec_env("medium", 1)
    extractor = Normalised(env.observation_space)
    rng = np.random.default_rng(0)
    parts = [rng.normal(0.3, 0.2, size=(n, 3, 20)).astype(np.float32) for n in (5, 50, 7)]
    for part in parts:
        part[..., 4] = 0.7
        extractor.see(part)
    everything = np.concatenate([part.reshape(-1, 20) for part in parts]).astype(np.float64)
    np.testing.assert_allclose(extractor.mean, everything.mean(axis=0), atol=1e-6)
    deviation = everything.std(axis=0)
    np.testing.assert_allclose(extractor.scale, 1 / np.maximum(deviation, 0.05), rtol=1e-4)
    assert float(extractor.scale[4]) == pytest.approx(20), "a column that never changes is not blown up"


def test_a_file_says_where_it_comes_from(tmp_path):
    model = ppo(MaskablePPO, "medium")
    notes, arrays = read(export(model, tmp_path / "policy.npz", task="medium", seed=4))
    assert (notes.task, notes.task_digest, notes.algorithm) == ("medium", task("medium").digest, "MaskablePPO")
    assert (notes.surface, notes.head, notes.seed, notes.steps) == ("paging", "actions", 4, 64)
    assert arrays["w0"].shape == (20, 16)
    assert notes.version == inferencegym.__version__


def test_what_cannot_be_exported_says_so(tmp_path):
    env = vec_env("medium", 1)
    odd = PPO("MlpPolicy", env, policy_kwargs={"activation_fn": torch.nn.ELU}, device="cpu")
    with pytest.raises(ConfigError, match=r"cannot be exported: its layers are Linear, ELU"):
        network(odd)
