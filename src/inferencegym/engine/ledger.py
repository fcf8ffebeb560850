"""Who holds which KV blocks: blank ones, cached ones (LRU), and the prefix cache's index. Rules: docs/scheduling.md, section 7.

Physical block numbers do not matter, contents do, so a free block is either *blank* (a count) or *cached* (a node in the LRU list):

    blank: 812      LRU (oldest first):  [extent of row 7: 31 blocks] -> [key 9a.. : 1] -> [key 4f.. : 1] -> ...

A node is one findable block with a key the workload gave, or an *extent*: the private blocks that one request let go of together.
Extents are evicted from their last block, as vLLM frees a request's blocks last one first. Units: blocks.
"""

from __future__ import annotations

import numpy as np

from inferencegym.engine.codes import Phase
from inferencegym.engine.memory import Asked, State, core_at, index_at, key_id_at, node_at, row_at, slot_at
from inferencegym.ground.jit import kernel

_CARRIED = int(Phase.CARRIED)


@kernel
def blocks_for(tokens: int, block_size: int) -> int:
    """Blocks that hold so many tokens."""
    return (tokens + block_size - 1) // block_size


@kernel
def free_blocks(s: State, r: int) -> int:
    """Blocks that can be allocated now (negative while a shrunk pool is in debt)."""
    return core_at(s, r)["blank"] + core_at(s, r)["cached_free"]


# --- keys -------------------------------------------------------------------------------------------------------------


@kernel
def mix(x: int) -> int:
    """Scramble an int64 (splitmix64's finaliser), result >= 0."""
    z = np.uint64(x) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return int((z ^ (z >> np.uint64(31))) >> np.uint64(1))


@kernel
def keyed_blocks(w: Asked, row: int, block_size: int) -> int:
    """How many leading engine blocks of a row the workload names."""
    return row_at(w, row)["key_tokens"] // block_size


