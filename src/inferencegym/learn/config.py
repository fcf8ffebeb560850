"""Settings of a training, all in one small TOML file: what is learned where, by which algorithm, how long, and how it is judged on the way.

`defaults(task, algorithm)` has a sensible value for each; a file or an option changes some. Two trainings of the same settings (same
`digest`) on the same package and processor give the same policy, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from inferencegym.envs import catalogue
from inferencegym.envs.batch import Task
from inferencegym.envs.serve_task import ServeTask
from inferencegym.envs.splits import SPLIT_SIZE
from inferencegym.ground.errors import ConfigError, UnknownNameError
from inferencegym.learn.randomise import Randomise, from_mapping
from inferencegym.learn.settings import ALGORITHMS, LISTS, PPO, RANDOM, Settings, at_least, changed, check
from inferencegym.policies.heads import HEADS

#: What a surface is learned with unless one says otherwise: what was best there (docs/results/learned.md).
DEFAULTS = {"paging": "cma", "knobs": "forks"}


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One training. Steps are decisions, of all rows together."""

    task: str
    """A task's name, or its TOML file."""
    algorithm: str = "maskable-ppo"
    steps: int = 1_000_000
    seed: int = 0
    rows: int = 64
    """Episodes side by side."""
    encoding: str = "actions"
    """How actions are written: `actions` on paging; multidiscrete, preset or delta on knobs."""
    scenarios: int = SPLIT_SIZE
    """Training scenarios to draw from: the first so many."""
    validation_scenarios: int = 8
    """How many, of the split `validation`."""
    validate_every: int = 50_000
    """Steps from one validation to the next."""
    patience: int = 0
    """Validations without a new best after which the training stops; 0: never."""
    settings: Settings = field(default_factory=PPO)
    randomise: Randomise = field(default_factory=Randomise)
    """What varies from training episode to training episode; validation is on the task as it is."""

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise UnknownNameError("algorithm", self.algorithm, tuple(ALGORITHMS))
        if not isinstance(self.settings, ALGORITHMS[self.algorithm]):
            raise ConfigError(
                "settings", f"{type(self.settings).__name__}", allowed=ALGORITHMS[self.algorithm].__name__
            )
        for name, least in (("steps", 1), ("seed", 0), ("rows", 1), ("scenarios", 1), ("validation_scenarios", 1), ("validate_every", 1), ("patience", 0)):  # fmt: skip
            at_least(name, getattr(self, name), least)
        if self.scenarios > SPLIT_SIZE:
            raise ConfigError("scenarios", f"{self.scenarios}", allowed=f"1..{SPLIT_SIZE}")
        heads = [head for names in HEADS.values() for head in names]
        if self.encoding not in heads:
            raise UnknownNameError("encoding", self.encoding, heads)
        if self.encoding == "multidiscrete" and self.algorithm in LISTS:
            raise ConfigError("encoding", f"{self.algorithm} chooses from a list", allowed="preset, delta")
        if self.algorithm == "q-table" and self.encoding == "delta":
            raise ConfigError("encoding", "a table's cells do not hold the knobs in force, which delta needs", allowed="preset")  # fmt: skip
        check(self.settings)

    @property
    def digest(self) -> str:
        """sha256 of all settings; of those that came later (randomise, a network's start), only if they are used."""
        told = asdict(self)
        if not self.randomise.varies:
            del told["randomise"]
        if told["settings"].get("start") == RANDOM:
            del told["settings"]["start"]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def save(self, path: Path | str) -> Path:
        """Write the settings, all of them, as TOML."""
        target = Path(path)
        tables = ("settings", "randomise")
        lines = [f"{name} = {_toml(value)}" for name, value in asdict(self).items() if name not in tables]
        for table in tables:
            lines += [
                "",
                f"[{table}]",
                *(f"{name} = {_toml(value)}" for name, value in asdict(getattr(self, table)).items()),
            ]
        text = "\n".join([*lines, ""])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        return target

    def with_(self, **given: Any) -> TrainConfig:
        """The same with some settings changed; those of the algorithm are reached by their own names."""
        own = {name: value for name, value in given.items() if name in {f.name for f in fields(self)}}
        inner = {name: value for name, value in given.items() if name not in own}
        if inner:
            own["settings"] = changed(self.settings, inner)
        return replace(self, **own)


