"""What our routes answer, as their OpenAPI document promises it: no field more, none less. Only documents; nothing is validated on the way out.

Times are seconds, rewards -1..1, scores 0..1.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from openenv.core.env_server.types import State
from pydantic import BaseModel, ConfigDict, Field, create_model

from inferencegym.decision.paging import COLUMNS as PAGING_COLUMNS
from inferencegym.envs.openenv.environment import ENVIRONMENTS

Share = Annotated[float, Field(ge=0, le=1)]
Reward = Annotated[float, Field(ge=-1, le=1)]
Count = Annotated[int, Field(ge=0)]


class _Exact(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Problem(BaseModel):
    """One field that is wrong."""

    loc: list[str]
    msg: str
    type: str


class Refusal(_Exact):
    """An error: what is wrong and what to send."""

    detail: str | list[Problem]


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route documents of its errors."""
    what = {
        400: "a name, a range or an order that is wrong, or a body that is no UTF-8",
        404: "no such session",
        413: "the body is too large",
        422: "a field that is wrong",
        429: "no room for another session; see Retry-After",
    }
    return {status: {"description": what[status], "model": Refusal} for status in (*statuses, 413)}


def answered(model: Any) -> dict[int | str, dict[str, Any]]:
    """What a route documents of its usual answer."""
    return {200: {"model": model}}


def observed(family: str) -> Any:
    """Model of an observation on the wire, every column with its range."""
    fields: dict[str, Any] = {}
    for name, field in ENVIRONMENTS[family].observation_cls.model_fields.items():
        if name not in ("done", "reward"):
            fields[name] = (field.annotation, Field(description=field.description))
    fields["encoded"] = (list[Reward], ...)
    fields["action_mask"] = (list[Literal[0, 1]], ...)
    if family == "pagedkv":
        for i, column in enumerate(PAGING_COLUMNS):
            low, high = float(PAGING_COLUMNS.low[i]), float(PAGING_COLUMNS.high[i])
            fields[column.name] = (float, Field(ge=low, le=high, description=column.what))
    return create_model(f"{family}_observation", __base__=_Exact, **fields)


def outcome(family: str) -> Any:
    """Model of what POST /reset and POST /step answer."""
    return create_model(
        f"{family}_answer", __base__=_Exact, observation=(observed(family), ...), reward=(Reward | None, ...), done=(bool, ...),
        metadata=(dict[str, Any], ...), session_id=(str | None, ...),
    )  # fmt: skip


def standing(family: str) -> Any:
    """Model of GET /state: where a session stands."""
    fields = {name: (field.annotation, ...) for name, field in ENVIRONMENTS[family].state_cls.model_fields.items()}
    fields |= {name: (field.annotation, ...) for name, field in State.model_fields.items()}
    return create_model(f"{family}_state", __base__=_Exact, session_id=(str | None, ...), **fields)


class ListedSession(_Exact):
    """A session as others may see it."""

    session: str
    task_id: str
    step_count: Count
    done: bool
    age_s: float = Field(ge=0)
    idle_s: float = Field(ge=0)


class Sessions(_Exact):
    """GET /sessions."""

    sessions: list[ListedSession]
    open: Count
    cap: Count
    idle_s: float


class Deleted(_Exact):
    """DELETE /sessions/{session_id}."""

    deleted: Literal[True]


class Judged(BaseModel):
    """A graded episode. `score` is the grade where `graded`, else the value held to 0..1."""

    task_id: str
    split: str
    seed: Count
    digest: str
    value: float
    score: Share
    graded: bool
    parts: dict[str, float]
    facts: dict[str, Any]


class ListedTask(_Exact):
    """One task of GET /tasks."""

    id: str
    task_id: str
    name: str
    difficulty: Literal["easy", "medium", "hard", "trace"]
    description: str
    steps: Annotated[int, Field(ge=1)]
    reward_terms: list[str]
    reward_range: list[float]
    digest: str | None
    needs_trace: bool
    default: bool


class Tasks(_Exact):
    """GET /tasks."""

    family: Literal["llmserve", "pagedkv"]
    tasks: list[ListedTask]
    action_schema: dict[str, Any]
    splits: list[Literal["train", "validation", "test"]]
    instructions: str


class Played(BaseModel):
    """One task as the baseline played it."""

    policy: str
    seed: Count
    split: str
    steps: Count
    total_reward: float
    grader: Judged


class Baseline(BaseModel):
    """GET /baseline."""

    mode: Literal["deterministic", "openai"]
    family: str
    baseline: dict[str, Played]


class Runtime(BaseModel):
    """GET /runtime."""

    family: Literal["llmserve", "pagedkv"]
    mode: Literal["sim", "real"]
    backend: str
    version: str
    active_sessions: Count
    max_sessions: Count
    session_timeout_s: float
    uptime_s: float = Field(ge=0)


class Agent(_Exact):
    """Who can play."""

    id: str
    name: str


class Agents(_Exact):
    """GET /api/agents."""

    agents: list[Agent]
    tasks: list[str]


class Resolved(_Exact):
    """What settings come to on a task."""

    gpu_total_blocks: Annotated[int, Field(ge=1)]
    cpu_total_blocks: Annotated[int, Field(ge=1)]
    tokens_per_block: Annotated[int, Field(ge=1)]
    max_ticks: Annotated[int, Field(ge=1)]
    decisions_per_tick: Annotated[int, Field(ge=1)]


class Defaults(_Exact):
    """GET /api/settings."""

    settings: dict[str, Resolved]
    scope: Literal["request"]


class Checked(Defaults):
    """POST /api/settings: nothing is kept."""

    kept: Literal[False]


class SimulationLog(_Exact):
    """Summary of a simulated episode."""

    task: str
    agent: str
    seed: Count
    split: str
    digest: str
    settings: Resolved
    total_reward: float
    final_score: Share
    graded: bool
    value: float
    decisions: Count
    ticks_run: Count
    crashed: bool
    parts: dict[str, float]
    facts: dict[str, Any]


_row: dict[str, Any] = {
    "decision": (Count, ...), "tick": (Count, ...), "action_id": (Annotated[int, Field(ge=0, le=17)], ...), "action": (str, ...), "reward": (Reward, ...),
}  # fmt: skip
_row |= dict.fromkeys(PAGING_COLUMNS.names, (Reward, ...))
Tick: Any = create_model("Tick", __base__=_Exact, __doc__="One decision of a simulation's log.", **_row)


class Simulation(_Exact):
    """POST /api/simulate."""

    session: SimulationLog
    ticks: list[Tick]
    offset: Count
    next_offset: Count | None
