"""What a policy may know of a plant at one instant: queues, memory, rates and latencies of the last window, settings in force. Never the future.

Rates and percentiles are of the window that has just ended; a figure that does not exist (nobody got a first token) is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from inferencegym.decision.columns import Floats

_NONE = float("nan")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look at a plant. The fields, in this order, are the columns of the surface `knobs` (units: `decision.knobs.COLUMNS`)."""

    queue_depth: float
    active_requests: float
    kv_cache_occupancy: float
    mean_prompt_length: float = _NONE
    p50_ttft_ms: float = _NONE
    p99_ttft_ms: float = _NONE
    p50_itl_ms: float = _NONE
    p99_itl_ms: float = _NONE
    throughput_tps: float = 0.0
    slo_compliance_rate: float = 1.0
    gpu_memory_used_gb: float = _NONE
    estimated_cost_per_1k: float = _NONE
    request_arrival_rate: float = 0.0
    spec_acceptance_rate: float = _NONE
    eviction_events: float = 0.0
    preemptions: float = 0.0
    goodput_rps: float = 0.0
    oldest_wait_ms: float = 0.0
    waiting_prompt_tokens: float = 0.0
    vip_queue_depth: float = 0.0
    vip_slo_compliance_rate: float = 1.0
    mean_output_length: float = _NONE
    batch_cap: float = _NONE
    kv_budget_fraction: float = 1.0
    speculation_depth: float = 0.0
    quantization_tier: float = 0.0
    prefill_decode_split: float = 0.0
    priority_routing: float = 0.0
    pause_left_s: float = 0.0
    window_s: float = 0.0
    snapshot_age_s: float = 0.0
    """0 in a simulator, the scrape's delay on a live engine."""
    episode_fraction: float = 0.0
    """How much of the episode is over; 0 where there is none."""

    def values(self) -> Floats:
        """The fields as float64[k]."""
        return np.array([getattr(self, name) for name in NAMES])

    @classmethod
    def of(cls, values: Floats) -> Snapshot:
        """The inverse of `values`."""
        return cls(*values.tolist())


NAMES = tuple(field.name for field in fields(Snapshot))
