"""The paging machine in plain Python, slow and obvious: lists, sums and sorts over all requests at every look. The kernel is held to it.

Times are ticks, memory is blocks, text is tokens. What is decided here is explained in docs/environments/pagedkv.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np

from inferencegym.decision.paging import COLUMNS, TREND_TICKS
from inferencegym.engine.paging.rules import CEILING, FLOOR, Rules

FREE, VIP = 0, 1
UNSEEN, WAITING, LOADING, ACTIVE, IDLE_GPU, IDLE_CPU, GONE, REJECTED, TURNED_AWAY = range(9)


@dataclass
class Request:
    id: int
    tick: int
    tier: int
    parent: int
    prompt: int
    output: int
    cached: int
    state: int = UNSEEN
    produced: int = 0
    context: int = 0  # tokens whose KV it holds, wherever
    since: int = 0  # tick at which it began to wait, fell idle, or went to the CPU
    waited: int = 0
    ready: int = 0
    arrives_cpu: int = 0  # tick at which its KV has reached the CPU
    missed: bool = False
    admitted: bool = False
    swapped: bool = False


class NaivePaging:
    def __init__(self, rules: Rules, traffic: np.ndarray) -> None:
        self.rules = rules
        self.requests = [
            Request(i, *(int(row[name]) for name in ("tick", "tier", "parent", "prompt", "output", "cached")))
            for i, row in enumerate(traffic)
        ]
        self.tick = self.slot = 0
        self.queues: list[list[Request]] = [[], []]
        self.transfers: list[tuple[int, int, int]] = []  # done at, GPU blocks and CPU blocks that it frees then
        self.gpu_used = self.cpu_used = 0
        self.link = self.lane = 0  # blocks moved and tokens computed, had they been busy from tick 0 on
        self.used_at = [0]  # GPU use at the end of each tick
        self.crashed = False
        self.reward_terms = [0.0] * 5
        self.terminated = self.truncated = False
        # the outcome's sums
        self.done_weight = self.found = 0
        self.efficiency = 0.0
        self.all_weight = sum(r.output * self.weight(r) for r in self.requests)
        self.all_returning = sum(r.cached for r in self.requests)
        # news since the last decision
        self.progress = self.lost = 0
        self.counts = dict.fromkeys(
            ("arrived", "completed", "in_sla", "rejected", "turned_away", "sla_missed", "evicted", "swapped_out",
             "swapped_in", "shredded", "preempt_swapped", "collected", "illegal", "tokens", "hits", "returns"), 0,
        )  # fmt: skip
        self.arrive()

    # --- what is where ---

    def weight(self, r: Request) -> int:
        return self.rules.vip_weight if r.tier == VIP else 1

    def blocks(self, tokens: int) -> int:
        return -(-tokens // self.rules.block_tokens)

    def where(self, state: int, tier: int | None = None) -> list[Request]:
        return [r for r in self.requests if r.state == state and (tier is None or r.tier == tier)]

    def largest(self, state: int, tier: int) -> Request | None:
        return max(self.where(state, tier), key=lambda r: (r.context, -r.id), default=None)

    def oldest(self, tier: int) -> Request | None:
        return min(self.where(IDLE_GPU, tier), key=lambda r: (r.since, r.id), default=None)

    def gpu_free(self) -> int:
        return self.rules.gpu_blocks - self.gpu_used

    def cpu_free(self) -> int:
        return self.rules.cpu_blocks - self.cpu_used

    def limit(self, tier: int) -> int:
        return (self.rules.free_sla_ticks, self.rules.vip_sla_ticks)[tier]

    def cache_of(self, r: Request) -> Request | None:
        """The idle cache a returning user may find."""
        if r.swapped or r.parent < 0 or self.requests[r.parent].state not in (IDLE_GPU, IDLE_CPU):
            return None
        return self.requests[r.parent]

    def need(self, r: Request) -> int:
        """GPU blocks that admitting takes."""
        if r.swapped:
            return self.blocks(r.context)
        total = self.blocks(r.prompt + r.produced)
        cache = self.cache_of(r)
        return total - self.blocks(cache.context) if cache and cache.state == IDLE_GPU else total

    # --- decisions ---

    def mask(self) -> list[int]:
        link_free = len(self.transfers) < self.rules.transfers
        mask = [0] * 18
        for tier in (FREE, VIP):
            large, old, active = self.largest(IDLE_GPU, tier), self.oldest(tier), self.largest(ACTIVE, tier)
            mask[0 + tier] = mask[2 + tier] = large is not None
            mask[4 + tier] = large is not None and link_free and self.blocks(large.context) <= self.cpu_free()
            mask[6 + tier] = old is not None and link_free and self.blocks(old.context) <= self.cpu_free()
            mask[8 + tier] = self.can_admit(tier)
            mask[10 + tier] = len(self.queues[tier]) > 0
            mask[12 + tier] = active is not None
            mask[14 + tier] = active is not None and link_free and self.blocks(active.context) <= self.cpu_free()
        mask[16] = len(self.garbage()) > 0
        mask[17] = 1
        return [int(m) for m in mask]

    def can_admit(self, tier: int) -> bool:
        if not self.queues[tier]:
            return False
        first = self.queues[tier][0]
        cache = self.cache_of(first)
        moves = first.swapped or (cache is not None and cache.state == IDLE_CPU)
        if moves and len(self.transfers) >= self.rules.transfers:
            return False
        return self.need(first) <= self.gpu_free()

    def garbage(self) -> list[Request]:
        return [
            r
            for r in self.where(IDLE_CPU, FREE)
            if self.tick - r.since > self.rules.garbage_ticks and r.arrives_cpu <= self.tick
        ]

    def move(self, blocks: int, gpu_frees: int, cpu_frees: int) -> int:
        """Put a transfer into the link's queue; the tick at which it has ended."""
        rate = self.rules.link_blocks_per_tick
        self.link = max(self.link, self.tick * rate) + blocks
        done = max(self.tick + 1, -(-self.link // rate))
        self.transfers.append((done, gpu_frees, cpu_frees))
        return done

    def prefill(self, tokens: int) -> int:
        rate = self.rules.prefill_tokens_per_tick
        self.lane = max(self.lane, self.tick * rate) + tokens
        return max(self.tick + 1, -(-self.lane // rate))

    def step(self, action: int) -> None:
        assert not self.terminated
        assert not self.truncated
        before = self.done_weight, self.efficiency, self.found
        self.progress = self.lost = 0
        if not 0 <= action < 18 or not self.mask()[action]:
            self.counts["illegal"] += 1
        else:
            self.act(action)
        self.slot += 1
        if self.slot == self.rules.decisions_per_tick:
            self.slot = 0
            self.pass_tick()
        self.pay(before)

    def act(self, action: int) -> None:
        kind, tier = divmod(action, 2)
        if action == 17:
            return
        if action == 16:
            for r in self.garbage():
                r.state = GONE
                self.cpu_used -= self.blocks(r.context)
                self.counts["collected"] += 1
        elif kind < 4:
            victim = self.largest(IDLE_GPU, tier) if kind in (0, 2) else self.oldest(tier)
            assert victim is not None
            size = self.blocks(victim.context)
            if kind < 2:
                victim.state = GONE
                self.gpu_used -= size
                self.counts["evicted"] += 1
            else:
                victim.state = IDLE_CPU
                victim.since = self.tick
                self.cpu_used += size
                victim.arrives_cpu = self.move(size, size, 0)
                self.counts["swapped_out"] += 1
        elif kind == 4:
            self.admit(tier)
        elif kind == 5:
            self.reject(tier)
        else:
            self.preempt(tier, swap=kind == 7)

    def leave_queue(self, tier: int) -> Request:
        r = self.queues[tier].pop(0)
        r.waited += self.tick - r.since
        return r

    def miss(self, r: Request) -> None:
        """It waited too long: what was earned with it so far is given back."""
        r.missed = True
        self.progress -= r.produced * self.weight(r)
        self.lost += 1
        self.counts["sla_missed"] += 1

    def admit(self, tier: int) -> None:
        need = self.need(self.queues[tier][0])
        r = self.leave_queue(tier)
        if not r.missed and 0 < self.limit(tier) < r.waited:
            self.miss(r)
        self.gpu_used += need
        if r.swapped:
            r.swapped = False
            r.ready = self.move(need, 0, need)
            self.counts["swapped_in"] += 1
        else:
            text = r.prompt + r.produced
            cache = self.cache_of(r)
            r.ready = self.prefill(text - (cache.context if cache else 0))
            if cache:
                if cache.state == IDLE_CPU:
                    size = self.blocks(cache.context)
                    r.ready = max(r.ready, self.move(size, 0, size))
                    self.counts["swapped_in"] += 1
                cache.state = GONE
                if not r.admitted:
                    self.found += cache.context
                    self.counts["hits"] += 1
            r.context = text
        r.admitted = True
        r.state = LOADING

    def reject(self, tier: int) -> None:
        room = self.can_admit(tier)
        r = self.leave_queue(tier)
        r.state = REJECTED
        if r.swapped:
            self.cpu_used -= self.blocks(r.context)
            r.swapped = False
        if not r.missed:
            self.progress -= r.produced * self.weight(r)
            self.lost += 1
        self.lost += room
        self.counts["rejected"] += 1

    def preempt(self, tier: int, swap: bool) -> None:
        r = self.largest(ACTIVE, tier)
        assert r is not None
        size = self.blocks(r.context)
        r.state = WAITING
        r.since = self.tick
        if swap:
            r.swapped = True
            self.cpu_used += size
            self.move(size, size, 0)
            self.counts["preempt_swapped"] += 1
        else:
            self.gpu_used -= size
            r.context = 0
            self.counts["shredded"] += 1
        self.queues[tier].append(r)
        self.queues[tier].sort(key=lambda q: q.id)

    # --- time ---

    def pass_tick(self) -> None:
        self.tick += 1
        while self.transfers and self.transfers[0][0] <= self.tick:
            _, gpu, cpu = self.transfers.pop(0)
            self.gpu_used -= gpu
            self.cpu_used -= cpu
        for r in self.where(LOADING):
            if r.ready == self.tick:
                r.state = ACTIVE
        growth = sum(r.context % self.rules.block_tokens == 0 for r in self.where(ACTIVE))
        if growth > self.gpu_free():
            self.crashed = self.terminated = True
            return
        self.gpu_used += growth
        for r in self.where(ACTIVE):
            r.context += 1
            r.produced += 1
            self.counts["tokens"] += 1
            if not r.missed:
                self.progress += self.weight(r)
            if r.produced == r.output:
                r.state = IDLE_GPU
                r.since = self.tick
                self.efficiency += r.output / (self.tick - r.tick)
                self.counts["completed"] += 1
                if not r.missed:
                    self.done_weight += r.output * self.weight(r)
                    self.counts["in_sla"] += 1
        self.arrive()
        for r in self.where(WAITING):
            limit = self.limit(r.tier)
            if not r.missed and not r.admitted and 0 < limit < self.tick - r.tick:
                self.miss(r)
        self.used_at.append(self.gpu_used)
        self.truncated = self.tick == self.rules.horizon_ticks

    def arrive(self) -> None:
        for r in self.requests:
            if r.tick == self.tick and r.state == UNSEEN:
                self.counts["arrived"] += 1
                self.counts["returns"] += r.parent >= 0
                seats = (self.rules.free_queue, self.rules.vip_queue)[r.tier]
                if len(self.queues[r.tier]) >= seats:
                    r.state = TURNED_AWAY
                    self.lost += 1
                    self.counts["turned_away"] += 1
                else:
                    r.state = WAITING
                    r.since = self.tick
                    self.queues[r.tier].append(r)

    # --- what is told ---

    def pay(self, before: tuple[int, float, int]) -> None:
        if self.crashed:
            self.reward_terms = [0.0, 0.0, 0.0, 0.0, -1.0]
            return
        rules, n = self.rules, len(self.requests)
        scale = rules.reward_scale
        done, efficiency, found = self.done_weight - before[0], self.efficiency - before[1], self.found - before[2]
        share = rules.progress_share
        self.reward_terms = [
            scale * rules.goodput_weight * (share * self.progress + (1 - share) * done) / max(self.all_weight, 1),
            scale * rules.latency_weight * efficiency / max(n, 1),
            scale * rules.residency_weight * found / max(self.all_returning, 1),
            -scale * rules.goodput_weight * rules.lost_share * self.lost / max(n, 1),
            0.0,
        ]

    def value(self) -> float:
        if self.crashed:
            return FLOOR
        rules = self.rules
        whole = (
            rules.goodput_weight * self.done_weight / max(self.all_weight, 1)
            + rules.latency_weight * self.efficiency / max(len(self.requests), 1)
            + rules.residency_weight * self.found / max(self.all_returning, 1)
        )
        return FLOOR + (CEILING - FLOOR) * whole

    def natural(self) -> list[float]:
        """The observation in natural units."""
        rules = self.rules
        ago = self.used_at[max(0, len(self.used_at) - 1 - TREND_TICKS)]
        values = [
            self.gpu_used / rules.gpu_blocks,
            self.cpu_used / rules.cpu_blocks,
            (self.gpu_used - ago) / rules.gpu_blocks / TREND_TICKS,
            len(self.queues[FREE]),
            len(self.queues[VIP]),
        ]
        for tier in (FREE, VIP):
            queue = self.queues[tier]
            wait = queue[0].waited + self.tick - queue[0].since if queue else 0
            values.append(wait / (self.limit(tier) or (100, 50)[tier]))
        active = [self.blocks(r.context) for r in self.where(ACTIVE)]
        values.append(max(active, default=0) / rules.gpu_blocks)
        sizes = [[self.blocks(r.context) for r in self.where(IDLE_GPU, tier)] for tier in (FREE, VIP)]
        ages = [[self.tick - r.since for r in self.where(IDLE_GPU, tier)] for tier in (FREE, VIP)]
        for numbers in (*sizes, *ages):
            values += [max(numbers, default=0), mean(numbers), std(numbers)]
        return [float(v) for v in values]

    def observation(self) -> np.ndarray:
        return COLUMNS.encode(np.array(self.natural()))

    def facts(self) -> dict[str, float]:
        facts = dict(self.counts)
        facts |= {
            "tick": self.tick, "gpu_used": self.gpu_used, "cpu_used": self.cpu_used, "crashed": int(self.crashed),
            "done_weight": self.done_weight, "found_tokens": self.found,
        }  # fmt: skip
        for name, tier in (("free", FREE), ("vip", VIP)):
            facts[f"{name}_waiting"] = len(self.queues[tier])
            facts[f"{name}_active"] = len(self.where(ACTIVE, tier))
            facts[f"{name}_loading"] = len(self.where(LOADING, tier))
            facts[f"{name}_idle"] = len(self.where(IDLE_GPU, tier))
        return {name: float(value) for name, value in facts.items()}

    def check(self) -> None:
        """The laws, from the requests themselves."""
        holding = [r for r in self.requests if r.state in (LOADING, ACTIVE, IDLE_GPU)]
        leaving = sum(gpu for _, gpu, _ in self.transfers)
        assert self.gpu_used == sum(self.blocks(r.context) for r in holding) + leaving
        on_cpu = [r for r in self.requests if r.state == IDLE_CPU or r.swapped]
        coming = sum(cpu for _, _, cpu in self.transfers)
        assert self.cpu_used == sum(self.blocks(r.context) for r in on_cpu) + coming
        assert 0 <= self.gpu_used <= self.rules.gpu_blocks
        assert 0 <= self.cpu_used <= self.rules.cpu_blocks
        seen = [r for r in self.requests if r.state != UNSEEN]
        waiting = len(self.queues[FREE]) + len(self.queues[VIP])
        running = len(self.where(LOADING)) + len(self.where(ACTIVE))
        ended = self.counts["completed"] + self.counts["rejected"] + self.counts["turned_away"]
        assert len(seen) == self.counts["arrived"] == waiting + running + ended
        assert self.counts["tokens"] == sum(r.produced for r in self.requests)


def mean(numbers: list[int]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0


def std(numbers: list[int]) -> float:
    n = len(numbers)
    return sqrt(n * sum(x * x for x in numbers) - sum(numbers) ** 2) / n if n else 0.0
