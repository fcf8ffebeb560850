"""Rules that show only where two of them meet, and gaps that random cases never have: what few random cases would notice.

Each was found by putting a misreading into the naive engine and looking which parity cases noticed it. Times are whole
picoseconds; by hand, a step costs 100 ps for each granted token and 7 ps for each request that emits.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.parity.cases import Case, Chunk, random_case
from tests.parity.fast import build, run_fast
from tests.parity.test_p0 import check
from tests.reference.naive_engine import run_naive
from tests.reference.plain import Config, Record, Request, Times

TIMES = Times(
    lin_ps=[0, 100],
    head_ps=[0, 7],
    dec_ps=[0, 0],
    draft_ps=[0, 0],
    kv_ps=0,
    pre_ps=0,
    swap_ps_per_block=0,
    swap_fixed_ps=0,
    link_ps_per_token=0,
    link_fixed_ps=0,
    layers=1,
    chunk=Chunk(0.0, 0.0, 0.0, 0.0, 0.0),
)
PLAIN = Config(
    block_size=4, blocks=100, max_model_len=64, prefix_caching=False, vtc_in=(1024, 1024), vtc_out=(2048, 2048)
)


def agreed(case: Case) -> dict[int, Record]:
    """The records, by row, on which both engines agree."""
    check(case)
    return {r.row: r for r in run_fast(case).records}


def test_a_victim_gives_its_tokens_to_those_behind_it() -> None:
    """Budget 2 from the third step on: row 0 gets one token, row 1 needs its block, so row 2 gets that token instead."""
    config = replace(PLAIN, order="sjf", victims="rank", blocks=5)
    requests = [
        Request(0, 0, prompt=6, target=3),
        Request(1, 1, prompt=4, target=2),  # its second token starts a second block
        Request(2, 1, prompt=5, target=2),
    ]
    records = agreed(Case(requests, config, TIMES, [(1000, "max_num_batched_tokens", 2)]))
    first, second = 6 * 100 + 7, (1 + 4 + 5) * 100 + 3 * 7
    third = 2 * 100 + 2 * 7
    assert [records[row].preemptions for row in range(3)] == [1, 0, 0]
    assert records[1].finish_ps == records[2].finish_ps == first + second + third
    # Row 0 computes its 6 + 2 known tokens again, two a step.
    assert records[0].finish_ps == first + second + third + 4 * 200 + 7


def test_a_tenant_pays_for_every_token_of_a_speculative_step() -> None:
    """One seat. Row 0 costs tenant 0 its 4 + 2 * 9; tenant 1, lifted to 4, has paid 4 + 8 + 2 after row 1: row 3 before row 2."""
    config = replace(PLAIN, order="vtc", max_num_seqs=1, speculation_depth=3, acceptance=((1.0,),))
    requests = [
        Request(0, 0, prompt=4, target=9, tenant=0),
        Request(1, 1, prompt=8, target=1, tenant=1),
        Request(2, 1, prompt=4, target=1, tenant=0),
        Request(3, 1, prompt=4, target=1, tenant=1),
    ]
    records = agreed(Case(requests, config, TIMES))
    assert sorted(records, key=lambda row: records[row].finish_ps) == [0, 1, 3, 2]


@pytest.mark.parametrize(
    "mix", ["vtc speculation", "vtc speculation disaggregated", "sarathi threshold rank_victims sjf speculation"]
)
def test_rules_that_meet(mix: str) -> None:
    for seed in range(30):
        check(random_case(random.Random(f"{mix} {seed}"), set(mix.split())))


@pytest.mark.parametrize(
    "gap_ps", [1, (1 << 20) - 1, 1 << 20, (1 << 21) - 1, (1 << 51) - 1, 1 << 51, (1 << 52) - 1, 1 << 52, 1 << 60]
)
def test_gap_at_the_bounds_of_the_histogram(gap_ps: int) -> None:
    """Section 12, up to thirteen days: records in seconds cannot be compared there, bins can."""
    case = Case([Request(0, 0, prompt=1, target=2)], PLAIN, replace(TIMES, lin_ps=[0, gap_ps], head_ps=[0, 0]))
    naive = run_naive(case.requests, case.config, case.times)
    engine = build(case)
    engine.run()
    assert engine.itl().counts.tolist() == naive.itl_counts
    assert (engine.itl().sum_ps, naive.itl_sum_ps) == (gap_ps, gap_ps)
