"""What Prometheus and people are told of a gateway: our series and vLLM's for the same things, each named in `metrics.vocabulary`.

Nothing is counted here: the recorder's histograms and the gateway's counters are written out when somebody asks, so a request pays nothing for it.
(prometheus-client would count each observation again, some microseconds a request.) Labels are classes, reasons, backends and GPUs: few, and capped.
With several workers any of them tells what all have counted (`siblings`).
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from inferencegym.metrics.itl import ItlHistogram
from inferencegym.metrics.record import Outcome
from inferencegym.metrics.summary import PERCENTILES
from inferencegym.metrics.vocabulary import metric
from inferencegym.runtime.gateway import Gateway
from inferencegym.runtime.gpu import Gpu, GpuReader
from inferencegym.runtime.histogram import Histogram
from inferencegym.runtime.ports import Load
from inferencegym.runtime.promtext import Text
from inferencegym.runtime.recorder import ClassFigures, Mark
from inferencegym.runtime.told import Durations, Engine, Now, Reasons, Told, Window, together

#: Service classes that get a label of their own; the others are `other` together.
MOST_CLASSES = 64
#: Rates and shares are of about the last so many seconds.
WINDOW_S = 60.0
_MARKS = 12

_LATENCIES: Mapping[str, Callable[[ClassFigures], Histogram]] = {
    "queue_s": lambda f: f.queue, "ttft_s": lambda f: f.ttft, "itl_s": lambda f: f.itl, "tpot_s": lambda f: f.tpot, "e2e_s": lambda f: f.e2e,
}  # fmt: skip
#: Counters that a backend may have.
_ENGINES = ("steps", "swaps", "evicted_blocks", "drafted", "accepted")


class Others(Protocol):
    """The other workers of the same server."""

    def all_told(self) -> list[Told]:
        """What each has told, this one included."""


class Exporter:
    """The figures of one gateway, or of all workers together."""

    def __init__(self, gateway: Gateway, gpu: GpuReader | None = None) -> None:
        self._gateway = gateway
        self._gpu = gpu or GpuReader()
        self._marks: deque[Mark] = deque([gateway.recorder.mark()], maxlen=_MARKS)
        self._mock = {one.name for one in gateway.settings.backends if one.kind == "mock"}
        self.others: Others | None = None
        """Where there are several workers."""

    # --- what there is ---------------------------------------------------------------------------------------------------

    def told(self) -> Told:
        """What this gateway alone tells, now."""
        recorder = self._gateway.recorder
        return Told(os.getpid(), self._now(), self._engines(), self._counters(), self._reasons(), {
            name: {label: _together([pick(f) for f in figures]) for label, figures in self._classes(recorder.figures)}
            for name, pick in _LATENCIES.items()
        })  # fmt: skip

    def _all(self) -> Told:
        return self.told() if self.others is None else together(self.others.all_told())

    def _now(self) -> Now:
        gateway = self._gateway
        waiting = gateway.recorder.waiting()
        tallies = self._classes(gateway.admission.by_class)
        return Now(
            waiting=gateway.waiting(),
            oldest_wait_s=gateway.clock() - waiting[0].ask.arrival_s if waiting else 0.0,
            waiting_prompt_tokens=sum(me.ask.prompt_tokens for me in waiting),
            kv_tokens_in_flight=gateway.dispatcher.kv_tokens,
            by_class={label: sum(tally.requests for tally in some) for label, some in tallies},
            window=self._window(),
            shared_up=None if gateway.shared is None else gateway.shared.up,
        )

    def _window(self) -> Window:
        """The figures of about the last minute; several may ask, as often as they like."""
        recorder, marks = self._gateway.recorder, self._marks
        while len(marks) > 1 and marks[1].at_s <= recorder.clock() - WINDOW_S:
            marks.popleft()
        seen, now = recorder.since(marks[0])
        if now.at_s - marks[-1].at_s >= WINDOW_S / (_MARKS - 2):
            marks.append(now)
        good_rps = seen.good / seen.span_s if seen.span_s > 0 else 0.0
        return Window(
            seen.span_s, seen.arrivals, seen.finished, seen.emitted_tokens, good_rps, seen.decided, seen.met, Durations(seen.ttft),
            Durations(seen.itl),
        )  # fmt: skip

    def _engines(self) -> dict[str, Engine]:
        found = {}
        for seat in self._gateway.dispatcher.seats:
            backend = seat.backend
            load: Load = backend.load()
            more = {name: load.more[name] for name in _ENGINES if name in load.more}
            found[backend.name] = Engine(
                backend.name in self._mock, seat.used, self._gateway.pool.usable(backend), _known(load.running), _known(load.waiting),
                _known(load.kv_used_fraction), _known(load.preemptions), more,
            )  # fmt: skip
        return found

    def _counters(self) -> dict[str, float]:
        recorder, shared = self._gateway.recorder, self._gateway.shared
        figures = recorder.figures
        counters: dict[str, float] = {
            "requests": sum(recorder.outcomes.values()),
            "prompt_tokens": sum(f.prompt_tokens for f in figures),
            "output_tokens": sum(f.output_tokens for f in figures),
            "cached_tokens": recorder.cached_tokens,
            "retries": self._gateway.retries,
        }
        if self._gateway.settings.recorder.folder:
            counters |= {"recorded": recorder.journal.written, "unrecorded": recorder.journal.lost}
        if shared is not None:
            counters |= {"shared_failures": shared.failures, "shared_local": shared.local}
        return counters

    def _reasons(self) -> Reasons:
        """Counters by reason: outcomes, refusals, and why requests were let go."""
        dispatcher = self._gateway.dispatcher
        counts: Reasons = {outcome.name.lower(): {} for outcome in Outcome}
        for (outcome, reason), count in self._gateway.recorder.outcomes.items():
            counts[outcome][reason] = count
        return counts | {
            "refused": dict(self._gateway.admission.refused),
            "released": dict(dispatcher.released),
            "batches": dict(dispatcher.batches),
        }

    def _classes(self, each: list[Any]) -> list[tuple[str, list[Any]]]:
        """What there is of each class, by the class's label."""
        named = [(c.name, [one]) for c, one in zip(self._gateway.recorder.classes, each, strict=True)]
        rest = [one for _, some in named[MOST_CLASSES:] for one in some]
        return [*named[:MOST_CLASSES], ("other", rest)] if rest else named

    # --- Prometheus ------------------------------------------------------------------------------------------------------

    def prometheus(self) -> str:
        """All of it in Prometheus' text format 0.0.4: our names first, then vLLM's for dashboards and pickers made for vLLM."""
        text, told = Text(), self._all()
        model = self._gateway.pool.models()
        of_model = {"model_name": model[0] if len(model) == 1 else "all"}
        for name, by_class in told.latencies.items():
            about = metric(name)
            text.histogram(
                about, about.prometheus, [({"class": label}, one.histogram) for label, one in by_class.items()]
            )
            text.histogram(about, about.vllm, [(of_model, _sum(by_class))])
        for kind, plain in (("gauge", gauges(told)), ("counter", counters(told))):
            for name, value in plain.items():
                about = metric(name)
                text.metric(about, about.prometheus, kind, [({}, value)])
                text.metric(about, about.vllm, kind, [(of_model, value)])
        for name, reasons in told.reasons.items():
            about = metric(name)
            text.metric(
                about, about.prometheus, "counter", [({"reason": r} if r else {}, n) for r, n in reasons.items()]
            )
        self._success(text, told.reasons, of_model)
        for name, label, values in labelled(told):
            about = metric(name)
            text.metric(about, about.prometheus, "gauge", [({label: of}, value) for of, value in values.items()])
        self._gpu_text(text)
        return text.whole()

    @staticmethod
    def _success(text: Text, reasons: Reasons, of_model: Mapping[str, str]) -> None:
        """The counter of vLLM: every request that it took, by why it ended."""
        about, ok = metric("ok"), reasons["ok"]
        ended = {
            "stop": sum(ok.values()) - ok.get("length", 0),
            "length": ok.get("length", 0),
            "abort": sum(reasons["aborted"].values()),
            "error": sum(reasons["failed"].values()),
        }
        text.metric(
            about, about.vllm, "counter", [({**of_model, "finished_reason": why}, n) for why, n in ended.items()]
        )

    def _gpu_text(self, text: Text) -> None:
        gpus = self._gpu.look()
        up = metric("gpu_telemetry_up")
        text.metric(up, up.prometheus, "gauge", [({}, 0.0 if self._gpu.problem else 1.0)])
        for field in _GPU_FIELDS:
            about = metric(f"gpu_{field}")
            told = [({"gpu": gpu.index}, getattr(gpu, field)) for gpu in gpus if not math.isnan(getattr(gpu, field))]
            text.metric(about, about.prometheus, "gauge", told)

    # --- JSON ------------------------------------------------------------------------------------------------------------

    def json(self) -> dict[str, Any]:
        """The same as an object: names of the vocabulary, seconds and shares, None for what does not exist."""
        gpus, told = self._gpu.look(), self._all()
        assert told.now is not None, "who is asked runs"
        window = told.now.window
        return {
            "window": {
                "span_s": window.span_s, "arrivals": window.arrivals, "finished": window.finished, "output_tokens": window.output_tokens,
                "slo_attainment": _share(window), "ttft_s": _percentiles(window.ttft.histogram), "itl_s": _percentiles(window.itl.histogram),
            },
            "gauges": gauges(told),
            "counters": counters(told),
            "by_reason": told.reasons,
            "classes": told.now.by_class,
            "latencies": {name: _percentiles(_sum(of)) for name, of in told.latencies.items()},
            "backends": {
                name: {"backend_in_flight": float(engine.in_flight), "backend_up": float(engine.up)} for name, engine in told.engines.items()
            },
            "gpus": [_told(gpu) for gpu in gpus],
            "gpu_telemetry": self._gpu.problem or "nvidia-smi",
        }  # fmt: skip