@kernel
def block_key(w: Asked, row: int, j: int, block_size: int) -> int:
    """Key of engine block j of a row: the workload's id, and which part of that id's block it is.

    Workload blocks may be larger than the engine's (Mooncake's 512 tokens) or smaller (one id of several, the last, names them all).
    """
    first = row_at(w, row)["key_offset"]
    shift = w["key_shift"]
    if shift >= 0:  # an id stands for 2^shift engine blocks
        return mix(key_id_at(w, first + (j >> shift))["id"] * 4096 + (j & ((1 << shift) - 1)))
    if w["key_block"] >= block_size:
        token = j * block_size
        return mix(key_id_at(w, first + token // w["key_block"])["id"] * 4096 + (token % w["key_block"]) // block_size)
    return mix(key_id_at(w, first + ((j + 1) * block_size) // w["key_block"] - 1)["id"] * 4096)


@kernel
def find(s: State, r: int, key: int) -> int:
    """Node of a key, or -1."""
    mask = s["index_size"] - 1
    i = key & mask
    while index_at(s, r, i)["entry"] != 0:
        node = index_at(s, r, i)["entry"] - 1
        if node_at(s, r, node)["key"] == key:
            return node
        i = (i + 1) & mask
    return -1


@kernel
def _index_insert(s: State, r: int, node: int) -> None:
    mask = s["index_size"] - 1
    i = node_at(s, r, node)["key"] & mask
    while index_at(s, r, i)["entry"] != 0:
        i = (i + 1) & mask
    index_at(s, r, i)["entry"] = node + 1


@kernel
def _index_delete(s: State, r: int, node: int) -> None:
    """Open addressing, linear probing: close the gap by moving later entries of the run back."""
    mask = s["index_size"] - 1
    i = node_at(s, r, node)["key"] & mask
    while index_at(s, r, i)["entry"] != node + 1:
        i = (i + 1) & mask
    hole = i
    while True:
        i = (i + 1) & mask
        entry = index_at(s, r, i)["entry"]
        if entry == 0:
            break
        home = node_at(s, r, entry - 1)["key"] & mask
        if ((i - home) & mask) >= ((i - hole) & mask):
            index_at(s, r, hole)["entry"] = entry
            hole = i
    index_at(s, r, hole)["entry"] = 0


# --- the LRU list -----------------------------------------------------------------------------------------------------


@kernel
def _new_node(s: State, r: int) -> int:
    core = core_at(s, r)
    node = core["free_node"]
    if node >= 0:
        core["free_node"] = node_at(s, r, node)["next"]
    else:
        node = core["nodes_used"]
        core["nodes_used"] += 1
    return node


@kernel
def _drop_node(s: State, r: int, node: int) -> None:
    node_at(s, r, node)["next"] = core_at(s, r)["free_node"]
    core_at(s, r)["free_node"] = node


@kernel
def _lru_append(s: State, r: int, node: int) -> None:
    core = core_at(s, r)
    tail = core["lru_tail"]
    node_at(s, r, node)["prev"] = tail
    node_at(s, r, node)["next"] = -1
    if tail >= 0:
        node_at(s, r, tail)["next"] = node
    else:
        core["lru_head"] = node
    core["lru_tail"] = node
    core["cached_free"] += node_at(s, r, node)["count"]


@kernel
def _lru_remove(s: State, r: int, node: int) -> None:
    core = core_at(s, r)
    before = node_at(s, r, node)["prev"]
    after = node_at(s, r, node)["next"]
    if before >= 0:
        node_at(s, r, before)["next"] = after
    else:
        core["lru_head"] = after
    if after >= 0:
        node_at(s, r, after)["prev"] = before
    else:
        core["lru_tail"] = before
    core["cached_free"] -= node_at(s, r, node)["count"]


@kernel
def evict(s: State, r: int, n: int) -> None:
    """Turn the n oldest cached free blocks into blank ones. The caller knows that there are so many."""
    core = core_at(s, r)
    core["evicted_blocks"] += n
    core["blank"] += n
    while n > 0:
        node = core["lru_head"]
        count = node_at(s, r, node)["count"]
        if count > n:
            node_at(s, r, node)["count"] = count - n
            core["cached_free"] -= n
            return
        n -= count
        _lru_remove(s, r, node)
        if node_at(s, r, node)["extent"] == 0:
            _index_delete(s, r, node)
        elif node_at(s, r, node)["parent"] >= 0:
            slot_at(s, r, node_at(s, r, node)["parent"])["extent"] = -1
        _drop_node(s, r, node)


@kernel
def take_blocks(s: State, r: int, n: int) -> None:
    """Allocate n blocks: blank ones first, then the oldest cached ones. The caller has checked `free_blocks`."""
    core = core_at(s, r)
    short = n - max(core["blank"], 0)
    if short > 0:
        evict(s, r, short)
    core["blank"] -= n


# --- what a request publishes, finds and lets go of -------------------------------------------------------------------


@kernel
def _new_block(s: State, r: int, key: int, refs: int, parent: int) -> int:
    """A findable block's node."""
    node = _new_node(s, r)
    entry = node_at(s, r, node)
    entry["key"] = key
    entry["count"] = 1
    entry["refs"] = refs
    entry["extent"] = 0
    entry["parent"] = parent
    _index_insert(s, r, node)
    return node


@kernel
def _hold_node(s: State, r: int, node: int) -> None:
    """One holder more of a findable block."""
    entry = node_at(s, r, node)
    if entry["refs"] == 0:
        _lru_remove(s, r, node)
    entry["refs"] += 1


@kernel
def publish(s: State, w: Asked, r: int, slot: int, tokens: int) -> None:
    """Make the prompt's named blocks among the first `tokens` tokens findable; `shared` of the slot counts them, `last` is the last one."""
    me = slot_at(s, r, slot)
    size = core_at(s, r)["block_size"]
    upto = min(min(tokens, me["prompt"]) // size, keyed_blocks(w, me["row"], size))
    for j in range(me["shared"], upto):
        key = block_key(w, me["row"], j, size)
        node = find(s, r, key)
        if node >= 0:
            core_at(s, r)["blank"] += 1  # somebody computed the same block meanwhile: share theirs, give ours back
            node_at(s, r, node)["parent"] = me["last"]
            _hold_node(s, r, node)
        else:
            node = _new_block(s, r, key, 1, me["last"])
        me["last"] = node
        me["shared"] = j + 1


@kernel
def lookup(s: State, w: Asked, r: int, slot: int) -> tuple[int, int, int, int]:
    """Cached leading blocks of a request that has computed nothing: (named hits, private hits, hits that are free now, last named node).

    On the way each block's node is told which one comes before it, so that whoever holds the last can walk back.
    """
    me = slot_at(s, r, slot)
    size = core_at(s, r)["block_size"]
    cap = (me["prompt"] + me["generated"] - 1) // size
    named = keyed_blocks(w, me["row"], size)
    hits = 0
    idle = 0
    last = -1
    while hits < min(cap, named):
        node = find(s, r, block_key(w, me["row"], hits, size))
        if node < 0:
            break
        entry = node_at(s, r, node)
        if entry["refs"] == 0:
            idle += 1
        entry["parent"] = last
        last = node
        hits += 1
    own = 0
    if hits == named and me["extent"] >= 0:
        own = node_at(s, r, me["extent"])["count"]
    return hits, own, idle + own, last


@kernel
def cached_run(s: State, w: Asked, r: int, row: int) -> int:
    """How many leading named blocks of a row replica r has cached: what the prefix router compares."""
    size = core_at(s, r)["block_size"]
    cap = min((row_at(w, row)["prompt"] - 1) // size, keyed_blocks(w, row, size))
    hits = 0
    while hits < cap and find(s, r, block_key(w, row, hits, size)) >= 0:
        hits += 1
    return hits


@kernel
def take_hits(s: State, r: int, slot: int, hits: int, own: int, last: int) -> None:
    """Hold the blocks that `lookup` found."""
    me = slot_at(s, r, slot)
    node = last
    for _ in range(hits):
        _hold_node(s, r, node)
        node = node_at(s, r, node)["parent"]
    me["shared"] = hits
    me["last"] = last
    if own > 0:
        _lru_remove(s, r, me["extent"])
        _drop_node(s, r, me["extent"])
        me["extent"] = -1
    else:
        disown(s, r, slot)


@kernel
def disown(s: State, r: int, slot: int) -> None:
    """Leave the private blocks that a request let go of to the LRU for good."""
    if slot_at(s, r, slot)["extent"] >= 0:
        node_at(s, r, slot_at(s, r, slot)["extent"])["parent"] = -1
        slot_at(s, r, slot)["extent"] = -1


@kernel
def _let_go(s: State, r: int, slot: int) -> None:
    """One holder less of each block a request has published or taken as a hit, last block first."""
    me = slot_at(s, r, slot)
    node = me["last"]
    for _ in range(me["shared"]):
        entry = node_at(s, r, node)
        before = entry["parent"]
        entry["refs"] -= 1
        if entry["refs"] == 0:
            _lru_append(s, r, node)
        node = before
    me["shared"] = 0
    me["last"] = -1
    me["blocks"] = 0


@kernel
def release(s: State, w: Asked, r: int, slot: int, returns: bool) -> None:
    """Free all blocks of a request, the full ones into the cache, last block first. `returns`: it will be admitted again."""
    core = core_at(s, r)
    me = slot_at(s, r, slot)
    if core["prefix_caching"] == 0:
        core["blank"] += me["blocks"]
        me["blocks"] = 0
        return
    size = core["block_size"]
    full = max(me["computed"] // size, me["shared"])
    named = min(full, keyed_blocks(w, me["row"], size))
    core["blank"] += me["blocks"] - full
    if full > named:
        node = _new_node(s, r)
        entry = node_at(s, r, node)
        entry["count"] = full - named
        entry["extent"] = 1
        entry["parent"] = slot if returns else -1
        me["extent"] = node if returns else -1
        _lru_append(s, r, node)
    for j in range(named - 1, me["shared"] - 1, -1):
        key = block_key(w, me["row"], j, size)
        if find(s, r, key) >= 0:
            core["blank"] += 1
        else:
            _lru_append(s, r, _new_block(s, r, key, 0, -1))
    _let_go(s, r, slot)


@kernel
def swap_out_blocks(s: State, r: int, slot: int) -> None:
    """Free all blocks of a request whose KV went to the CPU tier: shared ones are let go, the rest is blank."""
    me = slot_at(s, r, slot)
    core_at(s, r)["blank"] += me["blocks"] - me["shared"]
    _let_go(s, r, slot)
