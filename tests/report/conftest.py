"""The reports of all verbs, made once by the real commands."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.starting import free_port, until_healthy

VERBS = ("simulate", "evaluate", "load", "explain")
#: As many columns as a table can be asked to print.
MANY_RUNS = "engine.max_num_seqs=" + ",".join(str(8 * i) for i in range(1, 13))


def verb(*options: str) -> str:
    """Run a command of ours; its command line as the page shall say it."""
    subprocess.run([sys.executable, "-m", "inferencegym", *options], check=True, capture_output=True, timeout=120)
    return shlex.join(["inferencegym", *options])


@pytest.fixture(scope="session")
def served() -> Iterator[str]:
    """URL of a gateway with the mock backend."""
    port = free_port()
    command = [sys.executable, "-m", "inferencegym", "serve", "--backend", "mock", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until_healthy(process, f"http://127.0.0.1:{port}", 120)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, served: str) -> dict[str, tuple[str, str]]:
    """Verb -> its command line and its page."""
    folder = tmp_path_factory.mktemp("pages")
    report = {name: str(folder / f"{name}.html") for name in VERBS}
    synthetic = ("--trace", "azure-code", "--duration", "20", "--rate", "2")
    lines = {
        "simulate": verb("simulate", *synthetic, "--set", MANY_RUNS, "--report", report["simulate"]),
        "evaluate": verb("evaluate", "--policy", "lru,best-static,learned", "--task", "easy", "--seeds", "2", "--workers", "1", "--report", report["evaluate"]),
        "load": verb("load", "--url", served, "--concurrency", "1,2", "--requests", "3", "--output-tokens", "4", "--report", report["load"]),
        "explain": verb("explain", "learned", "--task", "static_workload", "--seeds", "1", "--report", report["explain"]),
    }  # fmt: skip
    return {name: (line, Path(report[name]).read_text()) for name, line in lines.items()}
