"""What a policy sees and may do: observation columns, actions, mask, cadence. `env.step` and the live control loop use the same one.

Two surfaces: `knobs` (a deployment, window by window) and `paging` (KV memory, tick by tick). A third idea is a new surface.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from inferencegym.decision.columns import Columns, Float32s, Masks

#: What a policy answers: `Knobs` on the surface `knobs`, an action number on `paging`.
Action = Any
#: The same as numbers: float64[6] (`knobs.LEVERS`) or an int64 scalar.
Dense = npt.NDArray[Any]


class Surface(Protocol):
    """The names, ranges and codes that a policy and a plant agree on."""

    name: str
    cadence: str
    """What one decision is for: `window` or `tick`."""
    columns: Columns
    mask_size: int
    """Length of the mask: one entry a choice, int8, 1 where it may be taken."""

    def dense(self, action: Action) -> Dense:
        """An action as numbers; ConfigError says what is wrong with it. Accepts what policies and Gymnasium spaces give."""

    def action(self, dense: Dense) -> Action:
        """The typed action of those numbers: the inverse of `dense`."""

    def legal(self, action: Action, mask: Masks) -> bool:
        """Whether the mask allows it."""

    def describe(self, observation: Float32s, mask: Masks) -> str:
        """The situation and the choices in words, for a language model or a person."""

    def parse(self, text: str) -> Action:
        """The action in a language model's answer; ConfigError if there is none."""


def as_mask(choices: npt.ArrayLike) -> Masks:
    """Booleans as a Gymnasium mask (int8)."""
    return np.asarray(choices, dtype=np.int8)
