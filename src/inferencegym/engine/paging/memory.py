"""Memory of the paging machine: one block of bytes for all rows of a batch, so that a row is copied by copying its bytes.

    batch header | actions | observations | masks | rewards | terms | terminated | truncated | row | row | ...
    row          = scalars | tiers[2] | towers[4] | recent | phases | words | transfers | heads | ready[ticks] | finish[ticks] | live[requests]

Kernels get pointers: `b` (the batch's header) or `s` (a row's scalars); other state lies at offsets from them.
Lists hold request number + 1, so a row of zeros is an empty machine. Ticks, blocks, tokens, all int.

    live      what changes about a request; what does not is in the scenario's traffic table, shared by rows and forks
    ready     per tick, the requests whose first token comes then;  finish: those whose last one does
    phases    histogram of active requests by the tick, modulo a block's tokens, at which they need their next block
    towers    the largest of a set that changes: buckets of 16 tokens, and a bit for each bucket that is not empty.
              All active requests grow by one token a tick, so their order by context - ready tick never changes
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from inferencegym.decision.paging import ACTIONS, COLUMNS
from inferencegym.engine.gaps import _leading_zeros
from inferencegym.engine.memory import Arena, _address, _aligned_bytes, pointer
from inferencegym.engine.paging.rules import REWARD_TERMS, Rules
from inferencegym.ground.jit import kernel

#: Pointers to records, inside kernels.
BatchAt: TypeAlias = Any
RowAt: TypeAlias = Any
TowerAt: TypeAlias = Any

#: Where a request is.
UNSEEN, WAITING, LOADING, ACTIVE, IDLE_GPU, IDLE_CPU, GONE, REJECTED, TURNED_AWAY = range(9)
#: Set in `flags` of a request.
MISSED, ADMITTED, SWAPPED = 1, 2, 4
#: Towers: idle caches and active requests, by tier.
IDLE_TOWER, ACTIVE_TOWER = 0, 2
BUCKET_BITS = 4
RING = 8  # ticks of GPU use that are remembered, at least TREND_TICKS + 1

_i8, _i4, _i1, _f8, _f4 = np.int64, np.int32, np.int8, np.float64, np.float32


def _fields(kind: type, *names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names]


OUTPUTS = ("actions", "observations", "masks", "rewards", "terms", "terminated", "truncated")
COUNTS = (
    "arrived", "completed", "in_sla", "rejected", "turned_away", "sla_missed", "evicted", "swapped_out",
    "swapped_in", "shredded", "preempt_swapped", "collected", "illegal", "tokens", "hits", "returns",
)  # fmt: skip

BATCH = np.dtype(_fields(_i8, *(f"{part}_at" for part in OUTPUTS), "rows_at", "row_bytes", "n"), align=True)

ROW = np.dtype(
    [
        *_fields(
            _i8,
            # rules
            "horizon", "gpu_blocks", "cpu_blocks", "block_tokens", "prefill_rate", "link_rate", "slots", "garbage_ticks",
            "max_transfers", "max_blocks",
            # where the parts lie, from the row's beginning; traffic is an address
            "tiers_at", "towers_at", "live_at", "ready_at", "finish_at", "transfers_at", "words_at", "heads_at", "recent_at", "phases_at",
            "row_bytes", "capacity", "n_words", "n_heads", "traffic_at", "requests",
            # the machine
            "tick", "slot", "next_arrival", "gpu_used", "cpu_used", "link", "lane", "transfer_head", "transfer_len",
            "garbage_head", "garbage_tail", "recorded", "active_weight", "ended",
            # the outcome's sums and the news since the last decision
            "done_weight", "found", "all_weight", "all_returning", "progress", "lost",
            *COUNTS,
        ),
        *_fields(
            _f8, "efficiency", "pay_progress", "pay_done", "pay_latency", "pay_residency", "pay_lost",
            "goodput_part", "latency_part", "residency_part",
        ),
    ],
    align=True,
)  # fmt: skip

TIER = np.dtype(
    _fields(
        _i8, "queue_head", "queue_tail", "queue_len", "seats", "sla", "wait_scale", "sla_cursor", "weight",
        "idle_head", "idle_tail", "idle_count", "idle_blocks", "idle_blocks2", "since_sum", "since_sum2", "changed",
        "active", "loading",
    ),
    align=True,
)  # fmt: skip
TOWER = np.dtype(_fields(_i8, "summary", "best", "count"), align=True)

LIVE = np.dtype(
    [
        ("produced", _i4), ("context", _i4), ("since", _i4), ("waited", _i4), ("ready", _i4), ("done", _i4), ("key", _i4),
        ("prev", _i4), ("next", _i4), ("up", _i4), ("down", _i4), ("state", _i1), ("flags", _i1), ("pad", _i1, (2,)),
    ],
    align=True,
)  # fmt: skip
LINK = np.dtype([("id", _i4)])
WORD = np.dtype([("bits", _i8)])
TRANSFER = np.dtype([("done", _i4), ("gpu", _i4), ("cpu", _i4)], align=True)
#: One request of a scenario. `output` and `child` (the follow-up) are the oracle: read where tokens are made, and by clairvoyants.
TRAFFIC = np.dtype(
    [*_fields(_i4, "tick", "parent", "child", "prompt", "output", "cached"), *_fields(_i1, "tier", "kind", "phase", "pad")],
    align=True,
)  # fmt: skip

SEEN = np.dtype(_fields(_f4, *COLUMNS.names))
CHOICES = np.dtype(_fields(_i1, *(name for name, _ in ACTIONS)))
TERMS = np.dtype(_fields(_f8, *REWARD_TERMS))
CHOSEN = np.dtype([("action", _i8)])
REWARD = np.dtype([("reward", _f8)])
FLAG = np.dtype([("flag", _i1)])

batch_pointer, row_pointer, tier_pointer, tower_pointer = pointer(BATCH), pointer(ROW), pointer(TIER), pointer(TOWER)
live_pointer, link_pointer, word_pointer, transfer_pointer = (
    pointer(LIVE),
    pointer(LINK),
    pointer(WORD),
    pointer(TRANSFER),
)
traffic_pointer, seen_pointer, choices_pointer, terms_pointer = (
    pointer(TRAFFIC),
    pointer(SEEN),
    pointer(CHOICES),
    pointer(TERMS),
)
chosen_pointer, reward_pointer, flag_pointer = pointer(CHOSEN), pointer(REWARD), pointer(FLAG)


@kernel
def batch_of(arena: Arena) -> BatchAt:
    """The batch's header in its block of bytes."""
    return batch_pointer(np.int64(arena.ctypes.data), np.int64(0))


