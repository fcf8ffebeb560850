"""Processes that each make what they need once and then do job after job, or no process at all where one worker is asked for.

Results come in the order of the jobs. A job must carry all its chance depends on, so that the number of workers changes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from multiprocessing import get_context
from os import sched_getaffinity
from typing import Any, TypeVar
from weakref import finalize

from inferencegym.learn.processes import end_with_parent

_J = TypeVar("_J")
_R = TypeVar("_R")
_MOST: ContextVar[int | None] = ContextVar("processes that workers may be", default=None)


@contextmanager
def at_most(workers: int | None) -> Iterator[None]:
    """Whoever makes workers inside, without saying how many, gets so many at most: several trainings at once share a machine's processors."""
    before = _MOST.set(workers)
    try:
        yield
    finally:
        _MOST.reset(before)


class Workers:
    """A pool that is opened with its first job, and gone when its owner is."""

    def __init__(self, make: Callable[..., Any], given: tuple[Any, ...], workers: int | None = None) -> None:
        """`make(*given)`: what jobs are done with, made once in each process; `workers`: unset, one for each processor this process may use, but
        `at_most` so many.
        """
        self.make, self.given = make, given
        self._made: Any = None
        self.workers = min(len(sched_getaffinity(0)), _MOST.get() or sys.maxsize) if workers is None else workers
        self._pool: ProcessPoolExecutor | None = None

    def map(self, work: Callable[[Any, _J], _R], jobs: Sequence[_J]) -> Iterator[_R]:
        """`work(what was made, job)` of each job."""
        if self.workers == 1:
            if self._made is None:
                self._made = self.make(*self.given)
            yield from (work(self._made, job) for job in jobs)
            return
        if self._pool is None:
            # Fresh processes: a forked one would inherit locks of threads that are not there.
            self._pool = ProcessPoolExecutor(
                self.workers, mp_context=get_context("spawn"), initializer=end_with_parent, initargs=(_make, self.make, self.given)
            )  # fmt: skip
            # They go when their owner is forgotten.
            finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)
        yield from self._pool.map(partial(_do, work), jobs)


#: In a process of a pool: the one thing that its jobs are done with.
_made: list[Any] = []


def _make(make: Callable[..., Any], given: tuple[Any, ...]) -> None:
    _made.append(make(*given))


def _do(work: Callable[[Any, _J], _R], job: _J) -> _R:
    (made,) = _made
    return work(made, job)
