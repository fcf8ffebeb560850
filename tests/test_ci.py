"""`.ci/run` sees to the programs that tests need, and goes on loudly without them. What it calls are stand-ins that write down how they were called."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / ".ci" / "run"


@pytest.fixture
def ci(tmp_path):
    (tmp_path / ".ci").mkdir()
    shutil.copy(SCRIPT, tmp_path / ".ci" / "run")
    (tmp_path / "bin").mkdir()
    for name in ("bash", "env", "dirname", "mktemp", "tail", "rm", "timeout"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))

    def stand_in(name, does="exit 0"):
        file = tmp_path / "bin" / name
        file.write_text(f'#!/bin/bash\necho "{name} $*" >> "{tmp_path}/calls"\n{does}\n')
        file.chmod(0o755)

    def run():
        done = subprocess.run(
            [tmp_path / ".ci" / "run"], env={"PATH": str(tmp_path / "bin")}, capture_output=True, text=True, check=False
        )
        calls = (tmp_path / "calls").read_text().splitlines()
        return done, [call for call in calls if not call.startswith("id ")]

    stand_in("make")
    return stand_in, run


def test_what_is_there_is_not_installed(ci):
    stand_in, run = ci
    for name in ("redis-server", "google-chrome", "apt-get"):
        stand_in(name)
    done, calls = run()
    assert (done.returncode, done.stderr, calls) == (0, "", ["make check test"])


def test_root_installs_what_is_missing(ci):
    stand_in, run = ci
    stand_in("id", "echo 0")
    stand_in("apt-get")
    stand_in("chromium")
    done, calls = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert calls == [
        "apt-get update -qq",
        "apt-get install -y -qq --no-install-recommends redis-server",
        "make check test",
    ]


@pytest.mark.parametrize(("user", "tried"), [("0", True), ("1000", False)])
def test_what_cannot_be_installed_is_said_loudly_and_the_run_goes_on(ci, user, tried):
    stand_in, run = ci
    stand_in("id", f"echo {user}")
    stand_in("apt-get", 'echo "no network" >&2; exit 100')
    done, calls = run()
    assert done.returncode == 0
    assert calls[-1] == "make check test"
    assert ("apt-get update -qq" in calls) == tried
    for said in (
        "no redis-server on this machine, so the tests marked redis WILL BE SKIPPED",
        "no chromium on this machine",
    ):
        assert said in done.stderr
    assert ("redis-server could not be installed" in done.stderr) == tried
    assert ("no network" in done.stderr) == tried


def test_a_run_that_fails_fails(ci):
    stand_in, run = ci
    stand_in("id", "echo 1000")
    stand_in("make", "exit 2")
    assert run()[0].returncode == 2
