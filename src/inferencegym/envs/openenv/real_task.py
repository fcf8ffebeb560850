"""Tasks of LLMServe on a real endpoint: the scenario's own requests, thinned to the caps, and rewards of the same terms from what was measured.

A `RealBatch` has one row. It earns no grade: anchors are of the simulated engine.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from inferencegym.decision.columns import Float32s, Floats, Masks
from inferencegym.decision.knobs import GRID, LEVERS, OFFSETS, QUANTIZATION_TIERS
from inferencegym.decision.snapshot import NAMES
from inferencegym.envs.batch import Outcome, Task
from inferencegym.envs.openenv import tasks
from inferencegym.envs.openenv.environment import LLMServeEnvironment, SessionError
from inferencegym.envs.openenv.real import TEMPLATE_TOKENS, RealSettings, Request, text_of
from inferencegym.envs.openenv.real_plant import UNOBSERVED, RealPlant, Window, submit
from inferencegym.envs.serve_task import TERMS, ServeTask
from inferencegym.ground.errors import ConfigError

_EPISODE = NAMES.index("episode_fraction")


class RealTask:
    """A simulated task, played on an endpoint (protocol `envs.batch.Task`)."""

    family = "llmserve"
    reward_terms: Sequence[str] = TERMS

    def __init__(self, task: ServeTask, settings: RealSettings) -> None:
        self.simulated, self.settings = task, settings
        self.name, self.description, self.steps, self.surface, self.file = (
            task.name, task.description, task.steps, task.surface, task.file,
        )  # fmt: skip
        self.window_s = settings.window_s or task.file.window_s
        shapes = json.dumps(["real", task.digest, settings.told(), self.window_s], sort_keys=True)
        self.digest = hashlib.sha256(shapes.encode()).hexdigest()
        """Other than the simulated task's, so that no log of one passes for the other."""

    def batch(self, n: int) -> RealBatch:
        """Room for one episode."""
        if n != 1:
            raise ConfigError("n", f"{n} episodes on one endpoint", allowed="1 in real mode")
        return RealBatch(self)

    def requests(self, scenario: int, mark: str = "") -> list[list[tuple[float, Request]]]:
        """Of each window: (offset in seconds, request). The scenario's own, evenly thinned so that its busiest window keeps to the cap.

        `mark` opens every prompt: with one of its own, an episode that is played again finds nothing in the endpoint's prompt cache.
        """
        settings, own, file = self.settings, self.simulated.workload(scenario), self.file
        window = np.minimum((own.arrival_s // file.window_s).astype(int), self.steps - 1)
        counts = np.bincount(window, minlength=self.steps)
        keep = min(1.0, settings.max_requests_per_step / max(1, counts.max()))
        by_name = {one.name: one for one in file.classes}
        names = own.slo_class_names or ("default",)
        most_words = max(1, settings.max_prompt_tokens - TEMPLATE_TOKENS)
        found: list[list[tuple[float, Request]]] = []
        for w in range(self.steps):
            rows = np.flatnonzero(window == w)
            n = int(keep * len(rows) + 0.5)
            found.append([])
            for row in rows[((np.arange(n) + 0.5) * len(rows) / max(1, n)).astype(int)].tolist():
                served = by_name.get(names[own.slo_class[row]], file.classes[0])
                prompt = min(int(own.prompt_tokens[row]), most_words)
                request = Request(
                    row=row, text=f"{mark} {text_of(prompt, scenario, row)}".lstrip(), prompt_tokens=min(prompt + TEMPLATE_TOKENS, settings.max_prompt_tokens),
                    most_tokens=max(1, min(int(own.output_tokens[row]), settings.max_completion_tokens)), priority=int(own.priority[row]),
                    ttft_limit_s=served.ttft_s, tpot_limit_s=served.tpot_s, weight=served.weight,
                )  # fmt: skip
                offset = (float(own.arrival_s[row]) - w * file.window_s) * self.window_s / file.window_s
                found[-1].append((max(0.0, offset), request))
        return found


class RealBatch:
    """One episode on an endpoint (protocol `envs.batch.Batch`, n = 1), and `step_async` for who must not wait."""

    n = 1

    def __init__(self, task: RealTask) -> None:
        self.task = task
        self.plant: RealPlant | None = None
        surface = task.surface
        self.actions: Floats = np.full((1, len(LEVERS)), np.nan)
        self.observations: Float32s = np.zeros((1, len(surface.columns)), np.float32)
        self.masks: Masks = np.ones((1, surface.mask_size), np.int8)
        self.rewards: Floats = np.zeros(1)
        self.terms: Floats = np.zeros((1, len(TERMS)))
        self.terminated = np.zeros(1, np.bool_)
        self.truncated = np.zeros(1, np.bool_)
        self._mask()

    def _mask(self) -> None:
        settings = self.task.settings
        possible: dict[str, Callable[[float], bool]] = {
            "speculation_depth": lambda depth: depth == 0 or bool(settings.draft_field),
            "quantization_tier": lambda tier: settings.model_of(QUANTIZATION_TIERS[int(tier)]) is not None,
            "prefill_decode_split": lambda on: on == 0,
        }
        for name, may in possible.items():
            at = OFFSETS[LEVERS.index(name)]
            for i, value in enumerate(GRID[name]):
                self.masks[0, at + i] = may(value)

    def start(self, row: int, scenario: int) -> None:
        """Begin an episode; what an earlier one has in flight is given up."""
        assert row == 0
        self.close()
        self._due = self.task.requests(scenario, f"{time.time_ns() // 1_000_000 % 2**24:06x}")
        every = [request for due in self._due for _, request in due]
        self._worth = (
            sum(request.weight for request in every) or 1.0, len(every) or 1.0, sum(request.most_tokens for request in every) or 1.0,
        )  # fmt: skip
        self.plant = RealPlant(self.task.settings, self.task.simulated.start)
        self.windows_done, self.given_up, self.cost_usd = 0, 0, 0.0
        self.about: dict[str, Any] = {}
        self._value: Floats = np.zeros(len(TERMS))
        self._sums = dict.fromkeys(
            ("arrived", "finished", "failed", "met_weight", "output_tokens", "prompt_tokens", "prompts_over_cap"), 0.0
        )
        self.rewards[0], self.terms[0], self.truncated[0] = 0.0, 0.0, False
        self._observe()

    def step(self) -> None:
        """One window in real time; blocks the calling thread."""
        submit(self._step()).result()

    async def step_async(self) -> None:
        """One window in real time, while the caller's loop goes on."""
        await asyncio.wrap_future(submit(self._step()))

    async def _step(self) -> None:
        plant, task = self.plant, self.task
        if plant is None:
            raise SessionError("the session is closed")
        applied = plant.apply(task.surface.action(self.actions[0]))
        window = await plant.window(self._due[self.windows_done], task.window_s)
        if self.plant is not plant:
            raise SessionError("the session was closed, or begun anew, while its window went on")
        self.windows_done += 1
        self._judge(plant, window)
        if self.windows_done >= task.steps:
            self.truncated[0] = True
            self.given_up = await plant.stop()
        self._observe()
        unobserved = list(UNOBSERVED)
        cost = plant.cost_usd(window.finished)
        if cost is None:
            unobserved.append("estimated_cost_per_1k")
        else:
            self.cost_usd += cost
        self.about = {
            "mode": "real", "refused": dict(applied.refused), "unobserved": unobserved, "unobserved_reward_terms": ["memory"],
            "requests": {
                "arrived": len(window.arrived), "finished": len(window.finished), "failed": len(window.failed),
                "most_running": window.most_running, "cost_usd": cost, "window_s": window.length_s,
            },
        }  # fmt: skip
        if window.failed:
            self.about["failures"] = sorted({request.problem for request in window.failed})[:5]

    def _judge(self, plant: RealPlant, window: Window) -> None:
        prices, (weight, _, tokens) = self.task.file.prices, self._worth
        sums = self._sums
        made = sum(
            prices.quality_loss[request.tier] * request.emitted for request in [*window.finished, *window.failed]
        )
        met = sum(request.weight for request in window.finished if request.met)
        terms = self.terms[0]
        terms[0] = prices.served * sum(request.weight for request in window.finished) / weight
        terms[1] = prices.in_slo * met / weight
        terms[2] = -made / tokens
        terms[3] = prices.lent_kv * (1.0 - (plant.levers.kv_budget_fraction or 1.0)) / self.task.steps
        terms[4] = 0.0
        self._value += terms
        terms *= self.task.steps / self.task.file.reward_scale
        self.rewards[0] = float(np.clip(terms.sum(), -1.0, 1.0))
        sums["arrived"] += len(window.arrived)
        sums["finished"] += len(window.finished)
        sums["failed"] += len(window.failed)
        sums["met_weight"] += met
        sums["output_tokens"] += sum(request.emitted for request in window.finished)
        sums["prompt_tokens"] += sum(request.prompt_tokens for request in window.finished)
        cap = self.task.settings.max_prompt_tokens
        sums["prompts_over_cap"] += sum(request.usage and request.prompt_tokens > cap for request in window.finished)

    def _observe(self) -> None:
        assert self.plant is not None
        seen = self.plant.snapshot().values()
        seen[_EPISODE] = self.windows_done / self.task.steps
        self._seen = seen
        self.observations[0] = self.task.surface.columns.encode(seen)

    def outcome(self, row: int) -> Outcome:
        """What the episode has earned so far."""
        assert row == 0
        parts = dict(zip(TERMS, self._value.tolist(), strict=True))
        facts = self._sums | {
            "requests": float(self._worth[1]), "in_slo_share": self._sums["met_weight"] / self._worth[0],
            "given_up_at_the_end": float(self.given_up), "cost_usd": self.cost_usd, "windows": float(self.windows_done),
        }  # fmt: skip
        return Outcome(float(self._value.sum()), parts, facts)

    def facts(self, row: int) -> dict[str, float]:
        """The snapshot in natural units; what is not known reads 0."""
        assert row == 0
        return dict(zip(NAMES, np.nan_to_num(self._seen).tolist(), strict=True))

    def branch(self, row: int, copies: int) -> RealBatch:
        """There is no second reality."""
        raise ConfigError("branch", f"{copies} copies of row {row} of a real endpoint", allowed="simulated tasks only")

    def close(self) -> None:
        """Give up what is in flight; does not wait for it."""
        plant, self.plant = self.plant, None
        if plant is not None:
            submit(plant.close())


class RealServeEnvironment(LLMServeEnvironment):
    """A session on a real endpoint: the same words as the simulated one."""

    settings: ClassVar[RealSettings | None] = None
    description = "Steer the queue in front of a real, OpenAI-compatible endpoint; times are measured from its streams."

    def _find(self, name: str) -> Task:
        task: Any = tasks.find(self.family, name)
        settings = self.settings or RealSettings.from_environment()
        return RealTask(task, settings)

    def step(self, action: Any, timeout_s: float | None = None, **others: Any) -> Any:
        """One window in real time; blocks this thread."""
        about = self._enter(action)
        if about is None:
            return self._after_the_end()
        since_s = self._clock()
        self._real().step()
        return self._leave(action, about | self._real().about, since_s)

    async def step_async(self, action: Any, timeout_s: float | None = None, **others: Any) -> Any:
        """One window in real time; other sessions go on."""
        about = self._enter(action)
        if about is None:
            return self._after_the_end()
        since_s = self._clock()
        await self._real().step_async()
        return self._leave(action, about | self._real().about, since_s)

    def _real(self) -> RealBatch:
        self._open()
        assert isinstance(self._batch, RealBatch)
        return self._batch

    def _act(self, action: Any, batch: Any) -> dict[str, Any]:
        given = {name: value for name in LEVERS if (value := getattr(action, name)) is not None}
        assert self._task is not None
        batch.actions[0] = self._task.surface.dense(given)
        return {}

    def grade(self) -> dict[str, Any]:
        """What the episode came to. Never a grade: anchors are of the simulated engine."""
        batch = self._finished()
        outcome = batch.outcome(0)
        assert self._task is not None
        return {
            "task_id": self._task.name, "split": self._split, "seed": self._seed, "digest": self._task.digest, "mode": "real",
            "value": outcome.value, "score": min(1.0, max(0.0, outcome.value)), "graded": False,
            "why_not_graded": "real mode: floors and ceilings are of the simulated engine", "parts": outcome.parts, "facts": outcome.facts,
        }  # fmt: skip

    def close(self) -> None:
        """End the session; requests in flight are given up."""
        if isinstance(self._batch, RealBatch):
            self._batch.close()
        super().close()
