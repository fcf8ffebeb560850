"""Pictures of an explanation, as inline SVG for one HTML file without anything from outside: heat maps, bars, and an episode over time.

`sections` makes the parts of a page, also for the page of an evaluation; `write_page` makes a page of them alone.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import inferencegym
from inferencegym.decision.encodings import show_lever
from inferencegym.decision.knobs import COLUMNS, GRID, LEVERS
from inferencegym.decision.paging import NAMES
from inferencegym.learn.distill import Distilled
from inferencegym.learn.explain import Against, Explanation, Timeline
from inferencegym.learn.gradients import Attributions
from inferencegym.report.chart import Axis, svg
from inferencegym.report.frame import framed, write_whole
from inferencegym.report.palette import HEAT_TURN, colour, dash

_CELL_W, _CELL_H, _LABEL = 66, 22, 130
_WIDTH, _LEFT, _RIGHT = 940, 150, 80
_POINTS = 600
_CHOICES = 5
#: Columns whose gradients are shown.
_ADDING = 10


def write_page(
    path: Path, found: Explanation, *, command: str, tree: Distilled | None = None, scores: str = ""
) -> None:
    """Write the file, whole or not at all. `scores`: HTML of a comparison of policy and tree, if there is one."""
    title = f"What {found.policy} does on {found.task}"
    context = {"policy": found.policy, "scenarios": f"{found.scenarios} of the split {found.split}"}
    digests = {f"task digest, {found.task}": found.digest}
    body = "".join(sections(found, tree, scores, level=2))
    write_whole(
        path,
        framed(
            title, body, command=command, digests=digests, version=inferencegym.__version__, context=context, style=CSS
        ),
    )


def sections(found: Explanation, tree: Distilled | None = None, scores: str = "", *, level: int = 3) -> list[str]:
    """The explanation in HTML, without a heading of its own; `CSS` belongs to it. `level`: rank of the headings in it."""

    def heading(text: str) -> str:
        return f"<h{level}>{html.escape(text)}</h{level}>"

    stands = ", ".join(f"<b>{name}</b> {value}" for name, value in found.constant.items())
    whose = f'<ul class="legend">{_key("own", found.timeline.policy)}{_key("other", found.timeline.other)}</ul>'
    parts = [
        '<div class="explained">',
        f"<p>{found.decisions:,} decisions in {found.scenarios} {html.escape(found.split)} scenarios; mean value {found.value:.4f}."
        + (f" Never moved: {stands}." if stands else "")
        + "</p>",
        heading("What it chooses, by load"),
        "<p>Each column is an interval of the load with about as many decisions as the others; a cell is the share of its decisions.</p>",
        '<div class="maps">' + "".join(heat_map(one) for one in found.against) + "</div>"
        if found.against
        else "<p>It never moves a knob.</p>",
        heading("What its choices hang on"),
        "<p>Share of decisions that come out otherwise when one column's values are shuffled among all decisions. Columns that say the same"
        " (arrivals and requests that run, say) share what hangs on both.</p>",
        bars(
            [(one.column, one.changed, one.by_knob) for one in found.importance],
            "{:.1%}",
            title="Decisions that hang on a column",
            x=Axis("decisions that come out otherwise", "%"),
        ),
        *_gradients(found.attributions),
        heading(f"One episode: scenario {found.timeline.scenario}, beside {found.timeline.other}"),
        f"<p>Value {found.timeline.value:.4f}, against {found.timeline.other_value:.4f} of {html.escape(found.timeline.other)} on the same requests.{_crashes(found.timeline)}"
        f"</p>{whose}",
        over_time(found.timeline),
        "<p>The lead is in return, the sum of rewards, which are shaped for learning; grades compare values.</p>",
    ]
    if tree is not None:
        parts += [
            heading("The same as a tree to read"),
            f"<p>{tree.tree.branches.leaves} leaves; it decides as the policy does in {tree.agreement:.1%} of its decisions on validation scenarios."
            " After each leaf, how often it is reached.</p>",
            scores,
            f"<pre>{html.escape(tree.text())}</pre>",
        ]
    return [*parts, "</div>"]


def _key(kind: str, name: str) -> str:
    """An entry of the episode's legend."""
    drawn = f'<svg viewBox="0 0 36 10" aria-hidden="true"><polyline class="{kind}" points="0,5 36,5"/></svg>'
    return f"<li>{drawn}{html.escape(name)}</li>"


