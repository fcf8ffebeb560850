"""`inferencegym traces`: tables for people, JSON for programs, one line and exit code 1 where something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from inferencegym.cli.traces import app
from inferencegym.workload import Workload, generate, names, write

RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setenv("INFERENCEGYM_TRACE_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def said(*words: str) -> str:
    result = RUNNER.invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_list_shows_descriptions_files_and_originals(tmp_path):
    write(generate("azure-code", seed=1, requests=30), tmp_path / "mine.parquet")
    found = json.loads(said("list", "--json"))
    assert [one["name"] for one in found["descriptions"]] == list(names())
    assert [(one["name"], one["requests"]) for one in found["files"]] == [("mine", 30)]
    assert "BurstGPT_1" in {one["name"] for one in found["originals"]}
    table = said("list")
    assert "azure-conversation" in table
    assert "mine" in table


def test_describe_shows_a_description_and_a_file(tmp_path):
    write(generate("mooncake-conversation", seed=1, requests=300), tmp_path / "mine.parquet")
    assert json.loads(said("describe", "mine", "--json"))["prefixes"]["block_tokens"] == 512
    assert "endless prefix cache" in said("describe", "mine")
    assert json.loads(said("describe", "azure-code", "--duration", "600", "--json"))["duration_s"] < 600


def test_describe_takes_any_table(tmp_path):
    (tmp_path / "any.csv").write_text("when,in,out\n1000,10,20\n0,30,40\n")
    columns = ("--column", "arrival_s=when:ms", "--column", "prompt_tokens=in", "--column", "output_tokens=out")
    found = json.loads(said("describe", str(tmp_path / "any.csv"), *columns, "--sort", "--json"))
    assert (found["requests"], found["duration_s"]) == (2, 1.0)


def test_an_empty_workload_can_be_described(tmp_path):
    write(Workload.of(arrival_s=[], prompt_tokens=[], output_tokens=[]), tmp_path / "none.parquet")
    assert "0 requests" in said("describe", "none")


def test_fit_writes_a_description_that_generates(tmp_path):
    write(generate("azure-conversation", seed=1, requests=2_000), tmp_path / "mine.parquet")
    out = tmp_path / "fit.json"
    assert "Kolmogorov-Smirnov" in said("fit", "mine", "--out", str(out), "--name", "ours")
    assert generate(out, requests=100).name == "ours"
    assert "generated from the description 'ours'" in said("describe", str(out), "--duration", "60")
    assert json.loads(said("fit", "mine", "--out", str(out), "--json"))["distances"]["ks_prompt"] < 0.1


@pytest.mark.parametrize(
    ("words", "telling"),
    [
        (("describe", "nothing-like-it"), "known:"),
        (("fetch", "BurstGPT_9"), "Did you mean 'burstgpt_"),
        (("fit", "azure-code", "--out", "x.json"), "is a description"),
        (("describe", "cut.csv"), "row 1"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_1(words, telling, tmp_path):
    (tmp_path / "cut.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,1")
    command = [sys.executable, "-m", "inferencegym", "traces", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ))
    assert done.returncode == 1
    assert done.stdout == ""
    assert telling in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
