"""The rule `slo-feedback` for the knobs with its numbers laid open: named parameters that a search can tune and a person can read.

One kernel decides for n rows, each with parameters and a small memory of its own, so that a search plays a whole generation side by side. With
the default parameters it is `policies.serving.SloFeedback`, action for action. With `floor` = `top` = `start`, `tier` = `tier_most` and no busy
state it is one setting for ever; with small steps down and large ones up it is what `Aimd` does. Shares are of the pool of KV blocks.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from inferencegym.decision.columns import Float32s, Floats, Masks
from inferencegym.decision.knobs import COLUMNS, GRID, LEVERS, OFFSETS, Knobs
from inferencegym.ground.jit import kernel
from inferencegym.policies.commands import Commands
from inferencegym.policies.parameters import Parameter, by_name, checked, named

PARAMETERS: tuple[Parameter, ...] = (
    Parameter("start", 1.0, 0.2, 0.1, 1.0, "share of an episode's first window (held to floor..top)"),
    Parameter("floor", 0.3, 0.1, 0.1, 1.0, "least share"),
    Parameter("top", 1.0, 0.2, 0.1, 1.0, "largest share (no less than the floor)"),
    Parameter("missed", 0.95, 0.03, 0.0, 1.0, "compliance with the TTFT objectives below which they count as missed"),
    Parameter("up_missed", 0.3, 0.1, 0.0, 0.9, "share added when objectives are missed"),
    Parameter("full", 0.75, 0.1, 0.0, 1.0, "KV in use, of the share, above which memory is short; a preemption says so too"),
    Parameter("up_full", 0.2, 0.1, 0.0, 0.9, "share added when memory is short"),
    Parameter("queued", 10_000.0, 0.5, 0.0, 10_000.0, "waiting requests above which memory is short"),
    Parameter("jump", 1.5, 0.2, 1.0, 10.0, "arrival rate, fast average by slow, above which it has jumped"),
    Parameter("up_jump", 0.0, 0.1, 0.0, 0.9, "share added when it has jumped"),
    Parameter("roomy", 0.55, 0.1, 0.0, 1.0, "KV in use, of the share, below which a window without trouble is calm"),
    Parameter("calm_windows", 2.0, 1.0, 1.0, 20.0, "calm windows for a step down"),
    Parameter("down", 0.1, 0.05, 0.0, 0.9, "share taken off at a step down"),
    Parameter("headroom", 0.0, 0.4, 0.0, 10.0, "the share is at least so many times the KV in use..."),
    Parameter("margin", 0.0, 0.05, -1.0, 1.0, "...and so much more"),
    Parameter("busy_rate", 1000.0, 0.25, 0.01, 1000.0, "arrivals a second, fast average, above which it is busy"),
    Parameter("rate_memory", 0.5, 0.15, 0.02, 1.0, "weight of the last window in the fast average; that of the slow one is 0.1"),
    Parameter("busy_windows", 1.0, 2.0, 1.0, 50.0, "windows that it counts as busy from then on"),
    Parameter("busy_floor", 0.3, 0.1, 0.1, 1.0, "least share while busy (no less than the floor)"),
    Parameter("busy_tier", 0.0, 0.7, 0.0, 2.0, "tier while busy, at least"),
    Parameter("busy_depth", 2.0, 1.0, 0.0, 8.0, "draft tokens while busy"),
    Parameter("depth", 2.0, 1.0, 0.0, 8.0, "draft tokens"),
    Parameter("tier", 0.0, 0.5, 0.0, 2.0, "quantization tier, at least: 0 FP16, 1 INT8, 2 INT4"),
    Parameter("tier_most", 2.0, 0.7, 0.0, 2.0, "tier that trouble can raise it to"),
    Parameter("trouble_share", 1.0, 0.2, 0.0, 1.0, "share from which missed objectives count as trouble"),
    Parameter("trouble_windows", 2.0, 1.0, 1.0, 50.0, "windows of trouble, one after the other, that raise the tier by one"),
    Parameter("keep_windows", 24.0, 6.0, 1.0, 1000.0, "windows that a raised tier is kept at least"),
    Parameter("tier_calm", 0.3, 0.1, 0.0, 1.0, "KV in use, of the share, below which it may be lowered again"),
    Parameter("seats", 256.0, 0.5, 1.0, 512.0, "requests running at once, of a replica"),
    Parameter("seats_cut", 1.0, 0.1, 0.1, 1.0, "what the seats are multiplied by when objectives are missed and no more wait than `queued`"),
    Parameter("seats_back", 8.0, 0.5, 1.0, 512.0, "seats given back in every other window"),
    Parameter("split", 0.0, 0.0, 0.0, 1.0, "whether prefill and decode run apart, where they can; not searched"),
    Parameter("priority", 1.0, 0.0, 0.0, 1.0, "whether priority classes count; not searched"),
)  # fmt: skip
NAMES = tuple(one.name for one in PARAMETERS)
#: float64[p]: what makes it `slo-feedback`.
DEFAULTS: Floats = np.array([one.default for one in PARAMETERS])
SCALES: Floats = np.array([one.scale for one in PARAMETERS])
LOWS: Floats = np.array([one.low for one in PARAMETERS])
HIGHS: Floats = np.array([one.high for one in PARAMETERS])
#: Those that a search multiplies: its step is of the logarithm.
FACTORS = ("queued", "busy_rate", "seats", "seats_back")
#: Columns of a row's memory: see the kernel.
MEMORY = 11

_START, _FLOOR, _TOP, _MISSED, _UP_MISSED, _FULL, _UP_FULL, _QUEUED, _JUMP, _UP_JUMP, _ROOMY, _CALM_WINDOWS, _DOWN = range(13)  # fmt: skip
_HEADROOM, _MARGIN, _BUSY_RATE, _RATE_MEMORY, _BUSY_WINDOWS, _BUSY_FLOOR, _BUSY_TIER, _BUSY_DEPTH, _DEPTH, _TIER, _TIER_MOST = range(13, 24)  # fmt: skip
_TROUBLE_SHARE, _TROUBLE_WINDOWS, _KEEP_WINDOWS, _TIER_CALM, _SEATS, _SEATS_CUT, _SEATS_BACK, _SPLIT, _PRIORITY = range(24, 33)  # fmt: skip
_BEGUN, _RUNG, _CALM, _TROUBLE, _RAISED, _KEPT, _FAST, _SLOW, _BUSY_LEFT, _SEATS_NOW, _WINDOWS = range(MEMORY)

_SEEN_KV, _SEEN_SLO, _SEEN_SHARE = (COLUMNS.index(name) for name in ("kv_cache_occupancy", "slo_compliance_rate", "kv_budget_fraction"))  # fmt: skip
_SEEN_QUEUE, _SEEN_RATE, _SEEN_PREEMPTIONS = (COLUMNS.index(name) for name in ("queue_depth", "request_arrival_rate", "preemptions"))  # fmt: skip
_QUEUE_SPAN, _RATE_SPAN = (float(np.log1p(COLUMNS[i].high)) for i in (_SEEN_QUEUE, _SEEN_RATE))
_MAY_SPLIT = OFFSETS[LEVERS.index("prefill_decode_split")] + GRID["prefill_decode_split"].index(1.0)
_MOST_SEATS = GRID["batch_cap"][-1]
#: Weight of the last window in the slow average of the arrival rate.
_SLOW_WEIGHT = 0.1
#: Above this share steps are longer by that factor, as on the ladder of `slo-feedback`: 0.7, 0.85, 1.0.
_BEND, _LONGER = 0.7, 1.5
_NEARLY = 1e-9


@kernel
def _rung_of(share: float) -> float:
    """A share as a place on a ladder whose steps are equal."""
    return share if share <= _BEND else _BEND + (share - _BEND) / _LONGER


@kernel
def _share_of(rung: float) -> float:
    """The inverse of `_rung_of`."""
    return rung if rung <= _BEND else _BEND + (rung - _BEND) * _LONGER


@kernel
def decide(parameters: Floats, memory: Floats, observations: Float32s, masks: Masks, levers: Floats) -> None:
    """Fill levers[n, 6] by each row's parameters[n, p]; memory[n, MEMORY] goes on."""
    for i in range(len(levers)):
        _one(parameters[i], memory[i], observations[i], levers[i])
        if masks[i, _MAY_SPLIT] == 0:
            levers[i, 4] = 0.0


