"""The engine fed as requests come equals the naive one to the picosecond: every rule, requests that are aborted, tables that are made anew all the time."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from inferencegym.engine.invariants import check_arena
from inferencegym.engine.live import End, LiveEngine, News, Ticket
from inferencegym.engine.loop import FAR_PS
from tests.parity.cases import FEATURES, Case, any_features, random_case
from tests.parity.fast import build, setting_of
from tests.reference.naive_engine import run_naive
from tests.reference.plain import Record

#: A closed loop is its caller's affair here.
APART = {"closed_loop"}
RULES = [name for name in FEATURES if name not in APART]


def live_of(case: Case) -> LiveEngine:
    engine = build(case)
    # Drafts are drawn by row number, so the table must not be made anew; else it is as small as can be.
    enough = 2 + len(case.requests) + sum(len(q.keys) for q in case.requests)
    capacity = enough if case.config.speculation_depth else 2
    tenants = 1 + max(q.tenant for q in case.requests)
    return LiveEngine(engine.machine, engine.settings, seed=case.config.seed, tenants=tenants, capacity=capacity)


class Feeder:
    """Feeds a case to a live engine in one way or another, and keeps what it was told."""

    def __init__(self, case: Case, *, halves: bool, watch: bool) -> None:
        self.case, self.halves, self.watch = case, halves, watch
        self.engine = live_of(case)
        self.tickets: dict[int, Ticket] = {}
        self.given: dict[int, int] = {}
        self.ends: dict[int, End] = {}
        self.looks = 0

    def take(self, news: News, between: bool = False) -> None:
        for ticket, tokens, scheduled_ps in news.given:
            assert tokens > 0
            assert scheduled_ps >= 0
            assert self.watch
            self.given[ticket.owner] = self.given.get(ticket.owner, 0) + tokens
        for ticket, end in news.ended:
            assert ticket.owner not in self.ends, "a request ends once"
            assert ticket.tokens == self.given.get(ticket.owner, 0) <= end.output_tokens
            self.ends[ticket.owner] = end
        self.looks += 1
        if self.looks % 7:
            return
        broken = check_arena(self.engine.arena)
        if between:  # between the halves of an instant no step is in flight
            broken = [law for law in broken if not law.startswith("law 6")]
        assert broken == []

    def run(self, aborts: list[tuple[int, int]] = []) -> list[Record]:  # noqa: B006
        engine, requests, aborts = self.engine, list(self.case.requests), sorted(aborts)
        changes, config = list(self.case.changes), self.case.config
        while True:
            arrival_ps = requests[0].arrival_ps if requests else FAR_PS
            abort_ps = aborts[0][0] if aborts else FAR_PS
            change_ps = changes[0][0] if changes else FAR_PS
            at = min(arrival_ps, abort_ps, change_ps, engine.next_ps)
            if at >= FAR_PS or (at == change_ps and not requests and not aborts and engine.next_ps >= FAR_PS):
                return self.records()
            settled = False
            while changes and changes[0][0] == at:
                settled = True
                _, name, value = changes.pop(0)
                config = replace(config, **{name: value})
                if at > 0:
                    self.take(engine.advance(at - 1))
                engine.change(**setting_of(name, config, self.case.config))
            while aborts and aborts[0][0] == at:
                settled = True
                row = aborts.pop(0)[1]
                requests = [q for q in requests if q.row != row]
                if row in self.tickets:
                    self.take(engine.abort(self.tickets[row], at))
            if self.halves:
                self.take(engine.commit(at), between=True)
            while requests and requests[0].arrival_ps == at:
                q = requests.pop(0)
                self.tickets[q.row] = engine.submit(
                    at, q.prompt, q.target, owner=q.row, watch=self.watch, budget_tokens=q.budget, priority=q.priority,
                    tenant=q.tenant, slo_ttft_ps=q.slo_ttft_ps, keys=q.keys,
                )  # fmt: skip
            self.take(engine.plan(at) if self.halves or settled else engine.advance(at))

    def records(self) -> list[Record]:
        return [
            Record(
                row, end.replica, end.arrival_ps, end.scheduled_ps, end.first_ps, end.finish_ps, end.output_tokens,
                end.cached_tokens, end.preemptions, end.swaps, end.outcome,
            )
            for row, end in sorted(self.ends.items())
        ]  # fmt: skip


def check(case: Case, rng: random.Random, *, abort: bool = False) -> None:
    case.changes = sorted(case.changes, key=lambda change: change[0])
    case.requests = sorted(case.requests, key=lambda q: (q.arrival_ps, q.row))
    aborts = []
    if abort:
        plain = run_naive(case.requests, case.config, case.times, case.changes)
        for record in rng.sample(plain.records, k=min(len(plain.records), rng.choice([1, 3, len(plain.records)]))):
            # Anywhere in its life, at the instant it ends (a step's end) too; sometimes after it.
            at = rng.choice(
                [record.finish_ps, rng.randint(record.arrival_ps, record.finish_ps), record.finish_ps + 1000]
            )
            if at > record.arrival_ps:
                aborts.append((at, record.row))
    naive = run_naive(case.requests, case.config, case.times, case.changes, aborts=aborts)
    theirs = sorted(naive.records, key=lambda record: record.row)
    feeder = Feeder(case, halves=rng.random() < 0.7, watch=rng.random() < 0.7)
    for mine, other in zip(feeder.run(aborts), theirs, strict=True):
        assert mine == other, f"under {case.config}, aborts {aborts}"
    totals, itl = feeder.engine.totals(), feeder.engine.itl()
    # Prefill tokens are counted when they are planned; the naive engine counts them when they are done, so not those of the aborted.
    for name in (
        "steps",
        "busy_ps",
        "emitted_tokens",
        "hit_tokens",
        "preemptions",
        "swaps",
        "evicted_blocks",
        *["prefill_tokens"] * (not aborts),
    ):
        assert totals[name] == naive.totals[name], f"{name} under {case.config}, aborts {aborts}"
    assert (itl.counts.tolist(), itl.sum_ps) == (naive.itl_counts, naive.itl_sum_ps)
    assert check_arena(feeder.engine.arena) == []
    assert feeder.engine.alive == 0


@pytest.mark.parametrize("feature", ["none", *RULES])
@pytest.mark.parametrize("abort", [False, True])
def test_each_rule_alone(feature: str, abort: bool) -> None:
    for seed in range(5):
        rng = random.Random(f"live {feature} {seed}")
        check(random_case(rng, set() if feature == "none" else {feature}), rng, abort=abort)


@pytest.mark.parametrize("seed", range(4))
def test_rules_mixed(seed: int) -> None:
    for part in range(12):
        rng = random.Random(f"live {seed} {part}")
        check(random_case(rng, any_features(rng) - APART), rng, abort=part % 3 > 0)
