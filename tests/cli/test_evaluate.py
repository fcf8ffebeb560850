"""`inferencegym evaluate` and `replay`: tables, files, and exit codes a script can rely on."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from inferencegym.cli.evaluate import chosen_policies, chosen_tasks
from inferencegym.cli.main import app
from inferencegym.envs import catalogue
from inferencegym.envs.episode import Episode
from inferencegym.ground.errors import ConfigError


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "short.toml"
    text = (catalogue.FOLDER / "easy.toml").read_text()
    path.write_text(text.replace('"easy"', '"short"').replace("horizon_ticks = 2000", "horizon_ticks = 400"))
    return str(path)


def run(*arguments, code=0):
    result = CliRunner().invoke(app, [str(part) for part in arguments])
    assert result.exit_code == code, result.output
    return result.stdout


def test_a_table_json_a_page_and_records(short, tmp_path):
    said = run(
        "evaluate", "--policy", "lru,random,fixed:admit_free", "--task", short, "--seeds", 2, "--workers", 1, "--json", tmp_path / "deep" / "out.json",
        "--report", tmp_path / "out.html", "--record", tmp_path / "records",
    )  # fmt: skip
    for word in ("short: 2 test scenarios", "lru", "random", "fixed:admit_free", "goodput", "latency"):
        assert word in said
    data = json.loads((tmp_path / "deep" / "out.json").read_text())
    assert len(data["episodes"]) == 6
    assert "<svg" in (tmp_path / "out.html").read_text()
    assert len(list((tmp_path / "records").iterdir())) == 6


def test_json_alone_on_the_screen(short):
    data = json.loads(
        run("evaluate", "--policy", "random", "--task", short, "--seeds", 1, "--workers", 1, "--json", "-")
    )
    assert data["table"][0]["policy"] == "random"


def test_a_record_is_shown_verified_and_found_out(short, tmp_path):
    run("evaluate", "--policy", "lru", "--task", short, "--seeds", 1, "--workers", 1, "--record", tmp_path)
    (file,) = tmp_path.iterdir()
    said = run("replay", file)
    assert "lru" in said
    assert "not verified" in said
    assert "genuine" in run("replay", file, "--verify", "--task", short)
    assert "give the task it was recorded on" in run("replay", file, "--verify", code=1)
    episode = Episode.load(file)
    forged = episode.observations.copy()
    forged[7, 0] += 0.1
    bad = replace(episode, observations=forged).save(tmp_path / "forged.npz")
    assert "step 7: gpu_utilization_pct" in run("replay", bad, "--verify", "--task", short, code=1)
    assert "genuine" not in run("replay", bad, "--verify", "--task", short, code=1)


def test_a_shipped_task_is_verified_by_its_name(tmp_path):
    run("evaluate", "--policy", "do-nothing", "--task", "easy", "--seeds", 1, "--workers", 1, "--record", tmp_path)
    (file,) = tmp_path.iterdir()
    assert "genuine" in run("replay", file, "--verify")


def test_policies_in_a_list_keep_the_commas_of_fixed_knobs():
    assert chosen_policies("lru, random") == ["lru", "random"]
    assert chosen_policies("aimd,fixed:batch_cap=64,speculation_depth=2,random") == [
        "aimd",
        "fixed:batch_cap=64,speculation_depth=2",
        "random",
    ]
    assert chosen_policies("fixed:batch_cap=1,fixed:batch_cap=2") == ["fixed:batch_cap=1", "fixed:batch_cap=2"]
    with pytest.raises(ConfigError):
        chosen_policies(" , ")


def test_families_and_all_stand_for_their_tasks():
    assert chosen_tasks("pagedkv") == (["easy", "medium", "hard"], {})
    names, skipped = chosen_tasks("all")
    assert {"easy", "bursty_workload"} <= set(names)
    assert set(names) | set(skipped) == set(catalogue.task_names())
    assert chosen_tasks("easy,easy")[0] == ["easy"]


@pytest.mark.parametrize("option", ["--json", "--report", "--record"])
def test_where_nothing_can_be_written_nothing_is_played(short, tmp_path, option):
    (tmp_path / "file").write_text("in the way")
    result = CliRunner().invoke(
        app, ["evaluate", "--policy", "lru", "--task", short, option, str(tmp_path / "file" / "x" / "y")]
    )
    assert isinstance(result.exception, ConfigError)
    assert result.exception.field == option


def test_the_parts_that_are_shown_after_a_replay_are_those_that_came_out(short, tmp_path):
    run("evaluate", "--policy", "lru", "--task", short, "--seeds", 1, "--workers", 1, "--record", tmp_path)
    (file,) = tmp_path.iterdir()
    episode = Episode.load(file)
    boasting = replace(episode, parts={"goodput": 9.0}).save(tmp_path / "boasting.npz")
    came = next(
        line for line in run("replay", boasting, "--verify", "--task", short).split("\n") if line.startswith("value   ")
    )
    assert f"goodput {episode.parts['goodput']:+.4f}" in came
    assert "9.0" not in came
