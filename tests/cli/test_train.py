"""`inferencegym train`: what it says on the way and at the end, that its files go straight into `evaluate`, and errors that help."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("sb3_contrib")

from inferencegym.cli import train as verb
from inferencegym.cli.main import app
from inferencegym.envs import catalogue
from inferencegym.ground.errors import ConfigError, InferenceGymError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "short.toml"
    text = (catalogue.FOLDER / "easy.toml").read_text()
    path.write_text(text.replace('"easy"', '"short"').replace("horizon_ticks = 2000", "horizon_ticks = 400"))
    return str(path)


@pytest.fixture
def config(short, tmp_path):
    """Settings of a tiny training."""
    path = tmp_path / "tiny.toml"
    path.write_text(
        f'task = "{short}"\nalgorithm = "maskable-ppo"\nsteps = 1600\nrows = 4\nvalidate_every = 800\nvalidation_scenarios = 2\n'
        "[settings]\nrollout_steps = 100\nbatch_size = 200\nepochs = 1\nhidden = [8]\n"
    )
    return path


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(part) for part in arguments])
    assert result.exit_code == code, result.output + str(result.exception)
    return result


def refused(*arguments):
    result = CliRunner().invoke(app, [str(part) for part in arguments])
    assert isinstance(result.exception, InferenceGymError), result.output
    return str(result.exception)


def test_it_says_how_it_goes_and_what_to_type_next(short, config, tmp_path):
    out = tmp_path / "mine"
    result = run("train", "--config", config, "--seed", 3, "--out", out, "--json", tmp_path / "result.json")
    assert "maskable-ppo on" in result.stderr
    assert result.stderr.count("validation") == 2
    assert "800 steps  validation" in result.stderr
    assert "new best" in result.stderr
    assert "best on validation" in result.stdout
    told = json.loads((tmp_path / "result.json").read_text())
    assert (told["steps"], told["config"]["seed"], told["ended"]) == (1600, 3, "all steps")
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("evaluate: ")]
    words = line.removeprefix("evaluate: inferencegym ").replace(",best-static", "").split()
    said = json.loads(run(*words, "--seeds", 1, "--workers", 1, "--json", "-").stdout)
    assert said["table"][0]["policy"] == str(out / "policy.npz")
    files = {entry.name for entry in out.iterdir()} - {"tensorboard"}
    assert files == {"checkpoint.npz", "config.toml", "curve.csv", "policy.npz", "summary.json"}


def test_quiet_json_and_reproduction_by_its_own_config(config, tmp_path):
    first = run("train", "--config", config, "--out", tmp_path / "a", "--quiet", "--json", "-")
    assert first.stderr == ""
    told = json.loads(first.stdout)
    run("train", "--config", tmp_path / "a" / "config.toml", "--out", tmp_path / "b", "--quiet")
    assert (tmp_path / "a" / "policy.npz").read_bytes() == (tmp_path / "b" / "policy.npz").read_bytes()
    assert told["config_digest"] == json.loads((tmp_path / "b" / "summary.json").read_text())["config_digest"]


def test_interrupted_and_resumed(config, tmp_path, monkeypatch):
    run("train", "--config", config, "--out", tmp_path / "whole", "--quiet")
    real, seen = verb._Screen.tell, []

    def interrupt(self, now):
        seen.append(now.update)
        real(self, now)
        if now.update == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(verb._Screen, "tell", interrupt)
    result = run("train", "--config", config, "--out", tmp_path / "cut", code=130)
    assert f"train --resume --out {tmp_path / 'cut'}" in result.stderr
    monkeypatch.undo()
    run("train", "--resume", "--out", tmp_path / "cut", "--quiet")
    for name in ("curve.csv", "policy.npz"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_a_time_limit_says_how_to_go_on(config, tmp_path):
    said = run("train", "--config", config, "--out", tmp_path / "x", "--minutes", 1e-9, "--quiet").stdout
    assert f"inferencegym train --resume --out {tmp_path / 'x'}" in said
    assert "ended by --minutes" in said


def test_options_go_before_the_file_and_the_defaults(short, config):
    found = verb.settings(config, {"steps": 5000, "seed": 9}, None, False)
    assert (found.steps, found.seed, found.rows, found.settings.hidden) == (5000, 9, 4, (8,))
    plain = verb.settings(None, {"task": "medium"}, None, False)
    assert plain.algorithm == "cma"
    assert verb.settings(None, {"task": "bursty_workload"}, None, False).algorithm == "forks"
    brief = verb.settings(None, {"task": "medium", "steps": plain.steps // 10}, None, False)
    assert brief.validate_every == plain.validate_every // 10
    assert verb.settings(None, {"task": "bursty_workload", "algorithm": "dqn"}, None, False).encoding == "preset"


def test_errors_say_what_to_type(short, config, tmp_path):
    assert "--task: is missing" in refused("train")
    assert "Did you mean 'medium'" in refused("train", "--task", "mediun", "--out", tmp_path / "x")
    assert "known: " in refused("train", "--task", "medium", "--algo", "sac", "--out", tmp_path / "x")
    assert "--minutes" in refused("train", "--task", "medium", "--minutes", 0, "--out", tmp_path / "x")
    assert "allowed: a TOML file" in refused("train", "--config", tmp_path / "none.toml")
    assert "steps: 0" in refused("train", "--task", "medium", "--steps", 0, "--out", tmp_path / "x")
    assert "holds no checkpoint" in refused("train", "--resume", "--out", tmp_path / "x")
    assert "--resume: says not which" in refused("train", "--resume")
    run("train", "--config", config, "--out", tmp_path / "done", "--quiet")
    assert "holds a training" in refused("train", "--config", config, "--out", tmp_path / "done", "--quiet")
    assert "trains maskable-ppo" in refused("train", "--resume", "--algo", "dqn", "--out", tmp_path / "done")
    assert "seed: 5, but the training to resume has 0" in refused(
        "train", "--resume", "--seed", 5, "--out", tmp_path / "done"
    )
    (tmp_path / "done" / "checkpoint.npz").write_bytes(b"nothing")
    assert "checkpoint: " in refused("train", "--resume", "--out", tmp_path / "done")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="--out"):
        verb.make_room("--out", tmp_path / "file" / "x")
