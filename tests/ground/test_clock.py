"""Virtual time: jumps to the next timer, keeps the order of equals, refuses the world outside, says when nothing can ever happen."""

from __future__ import annotations

import asyncio
import math
import time

import pytest

from inferencegym.ground.clock import VirtualLoop, VirtualTimeError, run_virtual


def test_a_day_passes_at_once():
    async def main() -> float:
        await asyncio.sleep(86_400)
        return asyncio.get_running_loop().time()

    began = time.perf_counter()
    assert run_virtual(main()) == 86_400
    assert time.perf_counter() - began < 60


def test_equal_times_keep_the_order_they_were_asked_for():
    async def main() -> list[int]:
        loop, seen = asyncio.get_running_loop(), []
        for i in range(50):
            loop.call_at(1.0, seen.append, i)
        await asyncio.sleep(2)
        return seen

    assert run_virtual(main()) == list(range(50))


def test_time_stands_still_while_anything_is_ready():
    """A chain of callbacks and futures at one instant is over before a timer of the next representable instant."""

    async def main() -> list[str]:
        loop, seen = asyncio.get_running_loop(), []

        async def chain() -> None:
            for _ in range(20):
                await asyncio.sleep(0)
            assert loop.time() == 1.0
            seen.append("chain")

        loop.call_at(math.nextafter(1.0, 2.0), seen.append, "after")
        loop.call_at(1.0, lambda: seen.append(loop.create_task(chain()).get_name()[:4]))
        await asyncio.sleep(2)
        return seen

    assert run_virtual(main()) == ["Task", "chain", "after"]


def test_what_is_called_last_sees_all_of_an_instant():
    async def main() -> list[str]:
        loop, seen = asyncio.get_running_loop(), []
        await asyncio.sleep(1)
        loop.call_last(seen.append, "last")
        loop.call_last(seen.append, "never").cancel()
        loop.call_at(1.0, lambda: loop.call_soon(seen.append, "timer, then soon"))
        loop.call_at(math.nextafter(1.0, 2.0), seen.append, "later")
        await asyncio.sleep(1)
        return seen

    assert run_virtual(main()) == ["timer, then soon", "last", "later"]


def test_timeouts_and_cancelled_timers():
    async def main() -> float:
        loop = asyncio.get_running_loop()
        loop.call_later(5, pytest.fail, "it was cancelled").cancel()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await asyncio.Event().wait()
        assert loop.time() == 3
        await asyncio.sleep(10)
        return loop.time()

    assert run_virtual(main()) == 13


def test_a_past_time_is_now():
    async def main() -> list[float]:
        loop, seen = asyncio.get_running_loop(), []
        await asyncio.sleep(5)
        loop.call_at(1.0, lambda: seen.append(loop.time()))
        await asyncio.sleep(1)
        return seen

    assert run_virtual(main()) == [5.0]


def test_what_can_never_happen_is_said():
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(VirtualTimeError, match="can never happen"):
        run_virtual(main())


def test_the_world_outside_is_refused():
    async def connects() -> None:
        await asyncio.open_connection("127.0.0.1", 1)

    async def threads() -> None:
        await asyncio.to_thread(time.sleep, 0)

    for main in (connects, threads):
        with pytest.raises(VirtualTimeError, match="world outside"):
            run_virtual(main())


def test_errors_come_out():
    async def main() -> None:
        await asyncio.sleep(1)
        raise ValueError("told")

    with pytest.raises(ValueError, match="told"):
        run_virtual(main())


def test_leftover_tasks_are_cancelled_and_generators_closed():
    ended = []

    async def forever() -> None:
        try:
            await asyncio.sleep(math.inf)
        finally:
            ended.append("task")

    async def main() -> None:
        task = asyncio.get_running_loop().create_task(forever())
        await asyncio.sleep(1)
        assert not task.done()

    run_virtual(main())
    assert ended == ["task"]


def test_a_closed_loop_takes_no_timers():
    loop = VirtualLoop()
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.call_later(1, print)
