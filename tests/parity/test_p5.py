"""P5: a policy rolled out in the environment = the control loop over the simulated plant of the same task. Observations, masks and actions, to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from inferencegym.control.asking import AtOnce
from inferencegym.control.guard import POLICY, Guard, Rules
from inferencegym.control.limits import OPEN
from inferencegym.control.loop import Loop
from inferencegym.decision.knobs import Knobs, KnobsSurface
from inferencegym.decision.snapshot import NAMES
from inferencegym.engine.plant import EnginePlant
from inferencegym.envs import catalogue
from inferencegym.envs.actors import actor
from inferencegym.envs.env import PlantEnv
from inferencegym.envs.splits import scenario

WINDOWS = 30


class Seeing:
    """A policy that remembers what it was shown and what it answered."""

    surface = "knobs"

    def __init__(self, policy) -> None:
        self.policy, self.name = policy, policy.name
        self.shown: list[np.ndarray] = []
        self.masks: list[np.ndarray] = []
        self.answers: list[np.ndarray] = []

    def start(self, seed):
        self.policy.start(seed)

    def act(self, observation, mask):
        self.shown.append(observation.copy())
        self.masks.append(mask.copy())
        answer = self.policy.act(observation, mask)
        self.answers.append(KnobsSurface().dense(answer))
        return answer


def in_environment(task, policy, windows):
    env = PlantEnv(task, split="test")
    observation, info = env.reset(options={"scenario": 3})
    policy.start(5)
    for _ in range(windows):
        observation, _, _, _, info = env.step(policy.act(observation, info["action_mask"]))
    return observation


def under_control(task, policy, windows):
    number = scenario("test", 3)
    plant = EnginePlant(task.plan, task.asking(number), task.start, seed=number & 0x7FFFFFFF)
    now_s = [0.0]

    def wait(_: float) -> bool:
        plant.run_window(task.file.window_s)
        now_s[0] += task.file.window_s
        return False

    guard = Guard(Rules(OPEN), window_s=task.file.window_s)
    loop = Loop(plant, policy, guard, ask=AtOnce(), clock=lambda: now_s[0], seed=5, horizon=task.steps)
    kept = []
    loop.run(wait, windows=windows, on_window=kept.append)
    return plant, kept


@pytest.mark.parametrize(
    ("name", "policies"),
    [
        ("bursty_workload", ["slo-feedback", "aimd", "learned", "random", "fixed:batch_cap=32"]),
        ("adversarial_multitenant", ["slo-feedback", "learned"]),
        ("static_workload", ["learned"]),
    ],
)
def test_environment_and_control_loop_are_one(name, policies):
    task = catalogue.task(name)
    for of in policies:
        there, here = Seeing(actor(of, task)), Seeing(actor(of, task))
        last = in_environment(task, there, WINDOWS)
        plant, kept = under_control(task, here, WINDOWS)
        assert np.array_equal(there.shown, here.shown), of
        assert np.array_equal(there.answers, here.answers, equal_nan=True), of
        seen = plant.snapshot().values()
        seen[NAMES.index("episode_fraction")] = WINDOWS / task.steps
        assert np.array_equal(last, task.surface.columns.encode(seen)), of
        assert {window.driver for window in kept} == {POLICY}
        assert np.array_equal(there.masks, here.masks), of
        # What the policy said is what was sent, and the plant took it all.
        assert [window.command for window in kept] == [Knobs.of(answer) for answer in here.answers]
        assert {window.command == Knobs(**window.applied.accepted) for window in kept} == {True}


def test_traffic_came_of_it():
    task = catalogue.task("bursty_workload")
    _, kept = under_control(task, Seeing(actor("aimd", task)), WINDOWS)
    assert sum(window.snapshot.throughput_tps for window in kept) > 1000
    assert len({tuple(window.command.given().items()) for window in kept}) > 3, "the policy moves its knobs"
