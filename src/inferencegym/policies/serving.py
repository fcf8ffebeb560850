"""Rules that steer a deployment window by window (surface `knobs`), after what serving systems and papers do.

Each reads the observation's columns by name and answers with all six knobs. None knows the objectives in seconds: what they have
is how often they were kept.
"""

from __future__ import annotations

from dataclasses import replace

from inferencegym.decision.columns import Float32s, Masks
from inferencegym.decision.knobs import COLUMNS, QUANTIZATION_TIERS, Knobs

#: vLLM's defaults as knobs: many seats, all of the memory, plain decoding, full precision, arrival order.
DEFAULTS = Knobs(
    batch_cap=256,
    kv_budget_fraction=1.0,
    speculation_depth=0,
    quantization_tier="FP16",
    prefill_decode_split=False,
    priority_routing=False,
)


class _Rule:
    """What all rules share: the surface, no chance, and an episode's beginning."""

    name = ""
    surface = "knobs"

    def start(self, seed: int) -> None:
        """Forget the last episode (rules draw nothing)."""
        del seed
        self.knobs = DEFAULTS
        self.begin()

    def __init__(self) -> None:
        self.start(0)

    def begin(self) -> None:
        """Set what a rule remembers."""

    def act(self, observation: Float32s, mask: Masks) -> Knobs:
        """The knobs for the next window."""
        del mask  # rules leave the split alone, the only knob that may be masked
        self.knobs = self.choose(COLUMNS.read(observation))
        return self.knobs

    def choose(self, seen: dict[str, float]) -> Knobs:
        """The knobs, from natural values by column."""
        raise NotImplementedError


class VllmLike(_Rule):
    """vLLM as it is often started, with two draft tokens, and fewer seats for a while when requests are preempted."""

    name = "vllm-like"

    def choose(self, seen: dict[str, float]) -> Knobs:
        """Halve the seats on preemption, down to 16; give an eighth back in every quiet window."""
        cap = self.knobs.batch_cap or 256
        if seen["preemptions"] >= 1:
            cap = max(16, cap // 2)
        elif seen["kv_cache_occupancy"] < 0.9:
            cap = min(256, cap + max(1, cap // 8))
        return replace(DEFAULTS, batch_cap=cap, speculation_depth=2)


class OrcaLike(_Rule):
    """Orca's admission: only as many requests as certainly fit, judged by the mean length of what was seen."""

    name = "orca-like"

    def begin(self) -> None:
        """Nothing seen yet."""
        self.blocks_each: float | None = None

    def choose(self, seen: dict[str, float]) -> Knobs:
        """Seats = what runs / what it holds, with a tenth to spare."""
        if seen["active_requests"] >= 4 and seen["kv_cache_occupancy"] > 0.02:
            share = seen["kv_cache_occupancy"] / seen["active_requests"]
            self.blocks_each = share if self.blocks_each is None else 0.7 * self.blocks_each + 0.3 * share
        cap = 256
        if self.blocks_each is not None:
            cap = int(min(256.0, max(8.0, 0.9 / self.blocks_each)))
        return replace(DEFAULTS, batch_cap=cap)


class DecimaFeatures(_Rule):
    """Decima's features (work waiting, work arriving, what runs) in a fixed score that picks one of three modes."""

    name = "decima-features"

    def begin(self) -> None:
        """No throughput seen yet."""
        self.most_tps = 1.0

    def choose(self, seen: dict[str, float]) -> Knobs:
        """Score = work arriving a second against the best seen, plus the seconds of work that wait."""
        self.most_tps = max(self.most_tps * 0.995, seen["throughput_tps"])
        output = seen["mean_output_length"] or 200.0
        arriving = seen["request_arrival_rate"] * output / self.most_tps
        waiting = (seen["queue_depth"] * output) / self.most_tps
        score = arriving + 0.2 * waiting
        if score > 1.2:
            return replace(DEFAULTS, quantization_tier="INT8", priority_routing=True, speculation_depth=1)
        if score > 0.7:
            return replace(DEFAULTS, priority_routing=True, speculation_depth=2)
        return replace(DEFAULTS, kv_budget_fraction=0.8, priority_routing=True, speculation_depth=2)


class Aimd(_Rule):
    """Additive increase, multiplicative decrease: of the seats on missed objectives, of the lent memory on pressure."""

    name = "aimd"

    def choose(self, seen: dict[str, float]) -> Knobs:
        """Seats + 8 while all is well, x 0.7 if not; lend 5 % more while less than half is held, take half of it back above 80 %."""
        knobs = self.knobs
        cap, kv = knobs.batch_cap or 256, knobs.kv_budget_fraction or 1.0
        strained = seen["kv_cache_occupancy"] > 0.8 or seen["preemptions"] >= 1 or seen["queue_depth"] >= 8
        if strained:
            kv = 1.0 - (1.0 - kv) / 2 if kv < 0.95 else 1.0
        elif seen["kv_cache_occupancy"] < 0.5:
            kv = max(0.3, kv - 0.05)
        if seen["slo_compliance_rate"] < 0.9 and seen["queue_depth"] < 8:
            cap = max(16, int(cap * 0.7))
        else:
            cap = min(256, cap + 8)
        return replace(
            DEFAULTS,
            batch_cap=cap,
            kv_budget_fraction=round(kv, 3),
            speculation_depth=2,
            priority_routing=True,
        )


class SloFeedback(_Rule):
    """Climbs a ladder of ever more memory while objectives are missed or memory is short, and steps down after calm.

    Lower precision stands above the ladder: it is taken when the top does not suffice for two windows, and kept for two minutes at
    least, since every change of weights loses all KV.
    """

    name = "slo-feedback"

    #: Share of the pool kept, from thrifty to strong.
    LADDER = (0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0)
    CALM_WINDOWS = 2
    KEEP_WINDOWS = 24

    def begin(self) -> None:
        """Start with all memory and full precision."""
        self.rung, self.calm, self.trouble, self.tier, self.kept = len(self.LADDER) - 1, 0, 0, 0, 0

    def choose(self, seen: dict[str, float]) -> Knobs:
        """Three rungs up when more than 5 % miss, two when memory is short; one down after calm windows."""
        top = len(self.LADDER) - 1
        missing = seen["slo_compliance_rate"] < 0.95
        at_top = self.rung == top
        if missing:
            self.rung, self.calm = min(top, self.rung + 3), 0
        elif seen["kv_cache_occupancy"] > 0.75 or seen["preemptions"] >= 1:
            self.rung, self.calm = min(top, self.rung + 2), 0
        elif seen["kv_cache_occupancy"] < 0.55:
            self.calm += 1
            if self.calm >= self.CALM_WINDOWS:
                self.rung, self.calm = max(0, self.rung - 1), 0
        self.trouble = self.trouble + 1 if missing and at_top else 0
        self.kept += 1
        if self.trouble >= 2 and self.tier < 2:
            self.tier, self.kept, self.trouble = self.tier + 1, 0, 0
        elif self.tier > 0 and self.kept >= self.KEEP_WINDOWS and seen["kv_cache_occupancy"] < 0.3:
            self.tier, self.kept = self.tier - 1, 0
        return replace(
            DEFAULTS,
            kv_budget_fraction=self.LADDER[self.rung],
            quantization_tier=QUANTIZATION_TIERS[self.tier],
            speculation_depth=2,
            priority_routing=True,
        )


RULES = (VllmLike, OrcaLike, DecimaFeatures, Aimd, SloFeedback)
