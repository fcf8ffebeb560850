"""Shared prefixes without sessions: each request repeats the leading blocks of an earlier one. Lengths tokens, times
seconds.
"""

from __future__ import annotations

import numpy as np

from inferencegym.ground.jit import kernel
from inferencegym.ground.rng import stream
from inferencegym.workload.chance import choose, from_grid
from inferencegym.workload.prefixes import offsets_of
from inferencegym.workload.spec import PrefixTree
from inferencegym.workload.workload import Floats, Ints


def draw_tree(
    tree: PrefixTree, arrival_s: Floats, prompt_tokens: Ints, rank: Floats, seed: int, name: str
) -> tuple[Ints, Ints]:
    """Offsets and ids; the last block may be partial, so a prompt has ceil(prompt / block) ids.

    rank : float64[n], where each prompt stands among all, 0 to 1: longer prompts repeat other shares than short ones
    """
    rng = stream(seed, f"{name}.prefixes")
    blocks = -(-prompt_tokens // tree.block_tokens)
    u, lag_u = rng.random(len(blocks)), rng.random(len(blocks))
    bin_of = np.minimum((rank * len(tree.matched_q)).astype(np.int64), len(tree.matched_q) - 1)
    share = np.empty(len(blocks))
    for i, quantiles in enumerate(tree.matched_q):
        here = bin_of == i
        share[here] = from_grid(u[here], tree.matched_probs, quantiles)
    matched = np.rint(share * blocks).astype(np.int64)
    wanted_s = arrival_s - from_grid(lag_u, tree.lag_probs, tree.lag_q_s)
    roots = choose(rng, tree.first_block_shares, len(blocks)) if tree.first_block_shares else np.full(len(blocks), -1)
    offsets = offsets_of(blocks)
    ids = np.empty(offsets[-1], np.int64)
    _grow(arrival_s, wanted_s, blocks, matched, roots.astype(np.int64), offsets, len(tree.first_block_shares), ids)
    return offsets, ids


@kernel
def _grow(
    arrival_s: Floats, wanted_s: Floats, blocks: Ints, matched: Ints, roots: Ints, offsets: Ints, fresh: int, ids: Ints
) -> None:
    """Fill in ids, request by request.

    arrival_s, wanted_s : float64[n], s, when each comes and about when the one it repeats came
    blocks, matched : int64[n], blocks of each prompt, and how many of them an earlier request had
    roots : int64[n], the first block that each starts with, -1 for one of its own
    offsets : int64[n + 1]; fresh : int64, the first id that is not taken; ids : int64[m], changed in place
    """
    for i in range(len(blocks)):
        start = offsets[i]
        take = 0
        source = _find_source(i, np.searchsorted(arrival_s, wanted_s[i]), min(matched[i], blocks[i]), blocks, roots)
        if source >= 0:
            take = min(matched[i], blocks[i], blocks[source])
            for j in range(take):
                ids[start + j] = ids[offsets[source] + j]
        for j in range(take, blocks[i]):
            if j == 0 and roots[i] >= 0:
                ids[start] = roots[i]
            else:
                ids[start + j] = fresh
                fresh += 1


@kernel
def _find_source(i: int, near: int, need: int, blocks: Ints, roots: Ints) -> int:
    """The earlier row nearest to `near` with the same root and enough blocks; -1 if none has more than the root.

    i, near : int64, rows; need : int64, blocks; blocks, roots : int64[n], read only
    """
    if need < 1 or (need == 1 and roots[i] >= 0):
        return -1
    near = min(near, i - 1)
    below, above = near, near + 1
    while below >= 0 or above < i:
        if below >= 0:
            if blocks[below] >= need and roots[below] == roots[i]:
                return below
            below -= 1
        if above < i:
            if blocks[above] >= need and roots[above] == roots[i]:
                return above
            above += 1
    return -1
