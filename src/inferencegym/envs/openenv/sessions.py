"""Episodes over plain HTTP: a bounded table of sessions by unguessable id, each with its own environment and lock; idle ones expire.

All times are seconds of a monotonic clock. Nothing here is shared between two sessions but the room in the table.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from inferencegym.envs.openenv.environment import PlantEnvironment
from inferencegym.ground.errors import InferenceGymError


class UnknownSessionError(InferenceGymError, LookupError):
    """No session has that id: it was never given out, has expired, or was deleted."""

    def __init__(self) -> None:
        super().__init__("there is no such session (never opened, expired, or deleted); POST /reset opens one")


class FullError(InferenceGymError, RuntimeError):
    """The table has no room; carries after how many seconds the first session may expire."""

    def __init__(self, cap: int, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(
            f"all {cap} sessions are taken; delete one of yours (DELETE /sessions/SESSION_ID) or try again in {retry_after_s} s"
        )


@dataclass(slots=True)
class Session:
    """One client's episode."""

    id: str
    environment: PlantEnvironment
    opened_s: float
    used_s: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the request at work, so that two requests of one client come one after the other."""


class SessionTable:
    """At most `cap` sessions; one that was not used for `idle_s` seconds is closed and forgotten."""

    def __init__(
        self,
        make: Callable[[], PlantEnvironment],
        *,
        cap: int,
        idle_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make, self.cap, self.idle_s, self._clock = make, cap, idle_s, clock
        self._open: dict[str, Session] = {}

    def __len__(self) -> int:
        self._expire()
        return len(self._open)

    def open(self) -> Session:
        """A new session; FullError if there is no room even after the idle ones are gone."""
        self._expire()
        now = self._clock()
        if len(self._open) >= self.cap:
            oldest = min(session.used_s for session in self._open.values())
            raise FullError(self.cap, max(1, round(self.idle_s - (now - oldest))))
        session = Session(secrets.token_urlsafe(18), self._make(), now, now)
        self._open[session.id] = session
        return session

    def get(self, session_id: str) -> Session:
        """The session of that id, which counts as used now."""
        self._expire()
        session = self._open.get(session_id)
        if session is None:
            raise UnknownSessionError
        session.used_s = self._clock()
        return session

    def delete(self, session_id: str) -> None:
        """Close it."""
        self.get(session_id)
        self._open.pop(session_id).environment.close()

    def close(self) -> None:
        """Close all."""
        for session in self._open.values():
            session.environment.close()
        self._open.clear()

    def listed(self) -> list[dict[str, Any]]:
        """All sessions, each under the first letters of its id: the whole id is its owner's key and is not shown to others."""
        self._expire()
        now = self._clock()
        return [
            {
                "session": f"{session.id[:6]}...", "task_id": (state := session.environment.state).task_id, "step_count": state.step_count,
                "done": state.done, "age_s": round(now - session.opened_s, 3), "idle_s": round(now - session.used_s, 3),
            }
            for session in self._open.values()
        ]  # fmt: skip

    def _expire(self) -> None:
        limit = self._clock() - self.idle_s
        for session_id in [s.id for s in self._open.values() if s.used_s < limit and not s.lock.locked()]:
            self._open.pop(session_id).environment.close()
