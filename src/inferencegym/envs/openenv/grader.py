"""Grades of episode logs that clients submit as JSON: the actions are replayed on the task's scenario, and every claim is compared.

A log that does not come out as claimed is refused with the first step that differs; only whole episodes count.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from inferencegym.envs.episode import Episode
from inferencegym.envs.grade import replay
from inferencegym.envs.openenv import tasks
from inferencegym.envs.openenv.contract import whole
from inferencegym.envs.openenv.models import as_action
from inferencegym.envs.splits import SPLIT_SIZE
from inferencegym.ground.errors import InputError

#: Steps that a log may have; the longest task here has 20,000.
MOST_STEPS = 20_000


class EpisodeLog(BaseModel):
    """A whole episode as its client recorded it; `clients.EpisodeClient.episode_log()` writes one."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    task_id: str = Field(max_length=100, description="name of the task")
    split: str = Field("validation", max_length=20, description="train, validation or test")
    seed: whole(0, SPLIT_SIZE - 1) = Field(description="scenario within the split")
    digest: str = Field(max_length=64, description="the task's digest, from reset's metadata or GET /tasks")
    actions: list[dict[str, Any] | int] = Field(
        min_length=1, max_length=MOST_STEPS, description="one a step, as sent to /step"
    )
    rewards: list[float] = Field(min_length=1, max_length=MOST_STEPS, description="one a step")
    observations: list[list[float]] = Field(
        min_length=2, max_length=MOST_STEPS + 1, description="`encoded` of every observation; the first is reset's"
    )
    terminated: bool = Field(description="of the last observation")
    truncated: bool = Field(description="of the last observation")
    value: float = Field(description="metadata.grade.value of the last observation")


def grade_log(family: str, log: EpisodeLog) -> dict[str, Any]:
    """Replay and judge; InputError says why a log is refused."""
    task = tasks.find(family, log.task_id)
    width = len(task.surface.columns)
    if any(len(row) != width for row in log.observations):
        raise InputError(f"an observation has not the {width} columns of the surface")
    dense = []
    for given in log.actions:
        action = as_action(family, given)
        command = action.model_dump(exclude={"metadata"}, exclude_none=True)
        dense.append(task.surface.dense(command["action_id"] if family == "pagedkv" else command))
    episode = Episode(
        task=log.task_id, digest=log.digest, split=log.split, scenario=log.seed, actions=np.array(dense), rewards=np.array(log.rewards),
        observations=np.array(log.observations, np.float32), terminated=log.terminated, truncated=log.truncated, value=log.value,
    )  # fmt: skip
    report = replay(episode, task)
    if not report.genuine or report.outcome is None:
        raise InputError(f"the episode is refused: {report.problem}")
    return tasks.judged(task, report.outcome, log.split, log.seed) | {"replayed_steps": len(dense)}
