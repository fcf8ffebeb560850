"""The Episode page's part of the interface: the decisions of one policy of a run, its course, its state at any moment, and why it ended so.

All of it is worked out at the Desk from the actions that the run has made so far; nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple, Protocol

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from inferencegym.ground.errors import ConfigError
from inferencegym.web import answers
from inferencegym.web.desk import Desk

#: Most decisions of an episode; longer numbers in an address are mistakes.
_MOST = 1_000_000
_ROWS = 100


class Played(NamedTuple):
    """What a run knows of one policy's episode so far."""

    spec: Any
    """The run's Spec: task, split, seed, overrides, policies."""
    actions: bytes
    """Dense actions, as `envs.batch.Batch.actions` has them."""
    results: Sequence[dict[str, Any] | None]
    """Of each policy of the run; None before its end."""


class Runs(Protocol):
    """Where runs are kept."""

    def played(self, run: str, policy: int) -> Played:
        """The actions of a run's policy so far. LookupError where there is no such run or policy (any more)."""


class EpisodeRoutes:
    """Routes below `/runs/{id}/policies/{i}`."""

    def __init__(self, runs: Runs, desk: Desk) -> None:
        self._runs, self._desk = runs, desk

    def routes(self) -> list[Route]:
        """For the section that has the runs."""
        base = "/runs/{run}/policies/{policy:int}"
        return [
            Route(f"{base}/rows", self._rows), Route(f"{base}/course", self._course), Route(f"{base}/state", self._state),
            Route(f"{base}/why", self._why),
        ]  # fmt: skip

    async def _rows(self, request: Request) -> Response:
        first, count = _number(request, "first", 0), _number(request, "count", _ROWS)
        return await self._answer(request, "detail", "rows", first, count, request.query_params.get("only", ""))

    async def _course(self, request: Request) -> Response:
        return await self._answer(request, "detail", "course", _number(request, "first", 0))

    async def _state(self, request: Request) -> Response:
        return await self._answer(request, "detail", "state", _number(request, "decision", 0))

    async def _why(self, request: Request) -> Response:
        return await self._answer(request, "why", "why")

    async def _answer(self, request: Request, module: str, function: str, *arguments: Any) -> Response:
        run, policy = request.path_params["run"], request.path_params["policy"]
        try:
            played = self._runs.played(run, policy)
        except LookupError as error:
            raise HTTPException(404, "There is no such run or policy here (any more); post its spec again") from error
        return answers.answer(await self._desk.call(at_desk, module, function, run, policy, played, *arguments))


def at_desk(module: str, function: str, run: str, policy: int, played: Played, *arguments: Any) -> Any:
    """Over there: find the function and ask it. The modules are named, not imported, so that the server need not load them."""
    detail = import_module("inferencegym.web.detail")
    call: Callable[..., Any] = getattr(import_module(f"inferencegym.web.{module}"), function)
    spec, results = played.spec, played.results
    others = tuple(
        (name, result)
        for i, (name, result) in enumerate(zip(spec.policies, results, strict=True))
        if i != policy and result is not None
    )
    return call(
        detail.Asked(f"{run}/{policy}", spec.task, spec.split, spec.seed, played.actions, spec.overrides, results[policy], others), *arguments
    )  # fmt: skip


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit()) or int(text) > _MOST:
        raise ConfigError(name, f"'{text[:40]}' is no such number", allowed=f"whole numbers 0..{_MOST}")
    return int(text)
