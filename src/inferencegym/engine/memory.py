"""The memory of the engine: one block of bytes, so that a running engine is copied by copying the block.

Kernels get three pointers: `s` (the state's header; all other state lies at offsets from it), `w` (the workload, shared by
forks) and `t` (step-time tables). A pointer costs nothing to pass on, unlike NumPy arrays, whose reference counts Numba
would change at every call: that alone made a step forty times slower. The accessors below are the only places that know offsets.

    header | core[r] | slots[r, i] | heap[r, i] | fin[r, i] | picked[r, i] | crossing[r, b] | gaps[r, bin]
           | tenants[r, t] | places[r, p] | nodes[r, n] | index[r, h] | pending[i] | wire[i]

    core      one record a replica: clock, counters, settings, list heads
    slots     live requests; a slot is used again when its request has ended
    heap      the waiting queue where its order is not a list's
    crowd     all decodes of a replica gain a token in every step, so they are sums in `core`, a heap of the
              turns at which they finish (fin) and a histogram of the turns at which they need a block (crossing)
    picked    requests that this step treats one by one, in running order
    nodes, index   prefix cache: LRU list of cached blocks and a hash index

Times are picoseconds (int64), lengths tokens, memory blocks; -1 (NONE) ends a list.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numba
import numpy as np
import numpy.typing as npt
from numba import extending, types

from inferencegym.ground.jit import kernel

GAP_BINS = 2048
NONE = -1
SEAT_BITS = 31  # low bits of a finish key; seats are counted from 0 in admission order

#: What kernels are handed. Inside kernels these are pointers to records of the dtypes below.
State: TypeAlias = Any
Asked: TypeAlias = Any
Times: TypeAlias = Any

Ints = npt.NDArray[np.int64]
Ints32 = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]
Structured = npt.NDArray[np.void]
Arena = npt.NDArray[np.uint8]

_i8, _i4, _i2, _i1, _f8 = np.int64, np.int32, np.int16, np.int8, np.float64


def _integers(*names: str) -> list[tuple[str, type]]:
    return [(name, _i8) for name in names]


PARTS = (
    "core", "slots", "heap", "fin", "picked", "crossing", "gaps", "tenants", "places", "nodes", "index", "pending", "wire",
)  # fmt: skip

HEADER = np.dtype(
    _integers(
        *(f"{part}_at" for part in PARTS), "bytes",
        # sizes
        "replicas", "capacity", "block_size", "n_tenants", "n_places", "n_nodes", "index_size", "n_pending", "n_wire",
        # the buffer of records, an address outside this block
        "out_at", "out_capacity", "out_len",
        # the cluster
        "now_ps", "next_open", "open_rows", "pending_len", "wire_len", "prefill_replicas", "router",
        "turn_in", "turn_decode", "affinity_slack", "closed_loop", "arrived", "ended",
    ),
    align=True,
)  # fmt: skip

CORE = np.dtype(
    _integers(
        # the clock
        "now_ps", "step_end_ps", "step_ps", "link_free_ps",
        # the crowd: requests that decode, as sums
        "crowd", "decodes", "padding", "context", "turn", "fin_len", "picked_len",
        # lists and counts
        "running", "run_head", "run_tail", "next_seat", "waiting", "wait_head", "wait_tail", "heap_len",
        "free_slot", "slots_used",
        # KV blocks
        "blank", "pool_blocks", "cached_free", "lru_head", "lru_tail", "free_node", "nodes_used", "cpu_free",
        # the plan in the making, and news that came after it
        "unseen", "preempted", "swap_blocks", "swap_moves", "granted",
        # settings in force
        "scheduler", "order", "victims", "preemption", "role", "max_num_seqs", "max_num_batched_tokens",
        "max_model_len", "block_size", "chunked_prefill", "long_prefill_token_threshold", "reserve_full_isl",
        "watermark_blocks", "prefix_caching", "speculation_depth", "aging_ps", "seed",
        # VTC
        "vtc_last_left",
        # totals since the start
        "steps", "busy_ps", "emitted_tokens", "prefill_tokens", "hit_tokens", "preemptions", "swaps", "evicted_blocks",
        "drafted", "accepted", "gap_sum_ps", "gap_count", "finished", "refused", "swapped_blocks", "arrived",
    ),
    align=True,
)  # fmt: skip

SLOT = np.dtype(
    [
        ("arrival_ps", _i8), ("scheduled_ps", _i8), ("first_ps", _i8), ("last_ps", _i8),
        ("turn", _i8),  # turn at which `computed` and `generated` hold, for a member of the crowd
        ("row", _i4), ("prompt", _i4), ("target", _i4), ("generated", _i4), ("computed", _i4), ("grant", _i4),
        ("blocks", _i4), ("shared", _i4), ("cached", _i4), ("prev", _i4), ("next", _i4), ("seat", _i4),
        ("extent", _i4), ("last", _i4), ("place", _i4), ("tenant", _i4), ("preemptions", _i2), ("swaps", _i2),
        ("priority", _i2), ("kind", _i2), ("state", _i1), ("in_crowd", _i1), ("private", _i1),
    ],
    align=True,
)  # fmt: skip

HEAP = np.dtype([("slot", _i4)])
FIN = np.dtype([("key", _i8), ("slot", _i4), ("pad", _i4)], align=True)  # key: turn << SEAT_BITS | seat
PICKED = np.dtype([("slot", _i4)])
CROSSING = np.dtype([("decodes", _i8)])  # decodes that need a block at turn t stand in bin t % block_size
GAP = np.dtype([("count", _i8)])
TENANT = np.dtype(
    [("counter", _i8), ("cost_in", _i8), ("cost_out", _i8), ("decodes", _i8), ("head", _i4), ("tail", _i4)], align=True
)
PLACE = np.dtype(
    [("used_ps", _i8), ("row", _i4), ("blocks", _i4), ("taken", _i4), ("pad", _i4)], align=True
)  # llama.cpp's slots
NODE = np.dtype(  # parent: the node of the block before; of an extent the slot that may come back for it, or -1
    [("key", _i8), ("count", _i4), ("refs", _i4), ("prev", _i4), ("next", _i4), ("parent", _i4), ("extent", _i4)],
    align=True,
)
INDEX = np.dtype([("entry", _i4)])  # node + 1, or 0
PENDING = np.dtype(
    [("key", _i8), ("row", _i4), ("pad", _i4)], align=True
)  # closed-loop requests, heap by (due time, row)
WIRE = np.dtype([("ready_ps", _i8), ("row", _i4), ("replica", _i4), ("slot", _i4), ("pad", _i4)], align=True)

RECORD = np.dtype(
    [
        ("arrival_ps", _i8), ("scheduled_ps", _i8), ("first_ps", _i8), ("finish_ps", _i8), ("row", _i4),
        ("output", _i4), ("cached", _i4), ("preemptions", _i4), ("swaps", _i4), ("replica", _i4), ("outcome", _i4), ("pad", _i4),
    ],
    align=True,
)  # fmt: skip

#: One row of the workload, a cache line. `target` is the oracle: only `commit` may read it (and `_fill`, which copies it).
ROW = np.dtype(
    [
        ("arrival_ps", _i8), ("think_ps", _i8), ("slo_ttft_ps", _i8), ("key_offset", _i8),
        ("prompt", _i4), ("target", _i4), ("budget", _i4), ("tenant", _i4), ("key_tokens", _i4),
        ("child", _i4), ("sibling", _i4), ("priority", _i2), ("kind", _i2),
    ],
    align=True,
)  # fmt: skip
OPEN_ROW = np.dtype([("row", _i4)])
KEY_ID = np.dtype([("id", _i8)])
CHANCE = np.dtype([("chance", _f8)])
PICOSECONDS = np.dtype([("ps", _i8)])

#: Addresses of the workload's arrays (which outlive it: `engine.asked` holds them).
ASKED = np.dtype(
    _integers("rows_at", "open_rows_at", "key_ids_at", "accept_at", "key_block", "key_shift", "drafts"), align=True
)

#: Addresses of the step-time tables, and the scalars of `StepTimes`.
TIMES = np.dtype(
    _integers(
        "lin_at", "lin_len", "head_at", "head_len", "dec_at", "dec_len", "draft_at", "draft_len", "chunk_at", "chunk_len",
        "kv_ps", "pre_ps", "swap_ps_per_block", "swap_fixed_ps", "link_ps_per_token", "link_fixed_ps", "layers",
    ),
    align=True,
)  # fmt: skip

_DTYPES = dict(
    core=CORE, slots=SLOT, heap=HEAP, fin=FIN, picked=PICKED, crossing=CROSSING, gaps=GAP, tenants=TENANT, places=PLACE,
    nodes=NODE, index=INDEX, pending=PENDING, wire=WIRE,
)  # fmt: skip


#: Numba's types say that an intrinsic takes the compiler's context when it is called; it does not, so they are set aside.
intrinsic: Any = extending.intrinsic
carray: Any = numba.carray  # type: ignore[attr-defined]


# --- pointers ---------------------------------------------------------------------------------------------------------


def pointer(dtype: np.dtype[Any]) -> Any:
    """An intrinsic `(address, index) -> record`: the index-th record of this dtype from an address on."""
    record = numba.from_dtype(dtype)
    size = dtype.itemsize

    @intrinsic  # type: ignore[untyped-decorator]
    def at(_context: Any, _address: Any, _index: Any) -> Any:
        def code(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            address, index = arguments
            bytes_in = builder.mul(index, context.get_constant(types.int64, size))
            return builder.inttoptr(builder.add(address, bytes_in), context.get_value_type(record))

        return record(types.int64, types.int64), code

    return at


@intrinsic  # type: ignore[untyped-decorator]
def _address(_context: Any, record: Any) -> Any:
    """The address of a record."""

    def code(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ptrtoint(arguments[0], context.get_value_type(types.int64))

    return types.int64(record), code


@intrinsic  # type: ignore[untyped-decorator]
def _float_pointer(_context: Any, _address: Any) -> Any:
    floats = types.CPointer(types.float64)  # type: ignore[no-untyped-call]

    def code(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(floats))

    return floats(types.int64), code


_header_at = pointer(HEADER)
_core_at, _slot_at, _heap_at, _fin_at = pointer(CORE), pointer(SLOT), pointer(HEAP), pointer(FIN)
_picked_at, _crossing_at, _gap_at = pointer(PICKED), pointer(CROSSING), pointer(GAP)
_tenant_at, _place_at, _node_at, _index_at = pointer(TENANT), pointer(PLACE), pointer(NODE), pointer(INDEX)
_pending_at, _wire_at, _record_at = pointer(PENDING), pointer(WIRE), pointer(RECORD)
_row_at, _open_row_at, _key_id_at, _chance_at = pointer(ROW), pointer(OPEN_ROW), pointer(KEY_ID), pointer(CHANCE)
_ps_at = pointer(PICOSECONDS)


@kernel
def state_of(arena: Arena) -> State:
    """The state's header in its block of bytes."""
    return _header_at(np.int64(arena.ctypes.data), np.int64(0))


