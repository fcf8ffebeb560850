"""Whatever can be seen and steered: a simulated engine, a live gateway, a gateway over HTTP. Two methods."""

from __future__ import annotations

from typing import Protocol

from inferencegym.decision.knobs import Applied, Knobs
from inferencegym.decision.snapshot import Snapshot


class Plant(Protocol):
    """The port between a policy's world and a serving system."""

    def snapshot(self) -> Snapshot:
        """How things stand; changes nothing."""

    def apply(self, command: Knobs) -> Applied:
        """Turn knobs from the next step on; says what took effect."""
