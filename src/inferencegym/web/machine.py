"""A steered deployment at the end of a window, class by class, for the Episode page; and the task that a run names. Times in ms, rates per second."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from inferencegym.decision.columns import Floats
from inferencegym.decision.knobs import LEVERS
from inferencegym.engine.codes import Phase
from inferencegym.engine.memory import part_of
from inferencegym.envs import catalogue
from inferencegym.envs.llmserve import ServeBatch
from inferencegym.envs.overrides import overridden

_PS_PER_MS = 1e9


def task_of(name: str, overrides: Mapping[str, Any]) -> Any:
    """A shipped task, or that task with other numbers in some places."""
    return overridden(catalogue.task(name), overrides)


def figures(batch: ServeBatch) -> dict[str, Any]:
    """The knobs in force, and of each class: what it is promised, who waits and runs now, and what came of those who ended in the last window.

    Latencies are of requests that ended in the window; null where none did.
    """
    fleet, task = batch.fleet, batch.task
    workload = fleet.asking(0).workload
    names = [one.name for one in task.file.classes]
    labels = workload.slo_class_names or ("default",)
    class_of = np.array([names.index(name) if name in names else 0 for name in labels])[workload.slo_class]
    until_ps = int(fleet.stands[0]["until_ps"])
    start_ps = until_ps - int(fleet.stands[0]["window_ps"])
    arena = fleet.arena(0)
    used = part_of(arena, "core")["slots_used"]
    slots = np.concatenate([of[:count] for of, count in zip(part_of(arena, "slots"), used.tolist(), strict=True)])
    slots = slots[slots["state"] != Phase.FREE]
    runs = (slots["state"] == Phase.RUNNING) | (slots["state"] == Phase.ON_WIRE)
    ended = fleet.records(0)
    arrival_ps = np.concatenate([slots["arrival_ps"], ended["arrival_ps"]])
    came = np.concatenate([class_of[slots["row"]], class_of[ended["row"]]])
    fresh = came[arrival_ps > start_ps] if start_ps > 0 else came
    judged = fleet.asking(0).judged
    classes = []
    for number, one in enumerate(task.file.classes):
        mine = ended[(class_of[ended["row"]] == number) & (ended["outcome"] == 0)]
        here, waits = class_of[slots["row"]] == number, ~runs
        ttft_ps = mine["first_ps"] - mine["arrival_ps"]
        tpot_ps = (mine["finish_ps"] - mine["first_ps"]) / np.maximum(mine["output"] - 1, 1)
        limit = judged[mine["row"]]
        waiting = slots[here & waits]
        late = (waiting["first_ps"] < 0) & (until_ps - waiting["arrival_ps"] > judged[waiting["row"]]["ttft_ps"])
        classes.append({
            "name": one.name, "weight": one.weight, "ttft_slo_ms": one.ttft_s * 1e3, "tpot_slo_ms": one.tpot_s * 1e3,
            "arrived": int((fresh == number).sum()), "waiting": len(waiting), "overdue": int(late.sum()), "running": int((here & runs).sum()),
            "finished": len(mine), "in_slo": int(((ttft_ps <= limit["ttft_ps"]) & (tpot_ps <= limit["tpot_ps"])).sum()),
            "ttft_p50_ms": _rank(ttft_ps, 0.5), "ttft_p99_ms": _rank(ttft_ps, 0.99),
            "tpot_p50_ms": _rank(tpot_ps, 0.5), "tpot_p99_ms": _rank(tpot_ps, 0.99),
        })  # fmt: skip
    return {"knobs": dict(zip(LEVERS, fleet.levers[0].tolist(), strict=True)), "classes": classes}


def _rank(times_ps: Floats, q: float) -> float | None:
    """The nearest-rank quantile, ms; None of nothing."""
    if len(times_ps) == 0:
        return None
    return float(np.quantile(times_ps, q, method="inverted_cdf")) / _PS_PER_MS
