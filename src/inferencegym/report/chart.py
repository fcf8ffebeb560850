"""Charts as inline SVG that follow the page's colours, so that one file works in light, dark and print.

Written by hand rather than with a plotting library: lines, dots, two axes and a legend are all a report needs, and text stays text.
An `Axis` says what it shows and in which unit, so no chart is without.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inferencegym.report.palette import colour, dash

Floats = npt.NDArray[np.float64]

#: Of a chart, in the SVG's own units: near to pixels where three charts stand side by side.
WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 72, 14, 10, 44


@dataclass(frozen=True, slots=True)
class Axis:
    """What is shown along an axis, and in which unit: 'time (s)'."""

    name: str
    unit: str

    def __post_init__(self) -> None:
        assert self.unit, f"axis '{self.name}' needs a unit"

    @property
    def label(self) -> str:
        """As it stands at the axis."""
        return f"{self.name} ({self.unit})"


@dataclass(frozen=True, slots=True)
class Line:
    """One series; `index` picks its colour and dash, the same in every chart."""

    label: str
    index: int
    x: Floats
    y: Floats


@dataclass(frozen=True, slots=True)
class Whisker:
    """A value with its interval."""

    label: str
    value: float
    low: float
    high: float


def chart(
    lines: Sequence[Line], *, title: str, x: Axis, y: Axis, log_x: bool = False, y_max: float | None = None
) -> str:
    """The <figure> of a line chart; a sentence where there is nothing to draw. `y_max`: top of the scale, else what is needed."""
    drawn = [line for line in lines if len(line.x)]
    if not drawn:
        return f"<figure>{_caption(title)}<p class='empty'>Nothing to show: no run has values for this.</p></figure>"
    low_x, high_x = _range([line.x for line in drawn], log_x)
    low_y = min(0.0, *(float(line.y.min()) for line in drawn)) * 1.05
    high_y = y_max or max(0.0, *(float(line.y.max()) for line in drawn)) * 1.05 or (0.0 if low_y else 1.0)
    told = "; ".join(
        f"{line.label}: {_span(line.y)} where {x.name} goes from {_number(float(line.x[0]))} to {_number(float(line.x[-1]))}"
        for line in drawn
    )
    parts = [
        *_x_axis(low_x, high_x, x.label, log_x),
        *_y_axis(low_y, high_y, y.label),
        *(_path(line, low_x, high_x, low_y, high_y, log_x) for line in drawn),
    ]
    said = f"{title}: {y.label} against {x.label}. {told}."
    return f"<figure>{_caption(title)}{svg(''.join(parts), WIDTH, HEIGHT, said, grow=1.4)}</figure>"


def whiskers(rows: Sequence[Whisker], *, title: str, x: Axis, low: float, high: float) -> str:
    """The <figure> of a dot and its interval for each row. `low`, `high`: what the axis spans at least; 0 is drawn stronger."""
    low, high = min(low, *(row.low for row in rows)), max(high, *(row.high for row in rows))
    high = high if high > low else low + 1.0
    names = [_short(row.label, 27) for row in rows]
    left, right, tall = room(names), 18, 24
    width, floor = left + 300, tall * len(rows) + 8

    def at(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - right)

    parts = []
    for value in ticks(low, high):
        kind = "axis" if value == 0.0 else "grid"
        parts.append(f'<line class="{kind}" x1="{at(value):.1f}" x2="{at(value):.1f}" y1="4" y2="{floor}"/>')
        parts.append(f'<text x="{at(value):.1f}" y="{floor + 15}" text-anchor="middle">{_number(value)}</text>')
    for i, row in enumerate(rows):
        y = tall * i + 17
        parts.append(
            f'<text class="label" x="{left - 10}" y="{y + 4}" text-anchor="end">{html.escape(names[i])}</text>'
            f'<g><title>{html.escape(row.label)}: {row.value:.4g}, {row.low:.4g} to {row.high:.4g}</title><line x1="{at(row.low):.1f}" x2="{at(row.high):.1f}"'
            f' y1="{y}" y2="{y}" style="stroke:{colour(0)};stroke-width:3;stroke-linecap:round"/>'
            f'<circle cx="{at(row.value):.1f}" cy="{y}" r="4.5" style="fill:{colour(0)}"/></g>'
        )
    middle = (left + width - right) / 2
    parts.append(
        f'<text class="label" x="{middle}" y="{floor + 34}" text-anchor="middle">{html.escape(x.label)}</text>'
    )
    told = "; ".join(f"{row.label} {row.value:.4g} ({row.low:.4g} to {row.high:.4g})" for row in rows)
    return grows(title, svg("".join(parts), width, floor + 42, f"{title}: {x.label}. {told}.", grow=1.3))


def svg(drawing: str, width: float, height: float, said: str, *, least: float = 0.0, grow: float = 1.1) -> str:
    """A picture around its drawing. `said`: what is to be seen; `least`: pixels below which it is panned over instead
    of made smaller; `grow`: how far above its own size it may be drawn.
    """
    wide = f"max-width:{width * grow:.0f}px" + (f";min-width:{least:.0f}px" if least else "")
    return f'<svg viewBox="0 0 {width:g} {height:g}" style="{wide}" role="img" aria-label="{html.escape(said, quote=True)}">{drawing}</svg>'


def legend(labels: Sequence[str]) -> str:
    """Which line is which; one legend for all charts of a section."""
    items = []
    for i, label in enumerate(labels):
        drawn = f'<line x1="0" y1="5" x2="36" y2="5" style="stroke:{colour(i)};stroke-width:3" stroke-dasharray="{dash(i)}"/>'
        items.append(f'<li><svg viewBox="0 0 36 10" aria-hidden="true">{drawn}</svg>{html.escape(label)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def name(index: int, label: str) -> str:
    """The name of a series behind a small square in its colour, for the heads of tables."""
    return f'<span class="name"><span class="key" style="background:{colour(index)}"></span><span>{html.escape(label)}</span></span>'


def panned(title: str, drawing: str) -> str:
    """The <figure> of a picture that keeps its size on a narrow screen, where it scrolls sideways."""
    said = html.escape(title, quote=True)
    return f'<figure>{_caption(title)}<div class="pan" role="group" tabindex="0" aria-label="{said}">{drawing}</div></figure>'


def grows(title: str, drawing: str) -> str:
    """The <figure> of a picture that fits into a narrow screen, where its words grow."""
    return f'<figure class="grows">{_caption(title)}{drawing}</figure>'


def room(labels: Sequence[str]) -> float:
    """How wide labels are at the most, in the SVG's units, with the space behind them."""
    return 7.6 * max(map(len, labels), default=0) + 14


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers between two values."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, and their doubles and fives where there are few."""
    decades = math.log10(high / low)
    parts = (1,) if decades > 4 else (1, 3) if decades > 2 else (1, 2, 5)
    first = math.floor(math.log10(low))
    found = [m * 10.0**e for e in range(first, first + int(decades) + 3) for m in parts]
    return [tick for tick in found if low * 0.999 <= tick <= high * 1.001]


def _caption(title: str) -> str:
    return f"<figcaption>{html.escape(title)}</figcaption>"


def _short(text: str, most: int) -> str:
    """Long names end in dots; the whole name is in the picture's title and in the table."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _span(values: Floats) -> str:
    """What a line does, in words."""
    return f"{_number(float(values.min()))} to {_number(float(values.max()))}"


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
    return (
        f'<polyline class="line" points="{points}" style="stroke:{colour(line.index)}" stroke-dasharray="{dash(line.index)}">'
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
    shown = f"{label}, log scale" if log else label
    return [
        *parts,
        f'<text class="label" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(shown)}</text>',
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


def _number(value: float) -> str:
    if value == 0:
        return "0"
    for least, unit, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / unit:.4g}{letter}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
