"""`inferencegym control` against a real gateway under real load: knobs arrive, the Runtime feed names who steers, an outage is lived through, Ctrl-C gives back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from inferencegym.control.record import read
from inferencegym.control.remote import RemotePlant
from inferencegym.ground.errors import InputError
from tests.starting import free_port, until, until_healthy

LIMIT_S = 60.0
WINDOW_S = 0.4


def gateway(port, log, *more):
    process = subprocess.Popen(
        [sys.executable, "-m", "inferencegym", "serve", "--backend", "mock", "--port", str(port), *more], stderr=log
    )
    until_healthy(process, f"http://127.0.0.1:{port}", LIMIT_S)
    return process


class Place:
    """A gateway that can be killed and started again at the same address, with clients that never give up."""

    def __init__(self, folder):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = (folder / "log").open("ab")
        self.process = gateway(self.port, self.log)
        self.ending = threading.Event()
        self.answered = 0
        with urllib.request.urlopen(f"{self.url}/v1/models") as answer:
            self.model = json.load(answer)["data"][0]["id"]
        self.clients = [threading.Thread(target=self.client) for _ in range(8)]
        for one in self.clients:
            one.start()

    def client(self):
        body = json.dumps({"model": self.model, "prompt": "Tell me more. " * 20, "max_tokens": 24, "ignore_eos": True})
        asked = urllib.request.Request(f"{self.url}/v1/completions", body.encode(), {"content-type": "application/json"})  # fmt: skip
        while not self.ending.is_set():
            try:
                with urllib.request.urlopen(asked, timeout=10) as answer:
                    answer.read()
                    self.answered += 1
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                self.ending.wait(0.2)

    def kill(self):
        self.process.kill()
        self.process.wait(10)

    def with_objectives(self, ttft_s):
        self.kill()
        settings = Path(self.log.name).with_name("objectives.toml")
        settings.write_text(f'[[classes]]\nname = "default"\nttft_slo_s = {ttft_s}\n')
        self.process = gateway(self.port, self.log, "--config", str(settings))

    def again(self):
        self.process = gateway(self.port, self.log)

    def feed(self):
        with urllib.request.urlopen(f"{self.url}/dashboard/api/runtime", timeout=20) as answer:
            return json.load(answer)

    def stop(self):
        self.ending.set()
        for one in self.clients:
            one.join(20)
        self.kill()
        self.log.close()


@pytest.fixture
def place(tmp_path):
    one = Place(tmp_path)
    yield one
    one.stop()


class Session:
    """`inferencegym control` as a process, and the lines it has printed."""

    def __init__(self, url, *more):
        # Whoever runs the tests in the background may have told them to ignore Ctrl-C, which a child would inherit.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "inferencegym", "control", url, "--window", str(WINDOW_S), *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        self.lines: list[str] = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stdout))
        self.reader.start()

    def until(self, text, after=0):
        until(lambda: any(text in line for line in self.lines[after:]), f"it says '{text}' ({self.lines[-3:]})", LIMIT_S)  # fmt: skip

    def ctrl_c(self):
        self.process.send_signal(signal.SIGINT)
        return self.end()

    def end(self):
        self.process.wait(LIMIT_S)
        self.reader.join(10)
        errors = self.process.stderr.read()
        self.process.stdout.close()
        self.process.stderr.close()
        return self.process.returncode, "".join(self.lines), errors


@pytest.fixture
def session(place):
    started = []

    def start(*more):
        started.append(Session(place.url, *more))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.end()


def test_a_day_at_the_wheel(place, session, tmp_path):
    with RemotePlant(place.url) as plant:
        found = plant.snapshot()
    record = tmp_path / "control.jsonl"
    one = session("--policy", "fixed:batch_cap=96,kv_budget_fraction=0.6,quantization_tier=INT8", "--fallback", "aimd", "--slo-below", "0", "--ttft-ms", "60000", "--record", str(record))  # fmt: skip
    one.until("window 3:")
    now = place.feed()["now"]
    assert (now["steering"]["policy"], now["steering"]["guard"]) == ("fixed:batch_cap=96,kv_budget_fraction=0.6,quantization_tier=INT8", "guard")  # fmt: skip
    assert now["steering"]["accepted"]["batch_cap"] == 96
    assert now["knobs"]["batch_cap"] == 96
    assert now["knobs"]["kv_budget_fraction"] == 0.6
    assert place.answered > 0

    place.kill()
    one.until("no snapshot (the gateway at")
    one.until("4 windows without a snapshot: the fallback aimd takes over")
    place.again()
    one.until("a snapshot again after")
    one.until("| fallback:")
    assert place.feed()["now"]["steering"]["policy"].startswith("aimd (for fixed:")
    seen = len(one.lines)
    one.until("6 calm windows: the policy is back", after=seen)
    one.until("| policy:", after=len(one.lines))
    with RemotePlant(place.url) as plant:
        back = plant.snapshot()
    # The policy names three knobs; those that only the fallback turned are where they were found.
    assert (back.batch_cap, back.speculation_depth, back.priority_routing) == (96, 0, 0)

    status, said, errors = one.ctrl_c()
    assert (status, errors) == (130, "")
    assert "quantization_tier refused: no backend is configured as a variant" in said
    assert "the settings found at the start are in force again" in said
    with RemotePlant(place.url) as plant:
        left = plant.snapshot()
    for name in ("batch_cap", "kv_budget_fraction", "speculation_depth", "quantization_tier", "priority_routing"):
        assert getattr(left, name) == getattr(found, name), name

    about, windows = read(record)
    assert about["fallback"] == "aimd"
    assert [window["window"] for window in windows] == list(range(len(windows)))
    assert {window["driver"] for window in windows} == {"policy", "nobody", "fallback"}
    busy = [window for window in windows if window["snapshot"] and window["snapshot"]["throughput_tps"] > 0]
    assert len(busy) > 3
    # There were 1024 seats: the guard takes two steps to 96.
    assert busy[0]["command"] == {"batch_cap": 256, "kv_budget_fraction": 0.6, "quantization_tier": "INT8"}
    assert busy[0]["action"]["batch_cap"] == busy[1]["command"]["batch_cap"] == 96
    assert "batch_cap 96 held to 256: at most a factor of 4 a window" in busy[0]["reasons"]
    assert all(len(window["observation"]) == 32 for window in busy)


def test_a_dry_run_sends_nothing_and_keep_leaves_the_last_settings(place, session):
    status, said, errors = session("--policy", "fixed:batch_cap=96", "--windows", "3", "--dry-run", "--json").end()
    assert "no class of this gateway has a TTFT objective" in errors
    told = json.loads(said)
    assert (status, told["windows"], told["given_back"], told["note"]) == (0, 3, None, "nothing was changed")
    assert place.feed()["now"]["steering"] is None
    status, said, _ = session("--policy", "fixed:batch_cap=96", "--limit", "batch_cap=8..80", "--windows", "2", "--keep").end()  # fmt: skip
    assert status == 0
    assert "batch_cap 96 held to 80: allowed are 8 to 80" in said
    with RemotePlant(place.url) as plant:
        assert plant.snapshot().batch_cap == 80


def test_a_harmful_policy_loses_the_wheel(place, session):
    place.with_objectives(0.2)
    one = session("--policy", "fixed:batch_cap=1", "--fallback", "found", "--slo-windows", "2")
    one.until("for 2 windows: the fallback found takes over")
    one.until("calm windows: the policy is back")
    status, said, errors = one.ctrl_c()
    assert (status, errors) == (130, "")
    assert "is below 80% for 2 windows" in said


def test_a_policy_that_hangs_does_not_stop_the_wheel(place, session, tmp_path, monkeypatch):
    (tmp_path / "stuck.py").write_text(
        "import threading\nfrom inferencegym.policies.serving import Aimd\n\n\nclass Stuck(Aimd):\n    name = 'stuck'\n\n"
        "    def act(self, observation, mask):\n        threading.Event().wait()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    begun_s = time.monotonic()
    status, said, _ = session("--policy", "stuck:Stuck", "--fallback", "found", "--windows", "5").end()
    assert status == 0
    assert "the policy did not answer within 0.2 s: the fallback found stands in" in said
    assert "the policy has not answered for" in said
    assert "3 bad answers in a row: the fallback found takes over" in said
    assert "the settings found at the start are in force again" in said
    assert time.monotonic() - begun_s < LIMIT_S


def test_a_wrong_address_is_no_outage():
    one = Session(f"http://127.0.0.1:{free_port()}")
    status, _, errors = one.end()
    assert status == 1
    assert "is it running there" in errors


@pytest.mark.parametrize("text", [b"", b"{}\n", b'{"format": 1}\nnot json\n'])
def test_a_file_that_is_no_session_is_said_to_be_none(tmp_path, text):
    (tmp_path / "x.jsonl").write_bytes(text)
    with pytest.raises(InputError, match="is no"):
        read(tmp_path / "x.jsonl")
