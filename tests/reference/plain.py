"""What goes into the naive engine and what comes out: plain data, so that it depends on nothing of the package.

Times are whole picoseconds, lengths are tokens, memory is blocks; the words are those of docs/scheduling.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

OK, REFUSED_LENGTH, NEVER_FITS, ABORTED = 0, 1, 2, 3


@dataclass
class Request:
    """One row of the workload."""

    row: int
    arrival_ps: int
    prompt: int
    target: int
    budget: int = 0
    priority: int = 0
    tenant: int = 0
    kind: int = 0
    slo_ttft_ps: int = 0
    after: int = -1
    think_ps: int = 0
    keys: tuple[int, ...] = ()


@dataclass
class Config:
    """Settings and cluster."""

    scheduler: str = "vllm"
    order: str = "fcfs"
    victims: str = "lifo"
    preemption: str = "recompute"
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_model_len: int = 8192
    block_size: int = 16
    blocks: int = 1000
    cpu_blocks: int = 0
    chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    reserve_full_isl: bool = True
    watermark: float = 0.0
    prefix_caching: bool = True
    speculation_depth: int = 0
    acceptance: tuple[tuple[float, ...], ...] = ((0.7,),)
    """Per traffic kind (the last one holds for the rest), per draft position (the last one holds for the rest)."""
    aging_ps: int = 0
    vtc_in: tuple[int, ...] = (1,)
    vtc_out: tuple[int, ...] = (2,)
    seed: int = 0
    replicas: int = 1
    prefill_replicas: int = 0
    router: str = "round_robin"
    affinity_slack: int = 32


@dataclass
class Times:
    """Step-time tables and constants of section 6, link constants of section 11."""

    lin_ps: list[int]
    head_ps: list[int]
    dec_ps: list[int]
    draft_ps: list[int]
    kv_ps: int
    pre_ps: int
    swap_ps_per_block: int
    swap_fixed_ps: int
    link_ps_per_token: int
    link_fixed_ps: int
    layers: int
    chunk: Callable[[int, int], int]


@dataclass
class Record:
    """What is said about a request once it has ended; -1 ps: never."""

    row: int
    replica: int
    arrival_ps: int
    scheduled_ps: int
    first_token_ps: int
    finish_ps: int
    output: int
    cached_tokens: int
    preemptions: int
    swaps: int
    outcome: int


@dataclass
class NaiveResult:
    """A whole run: records in order of ending, inter-token gaps, counters.

    `seen` counts which corners of the rules it went through.
    """

    records: list[Record] = field(default_factory=list)
    itl_counts: list[int] = field(default_factory=lambda: [0] * 2048)
    itl_sum_ps: int = 0
    steps: int = 0
    totals: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)


Change = tuple[int, str, Any]
"""(t_ps, field of Config, value): in force for the first plan at or after t_ps."""


def gap_bin(gap_ps: int) -> int:
    """Section 12."""
    if gap_ps < 1 << 20:
        return 0
    log = gap_ps.bit_length() - 1
    if log - 20 > 31:
        return 2047
    return 64 * (log - 20) + (gap_ps >> (log - 6)) - 64


def uniform(seed: int, row: int, generated: int) -> float:
    """Section 10."""
    mask = (1 << 64) - 1
    x = (seed * 0x9E3779B97F4A7C15 + row * 0xBF58476D1CE4E5B9 + generated * 0x94D049BB133111EB) & mask
    x ^= x >> 30
    x = (x * 0xBF58476D1CE4E5B9) & mask
    x ^= x >> 27
    x = (x * 0x94D049BB133111EB) & mask
    x ^= x >> 31
    return (x >> 11) * 2.0**-53


def table(entries: list[int], i: int) -> int:
    """An entry; beyond the end the last difference goes on."""
    last = len(entries) - 1
    if i <= last:
        return entries[i]
    return entries[last] + (i - last) * (entries[last] - entries[last - 1])
