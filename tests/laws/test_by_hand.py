"""Runs small enough to be worked out on paper: each rule once, with the sums beside it.

A step costs 100 ps for each granted token and 7 ps for each request that emits; blocks hold 4 tokens.
"""

from __future__ import annotations

from dataclasses import replace

from tests.reference.naive_engine import run_naive
from tests.reference.plain import NEVER_FITS, OK, Config, NaiveResult, Record, Request, Times

TIMES = Times(
    lin_ps=[0, 100],
    head_ps=[0, 7],
    dec_ps=[0, 0],
    draft_ps=[0, 0],
    kv_ps=0,
    pre_ps=0,
    swap_ps_per_block=1000,
    swap_fixed_ps=10_000,
    link_ps_per_token=50,
    link_fixed_ps=5,
    layers=2,
    chunk=lambda n, past: 0,
)
PLAIN = Config(block_size=4, blocks=100, max_model_len=64, prefix_caching=False)


def run(requests: list[Request], config: Config = PLAIN, times: Times = TIMES) -> tuple[NaiveResult, dict[int, Record]]:
    result = run_naive(requests, config, times)
    return result, {r.row: r for r in result.records}


def test_one_request() -> None:
    result, records = run([Request(row=0, arrival_ps=50, prompt=10, target=3)])
    r = records[0]
    assert (r.scheduled_ps, r.first_token_ps) == (50, 50 + 10 * 100 + 7)
    assert r.finish_ps == r.first_token_ps + 2 * (100 + 7)
    assert (result.steps, sum(result.itl_counts), result.itl_sum_ps) == (3, 2, 214)


def test_chunks_share_the_budget_with_a_decode() -> None:
    """Row 1 gets what the decode of row 0 leaves: 7 of 8 tokens, then its last 3."""
    config = replace(PLAIN, max_num_batched_tokens=8)
    _, records = run([Request(0, 0, prompt=4, target=9), Request(1, 1, prompt=10, target=1)], config)
    first = 4 * 100 + 7
    assert records[0].first_token_ps == first
    assert records[1].scheduled_ps == first
    assert records[1].first_token_ps == first + (8 * 100 + 7) + (4 * 100 + 2 * 7)


def test_the_newest_is_preempted_and_keeps_its_first_token() -> None:
    """Two prompts of one block in a pool of three blocks: both need a second block for their fifth token."""
    config = replace(PLAIN, blocks=3)
    result, records = run([Request(0, 0, prompt=4, target=4), Request(1, 0, prompt=4, target=4)], config)
    both = 8 * 100 + 2 * 7
    alone = 100 + 7
    assert [records[0].preemptions, records[1].preemptions] == [0, 1]
    assert records[1].first_token_ps == both
    assert records[0].finish_ps == both + 3 * alone
    # Row 1 starts again with 5 known tokens when row 0 has left; that step emits its second token.
    assert records[1].finish_ps == records[0].finish_ps + (5 * 100 + 7) + 2 * alone
    longest = records[0].finish_ps + (5 * 100 + 7) - both
    assert result.itl_sum_ps == 3 * alone + longest + 2 * alone


def test_swap_brings_the_kv_back() -> None:
    config = replace(PLAIN, blocks=3, cpu_blocks=1, preemption="swap")
    _, records = run([Request(0, 0, prompt=4, target=4), Request(1, 0, prompt=4, target=4)], config)
    both, alone, swap = 8 * 100 + 2 * 7, 100 + 7, 10_000 + 1000
    assert (records[1].preemptions, records[1].swaps) == (1, 1)
    assert records[0].finish_ps == both + swap + 3 * alone
    assert records[1].finish_ps == records[0].finish_ps + swap + 3 * alone


def test_what_fits_no_pool_is_refused_and_the_next_goes_on() -> None:
    config = replace(PLAIN, blocks=2)
    _, records = run([Request(0, 0, prompt=9, target=1), Request(1, 0, prompt=3, target=1)], config)
    assert (records[0].outcome, records[0].finish_ps) == (NEVER_FITS, 0)
    assert (records[1].outcome, records[1].finish_ps) == (OK, 3 * 100 + 7)


