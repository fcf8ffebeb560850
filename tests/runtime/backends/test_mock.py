"""The mock: lengths, texts, aborts, failures, knobs, time scales; all in virtual time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest
import uvloop

from inferencegym.engine.deployment import Deployment
from inferencegym.engine.invariants import check_arena
from inferencegym.ground.clock import run_virtual
from inferencegym.ground.errors import ConfigError
from inferencegym.runtime.backends.mock import MockBackend
from inferencegym.runtime.backends.mock_answer import MockAnswer, text_of
from inferencegym.runtime.backends.mock_lengths import FAILURES, SLOW_S, Lengths
from inferencegym.runtime.ports import COMPLETIONS, Ask, BackendError, Piece
from inferencegym.runtime.settings import BackendSettings
from inferencegym.runtime.wire import Completion

SMALL = Deployment(kv_blocks=400)


def ask(name: str = "r", *, prompt: int = 50, most: int | None = 20, stream: bool = True, **fields: Any) -> Ask:
    body = Completion(model="m", prompt=[1] * prompt, max_tokens=most, stream=stream, **{"ignore_eos": True} | fields)
    now_s = asyncio.get_running_loop().time()
    return Ask(name, COMPLETIONS, "m", b"", body, prompt, most, stream, now_s)


async def read(answer: MockAnswer) -> list[Piece]:
    return [piece async for piece in answer]


def with_mock(test: Callable[[MockBackend], Awaitable[None]], **options: Any) -> MockBackend:
    """Run a test on a fresh mock, and look that it leaves nothing behind."""
    mock = MockBackend(deployment=options.pop("deployment", SMALL), **options)

    async def main() -> None:
        await mock.start()
        await test(mock)
        await asyncio.sleep(60)
        assert mock.engine.alive == 0
        assert check_arena(mock.engine.arena) == []
        assert mock.engine.gauges().kv_used_blocks == 0
        await mock.stop()

    run_virtual(main())
    return mock


def test_a_stream_comes_token_by_token():
    async def test(mock: MockBackend) -> None:
        pieces = await read(mock.submit(ask(most=20)))
        assert [piece.tokens for piece in pieces] == [1] * 20
        assert [piece.finish_reason for piece in pieces] == [None] * 19 + ["length"]
        assert (pieces[-1].usage.prompt_tokens, pieces[-1].usage.completion_tokens) == (50, 20)
        words = "".join(piece.text for piece in pieces).split()
        assert len(words) == 20
        assert all(a != b for a, b in pairwise(words))

    with_mock(test)


def test_a_whole_answer_is_one_piece_after_the_same_time():
    async def test(mock: MockBackend) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await read(mock.submit(ask(stream=True)))
        streamed_s = loop.time() - begun
        await asyncio.sleep(1 - loop.time())
        begun = loop.time()
        (piece,) = await read(mock.submit(ask(stream=False)))
        assert (piece.tokens, piece.finish_reason, len(piece.text.split())) == (20, "length", 20)
        assert loop.time() - begun == pytest.approx(streamed_s, rel=1e-9)

    with_mock(test)


def test_lengths_are_drawn_unless_the_end_is_ignored():
    async def lengths(mock: MockBackend, **fields: Any) -> list[tuple[int, str]]:
        answers = [mock.submit(ask(stream=False, ignore_eos=False, **fields)) for _ in range(60)]
        return [(p.usage.completion_tokens, p.finish_reason) for a in answers for p in await read(a)]

    async def test(mock: MockBackend) -> None:
        told = await lengths(mock, most=100)
        assert len({tokens for tokens, _ in told}) > 10
        assert {reason for _, reason in told} == {"stop", "length"}
        assert all((tokens == 100) == (reason == "length") for tokens, reason in told)
        assert min(tokens for tokens, _ in await lengths(mock, most=100, min_tokens=40)) >= 40
        assert min(tokens for tokens, _ in await lengths(mock, most=None)) >= 1

    with_mock(test, lengths=Lengths(60, 0.8), deployment=Deployment())
    with pytest.raises(ConfigError, match="median"):
        Lengths(median_tokens=0)


def test_the_same_seed_gives_the_same_lengths():
    seen = []

    async def test(mock: MockBackend) -> None:
        seen.append(
            [
                p.usage.completion_tokens
                for _ in range(5)
                for p in await read(mock.submit(ask(stream=False, ignore_eos=False, most=None)))
            ]
        )

    for seed in (1, 1, 2):
        with_mock(test, seed=seed, deployment=Deployment())
    assert seen[0] == seen[1] != seen[2]


@pytest.mark.parametrize("after", [0, 1, 5])
@pytest.mark.parametrize("stream", [True, False])
def test_an_abort_frees_seat_and_blocks_at_once(after: int, stream: bool):
    async def test(mock: MockBackend) -> None:
        gone, stays = mock.submit(ask("gone", most=1000, stream=stream)), mock.submit(ask("stays", most=30))
        reading = asyncio.create_task(read(gone))
        if after:
            await asyncio.sleep(0.01 * after)
            assert mock.load().running == 2
        gone.abort()
        gone.abort()
        assert len(await reading) <= 4 * after
        assert mock.engine.alive == 1
        if after:
            assert mock.load().running == 1
        assert sum(piece.tokens for piece in await read(stays)) == 30

    with_mock(test)


def test_ten_thousand_leave_at_once():
    async def test(mock: MockBackend) -> None:
        answers = [mock.submit(ask(str(i))) for i in range(3000)]
        await asyncio.sleep(0.05)
        assert mock.load().waiting > 2000
        for answer in answers:
            answer.abort()
        assert mock.engine.alive == 0
        assert not mock._answers

    with_mock(test, deployment=Deployment(kv_blocks=3000))


def test_a_slow_reader_gets_larger_pieces():
    async def test(mock: MockBackend) -> None:
        answer = mock.submit(ask(most=50))
        first = await anext(answer)
        await asyncio.sleep(30)
        assert answer.ready()
        rest = await read(answer)
        assert (first.tokens, [piece.tokens for piece in rest]) == (1, [49])
        assert answer.ready()

    with_mock(test)


def test_rows_are_used_again():
    async def test(mock: MockBackend) -> None:
        sizes = set()
        for i in range(60):
            answers = [mock.submit(ask(f"{i}.{j}", most=2, stream=j % 2 == 0)) for j in range(50)]
            for answer in answers:
                await read(answer)
            if i > 10:
                sizes.add((len(mock.engine._tickets), len(mock.engine._question.key_ids), mock.engine.arena.size))
        assert len(sizes) == 1, "3,000 requests in the room of the first 500"

    with_mock(test)


@pytest.mark.parametrize("kind", FAILURES)
def test_each_failure(kind: str):
    async def test(mock: MockBackend) -> None:
        loop = asyncio.get_running_loop()
        answer, begun = mock.submit(ask(most=21)), loop.time()
        pieces: list[Piece] = []

        async def reads() -> None:
            async for piece in answer:
                pieces.append(piece)

        if kind == "hang":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reads(), 100)
            answer.abort()
        elif kind == "slow":
            await reads()
            assert len(pieces) == 21
            assert loop.time() - begun > SLOW_S
        else:
            with pytest.raises(BackendError) as told:
                await reads()
            expected = {
                "refuse": (502, True, False, 0),
                "error": (500, True, True, 0),
                "overload": (503, False, False, 0),
                "die": (502, True, True, 10),
            }
            error = told.value
            assert (error.status, error.fault, error.sent, len(pieces)) == expected[kind]
            assert (error.retry_after_s is not None) == (kind == "overload")
        assert mock._failures.counts == {kind: 1}

    with_mock(test, failures={kind: 1.0})


def test_a_whole_answer_dies_too():
    async def test(mock: MockBackend) -> None:
        with pytest.raises(BackendError, match="middle"):
            await read(mock.submit(ask(stream=False)))

    with_mock(test, failures={"die": 1.0})


def test_chances_are_checked():
    for failures, told in (
        ({"explode": 0.1}, "no such failure"),
        ({"die": 0.7, "hang": 0.7}, "add up"),
        ({"die": -1}, "no chance"),
    ):
        with pytest.raises(ConfigError, match=told):
            MockBackend(failures=failures)


def test_what_cannot_be_served_is_refused():
    async def test(mock: MockBackend) -> None:
        too_long = mock.submit(ask(prompt=mock.capabilities().max_model_len))
        with pytest.raises(BackendError, match="takes") as told:
            await read(too_long)
        assert (told.value.status, told.value.code, told.value.fault) == (400, "context_length_exceeded", False)
        refused = mock.apply({"kv_budget_fraction": 0.1})
        assert refused == {}
        with pytest.raises(BackendError, match="does not fit") as told:
            await read(mock.submit(ask(prompt=2000)))
        assert told.value.status == 400

    with_mock(test)


def test_knobs_take_effect_while_it_runs():
    async def test(mock: MockBackend) -> None:
        assert mock.apply({"batch_cap": 2, "priority_routing": True, "speculation_depth": 3}) == {}
        assert mock.capabilities().native_concurrency == 2
        answers = [mock.submit(ask(str(i))) for i in range(6)]
        await asyncio.sleep(0.05)
        assert (mock.load().running, mock.load().waiting) == (2, 4)
        assert mock.apply({"batch_cap": 6, "quantization_tier": "INT4"}).keys() == {"quantization_tier"}
        for answer in answers:
            await read(answer)
        assert mock.load().more["drafted"] > 0
        assert mock.apply({"speculation_depth": 99}).keys() == {"speculation_depth"}
        assert mock.apply({"priority_routing": False, "speculation_depth": 0}) == {}
        assert mock.settings.order == "fcfs"

    with_mock(test)


def test_equal_prompts_hit_the_prefix_cache():
    async def test(mock: MockBackend) -> None:
        def of(text: str) -> Ask:
            one = ask(prompt=100)
            one.fields.prompt = text
            return one

        cached = [
            (await read(mock.submit(of(text))))[-1].usage.cached_tokens
            for text in ("a" * 400, "a" * 400, "a" * 200 + "b" * 200, "c" * 400)
        ]
        assert cached == [0, 96, 48, 0]

    with_mock(test)


def test_time_can_run_faster():
    async def duration_s(mock: MockBackend) -> float:
        loop = asyncio.get_running_loop()
        await read(mock.submit(ask()))
        return loop.time()

    told = {}

    def at(scale: float) -> None:
        async def test(mock: MockBackend) -> None:
            told[scale] = await duration_s(mock)

        with_mock(test, time_scale=scale)

    at(1.0)
    at(10.0)
    assert told[1.0] == pytest.approx(10 * told[10.0], rel=1e-6)
    with pytest.raises(ConfigError, match="time_scale"):
        MockBackend(time_scale=0)


def test_no_request_begins_after_its_first_token_on_a_coarse_clock():
    """The timers of uvloop count whole milliseconds and may fire early; a step here takes some microseconds of the clock."""

    async def main() -> None:
        mock = MockBackend(deployment=SMALL, time_scale=1000.0, clock=time.monotonic)
        await mock.start()
        for _ in range(200):
            asked_s = time.monotonic()
            answer = mock.submit(ask(most=3))
            await anext(answer)
            assert asked_s <= answer.scheduled_s <= time.monotonic()
            await read(answer)
        await mock.stop()

    uvloop.run(main())


def test_a_stop_breaks_off_and_it_can_start_again():
    async def main() -> None:
        mock = MockBackend(deployment=SMALL)
        with pytest.raises(BackendError, match="not running"):
            await read(mock.submit(ask()))
        for _ in range(2):
            await mock.start()
            assert await mock.healthy()
            answer = mock.submit(ask())
            assert (await anext(answer)).tokens == 1
            await mock.stop()
            assert not await mock.healthy()
            with pytest.raises(BackendError, match="stopped"):
                await read(answer)

    run_virtual(main())


def test_from_settings():
    one = BackendSettings(
        "mock", gpu="a100", gpus=2, model="llama-3.1-8b", served_models=("x",), max_num_seqs=7, engine={"order": "sjf", "acceptance": [0.5, 0.4]}
    )  # fmt: skip
    mock = MockBackend.of(one)
    assert (mock.models, mock.capabilities().native_concurrency, mock.settings.order) == (("x",), 7, "sjf")
    with pytest.raises(ConfigError, match="says it too"):
        MockBackend.of(BackendSettings("mock", max_num_seqs=7, engine={"max_num_seqs": 8}))
    with pytest.raises(ConfigError, match="no such setting"):
        MockBackend.of(BackendSettings("mock", engine={"speed": 8}))


def test_texts_go_on_for_ever():
    assert text_of(0, 10_000) == text_of(0, 4096) * 2 + text_of(0, 1808)
    assert text_of(5, 3) + text_of(8, 4) == text_of(5, 7)
    assert text_of(4095, 2) == text_of(4095, 1) + text_of(0, 1)