@kernel
def header_from(address: int) -> State:
    """The state's header at an address."""
    return _header_at(np.int64(address), np.int64(0))


@kernel
def core_at(s: State, r: int) -> Any:
    """CORE of replica r."""
    return _core_at(_address(s) + s["core_at"], np.int64(r))


@kernel
def slot_at(s: State, r: int, i: int) -> Any:
    """SLOT i of replica r."""
    return _slot_at(_address(s) + s["slots_at"], r * s["capacity"] + i)


@kernel
def heap_at(s: State, r: int, i: int) -> Any:
    """HEAP entry i of replica r."""
    return _heap_at(_address(s) + s["heap_at"], r * s["capacity"] + i)


@kernel
def fin_at(s: State, r: int, i: int) -> Any:
    """FIN entry i of replica r."""
    return _fin_at(_address(s) + s["fin_at"], r * s["capacity"] + i)


@kernel
def picked_at(s: State, r: int, i: int) -> Any:
    """PICKED entry i of replica r."""
    return _picked_at(_address(s) + s["picked_at"], r * s["capacity"] + i)


@kernel
def crossing_at(s: State, r: int, i: int) -> Any:
    """CROSSING bin i of replica r."""
    return _crossing_at(_address(s) + s["crossing_at"], r * s["block_size"] + i)


