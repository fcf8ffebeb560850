"""Prefix ids: names for whole prefixes made out of names for pieces, and how much an endless cache would save.

A row's ids are a run of a flat array; id j names all tokens up to and including block j. Lengths are tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inferencegym.workload.workload import Ints, Workload

_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def offsets_of(lengths: npt.NDArray[np.integer]) -> Ints:
    """Where each row of a ragged column starts, and at last where it ends."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Each 64-bit number scrambled (the finaliser of SplitMix64, a bijection)."""
    x = values + _SPREAD
    x ^= x >> np.uint64(30)
    x *= _MIX_1
    x ^= x >> np.uint64(27)
    x *= _MIX_2
    x ^= x >> np.uint64(31)
    return x


def chained(offsets: Ints, pieces: Ints, salt: Ints) -> Ints:
    """Names of whole prefixes out of names of pieces: equal where salt and all pieces so far are equal, and only there.

    A running sum of (piece, place) hashes, so no loop: about n^2 / 2^64 is the chance that any two of n names collide.
    offsets : int64[rows + 1]; pieces : int64[n]; salt : int64[rows], e.g. the session that the names are local to
    """
    lengths = np.diff(offsets)
    place = np.arange(len(pieces), dtype=np.int64) - np.repeat(offsets[:-1], lengths)
    terms = mixed(pieces.astype(np.uint64) ^ mixed(place.astype(np.uint64)))
    running = np.cumsum(terms, dtype=np.uint64)
    before = np.zeros(len(lengths), np.uint64)
    started = offsets[:-1] > 0
    before[started] = running[offsets[:-1][started] - 1]
    running -= np.repeat(before - mixed(salt.astype(np.uint64) ^ _SPREAD), lengths)
    return (mixed(running) >> np.uint64(1)).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Reuse:
    """What a cache that never forgets, empty at the start, would find."""

    hit_blocks: Ints
    """Leading blocks of each row's prompt that an earlier row had."""
    prompt_blocks: Ints
    """Blocks of each row's prompt that have an id."""
    hit_tokens: Ints
    hit_rate_tokens: float
    """Found tokens over all prompt tokens."""
    hit_rate_blocks: float


def endless_cache(w: Workload) -> Reuse:
    """Reuse when every earlier row is wholly cached as the next one arrives."""
    prompt = w.prompt_tokens.astype(np.int64)
    size = max(w.prefix_block_tokens, 1)
    lengths = np.diff(w.prefix_offsets)
    of_prompt = np.minimum(lengths, -(-prompt // size))
    hits = np.minimum(_leading_old(w, lengths), of_prompt)
    hit_tokens = np.minimum(hits * size, prompt)
    return Reuse(hits, of_prompt, hit_tokens, _share(hit_tokens, prompt), _share(hits, of_prompt))


def _leading_old(w: Workload, lengths: Ints) -> Ints:
    if not len(w.prefix_ids):
        return np.zeros(len(w), np.int64)
    row = np.repeat(np.arange(len(w)), lengths)
    _, first, name = np.unique(w.prefix_ids, return_index=True, return_inverse=True)
    new = np.flatnonzero(row[first][name] == row)
    found = lengths.copy()
    # Positions of new ids rise, so the last write per row must be the first new one: write them backwards.
    found[row[new][::-1]] = (new - w.prefix_offsets[row[new]])[::-1]
    return found


def _share(part: Ints, whole: Ints) -> float:
    total = float(whole.sum())
    return float(part.sum()) / total if total else 0.0
