"""Integers that Python and the kernels share. A kernel chooses behaviour by code, never by a passed function, so that it compiles once.

Each enum's names are what a person types (lower case, `-` and `_` alike); `docs/scheduling.md` says what they do.
"""

from __future__ import annotations

from enum import IntEnum


class Scheduler(IntEnum):
    VLLM = 0
    SARATHI = 1
    ORCA = 2
    STATIC = 3
    LLAMACPP = 4


class Order(IntEnum):
    FCFS = 0
    PRIORITY = 1
    AGING = 2
    SJF = 3
    EDF = 4
    VTC = 5


class Victims(IntEnum):
    LIFO = 0
    RANK = 1


class Preemption(IntEnum):
    RECOMPUTE = 0
    SWAP = 1
    AUTO = 2


class Router(IntEnum):
    ROUND_ROBIN = 0
    LEAST_LOADED = 1
    PREFIX = 2


class Role(IntEnum):
    """What a replica does: whole requests, or the prefill or the decode half of them."""

    BOTH = 0
    PREFILL = 1
    DECODE = 2


class Phase(IntEnum):
    """Where a live request stands (`state` of its slot)."""

    FREE = 0
    WAITING = 1
    RUNNING = 2
    SWAPPED = 3  # waiting, its KV on the CPU tier
    CARRIED = 4  # waiting, its KV just came from a prefill replica
    ON_WIRE = 5  # its KV is being sent to a decode replica
    PADDING = 6  # static batching: finished, still computed


class Ending(IntEnum):
    """How a request ended; the same numbers as `metrics.record.Outcome`."""

    OK = 0
    REFUSED_LENGTH = 1
    NEVER_FITS = 2
    ABORTED = 3


class Stop(IntEnum):
    """Why the loop returned to Python."""

    DRAINED = 0  # nothing is left to happen
    UNTIL = 1  # the next event lies after `until_ps`
    STEPS = 2  # `max_steps` steps were committed
    NEED_SLOTS = 3  # the request table is full: grow it and call again
    NEED_OUT = 4  # the buffer of records is full: grow it and call again
