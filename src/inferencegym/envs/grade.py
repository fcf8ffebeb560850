"""Grades: what an episode achieved, on a scale where 0 is the random policy and 1 a planner that knows the future; granted only after a replay.

`replay` runs a record's actions again on its scenario and compares every observation and reward. What is graded is the outcome of that
replay, never a claim. The ends of the scale are stored for each task (`anchors/<task>.json`, made by runs/anchors.sh).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from inferencegym.envs import catalogue
from inferencegym.envs.batch import Outcome, Task
from inferencegym.envs.episode import Episode
from inferencegym.envs.splits import SPLITS
from inferencegym.envs.splits import scenario as scenario_number
from inferencegym.ground.errors import ConfigError, InputError

ANCHORS = Path(__file__).parent / "anchors"
#: Largest differences between machines that pass as rounding, of encoded observations and of rewards.
OBSERVATION_TOLERANCE, REWARD_TOLERANCE = 1e-5, 1e-9


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What came of replaying an episode."""

    genuine: bool
    problem: str
    """Empty if genuine; else what differs, in a sentence."""
    step: int | None
    """The first step that differs: 0 is `reset`, t the t-th action; None if it is not a matter of steps."""
    outcome: Outcome | None
    """What the actions really came to, if they could be run to the episode's end."""


def replay(episode: Episode, task: Task | None = None) -> ReplayReport:
    """Run an episode's actions again and compare. `task`: for a task that is not shipped; a record is never trusted to name a file."""
    if task is None:
        if episode.task not in catalogue.task_names():
            return _refused(
                f"the task '{episode.task[:80]}' is not one of the package's; give the task it was recorded on"
            )
        task = catalogue.task(episode.task)
    problem = _first_look(episode, task)
    if problem:
        return _refused(problem)
    batch = task.batch(1)
    batch.start(0, scenario_number(episode.split, episode.scenario))
    difference = _observation_difference(task, 0, episode.observations[0], batch.observations[0])
    if difference:
        return ReplayReport(False, difference, 0, None)
    steps = len(episode.actions)
    for t in range(steps):
        try:
            batch.actions[0] = checked(task, episode.actions[t])
        except ConfigError as error:
            return ReplayReport(False, f"step {t + 1}: {error}", t + 1, None)
        batch.step()
        difference = _observation_difference(task, t + 1, episode.observations[t + 1], batch.observations[0])
        claimed, came = float(episode.rewards[t]), float(batch.rewards[0])
        if not difference and not abs(claimed - came) <= REWARD_TOLERANCE:
            difference = f"step {t + 1}: reward {claimed!r} was claimed, {came!r} came out"
        if difference:
            return ReplayReport(False, difference, t + 1, None)
        if (batch.terminated[0] or batch.truncated[0]) and t + 1 < steps:
            return ReplayReport(False, f"the episode ends at step {t + 1}; {steps} were claimed", t + 1, None)
    ended = bool(batch.terminated[0]), bool(batch.truncated[0])
    if ended == (False, False):
        return ReplayReport(
            False,
            f"the episode has not ended after {steps} of {task.steps} steps; only whole episodes count",
            steps,
            None,
        )
    outcome = batch.outcome(0)
    if ended != (episode.terminated, episode.truncated):
        return ReplayReport(
            False, f"the end was claimed to be {_end(episode.terminated)}, it is {_end(ended[0])}", steps, outcome
        )
    if not abs(episode.value - outcome.value) <= REWARD_TOLERANCE:
        return ReplayReport(False, f"value {episode.value!r} was claimed, {outcome.value!r} came out", steps, outcome)
    return ReplayReport(True, "", None, outcome)


def checked(task: Task, action: Any) -> Any:
    """A recorded action as dense numbers; on knobs NaN means: leave it (which six numbers alone may not say)."""
    surface = task.surface
    if surface.name == "knobs" and np.isnan(action).any():
        return surface.dense(surface.action(action))
    return surface.dense(action)


def _first_look(episode: Episode, task: Task) -> str:
    """What can be said without running anything."""
    if episode.task != task.name or episode.digest != task.digest:
        return (
            f"it was recorded on task '{episode.task[:80]}' with digest {episode.digest[:12]}; here '{task.name}' has {task.digest[:12]},"
            f" so its episodes are others (recorded with inferencegym {episode.version[:20]})"
        )
    if episode.split not in SPLITS:
        return f"there is no split '{episode.split[:40]}'; known: {', '.join(SPLITS)}"
    try:
        scenario_number(episode.split, episode.scenario)
    except ConfigError as error:
        return str(error)
    steps = len(episode.actions)
    if steps == 0:
        return "it holds no actions; only whole episodes count"
    if steps > task.steps:
        return f"it holds {steps} steps; an episode of '{task.name}' has at most {task.steps}"
    width = len(task.surface.columns)
    if episode.observations.shape[1] != width:
        return f"its observations have {episode.observations.shape[1]} columns; the surface has {width}"
    return ""