def _crashes(line: Timeline) -> str:
    """Who did not last as long as the other."""
    own, other = (len(one) for one in line.choices)
    if own == other:
        return ""
    return f" {html.escape(line.policy if own < other else line.other)} crashed after {min(own, other):,} {line.step}s."


def heat_map(one: Against) -> str:
    """Choices in rows, intervals of the load in columns."""
    bins = len(one.intervals)
    width, height = _LABEL + _CELL_W * max(bins, 4) + 10, _CELL_H * len(one.choices) + 52
    title = f"{one.what} against {one.load}: share of decisions (%)"
    lines = []
    # Numbers grow upwards, as on any axis; a list of actions begins with the most frequent.
    rows = list(range(len(one.choices)))
    for y, i in enumerate(rows if one.what == "action" else rows[::-1]):
        top = 6 + _CELL_H * y
        lines.append(
            f'<text class="label" x="{_LABEL - 8}" y="{top + 15}" text-anchor="end">{html.escape(one.choices[i])}</text>'
        )
        for b, share in enumerate(one.shares[i]):
            x = _LABEL + _CELL_W * b
            lines.append(
                f'<rect class="cell" x="{x}" y="{top}" width="{_CELL_W - 2}" height="{_CELL_H - 2}" style="fill-opacity:{share:.3f}"/>'
            )
            if share >= 0.005:
                ink = "on" if share >= HEAT_TURN else "off"
                lines.append(
                    f'<text class="{ink}" x="{x + _CELL_W / 2 - 1}" y="{top + 15}" text-anchor="middle">{share:.0%}</text>'
                )
    floor = 6 + _CELL_H * len(one.choices)
    for b, (low, high) in enumerate(one.intervals):
        ends = dict.fromkeys(_end(value) for value in (low, high))
        text = "–".join(ends)
        lines.append(
            f'<text x="{_LABEL + _CELL_W * b + _CELL_W / 2 - 1}" y="{floor + 16}" text-anchor="middle">{text}</text>'
        )
    middle = _LABEL + _CELL_W * max(bins, 4) / 2
    axis = Axis(one.load, one.unit)
    lines.append(
        f'<text class="label" x="{middle}" y="{floor + 36}" text-anchor="middle">{html.escape(axis.label)}</text>'
    )
    most = [max(range(len(one.choices)), key=lambda i, b=b: one.shares[i][b]) for b in range(bins)]  # type: ignore[misc]
    told = "; ".join(
        f"at {_end(low)} to {_end(high)} mostly {one.choices[i]} ({one.shares[i][b]:.0%})"
        for b, ((low, high), i) in enumerate(zip(one.intervals, most, strict=True))
    )
    drawing = svg(
        "".join(lines),
        width,
        height,
        f"{title}. {axis.label}: {told}.",
        least=0.8 * width,
    )
    return f'<figure><figcaption>{html.escape(title)}</figcaption><div class="pan">{drawing}</div></figure>'


def _gradients(found: Attributions | None) -> list[str]:
    """What columns add to a network's choices, or why that cannot be said."""
    if found is None:
        return ["<p>It is no network, so it has no gradients to integrate: shuffling is what there is.</p>"]
    return [
        "<p>And what each column adds to them, by integrated gradients: its part of how far the chosen score, above the mean of its knob's scores,"
        f" is from that at the mean observation. Sizes over {found.decisions:,} decisions, in percent of all columns'; nothing is shuffled, so every"
        " situation is one that occurred.</p>",
        bars(
            [(one.column, one.share, one.by_knob) for one in found.columns[:_ADDING]],
            "{:.3g}",
            title="What columns add",
            x=Axis("part of all columns", "%"),
        ),
    ]


