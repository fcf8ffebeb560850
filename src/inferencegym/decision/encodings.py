"""Ways to write the six knobs for learners: index vectors, presets, one knob at a time, numbers in -1..1. Each knows its choices, its mask and its levers.

All work on rows: `levers` turns actions [n, ...] and the observations they answer (float32[n, k]) into float64[n, 6], in the order of
`decision.knobs.LEVERS`. An encoding's meaning never changes under its name; a new meaning gets a new `version`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from inferencegym.decision.columns import Float32s, Floats, Masks
from inferencegym.decision.knobs import COLUMNS, GRID, LEVERS, OFFSETS, QUANTIZATION_TIERS, RANGES
from inferencegym.ground.errors import ConfigError, UnknownNameError

Ints = npt.NDArray[np.int64]
_GRIDS = tuple(np.array(values) for values in GRID.values())
_SIZES = np.array([len(values) for values in _GRIDS])
#: Where the knobs in force stand in an observation.
AT = slice(COLUMNS.index(LEVERS[0]), COLUMNS.index(LEVERS[0]) + len(LEVERS))
assert COLUMNS.names[AT] == LEVERS, "the knobs in force stand together, in the order of a command"


class Encoding(Protocol):
    """One way to write a command."""

    name: ClassVar[str]
    version: ClassVar[int]
    sizes: tuple[int, ...]
    """How many choices each part of an action has: six parts (MultiDiscrete), one (Discrete), or none (six numbers in -1..1)."""

    def levers(self, actions: npt.NDArray[Any], observations: Float32s) -> Floats:
        """float64[n, 6] of n actions; ConfigError if one is outside the space."""

    def mask(self, masks: Masks, observations: Float32s) -> Masks | None:
        """int8[n, m] of the surface's masks (int8[n, 36]); None if the space cannot be masked."""


class MultiDiscreteKnobs:
    """Six indices into the grid of `decision.knobs.GRID`: MultiDiscrete([10, 10, 9, 3, 2, 2]), for PPO and MaskablePPO. A bijection onto the grid."""

    name: ClassVar[str] = "multidiscrete"
    version: ClassVar[int] = 1

    def __init__(self) -> None:
        self.sizes: tuple[int, ...] = tuple(_SIZES.tolist())

    def levers(self, actions: npt.NDArray[Any], observations: Float32s) -> Floats:
        """Grid values of the indices, int[n, 6]."""
        indices = _whole(actions, (len(observations), 6))
        wrong = (indices < 0) | (indices >= _SIZES)
        if wrong.any():
            row, knob = np.argwhere(wrong)[0]
            problem = f"index {indices[row, knob]} of {LEVERS[knob]} is out of range"
            raise ConfigError("action", problem, allowed=f"0..{_SIZES[knob] - 1}")
        return np.stack([grid[indices[:, i]] for i, grid in enumerate(_GRIDS)], axis=1)

    def indices(self, levers: Floats) -> Ints:
        """int64[n, 6] of grid values float64[n, 6]: the inverse; ConfigError for values that are not on the grid."""
        found = nearest(levers)
        if not np.allclose(
            np.stack([grid[found[:, i]] for i, grid in enumerate(_GRIDS)], axis=1), levers, rtol=0, atol=1e-9
        ):
            raise ConfigError("levers", "are not on the grid", allowed="see decision.knobs.GRID")
        return found

    def mask(self, masks: Masks, observations: Float32s) -> Masks:
        """The surface's own."""
        del observations
        return masks


class PresetKnobs:
    """One of 60 settings that are written down in `table()`: Discrete(60), for DQN, tables and bandits. A bijection onto the presets."""

    name: ClassVar[str] = "preset"
    version: ClassVar[int] = 1

    def __init__(self) -> None:
        self.presets = presets()
        self.sizes: tuple[int, ...] = (len(self.presets),)
        found = MultiDiscreteKnobs().indices(self.presets) + np.array(OFFSETS[:-1])
        self._choices: Ints = found

    def levers(self, actions: npt.NDArray[Any], observations: Float32s) -> Floats:
        """The presets of the numbers, int[n]."""
        return self.presets[_numbers(actions, len(observations), len(self.presets))]

    def indices(self, levers: Floats) -> Ints:
        """int64[n] of presets float64[n, 6]: the inverse; ConfigError for a setting that is none."""
        same = np.isclose(levers[:, None, :], self.presets[None, :, :], rtol=0, atol=1e-9).all(axis=2)
        if not bool(np.all(np.any(same, axis=1))):
            raise ConfigError(
                "levers", "are not a preset", allowed="see inferencegym.decision.encodings.PresetKnobs().table()"
            )
        found: Ints = np.argmax(same, axis=1)
        return found

    def mask(self, masks: Masks, observations: Float32s) -> Masks:
        """A preset is allowed when each of its six values is."""
        del observations
        allowed: Masks = masks[:, self._choices].min(axis=2)
        return allowed

    def table(self) -> str:
        """The presets as a Markdown table."""
        lines = ["| number | " + " | ".join(LEVERS) + " |", "|---" * 7 + "|"]
        for i, row in enumerate(self.presets.tolist()):
            lines.append(f"| {i} | " + " | ".join(show_lever(n, v) for n, v in zip(LEVERS, row, strict=True)) + " |")
        return "\n".join(lines)


