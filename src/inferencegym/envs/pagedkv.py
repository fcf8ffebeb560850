"""PagedKV: tasks of managing paged KV memory, and batches of their episodes on the paging machine. One kernel call steps a whole batch.

`load(path)` reads a task's TOML file. A step is one decision; a tick (an engine step) passes after `decisions_per_tick` of them.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from inferencegym.decision.paging import ACTIONS, COLUMNS, PagingSurface
from inferencegym.engine.paging import machine
from inferencegym.engine.paging.laws import broken_laws
from inferencegym.engine.paging.memory import BATCH, COUNTS, TIER, allocate, output, part, row_start, scalars
from inferencegym.engine.paging.rules import CEILING, FLOOR, REWARD_TERMS, Rules
from inferencegym.engine.paging.traffic import Demand, Traffic, Users, generate
from inferencegym.envs.batch import Outcome
from inferencegym.ground.errors import ConfigError, InputError

#: Goes into every digest: raise it when the same file would make another episode.
DYNAMICS = 1
#: Scenarios whose traffic a task keeps at hand.
_KEPT_SCENARIOS = 256

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a block and a tick are; the link's blocks per tick follow."""

    kv_block_bytes: int
    pcie_bytes_per_s: float
    pcie_efficiency: float
    tick_s: float

    @property
    def link_blocks_per_tick(self) -> int:
        """Whole blocks that the link moves in a tick."""
        return int(self.pcie_bytes_per_s * self.pcie_efficiency * self.tick_s / self.kv_block_bytes)


class PagedTask:
    """A task: rules, traffic, splits of scenarios (see `envs.batch.Task`)."""

    family = "pagedkv"
    reward_terms: Sequence[str] = REWARD_TERMS

    def __init__(
        self, name: str, description: str, rules: Rules, demand: Demand, hardware: Hardware | None = None
    ) -> None:
        self.name = name
        self.description = description
        self.rules = rules
        self.demand = demand
        self.hardware = hardware
        self.surface = PagingSurface()
        self.steps = rules.decisions
        shape = {"dynamics": DYNAMICS, "name": name, "rules": asdict(rules), "demand": asdict(demand)}
        self.digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()
        self._kept: OrderedDict[int, Traffic] = OrderedDict()

    def traffic(self, scenario: int) -> Traffic:
        """Every request of a scenario; the latest few hundred scenarios are kept at hand."""
        found = self._kept.get(scenario)
        if found is None:
            found = self._kept[scenario] = generate(self.demand, self.rules, scenario)
            if len(self._kept) > _KEPT_SCENARIOS:
                self._kept.popitem(last=False)
        return found

    def batch(self, n: int) -> PagedBatch:
        """Room for n episodes side by side."""
        if n < 1:
            raise ConfigError("n", f"{n} episodes", allowed="at least 1")
        return PagedBatch(self, n)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": OrderedDict()}


