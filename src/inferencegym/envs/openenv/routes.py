"""Our routes beside OpenEnv's: episodes over plain HTTP with a session id, tasks, grader, baseline, runtime, and the way to the page.

Without a session_id, `/step` and `/state` do what OpenEnv's own do: a fresh environment for that one call.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query
from fastapi.responses import HTMLResponse, RedirectResponse
from openenv.core.env_server.serialization import serialize_observation
from pydantic import BaseModel, ConfigDict, Field, model_validator

import inferencegym
from inferencegym.decision import paging
from inferencegym.envs.openenv import answers, baseline, tasks
from inferencegym.envs.openenv.contract import branches, positive, whole
from inferencegym.envs.openenv.environment import ENVIRONMENTS, PlantEnvironment
from inferencegym.envs.openenv.grader import EpisodeLog, grade_log
from inferencegym.envs.openenv.models import PagingAction, ServeAction, action_schema, as_action
from inferencegym.envs.openenv.real import RealSettings
from inferencegym.envs.openenv.sessions import SessionTable
from inferencegym.envs.splits import SPLIT_SIZE, SPLITS

SessionId = Annotated[str, Field(min_length=1, max_length=64, description="from POST /reset")]


_DECISION = "see GET /schema; paging also takes a number or a name"


class ResetBody(BaseModel):
    """Which episode to begin, and in which session."""

    model_config = ConfigDict(extra="forbid")

    seed: whole(0, SPLIT_SIZE - 1) | None = Field(
        None, description="scenario within the split; unset: the session's next one"
    )
    episode_id: str | None = Field(
        None, min_length=1, max_length=255, description="name of the episode, echoed in the state"
    )
    task_id: str | None = Field(None, max_length=100, description="a task of GET /tasks; unset: the easiest")
    split: str | None = Field(None, max_length=20, description="train, validation or test; unset: validation")
    index: whole(0) | None = Field(None, description="a task of the task API, instead of task_id and seed")
    session_id: SessionId | None = Field(None, description="a session to begin again in; unset: a new one")


class StepBody(BaseModel):
    """One decision."""

    model_config = ConfigDict(extra="forbid")

    action: Any = Field(None, description=_DECISION)
    session_id: SessionId | None = None
    timeout_s: positive() | None = Field(None, description="taken for compatibility; a step has nothing to wait for")
    request_id: str | None = Field(None, max_length=255, description="taken for compatibility")

    @property
    def decision(self) -> Any:
        """What to do."""
        return self.action


class PagingStepBody(StepBody):
    """One decision, by name, number or as `action_id`."""

    action_id: whole(0, len(paging.ACTIONS) - 1) | None = Field(
        None, description="the action's number, instead of `action`"
    )

    @model_validator(mode="after")
    def _one(self) -> PagingStepBody:
        if (self.action is None) == (self.action_id is None):
            raise ValueError("give `action` or `action_id`")
        return self

    @property
    def decision(self) -> Any:
        """What to do."""
        return self.action if self.action is not None else {"action_id": self.action_id}


def _reset_body(family: str) -> type[ResetBody]:
    """With the family's names in its schema; which tasks there are is checked by the environment, which names them."""
    named = ({"type": "string", "enum": list(tasks.offered(family))},)
    split = ({"type": "string", "enum": list(SPLITS)},)
    last = len(tasks.offered(family)) * tasks.SCENARIOS_LISTED - 1
    by_index = {
        "index": {"type": "integer", "minimum": 0, "maximum": last},
        "task_id": None,
        "seed": None,
        "split": split,
    }
    return _with_schema(ResetBody, branches({"index": None, "task_id": named, "split": split}, by_index))


def _step_body(family: str) -> type[StepBody]:
    action = action_schema(family) | {"description": _DECISION}
    if family == "llmserve":
        return _with_schema(StepBody, branches({"action": action}))
    return _with_schema(
        PagingStepBody, branches({"action": action, "action_id": None}, {"action_id": True, "action": None})
    )


def _taking(**types: Any) -> Callable[[Any], Any]:
    """Gives parameters of a route the types of this server's family, which a text in an annotation cannot name."""

    def mark(route: Any) -> Any:
        route.__annotations__ |= types
        return route

    return mark


def _with_schema(body: Any, write: Any) -> Any:
    config = ConfigDict(extra="forbid", json_schema_extra=write)
    return type(body.__name__, (body,), {"model_config": config, "__doc__": body.__doc__, "__module__": __name__})


class Answer(BaseModel):
    """An observation with its reward, as OpenEnv writes it, and the session it belongs to."""

    observation: dict[str, Any]
    reward: float | None
    done: bool
    metadata: dict[str, Any] = Field(default_factory=dict)
    session_id: str | None = None


