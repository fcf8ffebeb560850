"""Bounds for LLMServe: the best setting that never changes, and planners that look ahead on copies of the running deployment.

The clairvoyant planner tries knobs in the true future; the model-predictive one in a forecast made of what has been seen. Both are for
evaluation: they need the simulator itself, which no live policy has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from inferencegym.decision.columns import Floats
from inferencegym.decision.knobs import GRID, LEVERS, Knobs
from inferencegym.engine.window import TALLY
from inferencegym.envs.forecast import dream
from inferencegym.envs.llmserve import ServeBatch
from inferencegym.envs.serve_task import ServeTask
from inferencegym.envs.splits import scenario
from inferencegym.ground.rng import stream

#: Share of the requests in flight at a look-ahead's end that are expected to keep their objectives if they have not missed one yet.
HOPE = 0.9
#: Later requests that one in a backlog makes late: it is in their way until the backlog is gone.
DELAY = 0.3
_TIER = LEVERS.index("quantization_tier")
#: Knobs whose change reloads the deployment.
_RELOADS = [_TIER, LEVERS.index("prefill_decode_split")]


def grid_levers() -> Floats:
    """float64[m, 6]: a coarse grid of settings, 3 x 3 x 3 x 3 x 2 x 2 of them."""
    axes = ((16.0, 64.0, 256.0), (0.3, 0.6, 1.0), (0.0, 2.0, 4.0), (0.0, 1.0, 2.0), (0.0, 1.0), (0.0, 1.0))
    return np.array(np.meshgrid(*axes, indexing="ij")).reshape(6, -1).T


def values_of(task: ServeTask, settings: Floats, scenarios: Sequence[int]) -> Floats:
    """float64[m, s]: the value of each setting (float64[m, 6]), held for a whole episode, in each scenario."""
    batch = task.batch(len(settings))
    values = np.zeros((len(settings), len(scenarios)))
    for j, number in enumerate(scenarios):
        for row in range(len(settings)):
            batch.start(row, number)
        batch.actions[:] = settings
        for _ in range(task.steps):
            batch.step()
        values[:, j] = batch.value_terms.sum(axis=1)
    return values


def search_static(
    task: ServeTask, scenarios: Sequence[int], *, seed: int = 0, progress: Callable[[str], None] = lambda _: None
) -> tuple[Knobs, float]:
    """The best setting that never changes, and its mean value on `scenarios` (which must not be test scenarios).

    A coarse grid and 60 random settings on one scenario; the best 24 on four; then neighbours along every knob on all, until none is better.
    """
    rng = stream(seed, "search.static")
    wild = np.stack([rng.choice(np.array(values), 60) for values in GRID.values()], axis=1)
    settings = np.concatenate([grid_levers(), wild])
    if not task.plan.can_split:
        settings = settings[settings[:, LEVERS.index("prefill_decode_split")] == 0]
    few, some = scenarios[:1], scenarios[:4]
    progress(f"{len(settings)} settings on {len(few)} scenarios")
    first = values_of(task, settings, few).mean(axis=1)
    settings = settings[np.argsort(-first)[:24]]
    progress(f"{len(settings)} settings on {len(some)} scenarios")
    second = values_of(task, settings, some).mean(axis=1)
    best = settings[np.argmax(second)]
    value = float(values_of(task, best[None], scenarios).mean())
    while True:
        around = neighbours(best, task.plan.can_split)
        progress(f"{len(around)} neighbours on {len(scenarios)} scenarios; best so far {value:.4f}")
        means = values_of(task, around, scenarios).mean(axis=1)
        if means.max() <= value + 1e-9:
            return Knobs.of(best), value
        best, value = around[np.argmax(means)], float(means.max())


def neighbours(setting: Floats, can_split: bool) -> Floats:
    """Settings that differ in one knob: one grid step for numbers, every other choice for the rest."""
    found = []
    for i, (name, values) in enumerate(GRID.items()):
        if name == "prefill_decode_split" and not can_split:
            continue
        grid = np.array(values)
        if name in ("batch_cap", "kv_budget_fraction", "speculation_depth"):
            at = int(np.argmin(np.abs(grid - setting[i])))
            options = grid[[j for j in (at - 2, at - 1, at, at + 1, at + 2) if 0 <= j < len(grid)]]
        else:
            options = grid
        for value in options:
            if value != setting[i]:
                other = setting.copy()
                other[i] = value
                found.append(other)
    return np.array(found)


def windows_of(task: ServeTask, settings: Floats, scenarios: Sequence[int]) -> Floats:
    """float64[m, s * windows]: the value each setting earns in each window when it is held for the whole episode."""
    batch = task.batch(len(settings))
    earned = np.zeros((len(settings), len(scenarios), task.steps))
    for j, number in enumerate(scenarios):
        for row in range(len(settings)):
            batch.start(row, number)
        batch.actions[:] = settings
        before = batch.value_terms.sum(axis=1)
        for t in range(task.steps):
            batch.step()
            after = batch.value_terms.sum(axis=1)
            earned[:, j, t], before = after - before, after
    return earned.reshape(len(settings), -1)


def library(task: ServeTask, scenarios: Sequence[int], size: int = 8) -> Floats:
    """float64[size, 6]: settings that together hold a good one for every window, picked one by one by what each adds."""
    settings = grid_levers()
    if not task.plan.can_split:
        settings = settings[settings[:, LEVERS.index("prefill_decode_split")] == 0]
    earned = windows_of(task, settings, scenarios)
    chosen: list[int] = [int(np.argmax(earned.sum(axis=1)))]
    while len(chosen) < size:
        have = earned[chosen].max(axis=0)
        gain = np.maximum(earned - have, 0.0).sum(axis=1)
        gain[chosen] = -1.0
        chosen.append(int(np.argmax(gain)))
    return settings[chosen]


class Clairvoyant:
    """Chooses what turns out best: each window it tries settings, and pairs of them, on copies of the deployment in its true future.

    First every setting of the library, and the neighbours of what is in force, are held for `horizon` windows; then every one of them is
    tried for one window before the best one. The first setting of the best pair is taken.
    """

    name = "clairvoyant"
    surface = "knobs"

    def __init__(self, settings: Floats | None = None, *, horizon: int = 6, keep: int = 1) -> None:
        """`settings`: float64[k, 6], the library; None: made from training scenarios when first needed (half a minute)."""
        self.settings, self.horizon, self.keep = settings, horizon, keep
        self._scratch: ServeBatch | None = None

    def start(self, seed: int) -> None:
        """Nothing is remembered from episode to episode, and nothing left to chance."""
        del seed

    def decide(self, twin: ServeBatch) -> Knobs:
        """The knobs for the next window; `twin` is a batch of one row, which is not changed."""
        if self.settings is None:
            self.settings = library(twin.task, [scenario("train", i) for i in range(2)])
        horizon = min(self.horizon, twin.task.steps - int(twin.windows_done[0]))
        now = twin.fleet.levers[0]
        tries = self._worth_trying(twin, np.unique(np.concatenate([self.settings, now[None], _near(now)]), axis=0))
        held = self._value(twin, tries, tries, horizon)
        best = np.argsort(-held, kind="stable")[: self.keep]
        if horizon == 1:
            return Knobs.of(tries[best[0]])
        firsts = np.tile(tries, (self.keep, 1))
        thens = np.repeat(tries[best], len(tries), axis=0)
        paired = self._value(twin, firsts, thens, horizon)
        if held[best[0]] >= paired.max():
            return Knobs.of(tries[best[0]])
        return Knobs.of(firsts[int(np.argmax(paired))])

    def _worth_trying(self, twin: ServeBatch, tries: Floats) -> Floats:
        """The settings, float64[m, 6], among which the next window's is looked for."""
        del twin
        return tries

    def _value(self, twin: ServeBatch, first: Floats, then: Floats, horizon: int) -> Floats:
        """What the window under `first` and the following ones under `then` earn; work left undone at the end counts against it."""
        n = len(first)
        batch = self._scratch
        if batch is None or batch.n < n or batch.task is not twin.task:
            batch = self._scratch = twin.task.batch(max(n, 96))
        batch.copy_from(twin, 0, n)
        batch.actions[:n] = first
        batch.step()
        batch.actions[:n] = then
        for _ in range(horizon - 1):
            batch.step()
        worth: Floats = batch.value_terms.sum(axis=1) + unfinished(batch)
        return worth[:n]


