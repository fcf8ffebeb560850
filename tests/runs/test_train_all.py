"""The script that trains everything: trains what is missing, keeps what is there, chooses on validation alone, and writes a page that says so."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

RUNS = Path(__file__).resolve().parent.parent.parent / "runs"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(RUNS))
    try:
        yield importlib.import_module("train_all")
    finally:
        sys.path.remove(str(RUNS))


@pytest.fixture(scope="module")
def folder(script, tmp_path_factory):
    """Two tiny trainings of tables on `easy`, as the command leaves them."""
    from inferencegym.learn.config import defaults
    from inferencegym.learn.train import train

    out = tmp_path_factory.mktemp("trainings")
    for seed in (0, 1):
        config = defaults("easy", "q-table").with_(
            seed=seed, steps=4000, rows=2, validation_scenarios=1, validate_every=2000
        )
        train(config, out / f"easy-{seed}")
    return out


def test_what_is_done_is_kept_and_the_rest_is_trained_or_resumed(script, folder, monkeypatch, tmp_path):
    asked = []

    def run(command, **_):
        asked.append(command)
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(script.subprocess, "run", run)
    script.train_all(["easy"], range(2), folder, 1.0)
    assert asked == []
    with pytest.raises(subprocess.CalledProcessError):
        script.train_all(["easy"], range(3), folder, 1.0)
    assert "--task easy" in " ".join(asked[0])
    assert "--seed 2" in " ".join(asked[0])
    assert "--resume" not in asked[0]
    broken = tmp_path / "easy-0"
    broken.mkdir()
    (broken / "checkpoint.npz").write_bytes((folder / "easy-0" / "checkpoint.npz").read_bytes())
    with pytest.raises(subprocess.CalledProcessError):
        script.train_all(["easy"], range(1), tmp_path, 1.0)
    assert "--resume" in asked[1]
    assert "--task" not in asked[1]


def test_a_training_of_another_version_of_the_task_does_not_count(script, folder):
    from inferencegym.envs.catalogue import task

    class Changed:
        name, digest = "easy", "another"

    assert script.trained(folder / "easy-0", task("easy")) is not None
    assert script.trained(folder / "easy-0", Changed()) is None


def test_the_best_on_validation_is_installed_and_reported_with_everything_beside_it(
    script, folder, tmp_path, monkeypatch
):
    weights = tmp_path / "weights" / "easy.npz"
    monkeypatch.setattr(script, "shipped", lambda name: weights)
    summaries = [json.loads((folder / f"easy-{seed}" / "summary.json").read_text()) for seed in (0, 1)]
    # Whatever they are on test scenarios, validation decides.
    for best, (seed, said) in zip((0.9, 0.1), enumerate(summaries), strict=True):
        (folder / f"easy-{seed}" / "summary.json").write_text(json.dumps(said | {"best": best}))
    script.report(["easy"], range(2), folder, 3, 1, install=True, results=tmp_path)
    assert weights.read_bytes() == (folder / "easy-0" / "policy.npz").read_bytes()
    told = json.loads((tmp_path / "learned.json").read_text())["tasks"]["easy"]
    assert told["chosen_seed"] == 0
    assert told["standing"]["seeds"] == 2
    assert [len(one["values"]) for one in told["trainings"].values()] == [3, 3]
    assert told["trainings"]["1"]["curve"][-1][0] == told["trainings"]["1"]["steps"]
    page = (tmp_path / "learned.md").read_text()
    assert "docs/environments/tasks/easy.md) | q-table, 2 |" in page
    assert "sieve" in page
    assert (tmp_path / "learned.svg").read_text().count("<polyline") == 2


def test_episodes_are_played_once_for_a_policy_and_again_for_another(script, folder, monkeypatch):
    from inferencegym.envs.catalogue import task

    of = task("easy")
    first = script.played(folder / "easy-1", of, 2, 1)
    monkeypatch.setattr(script, "evaluate", lambda *_, **__: pytest.fail("played again"))
    assert script.played(folder / "easy-1", of, 2, 1) == first
    policy = folder / "easy-1" / "policy.npz"
    before = policy.read_bytes()
    policy.write_bytes((folder / "easy-0" / "policy.npz").read_bytes())
    with pytest.raises(pytest.fail.Exception, match="played again"):
        script.played(folder / "easy-1", of, 2, 1)
    policy.write_bytes(before)
