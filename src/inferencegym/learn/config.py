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
from typing import Any, TypeVar

from inferencegym.envs import catalogue
from inferencegym.envs.batch import Task
from inferencegym.envs.serve_task import ServeTask
from inferencegym.envs.splits import SPLIT_SIZE
from inferencegym.ground.errors import ConfigError, UnknownNameError
from inferencegym.learn.randomise import Randomise, from_mapping
from inferencegym.policies.heads import HEADS

_T = TypeVar("_T")
#: What a network begins with that takes nothing over.
RANDOM = "random"


@dataclass(frozen=True, slots=True)
class PPO:
    """Proximal policy optimisation, with masks (maskable-ppo) or without (ppo)."""

    rollout_steps: int = 128
    """Decisions of each row between two updates."""
    batch_size: int = 2048
    """Decisions in a gradient step."""
    epochs: int = 4
    """Passes over a rollout."""
    learning_rate: float = 1e-3
    anneal: bool = True
    """Whether the learning rate falls to 0 over the training's steps."""
    discount: float = 0.998
    gae_lambda: float = 0.95
    clip: float = 0.2
    entropy: float = 0.003
    """Weight of the policy's entropy in the loss."""
    value_weight: float = 0.5
    max_grad_norm: float = 0.5
    normalise: bool = True
    """Whether observations are scaled by their mean and deviation so far."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers, of the policy's network and of the value's."""
    start: str = RANDOM
    """What the policy's network begins with: random weights, or file:PATH, a network of the same surface, head and widths."""


@dataclass(frozen=True, slots=True)
class DQN:
    """Deep Q-learning (dqn), and with quantiles of the return in place of its mean (qr-dqn)."""

    learning_rate: float = 5e-4
    discount: float = 0.99
    buffer: int = 100_000
    """Decisions that are remembered."""
    warmup: int = 2000
    """Decisions before the first gradient step; they are random."""
    train_every: int = 4
    """Decisions of each row between two trainings."""
    gradient_steps: int = 2
    batch_size: int = 256
    target_every: int = 4000
    """Decisions between two copies to the target network."""
    exploration_share: float = 0.3
    """Part of the training over which the chance of a random action falls from 1 to `exploration_end`."""
    exploration_end: float = 0.03
    max_grad_norm: float = 10.0
    quantiles: int = 25
    """Of qr-dqn only."""
    hidden: tuple[int, ...] = (64, 64)


@dataclass(frozen=True, slots=True)
class Tabular:
    """Tabular Q-learning over the cells of `learn.qtable`."""

    discount: float = 0.99
    first_rate: float = 0.5
    """Learning rate of a cell's first visit; it falls with the visits' square root..."""
    last_rate: float = 0.02
    """...to this."""
    exploration_share: float = 0.5
    """Part of the training over which the chance of a random action falls from 1 to `exploration_end`."""
    exploration_end: float = 0.05


@dataclass(frozen=True, slots=True)
class Forks:
    """Policy iteration on advantages that are measured on forks of the deployment (`learn.forks`), knobs only."""

    start: str = "best-static"
    """What the policy begins with: best-static, fixed:..., or file:PATH, a network of the same head and widths."""
    confidence: float = 3.0
    """How much the starting setting's scores are above the others'; of a network, what its scores are multiplied by, so that it draws surely."""
    episodes: int = 32
    """Training episodes played for an update."""
    measured_windows: int = 40
    """Windows of each episode, on average, at which advantages are measured."""
    horizon: int = 4
    """Windows that forks are followed for."""
    eagerness: float = 10.0
    """A setting is tried with this many times the policy's own odds of choosing it..."""
    least_chance: float = 0.1
    """...but at least with this chance."""
    remembered: int = 3
    """Updates whose measurements are learned from."""
    step_size: float = 6.0
    """How far an update may move the policy: gain, in standard deviations of the advantages, that is worth a unit of KL divergence, inverted."""
    epochs: int = 40
    """Passes over what is remembered, for each update."""
    batch_size: int = 256
    learning_rate: float = 1e-3
    hidden: tuple[int, ...] = (64, 64)