class PagedBatch:
    """n episodes of one task in one block of bytes; the arrays are views of it (see `envs.batch.Batch`)."""

    def __init__(self, task: PagedTask, n: int) -> None:
        self.task = task
        self.n = n
        self.scenarios = [-1] * n
        self._traffic: list[Traffic | None] = [None] * n
        self.arena = allocate(task.rules, task.demand.capacity(task.rules.horizon_ticks), n)
        self._look()

    def _look(self) -> None:
        n, arena = self.n, self.arena
        self.actions = output(arena, "actions", np.int64, (n,))
        self.observations = output(arena, "observations", np.float32, (n, len(COLUMNS)))
        self.masks = output(arena, "masks", np.int8, (n, len(ACTIONS)))
        self.rewards = output(arena, "rewards", np.float64, (n,))
        self.terms = output(arena, "terms", np.float64, (n, len(REWARD_TERMS)))
        self.terminated = output(arena, "terminated", np.bool_, (n,))
        self.truncated = output(arena, "truncated", np.bool_, (n,))

    def start(self, row: int, scenario: int) -> None:
        """Begin an episode in a row."""
        self.start_with(row, self.task.traffic(scenario), scenario)

    def start_with(self, row: int, traffic: Traffic, scenario: int = -1) -> None:
        """Begin an episode in a row with traffic of your own."""
        machine.prepare(self.arena, row, self.task.rules, traffic)
        self._traffic[row] = traffic
        self.scenarios[row] = scenario
        self.rewards[row] = 0.0
        self.terms[row] = 0.0
        machine.begin(self.arena, row)

    def step(self) -> None:
        """Take every row's action."""
        machine.step(self.arena)

    def outcome(self, row: int) -> Outcome:
        """What came of the row's episode so far."""
        s = scalars(self.arena, row)
        value = self.value(row)
        if s["ended"] == 2:
            parts = {"goodput": 0.0, "latency": 0.0, "residency": 0.0, "floor": FLOOR}
        else:
            span = CEILING - FLOOR
            parts = {
                "goodput": span * float(s["done_weight"] * s["goodput_part"]),
                "latency": span * float(s["efficiency"] * s["latency_part"]),
                "residency": span * float(s["found"] * s["residency_part"]),
                "floor": FLOOR,
            }
        n, survived = max(int(s["requests"]), 1), int(s["tick"]) - int(s["ended"] == 2)
        facts = self.facts(row) | {
            "ticks_survived": float(survived),
            "requests_of_scenario": float(s["requests"]),
            "completed_share": float(s["completed"]) / n,
            "in_sla_share": float(s["in_sla"]) / n,
            "latency_efficiency": float(s["efficiency"]) / n,
            "cache_residency": float(s["found"]) / float(s["all_returning"]),
            "goodput_share": float(s["done_weight"]) / float(s["all_weight"]),
        }
        return Outcome(value, parts, facts)

    def value(self, row: int) -> float:
        """The outcome's value alone."""
        return float(machine.outcome(self.arena, row))

    def branch(self, row: int, copies: int) -> PagedBatch:
        """A batch of independent copies of a row, which go on from here into the same future."""
        twin = PagedBatch.__new__(PagedBatch)
        twin.task, twin.n = self.task, copies
        twin.scenarios = [self.scenarios[row]] * copies
        twin._traffic = [self._traffic[row]] * copies
        twin.arena = allocate(self.task.rules, int(scalars(self.arena, row)["capacity"]), copies)
        twin._look()
        for copy in range(copies):
            twin.copy_row(copy, self, row)
        return twin

    def copy_row(self, row: int, other: PagedBatch, theirs: int) -> None:
        """Make a row the twin of another batch's (of the same task) row."""
        size = int(self.arena[: BATCH.itemsize].view(BATCH)[0]["row_bytes"])
        to, start = row_start(self.arena, row), row_start(other.arena, theirs)
        self.arena[to : to + size] = other.arena[start : start + size]
        self._traffic[row], self.scenarios[row] = other._traffic[theirs], other.scenarios[theirs]
        for name in ("actions", "observations", "masks", "rewards", "terms", "terminated", "truncated"):
            getattr(self, name)[row] = getattr(other, name)[theirs]

    def tick(self, row: int) -> int:
        """Ticks that have passed in a row."""
        return int(scalars(self.arena, row)["tick"])

    def facts(self, row: int) -> dict[str, float]:
        """How the row stands: blocks, requests, ticks, tokens, and counts since its beginning."""
        s = scalars(self.arena, row)
        facts = {name: float(s[name]) for name in ("tick", "gpu_used", "cpu_used", *COUNTS, "done_weight")}
        facts["found_tokens"] = float(s["found"])
        facts["crashed"] = float(s["ended"] == 2)
        for tier, name in zip(part(self.arena, row, "tiers_at", TIER, 2), ("free", "vip"), strict=True):
            facts[f"{name}_waiting"] = float(tier["queue_len"])
            facts[f"{name}_active"] = float(tier["active"])
            facts[f"{name}_loading"] = float(tier["loading"])
            facts[f"{name}_idle"] = float(tier["idle_count"])
            facts[f"{name}_idle_blocks"] = float(tier["idle_blocks"])
        facts["gpu_blocks"], facts["cpu_blocks"] = float(s["gpu_blocks"]), float(s["cpu_blocks"])
        return facts

    def laws(self, row: int) -> list[str]:
        """The conservation laws that a row breaks, in words: none, ever."""
        return broken_laws(self.arena, row)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "task": self.task, "n": self.n, "scenarios": self.scenarios, "traffic": self._traffic, "arena": self.arena.tobytes(),
        }  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.task, self.n, self.scenarios, self._traffic = (state[k] for k in ("task", "n", "scenarios", "traffic"))
        self.arena = allocate(self.task.rules, self.task.demand.capacity(self.task.rules.horizon_ticks), self.n)
        self.arena[:] = np.frombuffer(state["arena"], np.uint8)
        for row, traffic in enumerate(self._traffic):
            if traffic is not None:
                scalars(self.arena, row)["traffic_at"] = traffic.table.ctypes.data
        self._look()


def load(path: str | Path) -> PagedTask:
    """The task of a TOML file; InputError names the file and what is wrong with it."""
    path = Path(path)
    try:
        data = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as problem:
        raise InputError(str(problem), file=path) from problem
    try:
        return parse(data)
    except ConfigError as problem:
        raise InputError(str(problem), file=path) from problem


def parse(data: Mapping[str, Any]) -> PagedTask:
    """The task that a file's data describes."""
    known = ("name", "family", "description", "hardware", "rules", "traffic")
    _no_others("task", data, known)
    for name in known:
        if name not in data:
            raise ConfigError(name, "is missing", allowed=", ".join(known))
    if data["family"] != "pagedkv":
        raise ConfigError("family", f"'{data['family']}'", allowed="pagedkv")
    hardware = _make(Hardware, "hardware", data["hardware"])
    rules = _make(Rules, "rules", {"link_blocks_per_tick": hardware.link_blocks_per_tick} | dict(data["rules"]))
    traffic = dict(data["traffic"])
    for name in ("chatters", "power_users"):
        traffic[name] = _make(Users, f"traffic.{name}", traffic.get(name, {}))
    for name in ("calm_ticks", "spike_ticks"):
        if name in traffic:
            traffic[name] = tuple(traffic[name])
    return PagedTask(data["name"], data["description"], rules, _make(Demand, "traffic", traffic), hardware)


def _make(kind: type[_T], where: str, data: Mapping[str, Any]) -> _T:
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    _no_others(where, data, names)
    try:
        return kind(**data)
    except TypeError as problem:
        raise ConfigError(where, str(problem), allowed=", ".join(names)) from problem


def _no_others(where: str, data: Mapping[str, Any], names: Sequence[str]) -> None:
    unknown = sorted(set(data) - set(names))
    if unknown:
        raise ConfigError(where, f"there is no '{unknown[0]}'", allowed=", ".join(names))