def gauges(told: Told) -> dict[str, float]:
    """Gauges without labels, by metric name; those that are not known are left out."""
    now, engines = told.now, told.engines.values()
    assert now is not None, "who is asked runs"
    used = [engine.kv_used for engine in engines if engine.kv_used is not None]
    drafted, accepted = (sum(engine.more.get(name, 0.0) for engine in engines) for name in ("drafted", "accepted"))
    found: dict[str, float | None] = {
        "running_mean": float(sum(e.in_flight if e.running is None else e.running for e in engines)),
        "waiting_mean": now.waiting + sum(e.waiting or 0.0 for e in engines),
        "goodput_rps": now.window.good_rps,
        "slo_attainment": _share(now.window),
        "oldest_wait_s": now.oldest_wait_s,
        "waiting_prompt_tokens": float(now.waiting_prompt_tokens),
        "kv_tokens_in_flight": float(now.kv_tokens_in_flight),
        "workers": float(told.workers),
        "kv_used_mean": sum(used) / len(used) if used else None,
        "spec_acceptance_fraction": accepted / drafted if drafted else None,
        "shared_up": None if now.shared_up is None else float(now.shared_up),
    }
    return {name: value for name, value in found.items() if value is not None}


def counters(told: Told) -> dict[str, float]:
    """Counters without labels, by metric name."""
    engines = told.engines.values()
    preempted = [engine.preemptions for engine in engines if engine.preemptions is not None]
    found = dict(told.counters)
    if preempted:
        found["preemptions"] = sum(preempted)
    for name in _ENGINES:
        if any(name in engine.more for engine in engines):
            found[name] = sum(engine.more.get(name, 0.0) for engine in engines)
    return found


