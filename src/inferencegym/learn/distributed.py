"""Where independent jobs are done: in this process, in several on this machine, or as Ray tasks on a cluster. Results are the same everywhere.

A job carries all that its result depends on, its chance too, so neither the place nor the order changes a digit. Ray is a guest: it is asked
for by name and needs the extra 'ray'.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import chdir, contextmanager, nullcontext
from importlib import import_module
from multiprocessing import get_context
from socket import create_connection
from typing import Any, TypeVar

import numpy as np

import inferencegym
from inferencegym.ground.errors import ConfigError, InferenceGymError, MissingExtraError
from inferencegym.learn.processes import end_with_parent, interrupts_wait, stop_now

_J = TypeVar("_J")
_R = TypeVar("_R")
Results = Iterator[tuple[int, _R]]

#: A cluster of one's own on this machine, for as long as the jobs last; any other name is an address of one that runs.
LOCAL = "local"
_ADDRESSES = f"{LOCAL} (a cluster on this machine), auto (the one that this machine is in), HOST:PORT of its head"
#: How long a cluster's head is waited for; Ray itself would try for minutes.
_PATIENCE_S = 10.0
#: How often a job is begun again whose worker or machine was lost.
_RETRIES = 3
#: What jobs and results of a cluster of our own are kept in; they are small.
_STORE_BYTES = 200 * 1024**2


def share_out(
    work: Callable[[_J], _R], jobs: Sequence[_J], *, workers: int = 1, ray: str | None = None, here: Collection[int] = ()
) -> Generator[tuple[int, _R], None, None]:  # fmt: skip
    """What `work` makes of each job, with its place, in the order in which they are done.

    `work` (a function of a module, or an object), jobs and results can be pickled. `workers`: processes of this machine; of a Ray cluster of our own, its
    processors. `ray`: a cluster's address (`LOCAL`, auto or HOST:PORT) instead of processes. `here`: places of jobs that must
    stay in this process. The first error ends it all, and is the one that `work` raised; so does Ctrl-C, in the middle of jobs that are begun.
    Whoever may stop before the end closes it, or processes work on until it is collected as garbage, by whichever thread.
    """
    if workers < 1:
        raise ConfigError("workers", f"{workers}", allowed="1 or more")
    kept = set(here)
    away = [(at, job) for at, job in enumerate(jobs) if at not in kept]
    if not away or (workers == 1 and ray is None):
        yield from ((at, work(job)) for at, job in enumerate(jobs))
        return
    place = _processes(work, away, workers) if ray is None else _tasks(work, away, workers, ray)
    with place as results:
        yield from ((at, work(jobs[at])) for at in sorted(kept))
        yield from results


@contextmanager
def _processes(work: Callable[[_J], _R], jobs: Sequence[tuple[int, _J]], workers: int) -> Iterator[Results[_R]]:
    # Fresh processes: a forked one would inherit locks of threads that are not there.
    pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn"), initializer=end_with_parent)
    try:
        with interrupts_wait():
            waiting = {pool.submit(work, job): at for at, job in jobs}
        yield ((waiting[future], future.result()) for future in as_completed(waiting))
    except BaseException:
        # An error, Ctrl-C, or a caller who wants no more: nobody will read what is still being done.
        stop_now(pool)
        raise
    pool.shutdown()


@contextmanager
def _tasks(work: Callable[[_J], _R], jobs: Sequence[tuple[int, _J]], workers: int, address: str) -> Iterator[Results[_R]]:  # fmt: skip
    with connected(address, workers) as ray:
        task = ray.remote(max_retries=_RETRIES)(_on_a_worker)
        versions, folder = _versions(), os.getcwd()
        waiting = {task.remote(work, job, versions, folder): at for at, job in jobs}
        try:
            with own_errors(ray):
                yield ((waiting[done], ray.get(done)) for done in _as_done(ray, list(waiting)))
        finally:
            for reference in waiting:
                ray.cancel(reference)


@contextmanager
def connected(address: str, workers: int) -> Iterator[Any]:
    """Ray, in a cluster: the one that this program is in already, else that of the address until the end of the block."""
    ray = _ray()
    if ray.is_initialized():
        yield ray
        return
    # Ray asks for an agreement to send usage figures, and takes silence for one.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    given: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    if address == LOCAL:
        given |= {"num_cpus": workers, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
    try:
        if address not in (LOCAL, "auto"):
            _knock(address)
        ray.init(**given)
    except (OSError, ValueError) as error:
        raise ConfigError("--ray", f"no cluster answers at '{address}': {_first_line(error)}", allowed=_ADDRESSES) from error  # fmt: skip
    try:
        yield ray
    finally:
        ray.shutdown()


def _ray() -> Any:
    try:
        return import_module("ray")
    except ImportError as error:
        raise MissingExtraError("ray", "sharing work out over a cluster") from error


def _knock(address: str) -> None:
    """OSError unless somebody listens at HOST:PORT; ValueError if it is none."""
    host, _, port = address.rpartition(":")
    with create_connection((host, int(port)), _PATIENCE_S):
        pass


def _on_a_worker(work: Callable[[_J], _R], job: _J, versions: dict[str, str], folder: str) -> _R:
    """A job on a cluster's machine, which must have the versions that the others have; in the same `folder`, if it is there too."""
    own = _versions()
    for name, version in versions.items():
        if own[name] != version:
            raise ConfigError("--ray", f"a worker has {name} {own[name]}, but {version} is here", allowed="the same versions on every machine")  # fmt: skip
    # A worker stands where its machine's Ray was started; files are called as they are called here.
    with chdir(folder) if os.path.isdir(folder) else nullcontext():
        return work(job)


def _versions() -> dict[str, str]:
    """What figures may depend on."""
    return {"inferencegym": inferencegym.__version__, "numpy": np.__version__}


def _as_done(ray: Any, left: list[Any]) -> Iterator[Any]:
    while left:
        done, left = ray.wait(left)
        yield from done


@contextmanager
def own_errors(ray: Any) -> Iterator[None]:
    """Errors of what a cluster does inside: the one that was raised there, not Ray's account of it; and one clear one for a lost worker."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InferenceGymError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise InferenceGymError(
            f"--ray: a worker was lost, at one job {_RETRIES + 1} times ({_first_line(error)}); is its machine out of memory?"
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
