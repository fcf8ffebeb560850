"""Rules for the surface `paging`: who is let in, what is thrown out when room is short, when to give up. They see observation and mask only.

All share one guard: free memory below `danger` is made at once, by throwing out idle caches and, if there are none, by preempting;
so they survive. They differ in what they throw out, whether they keep it on the CPU, and how much room they hold back.
Shares are of the GPU's blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inferencegym.decision.columns import Float32s, Masks
from inferencegym.decision.paging import COLUMNS, NOTHING, NUMBER, SIZE_BLOCKS

_USED, _CPU = COLUMNS.index("gpu_utilization_pct"), COLUMNS.index("cpu_utilization_pct")
_QUEUE = (COLUMNS.index("free_queue_pressure"), COLUMNS.index("vip_queue_pressure"))
_WAIT = (COLUMNS.index("free_max_wait_time_pct"), COLUMNS.index("vip_max_wait_time_pct"))
_SIZE = (COLUMNS.index("free_size_max"), COLUMNS.index("vip_size_max"))
_AGE = (COLUMNS.index("free_age_max"), COLUMNS.index("vip_age_max"))
_EVICT_LARGEST, _EVICT_OLDEST = NUMBER["evict_largest_free"], NUMBER["evict_oldest_free"]
_TO_SWAP = NUMBER["swap_largest_free"] - NUMBER["evict_largest_free"]
_ADMIT, _REJECT = NUMBER["admit_free"], NUMBER["reject_free"]
_SHRED, _PREEMPT_SWAP, _COLLECT = NUMBER["shred_largest_free"], NUMBER["preempt_swap_free"], NUMBER["collect_garbage"]
FREE, VIP = 0, 1
#: Encoded size of an idle cache of 40 blocks: more than any tick takes.
_RELIEF = float(np.log1p(40.0) / np.log1p(SIZE_BLOCKS))


@dataclass(frozen=True, slots=True)
class Limits:
    """The numbers of a memory rule."""

    danger: float = 0.02
    """Below so much free memory nothing is done but making room."""
    critical: float = 0.006
    """Below so much, room must come at once: no patience, and shredding instead of swapping."""
    hold_back: float = 0.045
    """Free memory that it takes to admit a free request, whose size nobody shows: the largest (0.038) and two ticks of growth."""
    vip_hold_back: float = 0.042
    """The same for a VIP."""
    target: float = 0.07
    """Free memory that is kept ready while there are idle caches to throw out."""
    drop_overdue: float = 0.03
    """A request that has missed its SLA is rejected when its queue is fuller than this; above 1: never."""
    crowded_cpu: float = 0.85
    """CPU use above which its garbage is collected."""
    patience: int = 4
    """Decisions between two preemptions: the first one's blocks are free only when they have left."""


class MemoryRule:
    """The common frame: guard, VIPs first, then room, then housekeeping. Subclasses choose what goes."""

    name = "memory-rule"
    surface = "paging"
    limits = Limits()

    def __init__(self, limits: Limits | None = None) -> None:
        if limits is not None:
            self.limits = limits
        self._since_preemption = 0

    def start(self, seed: int) -> None:
        """Nothing is left to chance; forgets the last episode."""
        del seed
        self._since_preemption = self.limits.patience

    def act(self, observation: Float32s, mask: Masks) -> int:
        """The number of an action."""
        seen: list[float] = observation.tolist()
        can: list[int] = mask.tolist()
        limits = self.limits
        self._since_preemption += 1
        free = 1.0 - seen[_USED]
        if free < limits.critical:
            return self._relieve(seen, can)
        if free < limits.danger:
            action = self.make_room(seen, can)
            return action if action >= 0 else self._preempt(can)
        for tier in (VIP, FREE):
            if can[_REJECT + tier] and self.gives_up(tier, free, seen, can):
                return _REJECT + tier
            if can[_ADMIT + tier] and free > self.room_to_admit(tier):
                return _ADMIT + tier
        waiting = can[_REJECT] or can[_REJECT + VIP]
        if free < limits.target or waiting:
            action = self.make_room(seen, can)
            if action >= 0:
                return action
        if seen[_CPU] > limits.crowded_cpu and can[_COLLECT]:
            return _COLLECT
        return NOTHING

    def gives_up(self, tier: int, free: float, seen: list[float], can: list[int]) -> bool:
        """Whether the first of a queue is rejected. Here: when it has missed its SLA and others wait behind it."""
        del free, can
        return seen[_WAIT[tier]] >= 1.0 and seen[_QUEUE[tier]] > self.limits.drop_overdue

    def room_to_admit(self, tier: int) -> float:
        """Free memory that it takes to admit."""
        return self.limits.vip_hold_back if tier == VIP else self.limits.hold_back

    def make_room(self, seen: list[float], can: list[int]) -> int:
        """The action that throws out an idle cache; -1 if there is none. Here: the one unused for longest (LRU)."""
        if not can[_EVICT_OLDEST] and not can[_EVICT_OLDEST + VIP]:
            return -1
        vip = can[_EVICT_OLDEST + VIP] and (not can[_EVICT_OLDEST] or seen[_AGE[VIP]] > seen[_AGE[FREE]])
        return _EVICT_OLDEST + (VIP if vip else FREE)

    def _preempt(self, can: list[int]) -> int:
        """A free request before a VIP; swapped if possible, with patience in between."""
        if self._since_preemption <= self.limits.patience:
            return NOTHING
        for action in (_PREEMPT_SWAP, _SHRED, _PREEMPT_SWAP + VIP, _SHRED + VIP):
            if can[action]:
                self._since_preemption = 0
                return action
        return NOTHING

    def _relieve(self, seen: list[float], can: list[int]) -> int:
        """Much room at once: the largest idle cache if it is large enough, else the largest active request."""
        largest = VIP if seen[_SIZE[VIP]] > seen[_SIZE[FREE]] else FREE
        enough = seen[_SIZE[largest]] >= _RELIEF
        for action in (
            _EVICT_LARGEST + largest if enough else NOTHING,
            _SHRED,
            _SHRED + VIP,
            _EVICT_LARGEST,
            _EVICT_LARGEST + VIP,
        ):
            if can[action] and action != NOTHING:
                self._since_preemption = 0
                return action
        return NOTHING


