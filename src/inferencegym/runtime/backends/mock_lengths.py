"""What is left to chance at the mock: how long an answer is, and which requests go wrong. Each from a named stream, so a run repeats. Tokens, seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from inferencegym.ground.errors import ConfigError
from inferencegym.ground.rng import stream
from inferencegym.runtime.ports import BackendError

_DRAWS = 1024


@dataclass(slots=True)
class Lengths:
    """Answer lengths of a lognormal distribution; numbers are drawn ahead, a block at a time."""

    median_tokens: float = 143.0
    """Half of the answers are shorter. (The logarithms of Azure's conversation trace of 2023 have mean 4.96, so exp(4.96), and spread 0.86.)"""
    sigma: float = 0.86
    """Spread of the logarithm."""
    _generator: np.random.Generator = field(default_factory=lambda: stream(0, "mock.lengths"))
    _drawn: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.median_tokens >= 1 or not 0 <= self.sigma <= 5:
            raise ConfigError("mock.lengths", f"median {self.median_tokens}, sigma {self.sigma}", allowed="a median of 1 or more, sigma 0..5")  # fmt: skip

    def begin(self, seed: int, name: str) -> None:
        """Draw for the backend of this name."""
        self._generator = stream(seed, f"mock.{name}.output_tokens")
        self._drawn.clear()

    def draw(self, least: int, most: int) -> int:
        """The length of the next answer, between the caller's limits."""
        if not self._drawn:
            lengths = self._generator.lognormal(math.log(self.median_tokens), self.sigma, _DRAWS)
            self._drawn = np.maximum(np.rint(lengths), 1).astype(int).tolist()
        return min(max(self._drawn.pop(), least), most)


#: Ways to go wrong: name to what happens.
FAILURES: Mapping[str, str] = {
    "refuse": "the connection is refused, nothing was sent",
    "error": "500, as if the engine had crashed",
    "overload": "503 with Retry-After, as an engine that is full",
    "die": "the connection breaks after half of the answer",
    "hang": "nothing ever comes",
    "slow": "two seconds pass before the engine sees it",
}
SLOW_S = 2.0
RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class TellTale:
    """How one request goes wrong; nothing given: it hangs."""

    error: BackendError | None = None
    delay_s: float = 0.0
    dies_after: float | None = None


class Failures:
    """Which requests go wrong, each type with its chance."""

    def __init__(self, chances: Mapping[str, float], seed: int, name: str) -> None:
        for kind, chance in chances.items():
            if kind not in FAILURES:
                raise ConfigError(
                    f"backends.{name}.failures.{kind}", "there is no such failure", allowed=", ".join(FAILURES)
                )
            if not 0 <= chance <= 1:
                raise ConfigError(f"backends.{name}.failures.{kind}", f"{chance} is no chance", allowed="0..1")
        if sum(chances.values()) > 1:
            raise ConfigError(
                f"backends.{name}.failures", f"the chances add up to {sum(chances.values()):g}", allowed="at most 1"
            )
        self._kinds = [kind for kind in FAILURES if chances.get(kind, 0) > 0]
        self._upto = np.cumsum([chances[kind] for kind in self._kinds]).tolist()
        self._generator = stream(seed, f"mock.{name}.failures")
        self.counts = dict.fromkeys(self._kinds, 0)
        """How many requests went wrong, by type."""

    def draw(self) -> TellTale | None:
        """How the next request goes wrong; None: it does not."""
        if not self._kinds:
            return None
        u = self._generator.random()
        for kind, upto in zip(self._kinds, self._upto, strict=True):
            if u < upto:
                self.counts[kind] += 1
                return _tell_tale(kind)
        return None


def _tell_tale(kind: str) -> TellTale:
    if kind == "refuse":
        return TellTale(BackendError("the mock refused the connection", code="connection_refused", sent=False))
    if kind == "error":
        return TellTale(BackendError("the mock failed", status=500, code="internal_error"))
    if kind == "overload":
        return TellTale(BackendError("the mock is full", status=503, code="server_is_overloaded", retry_after_s=RETRY_AFTER_S, fault=False, sent=False))  # fmt: skip
    if kind == "die":
        return TellTale(dies_after=0.5)
    return TellTale(delay_s=SLOW_S) if kind == "slow" else TellTale()