@kernel
def row_at(b: BatchAt, row: int) -> RowAt:
    """Scalars of a row."""
    return row_pointer(_address(b) + b["rows_at"] + row * b["row_bytes"], np.int64(0))


@kernel
def tier_at(s: RowAt, tier: int) -> Any:
    """TIER 0 (free) or 1 (VIP)."""
    return tier_pointer(_address(s) + s["tiers_at"], np.int64(tier))


@kernel
def tower_at(s: RowAt, tower: int) -> TowerAt:
    """TOWER 0..3."""
    return tower_pointer(_address(s) + s["towers_at"], np.int64(tower))


@kernel
def live_at(s: RowAt, i: int) -> Any:
    """LIVE of request i."""
    return live_pointer(_address(s) + s["live_at"], np.int64(i))


@kernel
def asked_at(s: RowAt, i: int) -> Any:
    """TRAFFIC of request i."""
    return traffic_pointer(s["traffic_at"], np.int64(i))


@kernel
def ready_at(s: RowAt, tick: int) -> Any:
    """LINK to the first request whose first token comes at a tick."""
    return link_pointer(_address(s) + s["ready_at"], np.int64(tick))


@kernel
def finish_at(s: RowAt, tick: int) -> Any:
    """LINK to the first request whose last token comes at a tick."""
    return link_pointer(_address(s) + s["finish_at"], np.int64(tick))


@kernel
def transfer_at(s: RowAt, i: int) -> Any:
    """TRANSFER i of the link's ring."""
    return transfer_pointer(_address(s) + s["transfers_at"], np.int64(i))


@kernel
def word_at(s: RowAt, i: int) -> Any:
    """WORD i of the towers' bits."""
    return word_pointer(_address(s) + s["words_at"], np.int64(i))


@kernel
def recent_at(s: RowAt, tick: int) -> Any:
    """WORD with the GPU use at the end of a recent tick."""
    return word_pointer(_address(s) + s["recent_at"], np.int64(tick & (RING - 1)))


@kernel
def phase_at(s: RowAt, phase: int) -> Any:
    """WORD with the number of active requests that need a block at ticks of this phase."""
    return word_pointer(_address(s) + s["phases_at"], np.int64(phase))


@kernel
def head_at(s: RowAt, i: int) -> Any:
    """LINK to the first request of a tower's bucket."""
    return link_pointer(_address(s) + s["heads_at"], np.int64(i))


@kernel
def top_bit(bits: int) -> int:
    """Number of the highest bit of a positive int64."""
    return 63 - _leading_zeros(bits)


