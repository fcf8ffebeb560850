"""An episode to look at on OpenEnv's page: SVG inside HTML, drawn from numbers alone; no script, no file from elsewhere, all text escaped.

`serve`: strips of load, queue, latencies against their objectives and KV use, window by window, and the knobs in force. (The KV pool is in
poolview.py.) Pure functions; `Course` keeps what a watched episode has been through.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from inferencegym.decision.paging import NAMES
from inferencegym.report import palette

#: The colours of our reports. The view brings its own paper, so it is light on OpenEnv's page in either theme.
INK, SOFT, PAPER, PANEL, RULE = (
    shade.light for shade in (palette.INK, palette.SOFT, palette.PAPER, palette.MARK, palette.RULE)
)
BLUE, ORANGE, GREEN, PINK, _, SKY = (slot.light for slot in palette.SERIES[:6])
RED = palette.BAD.light

#: What `serve` reads of a plant's facts.
SERVE_COLUMNS = (
    "request_arrival_rate", "goodput_rps", "queue_depth", "active_requests", "p99_ttft_ms", "p50_ttft_ms", "p99_itl_ms", "p50_itl_ms",
    "kv_cache_occupancy", "slo_compliance_rate", "batch_cap", "kv_budget_fraction", "speculation_depth", "quantization_tier",
    "prefill_decode_split", "priority_routing", "pause_left_s",
)  # fmt: skip
#: Decisions that a watched episode remembers.
KEPT = 1200
WIDTH = 640


@dataclass(frozen=True, slots=True)
class Point:
    """One look at a plant: after so many decisions, what was done last, what it brought, and how things stand in natural units."""

    step: int
    action: str
    reward: float
    terms: Mapping[str, float]
    facts: Mapping[str, float]


@dataclass(slots=True)
class Course:
    """What an episode has been through since somebody looked; the latest `KEPT` decisions."""

    points: deque[Point] = field(default_factory=lambda: deque(maxlen=KEPT))

    def add(self, point: Point) -> None:
        """Take in a decision; step 0 begins a new episode."""
        if point.step == 0 or (self.points and point.step <= self.points[-1].step):
            self.points.clear()
        self.points.append(point)


@dataclass(frozen=True, slots=True)
class About:
    """Which episode it is."""

    task: str
    split: str
    scenario: int
    steps: int
    total_reward: float
    over: str = ""
    """How it ended; empty while it lasts."""


@dataclass(frozen=True, slots=True)
class Series:
    """A line of a strip."""

    name: str
    colour: str
    values: Sequence[float]
    """NaN where there is none."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A level that a strip's lines are held against."""

    name: str
    value: float


def said(action: Any, about: Mapping[str, Any]) -> str:
    """A decision in words: what was sent, and whether it could be done."""
    number_sent = getattr(action, "action_id", None)
    if number_sent is not None:
        return f"{NAMES[number_sent].replace('_', ' ')}{' (was not possible)' if 'illegal_action' in about else ''}"
    sent = action.model_dump(exclude={"metadata"}, exclude_none=True)
    words = {True: "on", False: "off"}
    told = ", ".join(
        f"{name.replace('_', ' ')} {words[value] if isinstance(value, bool) else value}" for name, value in sent.items()
    )
    told = told or "all knobs stay as they are"
    return told + "".join(f" ({name.replace('_', ' ')} was refused)" for name in about.get("refused", {}))