@kernel
def gap_at(s: State, r: int, i: int) -> Any:
    """GAP bin i of replica r."""
    return _gap_at(_address(s) + s["gaps_at"], r * GAP_BINS + i)


@kernel
def tenant_at(s: State, r: int, i: int) -> Any:
    """TENANT i on replica r."""
    return _tenant_at(_address(s) + s["tenants_at"], r * s["n_tenants"] + i)


@kernel
def place_at(s: State, r: int, i: int) -> Any:
    """PLACE i of replica r."""
    return _place_at(_address(s) + s["places_at"], r * s["n_places"] + i)


@kernel
def node_at(s: State, r: int, i: int) -> Any:
    """NODE i of replica r."""
    return _node_at(_address(s) + s["nodes_at"], r * s["n_nodes"] + i)


@kernel
def index_at(s: State, r: int, i: int) -> Any:
    """INDEX entry i of replica r."""
    return _index_at(_address(s) + s["index_at"], r * s["index_size"] + i)


@kernel
def pending_at(s: State, i: int) -> Any:
    """PENDING entry i."""
    return _pending_at(_address(s) + s["pending_at"], np.int64(i))


@kernel
def wire_at(s: State, i: int) -> Any:
    """WIRE entry i."""
    return _wire_at(_address(s) + s["wire_at"], np.int64(i))


