"""Load tests kept in a folder, read again, and compared: a difference with its 95 % interval, not just two numbers.

A folder holds `runs.json` and, for each run, its records as Parquet. Nothing but figures and request ids is kept: no prompt, no answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inferencegym.ground.errors import InputError
from inferencegym.ground.rng import stream
from inferencegym.metrics.itl import BINS, ItlHistogram
from inferencegym.metrics.record import Records
from inferencegym.metrics.slo import Slo
from inferencegym.metrics.summary import Summary, summarise
from inferencegym.metrics.vocabulary import metric

FORMAT = 1
INDEX = "runs.json"
#: Requests that arrive one after the other share their fate: what is drawn again is stretches of them, so many of a run.
STRETCHES = 20
REPEATS = 1000


@dataclass(frozen=True)
class Kept:
    """One run of a load test."""

    label: str
    records: Records
    itl: ItlHistogram
    slo: Slo
    class_names: tuple[str, ...]
    timeline: Mapping[str, npt.NDArray[Any]]
    settings: Mapping[str, str]
    errors: Mapping[str, int]
    request_ids: tuple[str, ...]

    @cached_property
    def summary(self) -> Summary:
        """The figures."""
        return summarise(self.records, self.itl, slo=self.slo, class_names=self.class_names, timeline=self.timeline)


def keep(folder: Path, runs: Sequence[Kept]) -> None:
    """Write runs into a folder, which is made; runs that were in it are replaced."""
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    index = []
    for i, one in enumerate(runs):
        pq.write_table(one.records.to_table(), folder / f"{i}.parquet")
        index.append({
            "label": one.label, "settings": dict(one.settings), "errors": dict(one.errors), "request_ids": list(one.request_ids),
            "itl_counts": {str(b): int(one.itl.counts[b]) for b in np.flatnonzero(one.itl.counts)}, "itl_sum_ps": one.itl.sum_ps,
            "timeline": {name: np.asarray(values).tolist() for name, values in one.timeline.items()}, "slo": one.slo.limits(),
            "class_names": list(one.class_names),
        })  # fmt: skip
    (folder / INDEX).write_text(json.dumps({"format": FORMAT, "runs": index}) + "\n")


def read_kept(folder: Path) -> list[Kept]:
    """The runs of a folder that `keep` wrote; InputError for another."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / INDEX
    if not path.is_file():
        raise InputError("is no kept load test: it has no runs.json (inferencegym load --save FOLDER writes one)", file=folder)  # fmt: skip
    try:
        told = json.loads(path.read_text())
        if told["format"] != FORMAT:
            raise InputError(f"is of format {told['format']}; this release reads {FORMAT}", file=path)
        found = []
        for i, one in enumerate(told["runs"]):
            counts = np.zeros(BINS, dtype=np.int64)
            for b, count in one["itl_counts"].items():
                counts[int(b)] = count
            found.append(
                Kept(
                    label=one["label"], records=Records.from_table(pq.read_table(folder / f"{i}.parquet")),
                    itl=ItlHistogram(counts, int(one["itl_sum_ps"]), int(counts.sum())), slo=Slo(**one["slo"]), class_names=tuple(one["class_names"]),
                    timeline={name: np.asarray(values, dtype=np.float64) for name, values in one["timeline"].items()}, settings=one["settings"],
                    errors=one["errors"], request_ids=tuple(one["request_ids"]),
                )
            )  # fmt: skip
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OSError, pa.ArrowException) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"is no kept load test: {error!r}", file=path) from error
    return found


def differences(run: Kept, earlier: Kept, figures: Sequence[tuple[str, str]]) -> dict[str, str]:
    """By figure: how far `run` lies from `earlier`, with the 95 % interval of the difference, as a screen shows it."""
    said = {}
    for name, statistic in figures:
        here, there = run.summary.value(name, statistic), earlier.summary.value(name, statistic)
        if here is None or there is None:
            continue
        drawn = _drawn(run, name, statistic, "run") - _drawn(earlier, name, statistic, "earlier")
        low, high = np.nanquantile(drawn, [0.025, 0.975])
        shown = metric(name)
        values = [f"{'+' if x > 0 else ''}{shown.show(x)}" for x in (here - there, float(low), float(high))]
        sure = "" if low <= 0 <= high else " *"
        said[f"{shown.heading} {statistic}".strip()] = f"{values[0]} [{values[1]}, {values[2]}]{sure}"
    return said


def _drawn(one: Kept, name: str, statistic: str, which: str) -> npt.NDArray[np.float64]:
    """The figure of REPEATS runs made of stretches of this one, drawn with return."""
    chance = stream(0, f"bench.compare.{which}")
    order = np.argsort(one.records.arrival_s, kind="stable")
    parts = np.array_split(order, min(STRETCHES, len(order)))
    met = one.slo.met(one.records)
    values = met if name == "goodput_rps" else getattr(one.records, name)
    drawn = np.empty(REPEATS)
    for i in range(REPEATS):
        taken = values[np.concatenate([parts[j] for j in chance.integers(0, len(parts), len(parts))])]
        if name == "goodput_rps":
            drawn[i] = taken.mean() * len(order) / one.summary.span_s
        else:
            known = taken[np.isfinite(taken)]
            drawn[i] = np.quantile(known, int(statistic[1:]) / 100) if len(known) else np.nan
    return drawn
