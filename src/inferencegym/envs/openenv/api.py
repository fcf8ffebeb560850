"""Routes of the paging environment for dashboards: its agents, its settings, and whole simulations with a log of every decision, page by page.

Settings belong to the request that carries them; the server keeps none, so no user's settings can reach another's episode.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Body
from pydantic import BaseModel, ConfigDict, Field

from inferencegym.decision.paging import COLUMNS, NAMES
from inferencegym.envs.actors import BEST_STATIC, LEARNED, actor
from inferencegym.envs.batch import Outcome
from inferencegym.envs.episode import Episode, record
from inferencegym.envs.openenv import answers, tasks
from inferencegym.envs.openenv.contract import whole
from inferencegym.envs.overrides import overridden
from inferencegym.envs.pagedkv import PagedTask
from inferencegym.envs.splits import SPLIT_SIZE, SPLITS
from inferencegym.ground.errors import ConfigError, UnknownNameError
from inferencegym.policies.catalogue import policy_names

LADDER = ("easy", "medium", "hard")
#: Who plays an episode in about a second.
AGENTS = (*policy_names("paging"), BEST_STATIC, LEARNED)
#: Overrides of a task, and the settings that stand for them.
_OVERRIDES = {
    "gpu_blocks": "gpu_total_blocks", "cpu_blocks": "cpu_total_blocks", "block_tokens": "tokens_per_block", "horizon_ticks": "max_ticks",
}  # fmt: skip


class Settings(BaseModel):
    """What may differ from a shipped task. What is left out stays as the task has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gpu_total_blocks: whole(500, 100_000) | None = Field(None, description="KV blocks on the GPU")
    cpu_total_blocks: whole(1, 1_000_000) | None = Field(None, description="KV blocks on the CPU")
    tokens_per_block: Literal[8, 16, 32, 64] | None = Field(
        None, description="KV tokens that a block holds; the link moves as many bytes as before"
    )
    max_ticks: whole(1, 10_000) | None = Field(None, description="ticks of an episode")


class SimulateBody(BaseModel):
    """Who plays what, and which part of the log to answer."""

    model_config = ConfigDict(extra="forbid")

    agent: str = Field(
        "lru",
        max_length=60,
        description="a name of GET /api/agents",
        json_schema_extra={"enum": list(AGENTS)},
    )
    task: str = Field(
        "easy", max_length=60, description="easy, medium or hard", json_schema_extra={"enum": list(LADDER)}
    )
    seed: whole(0, SPLIT_SIZE - 1) = Field(0, description="scenario within the split")
    split: str = Field(
        "validation", max_length=20, description="train, validation or test", json_schema_extra={"enum": list(SPLITS)}
    )
    ticks: whole(1, 10_000) | None = Field(
        None, description="shorter than the task's horizon; the same as settings.max_ticks"
    )
    settings: Settings = Field(default_factory=lambda: Settings())
    offset: whole(0) = Field(0, description="first decision of the log to answer")
    limit: whole(0, 5000) = Field(500, description="decisions of the log to answer")


def resolved(name: str, settings: Settings) -> dict[str, int]:
    """A task's settings with those asked for in their place."""
    rules = _paged(name).rules
    return {
        "gpu_total_blocks": settings.gpu_total_blocks or rules.gpu_blocks,
        "cpu_total_blocks": rules.cpu_blocks if settings.cpu_total_blocks is None else settings.cpu_total_blocks,
        "tokens_per_block": settings.tokens_per_block or rules.block_tokens,
        "max_ticks": settings.max_ticks or rules.horizon_ticks,
        "decisions_per_tick": rules.decisions_per_tick,
    }


def _paged(name: str) -> PagedTask:
    if name not in LADDER:
        raise UnknownNameError("pagedkv task", name, LADDER)
    task = tasks.find("pagedkv", name)
    assert isinstance(task, PagedTask)
    return task


@dataclass(frozen=True, slots=True)
class _Run:
    task: PagedTask
    episode: Episode
    log: dict[str, Any]


