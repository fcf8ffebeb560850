"""Tasks whose episodes differ in more than traffic: GPU, arrival rate, lengths, and how old observations are, drawn for each scenario (`learn.randomise`).

`vary` makes one from a task; it plays like any other. A batch shows late news (`LateBatch`) of rows that may run on different machines
(`MixedBatch`); whoever copies running deployments (`learn.forks`, planners) asks `machine_of` for the plain task of a scenario, and keeps
the news itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import numpy as np

from inferencegym.engine.paging.traffic import Demand, Traffic, Users, generate
from inferencegym.envs.batch import Batch, Outcome, Task
from inferencegym.envs.llmserve import ServeBatch
from inferencegym.envs.overrides import faster
from inferencegym.envs.pagedkv import PagedTask
from inferencegym.envs.serve_task import ServeTask
from inferencegym.ground.errors import ConfigError
from inferencegym.learn.delay import History
from inferencegym.learn.randomise import Drawn, Randomise
from inferencegym.learn.transfer import on_gpu
from inferencegym.workload import Workload

_KEPT = 128
_SHARED = ("masks", "rewards", "terms", "terminated", "truncated")


def vary(task: Task, randomise: Randomise) -> Task:
    """The task with what is drawn drawn; itself where nothing varies. ConfigError for a factor that the task cannot vary."""
    varied = _traffic_varied(task, randomise)
    low, high = randomise.delay
    return (
        LateTask(varied, high, lambda number: randomise.draw(number).delay, f"drawn {low}..{high}") if high else varied
    )


def delayed(task: Task, most: int) -> Task:
    """The task with news that are 1, 2, ..., `most` decisions old, scenario after scenario: how a policy is judged that was to get used to it."""
    return LateTask(task, most, lambda number: 1 + number % most, f"in turn 1..{most}")


def machine_of(task: Any, randomise: Randomise, number: int) -> Any:
    """The task of one scenario on the machine it draws, its news fresh: batches of scenarios of the same machine copy each other's rows."""
    varied = _traffic_varied(task, randomise)
    return varied.on(randomise.draw(number).gpu) if isinstance(varied, VariedServe) else varied


_varied: dict[str, tuple[Any, Any]] = {}


def _traffic_varied(task: Any, randomise: Randomise) -> Any:
    """All but the delay; made once, as long as one goes on with it."""
    others = tuple(name for name in randomise.varies if name != "delay")
    if not others:
        return task
    key = json.dumps([task.digest, asdict(randomise)])
    found = _varied.get(key)
    if found is not None and found[0] is task:
        return found[1]
    made: Any
    if isinstance(task, ServeTask):
        made = VariedServe(task, randomise)
    elif isinstance(task, PagedTask):
        made = VariedPaged(task, randomise)
    else:
        raise ConfigError("randomise", f"'{task.name}' cannot vary {', '.join(others)}", allowed="delay")
    _varied.clear()
    _varied[key] = task, made
    return made


class VariedServe(ServeTask):
    """A deployment whose machine and traffic are drawn for each scenario."""

    def __init__(self, base: ServeTask, randomise: Randomise) -> None:
        super().__init__(base.file)
        self.base, self.randomise = base, randomise
        self._machines: dict[str, VariedServe] = {}
        if "lengths" in randomise.varies and len(base.workload(0).prefix_ids):
            raise ConfigError("randomise.lengths", f"prompts of '{base.name}' share prefixes, which other lengths would tear", allowed="delay, rate, gpus")  # fmt: skip

        for gpu in randomise.gpus:
            try:
                self.on(gpu).plan  # noqa: B018 - a model that does not fit is an error now, not in some episode
            except ConfigError as error:
                raise ConfigError("randomise.gpus", f"'{base.name}' does not run on {gpu}: {error}", allowed="GPUs that the deployment fits on") from error  # fmt: skip

    @cached_property
    def digest(self) -> str:
        """sha256 of the task's and of what is drawn."""
        return _digest(self.base.digest, self.randomise)

    def on(self, gpu: str) -> VariedServe:
        """The same on one GPU; empty: the task's own."""
        if not self.randomise.gpus:
            return self
        if gpu not in self._machines:
            own = gpu == str(self.base.file.deployment["gpu"])
            plain = replace(self.randomise, gpus=())
            self._machines[gpu] = VariedServe(self.base if own else on_gpu(self.base, gpu), plain)
        return self._machines[gpu]

    def batch(self, n: int) -> Any:
        """Rows on one machine, or each on its own."""
        return MixedBatch(self, n) if self.randomise.gpus else ServeBatch(self, n)

    def workload(self, scenario: int) -> Workload:
        """The scenario's requests, more or fewer, longer or shorter."""
        drawn = self.randomise.draw(scenario)
        return self._lengthened(faster(self.base, drawn.rate).workload(scenario), drawn)

    def _lengthened(self, workload: Workload, drawn: Drawn) -> Workload:
        """Those whose prompt then is too long for the deployment are left out, as the task leaves them out."""
        if drawn.lengths == 1.0:
            return workload
        traffic, engine = self.file.traffic, self.file.engine
        most = traffic.most_prompt_tokens or int(engine["max_model_len"]) * 7 // 8
        longer = workload.with_(
            prompt_tokens=_scaled(workload.prompt_tokens, drawn.lengths),
            output_tokens=_scaled(workload.output_tokens, drawn.lengths),
            output_budget_tokens=_scaled(workload.output_budget_tokens, drawn.lengths),
        )
        return longer.take(longer.prompt_tokens <= most)

    def __reduce__(self) -> Any:
        return VariedServe, (self.base, self.randomise)


def _scaled(tokens: Any, factor: float) -> Any:
    """Whole tokens, none lost altogether; 0 stays 0."""
    return np.ceil(tokens * factor).astype(tokens.dtype)


