"""The script that tests policies where they were not trained: what it plays, what it holds them against, and the page it writes."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from inferencegym.decision.knobs import COLUMNS, OFFSETS
from inferencegym.decision.paging import ACTIONS, PagingSurface
from inferencegym.envs import catalogue
from inferencegym.envs.grade import load_anchors
from inferencegym.policies.trained import Notes, save

RUNS = Path(__file__).resolve().parent.parent.parent / "runs"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(RUNS))
    try:
        yield importlib.import_module("generalise")
    finally:
        sys.path.remove(str(RUNS))


def network(path, task, head, inputs, outputs, *, seed=0, validation=0.5):
    """A policy file with a network that nobody trained."""
    rng = np.random.default_rng(seed)
    arrays = {
        "mean": np.zeros(inputs, np.float32), "scale": np.ones(inputs, np.float32),
        "w0": rng.normal(size=(inputs, outputs)).astype(np.float32), "b0": np.zeros(outputs, np.float32),
    }  # fmt: skip
    found = catalogue.task(task)
    notes = Notes("network", found.surface.name, head, task, found.digest, "forks", seed, "", 1, activation="tanh", validation=validation)  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(path, notes, arrays)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Trainings of one paging task (two seeds) and one of LLMServe."""
    out = tmp_path_factory.mktemp("trained")
    width = len(PagingSurface().columns)
    network(out / "easy-0" / "policy.npz", "easy", "actions", width, len(ACTIONS), seed=1, validation=0.4)
    network(out / "easy-1" / "policy.npz", "easy", "actions", width, len(ACTIONS), seed=2, validation=0.6)
    network(out / "bursty_workload-0" / "policy.npz", "bursty_workload", "multidiscrete", len(COLUMNS), OFFSETS[-1])
    return out


def test_the_seed_that_is_best_on_validation_is_taken(script, folder):
    files = script.policies(folder)
    assert set(files) == {"easy", "bursty_workload"}
    assert Path(files["easy"]).parent.name == "easy-1"


def test_a_policy_for_another_version_of_its_task_is_left_out(script, tmp_path, capsys):
    path = network(tmp_path / "easy-0" / "policy.npz", "easy", "actions", len(PagingSurface().columns), len(ACTIONS))
    from inferencegym.policies.trained import read

    notes, arrays = read(path)
    from dataclasses import replace

    save(path, replace(notes, task_digest="0" * 64), arrays)
    assert script.policies(tmp_path) == {}
    assert "another version" in capsys.readouterr().err


def test_a_task_of_llmserve_goes_to_two_other_cards_and_a_trace_it_does_not_know(script):
    assert script.variants("bursty_workload") == (
        "bursty_workload@gpu=h200", "bursty_workload@gpu=a100-80g", "bursty_workload@fit=azure-conversation",
    )  # fmt: skip
    assert script.variants("azure_conversation_fit")[-1] == "azure_conversation_fit@fit=burstgpt"
    assert script.variants("hard") == ()
    assert script.place("bursty_workload@gpu=h200").file.deployment["gpu"] == "h200"


def test_the_run_ends_in_a_page_with_differences_from_the_best_static_of_where_it_plays(script, folder, tmp_path):
    script.main(
        ["--folder", str(folder), "--tasks", "easy", "--scenarios", "2", "--workers", "1", "--to", str(tmp_path)]
    )
    data = json.loads((tmp_path / "generalisation.json").read_text())
    rows = {(row["where"], row["delay"]): row for row in data["rows"]}
    assert set(rows) == {("easy", 0), ("medium", 0), ("hard", 0), ("easy", 1), ("easy", 2), ("easy", 3)}
    for where in ("easy", "hard"):
        stored = load_anchors(catalogue.task(where)).values["best-static"][:2]
        row = rows[where, 0]
        assert row["over_static"]["value"] == pytest.approx(np.mean(np.array(row["values"]) - stored), abs=1e-9)
    page = (tmp_path / "generalisation.md").read_text()
    assert "| trained on | easy | medium | hard |" in page
    assert "| easy | **" in page
    assert "1 to 3 decisions old (2 are a tick)" in page
    assert "GPU" not in page, "a paging task has no other card"
    path = tmp_path / "generalisation.json"
    assert script.kept(path, {"hard"}, 2) == data["rows"], "a later call for another task's policy leaves these"
    assert script.kept(path, {"easy"}, 2) == script.kept(path, {"hard"}, 3) == []
    path.write_text(path.read_text().replace(catalogue.task("easy").digest, "0" * 64))
    assert script.kept(path, {"hard"}, 2) == [], "nor is what was found on another version of the task"


def test_on_another_card_it_is_held_against_the_setting_that_its_operator_would_have_kept(script, folder):
    policy = script.policies(folder)["bursty_workload"]
    where = "bursty_workload@gpu=h200"
    jobs = [script.Job(who, "bursty_workload", where) for who in (policy, "best-static", "do-nothing")]
    found = script.measured(jobs, 2, 1)
    (row,) = script.figures(found, 2)
    assert row["static"]["value"] == pytest.approx(np.mean(found[jobs[1]]))
    assert row["over_nothing"]["value"] == pytest.approx(np.mean(np.array(found[jobs[0]]) - found[jobs[2]]))
    assert found[jobs[1]] != list(load_anchors(catalogue.task("bursty_workload")).values["best-static"][:2])
    assert any("| gpu h200 |" in line for line in script._variants([row]))
