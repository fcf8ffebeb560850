"""Rules with their numbers laid open: named parameters with bounds that a search can tune, a file can hold and a person can read.

`policies.tuned` (paging) and `policies.feedback` (knobs) are such rules. Parameters of a rule are float64[p], in the order of its list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from inferencegym.decision.columns import Floats
from inferencegym.ground.errors import ConfigError, UnknownNameError


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number of a rule."""

    name: str
    default: float
    """What the rule has that was written by hand."""
    scale: float
    """A step that a search may try first; 0: it is not searched."""
    low: float
    high: float
    what: str


def named(known: Sequence[Parameter], given: Mapping[str, float]) -> Floats:
    """float64[p]: the defaults, with some changed by name; ConfigError or UnknownNameError for what cannot be."""
    places = {one.name: i for i, one in enumerate(known)}
    found = np.array([one.default for one in known])
    for name, value in given.items():
        if name not in places:
            raise UnknownNameError("parameter of the rule", name, tuple(places))
        one = known[places[name]]
        if not isfinite(value) or not one.low <= value <= one.high:
            raise ConfigError(name, f"{value!r}", allowed=f"{one.low:g}..{one.high:g}")
        found[places[name]] = value
    return found


def checked(known: Sequence[Parameter], values: Floats | None) -> Floats:
    """A copy of float64[p], or the defaults; ConfigError for another shape, or a number out of its bounds."""
    if values is None:
        return named(known, {})
    found = np.array(values, np.float64)
    if found.shape != (len(known),):
        raise ConfigError("parameters", f"shape {found.shape}", allowed=f"({len(known)},)")
    return named(known, by_name(known, found))


def by_name(known: Sequence[Parameter], values: Floats) -> dict[str, float]:
    """Parameters, float64[p], by name."""
    return dict(zip((one.name for one in known), values.tolist(), strict=True))
