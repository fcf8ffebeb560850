"""From a score for every choice to an action: the best choice that the mask allows, as the surface's own action.

Scores are a network's logits, or values of a table. A head knows how many choices each part of an action has (`sizes`) and what they mean:
`actions` on paging, and the encodings of `decision.encodings` on knobs. What follows from a mask is remembered, so that choosing is quick.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from inferencegym.decision.columns import Float32s, Floats, Masks
from inferencegym.decision.encodings import AT, find_encoding
from inferencegym.decision.knobs import GRID, KnobsSurface
from inferencegym.decision.paging import ACTIONS
from inferencegym.decision.surface import Action
from inferencegym.ground.errors import UnknownNameError

#: The heads of each surface.
HEADS = {"paging": ("actions",), "knobs": ("multidiscrete", "preset", "delta")}
_REMEMBERED = 4096
_NEVER = np.float32(-np.inf)


class Head(Protocol):
    """One way to act on scores."""

    name: str
    version: int
    sizes: tuple[int, ...]
    """Choices of each part; their sum is the number of scores."""

    def choose(self, scores: Float32s, observation: Float32s, mask: Masks) -> Action:
        """The best legal action. `scores`: float32[sum(sizes)]; `mask`: the surface's, int8."""

    def rows(self, scores: Float32s, observations: Float32s, masks: Masks) -> Any:
        """The same for n rows at once, as dense actions: int64[n] or float64[n, 6] (NaN leaves a knob)."""


class ActionsHead:
    """Paging: one score for each of the eighteen actions."""

    name, version = "actions", 1
    sizes: tuple[int, ...] = (len(ACTIONS),)

    def choose(self, scores: Float32s, observation: Float32s, mask: Masks) -> int:
        """The number of the best legal action."""
        del observation
        return int(np.where(mask, scores, _NEVER).argmax())

    def rows(self, scores: Float32s, observations: Float32s, masks: Masks) -> Any:
        """int64[n]."""
        del observations
        return np.where(masks, scores, _NEVER).argmax(axis=1)


class GridHead:
    """Knobs, one score for each value of each knob's grid; every knob takes its best allowed value."""

    name = "multidiscrete"

    def __init__(self) -> None:
        encoding = find_encoding(self.name)
        self.version, self.sizes = encoding.version, encoding.sizes
        self._encoding = encoding
        # Six rows as wide as the widest knob, so that one argmax serves all; what pads a row is never chosen.
        width = max(self.sizes)
        inside = np.arange(width)[None, :] < np.array(self.sizes)[:, None]
        self._from = np.zeros((len(self.sizes), width), np.intp)
        self._from[inside] = np.arange(sum(self.sizes))
        self._pad = np.where(inside, np.float32(0), _NEVER).astype(np.float32)
        self._surface = KnobsSurface()
        self._commands: dict[tuple[int, ...], Action] = {}
        self._masked: tuple[bytes, Float32s] = (b"", self._pad)

    def choose(self, scores: Float32s, observation: Float32s, mask: Masks) -> Action:
        """The command of the best values."""
        del observation
        key = mask.tobytes()
        if key != self._masked[0]:
            self._masked = key, np.where(mask[self._from] == 1, self._pad, _NEVER)
        chosen = tuple((scores[self._from] + self._masked[1]).argmax(axis=1).tolist())
        found = self._commands.get(chosen)
        if found is None:
            if len(self._commands) >= _REMEMBERED:
                self._commands.clear()
            levers = np.array([values[i] for i, values in zip(chosen, GRID.values(), strict=True)])
            found = self._commands[chosen] = self._surface.action(levers)
        return found

    def rows(self, scores: Float32s, observations: Float32s, masks: Masks) -> Floats:
        """float64[n, 6]."""
        pads = np.where(masks[:, self._from] == 1, self._pad, _NEVER)
        return self._encoding.levers((scores[:, self._from] + pads).argmax(axis=2), observations)


class ListHead:
    """Knobs, one score for each of a list of commands: the presets, or one step of one knob up or down."""

    def __init__(self, name: str) -> None:
        self._encoding = find_encoding(name)
        self.name, self.version, self.sizes = name, self._encoding.version, self._encoding.sizes
        self._surface = KnobsSurface()
        self._known: dict[bytes, tuple[Float32s, list[Action]]] = {}

    def choose(self, scores: Float32s, observation: Float32s, mask: Masks) -> Action:
        """The best command that the mask allows."""
        # All that a list of commands depends on: what is allowed, and which knobs are in force.
        key = mask.tobytes() + observation[AT].tobytes()
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            found = self._known[key] = self._commands(observation, mask)
        pad, commands = found
        return commands[int((scores + pad).argmax())]

    def rows(self, scores: Float32s, observations: Float32s, masks: Masks) -> Floats:
        """float64[n, 6]."""
        allowed = self._encoding.mask(masks, observations)
        assert allowed is not None, "only continuous actions have no mask"
        return self._encoding.levers(np.where(allowed, scores, _NEVER).argmax(axis=1), observations)

    def _commands(self, observation: Float32s, mask: Masks) -> tuple[Float32s, list[Action]]:
        (size,) = self.sizes
        seen = np.repeat(observation[None], size, axis=0)
        allowed = self._encoding.mask(mask[None], observation[None])
        assert allowed is not None, "only continuous actions have no mask"
        pad = np.where(allowed[0] == 1, np.float32(0), _NEVER).astype(np.float32)
        return pad, [self._surface.action(levers) for levers in self._encoding.levers(np.arange(size), seen)]


def find_head(surface: str, name: str) -> Head:
    """The head of that name, for a surface."""
    if surface not in HEADS:
        raise UnknownNameError("surface", surface, tuple(HEADS))
    if name not in HEADS[surface]:
        raise UnknownNameError(f"head of surface '{surface}'", name, HEADS[surface])
    if name == "actions":
        return ActionsHead()
    return GridHead() if name == "multidiscrete" else ListHead(name)
