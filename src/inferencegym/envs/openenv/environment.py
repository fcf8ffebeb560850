"""The environments as OpenEnv runs them: one episode a session, on the same batch as `gymnasium.make`, step for step the same.

Constructing one costs microseconds; the task and its machine are made at the first `reset`. After `close` nothing is touched any more.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar

import numpy as np
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import EnvironmentMetadata
from openenv.core.rubrics import Rubric

import inferencegym
from inferencegym.decision.knobs import LEVERS, OFFSETS
from inferencegym.decision.paging import NAMES
from inferencegym.envs import pool
from inferencegym.envs.batch import Batch, Task
from inferencegym.envs.openenv import poolview, tasks, view
from inferencegym.envs.openenv.metrics import Meter
from inferencegym.envs.openenv.models import (
    PagingObservation,
    PagingState,
    PlantState,
    ServeObservation,
    ServeState,
)
from inferencegym.envs.splits import SPLITS
from inferencegym.ground.errors import ConfigError, InferenceGymError

_SPLIT_ON = OFFSETS[LEVERS.index("prefill_decode_split")] + 1
#: Ids come from clients; longer ones are refused.
MOST_ID = 255


class SessionError(InferenceGymError, RuntimeError):
    """A session was asked for what it cannot do now: it has no episode yet, or is closed."""


class TermRubric(Rubric):
    """One term of the reward, by name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.term = name

    def forward(self, action: Any, observation: Any) -> float:
        """The term's share of the last reward."""
        del action
        return float(observation.reward_terms.get(self.term, 0.0))