@kernel
def _one(p: Floats, m: Floats, seen: Float32s, levers: Floats) -> None:
    held = np.float64(seen[_SEEN_KV])
    queue = np.expm1(np.float64(seen[_SEEN_QUEUE]) * _QUEUE_SPAN)
    missing = np.float64(seen[_SEEN_SLO]) < p[_MISSED]
    waiting = queue > p[_QUEUED]
    short = held > p[_FULL] or seen[_SEEN_PREEMPTIONS] > 0.0 or waiting
    jumped, busy = _follow_rate(p, m, seen)
    floor = _rung_of(max(p[_FLOOR], p[_BUSY_FLOOR]) if busy else p[_FLOOR])
    top = max(_rung_of(p[_TOP]), floor)
    if m[_BEGUN] == 0.0:
        m[_BEGUN], m[_RUNG], m[_SEATS_NOW] = 1.0, _rung_of(p[_START]), p[_SEATS]
    m[_RUNG] = min(max(m[_RUNG], floor), top)
    # Whether the share was enough already to make missed objectives trouble: before it moves.
    ample = _share_of(m[_RUNG]) >= p[_TROUBLE_SHARE] - _NEARLY

    up = 0.0
    if missing:
        up = p[_UP_MISSED]
    if short:
        up = max(up, p[_UP_FULL])
    if jumped:
        up = max(up, p[_UP_JUMP])
    if missing or short or up > 0.0:
        m[_RUNG], m[_CALM] = m[_RUNG] + up, 0.0
    elif held < p[_ROOMY]:
        m[_CALM] += 1.0
        if m[_CALM] >= np.floor(p[_CALM_WINDOWS] + 0.5):
            m[_RUNG], m[_CALM] = m[_RUNG] - p[_DOWN], 0.0
    if p[_HEADROOM] > 0.0:
        needed = p[_HEADROOM] * held * np.float64(seen[_SEEN_SHARE]) + p[_MARGIN]
        m[_RUNG] = max(m[_RUNG], _rung_of(needed))
    m[_RUNG] = min(max(m[_RUNG], floor), top)

    base = np.floor((max(p[_TIER], p[_BUSY_TIER]) if busy else p[_TIER]) + 0.5)
    most = max(np.floor(p[_TIER_MOST] + 0.5), base)
    _raise_tier(p, m, missing and ample, held, most - base)
    _move_seats(p, m, missing and not waiting)
    levers[0] = np.floor(m[_SEATS_NOW] + 0.5)
    levers[1] = np.floor(_share_of(m[_RUNG]) * 100.0 + 0.5) / 100.0
    levers[2] = np.floor((p[_BUSY_DEPTH] if busy else p[_DEPTH]) + 0.5)
    levers[3] = base + min(m[_RAISED], most - base)
    levers[4] = np.floor(p[_SPLIT] + 0.5)
    levers[5] = np.floor(p[_PRIORITY] + 0.5)


