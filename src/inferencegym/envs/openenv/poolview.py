"""The view of a KV pool on OpenEnv's page: every block by owner, the queues, what lies on the CPU, and how use and waiting went.

`envs.pool.look` reads a row of a batch; `paging` draws what was read (see view.py for the frame and the rules).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape

from inferencegym.envs.openenv.view import (
    BLUE,
    ORANGE,
    PANEL,
    PINK,
    RED,
    RULE,
    SKY,
    SOFT,
    WIDTH,
    About,
    Course,
    Series,
    column,
    number,
    page,
    strip,
)
from inferencegym.envs.pool import Pool, Waiting
from inferencegym.report.palette import KV

#: Kinds of blocks in the map's order: name, colour, what it means.
KINDS: tuple[tuple[str, str, str], ...] = (
    ("active VIP", KV["active-vip"].light, "makes tokens"),
    ("active free", KV["active-free"].light, "makes tokens"),
    ("loading VIP", KV["loading-vip"].light, "prefill or copy back"),
    ("loading free", KV["loading-free"].light, "prefill or copy back"),
    ("idle VIP", KV["idle-vip"].light, "cache of an ended request"),
    ("idle free", KV["idle-free"].light, "cache of an ended request"),
    ("leaving", KV["leaving"].light, "on its way to the CPU"),
)
#: The map: cells in a row, most rows, and a cell's width and height in pixels.
MAP_COLUMNS, MAP_ROWS, WIDE, TALL = 125, 80, 5, 4


def paging(about: About, course: Course, pool: Pool) -> str:
    """A KV pool: the map of its blocks, the queues, the CPU's share, and the course of use and waiting."""
    drawn, height = _map(pool, 4.0)
    body = [drawn]
    top = 4 + height + 8
    for queue in pool.queues:
        body.append(_queue(queue, top))
        top += 34
    body.append(_cpu(pool, top))
    top += 36
    at = [point.step for point in course.points]
    span = (at[0], max(at[-1], at[0] + 60))
    gpu = [point.facts["gpu_used"] / max(point.facts["gpu_blocks"], 1) for point in course.points]
    cpu = [point.facts["cpu_used"] / max(point.facts["cpu_blocks"], 1) for point in course.points]
    body.append(
        strip(top, "Blocks in use", "share, by decision", at, [Series("GPU", BLUE, gpu), Series("CPU", SKY, cpu)], span=span, ceiling=1.0)
    )  # fmt: skip
    waiting = [
        Series("free", BLUE, column(course, "free_waiting")),
        Series("VIP", ORANGE, column(course, "vip_waiting")),
    ]
    body.append(strip(top + 66, "Requests that wait", "", at, waiting, span=span))
    return page(
        "the KV pool by owner, the queues and their course",
        top + 132,
        about,
        course,
        "".join(body),
        _tally(course, pool),
    )


