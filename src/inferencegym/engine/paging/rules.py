"""The numbers that shape an episode of the paging machine: pool, speeds, limits, and what its outcome and reward are made of.

Memory is in KV blocks, time in ticks (engine steps), text in tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from inferencegym.ground.errors import ConfigError

#: The reward's terms, in order.
REWARD_TERMS = ("goodput", "latency", "residency", "sla", "crash")
#: The outcome lies between these; a crash is the floor.
FLOOR, CEILING = 0.001, 0.999


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for every episode of a task."""

    horizon_ticks: int
    gpu_blocks: int = 10_000
    cpu_blocks: int = 50_000
    block_tokens: int = 16
    prefill_tokens_per_tick: int = 512
    """Prompt tokens that the engine computes in a tick beside the decodes, all requests together, first come first served."""
    link_blocks_per_tick: int = 238
    """Blocks that the PCIe link moves in a tick, both directions together, first come first served."""
    decisions_per_tick: int = 2
    free_queue: int = 100
    """Seats in the queue; who finds none is turned away at the door. Preempted requests need no seat."""
    vip_queue: int = 50
    free_sla_ticks: int = 0
    """Longest wait in the queue that meets the SLA; 0: no SLA."""
    vip_sla_ticks: int = 0
    garbage_ticks: int = 200
    """Garbage collection takes free caches that have been on the CPU for longer."""
    transfers: int = 256
    """Most transfers that may stand in the link's queue."""
    max_context_tokens: int = 6144
    vip_weight: int = 2
    """What a token for a VIP counts; a free one counts 1."""
    goodput_weight: float = 0.7
    latency_weight: float = 0.25
    residency_weight: float = 0.05
    reward_per_step: float = 0.03
    """Mean reward of a decision if the outcome were 1: sets the scale of the reward."""
    progress_share: float = 0.8
    """Share of a request's goodput that the reward pays token by token; the rest comes with the last one."""
    lost_share: float = 0.1
    """Penalty for a request that misses its SLA or is sent away, as a share of a mean request's goodput."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            optional = field.name in ("free_sla_ticks", "vip_sla_ticks", "residency_weight", "lost_share")
            if value < 0 or (value == 0 and not optional):
                raise ConfigError(field.name, f"{value} is too small", allowed="at least 0" if optional else "above 0")
        if self.horizon_ticks > 40_000:
            raise ConfigError("horizon_ticks", f"{self.horizon_ticks} is too large", allowed="1..40000")
        if self.max_context_tokens > 8192:
            raise ConfigError("max_context_tokens", f"{self.max_context_tokens} is too large", allowed="1..8192")
        if abs(self.goodput_weight + self.latency_weight + self.residency_weight - 1) > 1e-9:
            raise ConfigError("goodput_weight", "the three weights do not add up to 1", allowed="weights that sum to 1")
        if not self.progress_share <= 1:
            raise ConfigError("progress_share", f"{self.progress_share} is above 1", allowed="0..1")

    @property
    def decisions(self) -> int:
        """Decisions of a whole episode."""
        return self.horizon_ticks * self.decisions_per_tick

    @property
    def reward_scale(self) -> float:
        """Sum of rewards that stands for an outcome of 1."""
        return self.reward_per_step * self.decisions
