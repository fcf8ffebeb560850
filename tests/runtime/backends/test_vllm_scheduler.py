"""The scheduler class for vLLM: limits from a file, taken once they change and only if they make sense; which scheduler it is made of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from inferencegym.runtime.backends import vllm_scheduler
from inferencegym.runtime.backends.vllm_scheduler import CONTROL_VARIABLE, LiveLimits, LiveScheduler


class Base:
    """What vLLM's scheduler has that ours touches."""

    def __init__(self, vllm_config, *, include_finished_set: bool = False):
        self.scheduler_config = vllm_config.scheduler_config
        self.max_num_active_reqs, self.max_num_scheduled_tokens = 8, 512
        self.finished = include_finished_set

    def schedule(self, *arguments):
        return (self.max_num_active_reqs, self.max_num_scheduled_tokens, *arguments)


class AsyncBase(Base):
    pass


@pytest.fixture
def made(monkeypatch, tmp_path):
    """A maker of schedulers, and a writer of their control file."""
    for name, kind in (("scheduler", {"Scheduler": Base}), ("async_scheduler", {"AsyncScheduler": AsyncBase})):
        module = ModuleType(name)
        vars(module).update(kind)
        monkeypatch.setitem(sys.modules, f"vllm.v1.core.sched.{name}", module)
    file = tmp_path / "control.json"
    monkeypatch.setenv(CONTROL_VARIABLE, str(file))
    stamps = iter(range(10**9, 10**10, 10**6))

    def write(text: str) -> None:
        file.write_text(text)
        stamp = next(stamps)
        os.utime(file, ns=(stamp, stamp))

    def make(asynchronous: bool = False):
        config = SimpleNamespace(async_scheduling=asynchronous, max_num_seqs=8, max_num_batched_tokens=512)
        return LiveScheduler(vllm_config=SimpleNamespace(scheduler_config=config), include_finished_set=True)

    return make, write


@pytest.mark.parametrize("asynchronous", [True, False])
def test_it_is_vllms_own_scheduler_of_the_kind_that_vllm_wants(made, asynchronous):
    scheduler = made[0](asynchronous)
    assert isinstance(scheduler, LiveLimits)
    assert isinstance(scheduler, AsyncBase) is asynchronous
    assert scheduler.finished


def test_limits_hold_from_the_next_step_on_and_until_they_change(made):
    make, write = made
    scheduler = make()
    assert scheduler.schedule("x") == (8, 512, "x")  # no file yet
    write(json.dumps({"max_running": 2}))
    assert scheduler.schedule() == (2, 512)
    write(json.dumps({"max_running": 6, "max_tokens": 64}))
    assert scheduler.schedule() == (6, 64)
    write(json.dumps({}))
    assert scheduler.schedule() == (8, 512)


@pytest.mark.parametrize(
    "text", ['{"max_running"', "[]", '{"max_running": 0}', '{"max_running": 9}', '{"max_running": "2"}', '{"max_tokens": 513}', "null"]
)  # fmt: skip
def test_a_file_that_makes_no_sense_changes_nothing(made, text):
    make, write = made
    scheduler = make()
    write('{"max_running": 3}')
    assert scheduler.schedule() == (3, 512)
    write(text)
    assert scheduler.schedule() == (3, 512)
    write('{"max_running": 4}')
    assert scheduler.schedule() == (4, 512)


def test_it_needs_nothing_but_the_standard_library():
    code = f"import sys, runpy; runpy.run_path({vllm_scheduler.__file__!r}); print('vllm' in sys.modules, 'inferencegym' in sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