class DeltaKnobs:
    """One knob one grid step up or down, or all kept: Discrete(13), for DQN and for reading. What is in force comes from the observation.

    0 keeps; 1 + 2i lowers knob i, 2 + 2i raises it. From a value between two of the grid a step goes to the next one. At the end of its
    range a knob stays; that choice is masked.
    """

    name: ClassVar[str] = "delta"
    version: ClassVar[int] = 1

    def __init__(self) -> None:
        self.sizes: tuple[int, ...] = (1 + 2 * len(LEVERS),)

    def levers(self, actions: npt.NDArray[Any], observations: Float32s) -> Floats:
        """One knob's new value; NaN for those that stay as they are."""
        numbers = _numbers(actions, len(observations), 1 + 2 * len(LEVERS))
        levers = in_force(observations)
        lower, upper = _steps(levers)
        rows = np.flatnonzero(numbers)
        knobs, up = (numbers[rows] - 1) // 2, (numbers[rows] - 1) % 2 == 1
        moved = np.full_like(levers, np.nan)
        moved[rows, knobs] = np.where(up, upper[rows, knobs], lower[rows, knobs])
        return moved

    def mask(self, masks: Masks, observations: Float32s) -> Masks:
        """Steps that would change nothing are masked, and those to values that the surface masks."""
        levers = in_force(observations)
        allowed = np.zeros((len(levers), 1 + 2 * len(LEVERS)), np.int8)
        allowed[:, 0] = 1
        rows = np.arange(len(levers))
        for way, target in enumerate(_steps(levers)):
            index = nearest(target)
            for i in range(len(LEVERS)):
                changes = np.abs(target[:, i] - levers[:, i]) > 1e-6
                allowed[:, 1 + 2 * i + way] = changes & (masks[rows, OFFSETS[i] + index[:, i]] == 1)
        return allowed

    def table(self) -> str:
        """The actions as a Markdown table."""
        lines = ["| number | what it does |", "|---|---|", "| 0 | keep all knobs |"]
        for i, name in enumerate(LEVERS):
            steps = "off" if name in ("prefill_decode_split", "priority_routing") else "one grid step lower"
            rise = "on" if steps == "off" else "one grid step higher"
            lines += [f"| {1 + 2 * i} | `{name}` {steps} |", f"| {2 + 2 * i} | `{name}` {rise} |"]
        return "\n".join(lines)


class BoxKnobs:
    """Six numbers in -1..1: Box(-1, 1, (6,)), for SAC, CMA-ES and Bayesian optimisation.

    With u = (x + 1) / 2: batch_cap = round(512^u), so that equal steps double it; kv_budget_fraction = 0.1 + 0.9 u; speculation_depth and
    quantization_tier split 0..1 into equal parts; the switches are on above x = 0. Steps inside a part change nothing.
    """

    name: ClassVar[str] = "box"
    version: ClassVar[int] = 1

    def __init__(self) -> None:
        self.sizes: tuple[int, ...] = ()

    def levers(self, actions: npt.NDArray[Any], observations: Float32s) -> Floats:
        """The rounded values."""
        x = np.asarray(actions)
        if x.dtype.kind not in "iuf" or x.shape != (len(observations), 6) or not (np.abs(x) <= 1.0).all():
            raise ConfigError("action", "is not six numbers in range", allowed="-1..1, not NaN")
        u = (x + 1.0) / 2.0
        return np.stack(
            [
                np.round(512.0 ** u[:, 0]), 0.1 + 0.9 * u[:, 1], np.minimum(np.floor(9 * u[:, 2]), 8),
                np.minimum(np.floor(3 * u[:, 3]), 2), u[:, 4] > 0.5, u[:, 5] > 0.5,
            ], axis=1,
        )  # fmt: skip

    def numbers(self, levers: Floats) -> Floats:
        """float64[n, 6] in -1..1 that stand for levers: `levers(numbers(x))` is x for whole batch caps (the middle of a part is taken)."""
        u = np.stack(
            [
                np.log(levers[:, 0]) / np.log(512.0), (levers[:, 1] - 0.1) / 0.9, (levers[:, 2] + 0.5) / 9,
                (levers[:, 3] + 0.5) / 3, 0.25 + 0.5 * levers[:, 4], 0.25 + 0.5 * levers[:, 5],
            ], axis=1,
        )  # fmt: skip
        return np.clip(2.0 * u - 1.0, -1.0, 1.0)

    def mask(self, masks: Masks, observations: Float32s) -> None:
        """Continuous spaces have none; a knob that is refused stays as it is."""
        del masks, observations


