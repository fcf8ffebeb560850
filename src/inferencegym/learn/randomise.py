"""Domain randomisation: what is drawn anew for each training episode, so that a policy meets more than one machine, traffic and age of news.

    [randomise]                       # of a training's TOML file; or --randomise "delay=0..3,rate=0.8..1.25,gpus=h100+a100"
    delay = [0, 3]
    rate = [0.8, 1.25]
    gpus = ["h100", "a100"]

Draws belong to the scenario: the same scenario number gives the same draw in every training, from streams named by the factor, so that a
resumed training meets what it met before. `learn.varied` makes tasks of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from inferencegym.ground.errors import ConfigError, UnknownNameError
from inferencegym.ground.facts import gpu as facts_of
from inferencegym.ground.rng import stream

_MOST_DELAY, _LEAST_FACTOR, _MOST_FACTOR = 16, 0.1, 10.0


@dataclass(frozen=True, slots=True)
class Drawn:
    """One episode's."""

    gpu: str
    """Empty: the task's own."""
    rate: float
    lengths: float
    delay: int


@dataclass(frozen=True, slots=True)
class Randomise:
    """Ranges to draw from; as they stand, nothing varies."""

    gpus: tuple[str, ...] = ()
    """GPUs under the deployment, each as likely (knobs only). Traffic is thinned on a weaker one than the task's own, as `learn.transfer` does."""
    rate: tuple[float, float] = (1.0, 1.0)
    """Factor on arrivals, log-uniform."""
    lengths: tuple[float, float] = (1.0, 1.0)
    """Factor on prompts and answers, log-uniform."""
    delay: tuple[int, int] = (0, 0)
    """How old observations are, both ends included: windows on knobs, decisions on paging."""

    def __post_init__(self) -> None:
        for name in ("rate", "lengths"):
            low, high = self._pair(name)
            if not (_LEAST_FACTOR <= low <= high <= _MOST_FACTOR):
                raise ConfigError(f"randomise.{name}", f"{low:g}..{high:g}", allowed=f"low..high within {_LEAST_FACTOR:g}..{_MOST_FACTOR:g}")  # fmt: skip
        low, high = self._pair("delay")
        if not isinstance(low, int) or not isinstance(high, int) or not 0 <= low <= high <= _MOST_DELAY:
            raise ConfigError(
                "randomise.delay", f"{low}..{high}", allowed=f"whole numbers, low..high within 0..{_MOST_DELAY}"
            )
        for name in self.gpus:
            facts_of(name)

    def _pair(self, name: str) -> tuple[float, float]:
        value = getattr(self, name)
        numbers = isinstance(value, tuple) and all(
            isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in value
        )
        if not numbers or len(value) != 2:
            raise ConfigError(f"randomise.{name}", f"{value!r}", allowed="[low, high]")
        return value[0], value[1]

    @property
    def varies(self) -> tuple[str, ...]:
        """The factors that are drawn."""
        still = Randomise()
        return tuple(one.name for one in fields(self) if getattr(self, one.name) != getattr(still, one.name))

    def draw(self, scenario: int) -> Drawn:
        """What a scenario (its number) meets."""
        gpu = ""
        if self.gpus:
            gpu = self.gpus[int(stream(scenario, "randomise/gpu").integers(len(self.gpus)))]
        low, high = self.delay
        delay = int(stream(scenario, "randomise/delay").integers(low, high + 1))
        return Drawn(gpu, _factor(self.rate, scenario, "rate"), _factor(self.lengths, scenario, "lengths"), delay)


def _factor(span: tuple[float, float], scenario: int, name: str) -> float:
    low, high = span
    return float(low * (high / low) ** stream(scenario, f"randomise/{name}").random())


def from_mapping(data: Mapping[str, Any]) -> Randomise:
    """The table of a TOML file: lists are ranges, or names."""
    known = tuple(one.name for one in fields(Randomise))
    given: dict[str, Any] = {}
    for name, value in data.items():
        if name not in known:
            raise UnknownNameError("factor of [randomise]", name, known)
        if not isinstance(value, list | tuple):
            raise ConfigError(f"randomise.{name}", f"{value!r}", allowed="[low, high]; of gpus, a list of names")
        given[name] = tuple(value)
    return Randomise(**given)


def from_text(text: str) -> Randomise:
    """What stands after `--randomise`: "delay=0..3,rate=0.8..1.25,gpus=h100+a100"; one number is a range of one."""
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise ConfigError("--randomise", f"'{part}'", allowed="e.g. delay=0..3,rate=0.8..1.25,gpus=h100+a100")
        if name == "gpus":
            found[name] = value.split("+")
            continue
        low, dots, high = value.partition("..")
        try:
            found[name] = [_number(low), _number(high if dots else low)]
        except ValueError as error:
            raise ConfigError("--randomise", f"'{part}'", allowed="numbers, such as delay=0..3") from error
    return from_mapping(found)


def _number(text: str) -> int | float:
    return int(text) if text.strip().lstrip("-").isdigit() else float(text)
