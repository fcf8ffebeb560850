"""An algorithm as a training sees it, and which class each name stands for: the one place that knows them all.

An algorithm's file is imported when it is asked for: some need torch, some need `cma`, the table needs neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from inferencegym.envs.batch import Task
from inferencegym.ground.archive import Array
from inferencegym.ground.errors import MissingExtraError
from inferencegym.learn.checkpoint import State
from inferencegym.learn.config import TrainConfig
from inferencegym.learn.settings import ALGORITHMS, PPO


class Learner(Protocol):
    """An algorithm at work."""

    kind: str
    """network, table, rule, linear or feedback."""
    activation: str
    figures: tuple[str, ...]
    """What it says of its last update, beside the account of episodes."""

    @property
    def steps(self) -> int:
        """Decisions so far."""

    def update(self) -> dict[str, float]:
        """Collect and learn once."""

    def arrays(self) -> dict[str, Array]:
        """The policy as it stands, as `policies.trained.load` wants it."""

    def keep(self) -> State:
        """Everything that the next update depends on."""

    def restore(self, state: State) -> None:
        """Go on from there; ValueError, KeyError or RuntimeError if it does not fit."""


def make_learner(config: TrainConfig, task: Task) -> Learner:
    """The algorithm of the settings, at its beginning."""
    if config.algorithm == "q-table":
        from inferencegym.learn.qtable import TableLearner

        return TableLearner(config, task)
    if config.algorithm == "forks":
        from inferencegym.learn.forklearner import ForkLearner

        return ForkLearner(config, task)
    if config.algorithm == "imitate":
        from inferencegym.learn.imitate import ImitationLearner

        return ImitationLearner(config, task)
    if config.algorithm == "cma":
        if task.surface.name == "knobs":
            from inferencegym.learn.linear_search import LinearLearner

            return LinearLearner(config, task)
        from inferencegym.learn.search import RuleLearner

        return RuleLearner(config, task)
    if config.algorithm == "feedback":
        from inferencegym.learn.feedback_search import FeedbackLearner

        return FeedbackLearner(config, task)
    from inferencegym.learn.learners import DQNLearner, PPOLearner

    return (PPOLearner if ALGORITHMS[config.algorithm] is PPO else DQNLearner)(config, task)


@contextmanager
def one_thread(config: TrainConfig) -> Iterator[None]:
    """Several threads would add up gradients in an order that changes; and for networks this small they are slower."""
    if config.algorithm in ("q-table", "cma", "feedback"):
        yield
        return
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("train", f"the algorithm '{config.algorithm}'") from error
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
