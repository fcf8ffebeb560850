"""The Episode page's part of the interface: the decisions of one policy of a run, its course, its state at any moment, and why it ended so.

All of it is worked out at the Desk from the actions that the run has made so far; nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from inferencegym.web import answers
from inferencegym.web.desk import Desk
from inferencegym.web.runs import RunTable, UnknownRunError
from inferencegym.web.spec import Spec

#: Most decisions of an episode; longer numbers in an address are mistakes.
_MOST = 1_000_000
_ROWS = 100


class EpisodeRoutes:
    """Routes below `/runs/{id}/policies/{i}`."""

    def __init__(self, runs: RunTable, desk: Desk) -> None:
        self._runs, self._desk = runs, desk

    def routes(self) -> list[Route]:
        """For the section that has the runs."""
        base = "/runs/{run}/policies/{policy}"
        return [
            Route(f"{base}/rows", self._rows), Route(f"{base}/course", self._course), Route(f"{base}/state", self._state),
            Route(f"{base}/why", self._why),
        ]  # fmt: skip

    async def _rows(self, request: Request) -> Response:
        first, count = answers.number(request, "first", 0, _MOST), answers.number(request, "count", _ROWS, _MOST)
        return await self._answer(request, "detail", "rows", first, count, request.query_params.get("only", ""))

    async def _course(self, request: Request) -> Response:
        return await self._answer(request, "detail", "course", answers.number(request, "first", 0, _MOST))

    async def _state(self, request: Request) -> Response:
        return await self._answer(request, "detail", "state", answers.number(request, "decision", 0, _MOST))

    async def _why(self, request: Request) -> Response:
        return await self._answer(request, "why", "why")

    async def _answer(self, request: Request, module: str, function: str, *arguments: Any) -> Response:
        run, said = request.path_params["run"], request.path_params["policy"]
        if not (said.isascii() and said.isdigit() and len(said) <= 2):
            raise HTTPException(404, "A policy of a run goes by its number, from 0 on")
        policy = int(said)
        try:
            spec, actions = self._runs.actions(run, policy)
            results = [part.result for part in self._runs.find(run).parts]
        except UnknownRunError as error:
            raise HTTPException(404, str(error)) from error
        key = f"{run}/{policy}"
        found = await self._desk.call(at_desk, module, function, key, policy, spec, actions, results, *arguments)
        return Response(found, media_type="application/json")


def at_desk(
    module: str,
    function: str,
    key: str,
    policy: int,
    spec: Spec,
    actions: bytes,
    results: Sequence[dict[str, Any] | None],
    *arguments: Any,
) -> bytes:
    """Over there: find the function, ask it, and encode what it says. The modules are named, not imported, so that the server need not load them."""
    detail = import_module("inferencegym.web.detail")
    call: Callable[..., Any] = getattr(import_module(f"inferencegym.web.{module}"), function)
    others = tuple(
        (name, result)
        for i, (name, result) in enumerate(zip(spec.policies, results, strict=True))
        if i != policy and result is not None
    )
    asked = detail.Asked(key, spec.task, spec.split, spec.seed, actions, spec.overrides, others)
    return msgspec.json.encode(call(asked, *arguments))
