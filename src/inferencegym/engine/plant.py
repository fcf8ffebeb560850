"""A simulated deployment as a Plant: policies see a snapshot of it and turn its knobs, just as they do on a live gateway.

One row of a `Fleet` with a clock of its own: what an environment's row does in a window is what this does in `run_window`.
"""

from __future__ import annotations

import numpy as np

from inferencegym.decision.knobs import LEVERS, Applied, Knobs
from inferencegym.decision.snapshot import Snapshot
from inferencegym.engine import memory
from inferencegym.engine.fleet import NEEDS_TWO, Asking, Fleet, Plan
from inferencegym.ground.units import to_ps


class EnginePlant:
    """Runs a deployment window by window; a command takes effect when the next window begins."""

    def __init__(self, plan: Plan, asking: Asking, knobs: Knobs, *, seed: int = 0) -> None:
        """`knobs` must set all six."""
        self.fleet = Fleet(plan, 1)
        self.fleet.start(0, asking, knobs.levers(), seed)

    def run_window(self, window_s: float) -> memory.Structured:
        """Let `window_s` seconds pass; returns the requests that ended in them, as RECORD[m]."""
        self.fleet.step(to_ps(window_s, field="window_s"))
        self.fleet.want[:] = np.nan
        return self.fleet.records(0)

    def snapshot(self) -> Snapshot:
        """How things stand at the end of the last window."""
        return Snapshot.of(self.fleet.seen[0])

    def apply(self, command: Knobs) -> Applied:
        """Turn knobs from the next window on; what this deployment cannot do comes back refused, with the reason."""
        refused = {}
        levers = command.levers()
        split = LEVERS.index("prefill_decode_split")
        if levers[split] == 1.0 and not self.fleet.plan.can_split:
            refused["prefill_decode_split"] = NEEDS_TWO
            levers[split] = np.nan
        given = ~np.isnan(levers)
        self.fleet.want[0, given] = levers[given]
        accepted = {name: value for name, value in command.given().items() if name not in refused}
        return Applied(accepted, refused)