ENCODINGS: dict[str, Callable[[], Encoding]] = {
    kind.name: kind for kind in (MultiDiscreteKnobs, PresetKnobs, DeltaKnobs, BoxKnobs)
}


def find_encoding(name: str) -> Encoding:
    """The encoding of that name."""
    if name not in ENCODINGS:
        raise UnknownNameError("encoding", name, tuple(ENCODINGS))
    return ENCODINGS[name]()


def presets() -> Floats:
    """float64[60, 6]: small, middle and large batches, with half or all of the KV, with and without drafts, FP16 and INT8, both orders; then the
    split, and INT4, where they can matter.
    """
    found = [
        (batch, kv, depth, tier, 0.0, order)
        for batch in (16.0, 64.0, 256.0)
        for kv in (0.5, 1.0)
        for depth in (0.0, 4.0)
        for tier in (0.0, 1.0)
        for order in (0.0, 1.0)
    ]
    found += [
        (batch, 1.0, 0.0, tier, 1.0, order) for batch in (64.0, 256.0) for tier in (0.0, 1.0) for order in (0.0, 1.0)
    ]
    found += [(batch, 1.0, depth, 2.0, 0.0, 1.0) for batch in (64.0, 256.0) for depth in (0.0, 4.0)]
    return np.array(found)


def in_force(observations: Float32s) -> Floats:
    """float64[n, 6]: the knobs that an observation shows, snapped to whole numbers where they are whole."""
    levers = COLUMNS.decode(observations)[:, AT]
    whole = np.round(levers)
    levers = np.where(np.array([True, False, True, True, True, True]), whole, levers)
    # float32 has blurred the share: what is nearly a tenth is one.
    tenths = np.round(levers[:, 1] * 10) / 10
    levers[:, 1] = np.where(np.abs(levers[:, 1] - tenths) < 1e-5, tenths, levers[:, 1])
    return levers


def nearest(levers: Floats) -> Ints:
    """int64[n, 6]: the grid's index nearest to each value."""
    return np.stack([np.abs(levers[:, i, None] - grid).argmin(axis=1) for i, grid in enumerate(_GRIDS)], axis=1)


def _steps(levers: Floats) -> tuple[Floats, Floats]:
    """The grid's next lower and next higher value of every knob; the end of the range where there is none."""
    lower, upper = np.empty_like(levers), np.empty_like(levers)
    for i, grid in enumerate(_GRIDS):
        lower[:, i] = grid[np.maximum(np.searchsorted(grid, levers[:, i] - 1e-6) - 1, 0)]
        upper[:, i] = grid[np.minimum(np.searchsorted(grid, levers[:, i] + 1e-6, side="right"), len(grid) - 1)]
    return lower, upper


def show_lever(name: str, value: float) -> str:
    """A lever as a person reads it."""
    if name == "quantization_tier":
        return QUANTIZATION_TIERS[int(value)]
    return f"{value:g}" if name in RANGES else ("on" if value else "off")


def _whole(actions: npt.NDArray[Any], shape: tuple[int, ...]) -> Ints:
    array = np.asarray(actions)
    if array.dtype.kind not in "iu" or array.shape != shape:
        raise ConfigError("action", f"{array.dtype} of shape {array.shape}", allowed=f"whole numbers of shape {shape}")
    return array.astype(np.int64)


def _numbers(actions: npt.NDArray[Any], n: int, choices: int) -> Ints:
    numbers = _whole(actions, (n,))
    if ((numbers < 0) | (numbers >= choices)).any():
        wrong = numbers[(numbers < 0) | (numbers >= choices)][0]
        raise ConfigError("action", f"{wrong} is out of range", allowed=f"0..{choices - 1}")
    return numbers
