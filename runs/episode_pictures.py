"""A picture of one episode of a task under several policies, side by side: what came, what waited, what memory held, what was done, what it earned.

Writes docs/environments/<task>.svg. Episodes are recorded by the package's own runner, and their actions run again to be looked at.
"""

from __future__ import annotations

import argparse
import html
import itertools
import math
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inferencegym.decision.knobs import LEVERS, QUANTIZATION_TIERS
from inferencegym.decision.paging import NAMES
from inferencegym.envs.actors import actor
from inferencegym.envs.batch import Task
from inferencegym.envs.catalogue import task
from inferencegym.envs.episode import Episode, record
from inferencegym.envs.grade import load_anchors
from inferencegym.envs.splits import scenario
from inferencegym.policies.catalogue import policy_names
from inferencegym.report.chart import ticks
from inferencegym.report.palette import SERIES

DOCS = Path(__file__).resolve().parent.parent / "docs" / "environments"
TASKS = ("bursty_workload", "adversarial_multitenant", "medium", "hard")
#: Where no best setting has been searched for: one that is good.
ELSE_FIXED = {"knobs": "fixed:batch_cap=256,kv_budget_fraction=0.7,speculation_depth=2,priority_routing=true"}
POINTS = 200
Floats = npt.NDArray[np.float64]

# --- what there is to see ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """One quantity under one policy."""

    areas: Sequence[tuple[str, Floats]] = ()
    """Label and values: drawn over each other, the first at the back."""
    lines: Sequence[tuple[str, Floats]] = ()
    lanes: Sequence[tuple[str, Floats, Sequence[str]]] = ()
    """Label, values 0..1, and what is written at the end of the lane."""


@dataclass(frozen=True)
class Row:
    """One quantity, a panel for each policy."""

    title: str
    unit: str
    panels: list[Panel] = field(default_factory=list)
    log: bool = False
    top: float | None = None
    height: int = 84


