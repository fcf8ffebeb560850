"""A check: one sentence about a server, how strongly it is meant, and what came of it.

A check's function returns (with a remark, if there is one to make), or raises one of the two errors below. Times are seconds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NoReturn

from inferencegym.ground.errors import InferenceGymError

if TYPE_CHECKING:
    from inferencegym.bench.conformance.talk import Probe

Level = Literal["must", "should"]
Verdict = Literal["pass", "fail", "skipped"]
MUST: Level = "must"
SHOULD: Level = "should"


class CheckFailedError(InferenceGymError):
    """The server does not do what the check says."""

    def __init__(self, seen: str, expected: str) -> None:
        super().__init__(f"{seen}; expected: {expected}")
        self.seen, self.expected = seen, expected


class CheckSkippedError(InferenceGymError):
    """It cannot be told from here whether the server does."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing to be true of a server."""

    id: str
    """What it is called in tables and in JSON; never given to another check."""
    group: str
    """api, refusals, metrics, leaving, overload, upstream or drain."""
    level: Level
    """must: clients lose or misread answers without it. should: operators and libraries ask for it."""
    sentence: str
    run: Callable[[Probe], Awaitable[str | None]]


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a check."""

    check: Check
    verdict: Verdict
    note: str
    """What was seen and what was expected, why it was skipped, or a remark."""
    took_s: float


class Group:
    """The checks of one file, in order."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.checks: list[Check] = []

    def check(
        self, name: str, level: Level
    ) -> Callable[[Callable[[Probe], Awaitable[str | None]]], Callable[[Probe], Awaitable[str | None]]]:
        """The decorated function is the check called `name`; its docstring is the sentence."""

        def add(run: Callable[[Probe], Awaitable[str | None]]) -> Callable[[Probe], Awaitable[str | None]]:
            assert run.__doc__, f"the check {name} says nothing"
            self.checks.append(Check(name, self.name, level, run.__doc__.rstrip("."), run))
            return run

        return add


def expect(true: bool, seen: str, expected: str) -> None:
    """CheckFailedError unless it is true."""
    if not true:
        raise CheckFailedError(seen, expected)


def skip(why: str) -> NoReturn:
    """CheckSkippedError."""
    raise CheckSkippedError(why)
