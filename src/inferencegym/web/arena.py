"""The Arena's part of the interface: what there is to play, runs, their streams and their exports; and, of each policy of a run, what Episode asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from inferencegym.web import answers, frames
from inferencegym.web.desk import Desk
from inferencegym.web.episode import EpisodeRoutes
from inferencegym.web.runs import BusyError, Limits, Run, RunTable, UnknownRunError
from inferencegym.web.spec import Prepared, Spec

#: Seconds of silence after which a stream says that it is alive; bytes that are sent in one piece.
_ALIVE_S, _PIECE = 3.0, 1 << 18
_MOST_FRAMES = 10_000_000
_KINDS = {
    "json": "application/json", "parquet": "application/vnd.apache.parquet", "html": "text/html; charset=utf-8",
}  # fmt: skip


class ArenaSection:
    """Runs, and what can be played (protocol `web.app.Section`)."""

    name = "arena"

    def __init__(self, desk: Desk, limits: Limits | None = None) -> None:
        """`desk`: its own from now on, to close as well."""
        self.desk = desk
        self.table = RunTable(limits)
        # To play a long episode again may take ten seconds, and whoever wants to begin a run need not wait for it.
        self._replays = Desk()
        self._episode = EpisodeRoutes(self.table, self._replays)

    def routes(self) -> list[BaseRoute]:
        """Catalogue, runs, streams, exports, and the Episode page's."""
        return [
            Route("/catalogue", self._catalogue),
            Route("/runs", self._start, methods=["POST"]),
            Route("/runs/{run}", self._run),
            Route("/runs/{run}/stream", self._stream),
            Route("/runs/{run}/export.{kind}", self._export),
            *self._episode.routes(),
        ]

    def close(self) -> None:
        """End all runs and the desks."""
        self.table.close()
        self.desk.close()
        self._replays.close()

    async def _catalogue(self, _: Request) -> Response:
        return Response(await self.desk.ask("inferencegym.web.play:catalogue"), media_type="application/json")

    async def _start(self, request: Request) -> Response:
        spec: Spec = await answers.body(request, Spec)
        prepared: Prepared = await self.desk.ask("inferencegym.web.play:prepared", spec)
        try:
            return answers.answer(told(self.table, self.table.start(prepared)))
        except BusyError as error:
            return answers.refusal(503, str(error))

    async def _run(self, request: Request) -> Response:
        run = self._found(request)
        return run if isinstance(run, Response) else answers.answer(told(self.table, run))

    async def _stream(self, request: Request) -> Response:
        run = self._found(request)
        if isinstance(run, Response):
            return run
        at = answers.number(request, "frame", 0, _MOST_FRAMES)
        return StreamingResponse(self._frames(run, at), media_type="application/octet-stream")

    async def _frames(self, run: Run, at: int) -> AsyncIterator[bytes]:
        with self.table.watched(run):
            while True:
                news = run.news
                if at < len(run.frames):
                    piece, size = [], 0
                    while at < len(run.frames) and size < _PIECE:
                        piece.append(run.frames[at])
                        size += len(run.frames[at])
                        at += 1
                    yield b"".join(piece)
                elif run.over:
                    return
                else:
                    try:
                        async with asyncio.timeout(_ALIVE_S):
                            await news.wait()
                    except TimeoutError:
                        yield frames.alive(self.table.place(run))

    async def _export(self, request: Request) -> Response:
        run, kind = self._found(request), request.path_params["kind"]
        if isinstance(run, Response):
            return run
        if kind not in _KINDS:
            return answers.refusal(404, f"There is no export as '{kind[:20]}'", field="kind", allowed=", ".join(_KINDS))
        if not run.over:
            return answers.refusal(
                409, "The run is still being played; it can be exported when all its policies have ended"
            )
        if not any(part.result for part in run.parts):
            return answers.refusal(409, f"The run failed, so there is nothing to export: {run.message}")
        with self.table.watched(run):
            data = await self.desk.ask(
                "inferencegym.web.export:made", kind, msgspec.json.encode(told(self.table, run)), run.frames
            )
        name = f"{run.spec.task}-{run.spec.split}-{run.spec.seed}-{run.id[:8]}.{kind}"
        return Response(
            data, media_type=_KINDS[kind], headers={"content-disposition": f'attachment; filename="{name}"'}
        )

    def _found(self, request: Request) -> Run | Response:
        try:
            return self.table.find(request.path_params["run"])
        except UnknownRunError as error:
            return answers.refusal(404, str(error))


def told(table: RunTable, run: Run) -> dict[str, Any]:
    """A run as the pages read it."""
    prepared = run.prepared
    return {
        "id": run.id, "spec": run.spec, "link": run.spec.query(), "task_digest": prepared.task_digest, "state": run.state,
        "place": table.place(run), "message": run.message, "samples": prepared.samples,
        "decisions_per_sample": prepared.decisions_per_sample, "sample_s": prepared.sample_s, "sample_name": prepared.sample_name,
        "columns": prepared.columns, "command": prepared.command, "cpu_s": run.cpu_s,
        "policies": [
            {
                "name": part.name, "slot": slot, "state": part.state, "samples": part.samples, "decisions": part.decisions,
                "result": part.result, "message": part.message,
            }
            for slot, part in enumerate(run.parts)
        ],
    }  # fmt: skip