class RewardRubric(Rubric):
    """The reward, with its terms as children (`named_rubrics()`, `last_score`). It comes out of the simulated plant, never out of the action."""

    def __init__(self, terms: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._terms = {name: TermRubric(name) for name in terms}
        for name, rubric in self._terms.items():
            setattr(self, name, rubric)

    def forward(self, action: Any, observation: Any) -> float:
        """The step's reward, -1..1."""
        del action
        terms = observation.reward_terms
        for name, rubric in self._terms.items():
            # A rubric's own way of setting looks for child rubrics each time.
            rubric.__dict__["last_score"] = terms.get(name, 0.0)
        return float(observation.reward)


class PlantEnvironment(Environment):
    """A session: what is shared by both families."""

    SUPPORTS_CONCURRENT_SESSIONS = True
    family: ClassVar[str] = ""
    observation_cls: ClassVar[Any] = None
    state_cls: ClassVar[type[PlantState]] = PlantState
    description: ClassVar[str] = ""
    meter: ClassVar[Meter | None] = None
    """Counts what the sessions of one server do; none in process."""

    def __init__(self) -> None:
        super().__init__(rubric=RewardRubric())
        self._batch: Batch | None = None
        self._task: Task | None = None
        self._closed = False
        self._begun = 0
        self._episode_id: str | None = None
        self._split, self._seed, self._taken, self._total, self._over = "", 0, 0, 0.0, False
        self._course: view.Course | None = None

    # --- OpenEnv ---------------------------------------------------------------------------------------------------------

    def reset(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        task_id: str | None = None,
        split: str | None = None,
        index: int | None = None,
        **others: Any,
    ) -> Any:
        """Begin an episode.

        `seed`: scenario within the split (unset: 0, 1, 2, ... at successive resets of a session); `task_id`: a name of `GET /tasks`; `split`:
        train, validation or test (unset: validation); `index`: a task of the task API, instead of `task_id` and `seed`.
        """
        self._open()
        if others:
            raise ConfigError(
                "reset", f"there is no '{sorted(others)[0]}'", allowed="seed, episode_id, task_id, split, index"
            )
        split = "validation" if split is None else split
        if index is not None:
            if task_id is not None or seed is not None:
                raise ConfigError(
                    "index", "chooses task and seed by itself", allowed="index alone, or task_id and seed"
                )
            try:
                task_id, seed = tasks.numbered(self.family, str(split), _whole("index", index))
            except IndexError as error:
                raise ConfigError("index", str(error)) from error
        if episode_id is not None and not (
            isinstance(episode_id, str) and 0 < len(episode_id) <= MOST_ID and episode_id.isprintable()
        ):
            raise ConfigError("episode_id", "is no text of usual length", allowed=f"1..{MOST_ID} printable letters")
        task = self._find(tasks.DEFAULTS[self.family] if task_id is None else str(task_id))
        number = self._begun if seed is None else _whole("seed", seed)
        scenario = tasks.scenario_of(str(split), number)
        self._begin(task, scenario)
        self._split, self._seed, self._taken, self._total, self._over = str(split), number, 0, 0.0, False
        self._episode_id = episode_id or f"{task.name}-{split}-{number}-{self._begun}"
        self._begun += 1
        if self._course is not None:
            self._watch("", 0.0, {})
        if self.meter is not None:
            self.meter.begun(self, task.name)
        self._reset_rubric()
        about = {
            "task_id": task.name, "task_name": task.name, "split": split, "seed": number, "digest": task.digest, "steps": task.steps,
            "description": task.description, "episode_id": self._episode_id,
        }  # fmt: skip
        return self._observation(None, about)

    def step(self, action: Any, timeout_s: float | None = None, **others: Any) -> Any:
        """Take one decision. After the end nothing happens any more: `done` stays true and the metadata say so."""
        del timeout_s, others
        about = self._enter(action)
        if about is None:
            return self._after_the_end()
        since_s = self._clock()
        assert self._batch is not None
        self._batch.step()
        return self._leave(action, about, since_s)

    async def reset_async(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        task_id: str | None = None,
        split: str | None = None,
        index: int | None = None,
        **others: Any,
    ) -> Any:
        """`reset`, on the event loop: there is nothing to wait for."""
        return self.reset(seed, episode_id, task_id, split, index, **others)

    async def step_async(self, action: Any, timeout_s: float | None = None, **others: Any) -> Any:
        """`step`, on the event loop: a thread would cost more than the step."""
        return self.step(action, timeout_s, **others)

    @property
    def state(self) -> PlantState:
        """Where the session stands."""
        task = self._task
        if task is None:
            return self.state_cls(episode_id=None, step_count=0, family=self.family)
        return self.state_cls(
            episode_id=self._episode_id, step_count=self._taken, family=self.family, task_id=task.name, split=self._split, seed=self._seed,
            digest=task.digest, steps=task.steps, total_reward=self._total, done=self._over,
        )  # fmt: skip

    def close(self) -> None:
        """End the session; `step` and `reset` raise from now on. (OpenEnv's reaper leaves the socket of an idle session open.)"""
        self._closed = True
        self._batch = None
        if self.meter is not None:
            self.meter.closed(self)

    def get_metadata(self) -> EnvironmentMetadata:
        """Name, description, version."""
        return EnvironmentMetadata(
            name=f"{self.family}_env", description=self.description, version=inferencegym.__version__, author="The InferenceGym authors",
            readme_content=tasks.instructions(self.family),
        )  # fmt: skip

    # --- OpenEnv's task API ----------------------------------------------------------------------------------------------

    def list_splits(self) -> list[str]:
        """train, validation, test."""
        return list(SPLITS)

    def num_tasks(self, split: str) -> int:
        """Tasks that the split lists."""
        tasks.scenario_of(split, 0)
        return len(tasks.offered(self.family)) * tasks.SCENARIOS_LISTED

    def get_task(self, split: str, index: int) -> dict[str, Any]:
        """One of them."""
        return tasks.spec(self.family, split, index)

    def list_tasks(self, split: str) -> list[dict[str, Any]]:
        """All of them."""
        return self.get_task_range(split)

    def get_task_range(self, split: str, start: int | None = None, stop: int | None = None) -> list[dict[str, Any]]:
        """Those from `start` to before `stop`, as a slice counts."""
        return [tasks.spec(self.family, split, i) for i in range(*slice(start, stop).indices(self.num_tasks(split)))]

    # --- beyond OpenEnv --------------------------------------------------------------------------------------------------

    def grade(self) -> dict[str, Any]:
        """What the whole episode came to, with its grade; ConfigError while it is not over."""
        batch = self._finished()
        assert self._task is not None
        return tasks.judged(self._task, batch.outcome(0), self._split, self._seed)

    def seen(self) -> Any:
        """The latest observation once more, without a step; nothing changes."""
        self._open()
        if self._batch is None:
            raise SessionError("the session has no episode; call reset first")
        return self._observation(None, {})

    def render_web(self, observation: dict[str, Any]) -> str:
        """The episode as OpenEnv's page shows it. From the first look on, every decision is remembered for its course."""
        del observation
        if self._batch is None or self._task is None:
            return ""
        if self._course is None:
            self._course = view.Course()
            self._watch("", 0.0, {})
        over = ""
        if self._over:
            judged = self.grade()
            over = "crashed" if self._batch.terminated[0] else "over"
            over += f", grade {judged['score']:.3f}" if judged["graded"] else f", value {judged['value']:.3f}"
        return self._drawn(
            view.About(self._task.name, self._split, self._seed, self._task.steps, self._total, over), self._course
        )

    # --- inside ----------------------------------------------------------------------------------------------------------

    _clock = staticmethod(time.perf_counter)

    def _find(self, name: str) -> Task:
        """A task by its name."""
        return tasks.find(self.family, name)

    def _enter(self, action: Any) -> dict[str, Any] | None:
        """Everything of a step before time passes: what is to be said of the action, or None if the episode is over."""
        self._open()
        if self._batch is None or self._task is None:
            raise SessionError("the session has no episode; call reset first")
        return None if self._over else self._act(action, self._batch)

    def _after_the_end(self) -> Any:
        return self._observation(0.0, {"message": "the episode is over; call reset to begin another"})

    def _leave(self, action: Any, about: dict[str, Any], since_s: float) -> Any:
        """Everything of a step after time has passed."""
        batch, task = self._batch, self._task
        assert batch is not None
        assert task is not None
        self._taken += 1
        reward = float(batch.rewards[0])
        self._total += reward
        if batch.terminated[0] or batch.truncated[0]:
            self._over = True
            about["grade"] = self.grade()
        observation = self._observation(reward, about)
        self._apply_rubric(action, observation)
        if self._course is not None:
            self._watch(view.said(action, about), reward, observation.reward_terms)
        if self.meter is not None:
            self.meter.stepped(since_s)
            if self._over:
                self.meter.finished(task.name, crashed=bool(batch.terminated[0]))
        return observation

    def _finished(self) -> Batch:
        """The batch of an episode that is over; ConfigError while it is not."""
        self._open()
        if self._batch is None or self._task is None:
            raise ConfigError("grader", "the session has no episode", allowed="reset, then play to the end")
        if not self._over:
            steps = f"{self._taken} of at most {self._task.steps} steps are played"
            raise ConfigError(
                "grader", f"the episode is not over: {steps}", allowed="play to the end; only whole episodes count"
            )
        return self._batch

    def _act(self, action: Any, batch: Batch) -> dict[str, Any]:
        """Write the action into the batch; returns what is to be said about it."""
        raise NotImplementedError

    def _named(self, encoded: Any, numbers: list[float]) -> dict[str, float]:
        """The columns by name, as this family shows them."""
        raise NotImplementedError

    def _drawn(self, about: view.About, course: view.Course) -> str:
        """The episode as HTML."""
        raise NotImplementedError

    def _watch(self, action: str, reward: float, terms: dict[str, float]) -> None:
        """Remember how things stand, for who looks on."""
        if self._course is not None and self._batch is not None:
            self._course.add(view.Point(self._taken, action, reward, terms, self._batch.facts(0)))

    def _open(self) -> None:
        if self._closed:
            raise SessionError(
                "the session is closed (it was idle for too long, or ended); open another and call reset"
            )

    def _begin(self, task: Task, scenario: int) -> None:
        batch = self._batch
        if batch is None or self._task is None or self._task.digest != task.digest:
            batch = task.batch(1)
            self.rubric = RewardRubric(tuple(task.reward_terms))
        batch.start(0, scenario)
        self._batch, self._task = batch, task

    def _observation(self, reward: float | None, about: dict[str, Any]) -> Any:
        batch, task = self._batch, self._task
        assert batch is not None
        assert task is not None
        encoded = batch.observations[0]
        numbers = encoded.tolist()
        begun = self._taken > 0
        # In the order of the fields (a test validates it): so pydantic need not look again.
        return self.observation_cls.of({
            "done": self._over, "reward": reward, "metadata": about, "step_index": self._taken, "task_id": task.name,
            "terminated": begun and bool(batch.terminated[0]), "truncated": begun and bool(batch.truncated[0]), "encoded": numbers,
            "action_mask": batch.masks[0].tolist(),
            "reward_terms": dict(zip(task.reward_terms, batch.terms[0].tolist(), strict=True)) if begun else {},
            **self._named(encoded, numbers),
        })  # fmt: skip


class LLMServeEnvironment(PlantEnvironment):
    """Steer a deployment window by window."""

    family = "llmserve"
    observation_cls = ServeObservation
    state_cls = ServeState
    description = "Steer a deployment of language-model servers: six knobs a window, on a simulated engine with real queues, KV memory and prices."

    def _act(self, action: Any, batch: Batch) -> dict[str, Any]:
        assert self._task is not None
        given = {name: value for name in LEVERS if (value := getattr(action, name)) is not None}
        batch.actions[0] = self._task.surface.dense(given)
        if action.prefill_decode_split and not batch.masks[0, _SPLIT_ON]:
            return {
                "refused": {"prefill_decode_split": "this deployment has no pools to split into; the knob stays off"}
            }
        return {}

    def _named(self, encoded: Any, numbers: list[float]) -> dict[str, float]:
        assert self._task is not None
        named: dict[str, float] = self._task.surface.columns.read(encoded)
        return named

    def _drawn(self, about: view.About, course: view.Course) -> str:
        task: Any = self._task
        classes = task.file.classes
        return view.serve(
            about, course, ttft_ms={one.name: 1e3 * one.ttft_s for one in classes}, tpot_ms={one.name: 1e3 * one.tpot_s for one in classes}
        )  # fmt: skip


class PagedKVEnvironment(PlantEnvironment):
    """Manage a pool of paged KV memory decision by decision."""

    family = "pagedkv"
    observation_cls = PagingObservation
    state_cls = PagingState
    description = "Manage paged KV memory of an LLM server: admit, reject, evict, swap and preempt, with a crash when a block is missing."

    def _act(self, action: Any, batch: Batch) -> dict[str, Any]:
        number = action.action_id
        batch.actions[0] = number
        if not batch.masks[0, number]:
            return {"illegal_action": f"{NAMES[number]} was not possible; nothing happened, and it is counted"}
        return {}

    def _named(self, encoded: Any, numbers: list[float]) -> dict[str, float]:
        assert self._task is not None
        return dict(zip(self._task.surface.columns.names, numbers, strict=True))

    def _drawn(self, about: view.About, course: view.Course) -> str:
        batch: Any = self._batch
        return poolview.paging(about, course, pool.look(batch, 0))

    def web_actions(self, observation: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """A button for each action that is possible now."""
        mask = observation.get("action_mask") or [1] * len(NAMES)
        return [(name.replace("_", " "), {"action_id": i}) for i, name in enumerate(NAMES) if mask[i]]


ENVIRONMENTS: dict[str, type[PlantEnvironment]] = {"llmserve": LLMServeEnvironment, "pagedkv": PagedKVEnvironment}


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ConfigError(name, f"{value!r} is no whole number", allowed="0, 1, 2, ...")
    return int(value)