def test_a_prefix_is_computed_once() -> None:
    """Row 1 shares two blocks; row 2 is all hit but for its last block, because one token must be computed."""
    config = replace(PLAIN, prefix_caching=True)
    requests = [
        Request(0, 0, prompt=9, target=1, keys=(11, 12)),
        Request(1, 2000, prompt=10, target=1, keys=(11, 12)),
        Request(2, 4000, prompt=8, target=1, keys=(11, 12)),
    ]
    _, records = run(requests, config)
    assert [records[i].cached_tokens for i in range(3)] == [0, 8, 4]
    assert records[1].finish_ps == 2000 + 2 * 100 + 7
    assert records[2].finish_ps == 4000 + 4 * 100 + 7


def test_certain_drafts_come_together_and_count_one_gap() -> None:
    """Depth 3, all accepted: four tokens a step, the last step cut to what is left."""
    config = replace(PLAIN, speculation_depth=3, acceptance=((1.0,),))
    result, records = run([Request(0, 0, prompt=4, target=8)], config)
    assert records[0].finish_ps == (4 * 100 + 7) + 2 * (4 * 100 + 7)
    assert sum(result.itl_counts) == 2


def test_priority_goes_before_arrival() -> None:
    config = replace(PLAIN, order="priority", max_num_seqs=1)
    requests = [Request(0, 0, 4, 1), Request(1, 1, 4, 1, priority=5), Request(2, 2, 4, 1, priority=1)]
    _, records = run(requests, config)
    assert sorted(records, key=lambda row: records[row].finish_ps) == [0, 2, 1]


def test_kv_travels_while_the_rest_is_prefilled() -> None:
    """Sending takes 4 * 50 ps, two layers of 100: one hides behind the step of 407 ps, so the last one is left."""
    config = replace(PLAIN, replicas=2, prefill_replicas=1)
    result, records = run([Request(0, 0, prompt=4, target=2)], config)
    prefilled = 4 * 100 + 7
    ready = prefilled + 5 + max(0, 200 - prefilled // 2) + 200 // 2
    assert records[0].first_token_ps == prefilled
    assert (records[0].finish_ps, records[0].replica) == (ready + 107, 1)
    assert result.itl_sum_ps == ready + 107 - prefilled


def test_static_batch_pads_until_its_last() -> None:
    """Both seats decode three times, row 0 as padding from its second token on; row 2 waits for the batch."""
    config = replace(PLAIN, scheduler="static", max_num_seqs=2)
    _, records = run([Request(0, 0, 4, 2), Request(1, 0, 4, 4), Request(2, 0, 4, 1)], config)
    prefilled, decode = 8 * 100 + 2 * 7, 2 * 100 + 2 * 7
    assert records[0].finish_ps == prefilled + decode
    assert records[1].finish_ps == prefilled + 3 * decode
    assert records[2].scheduled_ps == records[1].finish_ps


def test_orca_admits_whole_prompts_before_decodes() -> None:
    config = replace(PLAIN, scheduler="orca", max_num_batched_tokens=64)
    _, records = run([Request(0, 0, 4, 3), Request(1, 1, 6, 1)], config)
    assert records[1].scheduled_ps == 407
    assert records[1].finish_ps == 407 + 7 * 100 + 2 * 7


def test_llamacpp_takes_the_slot_that_knows_the_prompt() -> None:
    config = replace(PLAIN, scheduler="llamacpp", max_num_seqs=2, prefix_caching=True)
    requests = [
        Request(0, 0, prompt=9, target=1, keys=(11, 12)),
        Request(1, 5000, prompt=9, target=1, keys=(21, 22)),
        Request(2, 10_000, prompt=9, target=1, keys=(11, 12)),
        Request(3, 15_000, prompt=9, target=1, keys=(21, 22)),
    ]
    _, records = run(requests, config)
    assert [records[i].cached_tokens for i in range(4)] == [0, 0, 8, 8]
