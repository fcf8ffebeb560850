"""Records to figures: counts, latencies with percentiles and intervals, rates, service levels, memory, cost.

Names and formulas are those of `metrics.vocabulary`; times are seconds, shares are fractions, and a figure that does
not exist (no such requests, no SLO, no price) is None, which JSON writes as null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from inferencegym.ground.units import S_PER_HOUR
from inferencegym.metrics.itl import ItlHistogram
from inferencegym.metrics.record import Bools, Floats, Records, outcome_counts
from inferencegym.metrics.slo import Slo, SloTable, judge
from inferencegym.metrics.vocabulary import metric

Json = dict[str, Any]

PERCENTILES = (50, 90, 95, 99)
#: Statistics of a latency, in the order tables show them.
STATISTICS = ("mean", "mean_ci95", "p50", "p90", "p95", "p99", "max", "count")

BATCHES = 20
#: Fewer values than this make batches too short to be nearly independent: no interval is given.
LEAST_FOR_INTERVAL = 10 * BATCHES
#: 97.5 % point of Student's t with BATCHES - 1 = 19 degrees of freedom.
T_975 = 2.093024


@dataclass(frozen=True, slots=True)
class Distribution:
    """Many values in eight numbers; those that do not exist are None."""

    mean: float | None = None
    mean_ci95: float | None = None
    """Half the width of the mean's 95 % interval; None for fewer than 200 values."""
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None
    count: int = 0


@dataclass(frozen=True, slots=True)
class ClassSummary:
    """The requests of one SLO class."""

    requests: int
    ok: int
    slo: str
    """The class's limits in words; 'none' if it has none."""
    slo_attainment: float | None
    goodput_rps: float | None
    queue_s: Distribution
    ttft_s: Distribution
    tpot_s: Distribution
    e2e_s: Distribution


@dataclass(frozen=True, slots=True)
class Summary:
    """A run, or a window of one, in figures; each field is a metric of the vocabulary unless it says otherwise."""

    observer: str
    """Who saw it: engine, gateway or client."""
    span_s: float
    gpus: int
    """How many GPUs the deployment has."""
    requests: int
    outcomes: Mapping[str, int]
    """How many requests ended in each way; every outcome is listed."""
    queue_s: Distribution
    ttft_s: Distribution
    itl_s: Distribution
    tpot_s: Distribution
    e2e_s: Distribution
    arrival_rps: float | None
    throughput_rps: float | None
    output_tps: float | None
    total_tps: float | None
    output_tps_per_gpu: float | None
    running_mean: float | None
    waiting_mean: float | None
    goodput_rps: float | None
    slo_attainment: float | None
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    prefix_hit_fraction: float | None
    preemptions: int
    swaps: int
    kv_used_mean: float | None
    kv_used_max: float | None
    spec_acceptance_fraction: float | None
    cost_per_hour: float | None
    cost_per_1k_output_tokens: float | None
    by_class: Mapping[str, ClassSummary]
    """The same by SLO class, for each class that has requests."""
    totals: Mapping[str, int | float]
    """The engine's own counters, such as steps, as they were handed in."""

    def to_dict(self) -> Json:
        """As plain values that JSON can write: None for what does not exist, never NaN."""
        plain: Json = _plain(self)
        return plain

    def value(self, name: str, statistic: str = "") -> float | None:
        """One figure by its name: `value('ttft_s', 'p99')`, `value('goodput_rps')`, `value('never_fits')`."""
        wanted = metric(name)
        if wanted.kind == "distribution":
            assert statistic in STATISTICS, f"{name} has the statistics {STATISTICS}, not '{statistic}'"
            found = getattr(getattr(self, name), statistic)
        elif name in self.outcomes:
            found = self.outcomes[name]
        else:
            found = getattr(self, name) if hasattr(self, name) else self.totals.get(name)
        return None if found is None else float(found)


