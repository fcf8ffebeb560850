"""Prometheus' text format 0.0.4, line by line. Durations are seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from inferencegym.metrics.itl import ItlHistogram
from inferencegym.metrics.vocabulary import Metric
from inferencegym.runtime.histogram import BUCKETS_S, cumulative

Labels = Mapping[str, str]


class Text:
    """Lines of Prometheus' text format. A family without samples is left out."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def whole(self) -> str:
        """The page."""
        return "\n".join(self._lines) + "\n"

    def metric(self, about: Metric, series: str, kind: str, samples: Iterable[tuple[Labels, float]]) -> None:
        """A gauge or a counter."""
        lines = [f"{series}{_labels(labels)} {_number(value)}" for labels, value in samples]
        if series and lines:
            self._head(about, series, kind)
            self._lines += lines

    def histogram(self, about: Metric, series: str, samples: Iterable[tuple[Labels, ItlHistogram]]) -> None:
        """A histogram."""
        if not series:
            return
        self._head(about, series, "histogram")
        for labels, histogram in samples:
            inside = _labels(labels)
            begin = f"{series}_bucket{inside[:-1]}," if inside else f"{series}_bucket{{"
            counts = cumulative(histogram)
            self._lines += [f"{begin}{end} {count}" for end, count in zip(_ENDS, counts, strict=True)]
            self._lines.append(f"{series}_sum{inside} {_number(histogram.sum_ps / 1e12)}")
            self._lines.append(f"{series}_count{inside} {histogram.count}")

    def _head(self, about: Metric, series: str, kind: str) -> None:
        self._lines += [f"# HELP {series} {about.description}", f"# TYPE {series} {kind}"]


_ENDS = (*(f'le="{end!r}"}}' for end in BUCKETS_S), 'le="+Inf"}')


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return "{" + inside + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    return repr(int(value)) if value == int(value) else repr(float(value))
