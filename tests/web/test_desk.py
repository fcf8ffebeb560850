"""The desk: answers and errors from another process, a death that costs one call, a limit on who waits, and an end that is one."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inferencegym.ground.errors import ConfigError
from inferencegym.web.compose import sections
from inferencegym.web.desk import Desk, DeskError


def refuse():
    raise ConfigError("rate", "is wrong", allowed="0..1")


def sleep_long():
    time.sleep(60)


def at_desk(use, **limits):
    """Use a desk in an event loop, and close it."""

    async def main():
        desk = Desk(**limits)
        try:
            return await asyncio.wait_for(use(desk), 60)
        finally:
            desk.close()

    return asyncio.run(main())


def test_answers_come_from_another_process_which_has_stepped_back():
    async def use(desk):
        assert await desk.ask("os:getpid") == await desk.call(os.getpid) != os.getpid()
        assert await desk.call(os.nice, 0) == os.nice(0) + 10

    at_desk(use)


def test_its_errors_arrive_whole():
    async def use(desk):
        with pytest.raises(ConfigError) as error:
            await desk.call(refuse)
        assert (error.value.field, error.value.allowed) == ("rate", "0..1")

    at_desk(use)


def test_a_call_that_kills_the_process_costs_no_later_one():
    async def use(desk):
        first = await desk.call(os.getpid)
        with pytest.raises(DeskError, match="died; try again"):
            await desk.call(os._exit, 3)
        assert await desk.call(os.getpid) != first

    at_desk(use)


@pytest.mark.parametrize("closes", [False, True], ids=["it dies", "the desk closes"])
def test_an_answer_that_breaks_off_half_way_keeps_nobody_waiting(closes):
    async def use(desk):
        process = await desk.call(os.getpid)
        before = _bytes_read()
        call = asyncio.create_task(desk.call(bytes, 256 << 20))
        while _bytes_read() < before + (8 << 20):
            await asyncio.sleep(0)
        if closes:
            desk.close()
        else:
            os.kill(process, signal.SIGKILL)
        with pytest.raises(DeskError, match="shutting down" if closes else "died"):
            await asyncio.wait_for(call, 20)

    at_desk(use)


def _bytes_read():
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_process_that_cannot_be_begun_is_told_and_tried_again(monkeypatch):
    async def use(desk):
        with monkeypatch.context() as broken:
            broken.setattr(multiprocessing.context.ForkServerProcess, "start", _no_more)
            with pytest.raises(DeskError, match="could not be started; try again"):
                await desk.call(os.getpid)
        assert await desk.call(os.getpid) != os.getpid()

    at_desk(use)


def _no_more(process):
    raise BlockingIOError("Resource temporarily unavailable")


def test_who_comes_when_too_many_wait_is_sent_away():
    async def use(desk):
        calls = [asyncio.create_task(desk.call(sleep_long)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(DeskError, match="2 questions are waiting"):
            await desk.call(os.getpid)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        with pytest.raises(TimeoutError):
            # Let in again; it waits for the first, which a process cannot be talked out of.
            await asyncio.wait_for(desk.call(os.getpid), 0.1)

    at_desk(use, most=2)


def test_closed_it_gives_up_its_calls_and_begins_no_process_again():
    async def use(desk):
        process = await desk.call(os.getpid)
        calls = [asyncio.create_task(desk.call(sleep_long)) for _ in range(3)]
        await asyncio.sleep(0.2)
        desk.close()
        for call in calls:
            with pytest.raises(DeskError, match="shutting down"):
                await call
        with pytest.raises(ProcessLookupError):
            os.kill(process, signal.SIG_DFL)
        with pytest.raises(DeskError, match="shutting down"):
            await desk.call(os.getpid)

    at_desk(use)


def test_closed_while_its_process_begins_it_leaves_none():
    async def use(desk):
        call = asyncio.create_task(desk.call(sleep_long))
        await asyncio.sleep(0)
        while desk._pool is None or not desk._pool._pending_work_items:
            await asyncio.sleep(0)
        asked_s = time.monotonic()
        desk.close()
        assert time.monotonic() - asked_s < 30, "it waited for the call"
        with pytest.raises(DeskError, match="shutting down"):
            await call

    at_desk(use)


def test_ctrl_c_while_the_fork_server_loads_is_no_matter_of_its():
    script = """
import asyncio, os, signal
from multiprocessing import forkserver
from pathlib import Path
from inferencegym.web.desk import Desk, context

if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: None)
    context()
    maps = Path(f"/proc/{forkserver._forkserver._forkserver_pid}/maps")
    while "numpy" not in maps.read_text():
        pass
    os.killpg(0, signal.SIGINT)
    desk = Desk()
    print(asyncio.run(desk.call(os.getpid)) != os.getpid())
    desk.close()
"""
    # A terminal sends it to all processes of a session.
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, start_new_session=True, timeout=60)  # fmt: skip
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_slow_questions_on_workloads_and_episodes_hold_up_nobody_in_the_arena():
    async def main():
        arena, workloads, _ = made = sections()
        try:
            slow = [asyncio.create_task(desk.call(sleep_long)) for desk in (workloads._desk, arena._replays)]
            assert await asyncio.wait_for(arena.desk.ask("inferencegym.web.play:catalogue"), 40)
            assert not any(one.done() for one in slow)
        finally:
            for section in made:
                section.close()
        for one in slow:
            with pytest.raises(DeskError):
                await one

    asyncio.run(main())
