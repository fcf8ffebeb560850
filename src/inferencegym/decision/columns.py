"""Named observation columns: each with its unit, its range and how it is scaled into what a learner sees.

A surface writes natural values (milliseconds, requests, fractions); `encode` maps each column's range onto [0, 1], or [-1, 1] if it
starts below zero. Values beyond a column's range saturate, and a value that does not exist (NaN) reads 0: both are said
on the environment's page, and `decode` is the inverse within the range, to float32's precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inferencegym.ground.errors import ConfigError

Float32s = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Masks = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Column:
    """One number of an observation."""

    name: str
    unit: str
    low: float
    high: float
    what: str
    log: bool = False
    """Scale by log(1 + value) (for what spans orders of magnitude; low must be 0)."""

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low != 0):
            raise ConfigError(
                f"column.{self.name}", f"range {self.low:g}..{self.high:g}", allowed="low < high; low 0 if log"
            )


class Columns(Sequence[Column]):
    """The columns of an observation, in order, and the map between natural and encoded values."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = tuple(columns)
        self.names = tuple(column.name for column in self._columns)
        self._index = {name: i for i, name in enumerate(self.names)}
        if len(self._index) != len(self._columns):
            raise ConfigError("columns", "two columns have the same name")
        self.natural_low = np.array([c.low for c in columns])
        self.natural_high = np.array([c.high for c in columns])
        self._log = np.array([c.log for c in columns])
        signed = self.natural_low < 0
        self.low: Float32s = np.where(signed, -1.0, 0.0).astype(np.float32)
        self.high: Float32s = np.ones(len(columns), np.float32)
        top = np.where(self._log, np.log1p(np.where(self._log, self.natural_high, 0.0)), self.natural_high)
        self._zero = np.where(signed, 0.0, self.natural_low)
        self._span = np.where(signed, np.maximum(self.natural_high, -self.natural_low), top - self._zero)

    def __len__(self) -> int:
        return len(self._columns)

    def __getitem__(self, index: int) -> Column:  # type: ignore[override]
        return self._columns[index]

    def __iter__(self) -> Iterator[Column]:
        return iter(self._columns)

    def index(self, name: str) -> int:  # type: ignore[override]
        """Position of a column; ConfigError names the known ones."""
        if name not in self._index:
            raise ConfigError("column", f"there is no '{name}'", allowed=", ".join(self.names))
        return self._index[name]

    def encode(self, values: Floats) -> Float32s:
        """Natural values float64[..., k] as float32[..., k] within `low`..`high`."""
        scaled = np.where(self._log, np.log1p(np.where(self._log, np.maximum(values, 0.0), 0.0)), values)
        scaled = (scaled - self._zero) / self._span
        encoded = np.clip(scaled, self.low, self.high).astype(np.float32)
        return np.nan_to_num(encoded, copy=False, nan=0.0)

    def decode(self, encoded: npt.NDArray[np.floating]) -> Floats:
        """The natural values of an encoded observation (what saturated reads as the end of its range)."""
        scaled = np.asarray(encoded, dtype=np.float64) * self._span + self._zero
        natural: Floats = np.where(self._log, np.expm1(np.where(self._log, scaled, 0.0)), scaled)
        return natural

    def read(self, encoded: npt.NDArray[np.floating]) -> dict[str, float]:
        """One encoded observation as natural values by name: what rules and people read."""
        return dict(zip(self.names, self.decode(encoded).tolist(), strict=True))

    def table(self) -> str:
        """The columns as a Markdown table."""
        lines = ["| # | column | unit | range | scale | what |", "|---|---|---|---|---|---|"]
        for i, c in enumerate(self._columns):
            scale = "log" if c.log else "linear"
            lines.append(f"| {i} | `{c.name}` | {c.unit} | {c.low:g} to {c.high:g} | {scale} | {c.what} |")
        return "\n".join(lines)
