"""A task with some of its numbers changed: another pool, another GPU, more traffic, fewer ticks. A plain task with a name and a digest of its own.

No anchors were measured for it, so episodes on it have a value and no grade. What equals the task's own number changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import msgspec

from inferencegym.envs.pagedkv import Hardware, PagedTask
from inferencegym.envs.serve_task import ServeFile, ServeTask
from inferencegym.ground.errors import ConfigError
from inferencegym.ground.facts import gpus, models
from inferencegym.workload import Workload
from inferencegym.workload.generate import mean_rate_rps
from inferencegym.workload.spec import Spec

#: Factors on the rate of arrivals.
RATES = (0.1, 4.0)
MOST_TICKS, MOST_WINDOWS = 20_000, 1000
#: Of a wrong value, what an error repeats.
_MOST_LETTERS = 80
_MACHINE = ("model", "gpu", "tensor_parallel", "replicas")


@dataclass(frozen=True, slots=True)
class Override:
    """A number of a task that may be another."""

    name: str
    label: str
    unit: str
    kind: str
    """int, float or choice."""
    default: int | float | str
    """The task's own."""
    min: float | None = None
    max: float | None = None
    choices: tuple[int | str, ...] = ()

    @property
    def allowed(self) -> str:
        """What it may be, in words."""
        return ", ".join(map(str, self.choices)) if self.choices else f"{self.min:g}..{self.max:g}"

    def checked(self, value: Any) -> int | float | str:
        """The value as the task takes it, from a number or from text; ConfigError says what is allowed."""
        if self.kind == "choice":
            found = [choice for choice in self.choices if str(choice) == str(value)]
            if not found:
                raise ConfigError(
                    self.name, f"'{str(value)[:_MOST_LETTERS]}' is not one of its values", allowed=self.allowed
                )
            return found[0]
        whole = self.kind == "int"
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        assert self.min is not None
        assert self.max is not None
        if not self.min <= number <= self.max or (whole and number != int(number)):
            what = "whole number" if whole else "number"
            raise ConfigError(self.name, f"{repr(value)[:_MOST_LETTERS]} is no {what} in range", allowed=self.allowed)
        return int(number) if whole else number


def overridable(task: Any) -> tuple[Override, ...]:
    """What of a task (`envs.batch.Task`) may be another, with the task's own value as default."""
    if isinstance(task, PagedTask):
        rules = task.rules
        # So large a block that the link moves none in a tick would never arrive.
        blocks = tuple(n for n in (8, 16, 32, 64) if (with_n := _hardware(task, n)) is None or with_n.link_blocks_per_tick >= 1)  # fmt: skip
        return (
            Override("gpu_blocks", "GPU blocks", "blocks", "int", rules.gpu_blocks, 500, 100_000),
            Override("cpu_blocks", "CPU blocks", "blocks", "int", rules.cpu_blocks, 1, 1_000_000),
            Override("block_tokens", "Tokens per block", "tokens", "choice", rules.block_tokens, choices=blocks),
            Override("rate", "Arrivals, times the task's own", "×", "float", 1.0, *RATES),
            Override("horizon_ticks", "Length of the episode", "ticks", "int", rules.horizon_ticks, 1, MOST_TICKS),
        )
    if isinstance(task, ServeTask):
        deployment = task.file.deployment
        return (
            Override("model", "Model", "", "choice", str(deployment["model"]), choices=tuple(models())),
            Override("gpu", "GPU", "", "choice", str(deployment["gpu"]), choices=tuple(gpus())),
            Override("tensor_parallel", "GPUs per replica", "GPUs", "choice", deployment.get("tensor_parallel", 1), choices=(1, 2, 4, 8)),
            Override("replicas", "Replicas", "replicas", "int", deployment.get("replicas", 1), 1, 8),
            Override("rate", "Arrivals, times the task's own", "×", "float", 1.0, *RATES),
            Override("windows", "Length of the episode", f"windows of {task.file.window_s:g} s", "int", task.file.windows, 1, MOST_WINDOWS),
        )  # fmt: skip
    return ()


