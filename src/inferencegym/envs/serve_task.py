"""Tasks of LLMServe: a deployment, its traffic, objectives and prices, read from a data file and checked.

The value of an episode is a sum of named terms, each a share of what could be had, so that a file reads like a contract:

    throughput  + prices.served x (weight of requests finished) / (weight of requests that arrived)
    slo         + prices.in_slo x (weight finished within TTFT and TPOT objectives) / (weight that arrived)
    quality     - prices.quality_loss[tier] x (tokens made with that tier) / (tokens asked for)
    cost        + prices.lent_kv x (share of the KV pool lent out, mean over windows)
    memory      - prices.preemption x (preemptions) / (requests that arrived)
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from inferencegym.decision.knobs import Knobs, KnobsSurface
from inferencegym.engine.asked import ask
from inferencegym.engine.deployment import Deployment
from inferencegym.engine.fleet import Asking, Plan, Steering, judge
from inferencegym.engine.memory import Structured
from inferencegym.engine.settings import EngineSettings
from inferencegym.envs.splits import SPLITS, split_of
from inferencegym.ground.errors import ConfigError, InputError
from inferencegym.ground.rng import stream
from inferencegym.workload import Workload, generate, read
from inferencegym.workload.generate import resolve
from inferencegym.workload.shipped import load_named
from inferencegym.workload.spec import Spec

if TYPE_CHECKING:
    from inferencegym.envs.llmserve import ServeBatch

#: Bump when the dynamics, rewards or observations of LLMServe change: it is part of every task's digest.
DYNAMICS = 1
TERMS = ("throughput", "slo", "quality", "cost", "memory")

_Positive = Annotated[float, Meta(gt=0)]
_Share = Annotated[float, Meta(ge=0, le=1)]


class ServiceClass(Struct, frozen=True, forbid_unknown_fields=True):
    """What one class of requests is promised and worth."""

    name: str
    ttft_s: _Positive
    """Time to first token, at most."""
    tpot_s: _Positive
    """Mean time per output token after the first, at most."""
    weight: _Positive = 1.0


class Prices(Struct, frozen=True, forbid_unknown_fields=True):
    """What an episode's value is made of."""

    served: _Share = 0.2
    in_slo: _Share = 0.8
    quality_loss: tuple[_Share, _Share, _Share] = (0.0, 0.03, 0.12)
    """Of an answer's worth, for FP16, INT8 and INT4 weights."""
    lent_kv: _Share = 0.1
    """For a pool wholly lent out through all the episode."""
    preemption: _Share = 0.05


class Traffic(Struct, frozen=True, forbid_unknown_fields=True):
    """Where requests come from: a description in the file, a shipped fit, or a real trace."""

    source: Literal["description", "fit", "trace"]
    name: str = ""
    """Of a fit or a trace."""
    rate_rps: float = 0.0
    """Mean rate to bring a fit or a trace to; 0: as it is."""
    description: dict[str, Any] = {}
    shift_s: Annotated[float, Meta(ge=0)] = 0.0
    """An episode of a description begins at a random time up to this one, so that its waves come at no known time."""
    most_prompt_tokens: int = 0
    """Longer prompts are left out (they would not fit the deployment's context); 0: none."""
    classes: tuple[tuple[str, float, int], ...] = ()
    """Classes to draw for a fit or a trace, which have none: (name, share, priority)."""


class Phase(Struct, frozen=True, forbid_unknown_fields=True):
    """A kind of minutes that the task knows, and how hard they are; measured, see docs."""

    name: str
    rate_rps: float
    load: float
    """Offered load as a share of what the best FP16 setting serves within its objectives."""


class ServeFile(Struct, frozen=True, forbid_unknown_fields=True):
    """A task's data file."""

    name: str
    family: Literal["llmserve"]
    version: int
    description: str
    window_s: _Positive
    windows: Annotated[int, Meta(ge=1, le=100_000)]
    deployment: dict[str, Any]
    engine: dict[str, Any]
    steering: dict[str, Any]
    traffic: Traffic
    classes: tuple[ServiceClass, ...]
    prices: Prices
    start: dict[str, Any]
    reward_scale: _Positive
    """An episode's value times its windows, divided by this, is its return; chosen so that rewards stay within -1..1."""
    phases: tuple[Phase, ...] = ()


