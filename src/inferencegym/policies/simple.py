"""The policies every other must beat, on both surfaces: chance among what is legal, doing nothing, and one action for ever."""

from __future__ import annotations

from typing import Any

import numpy as np

from inferencegym.decision.columns import Float32s, Masks
from inferencegym.decision.knobs import GRID, OFFSETS, Knobs, KnobsSurface
from inferencegym.decision.paging import NOTHING, PagingSurface
from inferencegym.decision.surface import Action, Surface
from inferencegym.ground.errors import UnknownNameError
from inferencegym.ground.rng import stream

SURFACES: dict[str, type[KnobsSurface] | type[PagingSurface]] = {"knobs": KnobsSurface, "paging": PagingSurface}
_GRIDS = tuple(np.array(values) for values in GRID.values())


def surface_of(name: str) -> Surface:
    """The surface of that name."""
    if name not in SURFACES:
        raise UnknownNameError("surface", name, tuple(SURFACES))
    return SURFACES[name]()


class Random:
    """Draws evenly among the legal actions; on knobs, among the legal values of each knob's grid."""

    name = "random"

    def __init__(self, surface: str) -> None:
        surface_of(surface)
        self.surface = surface
        self._rng = stream(0, "policy.random")

    def start(self, seed: int) -> None:
        """All draws follow from `seed`."""
        self._rng = stream(seed, "policy.random")

    def act(self, observation: Float32s, mask: Masks) -> Action:
        """A legal action."""
        del observation
        if self.surface == "paging":
            legal = mask.nonzero()[0]
            return int(legal[int(self._rng.random() * len(legal))])
        levers = np.zeros(len(_GRIDS))
        for i, draw in enumerate(self._rng.random(len(_GRIDS)).tolist()):
            legal = mask[OFFSETS[i] : OFFSETS[i + 1]].nonzero()[0]
            levers[i] = _GRIDS[i][legal[int(draw * len(legal))]]
        return Knobs.of(levers)


class Fixed:
    """Takes one action for ever; where the mask forbids it (paging), does nothing."""

    name = "fixed"

    def __init__(self, surface: str, action: Any, name: str = "fixed") -> None:
        """`action`: whatever the surface understands; on knobs, those not named stay as they are."""
        self.surface, self.name = surface, name
        self._surface = surface_of(surface)
        self.action: Action = self._surface.action(self._surface.dense(action))

    def start(self, seed: int) -> None:
        """Nothing is remembered, and nothing left to chance."""
        del seed

    def act(self, observation: Float32s, mask: Masks) -> Action:
        """The action."""
        del observation
        if self.surface == "paging" and not mask[self.action]:
            return NOTHING
        return self.action


class DoNothing(Fixed):
    """Leaves everything as it is: no action on paging, the task's starting knobs on knobs."""

    def __init__(self, surface: str) -> None:
        super().__init__(surface, NOTHING if surface == "paging" else Knobs(), "do-nothing")
