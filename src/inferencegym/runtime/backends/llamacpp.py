"""llama.cpp's server as a backend: `llama-server` if there is one, else the same server inside the xllamacpp wheel.

What it knows of that server: its queue is unbounded and has no order, so no more requests are handed over than it has slots; slots can only be
changed by a restart, which takes seconds; it closes the connection after a stream whatever it says; it must be told its slots, or all share one
KV pool whose end fails everybody. Its `timings` are exact, and so are the counts of each answer.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from yarl import URL

from inferencegym.ground.errors import ConfigError
from inferencegym.runtime.backends import llama_serve
from inferencegym.runtime.backends.events import garbage
from inferencegym.runtime.backends.managed import Managed, full_command
from inferencegym.runtime.ports import BackendError, Load

SLOTS, SLOT_TOKENS = 4, 4096


class LlamaCpp(Managed):
    """A llama.cpp server; `ctx_tokens` is the context of one slot."""

    # It computes a whole answer to its end though the client has left; it sees that only where it streams.
    always_stream = True
    # Its timings, in the last event, have the counts.
    ask_usage = False

    def __init__(
        self, name: str, *, model_path: str = "", slots: int = SLOTS, ctx_tokens: int = SLOT_TOKENS, batch_tokens: int | None = None,
        threads: int | None = None, n_gpu_layers: int = 0, command: Sequence[str] = (), allow_restart: bool = False,
        drain_timeout_s: float = 60.0, environ: Mapping[str, str] | None = None, **more: Any,
    ) -> None:  # fmt: skip
        """`allow_restart`: more slots than there are may be had by draining and a restart; given up if the drain takes longer than `drain_timeout_s`."""
        inherited = None if environ is None else lambda: environ
        super().__init__(
            name, seats=slots, environ=inherited, reuse_after_stream=False, max_model_len=ctx_tokens, **more
        )
        if not self.adopt and not Path(model_path).is_file():
            raise ConfigError(f"backends.{name}.model_path", f"there is no file '{model_path}'", allowed="a GGUF file")
        self._model_path, self._batch_tokens, self._threads, self._n_gpu_layers = (
            model_path,
            batch_tokens,
            threads,
            n_gpu_layers,
        )
        self._ctx_tokens = ctx_tokens
        self._program = tuple(command) if command or self.adopt else find_program(name)
        self._allow_restart, self._drain_timeout_s = allow_restart, drain_timeout_s
        self._resize: asyncio.Task[None] | None = None
        self.resize_problem = ""
        """Why the last change of slots was given up."""

    def command(self) -> list[str]:
        """llama-server's arguments; the launcher for xllamacpp takes the same."""
        arguments = [
            "-m", self._model_path, "--host", str(self.root.host), "--port", str(self.root.port), "-np", str(self.seats),
            "-c", str(self._ctx_tokens * self.seats), "-ngl", str(self._n_gpu_layers), "-a", self.model or Path(self._model_path).stem,
            "--metrics", "--slots",
        ]  # fmt: skip
        if self._batch_tokens is not None:
            arguments += ["-b", str(self._batch_tokens), "-ub", str(min(self._batch_tokens, 512))]
        if self._threads is not None:
            arguments += ["-t", str(self._threads)]
        # -I: the folder of the launcher must not lie on the path, its neighbours have the names of packages.
        return full_command(self._program, ("-I", llama_serve.__file__), arguments)

    async def learn(self) -> None:
        """Slots and context as the server has them."""
        props = await self.get_json(self.root.join(URL("/props")))
        try:
            seats, tokens = int(props["total_slots"]), int(props["default_generation_settings"]["n_ctx"])
        except (KeyError, TypeError, ValueError):
            raise garbage(f"{self.root}/props names no slots") from None
        if self.native_concurrency is None or self.adopt or self.native_concurrency > seats:
            self.native_concurrency = seats
        self.seats, self.max_model_len = seats, tokens

    def kv_tokens(self) -> int | None:
        """The context of all slots together. An adopted server may share one context among its slots (-kvu), and does not say."""
        return None if self.adopt or self.max_model_len is None else self.max_model_len * self.seats

    async def slots(self) -> list[dict[str, Any]]:
        """What each slot does, as the server says (GET /slots)."""
        found = await self.get_json(self.root.join(URL("/slots")))
        if not isinstance(found, list):
            raise garbage(f"{self.root}/slots is no list")
        return found

    def load(self) -> Load:
        """Slots at work and requests that wait for one; it tells nothing of its KV memory and never preempts."""
        more = {name.removeprefix("llamacpp:"): value for name, value in self.figures.items()}
        return Load(
            *self.busy("llamacpp:requests_processing", "llamacpp:requests_deferred"),
            preemptions=0.0,
            more=more,
        )

    def apply(self, knobs: Mapping[str, object]) -> Mapping[str, str]:
        """`batch_cap` up to the number of slots at once; beyond it only if restarts are allowed, when what runs has ended."""
        refused = {name: f"{self.name} has no knob '{name}'; known: batch_cap" for name in knobs if name != "batch_cap"}
        if "batch_cap" in knobs and (problem := self._apply_cap(knobs["batch_cap"])):
            refused["batch_cap"] = problem
        return refused

    def _apply_cap(self, value: object) -> str:
        cap, problem = self._cap(value)
        if problem:
            return problem
        if self._resize is not None and not self._resize.done():
            return f"{self.name} is being restarted with other slots"
        if cap <= self.seats:
            self.native_concurrency = cap
            self.on_change(True, "")
            return ""
        if self.process is None or not self._allow_restart:
            return f"{self.name} has {self.seats} slots, and more need a restart, which is not allowed"
        self._resize = asyncio.get_running_loop().create_task(self.resize(cap))
        return ""

    async def resize(self, slots: int) -> None:
        """Hold new requests, let the others end, restart with so many slots, go on; with the old number where that fails."""
        assert self.process is not None, "an adopted server is not restarted"
        self.gate = asyncio.Event()
        before, self.resize_problem = self.seats, ""
        try:
            try:
                async with asyncio.timeout(self._drain_timeout_s):
                    await self.until_drained()
            except TimeoutError:
                self.resize_problem = (
                    f"requests were still under way after {self._drain_timeout_s:g} s; it has {before} slots as before"
                )
                return
            await self.process.stop()
            for seats in (slots, before):
                self.seats = self.native_concurrency = seats
                try:
                    await self._start_process(self.process)
                    await self.learn()
                    break
                except BackendError as error:
                    self.resize_problem = error.message
        finally:
            self.gate.set()
            self.gate = None
            well = self.process.state == "running"
            self.on_change(well, "" if well else self.resize_problem)

    async def stop(self) -> None:
        """End it, also in the middle of a restart."""
        if self._resize is not None:
            self._resize.cancel()
            await asyncio.gather(self._resize, return_exceptions=True)
        await super().stop()


def find_program(name: str) -> tuple[str, ...]:
    """llama-server on the path, else this Python if it has xllamacpp. ConfigError that says what to install."""
    if (found := shutil.which("llama-server")) is not None:
        return (found,)
    if find_spec("xllamacpp") is not None:
        return (sys.executable,)
    raise ConfigError(
        f"backends.{name}.command", "there is no llama-server on the path and no xllamacpp here",
        allowed="type: pip install xllamacpp==2026.10.11549, or set command to a llama-server or to a Python that has xllamacpp",
    )  # fmt: skip
