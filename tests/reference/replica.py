"""One replica of the naive engine: its plan (sections 4 and 13), its commit (5), step time (6), preemption (8).

Times in picoseconds, lengths in tokens, memory in blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.reference.kv_pool import Block, KvPool
from tests.reference.plain import ABORTED, NEVER_FITS, OK, Config, Times, table, uniform
from tests.reference.queues import Ledger, Vtc, new_queue, rank
from tests.reference.state import Grant, Live

if TYPE_CHECKING:
    from tests.reference.naive_engine import Cluster


class Slot:
    """llamacpp: a seat with the keys of the sequence it last held."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.taken = False
        self.keys: tuple[int, ...] = ()
        self.last_used_ps = -1


class Replica:
    """A scheduler with its queue, its running list, its KV pool and at most one step in flight."""

    def __init__(self, index: int, config: Config, times: Times, cluster: Cluster) -> None:
        self.index = index
        self.config = config
        self.times = times
        self.cluster = cluster
        self.seen = cluster.result.seen
        self.totals = cluster.result.totals
        self.ledger = Ledger()
        self.queue = new_queue(config, self.ledger, self.seen)
        self.running: list[Live] = []
        caches = config.prefix_caching and config.scheduler in ("vllm", "sarathi")
        self.pool = KvPool(config.blocks, caches)
        self.cpu_free = config.cpu_blocks
        self.slots = [Slot(i) for i in range(config.max_num_seqs)] if config.scheduler == "llamacpp" else []
        self.grants: list[Grant] = []
        self.budget = 0
        self.returned = 0  # tokens that victims gave back to this plan
        self.in_flight = False
        self.step_end_ps = -1
        self.step_ps = 0
        self.swapped_blocks = 0  # by plans since the last step
        self.swap_count = 0
        self.link_free_ps = 0

    # --- what others ask ---

    @property
    def load(self) -> int:
        """What the router counts."""
        return len(self.queue) + len(self.running)

    @property
    def prefills_only(self) -> bool:
        """Whether it belongs to the prefill pool."""
        return self.index < self.config.prefill_replicas

    def reconfigure(self, config: Config) -> None:
        """Settings that hold from now on."""
        before, self.config = self.config, config
        self.pool.resize(config.blocks)
        if config.order != before.order:
            waiting = sorted(self.queue.members(), key=lambda r: (r.arrival_ps, r.row))
            self.queue = new_queue(config, self.ledger, self.seen)
            for r in waiting:
                self.queue.deliver(r)

    def arrive(self, r: Live) -> None:
        """A new request from the router."""
        self.queue.arrive(r)

    def deliver(self, r: Live) -> None:
        """A request whose KV came over the wire; its blocks at the sender have been released."""
        r.computed = r.known - 1
        r.carried = True
        self.queue.deliver(r)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.config.block_size)

    def hits(self, r: Live) -> list[Block]:
        """Section 7, lookup."""
        full = r.known // self.config.block_size
        return self.pool.leading_run((r.key(j) for j in range(full)), (r.known - 1) // self.config.block_size)

    def leading_hits(self, r: Live) -> int:
        """What the prefix router asks."""
        # SPEC: for llamacpp the router could ask the slots; read here as "cached blocks", of which llamacpp has none.
        return len(self.hits(r))

    # --- plan ---

    def plan(self, now: int) -> None:
        """Decide who gets tokens; starts a step if anyone does."""
        while True:
            self.grants = []
            self.budget = self.config.max_num_batched_tokens
            self.returned = 0
            preempted = self._plan_once(now)
            if self.grants:
                self._start_step(now)
                return
            if not preempted:
                return
            self.seen["plan made again"] += 1

    def _plan_once(self, now: int) -> bool:
        if self.config.scheduler == "orca":
            self._plan_orca(now)
        elif self.config.scheduler == "static":
            self._plan_static(now)
        elif self.config.scheduler == "llamacpp":
            self._plan_llamacpp(now)
        else:
            return self._plan_vllm(now)
        return False

    def _plan_vllm(self, now: int) -> bool:
        preempted = self._pay_debt()
        preempted = self._plan_running() or preempted
        if not preempted:
            self._plan_waiting(now)
        return preempted

    def _pay_debt(self) -> bool:
        preempted = False
        while self.pool.debt > 0:
            if self.pool.lru:
                self.pool.pay_debt_by_eviction()
                self.seen["debt paid by eviction"] += 1
            elif self.running:
                self._preempt(self._victim())
                preempted = True
                self.seen["debt paid by preemption"] += 1
            else:
                break
        return preempted

    def _plan_running(self) -> bool:
        k, preempted = self.config.speculation_depth, False
        visits = list(self.running)
        if self.config.scheduler == "sarathi":
            visits = [r for r in visits if r.decodes] + [r for r in visits if not r.decodes]
        for r in visits:
            if self.budget == 0:
                self.seen["budget out"] += 1
                break
            if r not in self.running:
                continue
            n = self._tokens(r)
            reserve = r.computed + 1 + k if r.decodes else r.computed + n + k
            need = max(0, self.blocks_for(reserve) - len(r.blocks))
            while need > self.pool.free and r in self.running:
                victim = self._victim()
                self._preempt(victim)
                preempted = True
                self.seen["self-preemption"] += victim is r
            if r not in self.running:
                break
            r.blocks += self.pool.allocate(need)
            self._grant(r, n)
        return preempted

    def _tokens(self, r: Live) -> int:
        """How many tokens phase (1) gives."""
        if r.decodes:
            return min(1 + self.config.speculation_depth, self.budget)
        return self._below_threshold(min(r.known - r.computed, self.budget))

    def _below_threshold(self, n: int) -> int:
        threshold = self.config.long_prefill_token_threshold
        if threshold > 0 and len(self.running) + len(self.queue) > 1:
            self.seen["threshold"] += n > threshold
            return min(n, threshold)
        return n

    def _grant(self, r: Live, n: int) -> None:
        assert n > 0, "a grant gives something"
        self.grants.append(Grant(r, n, r.decodes, r.computed))
        self.seen["returned tokens used"] += self.budget - n < self.returned
        self.budget -= n
        self._publish(r, r.computed + n)

    def _plan_waiting(self, now: int) -> None:
        while len(self.queue) and self.budget > 0 and len(self.running) < self.config.max_num_seqs:
            r = self.queue.head()
            if self.blocks_for(r.known + self.config.speculation_depth) > self.pool.size:
                self._never_fits(now)
            elif not (self._admit_with_kv(r, now) if r.cpu_blocks or r.carried else self._admit(r, now)):
                return

    def _admit(self, r: Live, now: int) -> bool:
        k, hits = self.config.speculation_depth, self.hits(r)
        start = len(hits) * self.config.block_size
        n = self._below_threshold(r.known - start)
        if not self.config.chunked_prefill and n > self.budget:
            self.seen["whole prompt waits"] += 1
            return False
        n = min(n, self.budget)
        sequence = r.known + k if self.config.reserve_full_isl else start + n + k
        if not self._fits(self.blocks_for(sequence) - len(hits), sum(b.holders == 0 for b in hits)):
            return False
        self._leave_queue(r)
        # SPEC: a private hit keeps the life; hits on the workload's own keys alone start a new one.
        private = len(hits) > len(r.request.keys)
        self.seen["private hit"] += private
        r.life += not private
        for block in hits:
            self.pool.hold(block)
        r.blocks = list(hits)
        r.published = len(hits)
        r.private_copies = False
        r.computed = start
        r.blocks += self.pool.allocate(self.blocks_for(start + n + k) - len(hits))
        self._seat(r, now, start)
        self._grant(r, n)
        return True

    def _admit_with_kv(self, r: Live, now: int) -> bool:
        """A request whose KV is on the CPU tier or came over the wire."""
        n = self._tokens(r)
        need = self.blocks_for(max(r.known, r.computed + 1) + self.config.speculation_depth)
        if not self._fits(need, 0):
            return False
        self._leave_queue(r)
        if r.cpu_blocks:
            self._swap_time(self.blocks_for(r.computed))
            self.seen["swapped in"] += 1
        self._drop_kv_elsewhere(r)
        r.blocks = self.pool.allocate(need)
        r.published = 0
        r.private_copies = True
        self._seat(r, now, 0)
        self._grant(r, n)
        return True

    def _fits(self, need: int, free_hits: int) -> bool:
        """Whether so many blocks can be had without touching the hits or the watermark."""
        margin = int(self.config.watermark * self.pool.size) if self.running else 0
        spare = self.pool.free - free_hits
        self.seen["watermark block"] += spare - margin < need <= spare
        self.seen["head blocked"] += need > spare - margin
        return need <= spare - margin

    def _leave_queue(self, r: Live) -> None:
        popped = self.queue.pop()
        assert popped is r

    def _seat(self, r: Live, now: int, start: int) -> None:
        """Append to running; what the first admission says about the request."""
        self.running.append(r)
        self.seen["prefix hit"] += start > 0
        if r.scheduled_ps >= 0:
            return
        r.scheduled_ps = now
        r.cached_tokens = start
        self.totals["hit_tokens"] += start
        if isinstance(self.queue, Vtc):
            self.queue.counter[r.request.tenant] += self.config.vtc_in[r.request.tenant] * r.prompt

    def _drop_kv_elsewhere(self, r: Live) -> None:
        self.cpu_free += r.cpu_blocks
        r.cpu_blocks = 0
        r.carried = False

    def _never_fits(self, now: int) -> None:
        r = self.queue.pop()
        self._drop_kv_elsewhere(r)
        self.cluster.ended(r, now, NEVER_FITS, self.index)

    # --- aborts ---

    def abort(self, row: int, now: int) -> bool:
        """Section 14; False if no such request is here."""
        for r in self.queue.members():
            if r.row == row:
                self.queue.remove(r)
                self._drop_kv_elsewhere(r)
                self.cluster.ended(r, now, ABORTED, self.index)
                return True
        for r in self.running:
            if r.row == row and not r.padding:
                self.cluster.ended(r, now, ABORTED, self.index)
                if self.config.scheduler == "static" and r.generated:
                    r.padding = True
                    return True
                self.grants = [g for g in self.grants if g.r is not r]
                self.running.remove(r)
                self._vacate(r, now)
                return True
        return False

    # --- preemption ---

    def _victim(self) -> Live:
        if self.config.victims == "lifo":
            return self.running[-1]
        return max(self.running, key=lambda r: rank(r, self.config))

    def _preempt(self, v: Live) -> None:
        for grant in [g for g in self.grants if g.r is v]:
            self.grants.remove(grant)
            self.budget += grant.n
            self.returned += grant.n
            self.seen["void grant"] += 1
        self.running.remove(v)
        v.preemptions += 1
        self.totals["preemptions"] += 1
        if self._swaps_out(v):
            self._swap_out(v)
        else:
            self.release(v)
            v.computed = 0
        self.queue.put_back(v)

    def _swaps_out(self, v: Live) -> bool:
        blocks, times = self.blocks_for(v.computed), self.times
        if self.config.preemption == "recompute" or v.computed == 0:
            return False
        if self.config.preemption == "auto":
            there_and_back = 2 * (times.swap_ps_per_block * blocks + times.swap_fixed_ps)
            again = times.chunk(v.computed, 0) + times.lin_ps[min(v.computed, len(times.lin_ps) - 1)]
            self.seen["auto swaps" if there_and_back < again else "auto recomputes"] += 1
            if there_and_back >= again:
                return False
        self.seen["cpu tier full"] += blocks > self.cpu_free
        return blocks <= self.cpu_free

    def _swap_out(self, v: Live) -> None:
        v.cpu_blocks = self.blocks_for(v.computed)
        self.cpu_free -= v.cpu_blocks
        v.swaps += 1
        self.totals["swaps"] += 1  # SPEC: swaps counts the ways out, for records and totals alike
        self._swap_time(v.cpu_blocks)
        for block in v.blocks[len(v.request.keys) :]:
            self.seen["private hit swapped out"] += block.key is not None
            self.pool.forget(block)
        for block in reversed(v.blocks):
            self.pool.let_go(block, None)
        v.blocks = []
        v.published = 0

    def _swap_time(self, blocks: int) -> None:
        self.swapped_blocks += blocks
        self.swap_count += 1
        self.totals["swapped_blocks"] += blocks

    # --- KV ---

    def _publish(self, r: Live, computed: int) -> None:
        if not self.pool.caching or r.private_copies:
            return
        full = min(computed // self.config.block_size, r.prompt // self.config.block_size, len(r.request.keys))
        while r.published < full:
            j = r.published
            before = r.blocks[j]
            r.blocks[j] = self.pool.publish(before, r.key(j))
            self.seen["shared at publish"] += r.blocks[j] is not before
            r.published += 1

    def release(self, r: Live) -> None:
        """Give all blocks back; the full ones stay findable."""
        full = max(r.computed // self.config.block_size, r.published) if self.pool.caching else 0
        self.seen["published ahead"] += r.published > r.computed // self.config.block_size
        for block in r.blocks[full:]:
            self.pool.let_go(block, None)
        for j in reversed(range(min(full, len(r.blocks)))):
            self.pool.let_go(r.blocks[j], r.key(j))
        r.blocks = []
        r.published = 0
        r.private_copies = False

    # --- the step ---

    def _start_step(self, now: int) -> None:
        self.step_ps = self._step_time()
        self.swapped_blocks = self.swap_count = 0
        self.step_end_ps = now + self.step_ps
        self.in_flight = True

    def _step_time(self) -> int:
        times, grants = self.times, self.grants
        decodes = [g for g in grants if g.decode]
        chunks = [g for g in grants if not g.decode]
        emitting = len(decodes) + sum(g.past + g.n == g.r.known for g in chunks)
        context = sum(g.past + 1 for g in decodes)
        total = table(times.lin_ps, sum(g.n for g in grants)) + table(times.head_ps, emitting)
        total += table(times.dec_ps, len(decodes)) + times.kv_ps * context
        total += sum(times.chunk(g.n, g.past) for g in chunks)
        if chunks:
            total += times.pre_ps
        if decodes:
            total += self.config.speculation_depth * table(times.draft_ps, len(decodes))
        return total + times.swap_ps_per_block * self.swapped_blocks + times.swap_fixed_ps * self.swap_count

    def commit(self, now: int) -> None:
        """The step has ended: tokens come out, requests finish or go to the decode pool."""
        self.in_flight = False
        self.cluster.result.steps += 1
        self.totals["steps"] += 1
        self.totals["busy_ps"] += self.step_ps
        granted = {g.r.row: g for g in self.grants}
        self.grants = []
        for r in list(self.running):
            if r.row in granted:
                self._commit_one(granted[r.row], now)
        if self.config.scheduler == "static" and self.running and all(r.padding for r in self.running):
            for r in self.running:
                self.release(r)
            self.running = []

    def _commit_one(self, g: Grant, now: int) -> None:
        r = g.r
        if r.padding:
            r.computed += 1  # SPEC: padding is computed one token further every step, so its context grows
            return
        if g.decode:
            self._emit(r, self._accepted(g) + 1, now)
            return
        r.computed += g.n
        self.totals["prefill_tokens"] += g.n
        if r.computed == r.known:
            self._emit(r, 1, now)

    def _accepted(self, g: Grant) -> int:
        rates = self.config.acceptance[min(g.r.request.kind, len(self.config.acceptance) - 1)]
        u = uniform(self.config.seed, g.r.row, g.r.generated)
        accepted, chance = 0, 1.0
        for j in range(g.drafts):
            chance *= rates[min(j, len(rates) - 1)]
            accepted += u < chance
        self.totals["drafted"] += g.drafts
        self.totals["accepted"] += accepted
        return accepted

    def _emit(self, r: Live, m: int, now: int) -> None:
        m = min(m, r.target - r.generated)
        r.generated += m
        r.computed = r.known - 1
        self.totals["emitted_tokens"] += m
        if isinstance(self.queue, Vtc):
            self.queue.counter[r.request.tenant] += m * self.config.vtc_out[r.request.tenant]
        if r.first_token_ps < 0:
            r.first_token_ps = now
        else:
            self.cluster.gap(now - r.last_token_ps)
        r.last_token_ps = now
        if r.generated == r.target:
            self._finish(r, now)
        elif self.prefills_only:
            self.running.remove(r)
            self.cluster.send(r, self, now)

    def _finish(self, r: Live, now: int) -> None:
        self.cluster.ended(r, now, OK, self.index)
        if self.config.scheduler == "static":
            r.padding = True
            return
        self.running.remove(r)
        self._vacate(r, now)

    def _vacate(self, r: Live, now: int) -> None:
        if self.config.scheduler == "llamacpp":
            slot = self.slots[r.slot]
            slot.taken = False
            slot.last_used_ps = now
            slot.keys = r.request.keys[: r.computed // self.config.block_size]
        else:
            self.release(r)

    # --- siblings (section 13) ---

    def _plan_orca(self, now: int) -> None:
        before = list(self.running)
        while len(self.queue) and len(self.running) < self.config.max_num_seqs:
            r = self.queue.head()
            need = self.blocks_for(r.prompt + r.output_budget)
            if need > self.pool.size:
                self._never_fits(now)
                continue
            if r.known > self.budget or need > self.pool.free:
                self.seen["head blocked"] += need > self.pool.free
                break
            self._take_whole(r, now)
            self._grant(r, r.known)
        for r in before:
            self._grant(r, 1)

    def _take_whole(self, r: Live, now: int) -> None:
        self._leave_queue(r)
        r.blocks = self.pool.allocate(self.blocks_for(r.prompt + r.output_budget))
        self._seat(r, now, 0)

    def _plan_static(self, now: int) -> None:
        if not self.running:
            self._new_batch(now)
        undone = [r for r in self.running if r.generated == 0]
        for i, r in enumerate(undone):
            if i > 0 and r.known > self.budget:
                break
            self._grant(r, r.known)
        if not undone:
            for r in self.running:
                self.seen["padding"] += r.padding
                self.grants.append(Grant(r, 1, True, r.computed))

    def _new_batch(self, now: int) -> None:
        while len(self.queue) and len(self.running) < self.config.max_num_seqs:
            r = self.queue.head()
            need = self.blocks_for(r.prompt + r.output_budget)
            if need > self.pool.size:
                self._never_fits(now)
                continue
            if need > self.pool.free:
                self.seen["head blocked"] += 1
                break
            self._take_whole(r, now)

    def _plan_llamacpp(self, now: int) -> None:
        while len(self.queue) and len(self.running) < self.config.max_num_seqs:
            if all(slot.taken for slot in self._usable_slots()):
                break
            self._take_slot(now)
        for r in self.running:
            if r.decodes:
                self._grant(r, 1)
        for r in sorted((r for r in self.running if not r.decodes), key=lambda r: r.slot):
            if self.budget <= 0:
                self.seen["budget out"] += 1
                break
            self._grant(r, min(r.known - r.computed, self.budget))

    def _take_slot(self, now: int) -> None:
        r = self.queue.pop()
        free = [slot for slot in self._usable_slots() if not slot.taken]
        shared = [self._shared(slot, r) for slot in free]
        if max(shared) > 0:
            slot, run = min(zip(free, shared, strict=True), key=lambda pair: (-pair[1], pair[0].index))
        else:
            slot, run = min(free, key=lambda s: (s.last_used_ps, s.index)), 0
        slot.taken = True
        r.slot = slot.index
        r.computed = run * self.config.block_size
        self._seat(r, now, r.computed)

    def _usable_slots(self) -> list[Slot]:
        return self.slots[: self.config.max_num_seqs]

    def _shared(self, slot: Slot, r: Live) -> int:
        """Leading blocks the prompt has in common with the sequence in a slot."""
        # SPEC: the cap (known - 1) // block_size holds before runs are compared.
        if not self.config.prefix_caching:
            return 0
        run = 0
        for mine, kept in zip(r.request.keys[: (r.known - 1) // self.config.block_size], slot.keys, strict=False):
            if mine != kept:
                break
            run += 1
        return run
