"""What the mock and the recorder cost: CPU microseconds a request, and resident memory before and after a soak.

`python benchmarks/mock.py [--requests 100000] [--json]`. Sixteen clients without HTTP ask for 16 tokens each, time runs 10,000 times faster than real;
steps are one a request, so this is what the mock adds to a gateway's own work.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path

import uvloop

from inferencegym.metrics.record import Outcome
from inferencegym.runtime.backends.mock import MockBackend
from inferencegym.runtime.ports import COMPLETIONS, Ask, Usage
from inferencegym.runtime.recorder import Recorder
from inferencegym.runtime.settings import ServiceClass
from inferencegym.runtime.wire import Completion

CLIENTS, TOKENS, ROUND = 16, 16, 8000


def resident_mb() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def ask(stream: bool) -> Ask:
    body = Completion(model="m", prompt="hello world " * 17, max_tokens=TOKENS, ignore_eos=True, stream=stream)
    return Ask("r", COMPLETIONS, "m", b"", body, 50, TOKENS, stream, asyncio.get_running_loop().time())


async def cost_us(mock: MockBackend, stream: bool, requests: int) -> float:
    """CPU microseconds a request."""

    async def client() -> None:
        for _ in range(requests // CLIENTS):
            async for _ in mock.submit(ask(stream)):
                pass

    begun = time.process_time()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return (time.process_time() - begun) / requests * 1e6


async def of_mock(soak: int) -> dict[str, float]:
    mock = MockBackend(time_scale=1e4)
    await mock.start()
    told = {}
    for name, stream in (("mock_whole_us", False), ("mock_stream_us", True)):
        told[name] = min([await cost_us(mock, stream, ROUND) for _ in range(3)])
    told["resident_mb_before"] = resident_mb()
    await cost_us(mock, False, soak)
    told["resident_mb_after"] = resident_mb()
    await mock.stop()
    return told


async def of_recorder() -> dict[str, float]:
    recorder = Recorder((ServiceClass("default"),), time.monotonic)
    told = {}
    for name, tokens in (("recorder_1_token_us", 1), ("recorder_16_tokens_us", 16)):
        asks = [ask(True) for _ in range(ROUND)]
        begun = time.process_time()
        for one in asks:
            recorder.begin(one)
            recorder.scheduled(one)
            for _ in range(tokens):
                recorder.tokens(one, 1)
            recorder.finish(one, Outcome.OK, Usage(50, tokens))
        told[name] = (time.process_time() - begun) / ROUND * 1e6
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000, help="requests of the soak")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    told = uvloop.run(of_mock(given.requests)) | uvloop.run(of_recorder())
    print(json.dumps(told) if given.json else "\n".join(f"{name:24} {value:8.1f}" for name, value in told.items()))


if __name__ == "__main__":
    main()
