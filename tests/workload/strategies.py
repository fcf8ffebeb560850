"""Random workloads for property tests: columns, sessions that wait, tenants, and prefixes that grow."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from inferencegym.workload import Workload

BLOCK = 16


@st.composite
def workloads(draw: st.DrawFn, min_size: int = 0, max_size: int = 30, failures: bool = True) -> Workload:
    """Any valid workload; rows of a session share a prefix that only grows."""
    seed = draw(st.integers(0, 2**32))
    size = draw(st.integers(min_size, max_size))
    rng = np.random.default_rng(seed)
    arrival_s = np.sort(np.round(rng.random(size) * 100, draw(st.sampled_from([0, 1, 6]))))
    session = rng.integers(-1, 4, size)
    after = np.full(size, -1)
    for row in range(size):
        earlier = np.flatnonzero(session[:row] == session[row])
        if session[row] >= 0 and len(earlier) and rng.random() < 0.7:
            after[row] = earlier[-1]
    output = rng.integers(0 if failures else 1, 50, size)
    prompt = rng.integers(1, 200, size)
    ids, offsets = [], [0]
    for row in range(size):
        full = prompt[row] // BLOCK if draw(st.booleans()) else 0
        ids.extend(1000 * (session[row] + 1) + np.arange(full))
        offsets.append(len(ids))
    return Workload.of(
        arrival_s=arrival_s,
        prompt_tokens=prompt,
        output_tokens=output,
        priority=rng.integers(0, 3, size),
        tenant=rng.integers(0, 2, size),
        tenant_names=("a", "b"),
        slo_class=rng.integers(0, 2, size),
        slo_class_names=("fast", "slow"),
        kind=rng.integers(0, 2, size),
        kind_names=("chat", "code"),
        session_id=session,
        after=after,
        think_s=np.round(rng.random(size) * 5, 3),
        prefix_offsets=offsets,
        prefix_ids=ids,
        prefix_block_tokens=BLOCK,
        name="drawn",
        source="strategy",
        attribution="nobody",
    )
