"""A gateway with a mock behind it in virtual time, and clients that ask it without HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from math import inf
from pathlib import Path
from typing import Any

from inferencegym.engine.deployment import Deployment
from inferencegym.engine.settings import EngineSettings
from inferencegym.ground.clock import run_virtual
from inferencegym.runtime.backends.mock import MockBackend
from inferencegym.runtime.backends.pool import Pool, Traits
from inferencegym.runtime.errors import ApiError
from inferencegym.runtime.flow import Flow
from inferencegym.runtime.gateway import Gateway, Head
from inferencegym.runtime.ports import COMPLETIONS, Backend
from inferencegym.runtime.recorder import Recorder
from inferencegym.runtime.settings import Settings
from inferencegym.runtime.wire import Completion


class House:
    """What a test talks to."""

    def __init__(
        self, settings: Settings, backends: list[Backend], traits: dict[str, Traits], path: Path | None, rows: int
    ) -> None:
        self.clock = asyncio.get_running_loop().time
        self.recorder = Recorder(settings.classes, self.clock, path=path, rows_per_file=rows)
        quiet = {b.name: traits.get(b.name, Traits(health_interval_s=inf)) for b in backends}
        self.pool = Pool(backends, traits=quiet)
        self.gateway = Gateway(settings, self.pool, self.recorder, self.clock)
        self.number = 0

    def begin(
        self,
        *,
        prompt: int = 50,
        most: int = 20,
        slo_class: str = "",
        tenant: str = "",
        session: str = "",
        **fields: Any,
    ) -> Flow:
        """Ask; ApiError if it is not let in."""
        self.number += 1
        body = Completion(model="m", prompt=[1] * prompt, max_tokens=most, ignore_eos=True, stream=True, **fields)
        head = Head(f"r{self.number}", slo_class=slo_class, tenant=tenant, session=session)
        return self.gateway.submit(self.gateway.ask(COMPLETIONS, b"", body, head, self.clock()))

    async def ask(self, **asked: Any) -> int:
        """Ask and read it all; the tokens."""
        return await self.read(self.begin(**asked))

    async def read(self, flow: Flow) -> int:
        """Tokens of an answer; those before it broke."""
        tokens = 0
        try:
            while (piece := await flow.next()) is not None:
                tokens += piece.tokens
        except ApiError:
            pass
        return tokens


def mock(name: str = "main", *, kv_blocks: int | None = 2000, seats: int = 8, **options: Any) -> MockBackend:
    """A small one."""
    return MockBackend(name, deployment=Deployment(kv_blocks=kv_blocks), settings=EngineSettings(max_num_seqs=seats, prefix_caching=False), models=("m",), **options)  # fmt: skip


def run_house(
    test: Callable[[House], Awaitable[None]], settings: Settings | None = None, backends: list[Backend] | None = None,
    *, traits: dict[str, Traits] | None = None, path: Path | None = None, rows_per_file: int = 1000,
) -> House:  # fmt: skip
    """Run a test against a gateway that has started; it is stopped afterwards."""

    async def main() -> House:
        house = House(settings or Settings(), backends or [mock()], traits or {}, path, rows_per_file)
        await house.gateway.start()
        await test(house)
        await house.gateway.stop()
        house.recorder.close()
        return house

    return run_virtual(main())