def load(path: Path | str, **given: Any) -> TrainConfig:
    """The settings in a TOML file, over the defaults of its task and algorithm. `given`: what goes before the file's (task, steps, ...)."""
    source = Path(path)
    if not source.is_file():
        raise ConfigError("config", f"there is no file '{source}'", allowed="a TOML file")
    try:
        data = tomllib.loads(source.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("config", f"'{source}' is not TOML: {error}") from error
    return from_data(data | given)


def from_data(data: Mapping[str, Any]) -> TrainConfig:
    """The settings in a mapping, as a TOML file gives it, over the defaults of its task and algorithm."""
    inner, varied = data.get("settings", {}), data.get("randomise")
    own = {name: value for name, value in data.items() if name not in ("settings", "randomise")}
    known = [one.name for one in fields(TrainConfig)]
    for name in own:
        if name not in known:
            raise UnknownNameError("setting of a training", name, known)
    for name, table in (("settings", inner), ("randomise", varied)):
        if not isinstance(table, Mapping | Randomise | None):
            raise ConfigError(name, f"{table!r}", allowed=f"a table: [{name}]")
    task = own.get("task")
    if not isinstance(task, str):
        raise ConfigError("task", "is missing", allowed='task = "NAME", or --task NAME')
    base = defaults(task, own.get("algorithm"), own.get("encoding"))
    if varied is not None:
        base = replace(base, randomise=varied if isinstance(varied, Randomise) else from_mapping(varied))
    return replace(base, **own, settings=changed(base.settings, inner))


def defaults(task: str, algorithm: str | None = None, encoding: str | None = None) -> TrainConfig:
    """What a task is trained with unless one says otherwise."""
    found: Task = catalogue.task(task)
    algorithm = algorithm or DEFAULTS[found.surface.name]
    if algorithm not in ALGORITHMS:
        raise UnknownNameError("algorithm", str(algorithm), tuple(ALGORITHMS))
    paging = found.surface.name == "paging"
    own = _OF_PAGING if paging else _OF_KNOBS
    if algorithm not in own:
        raise ConfigError("algorithm", f"{algorithm} learns knobs only, and '{task}' is paging", allowed=", ".join(own))
    encoding = encoding or ("actions" if paging else "preset" if algorithm in LISTS else "multidiscrete")
    if encoding not in HEADS[found.surface.name]:
        raise ConfigError("encoding", f"'{encoding}' is none of '{task}'", allowed=", ".join(HEADS[found.surface.name]))
    base = TrainConfig(
        task=task, algorithm=algorithm, encoding=encoding, settings=ALGORITHMS[algorithm](),
        **(_PAGING if paging else _KNOBS),
    )  # fmt: skip
    if algorithm == "feedback" and _replays_trace(found):
        base = replace(base, randomise=_OTHER_HOURS)
    return base.with_(**own[algorithm])


def _replays_trace(task: Any) -> bool:
    return isinstance(task, ServeTask) and task.file.traffic.source == "trace"


#: The training part of a trace is a few hours or minutes at one load; what comes after it has another.
_OTHER_HOURS = Randomise(rate=(0.75, 1.5))
_PAGING: dict[str, Any] = {"steps": 2_000_000, "rows": 64, "validation_scenarios": 8, "validate_every": 100_000}
_KNOBS: dict[str, Any] = {"steps": 200_000, "rows": 16, "validation_scenarios": 16, "validate_every": 10_000, "scenarios": 100}  # fmt: skip
_OF_PAGING: dict[str, dict[str, Any]] = {
    "cma": {
        "steps": 200_000_000,
        "rows": 448,
        "validation_scenarios": 256,
        "validate_every": 18_000_000,
        "scenarios": SPLIT_SIZE,
    },
    "imitate": {
        "validate_every": 1,
        "validation_scenarios": 32,
        "scenarios": SPLIT_SIZE,
        "teacher": "sieve",
        "labels": 1000,
    },
    "maskable-ppo": {"epochs": 8, "gae_lambda": 0.98, "entropy": 0.0},
    "ppo": {"epochs": 8, "gae_lambda": 0.98, "entropy": 0.0},
    "dqn": {"steps": 1_000_000, "validate_every": 50_000, "discount": 0.995},
    "qr-dqn": {"steps": 500_000, "validate_every": 25_000, "discount": 0.995, "gradient_steps": 1},
    "q-table": {"steps": 5_000_000, "validate_every": 250_000, "discount": 0.995},
}
_OF_KNOBS: dict[str, dict[str, Any]] = {
    "forks": {"steps": 1_000_000, "validate_every": 1, "validation_scenarios": 32, "scenarios": SPLIT_SIZE},
    "cma": {
        "steps": 500_000,
        "rows": 84,
        "validation_scenarios": 32,
        "validate_every": 20_000,
        "scenarios": 4096,
        "sigma": 0.2,
    },
    "imitate": {"steps": 20_000, "validate_every": 1, "validation_scenarios": 32, "scenarios": SPLIT_SIZE},
    "feedback": {
        "steps": 2_000_000,
        "rows": 84,
        "validation_scenarios": 32,
        "validate_every": 60_000,
        "scenarios": 4096,
        "sigma": 0.3,
    },
    "maskable-ppo": {"rollout_steps": 120, "batch_size": 480, "epochs": 6, "discount": 0.97, "entropy": 0.001},
    "ppo": {"rollout_steps": 120, "batch_size": 480, "epochs": 6, "discount": 0.97, "entropy": 0.001},
    "dqn": {"discount": 0.95, "buffer": 50_000, "train_every": 2, "target_every": 2000},
    "qr-dqn": {"discount": 0.95, "buffer": 50_000, "train_every": 2, "gradient_steps": 1, "target_every": 2000},
    "q-table": {"discount": 0.95},
}


def _toml(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)