class GraderBody(BaseModel):
    """What to grade: the episode of a session, or a recorded one."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra=branches(
            {"session_id": True, "episode_log": None}, {"episode_log": True, "session_id": None}
        ),
    )

    session_id: SessionId | None = None
    episode_log: EpisodeLog | None = None

    @model_validator(mode="after")
    def _one(self) -> GraderBody:
        if (self.session_id is None) == (self.episode_log is None):
            raise ValueError("give session_id or episode_log")
        return self


def _answer(observation: Any, session_id: str | None) -> Answer:
    return Answer(**({"metadata": {}} | serialize_observation(observation)), session_id=session_id)


def episodes(family: str, table: SessionTable, made: type[PlantEnvironment]) -> APIRouter:
    """POST /reset, POST /step, GET /state, and the sessions themselves."""
    router = APIRouter(tags=["Episodes over plain HTTP"])

    answer = answers.answered(answers.outcome(family))

    @router.post("/reset", responses=answer | answers.refusals(400, 404, 422, 429))
    @_taking(body=Annotated[_reset_body(family) | None, Body()])
    async def reset(body: ResetBody | None = None) -> Answer:
        """Begin an episode; without a session_id in a new session, whose id is answered."""
        wanted = body or ResetBody()
        given = wanted.model_dump(exclude={"session_id"}, exclude_none=True)
        session = table.open() if wanted.session_id is None else table.get(wanted.session_id)
        begun = False
        try:
            async with session.lock:
                observation = session.environment.reset(**given)
            begun = True
        finally:
            if not begun and wanted.session_id is None:
                table.delete(session.id)
        return _answer(observation, session.id)

    @router.post("/step", responses=answer | answers.refusals(400, 404, 422))
    @_taking(body=_step_body(family))
    async def step(body: StepBody) -> Answer:
        """Take one decision in a session. Without a session_id: in a fresh environment's first scenario, for this one call."""
        action = as_action(family, body.decision)
        if body.session_id is None:
            fresh = made()
            fresh.reset(seed=0)
            try:
                observation = await fresh.step_async(action)
            finally:
                fresh.close()
            return _answer(observation, None)
        session = table.get(body.session_id)
        async with session.lock:
            return _answer(await session.environment.step_async(action), session.id)

    @router.get("/state", responses=answers.answered(answers.standing(family)) | answers.refusals(404, 422))
    async def state(session_id: Annotated[str | None, Query(min_length=1, max_length=64)] = None) -> dict[str, Any]:
        """Where a session stands. Without a session_id: the state of a fresh environment."""
        if session_id is None:
            return made().state.model_dump() | {"session_id": None}
        session = table.get(session_id)
        return session.environment.state.model_dump() | {"session_id": session.id}

    @router.get("/sessions", responses=answers.answered(answers.Sessions))
    async def sessions() -> dict[str, Any]:
        """Open sessions, each under the first letters of its id."""
        listed = table.listed()
        return {"sessions": listed, "open": len(listed), "cap": table.cap, "idle_s": table.idle_s}

    @router.delete("/sessions/{session_id}", responses=answers.answered(answers.Deleted) | answers.refusals(404))
    async def delete(session_id: str) -> dict[str, Any]:
        """End a session; who knows its whole id may."""
        table.delete(session_id)
        return {"deleted": True}

    return router


def about(family: str, table: SessionTable, real: RealSettings | None = None) -> APIRouter:
    """Tasks, grader, baseline, runtime, and redirects to the page."""
    router = APIRouter(tags=["InferenceGym"])
    started = time.monotonic()
    offered = list(tasks.offered(family))
    at_work = asyncio.Lock()

    @router.get("/tasks", responses=answers.answered(answers.Tasks))
    async def all_tasks() -> dict[str, Any]:
        """Every task, with its difficulty, length and digest, and how to write an action."""
        action = PagingAction if family == "pagedkv" else ServeAction
        return {
            "family": family, "tasks": tasks.described(family), "action_schema": action.model_json_schema(),
            "splits": ENVIRONMENTS[family]().list_splits(), "instructions": tasks.instructions(family),
        }  # fmt: skip

    @router.post("/grader", responses=answers.answered(answers.Judged) | answers.refusals(400, 404, 422))
    async def grader(body: GraderBody) -> dict[str, Any]:
        """Grade the whole episode of a session, or a recorded one by replay."""
        if body.session_id is not None:
            return table.get(body.session_id).environment.grade()
        assert body.episode_log is not None
        async with at_work:
            return await asyncio.to_thread(grade_log, family, body.episode_log)

    @router.get("/baseline", responses=answers.answered(answers.Baseline) | answers.refusals(400, 422))
    @_taking(task_id=Annotated[str | None, Query(max_length=100, json_schema_extra={"enum": [*offered, None]})])
    async def suite(
        task_id: str | None = None,
        seed: Annotated[int, Query(ge=0, lt=SPLIT_SIZE)] = 0,
        use_openai: bool = False,
        model: Annotated[str | None, Query(max_length=200)] = None,
    ) -> dict[str, Any]:
        """The deterministic suite: a rule plays each task from easy to hard (or one). With use_openai a language model plays."""
        names = (task_id,) if task_id is not None else tasks.ladder(family)
        for name in names:
            tasks.find(family, name)
        async with at_work:
            if use_openai:
                return await asyncio.to_thread(baseline.openai_suite, family, names, seed, model)
            return await asyncio.to_thread(baseline.suite, family, names, seed)

    @router.get("/runtime", responses=answers.answered(answers.Runtime))
    async def runtime() -> dict[str, Any]:
        """What runs here, and how busy it is."""
        return {
            "family": family, "mode": "sim" if real is None else "real",
            "backend": "simulated engine" if real is None else "endpoint", "version": inferencegym.__version__,
            "active_sessions": len(table), "max_sessions": table.cap, "session_timeout_s": table.idle_s,
            "uptime_s": round(time.monotonic() - started, 3),
        } | ({} if real is None else {"real": real.told()})  # fmt: skip

    @router.get("/demo", include_in_schema=False)
    async def demo() -> RedirectResponse:
        """To the page."""
        return RedirectResponse("/web", 307)

    return router


def plain_page(family: str) -> APIRouter:
    """What stands at / and /web while OpenEnv's own page is off."""
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/web", 307)

    @router.get("/web", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(
            f"<!doctype html><title>InferenceGym {family}</title><h1>InferenceGym: {family}</h1><p>{ENVIRONMENTS[family].description}</p>"
            "<p>The interactive page is off here; start the server with <code>inferencegym env --web</code>.</p>"
            '<p><a href="/docs">routes</a> · <a href="/tasks">tasks</a> · <a href="/schema">schema</a> · <a href="/runtime">runtime</a></p>'
        )

    return router