@dataclass(frozen=True, slots=True)
class Imitate:
    """Imitation of a teacher by DAgger (`learn.imitate`)."""

    teacher: str = "clairvoyant"
    """Whom to imitate: a planner or a policy by any name that `evaluate` takes, or file:PATH."""
    episodes: int = 16
    """Training episodes played for a round."""
    labels: int = 30
    """Decisions of each episode, on average, that are learned from. A planner is asked at these only."""
    beta: float = 0.5
    """Of round i, counted from 0, the teacher drives a share beta^i of the episodes: the first round's all. 1: it always drives, which a
    teacher needs whose memory is of its own last command."""
    smoothing: float = 0.05
    """Part of the target that is spread over all that was allowed, so that fine-tuning still has odds to move."""
    epochs: int = 20
    """Passes over all lessons so far, for each round."""
    batch_size: int = 256
    learning_rate: float = 1e-3
    hidden: tuple[int, ...] = (64, 64)


@dataclass(frozen=True, slots=True)
class CMA:
    """Evolution (CMA-ES) of a rule: a memory rule's parameters (`learn.search`), and on knobs weights (`learn.linear_search`) or a feedback rule's (`learn.feedback_search`).

    `rows` / `population` scenarios try each candidate.
    """

    population: int = 14
    """Candidates of a generation."""
    sigma: float = 0.5
    """First spread, in units of the parameters' own scales."""


Settings = PPO | DQN | Tabular | Forks | Imitate | CMA
#: Algorithms, and the settings that each has.
ALGORITHMS: dict[str, type[PPO] | type[DQN] | type[Tabular] | type[Forks] | type[Imitate] | type[CMA]] = {
    "forks": Forks, "cma": CMA, "feedback": CMA, "imitate": Imitate, "maskable-ppo": PPO, "ppo": PPO, "dqn": DQN, "qr-dqn": DQN, "q-table": Tabular,
}  # fmt: skip
#: What a surface is learned with unless one says otherwise: what was best there (docs/results/learned.md).
DEFAULTS = {"paging": "cma", "knobs": "forks"}
#: Those whose training episodes can vary (`learn.randomise`).
RANDOMISED = ("forks", "cma", "feedback", "imitate", "maskable-ppo", "ppo", "dqn", "qr-dqn", "q-table")
#: Those that can only choose from a list, so that knobs need `preset` or `delta`.
LISTS = ("dqn", "qr-dqn", "q-table")


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
            _at_least(name, getattr(self, name), least)
        if self.scenarios > SPLIT_SIZE:
            raise ConfigError("scenarios", f"{self.scenarios}", allowed=f"1..{SPLIT_SIZE}")
        heads = [head for names in HEADS.values() for head in names]
        if self.encoding not in heads:
            raise UnknownNameError("encoding", self.encoding, heads)
        if self.encoding == "multidiscrete" and self.algorithm in LISTS:
            raise ConfigError("encoding", f"{self.algorithm} chooses from a list", allowed="preset, delta")
        if self.algorithm == "q-table" and self.encoding == "delta":
            raise ConfigError("encoding", "a table's cells do not hold the knobs in force, which delta needs", allowed="preset")  # fmt: skip
        if self.randomise.varies and self.algorithm not in RANDOMISED:
            raise ConfigError("randomise", f"{self.algorithm} plays the task as it is", allowed=", ".join(RANDOMISED))
        _check(self.settings)

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
            own["settings"] = _changed(self.settings, inner)
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
    inner, varied = data.get("settings", {}), data.get("randomise", {})
    own = {name: value for name, value in data.items() if name not in ("settings", "randomise")}
    known = [one.name for one in fields(TrainConfig)]
    for name in own:
        if name not in known:
            raise UnknownNameError("setting of a training", name, known)
    for name, table in (("settings", inner), ("randomise", varied)):
        if not isinstance(table, Mapping | Randomise):
            raise ConfigError(name, f"{table!r}", allowed=f"a table: [{name}]")
    task = own.get("task")
    if not isinstance(task, str):
        raise ConfigError("task", "is missing", allowed='task = "NAME", or --task NAME')
    base = defaults(task, own.get("algorithm"), own.get("encoding"))
    return replace(base, **own, settings=_changed(base.settings, inner), randomise=varied if isinstance(varied, Randomise) else from_mapping(varied))  # fmt: skip


