"""The Workloads section: `/api/workloads` lists what there is, `/api/workloads/{name}` describes one. The desk does the work.

Times are seconds, rates requests per second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from inferencegym.ground.errors import ConfigError
from inferencegym.web import answers
from inferencegym.web.desk import Desk

_MOST_SEED = (1 << 31) - 1
#: What may be asked for: a clock of picoseconds goes on for 106 days.
_DURATIONS_S, _RATES_RPS = (0.001, 9_000_000.0), (0.001, 100_000.0)
_SPLITS = ("train", "validation", "test")


class Asked(Struct, frozen=True):
    """Which workload, and how much of it. What is unset is the workload's own."""

    name: str
    """As the list has it: azure-conversation, azure_conv_2023, bursty_workload; or KIND:NAME, e.g. task:azure_code."""
    seed: int | None = None
    """Of what is drawn; of a task the scenario's number."""
    duration_s: float | None = None
    """How much to draw; of a trace how much from its start."""
    rate_rps: float | None = None
    """Mean rate to bring it to."""
    split: str | None = None
    """Of a task's scenarios: train, validation (unless told otherwise) or test."""


class WorkloadsSection:
    """What traffic looks like."""

    name = "workloads"

    def __init__(self, desk: Desk) -> None:
        """`desk`: its own from now on, to close as well."""
        self._desk = desk

    def routes(self) -> Sequence[BaseRoute]:
        """Its routes, below `/dashboard/api`."""
        return [Route("/workloads", self._all), Route("/workloads/{name}", self._one)]

    def close(self) -> None:
        """End the desk."""
        self._desk.close()

    async def _all(self, _: Request) -> Response:
        return answers.answer({"workloads": await self._desk.call(_listing)})

    async def _one(self, request: Request) -> Response:
        asked = asked_of(request.path_params["name"], request.query_params)
        return Response(await self._desk.call(_described, asked), media_type="application/json")


def asked_of(name: str, query: Mapping[str, str]) -> Asked:
    """What a query asks for; ConfigError names the field that is wrong."""
    for field in query:
        if field not in Asked.__struct_fields__[1:]:
            raise ConfigError(field[:40], "is not known", allowed=", ".join(Asked.__struct_fields__[1:]))
    split = query.get("split") or None
    if split is not None and split not in _SPLITS:
        raise ConfigError("split", f"'{split[:40]}'", allowed=", ".join(_SPLITS))
    return Asked(
        name, seed=_seed(query.get("seed")), duration_s=_within("duration_s", query.get("duration_s"), _DURATIONS_S),
        rate_rps=_within("rate_rps", query.get("rate_rps"), _RATES_RPS), split=split,
    )  # fmt: skip


def _seed(said: str | None) -> int | None:
    if not said:
        return None
    if not (said.isascii() and said.isdigit() and len(said) < 12 and int(said) <= _MOST_SEED):
        raise ConfigError("seed", f"'{said[:40]}'", allowed=f"a whole number from 0 to {_MOST_SEED:,}")
    return int(said)


def _within(field: str, said: str | None, limits: tuple[float, float]) -> float | None:
    if not said:
        return None
    try:
        value = float(said)
    except ValueError:
        value = math.nan
    if not limits[0] <= value <= limits[1]:
        raise ConfigError(field, f"'{said[:40]}'", allowed=f"a number from {limits[0]:g} to {limits[1]:,.0f}")
    return value


def _listing() -> list[dict[str, Any]]:
    """At the desk: what there is."""
    from inferencegym.web.workload_desk import listing

    return listing()


def _described(asked: Asked) -> bytes:
    """At the desk: one workload's figures as JSON."""
    from inferencegym.web.workload_desk import described

    return described(asked)
