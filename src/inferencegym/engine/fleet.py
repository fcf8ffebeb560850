"""Deployments under way, side by side: every row serves a workload of its own and has six knobs that are turned from window to window.

What changes a running engine only a little (seats, blocks, drafts, order) takes effect in the next plan; other weights or another split of
the GPUs restart it: all KV is lost, and nothing is computed for as long as loading takes. One kernel call steps all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields

import numpy as np

from inferencegym.decision.columns import Floats
from inferencegym.decision.knobs import LEVERS, QUANTIZATION_TIERS, check_levers
from inferencegym.decision.snapshot import NAMES, Snapshot
from inferencegym.engine import memory
from inferencegym.engine.asked import Question, ask
from inferencegym.engine.codes import Stop
from inferencegym.engine.deployment import Deployment
from inferencegym.engine.machine import Machine
from inferencegym.engine.profile import Profile, load_profile
from inferencegym.engine.settings import EngineSettings
from inferencegym.engine.state import new_state
from inferencegym.engine.steer import VARIANT
from inferencegym.engine.times import TimesHandle, times_of
from inferencegym.engine.window import BEFORE, DONE, JUDGED, N_SEEN, N_TALLY, STAND, VARIANTS, windows
from inferencegym.ground.errors import ConfigError
from inferencegym.ground.units import to_ps
from inferencegym.workload import Workload

#: The weight format behind each tier of the knob.
FORMATS = {"FP16": "bf16", "INT8": "int8", "INT4": "int4"}
#: Why a split may be refused.
NEEDS_TWO = "needs at least two replicas"
#: Share of PCIe's peak that a copy of weights from pinned memory reaches (assumed, as for swaps).
LOAD_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Steering:
    """How a deployment may be steered and what that costs."""

    restart_s: float = 1.5
    """Pause of any restart beside copying weights: graphs and memory pools are made anew (assumed)."""
    split_s: float = 0.5
    """Pause when only the split changes: the replicas' roles and links (assumed)."""
    resident: tuple[str, ...] = ()
    """Tiers whose weights all stay in GPU memory: changing among them needs no copy, but takes their memory from KV."""
    prefill_replicas: int = 1
    """Replicas that only prefill when prefill and decode are split."""
    lent_credit: float = 0.5
    """What a wholly lent KV pool is worth, as a share of the GPUs' price."""
    price_per_gpu_hour: float | None = None
    """US dollars; unset: the deployment's."""


@dataclass(frozen=True, slots=True)
class Asking:
    """A workload as a fleet serves it, with the worth and the objectives of each request; shared by the rows that serve it."""

    workload: Workload
    question: Question
    judged: memory.Structured

    @classmethod
    def of(
        cls,
        workload: Workload,
        settings: EngineSettings,
        *,
        ttft_s: Sequence[float],
        tpot_s: Sequence[float],
        weight: Sequence[float],
        block_size: int = 16,
    ) -> Asking:
        """A workload with objectives and worth by SLO class (see `judge`)."""
        judged = judge(workload, ttft_s=ttft_s, tpot_s=tpot_s, weight=weight)
        return cls(workload, ask(workload, block_size, settings, list(ttft_s)), judged)


def judge(
    workload: Workload, *, ttft_s: Sequence[float], tpot_s: Sequence[float], weight: Sequence[float]
) -> memory.Structured:
    """JUDGED[n]: worth and objectives of each request. One number for each SLO class of the workload, seconds.

    Requests of the least priority number are urgent, if there are others.
    """
    classes = max(len(workload.slo_class_names), int(workload.slo_class.max(initial=0)) + 1)
    for name, numbers in (("ttft_s", ttft_s), ("tpot_s", tpot_s), ("weight", weight)):
        if len(numbers) < classes:
            raise ConfigError(name, f"{len(numbers)} numbers for {classes} classes", allowed=f"{classes} numbers")
    judged = np.zeros(len(workload), JUDGED)
    judged["ttft_ps"] = np.array([to_ps(x, field="ttft_s") for x in ttft_s])[workload.slo_class]
    judged["tpot_ps"] = np.array([to_ps(x, field="tpot_s") for x in tpot_s])[workload.slo_class]
    judged["weight"] = np.asarray(weight, dtype=np.float64)[workload.slo_class]
    if len(workload) and workload.priority.min() < workload.priority.max():
        judged["urgent"] = workload.priority == workload.priority.min()
    return judged