def defaults(task: str, algorithm: str | None = None, encoding: str | None = None) -> TrainConfig:
    """What a task is trained with unless one says otherwise."""
    found: Task = catalogue.task(task)
    algorithm = algorithm or DEFAULTS[found.surface.name]
    if algorithm not in ALGORITHMS:
        raise UnknownNameError("algorithm", str(algorithm), tuple(ALGORITHMS))
    paging = found.surface.name == "paging"
    if paging and algorithm == "forks":
        raise ConfigError("algorithm", "forks learns knobs only", allowed=", ".join(_OF_PAGING))
    if paging and algorithm == "feedback":
        raise ConfigError("algorithm", "feedback is a rule for knobs", allowed=", ".join(_OF_PAGING))
    encoding = encoding or ("actions" if paging else "preset" if algorithm in LISTS else "multidiscrete")
    if encoding not in HEADS[found.surface.name]:
        raise ConfigError("encoding", f"'{encoding}' is none of '{task}'", allowed=", ".join(HEADS[found.surface.name]))
    base = TrainConfig(
        task=task, algorithm=algorithm, encoding=encoding, settings=ALGORITHMS[algorithm](),
        **(_PAGING if paging else _KNOBS),
    )  # fmt: skip
    if algorithm == "feedback" and _replays_trace(found):
        base = replace(base, randomise=_OTHER_HOURS)
    return base.with_(**(_OF_PAGING if paging else _OF_KNOBS)[algorithm])


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


def _changed(settings: Settings, given: Mapping[str, Any]) -> Settings:
    known = {one.name: getattr(settings, one.name) for one in fields(settings)}
    fit: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise UnknownNameError(f"setting of {type(settings).__name__}", name, tuple(known))
        fit[name] = tuple(value) if isinstance(value, list) else value
        # 1 is a fine learning rate in TOML; true is none.
        if isinstance(known[name], float) and isinstance(value, int) and not isinstance(value, bool):
            fit[name] = float(value)
    return replace(settings, **fit)


_SHARES = (
    "discount",
    "gae_lambda",
    "exploration_share",
    "exploration_end",
    "first_rate",
    "last_rate",
    "beta",
    "smoothing",
)


def _check(settings: Settings) -> None:
    for one in fields(settings):
        value = getattr(settings, one.name)
        default = one.default
        if isinstance(default, bool):
            if not isinstance(value, bool):
                raise ConfigError(one.name, f"{value!r}", allowed="true, false")
        elif isinstance(default, int):
            _at_least(one.name, value, 0 if one.name == "warmup" else 1)
        elif isinstance(default, tuple):
            if not isinstance(value, tuple) or not 1 <= len(value) <= 4 or not all(isinstance(w, int) and 1 <= w <= 1024 for w in value):  # fmt: skip
                raise ConfigError(one.name, f"{value!r}", allowed="one to four widths, each 1..1024")
        elif isinstance(default, str):
            if not isinstance(value, str):
                raise ConfigError(one.name, f"{value!r}", allowed="a policy's name")
        elif not isinstance(value, float) or not value >= 0.0 or value == float("inf"):
            raise ConfigError(one.name, f"{value!r}", allowed="a number, 0 or more")
        elif one.name in _SHARES and value > 1.0:
            raise ConfigError(one.name, f"{value!r}", allowed="0..1")


def _at_least(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(name, f"{value!r}", allowed=f"a whole number, {least} or more")


def _toml(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)
