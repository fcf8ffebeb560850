"""A twin of a running deployment that knows only what has been seen: its future is a forecast, and answers in flight end at a guess.

Arrivals go on as a Poisson process at the rate of the last windows; lengths are drawn from the requests that came before; how long a running
answer will be is drawn from the finished ones that were longer than it is now. Nothing of the true future or of the oracle is left in it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from inferencegym.engine import memory
from inferencegym.engine.asked import ask
from inferencegym.engine.codes import Phase
from inferencegym.engine.fleet import Asking
from inferencegym.envs.llmserve import ServeBatch
from inferencegym.ground.rng import stream
from inferencegym.workload import Workload
from inferencegym.workload.workload import Ints, Ints32, take_ragged

#: Windows whose arrivals say how many will come.
MEMORY_WINDOWS = 2
#: Requests from which lengths are drawn: the last ones.
MEMORY_REQUESTS = 2000


def dream(twin: ServeBatch, windows: int, seed: int) -> ServeBatch | None:
    """A batch of one row, standing where `twin` (one row) stands, in front of a forecast of so many windows; None before anything was seen."""
    task = twin.task
    asking = twin.fleet.asking(0)
    header = twin.fleet.header(0)[0]
    arrived = int(header["next_open"])
    if arrived < 8:
        return None
    rng = stream(seed, f"forecast.{int(twin.windows_done[0])}")
    now_s = float(twin.windows_done[0]) * task.file.window_s
    past = _head(asking.workload, arrived)
    lives = _live(twin)
    known = np.ones(arrived, np.bool_)
    known[lives["row"]] = False
    finished = past.output_tokens[known][-MEMORY_REQUESTS:]
    if len(finished) == 0:
        finished = np.array([256], np.int32)
    outputs = past.output_tokens.copy()
    outputs[lives["row"]] = [_longer(finished, int(made), rng) for made in lives["made"]]
    past = replace(past, output_tokens=outputs)

    since_s = max(0.0, now_s - MEMORY_WINDOWS * task.file.window_s)
    rate_rps = float((past.arrival_s >= since_s).sum()) / (now_s - since_s)
    count = int(rng.poisson(rate_rps * windows * task.file.window_s))
    arrival_s = np.sort(now_s + 1e-6 + rng.random(count) * windows * task.file.window_s)
    pick = rng.integers(max(0, arrived - MEMORY_REQUESTS), arrived, count)
    workload = _with_future(past, pick, arrival_s, rng.choice(finished, count)) if count else past
    dreamed = Asking(
        workload, ask(workload, task.plan.deployment.block_size, task.plan.settings), task.judged_of(workload)
    )
    batch = ServeBatch(task, 1)
    batch.copy_from(twin, 0, 1, dreamed)
    _retarget(batch.fleet.arena(0), outputs, task.plan.settings.max_model_len or 1 << 30)
    # What the row's books divide by stays as it was: the worth of the true episode is a constant, not a hint.
    return batch


def _live(twin: ServeBatch) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """Rows in the engine and the tokens each has made."""
    arena = twin.fleet.arena(0)
    slots, core = memory.part_of(arena, "slots"), memory.part_of(arena, "core")
    parts = []
    for r in range(len(core)):
        mine = slots[r][: int(core["slots_used"][r])]
        mine = mine[mine["state"] != int(Phase.FREE)]
        made = mine["generated"].astype(np.int64)
        made += np.where(mine["in_crowd"] == 1, core["turn"][r] - mine["turn"], 0)
        part = np.zeros(len(mine), [("row", np.int64), ("made", np.int64)])
        part["row"], part["made"] = mine["row"], made
        parts.append(part)
    return np.concatenate(parts)


def _longer(finished: Ints32, made: int, rng: np.random.Generator) -> int:
    """An answer's length, given that it is longer than what it has."""
    longer = finished[finished > made]
    return int(rng.choice(longer)) if len(longer) else made + max(1, made // 4)


def _head(workload: Workload, rows: int) -> Workload:
    """The first rows of a workload that is in order of arrival."""
    keep = np.zeros(len(workload), np.bool_)
    keep[:rows] = True
    return workload.take(keep)


def _with_future(past: Workload, pick: Ints, arrival_s: memory.Floats, outputs: Ints32) -> Workload:
    """The past, and after it requests like the picked ones."""
    columns = {name: column[pick] for name, column in past.columns().items()}
    columns["arrival_s"] = arrival_s
    columns["output_tokens"] = outputs.astype(np.int32)
    columns["after"] = np.full(len(pick), -1, np.int32)
    offsets, ids = take_ragged(past.prefix_offsets, past.prefix_ids, pick)
    future = replace(past, **columns, prefix_offsets=offsets, prefix_ids=ids)
    return past.splice(future, 0.0, share_prefixes=True)


def _retarget(arena: memory.Arena, outputs: Ints32, max_model_len: int) -> None:
    """Give every live request its guessed end, and the crowd's heap of finishes the order that follows."""
    slots, core, fin = memory.part_of(arena, "slots"), memory.part_of(arena, "core"), memory.part_of(arena, "fin")
    for r in range(len(core)):
        mine = slots[r][: int(core["slots_used"][r])]
        alive = mine["state"] != int(Phase.FREE)
        mine["target"][alive] = np.minimum(outputs[mine["row"][alive]], max_model_len - mine["prompt"][alive])
        length = int(core["fin_len"][r])
        heap = fin[r][:length]
        members = mine[heap["slot"]]
        turn = members["turn"] + members["target"] - members["generated"]
        heap["key"] = (turn.astype(np.int64) << memory.SEAT_BITS) | members["seat"]
        heap[:] = heap[np.argsort(heap["key"])]  # a sorted array is a heap
