"""What asking a language model came to: questions, failures, tokens, seconds and their price, added up over an episode or an evaluation.

`EndpointError` is the failure that no counter holds: the model's endpoint is gone, or refuses.

Seconds are wall time from asking to having the answer, the client's own retries and their waits included; prices are US$ per million tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from inferencegym.ground.errors import ConfigError, InferenceGymError


class EndpointError(InferenceGymError, OSError):
    """The model's endpoint cannot be reached or refuses; says which and why."""


@dataclass(frozen=True, slots=True)
class Price:
    """US$ per million tokens."""

    prompt_usd: float
    completion_usd: float

    def __post_init__(self) -> None:
        for name, value in (("price-in", self.prompt_usd), ("price-out", self.completion_usd)):
            if not 0 <= value < float("inf"):
                raise ConfigError(name, f"{value:g} is no price", allowed="US$ per million tokens, 0 or more")


@dataclass(slots=True)
class Usage:
    """Counters of a model's questions."""

    questions: int = 0
    """Answers asked for; one that could not be read and was asked for again counts twice."""
    parse_failures: int = 0
    """Answers that could not be read."""
    illegal: int = 0
    """Answers that could be read and that the mask did not allow."""
    retries: int = 0
    """Times the client tried again after a timeout, a lost connection, or a status such as 429 or 503."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unmetered: int = 0
    """Answers whose endpoint said nothing of tokens; they are missing in the two sums."""
    latencies_s: list[float] = field(default_factory=list)
    """Of each question."""

    @staticmethod
    def total(parts: Iterable[Usage]) -> Usage:
        """All of them together."""
        found = Usage()
        for one in parts:
            found.questions += one.questions
            found.parse_failures += one.parse_failures
            found.illegal += one.illegal
            found.retries += one.retries
            found.prompt_tokens += one.prompt_tokens
            found.completion_tokens += one.completion_tokens
            found.unmetered += one.unmetered
            found.latencies_s += one.latencies_s
        return found

    def report(self, price: Price | None = None) -> dict[str, float]:
        """The counters by name, `latency_mean_s` and `latency_p95_s` (if anything was asked), and, with a price, `cost_usd`."""
        found: dict[str, float] = {
            "questions": self.questions, "parse_failures": self.parse_failures, "illegal": self.illegal, "retries": self.retries,
            "prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens, "unmetered": self.unmetered,
        }  # fmt: skip
        if self.latencies_s:
            found["latency_mean_s"] = float(np.mean(self.latencies_s))
            found["latency_p95_s"] = float(np.percentile(self.latencies_s, 95))
        if price is not None:
            paid = self.prompt_tokens * price.prompt_usd + self.completion_tokens * price.completion_usd
            found["cost_usd"] = paid / 1e6
        return found
