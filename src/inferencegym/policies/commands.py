"""Commands of knobs for levers as a kernel writes them, remembered: a rule gives the same few again and again.

Making and checking a command takes longer than deciding on it.
"""

from __future__ import annotations

from inferencegym.decision.columns import Floats
from inferencegym.decision.knobs import Knobs, KnobsSurface

_REMEMBERED = 4096


class Commands:
    """The latest commands, by their levers."""

    def __init__(self) -> None:
        self._surface = KnobsSurface()
        self._known: dict[bytes, Knobs] = {}

    def of(self, levers: Floats) -> Knobs:
        """The command of levers, float64[6], which are copied."""
        key = levers.tobytes()
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            found = self._known[key] = self._surface.action(levers.copy())
        return found
