"""How to act: one protocol for rules, tables, networks, planners and language models.

A policy sees an encoded observation and a mask, never the plant, so the same object acts in training, evaluation and live control.
"""

from __future__ import annotations

from typing import Protocol

from inferencegym.decision.columns import Float32s, Masks
from inferencegym.decision.surface import Action


class Policy(Protocol):
    """Decides from what its surface shows."""

    name: str
    surface: str
    """The name of the surface it acts on: knobs or paging."""

    def start(self, seed: int) -> None:
        """A new episode begins: forget the last one; all chance comes from `seed`."""

    def act(self, observation: Float32s, mask: Masks) -> Action:
        """The action for an encoded observation (float32[k]); `mask` (int8) tells what is allowed."""