def _aligned(size: int) -> int:
    return -(-size // 64) * 64


def _layout(rules: Rules, capacity: int) -> dict[str, int]:
    """Offsets and sizes of a row's parts, by field of ROW."""
    n_heads = (rules.max_context_tokens + rules.horizon_ticks >> BUCKET_BITS) + 2
    n_words = -(-n_heads // 63)
    ticks = rules.horizon_ticks + 1
    parts = (
        ("tiers_at", 2 * TIER.itemsize), ("towers_at", 4 * TOWER.itemsize), ("recent_at", RING * WORD.itemsize),
        ("phases_at", rules.block_tokens * WORD.itemsize), ("words_at", 4 * n_words * WORD.itemsize),
        ("transfers_at", rules.transfers * TRANSFER.itemsize), ("heads_at", 4 * n_heads * LINK.itemsize),
        ("ready_at", ticks * LINK.itemsize), ("finish_at", ticks * LINK.itemsize), ("live_at", capacity * LIVE.itemsize),
    )  # fmt: skip
    at = _aligned(ROW.itemsize)
    layout = {}
    for name, size in parts:
        layout[name] = at
        at += _aligned(size)
    return layout | {"row_bytes": at, "capacity": capacity, "n_words": n_words, "n_heads": n_heads}


def allocate(rules: Rules, capacity: int, n: int) -> Arena:
    """A block for n rows with room for `capacity` requests each; rows know the rules and nothing else."""
    layout = _layout(rules, capacity)
    sizes = dict(
        actions=n * 8, observations=n * SEEN.itemsize, masks=n * CHOICES.itemsize, rewards=n * 8, terms=n * TERMS.itemsize, terminated=n, truncated=n,
    )  # fmt: skip
    header = np.zeros(1, BATCH)
    at = _aligned(BATCH.itemsize)
    for part, size in sizes.items():
        header[f"{part}_at"] = at
        at += _aligned(size)
    header["rows_at"], header["row_bytes"], header["n"] = at, layout["row_bytes"], n
    arena = _aligned_bytes(at + n * layout["row_bytes"])
    arena[:] = 0
    arena[: BATCH.itemsize].view(BATCH)[:] = header
    blank = _blank(rules, layout)
    for row in range(n):
        start = row_start(arena, row)
        arena[start : start + len(blank)] = blank
    return arena


def _blank(rules: Rules, layout: dict[str, int]) -> Arena:
    """The first bytes of an empty row: scalars and tiers; the rest is zero."""
    blank = np.zeros(layout["tiers_at"] + 2 * TIER.itemsize, np.uint8)
    row = blank[: ROW.itemsize].view(ROW)
    for name, value in (layout | _rule_fields(rules)).items():
        row[name] = value
    tiers = blank[layout["tiers_at"] :].view(TIER)
    tiers["seats"] = rules.free_queue, rules.vip_queue
    tiers["sla"] = rules.free_sla_ticks, rules.vip_sla_ticks
    tiers["wait_scale"] = rules.free_sla_ticks or 100, rules.vip_sla_ticks or 50
    tiers["weight"] = 1, rules.vip_weight
    return blank


def clear(arena: Arena, row: int, rules: Rules) -> npt.NDArray[np.void]:
    """Empty a row; its scalars."""
    capacity = int(scalars(arena, row)["capacity"])
    layout = _layout(rules, capacity)
    blank = _blank(rules, layout)
    start = row_start(arena, row)
    arena[start : start + layout["row_bytes"]] = 0
    arena[start : start + len(blank)] = blank
    return scalars(arena, row)


def _rule_fields(rules: Rules) -> dict[str, int]:
    return dict(
        horizon=rules.horizon_ticks, gpu_blocks=rules.gpu_blocks, cpu_blocks=rules.cpu_blocks, block_tokens=rules.block_tokens,
        prefill_rate=rules.prefill_tokens_per_tick, link_rate=rules.link_blocks_per_tick, slots=rules.decisions_per_tick,
        garbage_ticks=rules.garbage_ticks, max_transfers=rules.transfers,
        max_blocks=-(-rules.max_context_tokens // rules.block_tokens),
    )  # fmt: skip


def row_start(arena: Arena, row: int) -> int:
    """First byte of a row."""
    header = arena[: BATCH.itemsize].view(BATCH)[0]
    return int(header["rows_at"]) + row * int(header["row_bytes"])


def scalars(arena: Arena, row: int) -> npt.NDArray[np.void]:
    """ROW of a row, a zero-dimensional view."""
    at = row_start(arena, row)
    view: npt.NDArray[np.void] = arena[at : at + ROW.itemsize].view(ROW).reshape(())
    return view


def part(arena: Arena, row: int, name: str, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    """A view of `count` records of a row's part (`name` as in ROW, such as live_at)."""
    at = row_start(arena, row) + int(scalars(arena, row)[name])
    return arena[at : at + count * dtype.itemsize].view(dtype)


def output(arena: Arena, name: str, dtype: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """A view of what kernels write for the caller (`name` of OUTPUTS)."""
    at = int(arena[: BATCH.itemsize].view(BATCH)[0][f"{name}_at"])
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return arena[at : at + size].view(dtype).reshape(shape)
