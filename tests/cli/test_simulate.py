"""`inferencegym simulate`: the table, JSON, several settings side by side, and errors as one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from inferencegym.cli.compose import parse_value, variants
from inferencegym.cli.main import app, main
from inferencegym.engine.deployment import Deployment
from inferencegym.engine.settings import EngineSettings
from inferencegym.ground.errors import ConfigError

QUICK = ["simulate", "--duration", "20"]


def ask(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_json_has_every_combination_with_its_band(tmp_path: Path) -> None:
    said = json.loads(
        ask(
            *QUICK,
            "--json",
            "--set",
            "engine.max_num_seqs=4,64",
            "--set",
            "deployment.replicas=1,2",
            "--report",
            str(tmp_path / "r.html"),
        )
    )
    assert [run["label"] for run in said["runs"]] == [
        "max_num_seqs=4, replicas=1", "max_num_seqs=4, replicas=2", "max_num_seqs=64, replicas=1", "max_num_seqs=64, replicas=2",
    ]  # fmt: skip
    for run in said["runs"]:
        low, high = run["band"]["ttft_s p50"]
        assert low <= run["summary"]["ttft_s"]["p50"] <= high
        assert run["summary"]["outcomes"]["ok"] == said["workload"]["requests"]
    assert "max_num_seqs=64" in (tmp_path / "r.html").read_text()


def test_table_names_the_runs_and_the_source() -> None:
    said = ask(*QUICK, "--no-band", "--set", "engine.max_num_seqs=4,64")
    for word in ("max_num_seqs=64", "TTFT", "ITL", "generated from", "p99"):
        assert word in said


def test_a_file_of_ones_own_and_facts_of_ones_own(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,100,20\n2023-11-16 18:15:47.10,200,0\n2023-11-16 18:15:49,50,7\n"
    )
    said = json.loads(ask("simulate", "--trace", str(trace), "--json", "--no-band"))
    assert said["workload"]["requests"] == 2
    assert said["workload"]["left_out"] == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gpu", "h1000"], "h100"),
        (["--model", "gpt-9"], "known:"),
        (["--set", "engine.max_num_sequences=3"], "no such setting"),
        (["--set", "engine.max_num_seqs=many"], "is not int"),
        (["--set", "seqs=3"], "NAME=VALUE"),
        (["--trace", "no/such/file.csv"], "no/such/file.csv"),
        (["--rate", "-3"], "rate"),
        (["--model", "llama-3.1-70b", "--gpu", "rtx-4090"], "tensor_parallel"),
    ],
)
def test_mistakes_end_in_one_line_and_exit_code_one(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["inferencegym", *QUICK, *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert said.strip().count("\n") == 0


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (int | None, "unset", None),
        (int | None, "64", 64),
        (bool, "off", False),
        (tuple[float, ...], "0.8/0.6", (0.8, 0.6)),
        (float, "1e-3", 1e-3),
        (str, "fcfs", "fcfs"),
    ],
)
def test_values_are_typed(hint: object, text: str, value: object) -> None:
    assert parse_value("x", hint, text) == value


def test_every_setting_can_be_reached_and_no_other() -> None:
    found = variants(Deployment(), EngineSettings(), ["engine.acceptance=0.9/0.5,0.2", "deployment.tensor_parallel=2"])
    assert [v.settings.acceptance for v in found] == [(0.9, 0.5), (0.2,)]
    assert all(v.deployment.tensor_parallel == 2 for v in found)
    with pytest.raises(ConfigError, match="allowed"):
        variants(Deployment(), EngineSettings(), ["engine.colour=red"])
