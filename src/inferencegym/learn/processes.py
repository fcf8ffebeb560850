"""Processes of a pool that belong to their parent: an interrupt is the parent's to judge, and none lives on when the parent is gone.

Ctrl-C in a terminal goes to every process of a command at once. A worker that is hit in the middle of a job, or in its start, prints a
traceback of its own and breaks the pool, so workers are born deaf to it, and whoever owns the pool stops them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import parent_process, resource_tracker
from threading import Thread, current_thread, main_thread
from typing import Any


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Ctrl-C in this block is held back until its end; processes that are started in it never see one."""
    # As it begins it would take the block away.
    resource_tracker.ensure_running()
    # Blocked is what processes inherit. Another thread of this one may take the signal all the same, and Python then answers it in the main thread.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    answer, held = signal.getsignal(signal.SIGINT), []
    mine = callable(answer) and current_thread() is main_thread()
    if mine:
        signal.signal(signal.SIGINT, lambda *told: held.append(told))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if mine:
            signal.signal(signal.SIGINT, answer)
        if held and callable(answer):
            answer(*held[0])


def end_with_parent(then: Callable[..., Any] | None = None, *given: Any) -> None:
    """For a pool's `initializer`: this process ends when its parent does, even if that was killed. `then(*given)`: what else is to be done first."""
    parent = parent_process()
    assert parent is not None, "this process was not started by multiprocessing"

    def follow() -> None:
        parent.join()
        os._exit(1)

    Thread(target=follow, name="end-with-parent", daemon=True).start()
    if then is not None:
        then(*given)


def hear_the_end(pool: ProcessPoolExecutor) -> None:
    """For a pool whose processes have all begun: an answer that breaks off because its process dies is the pool's end, not a wait for the rest of it."""
    # As long as this process could write to the pipe as well, whoever reads it would wait.
    answers: Any = pool._result_queue
    if answers is not None:
        answers._writer.close()


def stop_now(pool: ProcessPoolExecutor) -> None:
    """End a pool's processes in the middle of what they do; results that are not fetched yet are lost."""
    # From Python 3.14 on there is `terminate_workers`, which does the same.
    # Another thread that is just beginning a process holds the lock until it is among them.
    with pool._shutdown_lock:
        hear_the_end(pool)
        for process in list((pool._processes or {}).values()):
            process.terminate()
    pool.shutdown(wait=True, cancel_futures=True)