def seen(of: Task, episode: Episode) -> tuple[list[dict[str, float]], Floats]:
    """Facts after every step, and the value so far."""
    batch = of.batch(1)
    batch.start(0, scenario(episode.split, episode.scenario))
    facts, values = [], np.zeros(len(episode.actions))
    every = max(1, len(episode.actions) // 2000)
    for t, action in enumerate(episode.actions):
        batch.actions[0] = action
        batch.step()
        values[t] = batch.outcome(0).value if t % every == 0 or t == len(episode.actions) - 1 else values[t - 1]
        facts.append(batch.facts(0))
    return facts, values


def binned(values: npt.ArrayLike, how: Any = np.mean, whole: int | None = None) -> Floats:
    """Values of all steps as at most POINTS: the mean (or else) of each stretch; NaN after the end of an episode that broke off."""
    array = np.asarray(values, dtype=np.float64)
    whole = whole or len(array)
    if whole <= POINTS:
        return np.concatenate([array, np.full(whole - len(array), np.nan)])
    edges = np.linspace(0, whole, POINTS + 1).astype(int)
    return np.array([how(array[a:b]) if len(array[a:b]) else np.nan for a, b in itertools.pairwise(edges)])


def served_rows(of: Any, episodes: Sequence[Episode]) -> tuple[list[Row], Floats, str]:
    """The rows of an LLMServe task, and the time axis."""
    rows = [
        Row("requests that arrive", "a second"),
        Row("requests that wait", "logarithmic scale", log=True),
        Row("KV memory", "share of all blocks", top=1.0),
        Row("first tokens in time", "share of the window's", top=1.0),
        Row("the six knobs", "in force, each from its lowest to its highest", height=132),
        Row("value so far", "grey: the other policies"),
    ]
    for episode in episodes:
        facts, values = seen(of, episode)
        column = {name: np.array([one[name] for one in facts]) for name in facts[0]}
        budget = column["kv_budget_fraction"]
        rows[0].panels.append(Panel(areas=[("arrivals", column["request_arrival_rate"])]))
        rows[1].panels.append(Panel(areas=[("waiting", column["queue_depth"])]))
        held = np.nan_to_num(column["kv_cache_occupancy"]) * budget
        rows[2].panels.append(Panel(areas=[("may be used", budget), ("held by requests", held)]))
        rows[3].panels.append(Panel(areas=[("in time", np.nan_to_num(column["slo_compliance_rate"], nan=1.0))]))
        lanes = []
        for name in LEVERS:
            values_of = column[name]
            tall = {
                "batch_cap": np.log2(np.maximum(values_of, 1)) / 9, "kv_budget_fraction": values_of, "speculation_depth": values_of / 8, "quantization_tier": values_of / 2,
            }.get(name, values_of)  # fmt: skip
            lanes.append((name, tall, [shown(name, values_of)]))
        rows[4].panels.append(Panel(lanes=lanes))
        rows[5].panels.append(Panel(lines=[("value", values)]))
    return rows, (1 + np.arange(of.steps)) * of.file.window_s / 60.0, "minutes"


def shown(name: str, values: Floats) -> str:
    """A knob's range over an episode, as a person reads it."""

    def one(value: float) -> str:
        if name == "quantization_tier":
            return QUANTIZATION_TIERS[int(value)]
        if name in ("prefill_decode_split", "priority_routing"):
            return "on" if value else "off"
        return f"{value:g}"

    low, high = one(values.min()), one(values.max())
    return low if low == high else f"{low}..{high}"


DEEDS = {
    "admit": ("admit_free", "admit_vip"),
    "evict": ("evict_largest_free", "evict_largest_vip", "evict_oldest_free", "evict_oldest_vip", "collect_garbage"),
    "swap out": ("swap_largest_free", "swap_largest_vip", "swap_oldest_free", "swap_oldest_vip"),
    "preempt": ("shred_largest_free", "shred_largest_vip", "preempt_swap_free", "preempt_swap_vip"),
    "reject": ("reject_free", "reject_vip"),
    "nothing": ("nothing",),
}


def paged_rows(of: Any, episodes: Sequence[Episode]) -> tuple[list[Row], Floats, str]:
    """The rows of a PagedKV task, and the time axis."""
    rows = [
        Row("requests that arrive", "a tick"),
        Row("requests that wait", ""),
        Row("GPU memory", "share of all blocks", top=1.0),
        Row("CPU memory (caches)", "share of all blocks"),
        Row("what is done", "share of decisions", height=132),
        Row("value so far", "grey: the other policies"),
    ]
    arrived = np.diff(
        np.concatenate([[0], np.bincount(arrival_ticks(of, episodes[0]), minlength=of.rules.horizon_ticks).cumsum()])
    )
    arrivals = binned(arrived[: of.rules.horizon_ticks])
    for episode in episodes:
        facts, values = seen(of, episode)
        column = {name: np.array([one[name] for one in facts]) for name in facts[0]}
        rows[0].panels.append(Panel(areas=[("arrivals", arrivals)]))
        waiting = column["free_waiting"] + column["vip_waiting"]
        rows[1].panels.append(Panel(areas=[("free and VIP", binned(waiting, whole=of.steps)), ("VIP", binned(column["vip_waiting"], whole=of.steps))]))  # fmt: skip
        used = column["gpu_used"] / column["gpu_blocks"]
        idle = (column["free_idle_blocks"] + column["vip_idle_blocks"]) / column["gpu_blocks"]
        rows[2].panels.append(
            Panel(
                areas=[("idle caches", binned(used, whole=of.steps)), ("requests", binned(used - idle, whole=of.steps))]
            )
        )
        rows[3].panels.append(Panel(areas=[("CPU", binned(column["cpu_used"] / column["cpu_blocks"], whole=of.steps))]))
        lanes = []
        for name, deeds in DEEDS.items():
            did = np.isin(episode.actions, [NAMES.index(deed) for deed in deeds])
            lanes.append((name, binned(did, whole=of.steps), [f"{did.mean():.1%}"]))
        rows[4].panels.append(Panel(lanes=lanes))
        rows[5].panels.append(Panel(lines=[("value", binned(values, lambda v: v[-1], whole=of.steps))]))
    seconds = np.linspace(0, of.rules.horizon_ticks, POINTS)
    return rows, seconds, "ticks"


def arrival_ticks(of: Any, episode: Episode) -> npt.NDArray[np.int64]:
    """The tick of every request of the episode's scenario."""
    table = of.traffic(scenario(episode.split, episode.scenario)).table
    ticks_: npt.NDArray[np.int64] = table["tick"].astype(np.int64)
    return ticks_


# --- the drawing ------------------------------------------------------------------------------------------------------

LEFT, RIGHT, TOP, GAP, WIDTH, BETWEEN = 128, 14, 134, 38, 226, 16
STYLE = """
svg{background:#fff;font:12px system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif}text{fill:#333}
.title{font-size:18px;font-weight:600;fill:#111}.head{font-size:14px;font-weight:600;fill:#111}.soft{fill:#666}.small{font-size:10.5px;fill:#666}
.frame{fill:#fafafa;stroke:#d0d0d0}.grid{stroke:#e4e4e4}.other{fill:none;stroke:#c4c4c4;stroke-width:1}
"""
BACK, FRONT = "#a9cdea", SERIES[0].light


def draw(
    of: Task, rows: Sequence[Row], names: Sequence[str], episodes: Sequence[Episode], x: Floats, x_unit: str
) -> str:
    """The whole SVG."""
    width = LEFT + len(names) * (WIDTH + BETWEEN) + RIGHT
    height = TOP + sum(row.height + GAP for row in rows) + 34
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img"'
        f' aria-label="{html.escape(f"One episode of {of.name} under {len(names)} policies", quote=True)}"><style>{STYLE}</style>',
        f'<text class="title" x="16" y="28">{of.name}: one episode, {len(names)} policies</text>',
        *(
            f'<text class="soft" x="16" y="{47 + 16 * i}">{html.escape(line)}</text>'
            for i, line in enumerate(textwrap.wrap(of.description, (width - 32) // 7)[:2])
        ),
    ]
    for i, (name, episode) in enumerate(zip(names, episodes, strict=True)):
        left = LEFT + i * (WIDTH + BETWEEN)
        out.append(f'<text class="head" x="{left}" y="95">{html.escape(name)}</text>')
        end = "crashed" if episode.terminated else f"value {episode.value:.3f}"
        out.append(f'<text class="head" x="{left + WIDTH}" y="95" text-anchor="end" style="fill:{FRONT}">{end}</text>')
    top = TOP
    for row in rows:
        out += row_of(row, top, x, x_unit, last=row is rows[-1])
        top += row.height + GAP
    foot = f"Scenario {episodes[0].scenario} of the split {episodes[0].split}; the same requests come in every column."
    out.append(f'<text class="soft" x="16" y="{height - 14}">{html.escape(foot)}</text></svg>')
    return "".join(out) + "\n"


def row_of(row: Row, top: int, x: Floats, x_unit: str, *, last: bool) -> list[str]:
    """A row's title, scale and panels."""
    out = [
        f'<text class="head" style="font-size:12.5px" x="{LEFT}" y="{top - 7}">{html.escape(row.title)}'
        f'<tspan class="small" dx="8" style="font-weight:400">{html.escape(row.unit)}</tspan></text>'
    ]
    drawn = [values for panel in row.panels for _, values in (*panel.areas, *panel.lines)]
    high = row.top or max((float(np.nanmax(values)) for values in drawn), default=1.0) * 1.08 or 1.0
    labels = dict.fromkeys(label for panel in row.panels for label, _ in panel.areas)
    if len(labels) > 1:
        for i, label in enumerate(labels):
            start = LEFT + WIDTH + BETWEEN + 110 * i
            out.append(f'<rect x="{start}" y="{top - 16}" width="10" height="10" fill="{(BACK, FRONT)[i]}"/>')
            out.append(f'<text class="small" x="{start + 15}" y="{top - 7}">{html.escape(label)}</text>')

    def place(value: Floats | float) -> Floats:
        share = np.log1p(np.asarray(value)) / math.log1p(high) if row.log else np.asarray(value) / high
        return top + row.height * (1 - np.clip(share, 0.0, 1.0))

    marks = [10.0**e for e in range(6) if 10.0**e < high] if row.log else ticks(0.0, high, 3)
    for i, panel in enumerate(row.panels):
        left = LEFT + i * (WIDTH + BETWEEN)
        across = left + (x - x[0]) / (x[-1] - x[0]) * WIDTH
        out.append(f'<rect class="frame" x="{left}" y="{top}" width="{WIDTH}" height="{row.height}"/>')
        if panel.lanes:
            out += lanes_of(panel, left, top, row.height, across, names=i == 0)
            continue
        for mark in marks:
            y = float(place(mark))
            out.append(f'<line class="grid" x1="{left}" x2="{left + WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
            if i == 0:
                out.append(f'<text class="small" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{mark:,.4g}</text>')
        for k, (_, values) in enumerate(panel.areas):
            out.append(area(across, place(values), top + row.height, FRONT if k == len(panel.areas) - 1 else BACK))
        if panel.lines:
            for other in row.panels:
                if other is not panel:
                    out.append(f'<polyline class="other" points="{points(across, place(other.lines[0][1]))}"/>')
            for _, values in panel.lines:
                out.append(
                    f'<polyline fill="none" stroke="{FRONT}" stroke-width="2.2" points="{points(across, place(values))}"/>'
                )
        if last:
            for mark in ticks(0.0, float(x[-1]), 4):
                at = left + mark / float(x[-1]) * WIDTH
                anchor = "start" if mark == 0 else "end" if at > left + WIDTH - 12 else "middle"
                out.append(
                    f'<text class="small" x="{at:.1f}" y="{top + row.height + 15}" text-anchor="{anchor}">{mark:,g}</text>'
                )
            out.append(
                f'<text class="small" x="{left + WIDTH / 2}" y="{top + row.height + 30}" text-anchor="middle">{x_unit}</text>'
            )
    return out


def lanes_of(panel: Panel, left: int, top: int, height: int, across: Floats, *, names: bool) -> list[str]:
    """Strips under each other, each from 0 to 1, with a word at the right."""
    out, tall = [], height / len(panel.lanes)
    for k, (label, values, words) in enumerate(panel.lanes):
        floor = top + (k + 1) * tall
        if k:
            out.append(
                f'<line class="grid" x1="{left}" x2="{left + WIDTH}" y1="{floor - tall:.1f}" y2="{floor - tall:.1f}"/>'
            )
        out.append(area(across, floor - np.maximum(values, 0.0) * (tall - 4), floor, BACK, step=True))
        if names:
            out.append(
                f'<text class="small" x="{left - 6}" y="{floor - tall / 2 + 4:.1f}" text-anchor="end">{html.escape(label)}</text>'
            )
        out.append(
            f'<text class="small" x="{left + WIDTH - 4}" y="{floor - tall / 2 + 4:.1f}" text-anchor="end">{html.escape(words[0])}</text>'
        )
    return out


def area(x: Floats, y: Floats, floor: float, colour: str, *, step: bool = False) -> str:
    """Filled down to the floor, as far as there are values."""
    fine = np.isfinite(y)
    x, y = x[: len(y)][fine], y[fine]
    if not len(x):
        return ""
    if step:
        x, y = np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]
    return f'<polygon fill="{colour}" points="{x[0]:.1f},{floor:.1f} {points(x, y)} {x[-1]:.1f},{floor:.1f}"/>'


def points(x: Floats, y: Floats) -> str:
    fine = np.isfinite(y)
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x[: len(y)][fine].tolist(), y[fine].tolist(), strict=True))


