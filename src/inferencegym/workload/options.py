"""What a reader may be told beside the file: one value that all readers take, each its part. Times are seconds."""

from __future__ import annotations

from dataclasses import dataclass

from inferencegym.ground.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """See `inferencegym.workload.read`, which makes one out of its arguments."""

    sort: bool = False
    prefixes: bool = True
    sessions: int | None = None
    session_every_s: float = 60.0
    closed_loop: bool = True
    pool: str | None = None
    start_s: float = 0.0
    duration_s: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sessions is not None and self.sessions < 1:
            raise ConfigError("sessions", f"{self.sessions}", allowed="1 or more")
        if not self.session_every_s > 0:
            raise ConfigError("session_every_s", f"{self.session_every_s}", allowed="more than 0")
        if not self.start_s >= 0:
            raise ConfigError("start_s", f"{self.start_s}", allowed="0 or more")
        if self.duration_s is not None and not self.duration_s > 0:
            raise ConfigError("duration_s", f"{self.duration_s}", allowed="more than 0")
