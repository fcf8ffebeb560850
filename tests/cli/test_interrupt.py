"""Ctrl-C in `inferencegym evaluate`, as a real signal to a real process: what is done is told, what is not is named, and nobody stays behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from inferencegym.envs import catalogue

LIMIT_S = 120.0
EPISODES = 40
#: A policy that takes its time, so that there is something to interrupt.
SLOW = """
import time
from inferencegym.policies.memory import Lru


class Slow(Lru):
    def act(self, observation, mask):
        time.sleep(0.001)
        return super().act(observation, mask)
"""


@pytest.fixture
def folder(tmp_path):
    text = (catalogue.FOLDER / "easy.toml").read_text()
    text = text.replace('"easy"', '"short"').replace("horizon_ticks = 2000", "horizon_ticks = 200")
    (tmp_path / "short.toml").write_text(text)
    (tmp_path / "slow.py").write_text(SLOW)
    return tmp_path


@contextmanager
def started(folder, *more, policy="lru,slow:Slow"):
    command = [
        sys.executable,
        "-m",
        "inferencegym",
        "evaluate",
        "--policy",
        policy,
        "--task",
        "short.toml",
        "--seeds",
        str(EPISODES),
        *more,
    ]
    # Whoever runs the tests in the background may have told them to ignore Ctrl-C, which a child would inherit.
    with subprocess.Popen(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def until(holds, process=None):
    end = time.monotonic() + LIMIT_S
    while not holds():
        assert process is None or process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(group):
    """Processes of a session that still run."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == group and fields[0] != "Z":
            found.append(int(entry))
    return found


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("to_all", [False, True], ids=["to one", "as a terminal"])
def test_an_interrupt_ends_with_what_is_done(folder, workers, to_all):
    records = folder / "records"
    files = ("--record", "records", "--json", "out.json", "--report", "out.html")
    with started(folder, "--workers", str(workers), *files) as process:
        until(lambda: records.is_dir() and any("slow" in name for name in os.listdir(records)), process)
        (os.killpg if to_all else os.kill)(process.pid, signal.SIGINT)
        said, complained = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, complained
    told = json.loads((folder / "out.json").read_text())
    done = {(one["policy"], one["scenario"]) for one in told["episodes"]}
    left = {(one["policy"], one["scenario"]) for one in told["unplayed"]}
    assert {("lru", scenario) for scenario in range(EPISODES)} <= done
    assert {one["why"] for one in told["unplayed"]} == {"interrupted"}
    assert not done & left
    assert len(done) + len(left) == 2 * EPISODES
    assert "Traceback" not in complained
    assert f"no result of short: slow:Slow: {len(left)} of {EPISODES} episodes: interrupted" in complained
    assert re.search(rf"lru .* {EPISODES} ", said)
    assert f"{len(left)} of {EPISODES} episodes" in (folder / "out.html").read_text()
    until(lambda: not alive(process.pid))


def test_an_interrupt_before_anything_is_done_says_so(folder):
    (folder / "slow.py").write_text(SLOW.replace("0.001", "60"))
    with started(folder, "--workers", "2", policy="slow:Slow") as process:
        until(lambda: len(alive(process.pid)) >= 3, process)
        os.kill(process.pid, signal.SIGINT)
        _, complained = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, complained.strip()) == (130, "interrupted before an episode was done")


def test_workers_do_not_outlive_a_command_that_was_killed(folder):
    with started(folder, "--workers", "2", "--record", "records") as process:
        until(lambda: (folder / "records").is_dir() and os.listdir(folder / "records"), process)
        process.kill()
        # Its workers hold the other ends of its pipes.
        process.communicate(timeout=LIMIT_S)
    until(lambda: not alive(process.pid))


def test_the_second_interrupt_ends_at_once():
    """The answer to the first may take its time; the second does not wait for it."""
    script = """
import signal, sys, time
from inferencegym.cli.interrupt import first_then_end
with first_then_end():
    try:
        print("ready", flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        print("first", flush=True)
        while True:
            try:
                time.sleep(600)
            except KeyboardInterrupt:
                pass
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    ) as process:  # fmt: skip
        for word in ("ready\n", "first\n"):
            assert process.stdout.readline() == word
            process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_S) == -signal.SIGINT
