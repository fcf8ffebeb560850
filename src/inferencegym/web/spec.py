"""What fixes a run: task, policies, split, seed and what is overridden. As JSON, as a link's query, and, checked and complete, as the run's name.

Policies are names that a viewer may let the server play: those of the task's own list, and `fixed:...`. Never a file, a class or an endpoint.
"""

from __future__ import annotations

import hashlib
from typing import Any
from urllib.parse import urlencode

import msgspec
from msgspec import Struct

import inferencegym
from inferencegym.ground.errors import ConfigError

MOST_POLICIES = 6
_MOST_LETTERS = 200
#: How a link names an override.
_SET = "set."
FIXED = "fixed:"


class Spec(Struct, frozen=True, forbid_unknown_fields=True):
    """A run, as it is asked for."""

    task: str
    policies: tuple[str, ...]
    split: str = "validation"
    seed: int = 0
    """Index of the scenario within the split."""
    overrides: dict[str, int | float | str] = {}
    """Name -> value, see `envs.overrides`."""

    def query(self) -> str:
        """As it stands in a link, behind the question mark."""
        parts = [
            ("task", self.task),
            ("policies", ",".join(self.policies)),
            ("split", self.split),
            ("seed", str(self.seed)),
        ]
        parts += [(f"{_SET}{name}", str(value)) for name, value in self.overrides.items()]
        return urlencode(parts, safe=",:=")


class Column(Struct, frozen=True):
    """One line of a chart."""

    name: str
    label: str
    unit: str
    group: str
    """score, queues, memory, latency, load, knobs or actions."""
    scale: str = "linear"
    """linear or log."""
    steps: bool = False
    """Holds its value from one sample to the next."""
    codes: dict[int, str] | None = None
    """What its numbers mean."""
    objective: float | None = None
    """What it should stay below; the strictest class's."""


class Prepared(Struct, frozen=True):
    """A run before it is played."""

    id: str
    spec: Spec
    task_digest: str
    samples: int
    """At most, of each policy."""
    decisions_per_sample: int
    sample_s: float | None
    """Length of a sample in simulated seconds, where the task says."""
    sample_name: str
    """tick or window."""
    columns: list[Column]
    command: str | None
    """The line that gives the same numbers, if there is one."""


def complete(spec: Spec) -> tuple[Spec, Any]:
    """The spec with every field checked and what equals the task's own left out, and the task it plays. For processes that may load the simulator."""
    from inferencegym.envs import catalogue
    from inferencegym.envs.actors import actor, actor_names
    from inferencegym.envs.overrides import chosen, overridden
    from inferencegym.envs.splits import SPLIT_SIZE, SPLITS

    names = catalogue.task_names()
    if spec.task not in names:
        raise ConfigError("task", f"there is no '{spec.task[:80]}'", allowed=", ".join(names))
    task = catalogue.task(spec.task)
    if spec.split not in SPLITS:
        raise ConfigError("split", f"there is no '{spec.split[:80]}'", allowed=", ".join(SPLITS))
    if not 0 <= spec.seed < SPLIT_SIZE:
        raise ConfigError("seed", f"{str(spec.seed)[:80]} is out of range", allowed=f"0..{SPLIT_SIZE - 1}")
    if not 1 <= len(spec.policies) <= MOST_POLICIES:
        raise ConfigError("policies", f"{len(spec.policies)} are chosen", allowed=f"1 to {MOST_POLICIES}")
    known = actor_names(task)
    for i, name in enumerate(spec.policies):
        if name in spec.policies[:i]:
            raise ConfigError("policies", f"'{name[:80]}' is there twice", allowed="each once")
        if name not in known and not (name.startswith(FIXED) and len(name) <= _MOST_LETTERS):
            raise ConfigError("policies", f"'{name[:80]}' does not play '{spec.task}'", allowed=", ".join((*known, "fixed:ACTION")))  # fmt: skip
        if name.startswith(FIXED):
            _fixed(name, task, actor)
    overrides = chosen(task, spec.overrides)
    played = overridden(task, overrides)
    return Spec(spec.task, spec.policies, spec.split, spec.seed, overrides), played


def _fixed(name: str, task: Any, actor: Any) -> None:
    try:
        actor(name, task)
    except ConfigError as error:
        raise ConfigError("policies", f"'{name}': {error}", allowed=error.allowed) from error


def run_id(spec: Spec, task_digest: str) -> str:
    """The name of the run that a complete spec fixes, on this version of the package."""
    canonical = msgspec.json.encode([spec, task_digest, inferencegym.__version__], order="deterministic")
    return hashlib.sha256(canonical).hexdigest()[:24]