def labelled(told: Told) -> list[tuple[str, str, dict[str, float]]]:
    """Gauges with a label: metric name, label, value by label."""
    assert told.now is not None, "who is asked runs"
    return [
        ("class_waiting", "class", dict(told.now.by_class)),
        ("backend_in_flight", "backend", {name: float(engine.in_flight) for name, engine in told.engines.items()}),
        ("backend_up", "backend", {name: float(engine.up) for name, engine in told.engines.items()}),
    ]


_GPU_FIELDS = ("busy_fraction", "memory_used_bytes", "memory_bytes", "power_w", "temperature_c")


def _together(histograms: list[Histogram]) -> Durations:
    first, *rest = (histogram.frozen() for histogram in histograms)
    return Durations(sum(rest, first))


def _sum(by_class: Mapping[str, Durations]) -> ItlHistogram:
    return sum((one.histogram for one in by_class.values()), ItlHistogram())


def _share(window: Window) -> float:
    return window.met / window.decided if window.decided else 1.0


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _percentiles(histogram: ItlHistogram) -> dict[str, float | None]:
    told: dict[str, float | None] = {"count": float(histogram.count), "mean": None}
    told |= dict.fromkeys((f"p{q}" for q in PERCENTILES), None)
    if histogram.count:
        told["mean"] = histogram.mean()
        told |= {f"p{q}": x for q, x in zip(PERCENTILES, histogram.percentiles(PERCENTILES), strict=True)}
    return told


def _told(gpu: Gpu) -> dict[str, Any]:
    figures = {field: getattr(gpu, field) for field in _GPU_FIELDS}
    return {"index": gpu.index, "name": gpu.name} | {k: None if math.isnan(v) else v for k, v in figures.items()}
