"""A linear rule for the knobs: eight figures of the last window move four knobs away from a setting; small enough to be read as a table.

Each figure z is (figure - mean) / scale, held to -3..3; a knob's number is bias + sum of weight x z, held to -1..1, and becomes a lever as in
the encoding `box`, with KV shares in twentieths. Split and priority stay as in the setting. With all weights 0 it is that setting for ever.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inferencegym.decision.columns import Float32s, Floats, Masks
from inferencegym.decision.encodings import BoxKnobs
from inferencegym.decision.knobs import COLUMNS, GRID, LEVERS, OFFSETS, Knobs
from inferencegym.ground.errors import ConfigError
from inferencegym.ground.jit import kernel
from inferencegym.policies.commands import Commands

#: Columns it looks at, encoded as the observation is. The first is multiplied by the KV share in force: KV in use, of all there is.
FEATURES = (
    "kv_cache_occupancy", "queue_depth", "active_requests", "request_arrival_rate", "slo_compliance_rate", "waiting_prompt_tokens",
    "mean_prompt_length", "p99_ttft_ms",
)  # fmt: skip
#: Knobs that it moves: the first so many of LEVERS.
MOVED = 4
_COLUMNS = np.array([COLUMNS.index(name) for name in FEATURES])
_SHARE = COLUMNS.index("kv_budget_fraction")
_MAY_SPLIT = OFFSETS[LEVERS.index("prefill_decode_split")] + GRID["prefill_decode_split"].index(1.0)
_SPLIT = LEVERS.index("prefill_decode_split")
_FAR = 3.0
_LOW, _HIGH = 0.1, 1.0


@dataclass(frozen=True, slots=True)
class Frame:
    """What all candidates of a search share."""

    mean: Floats
    """float64[f], of each figure, encoded."""
    scale: Floats
    """float64[f], what it is divided by."""
    base: Floats
    """float64[6]: the setting that the rule starts from, levers."""

    def resting(self) -> Floats:
        """float64[4, f + 1]: weights (and, last, the bias) that hold the base for ever."""
        weights = np.zeros((MOVED, len(FEATURES) + 1))
        weights[:, -1] = BoxKnobs().numbers(self.base[None])[0, :MOVED]
        return weights


@kernel
def _features(observation: Float32s, i: int) -> float:
    value = np.float64(observation[_COLUMNS[i]])
    return value * np.float64(observation[_SHARE]) if i == 0 else value


@kernel
def _decide(weights: Floats, frame: Floats, observations: Float32s, masks: Masks, levers: Floats) -> None:
    """Fill levers[n, 6] by weights[n, 4, f + 1] and frame[3, max(f, 6)] (mean, scale, base)."""
    count = len(_COLUMNS)
    for row in range(len(levers)):
        for knob in range(6):
            levers[row, knob] = frame[2, knob]
        if masks[row, _MAY_SPLIT] == 0:
            levers[row, _SPLIT] = 0.0
        for knob in range(MOVED):
            x = weights[row, knob, count]
            for i in range(count):
                z = (_features(observations[row], i) - frame[0, i]) / frame[1, i]
                x += weights[row, knob, i] * min(max(z, -_FAR), _FAR)
            u = (min(max(x, -1.0), 1.0) + 1.0) / 2.0
            if knob == 0:
                levers[row, 0] = np.floor(512.0**u + 0.5)
            elif knob == 1:
                levers[row, 1] = np.floor((_LOW + (_HIGH - _LOW) * u) * 20.0 + 0.5) / 20.0
            elif knob == 2:
                levers[row, 2] = min(np.floor(9.0 * u), 8.0)
            else:
                levers[row, 3] = min(np.floor(3.0 * u), 2.0)


def decide(weights: Floats, frame: Frame, observations: Float32s, masks: Masks, levers: Floats) -> None:
    """Fill levers[n, 6] for n rows, each with weights of its own: float64[n, 4, f + 1]."""
    _decide(weights, _packed(frame), observations, masks, levers)


def features_of(observations: Float32s) -> Floats:
    """float64[n, f]: the figures in observations float32[n, k]."""
    found: Floats = observations[:, _COLUMNS].astype(np.float64)
    found[:, 0] *= observations[:, _SHARE]
    return found


class LinearKnobs:
    """Plays the rule with its weights."""

    surface = "knobs"

    def __init__(self, frame: Frame, weights: Floats, *, name: str = "linear-knobs") -> None:
        """`weights`: float64[4, f + 1], see `Frame.resting`."""
        f = len(FEATURES)
        for what, given, shape in (("mean", frame.mean, (f,)), ("scale", frame.scale, (f,)), ("base", frame.base, (len(LEVERS),)), ("weights", weights, (MOVED, f + 1))):  # fmt: skip
            if given.shape != shape or not np.isfinite(given).all():
                raise ConfigError(what, f"shape {given.shape}", allowed=f"finite numbers of shape {shape}")
        if not (frame.scale > 0).all():
            raise ConfigError("scale", "is not above 0", allowed="numbers above 0")
        Knobs.of(frame.base)
        self.name, self.frame, self.weights = name, frame, weights
        self._rows = np.ascontiguousarray(weights[None], dtype=np.float64)
        self._packed = _packed(frame)
        self._levers = np.zeros((1, len(LEVERS)))
        self._commands = Commands()

    def start(self, seed: int) -> None:
        """Nothing is remembered, and nothing left to chance."""
        del seed

    def act(self, observation: Float32s, mask: Masks) -> Knobs:
        """The command."""
        _decide(self._rows, self._packed, observation[None], mask[None], self._levers)
        return self._commands.of(self._levers[0])

    def table(self) -> str:
        """The rule as a Markdown table: what one scale more of a figure adds to each knob's number (-1 least, 1 most)."""
        moved = LEVERS[:MOVED]
        lines = ["| figure | mean | scale | " + " | ".join(moved) + " |", "|---" * (3 + MOVED) + "|"]
        for i, name in enumerate(FEATURES):
            shown = " | ".join(f"{weight:+.2f}" for weight in self.weights[:, i])
            what = "KV in use" if i == 0 else name
            lines.append(f"| {what} (encoded) | {self.frame.mean[i]:.3f} | {self.frame.scale[i]:.3f} | {shown} |")
        lines.append("| always | | | " + " | ".join(f"{weight:+.2f}" for weight in self.weights[:, -1]) + " |")
        return "\n".join(lines)


def _packed(frame: Frame) -> Floats:
    """The frame as one array, as the kernel wants it."""
    packed = np.zeros((3, max(len(FEATURES), len(LEVERS))))
    packed[0, : len(FEATURES)], packed[1, : len(FEATURES)], packed[2, : len(LEVERS)] = (
        frame.mean,
        frame.scale,
        frame.base,
    )
    return packed