class FarSighted(Clairvoyant):
    """The same, but precision and split, which cost a reload, are chosen as if held to the episode's end: six windows never pay for a reload."""

    name = "far-sighted"

    def _worth_trying(self, twin: ServeBatch, tries: Floats) -> Floats:
        now = twin.fleet.levers[0]
        found = [tries]
        for tier in GRID["quantization_tier"]:
            # The setting in force and its neighbours, in every precision.
            there = np.concatenate([now[None], _near(now)])
            there[:, _TIER] = tier
            found.append(there)
        everything = np.unique(np.concatenate(found), axis=0)
        held = self._value(twin, everything, everything, twin.task.steps - int(twin.windows_done[0]))
        best = everything[int(np.argmax(held))]
        chosen: Floats = everything[(everything[:, _RELOADS] == best[_RELOADS]).all(axis=1)]
        return chosen


class ModelPredictive(Clairvoyant):
    """The same search on a twin whose future is a forecast of what has been seen (`envs.forecast`): what a live policy could do with a good simulator."""

    name = "model-predictive"

    def start(self, seed: int) -> None:
        """The forecasts' chance comes from `seed`."""
        self.seed = seed

    def decide(self, twin: ServeBatch) -> Knobs:
        """The knobs for the next window; those in force until something has been seen."""
        dreamed = dream(twin, self.horizon + 1, self.seed)
        return Knobs.of(twin.fleet.levers[0]) if dreamed is None else super().decide(dreamed)


def unfinished(batch: ServeBatch) -> Floats:
    """float64[n]: a guess at what a state is worth beyond the look-ahead: who is not late yet will earn most of its worth,
    and each who waits too long already makes DELAY others late.
    """
    prices, tally = batch.task.file.prices, batch.fleet.tally
    hopeful, late = tally[:, TALLY.index("hopeful_weight")], tally[:, TALLY.index("late_weight")]
    earned: Floats = (prices.served * hopeful + prices.in_slo * (HOPE * hopeful - DELAY * late)) / batch.worth[:, 0]
    return earned


def _near(levers: Floats) -> Floats:
    """The setting in force with another share of KV."""
    around = neighbours(levers, False)
    others: Floats = around[around[:, LEVERS.index("kv_budget_fraction")] != levers[LEVERS.index("kv_budget_fraction")]]
    return others
