"""What llama.cpp's and vLLM's servers have in common: a process of ours or one that is adopted, a health URL, and figures to scrape.

`on_change(well, problem)` is called when it went away, came back, or can take another number of requests. Times are seconds.
"""

from __future__ import annotations

import asyncio
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from yarl import URL

from inferencegym.ground.errors import ConfigError
from inferencegym.runtime.backends.openai import OpenAI
from inferencegym.runtime.backends.process import ServerProcess, free_port
from inferencegym.runtime.ports import CHAT, COMPLETIONS, BackendError, Capabilities, Load

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def read_figures(text: str) -> dict[str, float]:
    """Prometheus' text format: each series by its name, labels summed over; histograms by their `_sum` and `_count`; buckets left out."""
    figures: dict[str, float] = {}
    for line in text.splitlines():
        if not line or line[0] == "#":
            continue
        name, _, rest = line.partition("{") if "{" in line.split(" ", 1)[0] else line.partition(" ")
        if name.endswith("_bucket"):
            continue
        # After the labels, which may hold spaces and braces in quotes, come the value and perhaps a time.
        value = rest.rpartition("}")[2] if rest.rpartition("}")[1] else rest
        try:
            figures[name] = figures.get(name, 0.0) + float(value.split()[0])
        except (ValueError, IndexError):
            continue
    return figures


