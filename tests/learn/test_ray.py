"""A Ray cluster of two workers on this machine does what one process does, to the last digit; RLlib trains both families and exports what it learned."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from shutil import copy

import numpy as np
import pytest

pytest.importorskip("ray", reason="needs the extra 'ray', in an environment of its own: make test-ray")

import ray
import torch
from ray.rllib.core.columns import Columns
from typer.testing import CliRunner

from inferencegym.cli.main import app
from inferencegym.envs import catalogue
from inferencegym.ground.errors import ConfigError, InferenceGymError
from inferencegym.learn import distributed, rllib
from inferencegym.learn.config import defaults
from inferencegym.learn.distributed import LOCAL, connected, share_out
from inferencegym.learn.evaluate import evaluate
from inferencegym.learn.sweep import grid, sweep, values_of
from inferencegym.policies.trained import load, policy_of, read

pytestmark = [
    pytest.mark.ray,
    # Ray and RLlib warn of what they will change in themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
WORKERS = 2


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with connected(LOCAL, WORKERS) as found:
        yield found


@pytest.fixture(scope="module")
def short_knobs(tmp_path_factory):
    """Eight windows of bursts."""
    path = tmp_path_factory.mktemp("tasks") / "brief.toml"
    text = (catalogue.FOLDER / "bursty_workload.toml").read_text()
    path.write_text(text.replace('name = "bursty_workload"', 'name = "brief"').replace("windows = 120", "windows = 8"))
    assert "windows = 8" in path.read_text()
    return str(path)


def small(task, **more):
    """A PPO of a few hundred decisions."""
    given = {"rows": 4, "validation_scenarios": 2, "rollout_steps": 50, "batch_size": 100, "epochs": 1, "hidden": (8,)}
    return defaults(task, "maskable-ppo").with_(steps=400, validate_every=200, **(given | more))


def test_the_cluster_has_two_workers_and_nothing_is_done_here(cluster):
    assert cluster.cluster_resources()["CPU"] == WORKERS

    def whoami(_):
        return os.getpid()

    found = dict(share_out(whoami, list(range(24)), ray=LOCAL))
    assert sorted(found) == list(range(24))
    assert os.getpid() not in found.values()


def test_an_evaluation_is_the_same_to_the_last_digit(short_task, tmp_path):
    policies = ["lru", "random", "do-nothing"]
    alone = evaluate(policies, [short_task], scenarios=3)
    shared = evaluate(policies, [short_task], scenarios=3, ray=LOCAL, record_to=tmp_path)
    assert shared.as_json() == alone.as_json()
    assert len(list(tmp_path.glob("*.parquet"))) == 9


def test_the_command_is_the_same_and_files_are_found_from_where_one_stands(short_task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copy(short_task, tmp_path / "mine.toml")

    def told(*more):
        result = CliRunner().invoke(app, ["evaluate", "--policy", "lru", "--task", "mine.toml", "--seeds", "2", "--json", "-", *more])  # fmt: skip
        assert result.exit_code == 0, result.output + str(result.exception)
        return json.loads(result.stdout)

    assert told("--ray", "local") == told("--workers", "1")


def test_a_sweep_of_networks_is_the_same_to_the_last_bit(short_task, tmp_path):
    changes = {"learning_rate": [1e-3, 1e-2]}
    alone = grid(small(short_task), tmp_path / "alone", seeds=2, changes=changes)
    shared = grid(small(short_task), tmp_path / "shared", seeds=2, changes=changes)
    results = sweep(shared, ray=LOCAL)
    for a, b, result in zip(alone, shared, sweep(alone), strict=True):
        assert (a.folder / "curve.csv").read_bytes() == (b.folder / "curve.csv").read_bytes()
        assert (a.folder / "policy.npz").read_bytes() == (b.folder / "policy.npz").read_bytes()
        assert result.best == results[shared.index(b)].best
        assert results[shared.index(b)].policy == b.folder / "policy.npz"


def test_what_a_sweep_learned_comes_back_with_its_result(short_task, tmp_path):
    runs = grid(small(short_task), tmp_path / "far", seeds=1)
    sweep(runs, ray=LOCAL)
    for name in ("config.toml", "curve.csv", "policy.npz", "summary.json"):
        (runs[0].folder / name).unlink()
    # The checkpoint is there: the training is over, and its files come back from the worker.
    sweep(runs, ray=LOCAL, resume=True)
    assert load(runs[0].folder / "policy.npz").surface == "paging"


def test_an_error_is_the_one_that_was_raised():
    with pytest.raises(ConfigError, match="'broken'; allowed: NAME=A,B") as found:
        dict(share_out(values_of, ["a=1", "broken"], ray=LOCAL))
    assert type(found.value) is ConfigError


def test_a_job_whose_worker_is_lost_is_done_again_and_not_for_ever(tmp_path):
    def once(name):
        mark = tmp_path / name
        if not mark.exists():
            mark.touch()
            os._exit(1)
        return name

    assert dict(share_out(once, ["a", "b"], ray=LOCAL)) == {0: "a", 1: "b"}

    def never(_):
        os._exit(1)

    with pytest.raises(InferenceGymError, match="a worker was lost, at one job 4 times"):
        dict(share_out(never, [0], ray=LOCAL))


def test_a_worker_of_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "_versions", lambda: {"inferencegym": "0.0.0", "numpy": np.__version__})
    with pytest.raises(ConfigError, match=r"a worker has inferencegym .*, but 0\.0\.0 is here"):
        dict(share_out(values_of, ["a=1"], ray=LOCAL))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere"])
def test_an_address_where_nobody_answers_is_said_at_once(monkeypatch, address):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ConfigError, match=f"no cluster answers at '{address}'"), connected(address, 1):
        pass


@pytest.mark.parametrize("family", ["paging", "knobs"])
def test_rllib_trains_and_its_network_acts_the_same_from_a_file(family, short_task, short_knobs, tmp_path, monkeypatch):
    task = short_task if family == "paging" else short_knobs
    config = small(task, hidden=(16, 16))
    kept, modules, said = rllib.exported, [], []

    def exported(module, *rest):
        modules.append((module, kept(module, *rest)))
        return modules[-1][1]

    monkeypatch.setattr(rllib, "exported", exported)
    path, look = rllib.train(config, tmp_path / "mine", runners=WORKERS, ray=LOCAL, tell=said.append)
    assert [one.steps for one in said] == [200, 400]
    assert look == said[-1]
    notes, arrays = read(path)
    assert (notes.algorithm, notes.validation, notes.head) == ("rllib-ppo", look.best, config.encoding)
    assert all(np.isfinite(array).all() for array in arrays.values())

    module, (last, weights) = modules[-1]
    policy = policy_of(last, weights)
    chance = np.random.default_rng(0)
    seen = chance.random((200, len(weights["mean"]))).astype(np.float32)
    choices = sum(policy.head.sizes)
    masks = (chance.random((200, choices)) < 0.7).astype(np.int8)
    # Something is allowed in every part.
    masks[:, np.cumsum([0, *policy.head.sizes[:-1]])] = 1
    with torch.no_grad():
        batch = {Columns.OBS: torch.as_tensor(np.concatenate([seen, masks.astype(np.float32)], axis=1))}
        logits = module.forward_inference(batch)[Columns.ACTION_DIST_INPUTS].numpy()
    np.testing.assert_allclose(policy.scores_of(seen)[masks == 1], logits[masks == 1], rtol=0, atol=1e-5)
    assert (logits[masks == 0] < -1e8).all()
    starts = np.cumsum([0, *policy.head.sizes])
    theirs = np.stack([logits[:, a:b].argmax(axis=1) for a, b in pairwise(starts)], axis=1)
    taken = policy.head.rows(policy.scores_of(seen), seen, masks)
    if family == "paging":
        assert np.array_equal(taken, theirs[:, 0])
    else:
        assert np.array_equal(policy.head._encoding.indices(taken), theirs)


def test_rllib_is_given_the_mask_that_the_environment_has(short_task, short_knobs):
    for task in (short_task, short_knobs):
        config = small(task)
        given = rllib.algorithm(config, runners=0).env_config
        env = rllib.MaskedEnv(given)
        seen, _ = env.reset(seed=1)
        inner = env._env
        inner.reset(seed=1)
        mask = inner.get_wrapper_attr("action_masks")()
        assert env.observation_space.contains(seen)
        assert np.array_equal(seen[-len(mask) :], mask.astype(np.float32))
        assert rllib.MaskedEnv(given | {"masked": False}).reset(seed=1)[0][-len(mask) :].all()


def test_rllib_refuses_what_it_cannot_do(short_task, tmp_path):
    with pytest.raises(ConfigError, match="maskable-ppo, ppo"):
        rllib.algorithm(defaults(short_task, "q-table"), runners=0)
    with pytest.raises(ConfigError, match="runners: 3"):
        rllib.algorithm(small(short_task), runners=3)
    with pytest.raises(ConfigError, match="random weights"):
        rllib.algorithm(small(short_task, start="file:x.npz"), runners=0)
    (tmp_path / "policy.npz").touch()
    with pytest.raises(ConfigError, match="holds a training"):
        rllib.train(small(short_task), tmp_path, runners=0)
