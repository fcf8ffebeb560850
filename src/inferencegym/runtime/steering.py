"""Who steers a gateway: the commands that came to its plant, who sent them, and what became of them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from inferencegym.decision.knobs import Applied

#: Commands that are kept.
REMEMBERED = 200


@dataclass(frozen=True, slots=True)
class Command:
    """One command to the plant."""

    at_s: float
    """When, seconds since 1970."""
    by: str
    """Name of the key that sent it, or `anybody`."""
    policy: str
    """The policy at the wheel, as its sender calls it; empty: it did not say."""
    guard: str
    """What watches over the policy, as its sender calls it; empty: it did not say."""
    accepted: Mapping[str, object]
    """Knob to value."""
    refused: Mapping[str, str]
    """Knob to why not."""


class Steering:
    """The latest commands."""

    def __init__(self, wall_time: Callable[[], float] = time.time) -> None:
        self._wall_time = wall_time
        self.commands: deque[Command] = deque(maxlen=REMEMBERED)
        self.on_command: list[Callable[[Command], None]] = []
        """Called with each new one."""

    def note(self, applied: Applied, *, by: str, policy: str = "", guard: str = "") -> None:
        """A command was carried out, as far as it could be."""
        command = Command(self._wall_time(), by, policy, guard, dict(applied.accepted), dict(applied.refused))
        self.commands.append(command)
        for call in self.on_command:
            call(command)
