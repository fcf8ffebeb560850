"""The slow, obvious engine: docs/scheduling.md word by word, to hold the fast one to (parity P0).

It shares no code with the package and no idea with the fast engine: objects, lists and loops. Times are in picoseconds,
lengths in tokens.
Where the rules leave a choice, the reading taken stands in a comment that starts with SPEC.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from tests.reference.plain import (
    ABORTED,
    NEVER_FITS,
    OK,
    REFUSED_LENGTH,
    Change,
    Config,
    NaiveResult,
    Record,
    Request,
    Times,
    gap_bin,
)
from tests.reference.replica import Replica
from tests.reference.state import Live

Watch = Callable[["Cluster", int], None]


def run_naive(
    requests: Sequence[Request],
    config: Config,
    times: Times,
    changes: Iterable[Change] = (),
    watch: Watch | None = None,
    aborts: Iterable[tuple[int, int]] = (),
) -> NaiveResult:
    """Serve all requests. `watch(cluster, now_ps)` is called when an instant is over; `aborts` are (when, row)."""
    cluster = Cluster(requests, config, times, changes, aborts)
    while (t := cluster.next_instant()) is not None:
        cluster.instant(t)
        if watch is not None:
            watch(cluster, t)
    cluster.result.totals["evicted_blocks"] = sum(r.pool.evicted for r in cluster.replicas)
    return cluster.result


class Cluster:
    """Replicas on one clock (section 3), the router and the wire between pools (section 11)."""

    def __init__(
        self,
        requests: Sequence[Request],
        config: Config,
        times: Times,
        changes: Iterable[Change] = (),
        aborts: Iterable[tuple[int, int]] = (),
    ) -> None:
        self.config = config
        self.times = times
        self.result = NaiveResult()
        self.changes = sorted(changes, key=lambda change: change[0])
        self.aborts = sorted(aborts)
        self.requests = {q.row: q for q in requests}
        self.followers: dict[int, list[Request]] = {}
        self.due: list[tuple[int, int]] = []  # a heap of (arrival_ps, row)
        for q in requests:
            if q.after >= 0:
                self.followers.setdefault(q.after, []).append(q)
            else:
                heapq.heappush(self.due, (q.arrival_ps, q.row))
        self.wire: list[tuple[int, int, Live, Replica]] = []  # (ready_ps, row, request, sender)
        self.replicas = [Replica(i, config, times, self) for i in range(config.replicas)]
        self.turn = {"arrivals": 0, "decode": 0}

    # --- time ---

    def next_instant(self) -> int | None:
        """When anything happens next."""
        ends = [r.step_end_ps for r in self.replicas if r.in_flight]
        ready = [item[0] for item in self.wire]
        arrivals = [self.due[0][0]] if self.due else []
        aborts = [self.aborts[0][0]] if self.aborts else []
        return min([*ends, *ready, *arrivals, *aborts], default=None)

    def instant(self, t: int) -> None:
        """All that happens at `t`, in the order of section 3."""
        self._apply_changes(t)
        while self.aborts and self.aborts[0][0] <= t:
            self._abort(self.aborts.pop(0)[1], t)
        for replica in self.replicas:
            if replica.in_flight and replica.step_end_ps == t:
                replica.commit(t)
        for item in sorted((i for i in self.wire if i[0] <= t), key=lambda i: i[:2]):
            self.wire.remove(item)
            self._deliver(item[2], item[3])
        while self.due and self.due[0][0] <= t:
            arrival_ps, row = heapq.heappop(self.due)
            self._arrive(self.requests[row], arrival_ps)
        for replica in self.replicas:
            if not replica.in_flight and replica.load:
                replica.plan(t)

    def _apply_changes(self, t: int) -> None:
        while self.changes and self.changes[0][0] <= t:
            _, name, value = self.changes.pop(0)
            self.config = replace(self.config, **{name: value})
            for replica in self.replicas:
                replica.reconfigure(self.config)

    def _abort(self, row: int, now: int) -> None:
        """Section 14. Who has not arrived never will; who has ended is left alone."""
        self.due = [item for item in self.due if item[1] != row]
        heapq.heapify(self.due)
        for item in self.wire:
            if item[1] == row:
                self.wire.remove(item)
                item[3].release(item[2])
                self.ended(item[2], now, ABORTED, item[3].index)
                return
        for replica in self.replicas:
            if replica.abort(row, now):
                return

    # --- arrivals and the router ---

    def _arrive(self, q: Request, arrival_ps: int) -> None:
        room = self.config.max_model_len - q.prompt
        r = Live(q, arrival_ps, min(q.target, room), min(q.budget, room) if q.budget > 0 else room)
        if room <= 0:
            self.ended(r, arrival_ps, REFUSED_LENGTH, replica=-1)
            return
        self.result.totals["arrived"] += 1
        self._route(r, self._arrival_pool(), self.config.router, "arrivals").arrive(r)

    def _arrival_pool(self) -> list[Replica]:
        p = self.config.prefill_replicas
        return self.replicas[:p] if p > 0 else self.replicas

    def _deliver(self, r: Live, sender: Replica) -> None:
        sender.release(r)
        pool = self.replicas[self.config.prefill_replicas :]
        rule = "round_robin" if self.config.router == "round_robin" else "least_loaded"
        self._route(r, pool, rule, "decode").deliver(r)

    def _route(self, r: Live, pool: list[Replica], rule: str, turn: str) -> Replica:
        if rule == "round_robin":
            self.turn[turn] += 1
            return pool[(self.turn[turn] - 1) % len(pool)]
        if rule == "least_loaded":
            return min(pool, key=lambda x: (x.load, x.index))
        least = min(x.load for x in pool)
        near = [x for x in pool if x.load <= least + self.config.affinity_slack]
        best = min(near, key=lambda x: (-x.leading_hits(r), x.load, x.index))
        self.result.seen["prefix routed"] += best.leading_hits(r) > 0
        return best

    def send(self, r: Live, sender: Replica, now: int) -> None:
        """Put the KV of a request that just emitted its first token on its sender's link."""
        times = self.times
        begin = max(now, sender.link_free_ps)
        self.result.seen["link busy"] += begin > now
        wire = times.link_ps_per_token * r.prompt
        sender.link_free_ps = begin + wire
        hidden = sender.step_ps * (times.layers - 1) // times.layers
        ready = begin + times.link_fixed_ps + max(0, wire - hidden) + wire // times.layers
        self.wire.append((ready, r.row, r, sender))
        self.result.seen["transfer"] += 1

    # --- what is written down ---

    def ended(self, r: Live, now: int, outcome: int, replica: int) -> None:
        """Write the record, start the think time of whoever waits for it."""
        record = Record(
            row=r.row,
            replica=replica,
            arrival_ps=r.arrival_ps,
            scheduled_ps=r.scheduled_ps,
            first_token_ps=r.first_token_ps,
            finish_ps=now,
            output=r.generated,
            cached_tokens=r.cached_tokens,
            preemptions=r.preemptions,
            swaps=r.swaps,
            outcome=outcome,
        )
        self.result.records.append(record)
        if replica >= 0:  # totals are sums over replicas: a refusal by length reached none
            self.result.totals[{OK: "finished", ABORTED: "aborted"}.get(outcome, "refused")] += 1
        self.result.seen["never fits"] += outcome == NEVER_FITS
        self.result.seen["refused length"] += outcome == REFUSED_LENGTH
        for q in self.followers.get(r.row, []):
            heapq.heappush(self.due, (now + q.think_ps, q.row))

    def gap(self, gap_ps: int) -> None:
        """One inter-token gap."""
        self.result.itl_counts[gap_bin(gap_ps)] += 1
        self.result.itl_sum_ps += gap_ps
