"""What Prometheus and people are told of a gateway: our series and vLLM's for the same things, each named in `metrics.vocabulary`.

Nothing is counted here: the recorder's histograms and the gateway's counters are written out when somebody asks, so a request pays nothing for it.
(prometheus-client would count each observation again, some microseconds a request.) Labels are classes, reasons, backends and GPUs: few, and capped.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from inferencegym.metrics.itl import ItlHistogram
from inferencegym.metrics.record import Outcome
from inferencegym.metrics.summary import PERCENTILES
from inferencegym.metrics.vocabulary import Metric, metric
from inferencegym.runtime.gateway import Gateway
from inferencegym.runtime.gpu import Gpu, GpuReader
from inferencegym.runtime.histogram import BUCKETS_S, Histogram
from inferencegym.runtime.ports import Backend, Load
from inferencegym.runtime.recorder import ClassFigures, Figures, Mark

#: Service classes that get a label of their own; the others are `other` together.
MOST_CLASSES = 64
#: Rates and shares are of about the last so many seconds.
WINDOW_S = 60.0
_MARKS = 12

Labels = Mapping[str, str]
_LATENCIES: Mapping[str, Callable[[ClassFigures], Histogram]] = {
    "queue_s": lambda f: f.queue, "ttft_s": lambda f: f.ttft, "itl_s": lambda f: f.itl, "tpot_s": lambda f: f.tpot, "e2e_s": lambda f: f.e2e,
}  # fmt: skip


class Exporter:
    """The figures of one gateway."""

    def __init__(self, gateway: Gateway, gpu: GpuReader | None = None) -> None:
        self._gateway = gateway
        self._gpu = gpu or GpuReader()
        self._marks: deque[Mark] = deque([gateway.recorder.mark()], maxlen=_MARKS)

    # --- what there is ---------------------------------------------------------------------------------------------------

    def _window(self) -> Figures:
        """The figures of about the last minute; several may ask, as often as they like."""
        recorder, marks = self._gateway.recorder, self._marks
        while len(marks) > 1 and marks[1].at_s <= recorder.clock() - WINDOW_S:
            marks.popleft()
        figures, now = recorder.since(marks[0])
        if now.at_s - marks[-1].at_s >= WINDOW_S / (_MARKS - 2):
            marks.append(now)
        return figures

    def _loads(self) -> list[tuple[Backend, Load]]:
        return [(backend, backend.load()) for backend in self._gateway.pool.backends]

    def _gauges(self) -> dict[str, float]:
        """Gauges without labels, by metric name; those that are not known are left out."""
        gateway, window = self._gateway, self._window()
        loads = [load for _, load in self._loads()]
        waiting = gateway.recorder.waiting()
        used = [load.kv_used_fraction for load in loads if not math.isnan(load.kv_used_fraction)]
        drafted, accepted = _more(loads, "drafted"), _more(loads, "accepted")
        gauges = {
            "running_mean": sum(s.used if math.isnan(x.running) else x.running for s, x in zip(gateway.dispatcher.seats, loads, strict=True)),
            "waiting_mean": gateway.waiting() + sum(load.waiting for load in loads if not math.isnan(load.waiting)),
            "goodput_rps": window.good / window.span_s if window.span_s > 0 else 0.0,
            "slo_attainment": window.slo_compliance,
            "oldest_wait_s": gateway.clock() - waiting[0].ask.arrival_s if waiting else 0.0,
            "waiting_prompt_tokens": float(sum(me.ask.prompt_tokens for me in waiting)),
            "kv_tokens_in_flight": float(gateway.dispatcher.kv_tokens),
            "kv_used_mean": sum(used) / len(used) if used else math.nan,
            "spec_acceptance_fraction": accepted / drafted if drafted else math.nan,
        }  # fmt: skip
        return {name: value for name, value in gauges.items() if not math.isnan(value)}

    def _counters(self) -> dict[str, float]:
        """Counters without labels, by metric name."""
        recorder, loads = self._gateway.recorder, [load for _, load in self._loads()]
        figures = recorder.figures
        told = [load.preemptions for load in loads if not math.isnan(load.preemptions)]
        counters: dict[str, float] = {
            "requests": sum(recorder.outcomes.values()),
            "prompt_tokens": sum(f.prompt_tokens for f in figures),
            "output_tokens": sum(f.output_tokens for f in figures),
            "cached_tokens": recorder.cached_tokens,
            "retries": self._gateway.retries,
        }
        if told:
            counters["preemptions"] = sum(told)
        for name in ("steps", "swaps", "evicted_blocks", "drafted", "accepted"):
            if any(name in load.more for load in loads):
                counters[name] = _more(loads, name)
        return counters

    def _by_reason(self) -> dict[str, dict[str, int]]:
        """Counters by reason: outcomes, and why requests were let go."""
        dispatcher = self._gateway.dispatcher
        counts: dict[str, dict[str, int]] = {outcome.name.lower(): {} for outcome in Outcome}
        for (outcome, reason), count in self._gateway.recorder.outcomes.items():
            counts[outcome][reason] = count
        return counts | {"released": dict(dispatcher.released), "batches": dict(dispatcher.batches)}

    def _backends(self) -> dict[str, dict[str, float]]:
        gateway = self._gateway
        return {
            seat.backend.name: {
                "backend_in_flight": float(seat.used),
                "backend_up": float(gateway.pool.usable(seat.backend)),
            }
            for seat in gateway.dispatcher.seats
        }

    def _histograms(self) -> Iterable[tuple[str, Callable[[ClassFigures], Histogram]]]:
        return _LATENCIES.items()

    def _classes(self) -> list[tuple[str, list[ClassFigures]]]:
        recorder = self._gateway.recorder
        named = [(c.name, [f]) for c, f in zip(recorder.classes, recorder.figures, strict=True)]
        rest = [f for _, figures in named[MOST_CLASSES:] for f in figures]
        return [*named[:MOST_CLASSES], ("other", rest)] if rest else named

    # --- Prometheus ------------------------------------------------------------------------------------------------------

    def prometheus(self) -> str:
        """All of it in Prometheus' text format 0.0.4: our names first, then vLLM's for dashboards and pickers made for vLLM."""
        text = Text()
        model = self._gateway.pool.models()
        of_model = {"model_name": model[0] if len(model) == 1 else "all"}
        for name, pick in self._histograms():
            about = metric(name)
            per_class = [({"class": label}, Counted.of(pick(f) for f in figures)) for label, figures in self._classes()]
            text.histogram(about, about.prometheus, per_class)
            text.histogram(about, about.vllm, [(of_model, Counted.added(counted for _, counted in per_class))])
        for kind, plain in (("gauge", self._gauges()), ("counter", self._counters())):
            for name, value in plain.items():
                about = metric(name)
                text.metric(about, about.prometheus, kind, [({}, value)])
                text.metric(about, about.vllm, kind, [(of_model, value)])
        for name, reasons in self._by_reason().items():
            about = metric(name)
            text.metric(
                about, about.prometheus, "counter", [({"reason": r} if r else {}, n) for r, n in reasons.items()]
            )
            text.metric(about, about.vllm, "counter", [(of_model, float(sum(reasons.values())))])
        for name in ("backend_in_flight", "backend_up"):
            about = metric(name)
            text.metric(
                about, about.prometheus, "gauge", [({"backend": b}, f[name]) for b, f in self._backends().items()]
            )
        self._gpu_text(text)
        return text.whole()

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
        gpus = self._gpu.look()
        window = self._window()
        figures = self._gateway.recorder.figures
        latencies = {
            name: _percentiles(sum((pick(f).frozen() for f in figures), ItlHistogram())) for name, pick in self._histograms()
        }  # fmt: skip
        return {
            "window": {
                "span_s": window.span_s, "arrivals": window.arrivals, "finished": window.finished, "output_tokens": window.emitted_tokens,
                "slo_attainment": window.slo_compliance, "ttft_s": _percentiles(window.ttft), "itl_s": _percentiles(window.itl),
            },
            "gauges": self._gauges(),
            "counters": self._counters(),
            "by_reason": self._by_reason(),
            "latencies": latencies,
            "backends": self._backends(),
            "gpus": [_told(gpu) for gpu in gpus],
            "gpu_telemetry": self._gpu.problem or "nvidia-smi",
        }  # fmt: skip


class Counted(NamedTuple):
    """A histogram as Prometheus is told it."""

    counts: list[int]
    """Durations below each bucket's end, and in all."""
    sum_s: float

    @classmethod
    def of(cls, histograms: Iterable[Histogram]) -> Counted:
        """These histograms together."""
        return cls.added(cls(h.cumulative(), h.sum_s) for h in histograms)

    @classmethod
    def added(cls, parts: Iterable[Counted]) -> Counted:
        """All of these together."""
        listed = list(parts)
        if len(listed) == 1:
            return listed[0]
        return cls(
            [sum(column) for column in zip(*(p.counts for p in listed), strict=True)], sum(p.sum_s for p in listed)
        )