def number(value: float) -> str:
    """A number in few letters: 1.23k, 45.6, 0.012; a dash where there is none."""
    if not math.isfinite(value):
        return "–"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def strip(
    top: float,
    title: str,
    unit: str,
    at: Sequence[int],
    series: Sequence[Series],
    *,
    span: tuple[int, int],
    objectives: Sequence[Objective] = (),
    ceiling: float | None = None,
    log: bool = False,
    width: int = WIDTH,
    height: int = 62,
) -> str:
    """A strip chart as SVG: lines over decisions, objectives as dashed levels, the latest values on the right.

    `at`: the decision of each value; `span`: decisions at the left and right ends; `ceiling`: top of the scale, else what is needed;
    `log`: powers of ten, for latencies.
    """
    left, right, text = 36.0, width - 172.0, 13.0
    finite = [v for one in series for v in one.values if math.isfinite(v)]
    levels = [one.value for one in objectives]
    high = ceiling if ceiling is not None else (max([*finite, *levels, 0.0]) or 1.0) * 1.08
    floor = 0.0
    if log:
        floor = math.floor(math.log10(max(min([v for v in [*finite, *levels] if v > 0], default=1.0), 1e-3)))
        high = max(math.ceil(math.log10(max(high, 1e-3))), floor + 1)
    bottom, tall = top + height - 6, height - 6 - text

    def y(value: float) -> float:
        shown = math.log10(max(value, 10**floor)) if log else value
        return bottom - tall * min(max((shown - floor) / (high - floor), 0.0), 1.0)

    def x(step: int) -> float:
        return left + (right - left) * (step - span[0]) / max(span[1] - span[0], 1)

    unit_shown = f" <tspan fill='{SOFT}'>{escape(unit)}{', log' if log else ''}</tspan>" if unit else ""
    parts = [
        f"<text x='8' y='{top + 9:.0f}' class='t'>{escape(title)}{unit_shown}</text>",
        f"<rect x='{left}' y='{top + text:.1f}' width='{right - left:.1f}' height='{tall:.1f}' fill='{PANEL}'/>",
        f"<text x='{left - 3}' y='{top + text + 8:.1f}' class='s' fill='{SOFT}' text-anchor='end'>{number(10**high if log else high)}</text>",
        f"<text x='{left - 3}' y='{bottom:.1f}' class='s' fill='{SOFT}' text-anchor='end'>{number(10**floor if log else floor)}</text>",
    ]
    for level in objectives:
        parts.append(
            f"<line x1='{left}' x2='{right:.1f}' y1='{y(level.value):.1f}' y2='{y(level.value):.1f}' stroke='{RED}' stroke-dasharray='4 3'>"
            f"<title>{escape(level.name)}: {number(level.value)} {escape(unit)}</title></line>"
        )
    for i, one in enumerate(series):
        for run in _runs(at, one.values):
            if len(run) == 1:
                parts.append(f"<circle cx='{x(run[0][0]):.1f}' cy='{y(run[0][1]):.1f}' r='1.8' fill='{one.colour}'/>")
            else:
                points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in run)
                parts.append(f"<polyline points='{points}' fill='none' stroke='{one.colour}' stroke-width='1.6'/>")
        now = one.values[-1] if one.values else math.nan
        parts.append(
            f"<text x='{right + 8:.1f}' y='{top + text + 10 + 13 * i:.1f}' class='t'><tspan fill='{one.colour}'>■</tspan> {escape(one.name)}"
            f"</text><text x='{width - 4}' y='{top + text + 10 + 13 * i:.1f}' class='t' text-anchor='end'>{number(now)}</text>"
        )
    if objectives:
        said_levels = ", ".join(f"{level.name} {number(level.value)}" for level in objectives)
        parts.append(
            f"<text x='{right + 8:.1f}' y='{top + text + 10 + 13 * len(series):.1f}' class='s' fill='{RED}'>┄ {escape(said_levels)}</text>"
        )
    return "".join(parts)


def _runs(at: Sequence[int], values: Sequence[float]) -> list[list[tuple[int, float]]]:
    """The stretches of a line between the places where it has no value."""
    runs: list[list[tuple[int, float]]] = [[]]
    for step, value in zip(at, values, strict=True):
        if math.isfinite(value):
            runs[-1].append((step, value))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def page(label: str, height: float, about: About, course: Course, body: str, below: str = "") -> str:
    """The frame of both views: head line, last decision with its reward, the drawing, and what stands below it."""
    now = course.points[-1]
    terms = " ".join(f"{escape(name)} {value:+.3f}" for name, value in now.terms.items())
    last = (
        f"{escape(now.action)} <span style='color:{SOFT}'>→</span> reward {now.reward:+.4f}" if now.step else "none yet"
    )
    over = (
        f" · <b style='color:{RED if about.over.startswith('crashed') else GREEN}'>{escape(about.over)}</b>"
        if about.over
        else ""
    )
    return (
        f"<div class='ig-view' style='background:{PAPER};color:{INK};font:12px system-ui,sans-serif;padding:8px;border-radius:6px;line-height:1.45;width:var(--ig-width,540px);max-width:100%;box-sizing:border-box'>"
        f"<div><b>{escape(about.task)}</b> · {escape(about.split)} {about.scenario} · decision {now.step} of {about.steps}"
        f" · return {about.total_reward:+.3f}{over}</div>"
        f"<div>last: {last}</div><div style='color:{SOFT}'>{terms or '&nbsp;'}</div>"
        f"<svg viewBox='0 0 {WIDTH} {height:.0f}' role='img' aria-label='{escape(label)}' style='width:100%;height:auto;display:block'>"
        f"<style>.t{{font:10.5px system-ui,sans-serif;fill:{INK}}}.s{{font:8.5px system-ui,sans-serif}}</style>{body}</svg>{below}</div>"
    )


