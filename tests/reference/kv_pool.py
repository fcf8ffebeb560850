"""The KV pool of docs/scheduling.md section 7, kept literally as blocks: each one an object, the free ones in a queue.

Slow and obvious on purpose; units are blocks. A key is any hashable thing that names the whole prefix up to and with
its block.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field


@dataclass(eq=False)
class Block:
    """One block of KV: what it holds (None: nothing that could be found) and how many requests hold it."""

    key: Hashable | None = None
    holders: int = 0


@dataclass
class KvPool:
    """Blank blocks, then cached ones nobody holds in order of release; a debt while the pool was shrunk below use."""

    size: int
    caching: bool
    blank: deque[Block] = field(default_factory=deque)
    debt: int = 0
    lru: OrderedDict[Block, None] = field(default_factory=OrderedDict)
    cached: dict[Hashable, Block] = field(default_factory=dict)
    held: set[Block] = field(default_factory=set)
    evicted: int = 0

    def __post_init__(self) -> None:
        self.blank.extend(Block() for _ in range(self.size))

    @property
    def free(self) -> int:
        """Blocks a request could have (negative while in debt with nothing cached)."""
        return len(self.blank) - self.debt + len(self.lru)

    def resize(self, size: int) -> None:
        """Add blocks, or take blank ones away; what cannot be taken now is a debt."""
        more = size - self.size
        self.size = size
        for _ in range(more):
            self._to_blank(Block())
        for _ in range(-more):
            if self.blank:
                self.blank.pop()
            else:
                self.debt += 1

    def pay_debt_by_eviction(self) -> None:
        """The oldest cached block nobody holds goes out of the pool."""
        self._to_blank(self._evict())

    def allocate(self, n: int) -> list[Block]:
        """`n` blocks without content: blank ones first, then the least recently released cached ones."""
        if n <= 0:
            return []
        assert self.debt == 0, "nothing is allocated before a debt is paid"
        assert n <= self.free, f"{n} blocks asked for, {self.free} free"
        return [self._take_one() for _ in range(n)]

    def _take_one(self) -> Block:
        block = self.blank.popleft() if self.blank else self._evict()
        block.holders = 1
        self.held.add(block)
        return block

    def _evict(self) -> Block:
        block, _ = self.lru.popitem(last=False)
        assert block.key is not None
        del self.cached[block.key]
        block.key = None
        self.evicted += 1
        return block

    def _to_blank(self, block: Block) -> None:
        self.held.discard(block)
        block.key, block.holders = None, 0
        if self.debt > 0:
            self.debt -= 1  # the block leaves the pool
        else:
            self.blank.append(block)

    def leading_run(self, keys: Iterable[Hashable], at_most: int) -> list[Block]:
        """The cached blocks of the longest run of leading keys."""
        run: list[Block] = []
        if not self.caching:
            return run
        for key in keys:
            if len(run) >= at_most or key not in self.cached:
                break
            run.append(self.cached[key])
        return run

    def hold(self, block: Block) -> None:
        """One more request holds a cached block."""
        self.lru.pop(block, None)
        self.held.add(block)
        block.holders += 1

    def publish(self, block: Block, key: Hashable) -> Block:
        """Make a held block findable; the block to hold from now on is returned (the cached copy, if there is one)."""
        if key in self.cached:
            twin = self.cached[key]
            self._to_blank(block)
            self.hold(twin)
            return twin
        block.key = key
        self.cached[key] = block
        return block

    def forget(self, block: Block) -> None:
        """A held block is not to be found any more."""
        if block.key is not None:
            assert block.holders == 1, "only a private block is forgotten"
            del self.cached[block.key]
            block.key = None

    def let_go(self, block: Block, key: Hashable | None) -> None:
        """One holder less. `key`: what to publish an unpublished block under, None: it becomes blank."""
        block.holders -= 1
        if block.holders > 0:
            return
        if block.key is None:
            if key is None or not self.caching or key in self.cached:
                self._to_blank(block)
                return
            block.key = key
            self.cached[key] = block
        self.held.discard(block)
        self.lru[block] = None

    def check(self) -> None:
        """Blocks are conserved and each is in exactly one place."""
        assert len(self.blank) + len(self.lru) + len(self.held) - self.debt == self.size
        assert not (self.blank and self.debt)
        assert all(b.holders == 0 and b.key is None for b in self.blank)
        assert all(b.holders == 0 and self.cached.get(b.key) is b for b in self.lru)
        assert all(b.holders > 0 for b in self.held)
        assert all(b.key == key for key, b in self.cached.items())
        assert len(self.cached) == len(self.lru) + sum(b.key is not None for b in self.held)
