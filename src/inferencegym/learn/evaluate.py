"""Policies on tasks, scenario by scenario: who plays what, in how many processes, and the table with intervals that comes of it.

Every episode is fixed by task, policy and scenario, so results do not depend on the number of workers. Test scenarios are 0, 1, 2, ... of
the split; what a policy was trained or tuned on lies in other splits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import inferencegym
from inferencegym.envs import catalogue
from inferencegym.envs.actors import BEST_STATIC, LANGUAGE_MODEL, actor, quick_names
from inferencegym.envs.batch import Task
from inferencegym.envs.episode import Episode, record
from inferencegym.envs.grade import Anchors, load_anchors
from inferencegym.envs.openenv.llm_usage import EndpointError, Price, Usage
from inferencegym.envs.splits import scenario as scenario_number
from inferencegym.ground.errors import ConfigError, InferenceGymError
from inferencegym.learn.distributed import share_out
from inferencegym.learn.statistics import Estimate, iqm, paired_difference, probability_of_improvement

ALL = "all"
#: Why an episode has no result, where it was Ctrl-C.
INTERRUPTED = "interrupted"
_DIGITS = 9


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """One episode of one policy."""

    task: str
    digest: str
    policy: str
    split: str
    scenario: int
    value: float
    grade: float | None
    """0..1; None where the task has no anchors."""
    unclipped: float | None
    """The grade before it is held to 0..1."""
    total_reward: float
    steps: int
    crashed: bool
    parts: dict[str, float]
    facts: dict[str, float]
    usage: Usage | None = None
    """What a language model's questions came to; None for all others."""


@dataclass(frozen=True, slots=True)
class Unplayed:
    """An episode that has no result: the language model's endpoint failed for good, in it or before, or it was interrupted before its end."""

    task: str
    policy: str
    scenario: int
    why: str