class ServeTask:
    """One task: what to deploy, for whom, and what it is worth. `batch(n)` makes room for n episodes."""

    family = "llmserve"
    reward_terms = TERMS

    def __init__(self, file: ServeFile) -> None:
        self.file = file
        self.name, self.description = file.name, file.description
        self.steps = file.windows
        self.surface = KnobsSurface()
        self.start = Knobs(**file.start)
        if np.isnan(self.start.levers()).any():
            raise ConfigError(f"{file.name}.start", "does not set every knob", allowed="all six knobs")
        self._cache: OrderedDict[int, Asking] = OrderedDict()

    @cached_property
    def digest(self) -> str:
        """sha256 of all that shapes an episode: the file (but for its prose), what its traffic comes from, the dynamics' version."""
        shapes = {k: v for k, v in msgspec.to_builtins(self.file).items() if k not in ("description", "phases")}
        canonical = msgspec.json.encode([DYNAMICS, shapes, self._source_digest()], order="deterministic")
        return hashlib.sha256(canonical).hexdigest()

    def _source_digest(self) -> str:
        """What stands behind a named source: the fit's own digest, or the real trace's."""
        if self.file.traffic.source == "description":
            return ""
        if self.file.traffic.source == "fit":
            from inferencegym.workload.shipped import load_named

            return hashlib.sha256(
                msgspec.json.encode(load_named(self.file.traffic.name), order="deterministic")
            ).hexdigest()
        return self._trace.digest()

    @cached_property
    def _trace(self) -> Workload:
        """The real trace, servable requests only; an error says where it can be had."""
        trace, _ = read(self.file.traffic.name).servable()
        return self._short(trace)

    @cached_property
    def plan(self) -> Plan:
        """The deployment's machines and step times (made when first needed)."""
        deployment = Deployment(**self.file.deployment)
        settings = EngineSettings(**{k: _tuples(v) for k, v in self.file.engine.items()})
        steering = Steering(**{k: _tuples(v) for k, v in self.file.steering.items()})
        return Plan(deployment, settings, steering)

    def __reduce__(self) -> tuple[type[ServeTask], tuple[ServeFile]]:
        """Pickled as its file: a plan holds addresses, which mean nothing in another process."""
        return ServeTask, (self.file,)

    @property
    def duration_s(self) -> float:
        """Length of an episode."""
        return self.file.window_s * self.file.windows

    def batch(self, n: int) -> ServeBatch:
        """Room for n episodes side by side."""
        from inferencegym.envs.llmserve import ServeBatch

        return ServeBatch(self, n)

    # --- traffic -----------------------------------------------------------------------------------------------------

    def asking(self, scenario: int) -> Asking:
        """The requests of a scenario; the last few are kept."""
        found = self._cache.get(scenario)
        if found is None:
            found = self._asking_of(self.workload(scenario))
            self._cache[scenario] = found
            if len(self._cache) > 128:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(scenario)
        return found

    def _asking_of(self, workload: Workload) -> Asking:
        question = ask(workload, self.plan.deployment.block_size, self.plan.settings)
        return Asking(workload, question, self.judged_of(workload))

    def judged_of(self, workload: Workload) -> Structured:
        """JUDGED[n]: worth and objectives of each request, by its class."""
        by_name = {one.name: one for one in self.file.classes}
        classes = [by_name.get(name, self.file.classes[0]) for name in workload.slo_class_names or ("default",)]
        return judge(
            workload,
            ttft_s=[one.ttft_s for one in classes],
            tpot_s=[one.tpot_s for one in classes],
            weight=[one.weight for one in classes],
        )

    def workload(self, scenario: int) -> Workload:
        """The requests of a scenario: a seed's draw, or a window of the real trace."""
        traffic = self.file.traffic
        seed = scenario
        if traffic.source == "trace":
            return self._labelled(self._window(scenario), seed)
        begin_s = stream(seed, "task.shift").random() * traffic.shift_s
        end_s = begin_s + self.duration_s
        drawn, _ = generate(self.spec, seed=seed, duration_s=end_s, rate_rps=traffic.rate_rps or None).servable()
        if begin_s:
            drawn = drawn.window(begin_s, end_s)
        return self._labelled(self._short(drawn), seed)

    @cached_property
    def spec(self) -> Spec:
        """The description of the traffic; `lengths = {law = "fit", name = "burstgpt"}` takes the lengths of a shipped fit."""
        traffic = self.file.traffic
        if traffic.source == "fit":
            return load_named(traffic.name)
        parts = []
        for part in traffic.description["traffic"]:
            law = part.get("lengths", {})
            if law.get("law") == "fit":
                part = part | {"lengths": msgspec.to_builtins(load_named(law["name"]).traffic[0].lengths)}
            parts.append(part)
        return resolve(traffic.description | {"traffic": parts})

    def _short(self, workload: Workload) -> Workload:
        most = self.file.traffic.most_prompt_tokens
        return workload.take(workload.prompt_tokens <= most) if most else workload

    def _window(self, scenario: int) -> Workload:
        """A stretch of the trace that belongs to the scenario's split: the first half is for training, the next 20 % for validation, the rest for tests."""
        trace, traffic = self._trace, self.file.traffic
        split, index = split_of(scenario)
        span_s = float(trace.arrival_s[-1])
        rate_scale = traffic.rate_rps * span_s / len(trace) if traffic.rate_rps else 1.0
        begin, end = {"train": (0.0, 0.5), "validation": (0.5, 0.7), "test": (0.7, 1.0)}[split]
        length_s = self.duration_s * rate_scale
        room_s = (end - begin) * span_s - length_s
        if room_s < 0:
            raise InputError(
                f"the {split} part of trace '{traffic.name}' lasts {(end - begin) * span_s:.0f} s; an episode needs {length_s:.0f} s of it"
            )
        offset = stream(index, f"window.{split}").random()
        start_s = begin * span_s + offset * room_s
        return trace.window(start_s, start_s + length_s).scale_rate(rate_scale)

    def _labelled(self, workload: Workload, seed: int) -> Workload:
        """The workload with the classes that the task draws for sources that have none."""
        classes = self.file.traffic.classes
        if not classes:
            return workload
        rng = stream(seed, "task.classes")
        shares = np.array([share for _, share, _ in classes])
        drawn = rng.choice(len(classes), size=len(workload), p=shares / shares.sum()).astype(np.int16)
        return replace(
            workload,
            slo_class=drawn,
            slo_class_names=tuple(name for name, _, _ in classes),
            priority=np.array([priority for _, _, priority in classes], np.int16)[drawn],
        )


def _tuples(value: Any) -> Any:
    return tuple(_tuples(x) for x in value) if isinstance(value, list) else value


def load(path: Path) -> ServeTask:
    """Read a task's file; errors name the file and the field."""
    try:
        file = msgspec.toml.decode(path.read_bytes(), type=ServeFile)
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: {error}") from error
    return ServeTask(file)


__all__ = ["SPLITS", "TERMS", "Prices", "ServeFile", "ServeTask", "ServiceClass", "load"]
