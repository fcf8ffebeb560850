"""One turn on the surface `knobs`: a snapshot becomes an observation, a policy's answer a command. Environments and the live loop share what is here.

The choices that a plant does not have are masked by `mask_without` in both; everything else is the surface's own `columns.encode` and `dense`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from inferencegym.decision.columns import Float32s, Floats, Masks
from inferencegym.decision.encodings import AT
from inferencegym.decision.knobs import GRID, LEVERS, OFFSETS, Knobs, KnobsSurface
from inferencegym.decision.snapshot import NAMES, Snapshot
from inferencegym.ground.errors import ConfigError

_EPISODE = NAMES.index("episode_fraction")


def observe(surface: KnobsSurface, snapshot: Snapshot, fraction: float | None = None) -> Float32s:
    """float32[k]: what a policy is shown. `fraction`: how much of the episode is over; None: what the snapshot says."""
    values = snapshot.values()
    if fraction is not None:
        values[_EPISODE] = fraction
    return surface.columns.encode(values)


def command_of(surface: KnobsSurface, action: Any) -> Knobs:
    """The command that a policy's answer stands for: a `Knobs`, a mapping by knob, six numbers. ConfigError for anything else."""
    try:
        return surface.action(surface.dense(action))
    except ConfigError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError("action", f"{action!r:.200} cannot be read ({error})", allowed="Knobs, a mapping, six numbers") from error  # fmt: skip


def mask_without(barred: Mapping[str, Iterable[float]]) -> Masks:
    """int8[m] with every choice of the grid, but for these values (levers) of these knobs."""
    mask: Masks = np.ones(OFFSETS[-1], np.int8)
    for name, values in barred.items():
        for value in values:
            mask[OFFSETS[LEVERS.index(name)] + GRID[name].index(value)] = 0
    return mask


def in_force(snapshot: Snapshot) -> Floats:
    """float64[6]: the knobs that a snapshot shows, in the order of LEVERS; NaN: not known."""
    return snapshot.values()[AT]
