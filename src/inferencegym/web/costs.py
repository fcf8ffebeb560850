"""What an episode that came to its end lost most by: parts of its value against what can be had and against the others, and the worst stretch of time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from inferencegym.decision.snapshot import NAMES
from inferencegym.engine.paging.rules import CEILING, FLOOR
from inferencegym.envs.pagedkv import PagedTask
from inferencegym.web.replay import Replay

if TYPE_CHECKING:
    from inferencegym.web.detail import Asked

#: The episode is looked at in so many stretches.
STRETCHES = 20
#: A window with a smaller share of first tokens in time counts as bad.
GOOD = 0.9

Line = tuple[str, int | None]


def costs(found: Replay, asked: Asked) -> list[Line]:
    """Sentences, each with the decision it is about or None."""
    outcome = found.head.outcome(0)
    said: list[Line] = [(_standing(outcome.value, asked), None)]
    said += [(text, None) for text in (_shares(found, outcome.parts), _against(outcome, asked)) if text]
    if isinstance(found.task, PagedTask):
        return [*said, *_paging(found, outcome.facts)]
    return [*said, *_serving(found, outcome.facts)]


def most(task: Any) -> dict[str, float]:
    """The most that each part of a task's value can come to."""
    if isinstance(task, PagedTask):
        rules, span = task.rules, CEILING - FLOOR
        return {
            "goodput": span * rules.goodput_weight,
            "latency": span * rules.latency_weight,
            "residency": span * rules.residency_weight,
        }
    prices = task.file.prices
    return {"throughput": prices.served, "slo": prices.in_slo}


def _standing(value: float, asked: Asked) -> str:
    text = f"It came to its end without a crash, with a score of {value:.4f}."
    if not asked.others:
        return text
    name, best = max(asked.others, key=lambda other: other[1]["value"])
    if best["value"] > value:
        return f"{text} That is {best['value'] - value:.4f} below {name}, the best of this run ({best['value']:.4f})."
    return f"{text} No other policy of this run did better; next is {name} with {best['value']:.4f}."


def _shares(found: Replay, parts: dict[str, float]) -> str:
    """Which part fell furthest short of what can be had."""
    top = most(found.task)
    lost = {name: ceiling - parts[name] for name, ceiling in top.items() if name in parts}
    if not lost:
        return ""
    worst = max(lost, key=lambda name: lost[name])
    told = ", ".join(f"{_word(name)} {parts[name]:.3f} of {top[name]:.3f}" for name in lost)
    return f"Of what can be had it reached {told}. It lost most in {_word(worst)}: {lost[worst]:.3f}."


def _against(outcome: Any, asked: Asked) -> str:
    """The parts in which the best of the run was ahead."""
    better = [other for other in asked.others if other[1]["value"] > outcome.value and not other[1]["crashed"]]
    if not better:
        return ""
    name, best = max(better, key=lambda other: other[1]["value"])
    gaps = {part: best["parts"].get(part, 0.0) - value for part, value in outcome.parts.items()}
    told = ", ".join(
        f"{_word(part)} {gap:+.4f}" for part, gap in sorted(gaps.items(), key=lambda item: -item[1]) if abs(gap) >= 5e-5
    )
    return f"Against it, {name} had: {told}."


def _word(part: str) -> str:
    """A part of a value as people write it."""
    return part.upper() if part in ("slo", "sla") else part


def _paging(found: Replay, facts: dict[str, float]) -> list[Line]:
    arrived = int(facts["arrived"])
    told = (
        (facts["sla_missed"], "missed their SLA"),
        (facts["turned_away"], "found no seat in the queue"),
        (facts["rejected"], "were rejected"),
    )
    listed = ", ".join(f"{int(count):,} {what}" for count, what in told)
    said: list[Line] = [
        (f"Of {arrived:,} requests that arrived, {int(facts['completed']):,} were completed; {listed}.", None)
    ]
    sla = found.terms[: found.total, list(found.task.reward_terms).index("sla")]
    whole = float(sla.sum())
    if whole < 0:
        size = -(-found.total // STRETCHES)
        sums = np.add.reduceat(sla, np.arange(0, found.total, size))
        worst = int(np.argmin(sums))
        first, last = worst * size, min((worst + 1) * size, found.total)
        per = found.per_sample
        said.append((
            f"Missed SLAs, rejections and requests turned away cost {-whole:.3f} of reward; {sums[worst] / whole:.0%} of that between ticks"
            f" {first // per:,} and {last // per:,}, a {STRETCHES}th of the episode.", first,
        ))  # fmt: skip
    wasted = int(facts["illegal"])
    if wasted:
        said.append((f"{wasted:,} of its {found.total:,} actions were not possible and did nothing.", None))
    gone = int(facts["shredded"])
    if gone:
        said.append((f"{gone:,} preemptions threw KV away that had to be computed again.", None))
    return said


def _serving(found: Replay, facts: dict[str, float]) -> list[Line]:
    assert found.seen is not None, "a deployment has snapshots"
    column = {name: found.seen[1 : found.total + 1, i] for i, name in enumerate(NAMES)}
    said: list[Line] = []
    bad = column["slo_compliance_rate"] < GOOD
    said.append((
        f"{int(bad.sum())} of {found.total} windows had less than {GOOD:.0%} of first tokens in time;"
        f" {facts['in_slo_share']:.1%} of all requests, by weight, met all their objectives.", None,
    ))  # fmt: skip
    if bad.any():
        first, last = _worst(bad, (1 - column["slo_compliance_rate"]) * column["request_arrival_rate"])
        part = slice(first, last)
        said.append((
            f"The worst stretch is {'window' if last == first + 1 else 'windows'} {first + 1}{'' if last == first + 1 else f' to {last}'}: {column['slo_compliance_rate'][part].mean():.0%} of first tokens in time on average, up to"
            f" {column['queue_depth'][part].max():,.0f} requests in the queue, {column['request_arrival_rate'][part].mean():.1f} requests/s arriving"
            f" (the episode's mean is {column['request_arrival_rate'].mean():.1f}).", first,
        ))  # fmt: skip
    if facts["preemptions"] or facts["reloads"]:
        said.append((
            f"Preemptions: {int(facts['preemptions']):,}; restarts for other weights or another split: {int(facts['reloads'])}.", None,
        ))  # fmt: skip
    return said


def _worst(bad: Any, weight: Any) -> tuple[int, int]:
    """The unbroken row of bad windows with the most weight: first, and one past its last."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], bad, [False]]).astype(np.int8)))
    runs = edges.reshape(-1, 2)
    heaviest = max(range(len(runs)), key=lambda i: float(weight[runs[i, 0] : runs[i, 1]].sum()))
    return int(runs[heaviest, 0]), int(runs[heaviest, 1])
