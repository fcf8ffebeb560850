"""Laws that hold for any workload and any settings, shown on the naive engine; parity hands them on to the fast one.

Times are whole picoseconds. Hypothesis draws the features of a case and a seed; tests/parity/cases.py makes the case.
"""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tests.parity.cases import FEATURES, Case, random_case
from tests.reference.naive_engine import Cluster, run_naive
from tests.reference.plain import NEVER_FITS, OK, REFUSED_LENGTH, NaiveResult, Request, gap_bin

FREE_FEATURES = sorted(set(FEATURES) - {"changes", "pool_changes", "order_changes"})


def cases(features: list[str] = list(FEATURES), always: frozenset[str] = frozenset()) -> st.SearchStrategy[Case]:  # noqa: B006
    """Cases with any mix of `features` and all of `always`."""
    return st.builds(
        lambda seed, chosen: random_case(random.Random(seed), chosen | always),
        st.integers(0, 1 << 32),
        st.sets(st.sampled_from(features)),
    )


def run(case: Case) -> NaiveResult:
    return run_naive(case.requests, case.config, case.times, case.changes)


@given(cases())
def test_every_request_ends_once(case: Case) -> None:
    assert sorted(r.row for r in run(case).records) == [q.row for q in case.requests]


@given(cases())
def test_kv_blocks_are_conserved_at_every_instant_and_all_free_at_the_end(case: Case) -> None:
    clusters: list[Cluster] = []

    def watch(cluster: Cluster, now: int) -> None:
        clusters[:] = [cluster]
        for replica in cluster.replicas:
            replica.pool.check()
            assert 0 <= replica.cpu_free <= case.config.cpu_blocks

    run_naive(case.requests, case.config, case.times, case.changes, watch)
    for replica in clusters[0].replicas:
        assert not replica.pool.held
        assert replica.pool.free == replica.pool.size
        assert replica.cpu_free == case.config.cpu_blocks


@given(cases())
def test_life_goes_forward(case: Case) -> None:
    for r in run(case).records:
        q = case.requests[r.row]
        if r.outcome == REFUSED_LENGTH:
            assert (r.finish_ps, r.scheduled_ps, r.first_token_ps, r.output) == (r.arrival_ps, -1, -1, 0)
            assert q.prompt >= case.config.max_model_len
        if r.outcome == NEVER_FITS:
            assert r.finish_ps >= r.arrival_ps
        if r.outcome == OK:
            assert r.arrival_ps <= r.scheduled_ps < r.first_token_ps <= r.finish_ps
            assert r.output == min(q.target, case.config.max_model_len - q.prompt)
            assert (r.first_token_ps == r.finish_ps) == (r.output == 1) or case.config.speculation_depth > 0
        assert r.swaps <= r.preemptions
        assert r.cached_tokens < q.prompt


@given(cases())
def test_closed_loop_rows_arrive_when_their_predecessor_has_ended_and_they_have_thought(case: Case) -> None:
    records = {r.row: r for r in run(case).records}
    for q in case.requests:
        due_ps = q.arrival_ps if q.after < 0 else records[q.after].finish_ps + q.think_ps
        assert records[q.row].arrival_ps == due_ps


@given(cases())
def test_clock_and_records_go_forward(case: Case) -> None:
    instants: list[int] = []
    result = run_naive(case.requests, case.config, case.times, case.changes, lambda _, now: instants.append(now))
    assert instants == sorted(instants)
    finishes = [r.finish_ps for r in result.records]
    assert finishes == sorted(finishes)


@given(cases())
def test_nobody_waits_beside_an_idle_replica(case: Case) -> None:
    """Work conserving: while a replica idles, only blocks on the wire can keep its queue waiting."""

    def watch(cluster: Cluster, now: int) -> None:
        for replica in cluster.replicas:
            if not replica.in_flight and len(replica.queue):
                assert not replica.running
                assert any(sender is replica for *_, sender in cluster.wire)

    run_naive(case.requests, case.config, case.times, case.changes, watch)


