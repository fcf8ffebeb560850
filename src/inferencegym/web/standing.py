"""How a gateway stands now, for the Runtime page: counters, classes, reasons, knobs, who steers, backends, GPUs. Seconds, tokens, shares of one."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Any

from inferencegym.metrics.record import Outcome
from inferencegym.runtime.backends.pool import Member, Pool
from inferencegym.runtime.gateway import Gateway
from inferencegym.runtime.gpu import GpuReader
from inferencegym.runtime.live import LiveConfig, live_leaves
from inferencegym.runtime.plant import GatewayPlant
from inferencegym.runtime.section import meanings
from inferencegym.runtime.steering import Command, Steering

#: Reasons are counted since the start and over the last so many samples.
_MINUTE = 60
_OUTCOMES = tuple(outcome.name.lower() for outcome in Outcome)
Reasons = dict[tuple[str, str], int]


class Moment:
    """One look at the requests under way. O(requests under way)."""

    def __init__(self, gateway: Gateway) -> None:
        recorder, now_s = gateway.recorder, gateway.clock()
        objectives = [c.ttft_slo_s for c in recorder.classes]
        count = len(objectives)
        self.waiting, self.running, self.overdue = [0] * count, [0] * count, [0] * count
        self.waiting_prompt_tokens, oldest_s = 0, now_s
        for me in recorder.live.values():
            ask = me.ask
            number = ask.slo_class
            if me.scheduled_s == me.scheduled_s:
                self.running[number] += 1
            else:
                self.waiting[number] += 1
                self.waiting_prompt_tokens += ask.prompt_tokens
                oldest_s = min(oldest_s, ask.arrival_s)
            if me.first_s != me.first_s and now_s - ask.arrival_s > min(ask.slo_ttft_s, objectives[number]):
                self.overdue[number] += 1
        self.oldest_wait_s = now_s - oldest_s


class Standing:
    """Reads a gateway's parts; counts nothing itself."""

    def __init__(
        self, gateway: Gateway, live: LiveConfig, plant: GatewayPlant, steering: Steering, gpu: GpuReader
    ) -> None:
        self._gateway, self._live, self._plant, self._steering, self._gpu = gateway, live, plant, steering, gpu
        self._first = {name: _plain(value) for name, _, _, value in live_leaves(live.settings)}
        self._minute: deque[Reasons] = deque([{}], maxlen=_MINUTE + 1)
        self._kinds = {one.name: one.kind for one in gateway.settings.backends}

    # --- figures ---------------------------------------------------------------------------------------------------------

    def totals(self) -> dict[str, float]:
        """Counters since the start, by the vocabulary's names, and those whose rates have names of their own: `arrivals`, `finished`, `good`, `emitted_tokens` (before their requests end)."""
        recorder = self._gateway.recorder
        figures = recorder.figures
        preempted = [load.preemptions for load in self._loads() if not math.isnan(load.preemptions)]
        return {
            "arrivals": recorder.arrivals,
            "requests": sum(recorder.outcomes.values()),
            **recorder.counts(),
            "finished": sum(f.finished for f in figures),
            "good": sum(f.good for f in figures),
            "prompt_tokens": sum(f.prompt_tokens for f in figures),
            "output_tokens": sum(f.output_tokens for f in figures),
            "emitted_tokens": recorder.emitted_tokens,
            "cached_tokens": recorder.cached_tokens,
            "preemptions": sum(preempted),
            "retries": self._gateway.retries,
        }

    def gauges(self, moment: Moment) -> dict[str, float]:
        """How full things are; what is not known is left out."""
        gateway, loads = self._gateway, self._loads()
        used = [load.kv_used_fraction for load in loads if not math.isnan(load.kv_used_fraction)]
        running = [seat.used if math.isnan(load.running) else load.running for seat, load in zip(gateway.dispatcher.seats, loads, strict=True)]  # fmt: skip
        found = {
            "running_mean": float(sum(running)),
            "waiting_mean": gateway.waiting() + sum(load.waiting for load in loads if not math.isnan(load.waiting)),
            "oldest_wait_s": moment.oldest_wait_s,
            "waiting_prompt_tokens": float(moment.waiting_prompt_tokens),
            "kv_tokens_in_flight": float(gateway.dispatcher.kv_tokens),
        }
        return found | ({"kv_used_mean": sum(used) / len(used)} if used else {})

    def gpu(self) -> dict[str, float]:
        """All GPUs together."""
        gpus = self._gpu.look()
        if not gpus:
            return {}
        return {
            "gpu_busy_fraction": sum(gpu.busy_fraction for gpu in gpus) / len(gpus),
            "gpu_memory_used_bytes": sum(gpu.memory_used_bytes for gpu in gpus),
        }

    def count(self) -> None:
        """A second has passed: remember how the reasons stand."""
        self._minute.append(self._reasons())

    def _reasons(self) -> Reasons:
        refused = {("refused", reason): count for reason, count in self._gateway.admission.refused.items() if count}
        return {key: count for key, count in self._gateway.recorder.outcomes.items() if key[0] != "ok"} | refused

    def _loads(self) -> list[Any]:
        return [seat.backend.load() for seat in self._gateway.dispatcher.seats]

    # --- tables ----------------------------------------------------------------------------------------------------------

    def json(self, moment: Moment) -> dict[str, Any]:
        """All tables of now. None for what is not known, and for objectives that there are not."""
        gateway = self._gateway
        return {
            "at": time.time(),
            "state": "draining" if gateway.draining else "starting" if not gateway.started else "ready" if gateway.ready() else "no backend is well",
            "totals": self.totals(), "classes": self._classes(moment), "reasons": self._by_reason(), "knobs": self._plant.knobs(),
            "steering": self._steers(), "backends": self._backends(), "gpus": self._gpus(), "version": self._live.version,
        }  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """Live settings: dotted name to value, the value at the start, and what it means."""
        return {
            name: {"value": _plain(value), "first": self._first.get(name), "meaning": meanings(kind)[leaf]}
            for name, leaf, kind, value in live_leaves(self._live.settings)
        }

    def _classes(self, moment: Moment) -> list[dict[str, Any]]:
        recorder = self._gateway.recorder
        return [
            {
                "name": one.name, "priority": one.priority, "ttft_slo_s": _plain(one.ttft_slo_s), "itl_slo_s": _plain(one.itl_slo_s),
                "in_flight": moment.running[number], "waiting": moment.waiting[number], "finished": figures.finished, "good": figures.good,
                "decided": figures.decided, "met": figures.met, "output_tokens": figures.output_tokens,
            }
            for number, (one, figures) in enumerate(zip(recorder.classes, recorder.figures, strict=True))
        ]  # fmt: skip

    def _by_reason(self) -> list[dict[str, Any]]:
        """Why requests did not end well, what is most first: `outcome` is the vocabulary's; `refused` says which limit it was."""
        then = self._minute[0]
        rows = [
            {"outcome": outcome, "reason": reason, "total": count, "minute": count - then.get((outcome, reason), 0)}
            for (outcome, reason), count in self._reasons().items()
        ]
        return sorted(rows, key=lambda row: (-row["minute"], -row["total"], row["reason"]))

    def _steers(self) -> dict[str, Any] | None:
        commands = self._steering.commands
        return _command(commands[-1]) if commands else None

    def _backends(self) -> list[dict[str, Any]]:
        pool, now_s = self._gateway.pool, self._gateway.clock()
        if not isinstance(pool, Pool):
            return []
        return [self._backend(pool.member(seat.backend), seat, now_s) for seat in self._gateway.dispatcher.seats]

    def _backend(self, member: Member, seat: Any, now_s: float) -> dict[str, Any]:
        backend, load, able, breaker = member.backend, member.backend.load(), seat.able, member.breaker
        return {
            "name": backend.name, "kind": self._kinds.get(backend.name, ""), "models": list(backend.models), "up": self._gateway.pool.usable(backend),
            "healthy": member.healthy, "started": member.started, "problem": member.problem, "breaker": breaker.state, "faults": breaker.faults,
            "opened": breaker.opened, "opens_s": max(0.0, breaker.until_s - now_s) if breaker.state == "open" else None,
            "in_flight": seat.used, "seats": seat.limit, "picked": member.picked, "failed": member.failed,
            "probed_ago_s": _plain(now_s - member.probed_s), "probe_every_s": _plain(member.traits.health_interval_s),
            "running": _plain(load.running), "waiting": _plain(load.waiting), "kv_used": _plain(load.kv_used_fraction),
            "preemptions": _plain(load.preemptions), "weight": member.traits.weight, "variant": member.traits.variant, "pool": member.traits.pool,
            "endpoints": sorted(able.endpoints), "native_concurrency": able.native_concurrency, "knobs": sorted(able.knobs),
            "max_model_len": able.max_model_len, "kv_tokens": able.kv_tokens,
        }  # fmt: skip

    def _gpus(self) -> dict[str, Any]:
        fields = ("busy_fraction", "memory_used_bytes", "memory_bytes", "power_w", "temperature_c")
        return {
            "problem": self._gpu.problem,
            "gpus": [
                {"index": gpu.index, "name": gpu.name} | {name: _plain(getattr(gpu, name)) for name in fields}
                for gpu in self._gpu.gpus
            ],
        }


def _command(command: Command) -> dict[str, Any]:
    return {
        "at": command.at_s, "by": command.by, "policy": command.policy, "guard": command.guard, "accepted": dict(command.accepted),
        "refused": dict(command.refused),
    }  # fmt: skip


def _plain(value: Any) -> Any:
    """A value as JSON has it: None for what is not known, and for a limit that is infinite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