@dataclass(frozen=True, slots=True)
class Row:
    """One policy on one task (or, at the end of a table, on all)."""

    task: str
    policy: str
    episodes: int
    score: Estimate
    """Interquartile mean of the grade, or of the value where there are no anchors."""
    graded: bool
    value: float
    """Mean value."""
    total_reward: float
    crashed: float
    """Share of episodes."""
    improvement: Estimate | None
    """Probability that an episode of it beats one of the best static configuration on the same task."""
    difference: Estimate | None
    """Value above the best static configuration's on the same scenarios: those that were played."""
    parts: dict[str, float]
    """Mean parts of the value; 0 in episodes that lack one (a crash replaces them all)."""
    asked: dict[str, float] | None = None
    """A language model's questions in all its episodes, see `Usage.report`; None for all others."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All episodes that were played to their end, and how."""

    split: str
    scenarios: tuple[int, ...]
    episodes: tuple[EpisodeResult, ...]
    baseline: dict[str, tuple[float, ...]]
    """Task -> values of the best static configuration on the scenarios, where known."""
    version: str = inferencegym.__version__
    skipped: dict[str, str] = field(default_factory=dict)
    """Task -> why it was not played."""
    unplayed: tuple[Unplayed, ...] = ()
    """Episodes that were begun or planned, and have no result."""
    price: Price | None = None
    """Of a language model's tokens."""

    def of(self, task: str, policy: str) -> list[EpisodeResult]:
        """A policy's episodes on a task, in the order of the scenarios."""
        return [one for one in self.episodes if one.task == task and one.policy == policy]

    @property
    def tasks(self) -> tuple[str, ...]:
        """In the order they were given."""
        return tuple(dict.fromkeys(one.task for one in self.episodes))

    def policies(self, task: str) -> tuple[str, ...]:
        """Those that played a task."""
        return tuple(dict.fromkeys(one.policy for one in self.episodes if one.task == task))

    def table(self) -> list[Row]:
        """One row for each policy and task, best first; then, for policies that played several graded tasks, one row over all of them."""
        rows = []
        for task in self.tasks:
            found = [self._row((task,), policy) for policy in self.policies(task)]
            rows += sorted(found, key=lambda row: -row.score.value)
        everywhere = []
        for policy in dict.fromkeys(one.policy for one in self.episodes):
            played = tuple(task for task in self.tasks if policy in self.policies(task))
            if len(played) > 1 and all(one.grade is not None for one in self.episodes if one.policy == policy):
                everywhere.append(self._row(played, policy))
        return rows + sorted(everywhere, key=lambda row: -row.score.value)

    def _row(self, tasks: Sequence[str], policy: str) -> Row:
        played = [self.of(task, policy) for task in tasks]
        flat = [one for episodes in played for one in episodes]
        graded = all(one.grade is not None for one in flat)
        usages = [one.usage for one in flat if one.usage is not None]
        scores = [[one.value if one.grade is None else one.grade for one in episodes] for episodes in played]
        # To as many digits as anchors are stored with, or a tie with a stored one would be none.
        values = [[round(one.value, _DIGITS) for one in episodes] for episodes in played]
        improvement = difference = None
        if all(task in self.baseline for task in tasks) and policy != BEST_STATIC:
            theirs = [self._baseline_of(episodes) for episodes in played]
            improvement = probability_of_improvement(values, theirs)
            difference = paired_difference(values, theirs)
        return Row(
            task=tasks[0] if len(tasks) == 1 else f"all {len(tasks)} tasks", policy=policy, episodes=len(flat), score=iqm(scores), graded=graded,
            value=float(np.mean([one.value for one in flat])), total_reward=float(np.mean([one.total_reward for one in flat])),
            crashed=float(np.mean([one.crashed for one in flat])), improvement=improvement, difference=difference,
            parts={name: float(np.mean([one.parts.get(name, 0.0) for one in flat])) for name in dict.fromkeys(n for one in flat for n in one.parts)},
            asked=Usage.total(usages).report(self.price) if usages else None,
        )  # fmt: skip

    def _baseline_of(self, episodes: Sequence[EpisodeResult]) -> list[float]:
        """What the best static configuration came to on the scenarios of one task's episodes."""
        values = dict(zip(self.scenarios, self.baseline[episodes[0].task], strict=True))
        return [round(values[one.scenario], _DIGITS) for one in episodes]

    def missing(self) -> list[str]:
        """A sentence for each task, reason and number of episodes that have no result, with the policies that lack so many."""
        counts = Counter((one.task, one.why, one.policy) for one in self.unplayed)
        groups: dict[tuple[str, str, int], list[str]] = {}
        for (task, why, policy), count in counts.items():
            groups.setdefault((task, why, count), []).append(policy)
        return [
            f"{task}: {', '.join(policies)}: {count} of {len(self.scenarios)} episodes{' each' if len(policies) > 1 else ''}: {why}"
            for (task, why, count), policies in groups.items()
        ]

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return {
            "version": self.version, "split": self.split, "scenarios": list(self.scenarios), "skipped": self.skipped,
            "table": [asdict(row) for row in self.table()], "episodes": [asdict(one) for one in self.episodes],
            "price": None if self.price is None else asdict(self.price), "unplayed": [asdict(one) for one in self.unplayed],
            "digests": {one.task: one.digest for one in self.episodes},
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Job:
    """One episode to play, as another process needs it."""

    task: str
    """Name or file."""
    player: Any
    """A policy's name, or the policy itself."""
    policy: str
    split: str
    scenario: int
    folder: str | None


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in `evaluate` after some episodes were done: it carries them, and is an interrupt like any other to those who do not care."""

    def __init__(self, evaluation: Evaluation) -> None:
        super().__init__()
        self.evaluation = evaluation
        """What was done; all other episodes are `unplayed`."""


Progress = Callable[[int, int, EpisodeResult], None]


def evaluate(
    policies: Sequence[Any],
    tasks: Sequence[str | Path],
    *,
    split: str = "test",
    scenarios: int | Sequence[int] = 50,
    workers: int = 1,
    record_to: Path | None = None,
    progress: Progress | None = None,
    price: Price | None = None,
    ray: str | None = None,
) -> Evaluation:
    """Let policies play tasks. Results are the same for any number of workers, and on a cluster (`ray`: its address, see `learn.distributed`).

    `policies`: names (also `fixed:...`, `module:Class`, best-static, clairvoyant, or `all` for every quick one) or policies themselves; each
    plays the tasks of its surface. `price`: of a language model's tokens. `scenarios`: the first so many of the split, or their indices. `record_to`: a folder for the episodes'
    records. `progress`: called after each episode with (done, all, result).

    A language model whose endpoint fails for good costs the episode it fails in and those of its that were still to come (`unplayed`), not those
    that are done, nor other policies'. EndpointError if nothing was played at all. Ctrl-C raises `Interrupted`, with the episodes that are done.
    """
    indices = tuple(range(scenarios)) if isinstance(scenarios, int) else tuple(scenarios)
    if not indices or not policies or not tasks:
        raise ConfigError("evaluate", "needs a policy, a task and a scenario", allowed="one or more of each")
    for index in indices:
        scenario_number(split, index)
    jobs, anchors = _plan(policies, tasks, split, indices, record_to)
    done: dict[int, EpisodeResult] = {}
    # Policies that talk to a server stay here: a connection does not travel.
    here = [at for at, job in enumerate(jobs) if getattr(job.player, "in_process", False)]
    unplayed: dict[int, Unplayed] = {}

    def so_far() -> Evaluation:
        episodes = tuple(done[at] for at in sorted(done))
        left = tuple(unplayed[at] for at in sorted(unplayed))
        return Evaluation(
            split, indices, episodes, _baselines(episodes, anchors, split, indices), price=price, unplayed=left
        )

    try:
        with closing(share_out(_Play(), jobs, workers=workers, ray=ray, here=here)) as results:
            for at, result in results:
                if isinstance(result, Unplayed):
                    unplayed[at] = result
                    continue
                done[at] = _graded(result, anchors[result.task])
                if progress:
                    progress(len(done), len(jobs), done[at])
    except KeyboardInterrupt:
        if not done:
            raise
        names = {given: catalogue.task(given).name for given in {job.task for job in jobs}}
        for at, job in enumerate(jobs):
            if at not in done and at not in unplayed:
                unplayed[at] = Unplayed(names[job.task], job.policy, job.scenario, INTERRUPTED)
        raise Interrupted(so_far()) from None
    if not done:
        raise EndpointError(unplayed[0].why)
    return so_far()


def _plan(
    policies: Sequence[Any], tasks: Sequence[str | Path], split: str, indices: Sequence[int], folder: Path | None
) -> tuple[list[_Job], dict[str, Anchors | None]]:
    """The episodes to play, tasks first; an error for a policy that no task takes."""
    jobs: list[_Job] = []
    anchors: dict[str, Anchors | None] = {}
    errors: dict[str, InferenceGymError] = {}
    found = set()
    for given in tasks:
        task = catalogue.task(given)
        if task.name in anchors:
            raise ConfigError("task", f"'{task.name}' is given twice")
        anchors[task.name] = load_anchors(task)
        for one in _expanded(policies, task):
            name = one if isinstance(one, str) else one.name
            try:
                player = _fit(one, task)
            except InferenceGymError as problem:
                # A language model fits every task, so what went wrong is no matter of this one.
                if isinstance(one, str) and one.startswith(LANGUAGE_MODEL):
                    raise
                errors.setdefault(name, problem)
                continue
            found.add(name)
            jobs += [
                _Job(str(given), player, name, split, index, str(folder.resolve()) if folder else None) for index in indices
            ]  # fmt: skip
    for name, error in errors.items():
        if name not in found:
            raise error
    return jobs, anchors


def _expanded(policies: Sequence[Any], task: Task) -> list[Any]:
    players: dict[str, Any] = {}
    for given in policies:
        for one in quick_names(task) if isinstance(given, str) and given == ALL else (given,):
            players[one if isinstance(one, str) else one.name] = one
    return list(players.values())


def _fit(player: Any, task: Task) -> Any:
    """Who is to play: the name or policy as it was given, or a language model, made once for all its episodes. An error if it cannot play the task."""
    if isinstance(player, str):
        made = actor(player, task)
        return made if player.startswith(LANGUAGE_MODEL) else player
    if player.surface != task.surface.name:
        raise ConfigError(
            "policy", f"'{player.name}' acts on '{player.surface}'", allowed=f"surface '{task.surface.name}'"
        )
    return player


class _Play:
    """Plays jobs. An endpoint that failed for good is not asked again: each failure takes minutes of tries and waits."""

    def __init__(self) -> None:
        self._failed: dict[str, str] = {}

    def __call__(self, job: _Job) -> EpisodeResult | Unplayed:
        """The episode's result, or why there is none."""
        if job.policy not in self._failed:
            try:
                return _played(job)
            except EndpointError as error:
                self._failed[job.policy] = str(error)
        return Unplayed(catalogue.task(job.task).name, job.policy, job.scenario, self._failed[job.policy])


def _played(job: _Job) -> EpisodeResult:
    task = catalogue.task(job.task)
    player = actor(job.player, task) if isinstance(job.player, str) else job.player
    episode = record(task, player, split=job.split, scenario=job.scenario, name=job.policy)
    if job.folder:
        name = "".join(letter if letter.isalnum() or letter in "-_=.," else "-" for letter in job.policy)
        episode.save(Path(job.folder) / f"{task.name}--{name[:80]}--{job.split}-{job.scenario}.parquet")
    return _result(episode, getattr(player, "usage", None))


def judged(task: Task, episode: Episode) -> EpisodeResult:
    """What `evaluate` says of an episode that was played elsewhere: its value, its parts, and the grade where the task has anchors."""
    return _graded(_result(episode), load_anchors(task))


def _result(episode: Episode, usage: Usage | None = None) -> EpisodeResult:
    return EpisodeResult(
        task=episode.task, digest=episode.digest, policy=episode.policy, split=episode.split, scenario=episode.scenario, value=episode.value,
        grade=None, unclipped=None, total_reward=episode.total_reward, steps=len(episode.actions), crashed=episode.terminated, parts=episode.parts,
        facts=episode.facts, usage=usage,
    )  # fmt: skip


def _graded(result: EpisodeResult, anchors: Anchors | None) -> EpisodeResult:
    if anchors is None:
        return result
    grade = anchors.grade(result.value, result.split, result.scenario)
    return replace(result, grade=grade.grade, unclipped=grade.unclipped)


def _baselines(
    episodes: Sequence[EpisodeResult], anchors: dict[str, Anchors | None], split: str, indices: Sequence[int]
) -> dict[str, tuple[float, ...]]:
    """The best static configuration's values: as just played, else as stored for the same scenarios."""
    found = {}
    for task, stored in anchors.items():
        played = tuple(one.value for one in episodes if one.task == task and one.policy == BEST_STATIC)
        # In an evaluation that was interrupted it may have played some of the scenarios only.
        if len(played) == len(indices):
            found[task] = played
        elif (
            stored and stored.split == split and BEST_STATIC in stored.values and set(indices) <= set(stored.scenarios)
        ):
            at = {scenario: i for i, scenario in enumerate(stored.scenarios)}
            found[task] = tuple(stored.values[BEST_STATIC][at[index]] for index in indices)
    return found