@given(cases())
def test_plans_keep_their_limits(case: Case) -> None:
    def watch(cluster: Cluster, now: int) -> None:
        config = cluster.config
        for replica in cluster.replicas:
            grants = replica.grants
            assert len({g.r.row for g in grants}) == len(grants)
            if config.scheduler in ("vllm", "sarathi") and replica.step_end_ps > now and not case.changes:
                assert sum(g.n for g in grants) <= config.max_num_batched_tokens
                assert len(replica.running) <= config.max_num_seqs
            for g in grants:
                held = len(g.r.blocks) * config.block_size
                assert config.scheduler == "llamacpp" or g.r.padding or held >= g.past + g.n

    run_naive(case.requests, case.config, case.times, case.changes, watch)


@given(cases())
def test_gaps_and_tokens_add_up(case: Case) -> None:
    result = run(case)
    emitted = sum(r.output for r in result.records)
    assert result.totals["emitted_tokens"] == emitted
    spans = sum(_last_token_ps(case, r.row, result) for r in result.records)
    assert result.itl_sum_ps == spans or any(r.outcome == NEVER_FITS and r.output for r in result.records)
    gaps, firsts = sum(result.itl_counts), sum(r.first_token_ps >= 0 for r in result.records)
    assert gaps <= emitted - firsts
    if result.totals["drafted"] == 0:
        assert gaps == emitted - firsts


def _last_token_ps(case: Case, row: int, result: NaiveResult) -> int:
    """From first to last token; a request that ended well ends with its last token."""
    (record,) = (r for r in result.records if r.row == row)
    return record.finish_ps - record.first_token_ps if record.outcome == OK else 0


@given(cases(always=frozenset({"pool_changes"})))
def test_first_token_is_kept_through_preemptions(case: Case) -> None:
    first: dict[int, int] = {}

    def watch(cluster: Cluster, now: int) -> None:
        for replica in cluster.replicas:
            for r in [*replica.running, *replica.queue.members()]:
                if r.first_token_ps >= 0:
                    assert first.setdefault(r.row, r.first_token_ps) == r.first_token_ps

    result = run_naive(case.requests, case.config, case.times, case.changes, watch)
    for record in result.records:
        assert first.get(record.row, record.first_token_ps) == record.first_token_ps


@given(cases(features=sorted({"sarathi", "threshold", "speculation", "prefix", "swap"})))
def test_first_come_first_served_is_scheduled_in_order_of_arrival(case: Case) -> None:
    """One replica, one queue: who came later is not scheduled earlier."""
    served = [r for r in run(case).records if r.scheduled_ps >= 0]
    served.sort(key=lambda r: (r.arrival_ps, r.row))
    scheduled = [r.scheduled_ps for r in served]
    assert scheduled == sorted(scheduled)


@given(cases(features=FREE_FEATURES), st.integers(1, 10**12))
def test_a_later_start_moves_everything_by_as_much(case: Case, later_ps: int) -> None:
    moved = Case([_later(q, later_ps) for q in case.requests], case.config, case.times)
    here, there = run(case), run(moved)
    assert here.itl_counts == there.itl_counts
    assert here.totals == there.totals
    for one, two in zip(here.records, there.records, strict=True):
        assert (one.row, one.finish_ps + later_ps) == (two.row, two.finish_ps)


def _later(q: Request, later_ps: int) -> Request:
    return Request(**{**vars(q), "arrival_ps": q.arrival_ps + later_ps})


@given(st.integers(0, 1 << 60))
def test_gap_bins_are_narrow_and_in_order(gap_ps: int) -> None:
    """Section 12, said backwards: the bounds of the bin that a gap falls into hold it."""
    b = gap_bin(gap_ps)
    assert 0 <= b < 2048
    if 1 << 20 <= gap_ps < 1 << 52:
        low = (64 + b % 64) << (14 + b // 64)
        assert low <= gap_ps < low + (1 << (14 + b // 64))
    elif gap_ps < 1 << 20:
        assert b == 0
    else:
        assert b == 2047
