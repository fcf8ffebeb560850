"""The report of a simulation or a load test: one HTML file without anything from outside, to look at, print, or send. Times on screen are milliseconds.

It opens with the command and the digests that made it, then figures side by side, then charts; no script runs in it.
"""

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inferencegym.bench.chart import Line, chart, legend, style
from inferencegym.metrics.itl import ItlHistogram, bin_edges_ps
from inferencegym.metrics.record import Records
from inferencegym.metrics.summary import Summary
from inferencegym.metrics.vocabulary import metric

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
    path: Path | str, runs: Sequence[ReportRun], *, title: str, command: str, context: Mapping[str, str]
) -> None:
    """Write the file, whole or not at all."""
    write_whole(path, page(runs, title=title, command=command, context=context))


def write_whole(path: Path | str, text: str) -> None:
    """Write a text file, whole or not at all; its folder is made."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def page(runs: Sequence[ReportRun], *, title: str, command: str, context: Mapping[str, str]) -> str:
    """The whole page as text."""
    assert runs, "a report needs at least one run"
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>Made by <code>{html.escape(command)}</code></p>",
        facts(context),
        "<h2>Figures</h2>",
        _how_to_read(runs),
        _figures(runs),
        _endings(runs),
        "<h2>What requests felt</h2>",
        legend([run.label for run in runs]),
        "<p>Each curve says which share of requests (or of gaps between tokens) stayed below a latency: further left is better.</p>",
        '<div class="charts">',
        *[_latency_chart(runs, name) for name in LATENCIES],
        "</div><h2>Over time</h2>",
        legend([run.label for run in runs]),
        '<div class="charts">',
        _time_chart(runs, "waiting", "Requests waiting", "requests"),
        _time_chart(runs, "running", "Requests running", "requests"),
        _time_chart(runs, "kv_used_fraction", "KV memory in use", "% of blocks", scale=100.0, y_max=100.0),
        _time_chart(runs, "output_tps", "Tokens out", "tokens/s"),
        "</div>",
        _classes(runs),
        "<h2>Settings</h2>",
        _settings(runs),
    ]
    return framed(title, "".join(body))


def framed(title: str, body: str) -> str:
    """A page of ours around HTML: its style, and nothing from outside."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_CSS}</style></head><body><main>{body}</main></body></html>\n"
    )


# --- tables -----------------------------------------------------------------------------------------------------------


def facts(context: Mapping[str, str]) -> str:
    """Names and values as a list; empty ones left out."""
    rows = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in context.items() if value
    )
    return f"<dl>{rows}</dl>"


def _how_to_read(runs: Sequence[ReportRun]) -> str:
    best = "Best of a row in <strong>bold</strong>." if len(runs) > 1 else ""
    band = "<em>low .. high</em>: the same run with every step faster and slower by the step-time profile's own error." if any(run.band for run in runs) else ""  # fmt: skip
    return f"<p>{best} {band}</p>" if best or band else ""


def _head(runs: Sequence[ReportRun], first: str = "") -> str:
    cells = "".join(
        f'<th scope="col"><span class="key" style="background:{style(i)[0]}"></span>{html.escape(run.label)}</th>'
        for i, run in enumerate(runs)
    )
    return f"<thead><tr><th scope='col'>{first}</th>{cells}</tr></thead>"


