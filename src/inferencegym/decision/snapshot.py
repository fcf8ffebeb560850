"""What a policy may know of a plant at one instant: queues, memory, rates and latencies of the last window. Never the future.

Times are seconds, memory blocks or fractions, rates per second; a figure that does not exist (no request finished) is None.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look at a plant."""

    now_s: float
    age_s: float
    """How old the look is: 0 in a simulator, the scrape's delay on a live engine."""
    window_s: float
    """Length of the window the rates and latencies below are of."""
    running: int
    waiting: int
    kv_used_fraction: float
    kv_pool_blocks: int
    arrival_rps: float
    throughput_rps: float
    output_tps: float
    preemptions: int
    evicted_blocks: int
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    itl_p50_s: float | None
    itl_p99_s: float | None
    mean_prompt_tokens: float | None
    spec_acceptance_fraction: float | None
