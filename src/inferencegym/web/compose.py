"""The sections that every server's dashboard has; `inferencegym serve` adds the one on its own traffic."""

from __future__ import annotations

from inferencegym.web.app import Section
from inferencegym.web.arena import ArenaSection
from inferencegym.web.desk import Desk
from inferencegym.web.leaderboard import LeaderboardSection
from inferencegym.web.runs import Limits
from inferencegym.web.workloads import WorkloadsSection


def sections(limits: Limits | None = None) -> list[Section]:
    """Arena (with Episode), Workloads and Leaderboard. `limits`: what the server spends on runs.

    To read a large trace takes many seconds, so Workloads has a desk of its own: nobody's Arena waits for it.
    """
    return [ArenaSection(Desk(), limits), WorkloadsSection(Desk()), LeaderboardSection()]