def _figures(runs: Sequence[ReportRun]) -> str:
    unseen = UNSEEN if all(run.summary.observer == "client" for run in runs) else ()
    rows = [(name, statistic) for name in LATENCIES for statistic in STATISTICS]
    rows += [(name, "") for name in SINGLE if name not in unseen]
    lines = []
    for name, statistic in rows:
        values = [run.summary.value(name, statistic) for run in runs]
        if all(value is None for value in values):
            continue
        heading = html.escape(f"{metric(name).heading} {statistic}".strip())
        best = _best(name, values)
        cells = "".join(
            _figure(run, name, statistic, value, i in best)
            for i, (run, value) in enumerate(zip(runs, values, strict=True))
        )
        lines.append(f"<tr><th scope='row'>{heading}</th>{cells}</tr>")
    return f"<div class='scroll'><table>{_head(runs)}<tbody>{''.join(lines)}</tbody></table></div>"


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
    return f"<td>{said}</td>"


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
    lines = []
    for name in names:
        for run in runs:
            row = run.summary.by_class.get(name)
            if row is None or (len(names) == 1 and row.slo_attainment is None):
                continue
            cells = [
                html.escape(name), html.escape(run.label), html.escape(row.slo), f"{row.requests:,}", metric("slo_attainment").show(row.slo_attainment),
                metric("ttft_s").show(row.ttft_s.p99), metric("tpot_s").show(row.tpot_s.p99),
            ]  # fmt: skip
            lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    if not lines:
        return ""
    heads = (
        "class",
        "run",
        "objective",
        "requests",
        metric("slo_attainment").heading,
        f"{metric('ttft_s').heading} p99",
        f"{metric('tpot_s').heading} p99",
    )
    head = "".join(f"<th scope='col'>{html.escape(text)}</th>" for text in heads)
    return f"<h2>Service levels by class</h2><div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def _settings(runs: Sequence[ReportRun]) -> str:
    names = list(runs[0].settings)
    differ = [name for name in names if len({run.settings.get(name) for run in runs}) > 1]
    lines = []
    for name in [*differ, *[name for name in names if name not in differ]]:
        mark = " class='differs'" if name in differ else ""
        cells = "".join(f"<td>{html.escape(run.settings.get(name, '-'))}</td>" for run in runs)
        lines.append(f"<tr{mark}><th scope='row'>{html.escape(name)}</th>{cells}</tr>")
    return f"<details><summary>All settings; those that differ come first</summary><div class='scroll'><table>{_head(runs)}<tbody>{''.join(lines)}</tbody></table></div></details>"


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
        curves, title=shown.label, x_label=shown.heading, y_label=f"% of {of} below", log_x=spread > 20, y_max=100.0
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
    runs: Sequence[ReportRun], name: str, title: str, unit: str, scale: float = 1.0, y_max: float | None = None
) -> str:
    shown = [(i, run) for i, run in enumerate(runs) if name in run.timeline]
    if not shown:
        return ""
    lines = []
    for i, run in shown:
        t, y = np.asarray(run.timeline["t_s"], dtype=np.float64), np.asarray(run.timeline[name], dtype=np.float64)
        lines.append(Line(run.label, i, t, y * scale))
    return chart(lines, title=title, x_label="time (s)", y_label=unit, y_max=y_max)


_CSS = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1a1a1a;--soft:#5c5c5c;--rule:#d8d8d8;--mark:#f3f6fa}
@media (prefers-color-scheme:dark){:root{--paper:#15181c;--ink:#e8e8e8;--soft:#a8adb3;--rule:#343a41;--mark:#1f252c}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1360px;margin:0 auto;padding:1.5rem}h1{font-size:1.6rem;margin:0 0 .5rem}h2{font-size:1.2rem;margin:2rem 0 .5rem}
code{background:var(--mark);padding:.1em .35em;border-radius:4px;overflow-wrap:anywhere}em{color:var(--soft);font-style:normal;font-size:.85em}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;font-size:.85rem;color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}th,td{padding:.25rem .8rem;border-bottom:1px solid var(--rule);text-align:right;vertical-align:top}
tbody th,thead th:first-child{text-align:left;font-weight:500;white-space:nowrap}tr.differs{background:var(--mark)}.key{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.4em}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1rem}figure{margin:0;break-inside:avoid}
figcaption{font-weight:600}svg text{fill:var(--soft);font:12px system-ui,sans-serif}svg .label{fill:var(--ink)}.grid{stroke:var(--rule)}.axis{stroke:var(--soft)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;padding:0;margin:.5rem 0}.legend svg{margin-right:.4em;vertical-align:middle}
.empty{color:var(--soft)}summary{cursor:pointer}@media print{main{max-width:none;padding:0}details{display:block}}
"""
