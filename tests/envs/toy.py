"""A small honest plant for tests of what is general: a queue, a few servers that crash when overfilled, arrivals hashed from the scenario.

It has PagedKV's surface (admit_free serves the queue's first, nothing waits), integer state, and a batch like any other.
"""

from __future__ import annotations

import numpy as np

from inferencegym.decision.paging import NOTHING, NUMBER, PagingSurface
from inferencegym.envs.batch import Outcome

ADMIT, REJECT = NUMBER["admit_free"], NUMBER["reject_free"]
SEATS, ROOM = 4, 6
STEPS = 40


def arrives(scenario: int, t: int) -> int:
    """0 or 1: whether somebody comes at step t; a splitmix hash, so every scenario has its own traffic."""
    x = (scenario * 0x9E3779B97F4A7C15 + t * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & (2**64 - 1)
    x ^= x >> 31
    x = x * 0xD6E8FEB86659FD93 & (2**64 - 1)
    return int((x >> 40) % 10 < 6)


class ToyTask:
    name, family, digest, steps = "toy", "pagedkv", "toy-1", STEPS
    reward_terms = ("served", "waiting", "crash")
    description = "A queue before four seats; who is admitted stays five steps; a fifth guest crashes the house."

    def __init__(self) -> None:
        self.surface = PagingSurface()

    def batch(self, n: int) -> ToyBatch:
        return ToyBatch(self, n)


class ToyBatch:
    def __init__(self, task: ToyTask, n: int) -> None:
        self.task, self.n = task, n
        self.actions = np.full(n, NOTHING, np.int64)
        self.observations = np.zeros((n, 20), np.float32)
        self.masks = np.zeros((n, 18), np.int8)
        self.rewards = np.zeros(n)
        self.terms = np.zeros((n, 3))
        self.terminated = np.zeros(n, np.bool_)
        self.truncated = np.zeros(n, np.bool_)
        self.scenario = np.zeros(n, np.int64)
        self.t = np.zeros(n, np.int64)
        self.queue = np.zeros(n, np.int64)
        self.seats = np.zeros((n, SEATS + 1), np.int64)
        self.served = np.zeros(n, np.int64)
        self.arrived = np.zeros(n, np.int64)
        self.started = 0

    def start(self, row: int, scenario: int) -> None:
        self.started += 1
        self.scenario[row] = scenario
        for array in (self.t, self.queue, self.seats, self.served, self.arrived, self.rewards, self.terms):
            array[row] = 0
        self.terminated[row] = self.truncated[row] = False
        self._look(row)

    def step(self) -> None:
        for row in range(self.n):
            over = self.terminated[row] or self.truncated[row]
            assert not over, "a row that has ended must be started again"
            self._move(row, int(self.actions[row]))
            self._look(row)

    def _move(self, row: int, action: int) -> None:
        seats = self.seats[row]
        served = crash = 0
        if action == ADMIT and self.queue[row]:
            self.queue[row] -= 1
            seats[np.argmin(seats)] = 5
            crash = int((seats > 0).sum() > SEATS)
        elif action == REJECT and self.queue[row]:
            self.queue[row] -= 1
        served = int((seats == 1).sum())
        np.maximum(seats - 1, 0, out=seats)
        come = arrives(int(self.scenario[row]), int(self.t[row]))
        self.arrived[row] += come
        self.queue[row] = min(self.queue[row] + come, ROOM)
        self.served[row] += served
        self.t[row] += 1
        self.terms[row] = 0.2 * served, -0.01 * self.queue[row], -0.5 * crash
        self.rewards[row] = self.terms[row].sum()
        self.terminated[row] = crash
        self.truncated[row] = not crash and self.t[row] >= STEPS

    def _look(self, row: int) -> None:
        natural = np.zeros(20)
        natural[0] = (self.seats[row] > 0).sum() / (SEATS + 1)
        natural[3] = self.queue[row]
        self.observations[row] = self.task.surface.columns.encode(natural)
        self.masks[row] = 0
        self.masks[row, NOTHING] = 1
        self.masks[row, [ADMIT, REJECT]] = self.queue[row] > 0

    def outcome(self, row: int) -> Outcome:
        whole = sum(arrives(int(self.scenario[row]), t) for t in range(STEPS))
        share = 0.0 if self.terminated[row] else float(self.served[row] / max(whole, 1))
        return Outcome(share, {"served": share}, {"arrived": float(self.arrived[row]), "steps": float(self.t[row])})

    def branch(self, row: int, copies: int) -> ToyBatch:
        twin = ToyBatch(self.task, copies)
        for name, array in vars(twin).items():
            if isinstance(array, np.ndarray):
                array[:] = getattr(self, name)[row]
        return twin

    def facts(self, row: int) -> dict[str, float]:
        return {
            "queue": float(self.queue[row]),
            "seated": float((self.seats[row] > 0).sum()),
            "step": float(self.t[row]),
        }