@lru_cache(maxsize=16)
def _simulated(agent: str, name: str, split: str, seed: int, settings: Settings) -> _Run:
    shipped = _paged(name)
    asked = {ours: value for ours, theirs in _OVERRIDES.items() if (value := getattr(settings, theirs)) is not None}
    task = overridden(shipped, asked)
    # Whoever was trained or searched was so for the task as it ships.
    episode = record(task, actor(agent, shipped), split=split, scenario=seed)
    judged = tasks.judged(task, Outcome(episode.value, episode.parts, episode.facts), split, seed)
    facts = episode.facts
    log = {
        "task": name, "agent": agent, "seed": seed, "split": split, "digest": task.digest, "settings": resolved(name, settings),
        "total_reward": episode.total_reward, "final_score": judged["score"], "graded": judged["graded"], "value": episode.value,
        "decisions": len(episode.actions), "ticks_run": int(facts["ticks_survived"]), "crashed": episode.terminated, "parts": episode.parts, "facts": facts,
    }  # fmt: skip
    return _Run(task, episode, log)


def page(run: _Run, offset: int, limit: int) -> list[dict[str, Any]]:
    """Rows of the log: what was seen, done and earned at each decision."""
    episode, per_tick = run.episode, run.task.rules.decisions_per_tick
    last = min(offset + limit, len(episode.actions))
    rows = []
    for t in range(offset, last):
        number = int(episode.actions[t])
        seen = dict(zip(COLUMNS.names, np.asarray(episode.observations[t]).tolist(), strict=True))
        rows.append(
            {
                "decision": t,
                "tick": t // per_tick,
                "action_id": number,
                "action": NAMES[number],
                "reward": float(episode.rewards[t]),
            }
            | seen
        )
    return rows


def paging() -> APIRouter:
    """GET /api/agents, GET and POST /api/settings, POST /api/simulate."""
    router = APIRouter(prefix="/api", tags=["Paging dashboards"])
    at_work = asyncio.Lock()

    @router.get("/agents", responses=answers.answered(answers.Agents))
    async def agents() -> dict[str, Any]:
        """Who can play."""
        return {"agents": [{"id": name, "name": name} for name in AGENTS], "tasks": list(LADDER)}

    @router.get("/settings", responses=answers.answered(answers.Defaults))
    async def defaults() -> dict[str, Any]:
        """Each task's own settings."""
        return {"settings": {name: resolved(name, Settings()) for name in LADDER}, "scope": "request"}

    @router.post("/settings", responses=answers.answered(answers.Checked) | answers.refusals(400, 422))
    async def check(body: Annotated[Settings, Body()]) -> dict[str, Any]:
        """What settings come to on each task. The server keeps nothing: send them again with POST /api/simulate."""
        return {"settings": {name: resolved(name, body) for name in LADDER}, "scope": "request", "kept": False}

    @router.post("/simulate", responses=answers.answered(answers.Simulation) | answers.refusals(400, 422))
    async def simulate(body: SimulateBody) -> dict[str, Any]:
        """A whole episode: its summary, and `limit` decisions of its log from `offset` on; `next_offset` is null at the end."""
        if body.agent not in AGENTS:
            raise UnknownNameError("agent", body.agent, AGENTS)
        if body.split not in SPLITS:
            raise UnknownNameError("split", body.split, tuple(SPLITS))
        settings = body.settings
        if body.ticks is not None:
            if settings.max_ticks not in (None, body.ticks):
                raise ConfigError(
                    "ticks", f"{body.ticks} is not settings.max_ticks {settings.max_ticks}", allowed="one of the two"
                )
            settings = settings.model_copy(update={"max_ticks": body.ticks})
        async with at_work:
            run = await asyncio.to_thread(_simulated, body.agent, body.task, body.split, body.seed, settings)
        end = min(body.offset + body.limit, len(run.episode.actions))
        rows = page(run, body.offset, body.limit)
        return {
            "session": run.log,
            "ticks": rows,
            "offset": body.offset,
            "next_offset": end if end < len(run.episode.actions) else None,
        }

    return router
