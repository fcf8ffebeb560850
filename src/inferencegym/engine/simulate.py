"""A workload through a deployment, from the first arrival to the last token: records, inter-token gaps, counters and a timeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from inferencegym.engine.deployment import Deployment
from inferencegym.engine.engine import Engine
from inferencegym.engine.profile import Profile, load_profile
from inferencegym.engine.settings import EngineSettings
from inferencegym.ground.errors import InputError
from inferencegym.metrics.itl import ItlHistogram
from inferencegym.metrics.record import Records
from inferencegym.metrics.record import concat as concat_records
from inferencegym.metrics.slo import Slo, SloTable
from inferencegym.metrics.summary import Summary, summarise
from inferencegym.workload import Workload

Timeline = Mapping[str, "np.ndarray[Any, np.dtype[np.float64]]"]


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """What a simulation showed."""

    records: Records
    """One row a request, in the workload's order."""
    itl: ItlHistogram
    totals: Mapping[str, int]
    """The engine's counters: steps, preemptions, evicted blocks, ... (busy time in ps)."""
    timeline: Timeline
    """t_s, running, waiting, kv_used_fraction, output_tps at evenly spaced times (empty if none was asked for)."""
    workload: Workload
    deployment: Deployment
    settings: EngineSettings
    profile: Profile
    """The step-time profile in force."""

    @property
    def uncertainty(self) -> float:
        """Relative uncertainty of step times for this model, from the profile's own error."""
        return self.profile.band(self.deployment.model_facts.name)

    def summary(self, slo: Slo | SloTable | None = None) -> Summary:
        """The figures, with service levels if objectives are given."""
        return summarise(
            self.records,
            self.itl,
            slo=slo,
            class_names=self.workload.slo_class_names or ("default",),
            cost_per_hour=self.deployment.cost_per_hour,
            gpus=self.deployment.gpus,
            totals=self.totals,
            timeline=self.timeline if len(self.timeline["t_s"]) else None,
        )


def simulate(
    workload: Workload,
    deployment: Deployment | None = None,
    settings: EngineSettings | None = None,
    *,
    seed: int = 0,
    profile: Profile | None = None,
    timeline_points: int = 400,
    step_time_factor: float = 1.0,
    progress: Callable[[float], None] | None = None,
) -> SimulationResult:
    """Run a workload through a deployment.

    Rows with 0 output tokens (failed at the source) must be left out first: `workload, left_out = workload.servable()`.
    `timeline_points=0` keeps no timeline and is fastest. `progress` is called with the share of arrivals that are through.
    `step_time_factor` stretches every step: 1 + `uncertainty` and 1 - `uncertainty` give the band around the prediction.
    """
    if len(workload) == 0:
        raise InputError("the workload has no requests; nothing to simulate")
    deployment = deployment or Deployment()
    settings = settings or EngineSettings()
    profile = profile or load_profile(deployment.gpu_facts.name)
    machine = deployment.machine(settings, profile, factor=step_time_factor)
    engine = Engine(workload, machine, settings, seed=seed)
    if timeline_points > 0:
        records, timeline = _with_timeline(engine, workload.duration_s, timeline_points, progress)
    else:
        records, timeline = engine.run(), {name: np.zeros(0) for name in TIMELINE}
    if progress:
        progress(1.0)
    return SimulationResult(
        records=records.sorted_by_row(),
        itl=engine.itl(),
        totals=engine.totals(),
        timeline=timeline,
        workload=workload,
        deployment=deployment,
        settings=settings,
        profile=profile,
    )


TIMELINE = ("t_s", "running", "waiting", "kv_used_fraction", "output_tps")


def _with_timeline(
    engine: Engine, duration_s: float, points: int, progress: Callable[[float], None] | None
) -> tuple[Records, Timeline]:
    """Run in windows and look at the end of each; the windows after the last arrival are as long as those before."""
    window_s = max(duration_s, 1e-3) / points
    parts: list[Records] = []
    rows: list[tuple[float, ...]] = []
    tokens = 0
    while not engine.done and len(rows) < 4 * points:
        parts.append(engine.run(until_s=(len(rows) + 1) * window_s))
        gauges, emitted = engine.gauges(), engine.totals()["emitted_tokens"]
        rows.append(
            (gauges.now_s, gauges.running, gauges.waiting, gauges.kv_used_fraction, (emitted - tokens) / window_s)
        )
        tokens = emitted
        if progress:
            progress(min(1.0, len(rows) / points))
    parts.append(engine.run())  # a very long tail, if any
    table = np.array(rows, dtype=np.float64).reshape(-1, len(TIMELINE))
    return concat_records(parts), {name: table[:, i].copy() for i, name in enumerate(TIMELINE)}
