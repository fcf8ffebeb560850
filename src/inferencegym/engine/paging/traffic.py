"""Who comes, when, with how much text: every request of an episode, drawn before it begins from the scenario's named streams.

Arrivals do not depend on what is done: a user who was rejected asks the follow-up all the same, so no policy shrinks its own
denominator. Times are ticks (a tick is one engine step), lengths tokens, rates requests a tick.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from inferencegym.engine.paging.memory import TRAFFIC
from inferencegym.engine.paging.rules import Rules
from inferencegym.ground.errors import ConfigError
from inferencegym.ground.jit import kernel
from inferencegym.ground.rng import stream

Table = npt.NDArray[np.void]
Floats = npt.NDArray[np.float64]
Draws = npt.NDArray[np.float32]
PATTERNS = ("steady", "day", "spikes")
#: What the phases of a pattern are called.
PHASES = {"steady": ("steady",), "day": ("night", "day"), "spikes": ("calm", "spike")}
_MIN_TOKENS = 16
#: Last ticks of an episode, in which fewer arrive (see `_draw`).
DRAIN_TICKS = 600


@dataclass(frozen=True, slots=True)
class Users:
    """How one kind of user writes: normal distributions, cut at 16 tokens."""

    prompt_mean: float
    prompt_sd: float
    output_mean: float
    output_sd: float
    follow_mean: float
    """New text of a returning user."""
    follow_sd: float

    def row(self) -> tuple[float, ...]:
        """The six numbers, for kernels."""
        return (self.prompt_mean, self.prompt_sd, self.output_mean, self.output_sd, self.follow_mean, self.follow_sd)


@dataclass(frozen=True, slots=True)
class Demand:
    """The law of a task's traffic."""

    pattern: str
    """steady; day (a sine between night and noon); spikes (calm, and spikes at random times that nobody announces)."""
    low_rate: float
    """New conversations a tick: always, at midnight, or in calm."""
    high_rate: float
    """At noon, or in a spike."""
    chatters: Users
    power_users: Users
    power_share: float
    vip_share: float
    return_chance: float
    think_min_ticks: int
    think_mean_ticks: int
    """Mean time between an undisturbed answer's end and the follow-up, beyond the minimum."""
    period_ticks: int = 2500
    calm_ticks: tuple[int, int] = (600, 1200)
    spike_ticks: tuple[int, int] = (300, 600)

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise ConfigError("traffic.pattern", f"'{self.pattern}' is not known", allowed=", ".join(PATTERNS))
        if not 0 < self.low_rate <= self.high_rate:
            raise ConfigError("traffic.low_rate", f"{self.low_rate}", allowed="0 < low_rate <= high_rate")
        for name in ("power_share", "vip_share", "return_chance"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"traffic.{name}", f"{getattr(self, name)}", allowed="0 to below 1")

    def capacity(self, horizon_ticks: int) -> int:
        """Requests that an episode may have: beyond any that occur."""
        high_share = {"steady": 0.0, "day": 0.5}.get(self.pattern)
        if high_share is None:
            # Half again the usual share of spikes.
            high_share = min(1.0, 1.5 * sum(self.spike_ticks) / (sum(self.spike_ticks) + sum(self.calm_ticks)))
        roots = horizon_ticks * (self.low_rate + (self.high_rate - self.low_rate) * high_share)
        return int(1.1 * (roots + 8 * roots**0.5 + 16) / (1 - self.return_chance)) + 64


@dataclass(frozen=True)
class Traffic:
    """One scenario."""

    table: Table
    """TRAFFIC[n], in order of arrival."""
    phases: npt.NDArray[np.int8]
    """int8[horizon + 1]: phase of each tick."""

    @cached_property
    def returning_tokens(self) -> int:
        """Tokens of old conversation that returning users bring."""
        return int(self.table["cached"].sum(dtype=np.int64))

    def weight(self, vip_weight: int) -> int:
        """Output tokens asked for, a VIP's counted `vip_weight` times."""
        output = self.table["output"]
        return int(output.sum(dtype=np.int64) + (vip_weight - 1) * output[self.table["tier"] == 1].sum(dtype=np.int64))


def rates(demand: Demand, rules: Rules, scenario: int) -> tuple[Floats, npt.NDArray[np.int8]]:
    """New conversations per tick, and the phase, for ticks 0..horizon."""
    ticks = np.arange(rules.horizon_ticks + 1)
    if demand.pattern == "steady":
        return np.full(len(ticks), demand.low_rate), np.zeros(len(ticks), np.int8)
    if demand.pattern == "day":
        height = (1 - np.cos(2 * np.pi * ticks / demand.period_ticks)) / 2
    else:
        height = np.zeros(len(ticks))
        chance = stream(scenario, "paging/spikes")
        at = 0
        while at <= rules.horizon_ticks:
            at += int(chance.integers(*demand.calm_ticks))
            end = at + int(chance.integers(*demand.spike_ticks))
            height[at:end] = 1.0
            at = end
    return demand.low_rate + (demand.high_rate - demand.low_rate) * height, (height >= 0.5).astype(np.int8)


