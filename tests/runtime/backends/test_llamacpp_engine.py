"""llama.cpp for real, through its backend: streams, exact counts, a left request frees its slot, a killed server, other slots by a restart.

The first run fetches the engine (tests/openenv/llama.py). Orders and counts are asserted, never times.
"""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial

import pytest

from inferencegym.ground.errors import ConfigError
from inferencegym.runtime.backends.llamacpp import LlamaCpp
from inferencegym.runtime.ports import BackendError
from tests.openenv import llama
from tests.runtime.asks import chat, read

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture(scope="session")
def files():
    try:
        return llama.engine_files()
    except llama.NoEngineError as error:
        pytest.skip(str(error))


def make(files, tmp_path, **more) -> LlamaCpp:
    python, gguf = files
    options = {"slots": 2, "ctx_tokens": 1024, "batch_tokens": 256, "threads": 1, "log": tmp_path / "llama.log"}
    return LlamaCpp(
        "llama", model_path=str(gguf), command=(str(python), "--cache-ram", "0"), model="smollm2", models=("smollm2",), **options | more
    )  # fmt: skip


ask = partial(chat, "smollm2")


async def until(what, limit_s: float = 60.0):
    """Return what the coroutine function says, once that is true; an engine tells only who asks."""
    async with asyncio.timeout(limit_s):
        while not (found := await what()):
            await asyncio.sleep(0.05)
        return found


def run(files, main, tmp_path, **more):
    async def whole():
        backend = make(files, tmp_path, **more)
        await backend.start()
        try:
            await main(backend)
        finally:
            await backend.stop()

    asyncio.run(asyncio.wait_for(whole(), 240))


async def busy(backend) -> int:
    return sum(bool(slot["is_processing"]) for slot in await backend.slots())


def test_streams_whole_answers_exact_counts_and_load(files, tmp_path):
    async def main(backend):
        assert (backend.native_concurrency, backend.max_model_len) == (2, 1024)
        assert await backend.healthy()
        answers = [backend.submit(ask(24, number=i)) for i in range(5)]
        for pieces in await asyncio.gather(*map(read, answers)):
            assert sum(piece.tokens for piece in pieces) == pytest.approx(24, abs=2)
            last = next(piece for piece in reversed(pieces) if piece.usage)
            assert last.usage.completion_tokens == 24
            assert last.usage.prompt_tokens > 8
            assert [piece.finish_reason for piece in pieces if piece.finish_reason] == ["length"]
        (whole,) = await read(backend.submit(ask(8, stream=False)))
        assert (whole.tokens, whole.finish_reason) == (8, "length")
        # The same prompt again comes out of its cache, and the count says so.
        (again,) = await read(backend.submit(ask(8, stream=False)))
        assert again.usage.cached_tokens > 0
        assert again.usage.prompt_tokens == whole.usage.prompt_tokens
        await backend.scrape()
        load = backend.load()
        assert (load.running, load.waiting) == (0, 0)
        assert load.more["tokens_predicted_total"] >= 5 * 24

    run(files, main, tmp_path)


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_that_is_left_frees_its_slot(files, tmp_path, stream):
    async def main(backend):
        answer = backend.submit(ask(900, stream=stream))
        reader = asyncio.ensure_future(read(answer))
        await until(lambda: busy(backend))
        answer.abort()
        await reader

        async def free() -> bool:
            return await busy(backend) == 0

        await until(free, 10)

    run(files, main, tmp_path)


def test_too_long_a_prompt_is_the_clients_fault(files, tmp_path):
    async def main(backend):
        with pytest.raises(BackendError) as caught:
            await read(backend.submit(ask(16, messages=[{"role": "user", "content": "word " * 3000}])))
        assert (caught.value.status, caught.value.fault) == (400, False)
        assert b"context" in caught.value.body

    run(files, main, tmp_path)


def test_killed_in_the_middle_of_a_stream_it_is_told_and_comes_back(files, tmp_path):
    async def main(backend):
        told = []
        back = asyncio.Event()
        backend.on_change = lambda well, problem: (told.append((well, problem)), well and back.set())
        answer = backend.submit(ask(900))
        first = await anext(answer)
        assert first.raw
        os.kill(backend.process.pid, signal.SIGKILL)
        with pytest.raises(BackendError) as caught:
            await read(answer)
        assert (caught.value.code, caught.value.fault) == ("backend_broke_off", True)
        await asyncio.wait_for(back.wait(), 60)
        assert [well for well, _ in told] == [False, True]
        assert "ended with -9" in told[0][1]
        assert await backend.healthy()
        assert len(await read(backend.submit(ask(8)))) >= 8
        assert backend.process.restarts == 1

    run(files, main, tmp_path)


def test_slots_change_by_draining_and_a_restart_and_nobody_is_lost(files, tmp_path):
    async def main(backend):
        assert backend.apply({"batch_cap": 1}) == {}
        assert backend.capabilities().native_concurrency == 1
        assert backend.apply({"batch_cap": 2.5, "speculation_depth": 3}).keys() == {"batch_cap", "speculation_depth"}
        done = asyncio.Event()
        backend.on_change = lambda well, problem: done.set()
        before = [asyncio.ensure_future(read(backend.submit(ask(60, number=i)))) for i in range(2)]
        await until(lambda: busy(backend))
        pid = backend.process.pid
        assert backend.apply({"batch_cap": 4}) == {}
        await asyncio.sleep(0)
        during = [asyncio.ensure_future(read(backend.submit(ask(8, number=i)))) for i in range(4)]
        await asyncio.wait_for(done.wait(), 120)
        assert backend.resize_problem == ""
        assert backend.process.pid != pid
        assert len(await backend.slots()) == 4
        assert backend.capabilities().native_concurrency == 4
        for pieces in await asyncio.gather(*before, *during):
            assert pieces[-1].usage is not None

    run(files, main, tmp_path, allow_restart=True)


def test_without_leave_to_restart_more_slots_are_refused_and_it_is_adopted_as_it_is(files, tmp_path):
    async def main(backend):
        assert "which is not allowed" in backend.apply({"batch_cap": 3})["batch_cap"]
        other = LlamaCpp("other", url=str(backend.root), adopt=True, slots=64)
        await other.start()
        assert (other.native_concurrency, other.max_model_len) == (2, 1024)
        assert other.models == ("smollm2",)
        assert len(await read(other.submit(ask(4)))) >= 4
        assert "not allowed" in other.apply({"batch_cap": 3})["batch_cap"]
        await other.stop()
        assert await backend.healthy()
        # A second one of ours at the same address is refused.
        taken = make(files, tmp_path, url=str(backend.root))
        with pytest.raises(ConfigError, match="adopt = true"):
            await taken.start()
        await taken.stop()

    run(files, main, tmp_path)


def test_a_model_that_is_none_is_told_with_the_end_of_the_log(files, tmp_path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF but not really")

    async def main():
        backend = make((files[0], bad), tmp_path)
        with pytest.raises(BackendError, match="before it was ready") as caught:
            await backend.start()
        assert "llama.log" in caught.value.message
        await backend.stop()

    asyncio.run(asyncio.wait_for(main(), 120))
