"""The command's front door: quick, and every verb behind it says the same of itself as the front page does."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

import inferencegym
from inferencegym.cli.main import VERBS, Verb, app


def test_version_and_help_import_no_engine():
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from inferencegym.cli.main import app\n"
        "print(CliRunner().invoke(app, ['--version']).output.strip(), CliRunner().invoke(app, ['--help']).exit_code)\n"
        "print(*sorted({'numpy', 'numba', 'gymnasium', 'pyarrow', 'torch'} & set(sys.modules)))\n"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    assert printed[0] == f"{inferencegym.__version__} 0"
    assert printed[1] == ""


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_says_of_itself_what_the_front_page_says(name):
    assert Verb(name).real.help.split("\n")[0] == VERBS[name][0]
    result = CliRunner().invoke(app, [name, "--help"], terminal_width=200)
    assert result.exit_code == 0
    assert f" {name} [OPTIONS]" in result.output
    assert VERBS[name][0][:40] in result.output


def test_an_unknown_verb_is_told_the_nearest():
    result = CliRunner().invoke(app, ["evalute"])
    assert result.exit_code == 2
    assert "evaluate" in result.output