def summarise(
    records: Records,
    itl: ItlHistogram | None = None,
    *,
    slo: Slo | SloTable | None = None,
    class_names: Sequence[str] = ("default",),
    cost_per_hour: float | None = None,
    gpus: int = 1,
    span_s: float | None = None,
    totals: Mapping[str, int | float] | None = None,
    timeline: Mapping[str, npt.NDArray[Any]] | None = None,
) -> Summary:
    """The figures of these records.

    itl : the gaps between tokens of the same requests
    slo : one for all classes, or a table by class name
    class_names : the names of the records' `slo_class` codes, as the workload has them
    cost_per_hour : price of the whole deployment, dollars
    gpus : GPUs of the whole deployment
    span_s : length of the window; from first arrival to last finish if not given
    totals : counters of the engine; `drafted` and `accepted` give the acceptance of speculation
    timeline : samples over time; `t_s`, `kv_used_fraction`, `running` and `waiting` are used where they are there
    """
    table = slo if isinstance(slo, SloTable) else SloTable(default=slo or Slo())
    names = _named_classes(records, class_names)
    span = _span_s(records) if span_s is None else span_s
    counters = dict(totals or {})
    samples = timeline or {}
    judged, met = judge(records, table, names)
    started = ~np.isnan(records.first_token_s)
    scheduled = ~np.isnan(records.scheduled_s)
    prompt_tokens = _total(records.prompt_tokens[started])
    output_tokens = _total(records.output_tokens)
    cached_tokens = _total(records.cached_tokens)
    output_tps = _ratio(output_tokens, span)
    return Summary(
        observer=records.observer,
        span_s=span,
        gpus=gpus,
        requests=len(records),
        outcomes=outcome_counts(records),
        queue_s=distribution(records.queue_s),
        ttft_s=distribution(records.ttft_s),
        itl_s=itl_distribution(itl or ItlHistogram()),
        tpot_s=distribution(records.tpot_s),
        e2e_s=distribution(records.e2e_s),
        arrival_rps=_arrival_rps(records),
        throughput_rps=_ratio(_count(records.ok), span),
        output_tps=output_tps,
        total_tps=_ratio(prompt_tokens + output_tokens, span),
        output_tps_per_gpu=None if output_tps is None else output_tps / gpus,
        running_mean=_mean_over_time(samples, "running"),
        waiting_mean=_mean_over_time(samples, "waiting"),
        goodput_rps=_ratio(_count(met), span) if judged.any() else None,
        slo_attainment=_ratio(_count(met), _count(judged)),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        cached_tokens=cached_tokens,
        prefix_hit_fraction=_ratio(cached_tokens, _total(records.prompt_tokens[scheduled])),
        preemptions=_total(records.preemptions),
        swaps=_total(records.swaps),
        kv_used_mean=_mean_over_time(samples, "kv_used_fraction"),
        kv_used_max=_greatest(samples, "kv_used_fraction"),
        spec_acceptance_fraction=_ratio(counters.get("accepted", 0), counters.get("drafted", 0)),
        cost_per_hour=cost_per_hour,
        cost_per_1k_output_tokens=_cost_per_1k(cost_per_hour, span, output_tokens),
        by_class=_by_class(records, names, table, met, span),
        totals=counters,
    )


def distribution(values: Floats) -> Distribution:
    """The eight numbers of these values, in order of arrival; NaN is passed over."""
    there = values[~np.isnan(values)]
    count = len(there)
    if count == 0:
        return Distribution()
    # One partial sort serves the four percentiles and the maximum.
    p50, p90, p95, p99, top = np.percentile(there, (*PERCENTILES, 100)).tolist()
    return Distribution(
        mean=float(there.mean()),
        mean_ci95=mean_ci95(there),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        max=top,
        count=count,
    )


def itl_distribution(itl: ItlHistogram) -> Distribution:
    """The same of a histogram of gaps; it keeps no order, so there is no interval."""
    if itl.count == 0:
        return Distribution()
    p50, p90, p95, p99 = itl.percentiles(PERCENTILES)
    return Distribution(mean=itl.mean(), p50=p50, p90=p90, p95=p95, p99=p99, max=itl.max(), count=itl.count)


