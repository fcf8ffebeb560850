"""A request while it lives in the naive engine, and one grant of tokens to it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.reference.kv_pool import Block
from tests.reference.plain import Request


@dataclass(eq=False)
class Live:
    """State of docs/scheduling.md section 2. Equality is identity."""

    request: Request
    arrival_ps: int
    target: int
    output_budget: int
    generated: int = 0
    computed: int = 0
    blocks: list[Block] = field(default_factory=list)
    published: int = 0  # leading blocks that were published or taken as hits
    private_copies: bool = False  # came back from swap or from another replica: publishes nothing before its release
    life: int = 0
    cpu_blocks: int = 0  # more than 0: swapped out
    carried: bool = False  # waiting, its KV came from a prefill replica
    slot: int = -1  # llamacpp
    padding: bool = False  # static: finished, still computed
    scheduled_ps: int = -1
    first_token_ps: int = -1
    last_token_ps: int = -1
    cached_tokens: int = 0
    preemptions: int = 0
    swaps: int = 0

    @property
    def row(self) -> int:
        """Row of the workload."""
        return self.request.row

    @property
    def prompt(self) -> int:
        """Prompt tokens."""
        return self.request.prompt

    @property
    def known(self) -> int:
        """Tokens of the sequence so far."""
        return self.request.prompt + self.generated

    @property
    def decodes(self) -> bool:
        """Whether its next step is a decode."""
        return self.computed == self.known - 1 and self.generated >= 1

    def key(self, j: int) -> tuple[int, ...]:
        """Name of its full block j: the workload's, or one nobody else has."""
        keys = self.request.keys
        return (keys[j],) if j < len(keys) else (self.row, self.life, j)


@dataclass
class Grant:
    """Tokens given to a request by a plan."""

    r: Live
    n: int
    decode: bool
    past: int

    @property
    def drafts(self) -> int:
        """Draft tokens among them."""
        return self.n - 1 if self.decode else 0