class Lru(MemoryRule):
    """Throws out the idle cache unused for longest, whoever's it is."""

    name = "lru"


class LargestFirst(MemoryRule):
    """Throws out the largest idle cache: fewest decisions for the room."""

    name = "largest-first"

    def make_room(self, seen: list[float], can: list[int]) -> int:
        """The larger tier's largest."""
        if not can[_EVICT_LARGEST] and not can[_EVICT_LARGEST + VIP]:
            return -1
        vip = can[_EVICT_LARGEST + VIP] and (not can[_EVICT_LARGEST] or seen[_SIZE[VIP]] > seen[_SIZE[FREE]])
        return _EVICT_LARGEST + (VIP if vip else FREE)


class SizeAndAge(MemoryRule):
    """Throws out the oldest while it is old, the largest while all are young: room per loss of a likely hit."""

    name = "size-and-age"
    old = 0.4
    """Encoded age (of 500 ticks) from which a cache is unlikely to be used again."""

    def make_room(self, seen: list[float], can: list[int]) -> int:
        """Oldest or largest, of free users unless the VIPs' are clearly older."""
        if not can[_EVICT_OLDEST] and not can[_EVICT_OLDEST + VIP]:
            return -1
        age_free, age_vip = seen[_AGE[FREE]], seen[_AGE[VIP]]
        vip = can[_EVICT_OLDEST + VIP] and (not can[_EVICT_OLDEST] or age_vip > 1.5 * age_free)
        tier = VIP if vip else FREE
        old = (age_vip if vip else age_free) > self.old
        return (_EVICT_OLDEST if old else _EVICT_LARGEST) + tier


class VipFirst(MemoryRule):
    """VIP caches stay while a free one is left, and free requests leave a wider margin."""

    name = "vip-first"
    limits = Limits(hold_back=0.07, target=0.08)

    def make_room(self, seen: list[float], can: list[int]) -> int:
        """The oldest free cache, then the oldest VIP one."""
        del seen
        for action in (_EVICT_OLDEST, _EVICT_OLDEST + VIP):
            if can[action]:
                return action
        return -1


class Cautious(Lru):
    """LRU that admits only with much room to grow: hardly ever preempts."""

    name = "cautious"
    limits = Limits(hold_back=0.15, target=0.16)


class Swapper(LargestFirst):
    """Keeps idle caches on the CPU instead of dropping them: a swap-in costs a tick, a recomputation many."""

    name = "swapper"
    queue_share = 0.03
    """From this queue on decisions are scarce, and the largest goes instead of the oldest."""

    def make_room(self, seen: list[float], can: list[int]) -> int:
        """Swap while the CPU takes it, else evict."""
        scarce = max(seen[_QUEUE[FREE]], seen[_QUEUE[VIP]]) > self.queue_share
        victim = super().make_room(seen, can) if scarce else MemoryRule.make_room(self, seen, can)
        if victim >= 0 and can[victim + _TO_SWAP]:
            return victim + _TO_SWAP
        return victim


class Sieve(Swapper):
    """A swapper that lets the small through when room is short: who does not fit into the last free blocks must be large.

    It fills the pool to the brim, which is safe only while a decision is left to make room before the tick passes: so it counts.
    """

    name = "sieve"
    limits = Limits(danger=0.018, target=0.09, drop_overdue=0.02, patience=1)
    brim = 0.021
    """Free memory that it takes to admit when this tick has another decision."""

    def __init__(self, limits: Limits | None = None, decisions_per_tick: int = 2) -> None:
        super().__init__(limits)
        self._decisions_per_tick = decisions_per_tick
        self._taken = 0

    def start(self, seed: int) -> None:
        """The first decision of a tick comes next."""
        super().start(seed)
        self._taken = 0

    def act(self, observation: Float32s, mask: Masks) -> int:
        """The number of an action."""
        self._taken += 1
        return super().act(observation, mask)

    def gives_up(self, tier: int, free: float, seen: list[float], can: list[int]) -> bool:
        """When it is too late, or when it does not fit though there is room for small ones."""
        if super().gives_up(tier, free, seen, can):
            return True
        idle = can[_EVICT_OLDEST] or can[_EVICT_OLDEST + VIP]
        return not can[_ADMIT + tier] and not idle and seen[_WAIT[tier]] > 0.0

    def room_to_admit(self, tier: int) -> float:
        """Little before a tick's last decision, much at it."""
        if self._taken % self._decisions_per_tick:
            return self.brim
        return super().room_to_admit(tier)


RULES: tuple[type[MemoryRule], ...] = (Lru, LargestFirst, SizeAndAge, VipFirst, Cautious, Swapper, Sieve)
