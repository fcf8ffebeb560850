"""`inferencegym explain`: words, JSON and page; a tree that `evaluate` takes and that explains itself; errors before work."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from inferencegym.cli.main import app
from inferencegym.envs import catalogue
from inferencegym.ground.errors import ConfigError, UnknownNameError


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "short.toml"
    text = (catalogue.FOLDER / "easy.toml").read_text()
    path.write_text(text.replace('"easy"', '"short"').replace("horizon_ticks = 2000", "horizon_ticks = 200"))
    return str(path)


def run(*arguments):
    result = CliRunner().invoke(app, [str(part) for part in arguments])
    assert result.exit_code == 0, result.output + str(result.exception)
    return result


def test_a_rule_becomes_a_tree_that_can_be_evaluated_and_explained(short, tmp_path):
    tree, page = tmp_path / "tree.npz", tmp_path / "page.html"
    told = json.loads(
        run("explain", "lru", "--task", short, "--seeds", 2, "--tree", tree, "--leaves", 4, "--test", 2, "--workers", 1, "--report", page, "--json", "-").stdout
    )  # fmt: skip
    assert (told["task"], told["policy"], told["scenarios"]) == ("short", "lru", 2)
    assert told["tree"]["leaves"] <= 4
    assert {row["policy"] for row in told["compared"]} == {"lru", str(tree)}
    assert told["tree"]["text"].splitlines()[0] in page.read_text().replace("&gt;", ">").replace("&#x27;", "'")
    said = run("explain", tree, "--task", short, "--seeds", 1).stdout
    assert "first action that is allowed" in said
    report = tmp_path / "evaluated.html"
    run("evaluate", "--policy", f"{tree},lru", "--task", short, "--seeds", 2, "--workers", 1, "--report", report)
    assert report.read_text().count("<details>") == 1


def test_errors_come_before_the_work(short, tmp_path):
    for arguments, error in (
        (("lru", "--task", short, "--tree", tmp_path / "tree.txt"), ConfigError),
        (("lrru", "--task", short), UnknownNameError),
        (("lru", "--task", "nowhere"), UnknownNameError),
        (("clairvoyant", "--task", short), ConfigError),
    ):
        result = CliRunner().invoke(app, ["explain", *map(str, arguments)])
        assert isinstance(result.exception, error), result.output
