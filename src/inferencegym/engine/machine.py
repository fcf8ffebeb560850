"""What an engine runs on, in the engine's own numbers: step-time tables, blocks, replicas. `Deployment` resolves to one of these."""

from __future__ import annotations

from dataclasses import dataclass

from inferencegym.engine.codes import Router
from inferencegym.engine.latency import StepTimes
from inferencegym.ground.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Machine:
    """A cluster of equal replicas."""

    times: StepTimes
    kv_blocks: int
    """KV blocks of one replica."""
    max_model_len: int
    """Longest sequence, tokens; settings may ask for less."""
    max_num_seqs: int = 256
    """Seats when the settings say nothing."""
    max_num_batched_tokens: int = 2048
    """Token budget when the settings say nothing."""
    block_size: int = 16
    """Tokens a block."""
    cpu_blocks: int = 0
    """Blocks of the CPU tier of one replica, for swapping."""
    replicas: int = 1
    prefill_replicas: int = 0
    """How many of the replicas only prefill; 0: all do everything."""
    router: Router = Router.ROUND_ROBIN
    affinity_slack: int = 32
    """router=prefix: how much more load than the idlest a replica may have, requests."""

    def __post_init__(self) -> None:
        if self.kv_blocks < 1:
            raise ConfigError("deployment.kv_blocks", f"{self.kv_blocks} blocks hold nothing", allowed="1 or more")
        if self.block_size < 1:
            raise ConfigError("deployment.block_size", f"{self.block_size} is too small", allowed="1 or more")
        if self.replicas < 1:
            raise ConfigError("deployment.replicas", f"{self.replicas} is too few", allowed="1 or more")
        if not 0 <= self.prefill_replicas < self.replicas:
            raise ConfigError(
                "deployment.prefill_replicas",
                f"{self.prefill_replicas} of {self.replicas} replicas",
                allowed="0 or fewer than all",
            )
