"""Which mix of features leads into which corner of the rules, so that no corner goes untested by chance.

Corners are the names that the naive engine counts in `NaiveResult.seen` or `totals`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from tests.parity.cases import Case, random_case
from tests.reference.naive_engine import run_naive
from tests.reference.plain import NaiveResult

CORNERS = {
    "refused length": "orca",
    "never fits": "pool_changes prefix swap",
    "head blocked": "static closed_loop",
    "whole prompt waits": "whole_prompts",
    "budget out": "llamacpp prefix changes",
    "threshold": "threshold sarathi",
    "padding": "static closed_loop",
    "preemptions": "order_changes crowded",
    "self-preemption": "speculation sarathi",
    "plan made again": "threshold sarathi",
    "void grant": "threshold sarathi crowded",
    "returned tokens used": "threshold sarathi crowded speculation",
    "published ahead": "first_chunk_only prefix rank_victims sjf threshold crowded",
    "swapped in": "swap speculation",
    "cpu tier full": "swap prefix",
    "auto swaps": "auto prefix",
    "private hit swapped out": "auto prefix crowded",
    "auto recomputes": "auto prefix",
    "prefix hit": "prefix",
    "private hit": "prefix watermark",
    "shared at publish": "prefix",
    "evicted_blocks": "prefix",
    "prefix routed": "prefix_router",
    "debt paid by eviction": "pool_changes prefix",
    "debt paid by preemption": "pool_changes prefix swap",
    "watermark block": "watermark prefix",
    "vtc lift": "vtc closed_loop",
    "vtc lift to the last that left": "vtc",
    "transfer": "disaggregated swap prefix",
    "link busy": "disaggregated least_loaded",
    "accepted": "speculation",
}
"""Corner: the features that lead there."""


def cases_in(corner: str, how_many: int, tries: int = 400) -> Iterator[tuple[int, Case, NaiveResult]]:
    """(seed, case, the naive engine's answer) of the first cases that go through a corner."""
    features = set(CORNERS[corner].split())
    for seed in range(tries):
        case = random_case(random.Random(f"{corner} {seed}"), features)
        answer = run_naive(case.requests, case.config, case.times, case.changes)
        if answer.seen[corner] + answer.totals[corner] > 0:
            yield seed, case, answer
            how_many -= 1
        if how_many == 0:
            return
