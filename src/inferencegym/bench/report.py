"""The report of a simulation or a load test: one HTML file without anything from outside, to look at, print, or send. Times on screen are milliseconds.

It opens with the command and the digests that made it, then figures side by side, then charts; no script runs in it.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inferencegym.metrics.itl import ItlHistogram, bin_edges_ps
from inferencegym.metrics.record import Records
from inferencegym.metrics.summary import Summary
from inferencegym.metrics.vocabulary import metric
from inferencegym.report.chart import Axis, Line, chart, legend
from inferencegym.report.chart import name as series_name
from inferencegym.report.frame import framed, section, table, write_whole

CURVE_POINTS = 300
LATENCIES = ("ttft_s", "itl_s", "tpot_s", "e2e_s", "queue_s")
STATISTICS = ("mean", "p50", "p90", "p99", "max")
SINGLE = (
    "arrival_rps", "throughput_rps", "output_tps", "total_tps", "output_tps_per_gpu", "goodput_rps", "slo_attainment", "kv_used_mean", "kv_used_max",
    "prefix_hit_fraction", "spec_acceptance_fraction", "preemptions", "swaps", "cost_per_hour", "cost_per_1k_output_tokens",
)  # fmt: skip
#: What a client cannot know.
UNSEEN = ("output_tps_per_gpu", "preemptions", "swaps")


@dataclass(frozen=True, slots=True)
class ReportRun:
    """One column of the report."""

    label: str
    records: Records
    itl: ItlHistogram
    summary: Summary
    timeline: Mapping[str, npt.NDArray[Any]]
    """t_s, running, waiting, kv_used_fraction, output_tps; empty arrays if none was kept, no array where the observer cannot know."""
    settings: Mapping[str, str]
    band: Mapping[str, tuple[float, float]] | None = None
    """Low and high of a figure ('ttft_s p99') under the profile's uncertainty, in the figure's own unit."""


def write_report(
    path: Path | str,
    runs: Sequence[ReportRun],
    *,
    title: str,
    command: str,
    context: Mapping[str, str],
    digests: Mapping[str, str],
    version: str,
) -> None:
    """Write the file, whole or not at all."""
    write_whole(path, page(runs, title=title, command=command, context=context, digests=digests, version=version))


def page(
    runs: Sequence[ReportRun], *, title: str, command: str, context: Mapping[str, str], digests: Mapping[str, str], version: str
) -> str:  # fmt: skip
    """The whole page as text. `digests`: of what the figures come from (workload, profile); `version`: of the package."""
    assert runs, "a report needs at least one run"
    labels = legend([run.label for run in runs])
    felt = (
        "<p>Each curve says which share of requests (or of gaps between tokens) stayed below a latency: further left is better.</p>"
        f'<div class="charts">{"".join(_latency_chart(runs, name) for name in LATENCIES)}</div>'
    )
    times = [
        _time_chart(runs, "waiting", "Requests waiting", Axis("waiting", "requests")),
        _time_chart(runs, "running", "Requests running", Axis("running", "requests")),
        _time_chart(runs, "kv_used_fraction", "KV memory in use", Axis("in use", "% of blocks"), scale=100.0, y_max=100.0),
        _time_chart(runs, "output_tps", "Tokens out", Axis("output", "tokens/s")),
    ]  # fmt: skip
    body = [
        section("Figures", _figures(runs) + _endings(runs)),
        section("What requests felt", labels + felt),
        section("Over time", f'{labels}<div class="charts">{"".join(times)}</div>'),
        section("Service levels by class", _classes(runs)),
        section("Settings", _settings(runs)),
    ]
    return framed(title, "".join(body), command=command, context=context, digests=digests, version=version)


# --- tables -----------------------------------------------------------------------------------------------------------


def _heads(runs: Sequence[ReportRun], first: str) -> list[str]:
    return [first, *(series_name(i, run.label) for i, run in enumerate(runs))]


def _how_to_read(runs: Sequence[ReportRun]) -> str:
    said = ["Figures of each run."]
    if len(runs) > 1:
        said.append("The best of a row is bold.")
    if any(run.band for run in runs):
        said.append("low .. high: the same run with every step faster and slower by the step-time profile's own error.")
    return " ".join(said)


def _figures(runs: Sequence[ReportRun]) -> str:
    unseen = UNSEEN if all(run.summary.observer == "client" for run in runs) else ()
    wanted = [(name, statistic) for name in LATENCIES for statistic in STATISTICS]
    wanted += [(name, "") for name in SINGLE if name not in unseen]
    rows = []
    for name, statistic in wanted:
        values = [run.summary.value(name, statistic) for run in runs]
        if all(value is None for value in values):
            continue
        best = _best(name, values)
        cells = [
            _figure(run, name, statistic, value, i in best)
            for i, (run, value) in enumerate(zip(runs, values, strict=True))
        ]
        rows.append([html.escape(f"{metric(name).heading} {statistic}".strip()), *cells])
    return table(_how_to_read(runs), _heads(runs, "figure"), rows)


def _best(name: str, values: Sequence[float | None]) -> set[int]:
    known = [value for value in values if value is not None]
    better = metric(name).better
    if len(values) < 2 or not better or len(set(known)) < 2:
        return set()
    top = min(known) if better == "lower" else max(known)
    return {i for i, value in enumerate(values) if value == top}


def _figure(run: ReportRun, name: str, statistic: str, value: float | None, best: bool) -> str:
    text = html.escape(metric(name).show(value))
    limits = (run.band or {}).get(f"{name} {statistic}".strip())
    said = f"<strong>{text}</strong>" if best else text
    if limits is not None and value is not None:
        low, high = (html.escape(metric(name).show(limit)) for limit in limits)
        said += f"<br><em>{low} .. {high}</em>"
    return said


def _endings(runs: Sequence[ReportRun]) -> str:
    lost = []
    for run in runs:
        other = ", ".join(
            f"{count:,} {name.replace('_', ' ')}"
            for name, count in run.summary.outcomes.items()
            if count and name != "ok"
        )
        if other:
            lost.append(f"<li>{html.escape(run.label)}: {html.escape(other)}</li>")
    if not lost:
        return "<p>Every request was served.</p>"
    return f"<p><strong>Not every request was served:</strong></p><ul>{''.join(lost)}</ul>"


def _classes(runs: Sequence[ReportRun]) -> str:
    """Service levels by class, if there is more than one class or an objective."""
    names = sorted({name for run in runs for name in run.summary.by_class})
    rows = []
    for name in names:
        for i, run in enumerate(runs):
            row = run.summary.by_class.get(name)
            if row is None or (len(names) == 1 and row.slo_attainment is None):
                continue
            rows.append([
                html.escape(name), series_name(i, run.label), html.escape(row.slo), f"{row.requests:,}", metric("slo_attainment").show(row.slo_attainment),
                metric("ttft_s").show(row.ttft_s.p99), metric("tpot_s").show(row.tpot_s.p99),
            ])  # fmt: skip
    if not rows:
        return ""
    heads = ["class", "run", "objective", "requests", metric("slo_attainment").heading, f"{metric('ttft_s').heading} p99", f"{metric('tpot_s').heading} p99"]  # fmt: skip
    return table("Each class of each run.", [html.escape(text) for text in heads], rows, words=(1, 2))


def _settings(runs: Sequence[ReportRun]) -> str:
    names = list(runs[0].settings)
    differ = [name for name in names if len({run.settings.get(name) for run in runs}) > 1]
    rows = [
        [html.escape(name), *(html.escape(run.settings.get(name, "-")) for run in runs)]
        for name in [*differ, *(name for name in names if name not in differ)]
    ]
    shown = table("Settings of each run.", _heads(runs, "setting"), rows, marked=range(len(differ)))
    said = "All settings; those that differ come first" if differ else "All settings"
    return f"<details><summary>{said}</summary>{shown}</details>"


# --- charts -----------------------------------------------------------------------------------------------------------


def _latency_chart(runs: Sequence[ReportRun], name: str) -> str:
    shown = metric(name)
    curves = []
    for i, run in enumerate(runs):
        x, y = gap_curve(run.itl) if name == "itl_s" else value_curve(getattr(run.records, name))
        curves.append(Line(run.label, i, x * shown.screen_scale, y * 100.0))
    filled = [line for line in curves if len(line.x)]
    spread = max((float(line.x[-1] / max(line.x[len(line.x) // 20], 1e-9)) for line in filled), default=1.0)
    of = "gaps" if name == "itl_s" else "requests"
    return chart(
        curves,
        title=shown.label,
        x=Axis(shown.label, shown.screen_unit or shown.unit),
        y=Axis(f"{of} below", "%"),
        log_x=spread > 20,
        y_max=100.0,
    )


def value_curve(values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(value, share at or below) at evenly spaced shares; NaN left out."""
    known = values[np.isfinite(values)]
    if len(known) == 0:
        return np.zeros(0), np.zeros(0)
    shares = np.linspace(0.0, 1.0, min(CURVE_POINTS, max(len(known), 2)))
    return np.quantile(known, shares), shares


def gap_curve(itl: ItlHistogram) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The same for inter-token gaps, from the histogram's bins."""
    if itl.count == 0:
        return np.zeros(0), np.zeros(0)
    used = np.flatnonzero(itl.counts)
    bins = np.arange(used[0], used[-1] + 1)
    upper = bin_edges_ps()[1][bins] / 1e12
    shares = np.cumsum(itl.counts[bins]) / itl.count
    keep = np.unique(np.linspace(0, len(bins) - 1, CURVE_POINTS).astype(int))
    return np.minimum(upper[keep], itl.max() or upper[keep][-1]), shares[keep]


def _time_chart(
    runs: Sequence[ReportRun], name: str, title: str, y: Axis, scale: float = 1.0, y_max: float | None = None
) -> str:
    shown = [(i, run) for i, run in enumerate(runs) if name in run.timeline]
    if not shown:
        return ""
    lines = []
    for i, run in shown:
        t, values = np.asarray(run.timeline["t_s"], dtype=np.float64), np.asarray(run.timeline[name], dtype=np.float64)
        lines.append(Line(run.label, i, t, values * scale))
    return chart(lines, title=title, x=Axis("time", "s"), y=y, y_max=y_max)
