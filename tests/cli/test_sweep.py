"""`inferencegym train --seeds --sweep`: a table with a line for each setting, files for each training, and errors that help."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from inferencegym.cli.main import app
from inferencegym.envs import catalogue
from inferencegym.ground.errors import InferenceGymError


@pytest.fixture
def config(tmp_path):
    """A small training that needs NumPy alone."""
    short = tmp_path / "short.toml"
    text = (catalogue.FOLDER / "easy.toml").read_text()
    short.write_text(text.replace('"easy"', '"short"').replace("horizon_ticks = 2000", "horizon_ticks = 200"))
    path = tmp_path / "tiny.toml"
    path.write_text(
        f'task = "{short}"\nalgorithm = "q-table"\nsteps = 800\nrows = 4\nvalidate_every = 400\nvalidation_scenarios = 2\n'
    )
    return path


def run(*arguments):
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


def test_a_sweep_says_what_each_setting_came_to(config, tmp_path):
    out = tmp_path / "grid"
    command = ("--config", config, "--seeds", 2, "--sweep", "discount=0.9,0.99", "--out", out, "--workers", 1)
    result = run(*command)
    assert result.exit_code == 0, result.output + str(result.exception)
    assert "4 trainings of 800 steps, 1 at once" in result.stderr
    assert "4/4" in result.stderr
    for word in ("discount", "0.99", "worst", "evaluate: inferencegym evaluate --policy"):
        assert word in result.stdout
    told = json.loads((out / "sweep.json").read_text())
    assert [len(told["points"]), len(told["runs"])] == [2, 4]
    assert {run["config"]["seed"] for run in told["runs"]} == {0, 1}
    for discount in ("0.9", "0.99"):
        for seed in (0, 1):
            assert (out / f"discount={discount}-seed={seed}" / "policy.npz").is_file()
    again = run(*command, "--resume", "--quiet", "--json", "-")
    assert again.stderr == ""
    assert json.loads(again.stdout)["points"] == told["points"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--sweep", "discount"), "NAME=A,B"),
        (("--sweep", "colour=1,2"), "setting to sweep"),
        (("--sweep", "rows=2,4", "--sweep", "rows=8"), "given twice"),
    ],
)
def test_a_wrong_sweep_is_refused_before_anything_is_trained(config, tmp_path, given, said):
    result = run("--config", config, "--out", tmp_path / "none", *given)
    assert isinstance(result.exception, InferenceGymError), result.output
    assert said in str(result.exception)
    assert not list(tmp_path.glob("none/*"))