def full_command(command: Sequence[str], python_part: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """`arguments` put in where a program's own options begin; a Python interpreter is given `python_part` to run."""
    program = command[0]
    given = list(command[1:])
    if Path(program).name.startswith("python") and given[:1] != ["-m"]:
        return [program, *python_part, *arguments, *given]
    leading = next((i for i, part in enumerate(given) if part.startswith("-") and part != "-m"), len(given))
    return [program, *given[:leading], *arguments, *given[leading:]]


class Managed(OpenAI):
    """A server that is started, watched and stopped, or adopted at `url`."""

    def __init__(
        self, name: str, *, url: str = "", models: tuple[str, ...] = (), model: str = "", adopt: bool = False, seats: int,
        environ: Callable[[], Mapping[str, str]] | None = None, log: Path | None = None, start_timeout_s: float = 600.0,
        connect_timeout_s: float = 5.0, read_timeout_s: float = 300.0, api_key: str = "", reuse_after_stream: bool = True,
        max_model_len: int | None = None,
    ) -> None:  # fmt: skip
        """`seats`: requests it computes side by side; `environ` gives the whole environment of the process (None: ours)."""
        if adopt and not url:
            raise ConfigError(
                f"backends.{name}.url", "a server can only be adopted where it is", allowed="http://HOST:PORT"
            )
        if not adopt and url and URL(url).host not in _LOOPBACK:
            raise ConfigError(
                f"backends.{name}.url", f"'{url}' is not this machine", allowed="loopback, or adopt = true"
            )
        super().__init__(
            name, url or f"http://127.0.0.1:{free_port()}", models=models, model=model, api_key=api_key,
            connect_timeout_s=connect_timeout_s, read_timeout_s=read_timeout_s, reuse_after_stream=reuse_after_stream,
            health_path="/health", native_concurrency=seats, max_model_len=max_model_len,
        )  # fmt: skip
        self.adopt, self.seats, self._own_port = adopt, seats, not url
        self._out_then = 0
        """Requests of ours that were with it at the last scrape."""
        self.on_change: Callable[[bool, str], None] = lambda well, problem: None
        self.figures: dict[str, float] = {}
        """Last scraped series."""
        self._drained: asyncio.Future[None] | None = None
        self.process: ServerProcess | None = None
        if not adopt:
            self.process = ServerProcess(
                name, self.command, super().healthy, env=environ, log=log, start_timeout_s=start_timeout_s,
                on_change=lambda well, problem: self.on_change(well, problem),
            )  # fmt: skip

    @abstractmethod
    def command(self) -> list[str]:
        """The program and its arguments."""

    @abstractmethod
    async def learn(self) -> None:
        """Ask a server that has come up what it is."""

    def capabilities(self) -> Capabilities:
        """Chat and completions; `batch_cap` is the one knob."""
        return Capabilities(
            endpoints=frozenset({CHAT, COMPLETIONS}),
            native_concurrency=self.native_concurrency,
            knobs=frozenset({"batch_cap"}),
            max_model_len=self.max_model_len,
            kv_tokens=self.kv_tokens(),
        )

    def kv_tokens(self) -> int | None:
        """Tokens that its KV memory holds, as it says; None where it does not."""
        return None

    async def start(self) -> None:
        """Start it, or find it. BackendError with the end of its log; ConfigError if somebody else has its address."""
        self.open_session()
        if self.process is None:
            if not await super().healthy():
                raise BackendError(
                    f"{self.name}: nobody answers at {self._health}", code="backend_unreachable", sent=False
                )
        else:
            await self._start_process(self.process)
        await self.learn()
        if not self.models:
            self.models = await self.list_models()
        await self.scrape()

    async def _start_process(self, process: ServerProcess) -> None:
        if self._own_port:
            self.set_url(f"http://127.0.0.1:{free_port()}")
        elif await super().healthy():
            raise ConfigError(f"backends.{self.name}.url", f"a server is already there: {self.root}", allowed="adopt = true, or another port")  # fmt: skip
        await process.start()

    async def stop(self) -> None:
        """End it, if it is ours; requests under way break off."""
        await super().stop()
        if self.process is not None:
            await self.process.stop()
            await super().stop()  # a check may have opened the session again

    async def healthy(self) -> bool:
        """Whether its health URL answers 200; scrapes its figures on the way."""
        if self.process is not None and self.process.state != "running":
            return False
        if not await super().healthy():
            return False
        await self.scrape()
        return True

    async def scrape(self) -> None:
        """Its figures as of now, kept for `load`; the last ones stay where they cannot be had."""
        try:
            status, body = await self.get(self.root.join(URL("/metrics")))
        except BackendError:
            return
        if status == 200:
            text = body.decode("utf-8", "replace")
            self.figures = read_figures(text)
            self._out_then = self._out()
            self.read_labels(text)

    def read_labels(self, text: str) -> None:
        """What it says in labels instead of numbers; of Prometheus' text."""

    def figure(self, *names: str) -> float:
        """The first of these series that there is, else NaN."""
        return next((self.figures[name] for name in names if name in self.figures), math.nan)

    def _out(self) -> int:
        """Requests of ours that are with it."""
        return len(self.answers) - self._gated

    def busy(self, running: str, waiting: str) -> tuple[float, float]:
        """How many run and wait there now: as the series said at the last scrape, which may be seconds old, and what of ours has come or gone since."""
        ran, waited = self.figure(running), self.figure(waiting)
        if math.isnan(ran) or math.isnan(waited):
            return ran, waited
        total = max(0.0, ran + waited + self._out() - self._out_then)
        # Where some waited, no more could run.
        room = ran if waited else max(ran, self.native_concurrency or math.inf)
        return min(total, room), max(0.0, total - room)

    @abstractmethod
    def load(self) -> Load:
        """What the last scrape said; what runs and waits, as of now."""

    def moved(self) -> None:
        """Wake who waits for the last request that has gone out."""
        if self._drained is not None and not self._drained.done() and len(self.answers) <= self._gated:
            self._drained.set_result(None)

    async def until_drained(self) -> None:
        """Return when every request of ours that is under way waits at the gate."""
        self._drained = asyncio.get_running_loop().create_future()
        self.moved()
        await self._drained

    def _cap(self, value: object) -> tuple[int, str]:
        """A batch cap, and why it cannot be."""
        whole = isinstance(value, int | float) and not isinstance(value, bool) and value == int(value)
        if not whole or value < 1:  # type: ignore[operator]
            return 0, f"{value!r} is no whole number of at least 1"
        return int(value), ""  # type: ignore[call-overload]
