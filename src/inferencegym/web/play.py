"""Playing a run's policies, for processes that may load the simulator: what a run will be (`prepared`), what there is to play (`catalogue`), and
`Player`, which advances one policy a few milliseconds at a time by the very code that `evaluate` plays with.
"""

from __future__ import annotations

import shlex
import time
from array import array
from typing import Any

import msgspec
import numpy as np

from inferencegym.envs import catalogue as tasks
from inferencegym.envs.actors import BEST_STATIC, LEARNED, PLANNERS, actor, actor_names
from inferencegym.envs.episode import Playing
from inferencegym.envs.overrides import overridable
from inferencegym.envs.pagedkv import PagedTask
from inferencegym.envs.serve_task import ServeTask
from inferencegym.envs.splits import SPLIT_SIZE, SPLITS
from inferencegym.ground.errors import InferenceGymError
from inferencegym.learn.evaluate import judged
from inferencegym.web.columns import Rows, columns
from inferencegym.web.spec import MOST_POLICIES, Prepared, Spec, complete, run_id

#: `evaluate` plays the first so many scenarios; a command that plays more than this to reach one is none.
_MOST_SEEDS = 200


def prepared(spec: Spec) -> Prepared:
    """The run that a spec asks for. ConfigError or UnknownNameError for what cannot be played, InputError where a trace is missing or too short."""
    whole, task = complete(spec)
    each, sample_s, name = _sampling(task)
    if isinstance(task, ServeTask) and task.file.traffic.source == "trace":
        # Whether the trace is here, and long enough for the episode.
        task.workload(SPLITS[whole.split] + whole.seed)
    return Prepared(
        id=run_id(whole, task.digest), spec=whole, task_digest=task.digest, samples=-(-task.steps // each), decisions_per_sample=each,
        sample_s=sample_s, sample_name=name, columns=columns(task), command=_command(whole),
    )  # fmt: skip


def _sampling(task: Any) -> tuple[int, float | None, str]:
    """Decisions of a sample, its seconds, and what it is called."""
    if isinstance(task, PagedTask):
        return task.rules.decisions_per_tick, task.hardware.tick_s if task.hardware else None, "tick"
    assert isinstance(task, ServeTask)
    return 1, task.file.window_s, "window"


def _command(spec: Spec) -> str | None:
    if spec.overrides or spec.seed >= _MOST_SEEDS:
        return None
    words = [
        "inferencegym",
        "evaluate",
        "--task",
        spec.task,
        "--policy",
        ",".join(spec.policies),
        "--split",
        spec.split,
    ]
    return shlex.join([*words, "--seeds", str(spec.seed + 1), "--json", "-"])


def catalogue() -> bytes:
    """JSON of the tasks with their policies, overrides and columns; those whose trace is not here say so."""
    return msgspec.json.encode({
        "most_policies": MOST_POLICIES, "splits": list(SPLITS), "tasks": [_described(tasks.task(name)) for name in tasks.task_names()],
    })  # fmt: skip


def _described(task: Any) -> dict[str, Any]:
    each, sample_s, name = _sampling(task)
    why_not = None
    if isinstance(task, ServeTask) and task.file.traffic.source == "trace":
        from inferencegym.workload.find import find

        try:
            find(task.file.traffic.name)
        except InferenceGymError as error:
            why_not = str(error)
    said: dict[str, Any] = {
        "name": task.name, "family": task.family, "description": task.description, "steps": task.steps, "decisions_per_sample": each,
        "sample_s": sample_s, "sample_name": name, "available": why_not is None, "why_not": why_not,
        "scenarios": dict.fromkeys(SPLITS, SPLIT_SIZE), "reward_terms": list(task.reward_terms), "overrides": overridable(task),
        "columns": columns(task),
    }  # fmt: skip
    if why_not is None:
        planners = PLANNERS[task.surface.name]
        kinds = dict.fromkeys(planners, "planner") | {BEST_STATIC: "static", LEARNED: "learned"}
        said["policies"] = [
            {"name": one, "kind": kinds.get(one, "rule"), "quick": one not in planners} for one in actor_names(task)
        ]
    else:
        said["policies"] = []
    return said


class Player:
    """One policy of a run, from its first decision to its end."""

    def __init__(self, spec: Spec, policy: str, task: Any) -> None:
        # Policies are made for the task as it ships: that is what was trained, searched and is compared.
        made = actor(policy, tasks.task(spec.task))
        self.playing = Playing(task, made, split=spec.split, scenario=spec.seed, name=policy)
        self.samples = 0
        self._each = _sampling(task)[0]
        self._rows = Rows(task)
        self._width = len(columns(task))
        self._held = array("f")
        self._sent_rows = self._sent_actions = 0

    @property
    def over(self) -> bool:
        """Whether the episode is at its end."""
        return self.playing.over

    def advance(self, budget_s: float) -> None:
        """Play on for about so long: at least one sample."""
        end = time.perf_counter() + budget_s
        playing = self.playing
        while not playing.over:
            first = playing.steps
            for _ in range(self._each):
                if playing.step():
                    break
            self._held.extend(self._rows.row(playing, first))
            self.samples += 1
            if time.perf_counter() >= end:
                return

    def taken(self) -> tuple[int, int, bytes, bytes]:
        """(first, rows, payload, actions) since the last call: float32 column after column, and the dense actions."""
        first, rows = self._sent_rows, self.samples - self._sent_rows
        payload = np.frombuffer(self._held, np.float32).reshape(rows, self._width).T.tobytes() if rows else b""
        self._held = array("f")
        self._sent_rows = self.samples
        actions = self.playing.actions[self._sent_actions : self.playing.steps].tobytes()
        self._sent_actions = self.playing.steps
        return first, rows, payload, actions

    def result(self) -> dict[str, Any]:
        """What came of it, as `evaluate` says it."""
        found = judged(self.playing.task, self.playing.episode())
        return {
            "value": found.value, "grade": found.grade, "graded": found.grade is not None, "parts": found.parts, "facts": found.facts,
            "total_reward": found.total_reward, "steps": found.steps, "crashed": found.crashed, "last_sample": self.samples - 1,
        }  # fmt: skip
