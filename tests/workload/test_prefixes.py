"""Names of whole prefixes, and what an endless cache finds, against a slow and obvious count."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from inferencegym.workload.prefixes import chained, endless_cache, offsets_of
from tests.workload.strategies import workloads

PIECES = st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=12)


@given(rows=PIECES, salts=st.lists(st.integers(0, 1), min_size=12, max_size=12))
def test_names_are_equal_exactly_where_all_pieces_so_far_are(rows, salts):
    offsets = offsets_of(np.array([len(row) for row in rows], dtype=np.int64))
    flat = np.array([piece for row in rows for piece in row], dtype=np.int64)
    names = chained(offsets, flat, np.array(salts[: len(rows)], dtype=np.int64))
    prefixes = [(salts[i], *row[: j + 1]) for i, row in enumerate(rows) for j in range(len(row))]
    assert len(set(names.tolist())) == len(set(prefixes))
    assert len(set(zip(names.tolist(), prefixes, strict=True))) == len(set(prefixes))
    assert (names >= 0).all()


@given(workloads(max_size=40))
def test_an_endless_cache_finds_what_a_set_would(w):
    seen: set[int] = set()
    hits = []
    for row in range(len(w)):
        ids = w.prefix_of(row).tolist()
        new = [id_ not in seen for id_ in ids]
        hits.append(new.index(True) if True in new else len(ids))
        seen.update(ids)
    prompt_blocks = -(-w.prompt_tokens // max(w.prefix_block_tokens, 1))
    assert endless_cache(w).hit_blocks.tolist() == np.minimum(hits, prompt_blocks).tolist() if len(w) else True