def mean_ci95(values: Floats) -> float | None:
    """Half the width of a 95 % interval of the mean, by 20 batch means; None for fewer than 200 values.

    Neighbours in a queue share their fate, so single values would give far too narrow an interval; the means of
    batches in order of arrival are nearly independent. (Law, Simulation Modeling and Analysis, batch means.)
    """
    length = len(values) // BATCHES
    if len(values) < LEAST_FOR_INTERVAL:
        return None
    # The few values left over after whole batches are the latest; they count in the mean, not in its interval.
    means = values[: length * BATCHES].reshape(BATCHES, length).mean(axis=1)
    return T_975 * float(means.std(ddof=1)) / math.sqrt(BATCHES)


def _by_class(
    records: Records, names: Sequence[str], table: SloTable, met: Bools, span_s: float
) -> dict[str, ClassSummary]:
    found = {}
    for code, name in enumerate(names):
        rows = records.slo_class == code
        count = _count(rows)
        if count:
            # Taking all rows would copy every column for nothing, and most workloads have one class.
            part, good = (records, met) if count == len(records) else (records.take(rows), met[rows])
            found[name] = _class_summary(part, table.of(name), good, span_s)
    return found


def _class_summary(records: Records, slo: Slo, met: Bools, span_s: float) -> ClassSummary:
    return ClassSummary(
        requests=len(records),
        ok=_count(records.ok),
        slo=str(slo),
        slo_attainment=_ratio(_count(met), len(records)) if slo else None,
        goodput_rps=_ratio(_count(met), span_s) if slo else None,
        queue_s=distribution(records.queue_s),
        ttft_s=distribution(records.ttft_s),
        tpot_s=distribution(records.tpot_s),
        e2e_s=distribution(records.e2e_s),
    )


def _named_classes(records: Records, class_names: Sequence[str]) -> tuple[str, ...]:
    """The names, with `class 3` for a code that has none."""
    needed = int(records.slo_class.max()) + 1 if len(records) else 0
    return (*class_names, *(f"class {code}" for code in range(len(class_names), needed)))


def _span_s(records: Records) -> float:
    return float(records.finish_s.max() - records.arrival_s.min()) if len(records) else 0.0


def _arrival_rps(records: Records) -> float | None:
    if len(records) == 0:
        return None
    # Window records come in order of finishing, so neither end need be the first or last arrival.
    return _ratio(len(records) - 1, float(records.arrival_s.max() - records.arrival_s.min()))


def _mean_over_time(samples: Mapping[str, npt.NDArray[Any]], name: str) -> float | None:
    """Mean of a sampled curve over its time: each sample holds until the next one."""
    if name not in samples or len(samples[name]) == 0:
        return None
    values = np.asarray(samples[name], dtype=np.float64)
    times = np.asarray(samples["t_s"], dtype=np.float64)
    lasting = np.diff(times)
    if lasting.sum() <= 0:
        return _finite(values.mean())
    return _finite(np.average(values[:-1], weights=lasting))


def _greatest(samples: Mapping[str, npt.NDArray[Any]], name: str) -> float | None:
    return _finite(samples[name].max()) if name in samples and len(samples[name]) else None


def _cost_per_1k(cost_per_hour: float | None, span_s: float, output_tokens: int) -> float | None:
    if cost_per_hour is None or output_tokens == 0:
        return None
    return cost_per_hour * span_s / S_PER_HOUR / (output_tokens / 1000)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _finite(value: float | np.floating[Any]) -> float | None:
    return float(value) if math.isfinite(value) else None


def _count(mask: Bools) -> int:
    return int(np.count_nonzero(mask))


def _total(column: npt.NDArray[np.int32]) -> int:
    # 32-bit columns are summed in 64 bits: a day of prompts passes 2^31 tokens.
    return int(column.sum(dtype=np.int64))


def _plain(thing: Any) -> Any:
    """Dataclasses and mappings as dictionaries, NumPy numbers as Python's, what is not finite as None."""
    if hasattr(thing, "__dataclass_fields__"):
        return {entry.name: _plain(getattr(thing, entry.name)) for entry in fields(thing)}
    if isinstance(thing, Mapping):
        return {key: _plain(value) for key, value in thing.items()}
    if isinstance(thing, np.generic):
        return _plain(thing.item())
    return None if isinstance(thing, float) and not math.isfinite(thing) else thing