@kernel
def record_at(s: State, i: int) -> Any:
    """RECORD i of the buffer the caller gave."""
    return _record_at(s["out_at"], np.int64(i))


@kernel
def row_at(w: Asked, row: int) -> Any:
    """ROW of the workload."""
    return _row_at(w["rows_at"], np.int64(row))


@kernel
def open_row_at(w: Asked, i: int) -> Any:
    """OPEN_ROW i: rows that wait for no other, in arrival order."""
    return _open_row_at(w["open_rows_at"], np.int64(i))


@kernel
def key_id_at(w: Asked, i: int) -> Any:
    """KEY_ID i of the workload's prefix ids."""
    return _key_id_at(w["key_ids_at"], np.int64(i))


@kernel
def chance_at(w: Asked, kind: int, j: int) -> Any:
    """CHANCE that at least j + 1 drafts are kept for this kind of traffic."""
    return _chance_at(w["accept_at"], kind * w["drafts"] + j)


@kernel
def table_ps(address: int, length: int, i: int) -> int:
    """Entry i of a step-time table, ps; beyond its end the last difference goes on."""
    last = length - 1
    if i <= last:
        return _ps_at(address, np.int64(i))["ps"]
    end = _ps_at(address, last)["ps"]
    return end + (i - last) * (end - _ps_at(address, last - 1)["ps"])


@kernel
def chunk_coefficients(t: Times) -> Floats:
    """float64[chunk_len], the coefficients `chunk_ps` takes."""
    return carray(_float_pointer(t["chunk_at"]), (t["chunk_len"],))


# --- the block of bytes, from Python ----------------------------------------------------------------------------------


