"""The algorithms and the settings that each has, with their defaults: what stands under `[settings]` in a training's TOML file.

`learn.config` says which task is trained by which, and what else shapes a training; its defaults for a task go before those here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from inferencegym.ground.errors import ConfigError, UnknownNameError

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
ALGORITHMS: dict[str, type[Settings]] = {
    "forks": Forks, "cma": CMA, "feedback": CMA, "imitate": Imitate, "maskable-ppo": PPO, "ppo": PPO, "dqn": DQN, "qr-dqn": DQN, "q-table": Tabular,
}  # fmt: skip
#: Those that can only choose from a list, so that knobs need `preset` or `delta`.
LISTS = ("dqn", "qr-dqn", "q-table")


def changed(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """The same with some settings changed by name, lists as tuples, whole numbers as numbers; UnknownNameError for what is none."""
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
    "discount", "gae_lambda", "exploration_share", "exploration_end", "first_rate", "last_rate", "beta", "smoothing",
)  # fmt: skip


def check(settings: Settings) -> None:
    """ConfigError for a setting of another type, or out of its range."""
    for one in fields(settings):
        value = getattr(settings, one.name)
        default = one.default
        if isinstance(default, bool):
            if not isinstance(value, bool):
                raise ConfigError(one.name, f"{value!r}", allowed="true, false")
        elif isinstance(default, int):
            at_least(one.name, value, 0 if one.name == "warmup" else 1)
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


def at_least(name: str, value: Any, least: int) -> None:
    """ConfigError unless it is a whole number, so large or larger."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(name, f"{value!r}", allowed=f"a whole number, {least} or more")