class Plan:
    """One deployment in its six variants (weight format x split): machines, step times, pauses. Made once, shared by all rows."""

    def __init__(
        self, deployment: Deployment, settings: EngineSettings, steering: Steering, profile: Profile | None = None
    ) -> None:
        if settings.scheduler != "vllm":
            raise ConfigError("engine.scheduler", f"'{settings.scheduler}' cannot be steered", allowed="vllm")
        if settings.max_model_len is None:
            raise ConfigError(
                "engine.max_model_len", "is not set; all weight formats must refuse the same prompts", allowed="tokens"
            )
        self.deployment, self.settings, self.steering = deployment, settings, steering
        self.profile = profile or load_profile(deployment.gpu_facts.name)
        self.can_split = deployment.replicas > steering.prefill_replicas > 0
        self.machines: list[Machine] = []
        self.handles: list[TimesHandle] = []
        self.variants = np.zeros(VARIANTS, VARIANT)
        for tier, name in enumerate(QUANTIZATION_TIERS):
            of_tier = deployment.with_(weight_format=FORMATS[name], kv_blocks=self._blocks(name))
            for split in (0, 1):
                pools = of_tier.with_(prefill_replicas=steering.prefill_replicas if split and self.can_split else 0)
                machine = pools.machine(settings, self.profile)
                self.machines.append(machine)
                self.handles.append(times_of(machine.times))
                variant = self.variants[2 * tier + split]
                variant["times_at"] = self.handles[-1].handle.ctypes.data
                variant["kv_blocks"] = machine.kv_blocks
                variant["prefill_replicas"] = machine.prefill_replicas
                variant["weights_gb"] = self._weights_gb(name)
                variant["watermark"] = settings.watermark
        self.pause_ps = np.array([[self._pause_ps(a, b) for b in range(VARIANTS)] for a in range(VARIANTS)])
        self.most_blocks = max(machine.kv_blocks for machine in self.machines)
        price = steering.price_per_gpu_hour
        hourly = price * deployment.gpus if price is not None else deployment.cost_per_hour
        self.price = np.array([hourly or 0.0, steering.lent_credit, float(deployment.kv_block_bytes())])

    def _blocks(self, tier: str) -> int:
        """KV blocks of a replica with this tier's weights in memory, or all resident tiers' together."""
        d = self.deployment
        fits = d.with_(weight_format=FORMATS[tier], kv_blocks=None).kv_blocks_that_fit()
        extra = [name for name in self.steering.resident if name != tier] if tier in self.steering.resident else []
        others = sum(d.model_facts.weight_bytes(FORMATS[name]) for name in extra)
        blocks = fits - int(others // d.kv_block_bytes())
        if d.kv_blocks is not None:
            blocks = min(blocks, d.kv_blocks)
        if blocks < 1:
            raise ConfigError(
                "steering.resident",
                f"{', '.join(self.steering.resident)} together leave no room for KV",
                allowed="fewer tiers",
            )
        return blocks

    def check_start(self, levers: Floats) -> None:
        """ConfigError if a deployment cannot start with these knobs: all six must be set, and possible."""
        check_levers(levers)
        if np.isnan(levers).any():
            name = LEVERS[int(np.argmax(np.isnan(levers)))]
            raise ConfigError(name, "is not set", allowed="all six knobs at the start")
        if levers[LEVERS.index("prefill_decode_split")] and not self.can_split:
            raise ConfigError("prefill_decode_split", NEEDS_TWO, allowed="false")

    def _weights_gb(self, tier: str) -> float:
        d = self.deployment
        names = self.steering.resident if tier in self.steering.resident else (tier,)
        return sum(d.model_facts.weight_bytes(FORMATS[name]) for name in names) * d.replicas / 1e9

    def _pause_ps(self, a: int, b: int) -> int:
        """How long nothing is computed when variant a becomes variant b."""
        if a == b:
            return 0
        before, after = QUANTIZATION_TIERS[a // 2], QUANTIZATION_TIERS[b // 2]
        pause_s = self.steering.split_s if a % 2 != b % 2 else 0.0
        if before != after and not {before, after} <= set(self.steering.resident):
            d = self.deployment
            copied = d.model_facts.weight_bytes(FORMATS[after]) / d.tensor_parallel
            pause_s = self.steering.restart_s + copied / (d.gpu_facts.pcie_bytes_per_s * LOAD_SHARE)
        return to_ps(pause_s, field="pause_s")


class Fleet:
    """n engines of one plan. Arrays are written in place by `start` and `step`."""

    def __init__(self, plan: Plan, n: int, *, capacity: int = 512) -> None:
        self.plan, self.n = plan, n
        self.active = n
        """How many rows, from the first on, `step` moves."""
        self.stands = np.zeros(n, STAND)
        self.stands["phase"] = DONE
        self.want = np.full((n, 6), np.nan)
        self.levers = np.zeros((n, 6))
        self.seen = np.zeros((n, N_SEEN))
        self.tally = np.zeros((n, N_TALLY))
        self._gaps = np.zeros((n, memory.GAP_BINS), np.int64)
        self._capacity = capacity
        self._arenas: list[memory.Arena | None] = [None] * n
        self._asking: list[Asking | None] = [None] * n
        self._out: list[memory.Structured | None] = [None] * n

    def start(self, row: int, asking: Asking, levers: Floats, seed: int) -> None:
        """Put a fresh deployment with these knobs (float64[6]) before a workload's first request."""
        plan = self.plan
        plan.check_start(levers)
        variant = 2 * int(levers[3]) + int(levers[4])
        settings = plan.settings.with_(
            max_num_seqs=int(levers[0]), kv_budget_fraction=float(levers[1]), speculation_depth=int(levers[2]),
            order="priority" if levers[5] else "fcfs", victims="rank" if levers[5] else "lifo",
        )  # fmt: skip
        arena = new_state(
            plan.machines[variant], settings, asking.question, seed,
            capacity=self._capacity, most_blocks=plan.most_blocks, may_split=plan.can_split,
        )  # fmt: skip
        # All fleets of a plan refuse the same prompts, whatever the pool.
        core = memory.part_of(arena, "core")
        core["max_model_len"] = plan.settings.max_model_len
        if plan.settings.whole_prompts:
            # Other weights leave room for longer prompts than this variant can hold.
            core["max_num_batched_tokens"] = np.maximum(core["max_num_batched_tokens"], core["max_model_len"])
        self._put(row, arena, asking)
        stand = self.stands[row]
        for name in STAND.names or ():
            if not name.endswith("_at"):
                stand[name] = 0
        stand["variant"], stand["phase"] = variant, DONE
        self.levers[row] = levers
        self._gaps[row] = 0
        self.tally[row] = 0
        self.seen[row] = _SEEN_AT_START
        self.seen[row, _LEVERS] = levers

    def _put(self, row: int, arena: memory.Arena, asking: Asking) -> None:
        out = self._out[row]
        if out is None:
            out = self._out[row] = np.zeros(256, memory.RECORD)
        header = memory.header_of(arena)
        header["out_at"], header["out_capacity"] = out.ctypes.data, len(out)
        self._arenas[row], self._asking[row] = arena, asking
        stand = self.stands[row]
        stand["arena_at"] = arena.ctypes.data
        stand["asked_at"] = asking.question.asked.ctypes.data
        stand["judged_at"] = asking.judged.ctypes.data

    def step(self, window_ps: int) -> None:
        """Turn the knobs as `want` says, let a window pass in every row, and measure it."""
        stands = self.stands[: self.active]
        stands["window_ps"] = window_ps
        stands["until_ps"] += window_ps
        stands["phase"] = BEFORE
        plan = self.plan
        while windows(
            stands, plan.variants, plan.pause_ps, self.want, self.levers, self.seen, self.tally, self._gaps, plan.price
        ):
            for row in np.flatnonzero(stands["phase"] != DONE).tolist():
                arena = self._arenas[row]
                assert arena is not None, "a row that was never started cannot be stepped"
                if stands["stop"][row] == Stop.NEED_SLOTS:
                    arena = memory.grow(arena)
                else:
                    out = self._out[row]
                    assert out is not None
                    self._out[row] = np.concatenate([out, np.zeros_like(out)])
                self._put(row, arena, self.asking(row))

    def records(self, row: int) -> memory.Structured:
        """RECORD[m]: the requests of a row that ended in the last window."""
        out = self._out[row]
        assert out is not None, "the row was never started"
        return out[: int(self.header(row)["out_len"][0])]

    def arena(self, row: int) -> memory.Arena:
        """The engine's bytes (not a copy)."""
        arena = self._arenas[row]
        assert arena is not None, "the row was never started"
        return arena

    def header(self, row: int) -> memory.Structured:
        """HEADER[1] of a row's engine."""
        return memory.header_of(self.arena(row))

    def asking(self, row: int) -> Asking:
        """What a row serves."""
        asking = self._asking[row]
        assert asking is not None, "the row was never started"
        return asking

    def branch(self, row: int, copies: int) -> Fleet:
        """A fleet of independent copies of a row, which go on from here."""
        twin = Fleet(self.plan, copies, capacity=self._capacity)
        asking = self.asking(row)
        for i in range(copies):
            twin.copy_row(i, self, row, asking)
        return twin

    def copy_row(self, row: int, source: Fleet, source_row: int, asking: Asking | None = None) -> None:
        """Make a row a copy of another fleet's; with `asking`, in front of another future (the rows seen so far must be the same)."""
        self.stands[row] = source.stands[source_row]
        self.levers[row] = source.levers[source_row]
        self.seen[row] = source.seen[source_row]
        self.tally[row] = source.tally[source_row]
        self._gaps[row] = source._gaps[source_row]
        arena = memory.copy_arena(source.arena(source_row), into=self._arenas[row])
        header = memory.header_of(arena)
        header["out_len"] = 0
        if asking is not None:
            assert header["closed_loop"][0] == 0, "requests that wait for others cannot be exchanged under way"
            header["open_rows"] = len(asking.question.open_rows)
        self._put(row, arena, asking or source.asking(source_row))


_SEEN_AT_START = np.full(N_SEEN, np.nan)
for _field in fields(Snapshot):
    _SEEN_AT_START[NAMES.index(_field.name)] = 0.0 if _field.default is MISSING else _field.default
_LEVERS = slice(NAMES.index("batch_cap"), NAMES.index("batch_cap") + 6)