def chosen(task: Any, given: Mapping[str, Any]) -> dict[str, int | float | str]:
    """What differs from the task, checked, in the order of `overridable`; what equals the task's own value is left out."""
    known = {one.name: one for one in overridable(task)}
    for name in given:
        if name not in known:
            raise ConfigError(
                name[:_MOST_LETTERS], f"'{task.name}' has no such override", allowed=", ".join(known) or "none"
            )
    values = {name: one.checked(given[name]) for name, one in known.items() if name in given}
    return {name: value for name, value in values.items() if value != known[name].default}


def overridden(task: Any, given: Mapping[str, Any]) -> Any:
    """The task with what is given in the place of its own; itself where nothing differs. ConfigError names the field that does not fit."""
    values = chosen(task, given)
    if not values:
        return task
    # Another name, so that nothing compares it with the task's anchors.
    name = f"{task.name}@" + ",".join(f"{key}={value}" for key, value in values.items())
    if isinstance(task, PagedTask):
        return _paged(task, name, values)
    assert isinstance(task, ServeTask)
    return _served(task, name, values)


def _hardware(task: PagedTask, block_tokens: int) -> Hardware | None:
    """The task's hardware, if it says, with blocks of so many tokens: a block of twice the tokens has twice the bytes."""
    if task.hardware is None:
        return None
    return replace(task.hardware, kv_block_bytes=task.hardware.kv_block_bytes * block_tokens // task.rules.block_tokens)


def _paged(task: PagedTask, name: str, values: Mapping[str, Any]) -> PagedTask:
    rules = replace(task.rules, **{key: value for key, value in values.items() if key != "rate"})
    hardware, demand = _hardware(task, rules.block_tokens), task.demand
    if "block_tokens" in values and hardware is not None:
        rules = replace(rules, link_blocks_per_tick=hardware.link_blocks_per_tick)
    if rate := values.get("rate"):
        demand = replace(demand, low_rate=demand.low_rate * rate, high_rate=demand.high_rate * rate)
    return PagedTask(name, task.description, rules, demand, hardware)


def _served(task: ServeTask, name: str, values: Mapping[str, Any]) -> ServeTask:
    file = task.file
    machine = {key: values[key] for key in _MACHINE if key in values}
    file = msgspec.structs.replace(file, name=name, deployment=file.deployment | machine)
    if "windows" in values:
        file = msgspec.structs.replace(file, windows=values["windows"])
    made = faster(task, values.get("rate", 1.0), file)
    if machine:
        try:
            made.plan  # noqa: B018 - what does not fit is an error now, not in the middle of an episode
        except ConfigError as error:
            said = ", ".join(f"{key} {value}" for key, value in machine.items())
            raise ConfigError(next(iter(machine)), f"'{task.name}' does not run on {said}: {error}", allowed="a deployment that fits its GPUs") from error  # fmt: skip
    return made


class SameSource(ServeTask):
    """A deployment that draws on another task's trace or description, which is read once."""

    def __init__(self, base: ServeTask, file: ServeFile) -> None:
        super().__init__(file)
        self._read = base

    @cached_property
    def _trace(self) -> Workload:
        return self._read._trace

    @cached_property
    def spec(self) -> Spec:
        """The base's."""
        return self._read.spec


def faster(task: ServeTask, factor: float, file: ServeFile | None = None) -> ServeTask:
    """The task with its arrivals scaled. `file`: of the task to be made, on the same traffic; None: the task's own."""
    file, traffic = file or task.file, task.file.traffic
    # A source that is taken as it is stays so.
    if factor != 1.0:
        traffic = msgspec.structs.replace(traffic, rate_rps=own_rate_rps(task) * factor)
    return SameSource(task, msgspec.structs.replace(file, traffic=traffic))


def own_rate_rps(task: ServeTask) -> float:
    """Mean rate of a task's traffic, requests a second: what it is brought to, or the source's own."""
    traffic = task.file.traffic
    if traffic.rate_rps:
        return traffic.rate_rps
    if traffic.source == "trace":
        trace = task._trace
        return len(trace) / float(trace.arrival_s[-1])
    return mean_rate_rps(task.spec)
