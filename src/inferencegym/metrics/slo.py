"""Service-level objectives: how quick a request of each class has to be, and which requests were.

Limits are seconds; a limit that is not given is not checked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from inferencegym.ground.errors import ConfigError
from inferencegym.ground.units import show_number
from inferencegym.metrics.record import Bools, Records
from inferencegym.metrics.vocabulary import metric


@dataclass(frozen=True, slots=True)
class Slo:
    """Limits of one class; a request meets them if it completed and each given limit holds."""

    ttft_s: float | None = None
    """Longest time to first token."""
    tpot_s: float | None = None
    """Longest mean time per output token; an answer of one token has none and meets any."""
    e2e_s: float | None = None
    """Longest time to the whole answer."""

    def __post_init__(self) -> None:
        for name, limit in self.limits().items():
            if not (math.isfinite(limit) and limit > 0):
                raise ConfigError(f"slo.{name}", f"{limit} is no limit", allowed="a number of seconds above 0")

    def limits(self) -> dict[str, float]:
        """The limits that are given, by metric name."""
        given = {limit.name: getattr(self, limit.name) for limit in fields(self)}
        return {name: value for name, value in given.items() if value is not None}

    def met(self, records: Records) -> Bools:
        """Which of the records completed within every limit."""
        good = records.ok
        for name, limit in self.limits().items():
            # NaN is never above a limit: a completed request lacks only the TPOT of a one-token answer.
            good = good & ~(getattr(records, name) > limit)
        return good

    def __bool__(self) -> bool:
        return bool(self.limits())

    def __str__(self) -> str:
        """As a screen shows it: 'TTFT <= 500 ms, TPOT <= 50 ms'."""
        shown = [f"{metric(name).label} <= {show_number(limit * 1000)} ms" for name, limit in self.limits().items()]
        return ", ".join(shown) or "none"


@dataclass(frozen=True, slots=True)
class SloTable:
    """The SLO of each class by name, and the one of all classes not named."""

    default: Slo = field(default_factory=Slo)
    by_class: Mapping[str, Slo] = field(default_factory=dict)

    def of(self, class_name: str) -> Slo:
        """The SLO of the class."""
        return self.by_class.get(class_name, self.default)

    def __bool__(self) -> bool:
        return bool(self.default) or any(self.by_class.values())


def judge(records: Records, table: SloTable, class_names: Sequence[str]) -> tuple[Bools, Bools]:
    """Which requests have an SLO, and which of those met it; `class_names[code]` names a row's class."""
    judged = np.zeros(len(records), dtype=np.bool_)
    met = np.zeros(len(records), dtype=np.bool_)
    for code, name in enumerate(class_names):
        slo = table.of(name)
        if slo:
            rows = records.slo_class == code
            judged |= rows
            met |= rows & slo.met(records)
    return judged, met


def attainment(records: Records, table: SloTable, class_names: Sequence[str]) -> float | None:
    """Share of the requests with an SLO that met it; None if no request has one."""
    judged, met = judge(records, table, class_names)
    count = int(np.count_nonzero(judged))
    return int(np.count_nonzero(met)) / count if count else None


def goodput_rps(records: Records, table: SloTable, class_names: Sequence[str], span_s: float) -> float | None:
    """Requests per second that met their SLO; None if no request has one or the span is empty."""
    judged, met = judge(records, table, class_names)
    return int(np.count_nonzero(met)) / span_s if span_s > 0 and judged.any() else None
