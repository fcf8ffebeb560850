"""Pictures of an explanation, as inline SVG: heat maps, bars, and an episode over time. `CSS` belongs to them."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from inferencegym.decision.encodings import show_lever
from inferencegym.decision.knobs import COLUMNS, GRID, LEVERS
from inferencegym.decision.paging import NAMES
from inferencegym.learn.explain import Against, Timeline
from inferencegym.report.chart import Axis, grows, panned, room, svg
from inferencegym.report.palette import HEAT_TURN, colour, dash

_CELL_W, _CELL_H = 66, 22
_WIDTH, _LEFT, _RIGHT = 940, 150, 80
_POINTS = 600
_CHOICES = 5


def heat_map(one: Against) -> str:
    """Choices in rows, intervals of the load in columns."""
    bins, left = len(one.intervals), room(one.choices)
    width, height = left + _CELL_W * max(bins, 3) + 10, _CELL_H * len(one.choices) + 52
    title = f"{one.what} against {one.load}: share of decisions (%)"
    lines = []
    # Numbers grow upwards, as on any axis; a list of actions begins with the most frequent.
    rows = list(range(len(one.choices)))
    for y, i in enumerate(rows if one.what == "action" else rows[::-1]):
        top = 6 + _CELL_H * y
        lines.append(
            f'<text class="label" x="{left - 8}" y="{top + 15}" text-anchor="end">{html.escape(one.choices[i])}</text>'
        )
        for b, share in enumerate(one.shares[i]):
            x = left + _CELL_W * b
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
            f'<text x="{left + _CELL_W * b + _CELL_W / 2 - 1}" y="{floor + 16}" text-anchor="middle">{text}</text>'
        )
    middle = left + _CELL_W * max(bins, 3) / 2
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
    return panned(title, drawing)


def bars(found: Sequence[tuple[str, float, dict[str, float]]], detail: str, *, title: str, x: Axis) -> str:
    """One bar for each column: (its name, its share, the same by knob in the format `detail`)."""
    shown = [one for one in found if one[1] > 0.0]
    if not shown:
        return "<p>On nothing: no column changes a decision.</p>"
    most = max(share for _, share, _ in shown)
    left, floor = room([column for column, _, _ in shown]), 22 * len(shown) + 4
    width = left + 320
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
    drawing = svg("".join(lines), width, floor + 24, f"{title}: {x.label}. {told}.", grow=1.3)
    return grows(title, drawing)


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
    return panned("The episode over time", drawing)


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


#: What the pictures need beside the style of a report. The policy and the other have the first two series.
CSS = f"""
.explained .maps{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr));gap:1rem 1.5rem}}
.explained .cell{{fill:var(--heat)}}.explained .bar{{fill:{colour(0)}}}.explained text.on{{fill:var(--heat-high)}}.explained text.off{{fill:var(--heat-low)}}
.explained .rule{{stroke:var(--rule)}}.explained line.limit{{stroke:var(--ok);stroke-dasharray:5 3}}.explained text.limit{{fill:var(--ok)}}
.explained polyline{{fill:none;stroke-width:1.8;stroke-linejoin:round}}.explained .own{{stroke:{colour(0)}}}
.explained .other{{stroke:{colour(1)};stroke-dasharray:{dash(1)};stroke-width:1.4}}.explained .legend svg{{stroke-width:3}}
"""