def _map(pool: Pool, top: float) -> tuple[str, float]:
    """Every block of the GPU as a cell, row by row, runs of one owner side by side; with its key. Returns SVG and its height."""
    per_cell = max(1, math.ceil(pool.gpu_blocks / (MAP_COLUMNS * MAP_ROWS)))
    rows = math.ceil(pool.gpu_blocks / per_cell / MAP_COLUMNS)
    used = sum(blocks for _, blocks in pool.owners)
    free = max(pool.gpu_blocks - used, 0)
    said = f"{used:,} of {pool.gpu_blocks:,} KV blocks in use"
    if used > pool.gpu_blocks:
        said = f"{used:,} KV blocks wanted, there are {pool.gpu_blocks:,}"
    each = "a cell is a block" if per_cell == 1 else f"a cell is {per_cell} blocks"
    parts = [
        f"<text x='8' y='{top + 9:.0f}' class='t'>GPU: {said} <tspan fill='{SOFT}'>{each}; a change of"
        " shade is another owner</tspan></text>"
    ]
    begin = top + 14
    parts.append(f"<rect x='8' y='{begin}' width='{WIDE * MAP_COLUMNS}' height='{TALL * rows}' fill='{PANEL}'/>")
    at = 0
    for i, (kind, blocks) in enumerate(pool.owners):
        end = min(at + blocks, pool.gpu_blocks)
        if end > at:
            path = "".join(_cells(at / per_cell, end / per_cell, begin))
            name, colour, what = KINDS[kind]
            parts.append(
                f"<path d='{path}' fill='{colour}' opacity='{0.72 if i % 2 else 1}'><title>{name}: {blocks} blocks, {what}</title></path>"
            )
        at = end
    key_at = begin + TALL * rows + 12
    sums = [0] * len(KINDS)
    counts = [0] * len(KINDS)
    for kind, blocks in pool.owners:
        sums[kind] += blocks
        counts[kind] += 1
    for i, (name, colour, _) in enumerate([*KINDS, ("not used", PANEL, "")]):
        x, y = 8 + (i % 4) * 156, key_at + (i // 4) * 14
        count = f"{free:,}" if i == len(KINDS) else f"{sums[i]:,} in {counts[i]}" if counts[i] else "0"
        parts.append(
            f"<rect x='{x}' y='{y - 8:.1f}' width='9' height='9' fill='{colour}' stroke='{RULE}'/><text x='{x + 13}' y='{y:.1f}' class='t'>{name}"
            f" <tspan fill='{SOFT}'>{count}</tspan></text>"
        )
    return "".join(parts), key_at + 18 - top


def _cells(first: float, last: float, top: float) -> Iterable[str]:
    """SVG path of the cells from `first` to before `last`, counted row by row."""
    at = first
    while at < last:
        row = int(at // MAP_COLUMNS)
        end = min(last, (row + 1) * MAP_COLUMNS)
        x, wide = 8 + (at - row * MAP_COLUMNS) * WIDE, (end - at) * WIDE
        yield f"M{x:g} {top + row * TALL:g}h{wide:g}v{TALL}h-{wide:g}z"
        at = end


def _queue(queue: Waiting, top: float) -> str:
    """A queue as a row of boxes, one for each who waits; the fuller, the longer it has waited against its limit."""
    limit = f"SLA {queue.sla_ticks} ticks" if queue.sla_ticks else "no SLA"
    longest = f", the first for {queue.waits_ticks[0]} ticks" if queue.waits_ticks else ""
    head = f"{escape(queue.name)} queue: {len(queue.waits_ticks)} of {queue.seats} seats{longest} <tspan fill='{SOFT}'>{limit}</tspan>"
    wide = (WIDTH - 16) / 100
    parts = [f"<text x='8' y='{top + 9:.0f}' class='t'>{head}</text>"]
    parts.append(
        f"<rect x='8' y='{top + 14:.1f}' width='{wide * min(queue.seats, 100):.1f}' height='12' fill='{PANEL}'/>"
    )
    for i, waited in enumerate(queue.waits_ticks[:100]):
        late = queue.sla_ticks and waited > queue.sla_ticks
        share = min(waited / queue.sla_ticks, 1.0) if queue.sla_ticks else 0.0
        colour = RED if late else ORANGE if share > 0.5 else SKY
        parts.append(
            f"<rect x='{8 + i * wide:.1f}' y='{top + 14:.1f}' width='{wide - 1:.1f}' height='12' fill='{colour}'><title>waits for {waited} ticks"
            f"{', too long' if late else ''}</title></rect>"
        )
    return "".join(parts)


def _cpu(pool: Pool, top: float) -> str:
    """What lies on the CPU, as one bar."""
    used, room = sum(pool.cpu.values()), max(pool.cpu_blocks, 1)
    told = ", ".join(f"{escape(name)} {blocks:,}" for name, blocks in pool.cpu.items() if blocks)
    parts = [
        f"<text x='8' y='{top + 9:.0f}' class='t'>CPU: {used:,} of {pool.cpu_blocks:,} blocks <tspan fill='{SOFT}'>{told}</tspan></text>"
        f"<rect x='8' y='{top + 14:.1f}' width='{WIDTH - 16}' height='12' fill='{PANEL}'/>"
    ]
    x = 8.0
    for colour, (name, blocks) in zip((ORANGE, BLUE, PINK, SOFT), pool.cpu.items(), strict=False):
        wide = (WIDTH - 16) * min(blocks / room, 1.0)
        if blocks:
            parts.append(
                f"<rect x='{x:.1f}' y='{top + 14:.1f}' width='{wide:.2f}' height='12' fill='{colour}'><title>{escape(name)}: {blocks:,}</title></rect>"
            )
        x += wide
    return "".join(parts)


def _tally(course: Course, pool: Pool) -> str:
    """What the episode has come to so far, in counts."""
    now = course.points[-1].facts
    shown = (
        ("arrived", "arrived"), ("completed", "completed"), ("in time", "in_sla"), ("missed the SLA", "sla_missed"), ("rejected", "rejected"),
        ("turned away", "turned_away"), ("evicted", "evicted"), ("swapped out", "swapped_out"), ("swapped in", "swapped_in"),
        ("preempted, lost", "shredded"), ("preempted, swapped", "preempt_swapped"), ("returns that found their cache", "hits"),
        ("actions that were not possible", "illegal"),
    )  # fmt: skip
    told = " · ".join(f"{name} <b>{number(now[key])}</b>" for name, key in shown)
    return f"<div style='margin-top:6px'>tick <b>{pool.tick}</b> · {told}</div>"