def generate(demand: Demand, rules: Rules, scenario: int) -> Traffic:
    """The traffic of a scenario: the same number gives the same requests everywhere."""
    rate, phases = rates(demand, rules, scenario)
    capacity = demand.capacity(rules.horizon_ticks)
    arrivals = stream(scenario, "paging/arrivals").random(rules.horizon_ticks + 1)
    users = stream(scenario, "paging/users").random((capacity, 3), dtype=np.float32)
    lengths = stream(scenario, "paging/lengths").standard_normal((capacity, 2), dtype=np.float32)
    thinking = stream(scenario, "paging/thinking").standard_exponential(capacity, dtype=np.float32)
    numbers = np.array(
        [
            (*demand.chatters.row(), demand.power_share, demand.vip_share, demand.return_chance),
            (*demand.power_users.row(), demand.think_min_ticks, demand.think_mean_ticks, rules.max_context_tokens),
        ]
    )
    table = np.zeros(capacity, TRAFFIC)
    order = np.zeros(capacity, np.int64)
    count = _draw(rate, arrivals, users, lengths, thinking, numbers, rules.prefill_tokens_per_tick, table)
    assert count < capacity, f"scenario {scenario} has more requests than a row holds ({capacity})"
    return Traffic(_sorted(table[:count], phases, order[:count]), phases)


@kernel
def _tokens(mean: float, sd: float, normal: float) -> int:
    return max(_MIN_TOKENS, int(mean + sd * normal))


@kernel
def _draw(
    rate: Floats,
    arrivals: Floats,
    users: Draws,
    lengths: Draws,
    thinking: Draws,
    numbers: Floats,
    prefill_rate: int,
    table: Table,
) -> int:
    """Conversations in order of arrival, then their follow-ups, and theirs; how many there are.

    numbers : float64[2, 9], rows for chatters and power users: six lengths, and three more each
    table : TRAFFIC[capacity], changed in place
    """
    power_share, vip_share, return_chance = numbers[0, 6], numbers[0, 7], numbers[0, 8]
    think_min, think_mean, max_context = numbers[1, 6], numbers[1, 7], numbers[1, 8]
    capacity = len(table)
    last = len(rate) - 1
    count = 0
    for tick in range(len(rate)):
        # Poisson by inversion: subtract chances until the draw is used up.
        chance = np.exp(-rate[tick])
        left = arrivals[tick] - chance
        k = 1
        while left > 0 and count < capacity - 1:
            kind = 1 if users[count, 0] < power_share else 0
            r = table[count]
            r["tick"] = tick
            r["parent"] = -1
            r["kind"] = kind
            r["tier"] = 1 if users[count, 1] < vip_share else 0
            r["prompt"] = _tokens(numbers[kind, 0], numbers[kind, 1], lengths[count, 0])
            r["output"] = _tokens(numbers[kind, 2], numbers[kind, 3], lengths[count, 1])
            # Who could not be answered before the end even by an idle server does not come.
            if tick + r["prompt"] // prefill_rate + 1 + r["output"] <= last and r["prompt"] + r["output"] < max_context:
                count += 1
            chance *= rate[tick] / k
            left -= chance
            k += 1
    parent = 0
    while parent < count and count < capacity - 1:
        p = table[parent]
        if users[parent, 2] < return_chance:
            kind = p["kind"]
            r = table[count]
            r["tick"] = p["tick"] + p["output"] + think_min + int(think_mean * thinking[parent])
            r["parent"] = parent
            r["kind"] = kind
            r["tier"] = p["tier"]
            r["cached"] = p["prompt"] + p["output"]
            r["prompt"] = r["cached"] + _tokens(numbers[kind, 4], numbers[kind, 5], lengths[count, 0])
            r["output"] = _tokens(numbers[kind, 2], numbers[kind, 3], lengths[count, 1])
            if (
                r["tick"] + r["prompt"] // prefill_rate + 1 + r["output"] <= last
                and r["prompt"] + r["output"] < max_context
            ):
                count += 1
        parent += 1
    return count


@kernel
def _sorted(table: Table, phases: npt.NDArray[np.int8], order: npt.NDArray[np.int64]) -> Table:
    """The requests in order of arrival (counting sort; ties as drawn), parents renumbered, each with its tick's phase.

    order : int64[n], scratch: new number of each request
    """
    starts = np.zeros(len(phases) + 1, np.int64)
    for i in range(len(table)):
        starts[table[i]["tick"] + 1] += 1
    for tick in range(1, len(starts)):
        starts[tick] += starts[tick - 1]
    out = np.empty_like(table)
    for i in range(len(table)):
        place = starts[table[i]["tick"]]
        starts[table[i]["tick"]] += 1
        order[i] = place
        out[place] = table[i]
        out[place]["phase"] = phases[table[i]["tick"]]
    for i in range(len(out)):
        out[i]["child"] = -1
    for i in range(len(out)):
        if out[i]["parent"] >= 0:
            parent = order[out[i]["parent"]]
            out[i]["parent"] = parent
            out[parent]["child"] = i
    return out


def offered_load(traffic: Traffic, rules: Rules) -> dict[int, float]:
    """Block-ticks that each phase's requests need (an idle server, no cache hit but the user's own), of those the pool has in its ticks.

    The end, when those who could not be answered in time stay away, is left out.
    """
    last = rules.horizon_ticks - DRAIN_TICKS
    t = traffic.table[traffic.table["tick"] <= last]
    prompt, output = t["prompt"].astype(np.int64), t["output"].astype(np.int64)
    prefill = (prompt - t["cached"]) // rules.prefill_tokens_per_tick + 1
    block_ticks = (prompt * (prefill + output) + output * output / 2) / rules.block_tokens
    phases = traffic.phases[: last + 1]
    return {
        phase: float(block_ticks[t["phase"] == phase].sum() / (rules.gpu_blocks * max(int((phases == phase).sum()), 1)))
        for phase in range(int(traffic.phases.max()) + 1)
    }
