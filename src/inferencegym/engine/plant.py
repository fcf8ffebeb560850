"""A simulated engine as a Plant: policies see a snapshot of it and turn its knobs, just as they do on a live gateway."""

from __future__ import annotations

from typing import Any

import numpy as np

from inferencegym.decision.knobs import Applied, Knobs
from inferencegym.decision.snapshot import Snapshot
from inferencegym.engine.engine import Engine
from inferencegym.ground.errors import ConfigError
from inferencegym.metrics.record import Records

_SETTING = {
    "batch_cap": "max_num_seqs",
    "kv_budget_fraction": "kv_budget_fraction",
    "speculation_depth": "speculation_depth",
}


class EnginePlant:
    """Runs an engine window by window; `records` are those of the last window."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.records: Records = engine.run_ps(-1)
        self._window_s = 0.0
        self._before = self._counters()

    def run_window(self, window_s: float) -> Records:
        """Let `window_s` seconds pass; returns the requests that ended in them."""
        self._before = self._counters()
        self._window_s = window_s
        self.records = self.engine.run(until_s=self.engine.now_s + window_s)
        return self.records

    def snapshot(self) -> Snapshot:
        """How things stand at the end of the last window."""
        gauges, now, before = self.engine.gauges(), self._counters(), self._before
        totals = {name: now[0][name] - before[0][name] for name in now[0]}
        gaps = now[1] - before[1]
        span_s = self._window_s or 1.0
        first = self.records.ttft_s
        first = first[np.isfinite(first)]
        return Snapshot(
            now_s=gauges.now_s,
            age_s=0.0,
            window_s=self._window_s,
            running=gauges.running,
            waiting=gauges.waiting,
            kv_used_fraction=gauges.kv_used_fraction,
            kv_pool_blocks=gauges.kv_pool_blocks,
            arrival_rps=totals["arrived"] / span_s,
            throughput_rps=totals["finished"] / span_s,
            output_tps=totals["emitted_tokens"] / span_s,
            preemptions=totals["preemptions"],
            evicted_blocks=totals["evicted_blocks"],
            ttft_p50_s=_quantile(first, 0.5),
            ttft_p99_s=_quantile(first, 0.99),
            itl_p50_s=gaps.percentile(50) if gaps.count else None,
            itl_p99_s=gaps.percentile(99) if gaps.count else None,
            mean_prompt_tokens=float(self.records.prompt_tokens.mean()) if len(self.records) else None,
            spec_acceptance_fraction=totals["accepted"] / totals["drafted"] if totals["drafted"] else None,
        )

    def apply(self, command: Knobs) -> Applied:
        """Turn the knobs that a running engine can turn; the others come back refused, with the reason."""
        accepted: dict[str, object] = {}
        refused: dict[str, str] = {}
        for name, value in command.given().items():
            try:
                self._turn(name, value)
            except ConfigError as reason:
                refused[name] = str(reason)
            else:
                accepted[name] = value
        return Applied(accepted, refused)

    def _turn(self, name: str, value: Any) -> None:
        if name in _SETTING:
            self.engine.change(**{_SETTING[name]: value})
        elif name == "priority_routing":
            self.engine.change(order="priority" if value else "fcfs")
        else:
            raise ConfigError(name, "needs other weights or another split of the GPUs: a restart of this deployment")

    def _counters(self) -> Any:
        return self.engine.totals(), self.engine.itl()


def _quantile(values: Any, q: float) -> float | None:
    return float(np.quantile(values, q)) if len(values) else None