def sizes(header: Structured) -> dict[str, tuple[int, ...]]:
    """Shape of each part of a state."""
    h = {name: int(header[name]) for name in header.dtype.names or ()}
    per_slot = (h["replicas"], h["capacity"])
    return {
        "core": (h["replicas"],),
        "slots": per_slot,
        "heap": per_slot,
        "fin": per_slot,
        "picked": per_slot,
        "crossing": (h["replicas"], h["block_size"]),
        "gaps": (h["replicas"], GAP_BINS),
        "tenants": (h["replicas"], h["n_tenants"]),
        "places": (h["replicas"], h["n_places"]),
        "nodes": (h["replicas"], h["n_nodes"]),
        "index": (h["replicas"], h["index_size"]),
        "pending": (h["n_pending"],),
        "wire": (h["n_wire"],),
    }


def allocate(header: Structured) -> Arena:
    """A block for a state with the sizes in `header` (whose offsets are filled in), all zero but the header."""
    at = _aligned(HEADER.itemsize)
    for part, shape in sizes(header).items():
        header[f"{part}_at"] = at
        at += _aligned(_DTYPES[part].itemsize * int(np.prod(shape)))
    header["bytes"] = at
    arena = _aligned_bytes(at)
    arena[:] = 0
    arena[: HEADER.itemsize].view(HEADER)[0] = header
    return arena


def _aligned(size: int) -> int:
    return -(-size // 64) * 64


def _aligned_bytes(size: int) -> Arena:
    raw = np.empty(size + 64, np.uint8)
    skip = -raw.ctypes.data % 64
    return raw[skip : skip + size]


def copy_arena(arena: Arena, into: Arena | None = None) -> Arena:
    """The same bytes elsewhere: a fork of the state. Of the tables of live requests and cached blocks only what is in use is copied.

    `into`: a block that is not needed any more, used if it is as large.
    """
    twin = into if into is not None and into.size == arena.size else _aligned_bytes(arena.size)
    h = arena[: HEADER.itemsize].view(HEADER)[0]
    first, last = int(h["slots_at"]), int(h["crossing_at"])
    nodes, index = int(h["nodes_at"]), int(h["index_at"])
    twin[:first] = arena[:first]
    twin[last:nodes] = arena[last:nodes]
    twin[index:] = arena[index:]
    core = arena[int(h["core_at"]) : first][: CORE.itemsize * int(h["replicas"])].view(CORE)
    capacity = int(h["capacity"])
    for part, dtype, room, used in (
        ("slots", SLOT, capacity, "slots_used"), ("heap", HEAP, capacity, "heap_len"), ("fin", FIN, capacity, "fin_len"),
        ("picked", PICKED, capacity, "picked_len"), ("nodes", NODE, int(h["n_nodes"]), "nodes_used"),
    ):  # fmt: skip
        start, size = int(h[f"{part}_at"]), dtype.itemsize
        for r, count in enumerate(core[used].tolist()):
            begin = start + r * room * size
            twin[begin : begin + count * size] = arena[begin : begin + count * size]
    return twin


def header_of(arena: Arena) -> Structured:
    """The header, as HEADER[1]."""
    return arena[: HEADER.itemsize].view(HEADER)


def part_of(arena: Arena, part: str) -> Structured:
    """One part of a state as a structured array that shares its memory."""
    header = header_of(arena)
    shape = sizes(header[0])[part]
    dtype = _DTYPES[part]
    start = int(header[f"{part}_at"][0])
    return arena[start : start + dtype.itemsize * int(np.prod(shape))].view(dtype).reshape(shape)


def grow(arena: Arena) -> Arena:
    """The same state with twice the room for live requests."""
    header = header_of(arena)[0].copy()
    header["capacity"] *= 2
    if header["n_wire"] > 1:
        header["n_wire"] *= 2
    bigger = allocate(header)
    for part in PARTS:
        old, new = part_of(arena, part), part_of(bigger, part)
        new[tuple(slice(0, length) for length in old.shape)] = old
    return bigger


#: Values of a slot's `state` that mean the request stands in the queue, and that it runs (codes.Phase).
WAITING_PHASES = (1, 3, 4)
RUNNING_PHASE = 2
