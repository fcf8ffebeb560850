"""The columns of the Runtime page's history: which figures are kept, second by second, and what they are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from inferencegym.metrics.vocabulary import Metric, metric

#: Percentiles that are kept.
QS = (50, 95, 99)
#: Service classes with a history of their own.
CLASSES = 8
#: Figures of all classes together, by the page's groups.
_GROUPS: dict[str, tuple[str, ...]] = {
    "queues": ("running_mean", "waiting_mean", "oldest_wait_s", "waiting_prompt_tokens"),
    "load": ("arrival_rps", "throughput_rps", "goodput_rps", "rejected", "failed", "aborted", "output_tps"),
    "latency": tuple(f"{name}.p{q}" for name in ("ttft_s", "itl_s", "e2e_s", "queue_s") for q in QS),
    "service": ("slo_attainment",),
    "memory": ("kv_used_mean", "kv_tokens_in_flight", "preemptions"),
    "gpu": ("gpu_busy_fraction", "gpu_memory_used_bytes"),
}
#: Figures of each class.
_OF_CLASS = (
    "in_flight",
    "class_waiting",
    "slo_attainment",
    *(f"{name}.p{q}" for name in ("ttft_s", "itl_s") for q in QS),
)
_OWN_METRIC = {"in_flight": "backend_in_flight"}


class LiveColumn(NamedTuple):
    """One of them."""

    key: str
    """A metric's name, with the percentile where it has some: `ttft_s.p99`."""
    about: Metric
    group: str
    number: int | None
    """Of its class; None: of all together."""
    of: str
    """Name of its class, or empty."""

    def json(self) -> dict[str, Any]:
        """For the page: a value times `scale` is in `unit`."""
        name, _, q = self.key.partition(".")
        # A counter's history is its rate.
        unit = f"{self.about.unit}/s" if self.about.kind == "counter" else self.about.screen_unit or self.about.unit
        return {
            "name": self.key if not self.of else f"{self.key}@{self.of}", "metric": name, "label": f"{self.about.label} {q}".strip(), "unit": unit,
            "scale": self.about.screen_scale, "group": self.group, "class": self.of or None, "what": self.about.description,
        }  # fmt: skip


def columns_of(classes: Sequence[str]) -> list[LiveColumn]:
    """All columns of a gateway with these classes."""
    found = [LiveColumn(key, _about(key), group, None, "") for group, keys in _GROUPS.items() for key in keys]
    return found + [
        LiveColumn(key, _about(key), "class", number, name) for number, name in enumerate(classes) for key in _OF_CLASS
    ]


def _about(key: str) -> Metric:
    return metric(_OWN_METRIC.get(key, key.partition(".")[0]))
