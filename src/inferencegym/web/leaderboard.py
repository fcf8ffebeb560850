"""The Leaderboard section: `/api/leaderboard` is the table that ships with the package, `/api/leaderboard/{task}/weights` the weights behind `learned`.

`leaderboard.json` is written by `runs/leaderboard.py table` together with the tables in README and docs. Grades are 0 for random, 1 for the clairvoyant.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route

FILE = Path(__file__).with_name("leaderboard.json")
WEIGHTS = Path(__file__).parent.parent / "policies" / "weights"
_STATIC, _LEARNED = "best-static", "learned"


class LeaderboardSection:
    """Every policy that was entered, with what it reached and how to see it again."""

    name = "leaderboard"

    def __init__(self) -> None:
        self._told = msgspec.json.encode(told())

    def routes(self) -> Sequence[BaseRoute]:
        """Its routes, below `/dashboard/api`."""
        return [Route("/leaderboard", self._all), Route("/leaderboard/{task}/weights", self._weights)]

    def close(self) -> None:
        """Nothing to end."""

    async def _all(self, _: Request) -> Response:
        return Response(self._told, media_type="application/json")

    async def _weights(self, request: Request) -> Response:
        name = request.path_params["task"]
        if name not in {one["name"] for one in _shipped()["tasks"]} or not (WEIGHTS / f"{name}.npz").is_file():
            raise HTTPException(404, f"No weights ship for a task '{name}'")
        return FileResponse(WEIGHTS / f"{name}.npz", media_type="application/octet-stream", filename=f"{name}.npz")


def told() -> dict[str, Any]:
    """The table, and for each entry where to go from it."""
    found = _shipped()
    for task in found["tasks"]:
        task["page"] = f"docs/environments/tasks/{task['name']}.md"
        for entry in task["entries"]:
            entry.update(_ways(task["name"], entry))
    return found | {"about": "docs/leaderboard.md", "results": "docs/results/learned.md"}


def _shipped() -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(FILE.read_bytes())
    return found


def _ways(task: str, entry: dict[str, Any]) -> dict[str, Any]:
    """`arena`: the run that shows it beside best static, None for what cannot be named there; `weights`: a path of this interface; the command lines."""
    built_in = entry["plays"] == entry["name"]
    played = entry["plays"]
    if played.endswith(".npz"):
        played = str(Path(entry["file"]).with_name(played))
    several = dict.fromkeys((played, _STATIC))
    evaluate = ["inferencegym", "evaluate", "--policy", ",".join(several), "--task", task, "--seeds", str(entry["scenarios"])]  # fmt: skip
    arena = {"task": task, "policies": ",".join(several), "split": "test", "seed": "0"} if built_in else None
    return {
        "arena": arena,
        "weights": f"leaderboard/{task}/weights" if entry["plays"] == _LEARNED else None,
        "evaluate": shlex.join(evaluate) if entry["plays"] != "episodes" else None,
        "check": shlex.join(["python", "runs/leaderboard.py", "check", f"{task}/{entry['name']}"]),
    }
