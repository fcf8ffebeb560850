"""The gateway without HTTP, in virtual time: waiting, seats, lanes, batches, second attempts, deadlines."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from inferencegym.ground.clock import run_virtual
from inferencegym.metrics.record import Outcome
from inferencegym.runtime.errors import ApiError
from inferencegym.runtime.gateway import Head
from inferencegym.runtime.ports import COMPLETIONS, BackendError, Piece
from inferencegym.runtime.settings import DispatchSettings, QueueSettings, ServiceClass, Settings
from inferencegym.runtime.wire import Completion
from tests.runtime.fakes import HANG, FakeBackend, make_gateway, words

_numbers = itertools.count()


def enter(gateway, model="m", head=None, timeout_s=float("inf"), **fields):
    """Let a request in now."""
    head = head or Head(f"r{next(_numbers)}")
    one = gateway.ask(COMPLETIONS, b"{}", Completion(model=model, prompt="abcd", **fields), head, gateway.clock())
    return gateway.submit(one, timeout_s)


async def read(flow):
    pieces = []
    while (piece := await flow.next()) is not None:
        pieces.append(piece.text)
    return pieces


async def ran(gateway, test):
    """A test's coroutine in a started gateway; in the end nothing may be left."""
    await gateway.start()
    told = await test(gateway)
    assert gateway.waiting() == gateway.in_flight() == gateway.under_way() == 0
    assert gateway.dispatcher.kv_tokens == 0
    assert gateway.admission.total.requests == 0
    assert not gateway.recorder.live
    assert all(member.in_flight == 0 for member in gateway.pool.members)
    await gateway.stop()
    return told


def virtual(test, *backends, **more):
    async def main():
        return await ran(make_gateway(*backends, settings=Settings(**more)), test)

    return run_virtual(main())


def test_seats_are_never_more_than_there_are_and_never_idle_while_somebody_waits():
    backend = FakeBackend(lambda ask: words(2, 1.0), seats=3)

    async def test(gateway):
        flows = [enter(gateway) for _ in range(10)]
        assert (gateway.in_flight(), gateway.waiting()) == (3, 7)
        answers = await asyncio.gather(*(read(flow) for flow in flows))
        assert all(answer == ["w0 ", "w1 "] for answer in answers)
        return gateway.clock()

    # Ten requests of two seconds over three seats: four rounds.
    assert virtual(test, backend) == pytest.approx(8.0)


def test_a_deadline_in_the_queue_is_kept_to_the_instant():
    backend = FakeBackend(lambda ask: words(1, 10.0), seats=1)

    async def test(gateway):
        first, second = enter(gateway), enter(gateway, head=Head("x", ttl_s=2.0))
        with pytest.raises(ApiError) as caught:
            await second.next()
        assert (caught.value.status, caught.value.code, gateway.clock()) == (503, "queue_timeout", 2.0)
        assert second.outcome is Outcome.REJECTED
        await read(first)
        assert gateway.clock() == 12.0, "a fake answer takes its time from the first look at it"

    virtual(test, backend)


def test_the_least_of_server_class_and_request_is_the_time_to_wait():
    classes = (ServiceClass("usual"), ServiceClass("hasty", ttl_s=3.0))

    async def test(gateway):
        return [
            enter(gateway, head=Head("a", ttl_s=ttl_s, slo_class=name)).ask.deadline_s
            for ttl_s, name in [(9.0, ""), (1.0, "hasty"), (9.0, "hasty"), (99.0, "")]
        ]

    async def main(gateway):
        found = await test(gateway)
        gateway.end_all(ApiError(503, "shutdown", "over"))
        return found

    backend = FakeBackend(lambda ask: [HANG])
    assert virtual(main, backend, classes=classes, queue=QueueSettings(ttl_s=20.0)) == [9.0, 1.0, 3.0, 20.0]


def test_the_clients_patience_ends_a_request_wherever_it_is():
    backend = FakeBackend(lambda ask: [Piece(text="a", tokens=1), HANG], seats=1)

    async def test(gateway):
        running, waiting = enter(gateway, timeout_s=5.0), enter(gateway, timeout_s=3.0)
        assert (await running.next()).text == "a"
        with pytest.raises(ApiError, match="longer than 3 s"):
            await waiting.next()
        with pytest.raises(ApiError, match="longer than 5 s"):
            await running.next()
        assert gateway.clock() == 5.0
        assert (running.outcome, waiting.outcome) == (Outcome.FAILED, Outcome.REJECTED)

    virtual(test, backend)
    assert len(backend.aborted) == 1


def test_old_requests_are_swept_each_at_its_time():
    backend = FakeBackend(lambda ask: [HANG])

    async def test(gateway):
        ended = []

        async def one(after_s):
            await asyncio.sleep(after_s)
            flow = enter(gateway)
            with pytest.raises(ApiError):
                await flow.next()
            ended.append(round(gateway.clock() - flow.ask.arrival_s, 2))

        await asyncio.gather(*(one(after_s) for after_s in (0, 1, 1, 250, 650)))
        assert ended == [600.0] * 5

    virtual(test, backend)