def column(course: Course, name: str) -> list[float]:
    """A fact's values, decision by decision."""
    return [point.facts.get(name, math.nan) for point in course.points]


# --- LLMServe ------------------------------------------------------------------------------------------------------------------


def serve(about: About, course: Course, *, ttft_ms: Mapping[str, float], tpot_ms: Mapping[str, float]) -> str:
    """A deployment: load, queue, latencies against the objectives of each class (milliseconds), KV use, and the knobs in force."""
    at, span = [point.step for point in course.points], (0, about.steps)

    def objectives(limits: Mapping[str, float], said: str) -> list[Objective]:
        alike: dict[float, list[str]] = {}
        for name, value in limits.items():
            alike.setdefault(value, []).append(name)
        return [Objective("/".join(names) if len(limits) > 1 else said, value) for value, names in alike.items()]

    strips = [
        ("Requests", "per second", [("arrive", BLUE, "request_arrival_rate"), ("in time (goodput)", GREEN, "goodput_rps")], {}),
        ("Requests inside", "", [("wait", ORANGE, "queue_depth"), ("run", BLUE, "active_requests")], {}),
        ("Time to first token", "ms", [("p99", ORANGE, "p99_ttft_ms"), ("p50", SKY, "p50_ttft_ms")],
         {"objectives": objectives(ttft_ms, "SLO"), "log": True}),
        ("Between tokens", "ms", [("p99", ORANGE, "p99_itl_ms"), ("p50", SKY, "p50_itl_ms")], {"objectives": objectives(tpot_ms, "SLO of a request's mean"), "log": True}),
        ("KV memory", "share of the pool", [("in use", BLUE, "kv_cache_occupancy"), ("allowed", PINK, "kv_budget_fraction")], {"ceiling": 1.0}),
        ("SLO met", "share of the window's requests", [("all", GREEN, "slo_compliance_rate")], {"ceiling": 1.0}),
    ]  # fmt: skip
    body, top = [], 4.0
    for title, unit, lines, more in strips:
        series = [Series(name, colour, column(course, key)) for name, colour, key in lines]
        body.append(strip(top, title, unit, at, series, span=span, **more))  # type: ignore[arg-type]
        top += 66
    return page("the deployment, window by window", top, about, course, "".join(body), _knobs(course))


def _knobs(course: Course) -> str:
    """The six knobs in force; those that the last decision changed stand out."""
    now = course.points[-1].facts
    before = course.points[-2].facts if len(course.points) > 1 else now
    tiers = ("FP16", "INT8", "INT4")
    said = {
        "batch_cap": number(now["batch_cap"]),
        "kv_budget_fraction": f"{now['kv_budget_fraction']:.2f}",
        "speculation_depth": number(now["speculation_depth"]),
        "quantization_tier": tiers[int(now["quantization_tier"])] if math.isfinite(now["quantization_tier"]) else "–",
        "prefill_decode_split": "on" if now["prefill_decode_split"] else "off",
        "priority_routing": "on" if now["priority_routing"] else "off",
    }
    cells = []
    for name, value in said.items():
        turned = now[name] != before[name]
        border = f"2px solid {ORANGE}" if turned else f"1px solid {RULE}"
        cells.append(
            f"<span style='border:{border};border-radius:4px;padding:2px 7px;background:#fff'>{name.replace('_', ' ')} <b>{escape(value)}</b></span>"
        )
    pause = now.get("pause_left_s", 0.0)
    if pause > 0:
        cells.append(f"<span style='color:{RED};padding:3px'>restarting, {pause:.1f} s left</span>")
    return f"<div style='display:flex;flex-wrap:wrap;gap:5px;margin-top:6px'>{''.join(cells)}</div>"
