"""House rules that a linter cannot see: a quick import, files that say what they are for, a whole package."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "inferencegym"
FILES = sorted(PACKAGE.rglob("*.py"))
#: Libraries that cost a tenth of a second or more to load.
HEAVY = {"numba", "pyarrow", "typer", "rich", "matplotlib", "scipy", "torch", "gymnasium"}


def in_a_new_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_package_is_quick_and_loads_nothing_heavy():
    code = (
        "import time, sys; start = time.process_time(); import inferencegym; "
        "print(time.process_time() - start, *sys.modules)"
    )
    cost_s, *modules = in_a_new_process(code).split()
    assert HEAVY & set(modules) == set()
    assert float(cost_s) < 0.5


def test_the_metrics_floor_is_loaded_without_numba_or_arrow():
    modules = in_a_new_process("import sys, inferencegym.metrics.summary; print(*sys.modules)").split()
    assert HEAVY & set(modules) == set()


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_opens_with_what_it_is_for(file):
    opening = ast.get_docstring(ast.parse(file.read_text()))
    assert opening, f"{file.name} has no opening docstring"
    assert len(opening.split()) >= 8, f"{file.name}: '{opening}' tells a newcomer too little"


def test_every_folder_with_code_is_a_package():
    folders = {file.parent for file in FILES}
    assert {folder for folder in folders if not (folder / "__init__.py").is_file()} == set()
    assert (PACKAGE / "py.typed").is_file()
