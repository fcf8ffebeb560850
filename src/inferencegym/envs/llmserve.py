"""LLMServe: episodes of steering a deployment window by window, on the fleet engine. The rows of a batch share one task.

`load` reads a task's file. Rewards are the value's terms of each window, so an episode's return is its value, scaled.
"""

from __future__ import annotations

import numpy as np

from inferencegym.decision.columns import Float32s, Floats, Masks
from inferencegym.decision.knobs import LEVERS
from inferencegym.decision.snapshot import NAMES
from inferencegym.decision.turn import mask_without
from inferencegym.engine.fleet import Asking, Fleet
from inferencegym.engine.window import TALLY
from inferencegym.envs.batch import Outcome
from inferencegym.envs.serve_task import TERMS, ServeTask, load
from inferencegym.ground.units import to_ps

_T = {name: i for i, name in enumerate(TALLY)}
_EPISODE = NAMES.index("episode_fraction")
_TIER = LEVERS.index("quantization_tier")
_KV = LEVERS.index("kv_budget_fraction")
_SPLIT = LEVERS.index("prefill_decode_split")


class ServeBatch:
    """n episodes of one task (protocol `envs.batch.Batch`)."""

    def __init__(self, task: ServeTask, n: int) -> None:
        self.task, self.n = task, n
        self.fleet = Fleet(task.plan, n)
        surface = task.surface
        self.actions: Floats = np.tile(task.start.levers(), (n, 1))
        self.observations: Float32s = np.zeros((n, len(surface.columns)), np.float32)
        self.masks: Masks = np.tile(
            mask_without({} if task.plan.can_split else {"prefill_decode_split": (1.0,)}), (n, 1)
        )
        self.rewards: Floats = np.zeros(n)
        self.terms: Floats = np.zeros((n, len(TERMS)))
        self.terminated = np.zeros(n, np.bool_)
        self.truncated = np.zeros(n, np.bool_)
        self.scenarios = np.zeros(n, np.int64)
        self.windows_done = np.zeros(n, np.int64)
        self.value_terms: Floats = np.zeros((n, len(TERMS)))
        self.sums: Floats = np.zeros((n, len(TALLY)))
        self.worth = np.ones((n, 3))  # of all that arrives: weight, requests, tokens asked for
        self._loss = np.array(task.file.prices.quality_loss)
        self._window_ps = to_ps(task.file.window_s, field="window_s")

    def start(self, row: int, scenario: int) -> None:
        """Begin an episode in a row."""
        asking = self.task.asking(scenario)
        self.fleet.start(row, asking, self.task.start.levers(), seed=scenario & 0x7FFFFFFF)
        self.worth[row] = worth_of(asking)
        self.scenarios[row] = scenario
        self.windows_done[row] = 0
        for sums in (self.value_terms, self.sums, self.terms):
            sums[row] = 0.0
        self.rewards[row] = 0.0
        self.terminated[row] = self.truncated[row] = False
        self.fleet.seen[row, _EPISODE] = 0.0
        self.observations[row] = self.task.surface.columns.encode(self.fleet.seen[row])

    def step(self) -> None:
        """One window for every row."""
        fleet, prices = self.fleet, self.task.file.prices
        if not self.task.plan.can_split:
            self.actions[:, _SPLIT] = 0.0
        fleet.want[:] = self.actions
        fleet.step(self._window_ps)
        tally, levers, worth = fleet.tally, fleet.levers, self.worth
        terms = self.terms
        terms[:, 0] = prices.served * tally[:, _T["served_weight"]] / worth[:, 0]
        terms[:, 1] = prices.in_slo * tally[:, _T["met_weight"]] / worth[:, 0]
        terms[:, 2] = -self._loss[levers[:, _TIER].astype(np.int64)] * tally[:, _T["emitted_tokens"]] / worth[:, 2]
        terms[:, 3] = prices.lent_kv * (1.0 - levers[:, _KV]) / self.task.steps
        terms[:, 4] = -prices.preemption * tally[:, _T["preemptions"]] / worth[:, 1]
        self.value_terms += terms
        self.sums += tally
        terms *= self.task.steps / self.task.file.reward_scale
        np.clip(terms.sum(axis=1), -1.0, 1.0, out=self.rewards)
        self.windows_done += 1
        np.greater_equal(self.windows_done, self.task.steps, out=self.truncated)
        fleet.seen[:, _EPISODE] = self.windows_done / self.task.steps
        self.observations[:] = self.task.surface.columns.encode(fleet.seen)

    def outcome(self, row: int) -> Outcome:
        """What the row's episode has earned so far."""
        parts = dict(zip(TERMS, self.value_terms[row].tolist(), strict=True))
        sums, worth = self.sums[row], self.worth[row]
        facts = {
            "arrived_of_episode": float(sums[_T["arrived"]] / worth[1]),
            "requests": float(worth[1]),
            "finished": float(sums[_T["finished"]]),
            "in_slo_share": float(sums[_T["met_weight"]] / worth[0]),
            "preemptions": float(sums[_T["preemptions"]]),
            "refused": float(sums[_T["refused"]]),
            "reloads": float(sums[_T["reloads"]]),
            "output_tokens": float(sums[_T["emitted_tokens"]]),
            "windows": float(self.windows_done[row]),
        }
        return Outcome(self.value(row), parts, facts)

    def value(self, row: int) -> float:
        """The outcome's value alone."""
        return float(sum(self.value_terms[row].tolist()))

    def branch(self, row: int, copies: int) -> ServeBatch:
        """Independent copies of a row."""
        twin = ServeBatch(self.task, copies)
        twin.copy_from(self, row)
        return twin

    def copy_from(self, source: ServeBatch, row: int, copies: int | None = None, asking: Asking | None = None) -> None:
        """Make the first `copies` rows (unset: all) copies of another batch's row, and only these move from now on.

        `asking`: go on with other requests than the source's (whose rows so far must be the same).
        """
        copies = self.n if copies is None else copies
        self.fleet.active = copies
        for i in range(copies):
            self.fleet.copy_row(i, source.fleet, row, asking)
        for name in (
            "actions",
            "observations",
            "masks",
            "rewards",
            "terms",
            "terminated",
            "truncated",
            "scenarios",
            "windows_done",
            "value_terms",
            "sums",
            "worth",
        ):
            getattr(self, name)[:] = getattr(source, name)[row]

    def facts(self, row: int) -> dict[str, float]:
        """The snapshot of a row in natural units, and the scenario's sums so far."""
        return dict(zip(NAMES, self.fleet.seen[row].tolist(), strict=True))


def worth_of(asking: Asking) -> tuple[float, float, float]:
    """Of all requests of a scenario: their weight, their number, the tokens they ask for."""
    n = len(asking.workload)
    return (
        float(asking.judged["weight"].sum()) or 1.0,
        float(n) or 1.0,
        float(asking.workload.output_tokens.sum()) or 1.0,
    )


__all__ = ["ServeBatch", "load", "worth_of"]