# --- who plays --------------------------------------------------------------------------------------------------------


def players(of: Task, *, clairvoyant: bool) -> list[str]:
    """Do-nothing, the rule that does best, the best setting that never changes (PagedKV, where that is hopeless: LRU), the clairvoyant."""
    surface, anchors = of.surface.name, load_anchors(of)
    rules = [name for name in policy_names(surface) if name not in ("random", "do-nothing")]
    # By the anchors, or else on three validation scenarios.
    score = {
        name: np.mean(anchors.values[name] if anchors else [record(of, actor(name, of), split="validation", scenario=i).value for i in range(3)])
        for name in rules
    }  # fmt: skip
    best = max(rules, key=lambda name: score[name])
    static = "best-static" if anchors else ELSE_FIXED.get(surface, "")
    found = ["do-nothing", best, static] if surface == "knobs" else ["do-nothing", "lru", best]
    return [*dict.fromkeys(found), *(["clairvoyant"] if clairvoyant else [])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", default=",".join(TASKS), help="comma-separated names")
    parser.add_argument("--scenario", type=int, default=0, help="index in the test split")
    parser.add_argument("--without-clairvoyant", action="store_true", help="it takes up to a minute a task")
    options = parser.parse_args()
    for name in options.tasks.split(","):
        of, began = task(name), time.monotonic()
        names = players(of, clairvoyant=not options.without_clairvoyant)
        episodes = [record(of, actor(one, of), split="test", scenario=options.scenario) for one in names]
        rows, x, unit = (served_rows if of.family == "llmserve" else paged_rows)(of, episodes)
        short = ["fixed setting" if one.startswith("fixed:") else one for one in names]
        (DOCS / f"{name}.svg").write_text(draw(of, rows, short, episodes, x, unit), encoding="utf-8")
        said = ", ".join(f"{one} {episode.value:.3f}" for one, episode in zip(short, episodes, strict=True))
        print(f"{name}: {said} ({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