@kernel
def _follow_rate(p: Floats, m: Floats, seen: Float32s) -> tuple[bool, bool]:
    """(the arrival rate has jumped, it is busy)."""
    rate = np.expm1(np.float64(seen[_SEEN_RATE]) * _RATE_SPAN)
    if rate > 0.0 or m[_WINDOWS] > 0.0:
        # Plain means at first, so that the first window does not weigh the most.
        m[_WINDOWS] += 1.0
        m[_FAST] += max(p[_RATE_MEMORY], 1.0 / m[_WINDOWS]) * (rate - m[_FAST])
        m[_SLOW] += max(_SLOW_WEIGHT, 1.0 / m[_WINDOWS]) * (rate - m[_SLOW])
    if m[_FAST] > p[_BUSY_RATE]:
        m[_BUSY_LEFT] = np.floor(p[_BUSY_WINDOWS] + 0.5)
    else:
        m[_BUSY_LEFT] = max(m[_BUSY_LEFT] - 1.0, 0.0)
    return m[_FAST] > p[_JUMP] * m[_SLOW], m[_BUSY_LEFT] > 0.0


@kernel
def _raise_tier(p: Floats, m: Floats, trouble: bool, held: float, most: float) -> None:
    """Raise the tier by one after enough trouble, up to `most` above its base; lower it by one when it was kept and there is room."""
    m[_TROUBLE] = m[_TROUBLE] + 1.0 if trouble else 0.0
    m[_KEPT] += 1.0
    if m[_TROUBLE] >= np.floor(p[_TROUBLE_WINDOWS] + 0.5) and m[_RAISED] < most:
        m[_RAISED], m[_KEPT], m[_TROUBLE] = m[_RAISED] + 1.0, 0.0, 0.0
    elif m[_RAISED] > 0.0 and m[_KEPT] >= np.floor(p[_KEEP_WINDOWS] + 0.5) and held < p[_TIER_CALM]:
        m[_RAISED], m[_KEPT] = m[_RAISED] - 1.0, 0.0


