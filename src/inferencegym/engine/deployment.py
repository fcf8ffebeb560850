"""What is deployed: a model on GPUs, in some weight and KV format, as one or several replicas. Resolves to a Machine.

Facts come from `ground.facts`, factors from a profile (`engine.profile`); how many KV blocks fit follows from memory.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from inferencegym.engine.codes import Router
from inferencegym.engine.machine import Machine
from inferencegym.engine.profile import Profile, load_profile
from inferencegym.engine.settings import EngineSettings
from inferencegym.engine.step_time import build_step_times
from inferencegym.ground.errors import ConfigError
from inferencegym.ground.facts import Gpu, Model, gpu, model
from inferencegym.ground.units import GIB

#: Memory a vLLM worker needs beside weights and KV (activations, CUDA graphs, context): what was left over in a vLLM 0.19 run
#: of Llama-3.1-8B on an RTX 4090 with 2,048 tokens a step (25.25 GB x 0.9 - 16.06 GB of weights - 2,588 blocks of 2 MiB).
WORKER_BYTES = 1.24e9

WEIGHT_FORMATS = ("bf16", "fp8", "int8", "int4", "nvfp4")
KV_FORMATS = ("bf16", "fp8")


@dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment as one would describe it to a colleague. Names or facts of one's own for model and GPU."""

    model: str | Model = "llama-3.1-8b"
    gpu: str | Gpu = "h100"
    tensor_parallel: int = 1
    """GPUs a replica."""
    weight_format: str = "bf16"
    """bf16, fp8, int8, int4 or nvfp4."""
    kv_format: str = "bf16"
    """bf16 or fp8."""
    gpu_memory_utilization: float = 0.9
    """Share of GPU memory the engine may take."""
    kv_blocks: int | None = None
    """KV blocks of one replica; unset: what memory holds."""
    block_size: int = 16
    """Tokens a KV block."""
    cpu_offload_gib: float = 0.0
    """Weights kept in CPU memory and read over PCIe in every step, GiB a GPU."""
    cpu_kv_gib: float = 0.0
    """CPU tier for swapped KV, GiB a replica."""
    replicas: int = 1
    prefill_replicas: int = 0
    """How many of the replicas only prefill; 0: all do both."""
    router: str = "round_robin"
    """round_robin, least_loaded or prefix."""
    affinity_slack: int = 32
    """router=prefix: requests more than on the idlest replica that are tolerated."""
    link_gb_per_s: float = 50.0
    """Between prefill and decode replicas, GB/s one way (50: one 400 Gb network card)."""
    link_latency_s: float = 50e-6
    price_per_gpu_hour: float | None = None
    """US dollars; unset: the GPU's listed price, if any."""

    def __post_init__(self) -> None:
        _one_of("weight_format", self.weight_format, WEIGHT_FORMATS)
        _one_of("kv_format", self.kv_format, KV_FORMATS)
        _one_of("router", self.router, tuple(r.name.lower() for r in Router))
        for name in ("tensor_parallel", "block_size", "replicas"):
            if getattr(self, name) < 1:
                raise ConfigError(f"deployment.{name}", f"{getattr(self, name)} is too small", allowed="1 or more")
        if not 0.1 <= self.gpu_memory_utilization <= 1.0:
            raise ConfigError(
                "deployment.gpu_memory_utilization", f"{self.gpu_memory_utilization} is out of range", allowed="0.1..1"
            )
        if self.kv_blocks is not None and self.kv_blocks < 1:
            raise ConfigError("deployment.kv_blocks", f"{self.kv_blocks} is too small", allowed="1 or more")

    @property
    def gpu_facts(self) -> Gpu:
        """The GPU's facts."""
        return gpu(self.gpu) if isinstance(self.gpu, str) else self.gpu

    @property
    def model_facts(self) -> Model:
        """The model's facts."""
        return model(self.model) if isinstance(self.model, str) else self.model

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return self.tensor_parallel * self.replicas

    @property
    def cost_per_hour(self) -> float | None:
        """US dollars an hour for all GPUs, if a price is known."""
        price = self.price_per_gpu_hour
        if price is None:
            price = self.gpu_facts.price_per_hour_usd
        return None if price is None else price * self.gpus

    def with_(self, **changes: Any) -> Deployment:
        """A copy with some fields changed; unknown names are refused."""
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                raise ConfigError(f"deployment.{name}", "no such field", allowed=", ".join(known))
        return replace(self, **changes)

    def kv_block_bytes(self) -> int:
        """Bytes of one KV block on all GPUs of a replica."""
        per_gpu = self.model_facts.kv_bytes_per_token(self.kv_format, self.tensor_parallel)
        return int(per_gpu * self.block_size * self.tensor_parallel)

    def kv_blocks_that_fit(self) -> int:
        """KV blocks of one replica: GPU memory less weights and the worker's own needs."""
        facts, card = self.model_facts, self.gpu_facts
        weights = facts.weight_bytes(self.weight_format) / self.tensor_parallel - self.cpu_offload_gib * GIB
        room = card.memory_bytes * self.gpu_memory_utilization - max(weights, 0.0) - WORKER_BYTES
        blocks = int(room * self.tensor_parallel // self.kv_block_bytes())
        if blocks < 1:
            raise ConfigError(
                "deployment",
                f"{facts.name} in {self.weight_format} needs {weights / 1e9:.1f} GB a GPU and leaves no room for KV on "
                f"{self.tensor_parallel} x {card.name} ({card.memory_bytes / 1e9:.0f} GB)",
                allowed="more tensor_parallel, a smaller weight_format, or cpu_offload_gib",
            )
        return blocks

    def machine(
        self,
        settings: EngineSettings,
        profile: Profile | None = None,
        *,
        factor: float = 1.0,
        extra_step_s: float = 0.0,
    ) -> Machine:
        """The engine's view: step-time tables, blocks, seats. `factor` and `extra_step_s` stretch and lengthen every step."""
        facts, card = self.model_facts, self.gpu_facts
        profile = profile or load_profile(card.name)
        blocks = self.kv_blocks or self.kv_blocks_that_fit()
        seats, budget = _vllm_defaults(card)
        length = min(facts.max_context, blocks * self.block_size)
        if settings.scheduler == "llamacpp":
            # A slot owns its share of the context; by default all that memory holds is shared out.
            slots = settings.max_num_seqs or seats
            length = max(2, min(facts.max_context, blocks * self.block_size // slots))
        tables = build_step_times(
            facts,
            card,
            profile,
            tensor_parallel=self.tensor_parallel,
            weight_format=self.weight_format,
            kv_format=self.kv_format,
            block_size=self.block_size,
            cpu_offload_gib=self.cpu_offload_gib,
            draft_cost=settings.draft_cost,
            max_tokens=max(settings.max_num_batched_tokens or budget, 512),
            max_seqs=max(settings.max_num_seqs or seats, 2),
            factor=factor,
            extra_step_s=extra_step_s,
            link_bytes_per_s=self.link_gb_per_s * 1e9,
            link_latency_s=self.link_latency_s,
        )
        return Machine(
            times=tables,
            kv_blocks=blocks,
            max_model_len=length,
            max_num_seqs=seats,
            max_num_batched_tokens=budget,
            block_size=self.block_size,
            cpu_blocks=int(self.cpu_kv_gib * GIB // self.kv_block_bytes()),
            replicas=self.replicas,
            prefill_replicas=self.prefill_replicas,
            router=Router[self.router.upper()],
            affinity_slack=self.affinity_slack,
        )


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"deployment.{name}", f"'{value}' is not known", allowed=", ".join(known))


def _vllm_defaults(card: Gpu) -> tuple[int, int]:
    """(max_num_seqs, max_num_batched_tokens) of vLLM's API server for a card (vLLM 0.32; reference in docs/fidelity.md)."""
    gib = card.memory_bytes / GIB
    if gib >= 160:
        return 1024, 16384
    if gib >= 70 and "a100" not in card.name.lower():
        return 1024, 8192
    return 256, 2048
