"""Units and the one place where they are converted: seconds and tokens inside, milliseconds only on screens.

The engine's clock is an integer number of picoseconds (`*_ps`, int64, which reaches 106 days), so that sums are exact.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from inferencegym.ground.errors import ConfigError

PS_PER_S = 10**12
MAX_PS = 2**63 - 1
MS_PER_S = 1000
S_PER_HOUR = 3600.0
KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

#: Largest time that fits the engine's clock, in whole seconds (about 106 days).
MAX_S = MAX_PS // PS_PER_S


def to_ps(seconds: float, *, field: str = "time") -> int:
    """Seconds as whole picoseconds, halves to even; `field` is what an error calls the value."""
    if not math.isfinite(seconds) or abs(seconds) > MAX_S:
        raise _out_of_range(field, seconds)
    return round(seconds * 1e12)


def array_to_ps(seconds: npt.NDArray[np.float64], *, field: str = "time") -> npt.NDArray[np.int64]:
    """`to_ps` of each element, to the same bit."""
    # NaN fails every comparison, so it is caught here too.
    good = np.abs(seconds) <= MAX_S
    if not good.all():
        first_bad = int(np.argmin(good))
        raise _out_of_range(f"{field}[{first_bad}]", float(seconds[first_bad]))
    return np.rint(seconds * 1e12).astype(np.int64)


def to_s(ps: int) -> float:
    """Picoseconds as seconds (the nearest float)."""
    return ps / PS_PER_S


def array_to_s(ps: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """`to_s` of each element."""
    return ps / float(PS_PER_S)


def show_number(value: float, *, whole: bool = False) -> str:
    """A number for a screen: three digits that count, thousands set apart; `whole` for one that counts things."""
    size = abs(value)
    # Thresholds lie where rounding would add a fourth digit: 9.996 is shown as 10.0.
    if whole or size >= 99.95 or size == 0.0:
        return f"{value:,.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    if size >= 0.9995:
        return f"{value:.2f}"
    return f"{value:#.3g}"


def show_ms(seconds: float | None) -> str:
    """Seconds as milliseconds for a screen, unit not included; a dash for a value that is not there."""
    if seconds is None or math.isnan(seconds):
        return "-"
    return show_number(seconds * MS_PER_S)


def show_bytes(count: float) -> str:
    """A number of bytes for a screen, in binary units: '80.0 GiB'."""
    for unit, size in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def _out_of_range(field: str, seconds: float) -> ConfigError:
    return ConfigError(field, f"{seconds} s does not fit the engine's clock", allowed=f"finite, at most {MAX_S:,} s")
