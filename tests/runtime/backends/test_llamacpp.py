"""llama.cpp's backend around a server that only pretends: changing slots when that fails, and a server that is killed; nobody is lost."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path

from inferencegym.runtime.backends.llamacpp import LlamaCpp
from inferencegym.runtime.ports import Ask


@asynccontextmanager
async def started(tmp_path, **more):
    """A backend with two slots, and a switch that lets all answers end."""
    program = tmp_path / "llama-server"
    shutil.copyfile(Path(__file__).with_name("fake_llama.py"), program)
    program.write_text(program.read_text().replace("#!/usr/bin/env python3", f"#!{sys.executable}", 1))
    program.chmod(0o755)
    model, go = tmp_path / "m.gguf", tmp_path / "m.gguf.go"
    model.touch()
    backend = LlamaCpp("l", model_path=str(model), slots=2, ctx_tokens=64, command=(str(program),), **more)
    await backend.start()
    try:
        yield backend, go
    finally:
        await backend.stop()


def ask(number: int) -> Ask:
    body = json.dumps({"model": "m", "stream": True, "messages": []}).encode()
    return Ask(f"r{number}", "chat", "m", body, None, 1, None, True, 0.0)


async def read(answer) -> list:
    return [piece async for piece in answer]


def run(main):
    asyncio.run(asyncio.wait_for(main(), 60))


def test_what_it_is_is_learnt_from_the_server(tmp_path):
    async def main():
        async with started(tmp_path) as (backend, _):
            assert (backend.models, backend.native_concurrency, backend.max_model_len) == (("m",), 2, 64)
            load = backend.load()
            assert (load.running, load.waiting, load.preemptions) == (1, 2, 0)
            assert load.kv_used_fraction != load.kv_used_fraction

    run(main)


def test_what_runs_now_is_told_though_the_last_scrape_is_old(tmp_path):
    async def main():
        async with started(tmp_path) as (backend, _):
            backend.figures = {"llamacpp:requests_processing": 0.0, "llamacpp:requests_deferred": 0.0}
            mine = {object() for _ in range(3)}
            backend.answers |= mine
            assert (backend.load().running, backend.load().waiting) == (2, 1), "two slots"
            await backend.scrape()  # says 1 and 2, these three
            assert (backend.load().running, backend.load().waiting) == (1, 2)
            backend.answers -= mine
            assert (backend.load().running, backend.load().waiting) == (0, 0)

    run(main)


def test_slots_that_cannot_be_had_leave_the_old_ones_and_a_reason(tmp_path):
    async def main():
        async with started(tmp_path, allow_restart=True) as (backend, go):
            told = asyncio.Event()
            backend.on_change = lambda well, problem: told.set()
            running = [asyncio.ensure_future(read(backend.submit(ask(i)))) for i in range(2)]
            await asyncio.sleep(0.1)
            assert backend.apply({"batch_cap": 8}) == {}
            assert "is being restarted" in backend.apply({"batch_cap": 1})["batch_cap"]
            await asyncio.sleep(0)
            waiting = asyncio.ensure_future(read(backend.submit(ask(2))))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            go.touch()
            await asyncio.wait_for(told.wait(), 30)
            assert "no memory for so many slots" in backend.resize_problem
            assert (backend.seats, backend.native_concurrency, len(await backend.slots())) == (2, 2, 2)
            for pieces in await asyncio.gather(*running, waiting):
                assert pieces[-1].finish_reason == "stop"
            assert await backend.healthy()

    run(main)


def test_a_drain_that_takes_too_long_is_given_up_and_nothing_is_broken_off(tmp_path):
    async def main():
        async with started(tmp_path, allow_restart=True, drain_timeout_s=0.1) as (backend, go):
            told = asyncio.Event()
            backend.on_change = lambda well, problem: told.set()
            running = asyncio.ensure_future(read(backend.submit(ask(0))))
            await asyncio.sleep(0.1)
            pid = backend.process.pid
            assert backend.apply({"batch_cap": 4}) == {}
            await asyncio.wait_for(told.wait(), 30)
            assert "still under way" in backend.resize_problem
            assert (backend.process.pid, backend.native_concurrency) == (pid, 2)
            go.touch()
            assert (await running)[-1].finish_reason == "stop"
            # A request that left at the gate does not hold up a drain either.
            assert backend.apply({"batch_cap": 3}) == {}
            told.clear()
            await asyncio.wait_for(told.wait(), 30)
            assert (backend.resize_problem, backend.native_concurrency) == ("", 3)

    run(main)


def test_stopping_in_the_middle_of_a_change_leaves_nothing(tmp_path):
    async def main():
        async with started(tmp_path, allow_restart=True) as (backend, _):
            running = asyncio.ensure_future(read(backend.submit(ask(0))))
            await asyncio.sleep(0.1)
            pid = backend.process.pid
            assert backend.apply({"batch_cap": 4}) == {}
            await asyncio.sleep(0)
            waiting = asyncio.ensure_future(read(backend.submit(ask(1))))
            await asyncio.sleep(0.1)
            await backend.stop()
            results = await asyncio.gather(running, waiting, return_exceptions=True)
            assert [getattr(result, "code", None) for result in results] == ["backend_stopped"] * 2
            assert not os.path.exists(f"/proc/{pid}/cmdline") or not Path(f"/proc/{pid}/cmdline").read_bytes()

    run(main)


def test_a_killed_server_is_away_until_it_is_back(tmp_path):
    async def main():
        async with started(tmp_path) as (backend, go):
            told: asyncio.Queue = asyncio.Queue()
            backend.on_change = lambda well, problem: told.put_nowait((well, problem))
            go.touch()
            os.kill(backend.process.pid, signal.SIGKILL)
            well, problem = await asyncio.wait_for(told.get(), 30)
            assert not well
            assert "ended with -9" in problem
            assert not await backend.healthy()
            assert await asyncio.wait_for(told.get(), 30) == (True, "")
            assert await backend.healthy()
            assert (await read(backend.submit(ask(0))))[-1].finish_reason == "stop"

    run(main)