def bars(found: Sequence[tuple[str, float, dict[str, float]]], detail: str, *, title: str, x: Axis) -> str:
    """One bar for each column: (its name, its share, the same by knob in the format `detail`)."""
    shown = [one for one in found if one[1] > 0.0]
    if not shown:
        return "<p>On nothing: no column changes a decision.</p>"
    most = max(share for _, share, _ in shown)
    width, left, floor = 640, 190, 22 * len(shown) + 4
    lines = []
    for i, (column, share, by_knob) in enumerate(shown):
        y, length = 22 * i + 4, share / most * (width - left - 60)
        said = ", ".join(f"{name} {detail.format(part)}" for name, part in by_knob.items()) or f"{share:.1%}"
        lines.append(
            f'<text class="label" x="{left - 8}" y="{y + 13}" text-anchor="end">{html.escape(column)}</text>'
            f'<rect class="bar" x="{left}" y="{y}" width="{length:.1f}" height="17"><title>{html.escape(said)}</title></rect>'
            f'<text x="{left + length + 6:.1f}" y="{y + 13}">{share:.1%}</text>'
        )
    lines.append(f'<line class="axis" x1="{left}" x2="{left}" y1="2" y2="{floor}"/>')
    lines.append(f'<text class="label" x="{left}" y="{floor + 16}">{html.escape(x.label)}</text>')
    told = "; ".join(f"{column} {share:.1%}" for column, share, _ in shown)
    drawing = svg("".join(lines), width, floor + 24, f"{title}: {x.label}. {told}.", least=480)
    return f'<figure><figcaption>{html.escape(title)}</figcaption><div class="pan">{drawing}</div></figure>'


def over_time(line: Timeline) -> str:
    """Panels one above the other, over the episode: what came, what was chosen, what users felt, and who is ahead."""
    knobs = line.step == "window"
    panels: list[Callable[[int], tuple[int, list[str]]]] = []
    for name, (own, other) in line.seen.items():
        objectives = line.objectives if name == "p99_ttft_ms" else {}
        # Both see the same requests arrive.
        panels.append(partial(_curves, line, name, own, None if name == "request_arrival_rate" else other, objectives))
    if knobs:
        levers = [np.array(one) for one in line.choices]
        moved = [k for k in range(len(LEVERS)) if len(np.unique(np.concatenate([one[:, k] for one in levers]))) > 1]
        panels[1:1] = [partial(_steps, line, LEVERS[k], levers[0][:, k], levers[1][:, k]) for k in moved]
    else:
        panels.insert(1, partial(_lanes, line))
    panels.append(partial(_curves, line, "ahead", line.ahead, None, {}))
    top = 8
    drawn: list[str] = []
    for panel in panels:
        height, lines = panel(top)
        drawn += lines
        top += height + 16
    drawn += _time_axis(line, top - 10)
    told = f"One episode over time: {line.policy} beside {line.other}. It ends with a value of {line.value:.4g} against {line.other_value:.4g}."
    drawing = svg("".join(drawn), _WIDTH, top + 30, told, least=0.8 * _WIDTH)
    return f'<figure><figcaption>The episode over time</figcaption><div class="pan">{drawing}</div></figure>'


def _x(line: Timeline, step: float) -> float:
    steps = max(len(line.choices[0]), len(line.choices[1]))
    return _LEFT + step / steps * (_WIDTH - _LEFT - _RIGHT)


def _frame(top: int, height: int, name: str, unit: str) -> list[str]:
    middle = top + height / 2
    lines = [f'<rect class="frame" x="{_LEFT}" y="{top}" width="{_WIDTH - _LEFT - _RIGHT}" height="{height}"/>']
    lines.append(f'<text class="label" x="4" y="{middle}">{html.escape(name)}</text>')
    if unit:
        lines.append(f'<text x="4" y="{middle + 15}">{html.escape(unit)}</text>')
    return lines


