"""Records that could have happened, for property tests of the metrics floor."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from inferencegym.metrics.record import Outcome, Records

CLASSES = 3


@st.composite
def records(draw: st.DrawFn, min_size: int = 0, max_size: int = 40) -> Records:
    """Requests that lived by the law, of every outcome."""
    rows = draw(st.lists(request(), min_size=min_size, max_size=max_size))
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else {"arrival_s": []})}
    return Records.of(observer=draw(st.sampled_from(["engine", "gateway", "client"])), **columns)


@st.composite
def request(draw: st.DrawFn) -> dict[str, float]:
    """One lifecycle: how far it came depends on its outcome."""
    outcome = draw(st.sampled_from(Outcome))
    step_s = st.floats(0, 100)
    arrival_s = draw(st.floats(0, 1000))
    enqueued_s = arrival_s + draw(step_s)
    scheduled_s = enqueued_s + draw(step_s)
    first_token_s = scheduled_s + draw(step_s)
    served = outcome == Outcome.OK
    prompt_tokens = draw(st.integers(1, 5000))
    preemptions = draw(st.integers(0, 3)) if served else 0
    return {
        "arrival_s": arrival_s,
        "enqueued_s": enqueued_s,
        "scheduled_s": scheduled_s if served else np.nan,
        "first_token_s": first_token_s if served else np.nan,
        "finish_s": first_token_s + draw(step_s) if served else enqueued_s + draw(step_s),
        "prompt_tokens": prompt_tokens,
        "output_tokens": draw(st.integers(1, 500)) if served else 0,
        "cached_tokens": draw(st.integers(0, prompt_tokens - 1)) if served else 0,
        "preemptions": preemptions,
        "swaps": draw(st.integers(0, preemptions)),
        "outcome": outcome,
        "slo_class": draw(st.integers(0, CLASSES - 1)),
        "replica": draw(st.integers(0, 3)) if served else -1,
    }