class VariedPaged(PagedTask):
    """Paging whose rate and lengths are drawn for each scenario; blocks, link and objectives stay."""

    def __init__(self, base: PagedTask, randomise: Randomise) -> None:
        if randomise.gpus:
            raise ConfigError("randomise.gpus", f"'{base.name}' is paging, which knows blocks and ticks, no GPU", allowed="delay, rate, lengths")  # fmt: skip
        # Room for the most that may come.
        widest = _demand(base.demand, randomise.rate[1], 1.0)
        super().__init__(base.name, base.description, base.rules, widest, base.hardware)
        self.base, self.randomise = base, randomise
        self.digest = _digest(base.digest, randomise)

    def traffic(self, scenario: int) -> Traffic:
        """Every request of a scenario; the latest are kept at hand."""
        found = self._kept.get(scenario)
        if found is None:
            drawn = self.randomise.draw(scenario)
            demand = _demand(self.base.demand, drawn.rate, drawn.lengths)
            found = self._kept[scenario] = generate(demand, self.rules, scenario)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return found


def _demand(demand: Demand, rate: float, lengths: float) -> Demand:
    def users(one: Users) -> Users:
        return Users(*(number * lengths for number in one.row()))

    return replace(
        demand, low_rate=demand.low_rate * rate, high_rate=demand.high_rate * rate,
        chatters=users(demand.chatters), power_users=users(demand.power_users),
    )  # fmt: skip


class LateTask:
    """A task with news that are old, scenario by scenario."""

    def __init__(self, task: Task, most: int, delay_of: Callable[[int], int], said: str) -> None:
        """`delay_of`: decisions, at most `most`, for a scenario's number; `said`: the same in words, for the digest."""
        self.task, self.most, self.delay_of = task, most, delay_of
        self.name, self.family, self.surface, self.steps = task.name, task.family, task.surface, task.steps
        self.reward_terms, self.description = task.reward_terms, task.description
        self.digest = hashlib.sha256(f"{task.digest} late {said}".encode()).hexdigest()

    def batch(self, n: int) -> LateBatch:
        """Room for n episodes."""
        return LateBatch(self, self.task.batch(n))


class LateBatch:
    """Rows whose observations are old; all else is now's (protocol `envs.batch.Batch`)."""

    masks: Any
    rewards: Any
    terms: Any
    terminated: Any
    truncated: Any

    def __init__(self, task: LateTask, now: Batch) -> None:
        self.task, self.now, self.n = task, now, now.n
        self.actions = now.actions
        for name in _SHARED:
            setattr(self, name, getattr(now, name))
        self.observations = now.observations.copy()
        self._history = History(task.surface.name, now.n, task.most)

    def start(self, row: int, scenario: int) -> None:
        """Begin an episode in a row."""
        self.now.start(row, scenario)
        self._history.begin(row, self.now.observations[row], self.task.delay_of(scenario))
        self.observations[row] = self.now.observations[row]

    def step(self) -> None:
        """Take every row's action."""
        self.now.step()
        self._history.add(self.now.observations)
        self.observations[:] = self._history.shown()

    def outcome(self, row: int) -> Outcome:
        """What came of the row's episode so far."""
        return self.now.outcome(row)

    def branch(self, row: int, copies: int) -> LateBatch:
        """Independent copies of a row, with its old news."""
        twin = LateBatch(self.task, self.now.branch(row, copies))
        twin._history.copy_from(self._history, row, copies)
        twin.observations[:] = self.observations[row]
        return twin

    def facts(self, row: int) -> dict[str, float]:
        """How the row stands, now."""
        return self.now.facts(row)


class MixedBatch:
    """Rows that run on different machines: each is a batch of one (protocol `envs.batch.Batch`)."""

    def __init__(self, task: VariedServe, n: int) -> None:
        self.task, self.n = task, n
        like = task.on(task.randomise.gpus[0]).batch(1)
        for name in ("actions", "observations", *_SHARED):
            setattr(self, name, np.repeat(getattr(like, name), n, axis=0))
        self._rows: list[dict[str, ServeBatch]] = [{} for _ in range(n)]
        self._now: list[ServeBatch | None] = [None] * n

    actions: Any
    observations: Any
    masks: Any
    rewards: Any
    terms: Any
    terminated: Any
    truncated: Any

    def start(self, row: int, scenario: int) -> None:
        """Begin an episode in a row, on the machine that the scenario draws."""
        gpu = self.task.randomise.draw(scenario).gpu
        known = self._rows[row]
        if gpu not in known:
            known[gpu] = self.task.on(gpu).batch(1)
        self._now[row] = known[gpu]
        self._at(row).start(0, scenario)
        self._look(row)

    def step(self) -> None:
        """One window for every row."""
        for row in range(self.n):
            now = self._at(row)
            now.actions[0] = self.actions[row]
            now.step()
            self._look(row)

    def outcome(self, row: int) -> Outcome:
        """What the row's episode has earned so far."""
        return self._at(row).outcome(0)

    def branch(self, row: int, copies: int) -> ServeBatch:
        """Independent copies of a row."""
        return self._at(row).branch(0, copies)

    def facts(self, row: int) -> dict[str, float]:
        """The snapshot of a row."""
        return self._at(row).facts(0)

    def _at(self, row: int) -> ServeBatch:
        now = self._now[row]
        assert now is not None, "start() comes first"
        return now

    def _look(self, row: int) -> None:
        for name in ("observations", *_SHARED):
            getattr(self, name)[row] = getattr(self._now[row], name)[0]


def _digest(base: str, randomise: Randomise) -> str:
    return hashlib.sha256(json.dumps([base, asdict(randomise)], sort_keys=True).encode()).hexdigest()