_UNITS = {
    "request_arrival_rate": "requests/s", "p99_ttft_ms": "ms, and objectives", "queue_depth": "requests", "kv_cache_occupancy": "share",
    "gpu_utilization_pct": "share", "free_queue_pressure": "requests", "vip_queue_pressure": "requests", "ahead": "return so far",
}  # fmt: skip
_TITLES = {
    "ahead": "lead",
    "p99_ttft_ms": "p99 TTFT",
    "request_arrival_rate": "arrivals",
    "queue_depth": "queue",
    "kv_cache_occupancy": "KV in use",
}
_TITLES |= {"gpu_utilization_pct": "GPU in use", "free_queue_pressure": "free queue", "vip_queue_pressure": "VIP queue"}


def _curves(
    line: Timeline, name: str, own: list[float], other: list[float] | None, objectives: dict[str, float], top: int
) -> tuple[int, list[str]]:
    """Lines of the policy and of the other; of a TTFT on a scale of powers of ten, with objectives."""
    height = 76
    log = name == "p99_ttft_ms"
    values = [*own, *(other or []), *objectives.values()]
    scale: Callable[[float], float] = (lambda v: math.log10(max(v, 10.0))) if log else (lambda v: v)
    low, high = min(map(scale, values)), max(map(scale, values))
    low = low if log or low < 0 else 0.0
    high = high if high > low else low + 1.0

    def y(value: float) -> float:
        return top + height - 4 - (scale(value) - low) / (high - low) * (height - 8)

    lines = _frame(top, height, _TITLES[name], _UNITS[name])
    for value in (10.0**low, 10.0**high) if log else (low, high):
        lines.append(f'<text x="{_LEFT - 5}" y="{y(value) + 4:.1f}" text-anchor="end">{short(value)}</text>')
    if low < 0 < high and not log:
        lines.append(f'<line class="rule" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>')
    free = float(top + height + 12)
    for value in sorted(set(objectives.values())):
        names = ", ".join(one for one, limit in objectives.items() if limit == value)
        # A name moves up where it would lie on another.
        free = min(y(value) + 4, free - 12)
        lines.append(
            f'<line class="limit" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        )
        lines.append(f'<text class="limit" x="{_WIDTH - _RIGHT + 5}" y="{free:.1f}">{html.escape(names)}</text>')
    for series, kind in ((other, "other"), (own, "own")):
        if series:
            lines.append(_polyline(line, thinned(series), y, kind))
    return height, lines


def _steps(line: Timeline, name: str, own: Any, other: Any, top: int) -> tuple[int, list[str]]:
    """A knob of the policy and of the other, each on the place of its value in the grid."""
    grid = list(GRID[name])
    used = sorted({*own.tolist(), *other.tolist()})
    low, high = min(used), max(used)
    height = 60
    log = name == "batch_cap"
    scale: Callable[[float], float] = math.log2 if log else float

    def y(value: float) -> float:
        return top + height - 6 - (scale(value) - scale(low)) / max(scale(high) - scale(low), 1e-9) * (height - 12)

    lines = _frame(top, height, name, COLUMNS[COLUMNS.index(name)].unit)
    for value in {low, high} if len(grid) > 3 else used:
        lines.append(f'<text x="{_LEFT - 5}" y="{y(value) + 4:.1f}" text-anchor="end">{show_lever(name, value)}</text>')
    for series, kind in ((other, "other"), (own, "own")):
        points = []
        for step, value in enumerate(series.tolist()):
            points += [f"{_x(line, step):.1f},{y(value):.1f}", f"{_x(line, step + 1):.1f},{y(value):.1f}"]
        lines.append(f'<polyline class="{kind}" points="{" ".join(points)}"/>')
    return height, lines


def _lanes(line: Timeline, top: int) -> tuple[int, list[str]]:
    """How often the policy took each of its most frequent actions, along the episode."""
    own = np.array(line.choices[0])
    often = [
        i for i in np.argsort(-np.bincount(own, minlength=len(NAMES)), kind="stable").tolist() if (own == i).any()
    ][:_CHOICES]
    pieces = np.array_split(np.arange(len(own)), min(len(own), 120))
    height = 18 * len(often) + 4
    lines = [f'<rect class="frame" x="{_LEFT}" y="{top}" width="{_WIDTH - _LEFT - _RIGHT}" height="{height}"/>']
    for row, action in enumerate(often):
        y = top + 2 + 18 * row
        lines.append(f'<text class="label" x="{_LEFT - 5}" y="{y + 13}" text-anchor="end">{NAMES[action]}</text>')
        for piece in pieces:
            share = float((own[piece] == action).mean())
            if share > 0.0:
                x, end = _x(line, int(piece[0])), _x(line, int(piece[-1]) + 1)
                lines.append(
                    f'<rect class="cell" x="{x:.1f}" y="{y}" width="{end - x:.1f}" height="16" style="fill-opacity:{share:.3f}"/>'
                )
    return height, lines


def _polyline(line: Timeline, points: list[tuple[float, float]], y: Callable[[float], float], kind: str) -> str:
    said = " ".join(f"{_x(line, step):.1f},{y(value):.1f}" for step, value in points)
    return f'<polyline class="{kind}" points="{said}"/>'


def _time_axis(line: Timeline, top: int) -> list[str]:
    steps = max(len(line.choices[0]), len(line.choices[1]))
    lines = []
    for k in range(7):
        at = steps * k / 6
        text = f"{at * line.length:,.0f}" if line.step == "window" else f"{at:,.0f}"
        anchor = "end" if k == 6 else "middle"
        lines.append(f'<text x="{_x(line, at):.1f}" y="{top + 14}" text-anchor="{anchor}">{text}</text>')
    axis = Axis("time in the episode", "s") if line.step == "window" else Axis("time in the episode", "decisions")
    lines.append(
        f'<text class="label" x="{(_LEFT + _WIDTH) / 2}" y="{top + 32}" text-anchor="middle">{axis.label}</text>'
    )
    return lines


def thinned(series: Sequence[float]) -> list[tuple[float, float]]:
    """(step, value) of a series; of a long one, the means of as many pieces as can be told apart."""
    if len(series) <= _POINTS:
        return [(step + 0.5, value) for step, value in enumerate(series)]
    pieces = np.array_split(np.arange(len(series)), _POINTS)
    values = np.array(series)
    return [(float(piece.mean()) + 0.5, float(values[piece].mean())) for piece in pieces]


def _end(value: float) -> str:
    """An interval's end, of two decimals at most: they stand side by side."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if abs(value) < 10 else short(value)


def short(value: float) -> str:
    """A number in a few letters."""
    if abs(value) >= 10_000:
        return f"{value / 1000:.0f}k"
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.2g}"


#: What the sections need beside the style of a report. The policy and the other have the first two series.
CSS = f"""
.explained .maps{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr));gap:1rem 1.5rem}}
.explained .cell{{fill:var(--heat)}}.explained .bar{{fill:{colour(0)}}}.explained text.on{{fill:var(--heat-high)}}.explained text.off{{fill:var(--heat-low)}}
.explained .rule{{stroke:var(--rule)}}.explained line.limit{{stroke:var(--ok);stroke-dasharray:5 3}}.explained text.limit{{fill:var(--ok)}}
.explained polyline{{fill:none;stroke-width:1.8;stroke-linejoin:round}}.explained .own{{stroke:{colour(0)}}}
.explained .other{{stroke:{colour(1)};stroke-dasharray:{dash(1)};stroke-width:1.4}}.explained .legend svg{{stroke-width:3}}
"""