def _observation_difference(task: Task, step: int, claimed: Any, came: Any) -> str:
    # NaN compares unequal to everything, so a claim of NaN differs.
    wrong = ~(np.abs(claimed - came) <= OBSERVATION_TOLERANCE)
    if not wrong.any():
        return ""
    column = int(np.argmax(wrong))
    name = task.surface.columns.names[column]
    return f"step {step}: {name} {float(claimed[column]):.6g} (encoded) was claimed, {float(came[column]):.6g} came out"


def _end(terminated: bool) -> str:
    return "a crash" if terminated else "the horizon"


def _refused(problem: str) -> ReplayReport:
    return ReplayReport(False, problem, None, None)


# --- grades -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grade:
    """An outcome on the scale of a task's anchors."""

    value: float
    """The outcome's own value."""
    floor: float
    """The random policy's value."""
    ceiling: float
    """The clairvoyant's."""

    @property
    def unclipped(self) -> float:
        """0 at the floor, 1 at the ceiling; may lie outside."""
        return (self.value - self.floor) / (self.ceiling - self.floor)

    @property
    def grade(self) -> float:
        """The same, held to 0..1."""
        return min(1.0, max(0.0, self.unclipped))


@dataclass(frozen=True, slots=True)
class Anchors:
    """A task's reference values, scenario by scenario."""

    task: str
    digest: str
    split: str
    scenarios: Sequence[int]
    values: Mapping[str, Sequence[float]]
    """Policy -> value on each scenario."""
    settings: Mapping[str, Any]
    """What was searched beforehand: `best_static` (the policy of that name, as `fixed:...`), the planners' library."""
    version: str
    made_by: str

    def bounds(self, split: str, scenario: int) -> tuple[float, float]:
        """(floor, ceiling) of a scenario: its own if it was measured and its ends lie apart, else the means."""
        low, high = np.asarray(self.values["random"]), np.asarray(self.values["clairvoyant"])
        if split == self.split and scenario in self.scenarios:
            at = list(self.scenarios).index(scenario)
            if high[at] - low[at] > 0.25 * (high - low).mean():
                return float(low[at]), float(high[at])
        return float(low.mean()), float(high.mean())

    def grade(self, value: float, split: str, scenario: int) -> Grade:
        """An outcome's value on the scale."""
        return Grade(value, *self.bounds(split, scenario))


def load_anchors(task: Task, folder: Path | None = None) -> Anchors | None:
    """The stored anchors of a task; None if there are none. Anchors of another version of the task are an error, never used."""
    path = (folder or ANCHORS) / f"{task.name}.json"
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        # The file also tells what the policies' returns and parts were; grades need none of it.
        anchors = Anchors(**{field.name: data[field.name] for field in fields(Anchors)})
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise InputError(f"is not a file of anchors: {error}", file=path) from error
    if anchors.digest != task.digest:
        raise ConfigError(
            f"anchors of '{task.name}'", f"were made for digest {anchors.digest[:12]}, the task has {task.digest[:12]}", allowed="make them again with runs/anchors.sh, or give a task of your own another name"
        )  # fmt: skip
    known = {"random", "clairvoyant"}
    if not known <= set(anchors.values) or any(
        len(values) != len(anchors.scenarios) for values in anchors.values.values()
    ):
        raise InputError("needs the policies random and clairvoyant, with one value for each scenario", file=path)
    if not np.mean(anchors.values["clairvoyant"]) > np.mean(anchors.values["random"]):
        raise InputError("the clairvoyant is not above the random policy: no scale", file=path)
    return anchors


def grade(episode: Episode, task: Task | None = None, anchors: Anchors | None = None) -> Grade:
    """Replay an episode and grade what came out; InputError says why a record is refused. `anchors`: default, the stored ones."""
    report = replay(episode, task)
    if not report.genuine or report.outcome is None:
        raise InputError(f"the episode is refused: {report.problem}")
    task = task or catalogue.task(episode.task)
    anchors = anchors or load_anchors(task)
    if anchors is None:
        raise ConfigError(f"anchors of '{task.name}'", "there are none", allowed="make them: runs/anchors.sh")
    return anchors.grade(report.outcome.value, episode.split, episode.scenario)
