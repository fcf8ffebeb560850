"""Line charts as inline SVG that follow the page's colours, so that one file works in light, dark and print. No units of its own.

Written by hand rather than with a plotting library: lines, two axes and a legend are all a report needs, and text stays text.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 12, 44
#: Okabe and Ito's colours that stand out on white and on black; dashes tell lines apart without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#A6761D")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "12 4", "1 4", "6 2 1 2")


@dataclass(frozen=True, slots=True)
class Line:
    """One series; `index` picks its colour and dash, the same in every chart."""

    label: str
    index: int
    x: Floats
    y: Floats


def style(index: int) -> tuple[str, str]:
    """(colour, dash pattern) of a series."""
    return COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)] if index >= len(
        COLOURS
    ) else DASHES[index]


def chart(
    lines: Sequence[Line], *, title: str, x_label: str, y_label: str, log_x: bool = False, y_max: float | None = None
) -> str:
    """The <figure> of a chart; a sentence where there is nothing to draw."""
    drawn = [line for line in lines if len(line.x)]
    heading = f"<figcaption>{html.escape(title)}</figcaption>"
    if not drawn:
        return f"<figure>{heading}<p class='empty'>Nothing to show: no run has values for this.</p></figure>"
    low_x, high_x = _range([line.x for line in drawn], log_x)
    low_y, high_y = 0.0, y_max or max(float(line.y.max()) for line in drawn) * 1.05 or 1.0
    described = f"{title}. Lines: {', '.join(line.label for line in drawn)}."
    parts = [
        f'<figure>{heading}<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(described, quote=True)}">',
        *_x_axis(low_x, high_x, x_label, log_x),
        *_y_axis(low_y, high_y, y_label),
    ]
    for line in drawn:
        parts.append(_path(line, low_x, high_x, low_y, high_y, log_x))
    return "".join([*parts, "</svg></figure>"])


def legend(labels: Sequence[str]) -> str:
    """Which line is which; one legend for all charts of a page."""
    items = []
    for i, label in enumerate(labels):
        colour, dash = style(i)
        items.append(
            f'<li><svg viewBox="0 0 36 10" width="36" height="10" aria-hidden="true"><line x1="0" y1="5" x2="36" y2="5" stroke="{colour}" '
            f'stroke-width="3" stroke-dasharray="{dash}"/></svg>{html.escape(label)}</li>'
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _range(values: Sequence[Floats], log: bool) -> tuple[float, float]:
    low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    if log:
        low = max(low, high * 1e-6)
    elif low >= 0:
        low = 0.0
    return (low, high) if high > low else (low * 0.9, low * 1.1 + 1e-9)


def _place(value: Floats | float, low: float, high: float, log: bool) -> Floats:
    v = np.asarray(value, dtype=np.float64)
    if log:
        share: Floats = np.log(np.maximum(v, low) / low) / math.log(high / low)
    else:
        share = (v - low) / (high - low)
    return np.clip(share, 0.0, 1.0)


def _path(line: Line, low_x: float, high_x: float, low_y: float, high_y: float, log_x: bool) -> str:
    x = LEFT + _place(line.x, low_x, high_x, log_x) * (WIDTH - LEFT - RIGHT)
    y = HEIGHT - BOTTOM - _place(line.y, low_y, high_y, False) * (HEIGHT - TOP - BOTTOM)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))
    colour, dash = style(line.index)
    return (
        f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8" stroke-dasharray="{dash}" stroke-linejoin="round">'
        f"<title>{html.escape(line.label)}</title></polyline>"
    )


def _x_axis(low: float, high: float, label: str, log: bool) -> list[str]:
    floor = HEIGHT - BOTTOM
    parts = [f'<line class="axis" x1="{LEFT}" y1="{floor}" x2="{WIDTH - RIGHT}" y2="{floor}"/>']
    for tick in log_ticks(low, high) if log else ticks(low, high):
        x = LEFT + float(_place(tick, low, high, log)) * (WIDTH - LEFT - RIGHT)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{floor}"/>')
        parts.append(f'<text x="{x:.1f}" y="{floor + 16}" text-anchor="middle">{_number(tick)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [
        *parts,
        f'<text class="label" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{html.escape(label)}</text>',
    ]


def _y_axis(low: float, high: float, label: str) -> list[str]:
    parts = []
    for tick in ticks(low, high):
        y = HEIGHT - BOTTOM - float(_place(tick, low, high, False)) * (HEIGHT - TOP - BOTTOM)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'transform="rotate(-90 14 {middle})"'
    return [
        *parts,
        f'<text class="label" x="14" y="{middle}" text-anchor="middle" {turned}>{html.escape(label)}</text>',
    ]


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers between two values."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, and their doubles and fives where there are few."""
    decades = math.log10(high / low)
    parts = (1,) if decades > 4 else (1, 3) if decades > 2 else (1, 2, 5)
    first = math.floor(math.log10(low))
    found = [m * 10.0**e for e in range(first, first + int(decades) + 3) for m in parts]
    return [tick for tick in found if low * 0.999 <= tick <= high * 1.001]


def _number(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