class Text:
    """Lines of Prometheus' text format. A family without samples is left out."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def whole(self) -> str:
        """The page."""
        return "\n".join(self._lines) + "\n"

    def metric(self, about: Metric, series: str, kind: str, samples: Iterable[tuple[Labels, float]]) -> None:
        """A gauge or a counter."""
        lines = [f"{series}{_labels(labels)} {_number(value)}" for labels, value in samples]
        if series and lines:
            self._head(about, series, kind)
            self._lines += lines

    def histogram(self, about: Metric, series: str, samples: Iterable[tuple[Labels, Counted]]) -> None:
        """A histogram."""
        if not series:
            return
        self._head(about, series, "histogram")
        for labels, counted in samples:
            inside = _labels(labels)
            begin = f"{series}_bucket{inside[:-1]}," if inside else f"{series}_bucket{{"
            self._lines += [f"{begin}{end} {count}" for end, count in zip(_ENDS, counted.counts, strict=True)]
            self._lines.append(f"{series}_sum{inside} {_number(counted.sum_s)}")
            self._lines.append(f"{series}_count{inside} {counted.counts[-1]}")

    def _head(self, about: Metric, series: str, kind: str) -> None:
        self._lines += [f"# HELP {series} {about.description}", f"# TYPE {series} {kind}"]


_ENDS = (*(f'le="{end!r}"}}' for end in BUCKETS_S), 'le="+Inf"}')
_GPU_FIELDS = ("busy_fraction", "memory_used_bytes", "memory_bytes", "power_w", "temperature_c")


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return "{" + inside + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    return repr(int(value)) if value == int(value) else repr(float(value))


def _more(loads: Iterable[Load], name: str) -> float:
    return sum(load.more.get(name, 0.0) for load in loads)


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
