"""The desk: one process beside the server for whatever needs NumPy, Numba or a trace, so that neither the server's event loop nor its memory pays for it.

`await desk.call(function, *arguments)` runs a function of a module by name over there and gives its answer. The process starts with the first call;
a call that kills it costs that call and no other.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from multiprocessing import forkserver
from typing import Any, TypeVar

from inferencegym.ground.errors import InferenceGymError
from inferencegym.learn.processes import end_with_parent, hear_the_end, interrupts_wait, stop_now

_T = TypeVar("_T")
#: What a process of ours yields to whoever serves: steps of Unix niceness.
NICE = 10
_ENDS = "The server is shutting down"


class DeskError(InferenceGymError):
    """The desk has no answer: its process died over the call, too many are waiting, or the server is shutting down."""


class Desk:
    """One process that does what it is told, one call after another."""

    def __init__(self, most: int = 64) -> None:
        """`most`: calls that may wait or be under way; who comes then is sent away."""
        self.most = most
        self._pool: ProcessPoolExecutor | None = None
        self._calls = 0
        self._closed = False

    async def call(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """The function's answer, computed over there; its errors are raised here. DeskError if there will be none."""
        if self._closed:
            raise DeskError(_ENDS)
        if self._calls >= self.most:
            raise DeskError(f"{self._calls} questions are waiting for an answer; try again in a few seconds")
        self._calls += 1
        try:
            return await self._called(function, *arguments)
        finally:
            self._calls -= 1

    async def _called(self, function: Callable[..., _T], *arguments: Any) -> _T:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, mp_context=context(), initializer=begin)
        pool = self._pool
        try:
            # To begin the process may take seconds, and the loop has others to serve.
            future = await asyncio.to_thread(_submitted, pool, function, *arguments)
        except (OSError, EOFError, RuntimeError) as error:
            raise self._lost(pool, "could not be started") from error
        try:
            return await asyncio.wrap_future(future)
        except BrokenProcessPool as error:
            raise self._lost(pool, "died") from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if self._closed and not (task and task.cancelling()):
                raise DeskError(_ENDS) from error
            raise

    def _lost(self, pool: ProcessPoolExecutor, how: str) -> DeskError:
        """The process is gone, or never was: the next call has another."""
        if self._pool is pool:
            self._pool = None
        pool.shutdown(wait=False, cancel_futures=True)
        return DeskError(_ENDS if self._closed else f"The process that computes for the dashboard {how}; try again")

    async def ask(self, where: str, *arguments: Any) -> Any:
        """The answer of the function at `package.module:name`, whose module only the process over there imports."""
        return await self.call(_named, where, *arguments)

    def close(self) -> None:
        """End the process, for good; calls under way are given up."""
        self._closed = True
        pool, self._pool = self._pool, None
        if pool is not None:
            # To its end: what is left to the interpreter's own, a signal would leave lying about, with a warning.
            stop_now(pool)


def _submitted(pool: ProcessPoolExecutor, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    future = pool.submit(function, *arguments)
    hear_the_end(pool)
    return future


def _named(where: str, *arguments: Any) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)(*arguments)


def context() -> multiprocessing.context.ForkServerContext:
    """How processes of the dashboard begin: forked from a server that has loaded what they need, once. It begins to load with the first call; nobody waits for that."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["inferencegym.web.kitchen"])
    # While it loads it does not ignore Ctrl-C yet.
    with interrupts_wait():
        forkserver.ensure_running()
    return made


def begin() -> None:
    """What every process of ours does first: step back, leave Ctrl-C to the server, who tells it when to end, and end with the server whatever happens."""
    end_with_parent()
    os.nice(NICE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