@kernel
def _move_seats(p: Floats, m: Floats, missing: bool) -> None:
    """Fewer while objectives are missed though nobody waits long, more again after that."""
    if missing:
        m[_SEATS_NOW] = max(m[_SEATS_NOW] * p[_SEATS_CUT], 1.0)
    else:
        m[_SEATS_NOW] = min(m[_SEATS_NOW] + p[_SEATS_BACK], p[_SEATS])


def fresh_memory(rows: int) -> Floats:
    """float64[n, MEMORY] for n episodes that begin."""
    return np.zeros((rows, MEMORY))


def parameters_of(given: Mapping[str, float]) -> Floats:
    """float64[p]: the defaults, with some changed by name; ConfigError or UnknownNameError for what cannot be."""
    return named(PARAMETERS, given)


def levers_of(setting: Floats) -> dict[str, float]:
    """The parameters that a setting (levers float64[6]) gives, but for its share: seats, depth, tier, split, priority; busy or not."""
    seats, _, depth, tier, split, priority = setting.tolist()
    return {
        "seats": seats, "depth": depth, "busy_depth": depth, "tier": tier, "busy_tier": tier, "split": split, "priority": priority,
    }  # fmt: skip


def holding(setting: Floats) -> Floats:
    """float64[p]: what holds a setting (levers float64[6]) for ever."""
    share = {name: float(setting[1]) for name in ("start", "floor", "top", "busy_floor")}
    return parameters_of(levers_of(setting) | share | {"tier_most": float(setting[3])})


class FeedbackKnobs:
    """Plays the rule with its parameters."""

    surface = "knobs"

    def __init__(self, parameters: Floats | None = None, *, name: str = "feedback") -> None:
        """`parameters`: float64[p] in the order of PARAMETERS; default, those of `slo-feedback`."""
        self.name = name
        self.parameters = checked(PARAMETERS, parameters)
        self._row = self.parameters[None]
        self._memory = fresh_memory(1)
        self._levers = np.zeros((1, len(LEVERS)))
        self._commands = Commands()

    def start(self, seed: int) -> None:
        """Nothing is left to chance; forgets the last episode."""
        del seed
        self._memory = fresh_memory(1)

    def act(self, observation: Float32s, mask: Masks) -> Knobs:
        """The command."""
        decide(self._row, self._memory, observation[None], mask[None], self._levers)
        return self._commands.of(self._levers[0])

    def as_mapping(self) -> dict[str, float]:
        """The parameters by name."""
        return by_name(PARAMETERS, self.parameters)

    def table(self) -> str:
        """The rule as a Markdown table: each parameter, here and in `slo-feedback`."""
        lines = ["| parameter | value | slo-feedback | what it is |", "|---|---|---|---|"]
        for one, value in zip(PARAMETERS, self.parameters.tolist(), strict=True):
            lines.append(f"| {one.name} | {value:.4g} | {one.default:.4g} | {one.what} |")
        return "\n".join(lines)
