"""The engine's settings, as a serving engineer knows them from vLLM. Unset ones get vLLM's defaults for the machine.

`--set engine.NAME=VALUE` and `Engine.change(NAME=VALUE)` take the same names; LIVE lists those that can change while it runs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Any

from inferencegym.engine.codes import Order, Preemption, Scheduler, Victims
from inferencegym.ground.errors import ConfigError

#: Settings that a running engine can change from one plan to the next.
LIVE = frozenset(
    {
        "order", "victims", "preemption", "max_num_seqs", "max_num_batched_tokens", "long_prefill_token_threshold",
        "reserve_full_isl", "watermark", "speculation_depth", "kv_budget_fraction",
    }
)  # fmt: skip

MAX_DRAFTS = 16


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How the engine schedules. Rules: docs/scheduling.md."""

    scheduler: str = "vllm"
    """vllm (v1: running first, chunked prefill), sarathi (decodes first), orca (prefill first, whole prompts), static, llamacpp (slots)."""
    order: str = "fcfs"
    """Order of the waiting queue: fcfs, priority, aging (priority that grows with waiting), sjf (shortest prompt), edf (TTFT deadline), vtc (fair tokens)."""
    victims: str = "auto"
    """Who is preempted: lifo (newest), rank (last in order); auto: rank for priority and aging, else lifo."""
    preemption: str = "recompute"
    """What happens to a victim's KV: recompute, swap (to the CPU tier), auto (the cheaper)."""
    max_num_seqs: int | None = None
    """Requests running at once. Unset: vLLM's API server default, 256 below 70 GiB and on A100, else 1024."""
    max_num_batched_tokens: int | None = None
    """Token budget of a step. Unset: 2048 below 70 GiB and on A100, 8192 from 70 GiB, 16384 from 160 GiB; at least max_model_len without chunking."""
    max_model_len: int | None = None
    """Longest prompt plus answer, tokens. Unset: what the model allows and the KV pool holds."""
    chunked_prefill: bool = True
    """Whether a prompt may be computed in pieces."""
    long_prefill_token_threshold: int = 0
    """Longest piece of a prompt in a step while others are alive; 0: no limit but the budget."""
    reserve_full_isl: bool = True
    """Admit only if the whole known sequence fits, not just its first piece."""
    watermark: float = 0.0
    """Share of the pool kept free at admission while something runs."""
    prefix_caching: bool = True
    """Reuse cached blocks of equal prefixes (and of a preempted request's own)."""
    speculation_depth: int = 0
    """Draft tokens a step."""
    acceptance: tuple[float, ...] = (0.7,)
    """Chance that a draft token is kept, given that all before it were: one number a position, the last one holds for the rest."""
    acceptance_by_kind: tuple[tuple[str, tuple[float, ...]], ...] = ()
    """`acceptance` of kinds of traffic that differ, by the workload's kind names."""
    draft_cost: float = 0.0
    """Time of one draft token's pass relative to a decode step of the target model; 0: n-gram look-up."""
    aging_s: float = 10.0
    """order=aging: waiting time that makes up for one priority level."""
    vtc_input_cost: int = 1
    """order=vtc: what a prompt token costs its tenant (Sheng et al.: 1)."""
    vtc_output_cost: int = 2
    """order=vtc: what an answer token costs its tenant (Sheng et al.: 2)."""
    vtc_weights: tuple[float, ...] = ()
    """order=vtc: share of each tenant, in order of tenant number; unset ones 1."""
    kv_budget_fraction: float = 1.0
    """Share of the KV blocks this service may use; shrinking it below use preempts."""

    def __post_init__(self) -> None:
        for name, enum in _CHOICES.items():
            _choice(name, getattr(self, name), enum)
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"engine.{name}", f"{value} is too small", allowed=f"{least} or more")
        _within("watermark", self.watermark, 0.0, 0.5)
        _within("kv_budget_fraction", self.kv_budget_fraction, 0.01, 1.0)
        _within("draft_cost", self.draft_cost, 0.0, 10.0)
        if self.speculation_depth > MAX_DRAFTS:
            raise ConfigError(
                "engine.speculation_depth", f"{self.speculation_depth} is too many", allowed=f"0..{MAX_DRAFTS}"
            )
        for rates in (self.acceptance, *(rates for _, rates in self.acceptance_by_kind)):
            if not rates:
                raise ConfigError("engine.acceptance", "is empty", allowed="one number in 0..1 or more")
            for rate in rates:
                _within("acceptance", rate, 0.0, 1.0)
        for weight in self.vtc_weights:
            _within("vtc_weights", weight, 1e-3, 1e3)
        self._check_scheduler()

    def _check_scheduler(self) -> None:
        if self.scheduler in ("vllm", "sarathi"):
            return
        if self.speculation_depth > 0:
            raise ConfigError(
                "engine.speculation_depth", f"scheduler '{self.scheduler}' has no speculation", allowed="0"
            )
        if self.preemption != "recompute":
            raise ConfigError("engine.preemption", f"scheduler '{self.scheduler}' never preempts", allowed="recompute")

    @property
    def whole_prompts(self) -> bool:
        """Whether a prompt has to fit into one step."""
        return self.scheduler in ("orca", "static") or (not self.chunked_prefill and self.scheduler != "llamacpp")

    @property
    def victim_rule(self) -> Victims:
        """`victims`, with auto resolved."""
        if self.victims == "auto":
            return Victims.RANK if self.order in ("priority", "aging") else Victims.LIFO
        return Victims[self.victims.upper()]

    def cumulative_acceptance(self, kind: str = "") -> list[float]:
        """Chance that at least j + 1 drafts are kept, for j = 0 .. MAX_DRAFTS - 1, of this kind of traffic."""
        rates = dict(self.acceptance_by_kind).get(kind, self.acceptance)
        chances, chance = [], 1.0
        for j in range(MAX_DRAFTS):
            chance *= rates[min(j, len(rates) - 1)]
            chances.append(chance)
        return chances

    def with_(self, **changes: Any) -> EngineSettings:
        """A copy with some settings changed; unknown names are refused."""
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                raise ConfigError(f"engine.{name}", "no such setting", allowed=", ".join(known))
        return replace(self, **changes)


_CHOICES: dict[str, type[IntEnum] | tuple[str, ...]] = {
    "scheduler": Scheduler,
    "order": Order,
    "preemption": Preemption,
    "victims": ("auto", *(v.name.lower() for v in Victims)),
}
_LEAST = {
    "max_num_seqs": 1, "max_num_batched_tokens": 1, "max_model_len": 2, "long_prefill_token_threshold": 0,
    "speculation_depth": 0, "aging_s": 0.0, "vtc_input_cost": 0, "vtc_output_cost": 0,
}  # fmt: skip


def _choice(name: str, value: str, choices: type[IntEnum] | tuple[str, ...]) -> None:
    known = choices if isinstance(choices, tuple) else tuple(member.name.lower() for member in choices)
    if value not in known:
        raise ConfigError(f"engine.{name}", f"'{value}' is not known", allowed=", ".join(known))


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"engine.{name}", f"{value} is out of range", allowed=f"{low:g}..{high:g}")