def test_models_of_their_own_do_not_wait_for_each_other():
    slow = FakeBackend(lambda ask: words(1, 20.0), name="slow", models=("a",), seats=1)
    quick = FakeBackend(lambda ask: words(1, 1.0), name="quick", models=("b", "c"), seats=1)

    async def test(gateway):
        flows = [enter(gateway, "a"), enter(gateway, "a"), enter(gateway, "b"), enter(gateway, "c")]
        ended = {}

        async def one(number, flow):
            await read(flow)
            ended[number] = gateway.clock()

        await asyncio.gather(*(one(number, flow) for number, flow in enumerate(flows)))
        # b and c are of one backend: one queue, one order.
        assert ended == {0: 20.0, 1: 40.0, 2: 1.0, 3: 2.0}

    virtual(test, slow, quick)


def test_a_second_attempt_waits_for_nobody_and_is_told_once():
    refusing = FakeBackend(lambda ask: [0.5, BackendError("refused", sent=False)], name="a", seats=4)
    working = FakeBackend(lambda ask: words(2, 1.0), name="b", seats=4)

    async def test(gateway):
        await asyncio.gather(*(read(enter(gateway)) for _ in range(4)))
        assert gateway.recorder.counts()["ok"] == 4
        assert gateway.retries == len(refusing.asked) > 0

    virtual(test, refusing, working)


def test_a_busy_backends_refusal_goes_to_another_one_or_to_the_client():
    busy = FakeBackend(lambda ask: [BackendError("busy", status=429, retry_after_s=4.0, fault=False)], name="a")

    async def alone(gateway):
        with pytest.raises(ApiError) as caught:
            await read(enter(gateway))
        assert (caught.value.status, caught.value.retry_after_s) == (429, 4.0)

    virtual(alone, busy)

    async def two(gateway):
        assert len(await asyncio.gather(*(read(enter(gateway)) for _ in range(4)))) == 4

    virtual(two, busy, FakeBackend(lambda ask: words(), name="b"))


def test_what_was_answered_in_part_is_never_tried_again():
    breaking = FakeBackend(lambda ask: [Piece(text="a", tokens=1), BackendError("died", sent=False)], name="a")
    other = FakeBackend(lambda ask: words(), name="b")

    async def test(gateway):
        flows = [enter(gateway) for _ in range(2)]
        results = await asyncio.gather(*(read(flow) for flow in flows), return_exceptions=True)
        assert sum(isinstance(result, ApiError) for result in results) == 1
        assert len(other.asked) == 1

    virtual(test, breaking, other)


def test_batches_wait_for_company_but_not_too_long():
    backend = FakeBackend(lambda ask: words(1))
    dispatch = DispatchSettings(batching=True, max_batch_size=4, batch_timeout_ms=50.0)

    async def test(gateway):
        times = []

        async def one(after_s):
            await asyncio.sleep(after_s)
            await read(enter(gateway))
            times.append(round(gateway.clock(), 6))

        await asyncio.gather(*(one(after_s) for after_s in (0, 0.01, 0.02, 0.03, 1.0, 1.02)))
        assert times == [0.03] * 4 + [1.05] * 2
        assert gateway.dispatcher.batches | {"immediate": 0} == {
            "immediate": 0,
            "size": 1,
            "seats": 0,
            "timeout": 1,
            "drain": 0,
        }
        assert sum(gateway.dispatcher.released.values()) == 6

    virtual(test, backend, dispatch=dispatch)


def test_a_drain_lets_a_batch_go_and_ends_when_all_have():
    backend = FakeBackend(lambda ask: words(1, 1.0))

    async def test(gateway):
        reading = asyncio.ensure_future(read(enter(gateway)))
        await asyncio.sleep(0.001)
        gateway.drain()
        with pytest.raises(ApiError, match="shutting down"):
            enter(gateway)
        await gateway.idle()
        assert gateway.clock() == pytest.approx(1.001)
        assert await reading == ["w0 "]
        assert gateway.dispatcher.batches["drain"] == 1

    virtual(test, backend, dispatch=DispatchSettings(batching=True, max_batch_size=4, batch_timeout_ms=500.0))


def test_caps_over_all_backends_hold_and_let_go():
    backend = FakeBackend(lambda ask: words(1, 1.0), seats=10)

    async def test(gateway):
        gateway.dispatcher.total_cap, gateway.dispatcher.learned_cap = 4, 2
        flows = [enter(gateway, max_tokens=9) for _ in range(6)]
        assert gateway.in_flight() == 2
        gateway.limit(float("inf"))
        assert gateway.in_flight() == 4
        gateway.dispatcher.total_cap = float("inf")
        # Each may come to hold 10 tokens: the one that passes the cap still goes.
        gateway.dispatcher.kv_tokens_cap = 45
        gateway.dispatcher.pump()
        assert gateway.in_flight() == 5
        await asyncio.gather(*(read(flow) for flow in flows))

    virtual(test, backend)


def test_a_request_that_is_left_at_any_moment_leaves_nothing():
    def script(ask):
        return [0.3, Piece(text="a", tokens=1), 0.3, *words(2, 0.3)]

    for leave_s in (0.0, 0.2, 0.3, 0.45, 0.7, 1.2, 1.5, 5.0):
        backend = FakeBackend(script, seats=2)

        async def test(gateway, leave_s=leave_s):
            flows = [enter(gateway) for _ in range(5)]
            readers = [asyncio.ensure_future(read(flow)) for flow in flows]
            await asyncio.sleep(leave_s)
            for flow in flows[::2]:
                flow.leave()
                flow.leave()
            await asyncio.gather(*readers)
            for flow in flows[1::2]:
                assert flow.outcome is Outcome.OK

        virtual(test, backend)
