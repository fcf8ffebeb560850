"""Tasks that a policy was not trained on, made from one it was: the same deployment on another GPU, or under another trace's traffic.

A variant has a name of its own (`bursty_workload@h200`) and its own digest; it has no anchors, so policies on it are compared by value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from inferencegym.envs.batch import Task
from inferencegym.envs.episode import record
from inferencegym.envs.serve_task import ServeTask, Traffic
from inferencegym.envs.splits import scenario
from inferencegym.ground.errors import ConfigError
from inferencegym.ground.facts import Gpu
from inferencegym.ground.facts import gpu as facts_of
from inferencegym.workload import Workload

_SAMPLED = 4
"""Training scenarios that a task's mean traffic is measured on."""


def on_gpu(task: ServeTask, gpu: str) -> ServeTask:
    """The same deployment on another GPU, with the objectives and prices as they were.

    Where the card has less arithmetic or less memory bandwidth, traffic is thinned to the smaller of both shares: drowned, all policies are alike.
    """
    before = str(task.file.deployment["gpu"])
    if before == gpu:
        raise ConfigError("gpu", f"'{task.name}' runs on {gpu} as it is", allowed="another GPU")
    file, traffic = task.file, task.file.traffic
    share = min(1.0, *_shares(facts_of(before), facts_of(gpu)))
    if share < 1.0:
        rate_rps = sum(len(one) for one in _sample(task)) / (_SAMPLED * task.duration_s)
        traffic = msgspec.structs.replace(traffic, rate_rps=round(share * rate_rps, 3))
    deployment = file.deployment | {"gpu": gpu}
    return ServeTask(msgspec.structs.replace(file, name=f"{task.name}@{gpu}", deployment=deployment, traffic=traffic))


def under_trace(task: ServeTask, fit: str) -> ServeTask:
    """The same deployment under the traffic of a shipped fit, brought to as many tokens a second, with the classes in the shares they had."""
    had = _sample(task)
    most = task.file.traffic.most_prompt_tokens or int(task.file.engine["max_model_len"]) * 7 // 8
    classes = _classes(had[0])
    raw = Traffic(source="fit", name=fit, most_prompt_tokens=most, classes=classes)
    name = f"{task.name}@{fit}"
    new = ServeTask(msgspec.structs.replace(task.file, name=name, traffic=raw))
    found = _sample(new)
    per_request = _tokens(found) / max(sum(len(one) for one in found), 1)
    rate_rps = _tokens(had) / (_SAMPLED * task.duration_s) / per_request
    traffic = msgspec.structs.replace(raw, rate_rps=round(rate_rps, 3))
    return ServeTask(msgspec.structs.replace(task.file, name=name, traffic=traffic))


def values_on(task: Task, actor: Any, indices: Sequence[int], *, split: str = "test") -> list[float]:
    """The value of the episode that an actor plays on each scenario."""
    return [record(task, actor, split=split, scenario=index).value for index in indices]


def _shares(before: Gpu, after: Gpu) -> tuple[float, float]:
    return after.bf16_flops / before.bf16_flops, after.hbm_bytes_per_s / before.hbm_bytes_per_s


def _sample(task: ServeTask) -> list[Workload]:
    return [task.workload(scenario("train", i)) for i in range(_SAMPLED)]


def _tokens(workloads: Sequence[Workload]) -> float:
    return float(sum(one.prompt_tokens.sum() + one.output_tokens.sum() for one in workloads))


def _classes(workload: Workload) -> tuple[tuple[str, float, int], ...]:
    """(name, share, priority) of each class in a workload."""
    names = workload.slo_class_names or ("default",)
    found = []
    for i, name in enumerate(names):
        of_class = workload.slo_class == i
        priority = int(np.median(workload.priority[of_class])) if of_class.any() else 0
        found.append((name, float(of_class.mean()), priority))
    return tuple(found)
