"""The gateway as a Plant: policies see a snapshot of live traffic and turn the same six knobs as in a simulation, as far as what stands behind can.

What a knob does here (design, section 4): batch_cap: requests in flight to the backends; kv_budget_fraction: a cap on the tokens in flight whose KV the
backends may come to hold; speculation_depth: drafts, where a backend takes a depth; quantization_tier: requests go to that variant of the model;
prefill_decode_split: requests go to the two pools, if they are configured; priority_routing: priority order in the queue. What cannot be done comes back
refused, with the reason. Times are the gateway's clock's, seconds; a snapshot is of the window since the last one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec.structs

from inferencegym.decision.knobs import LEVERS, QUANTIZATION_TIERS, Applied, Knobs
from inferencegym.decision.snapshot import Snapshot
from inferencegym.ground.units import S_PER_HOUR
from inferencegym.metrics.itl import ItlHistogram
from inferencegym.runtime.backends.pool import Pool
from inferencegym.runtime.gateway import Gateway
from inferencegym.runtime.gpu import GpuReader
from inferencegym.runtime.ports import Backend, Load
from inferencegym.runtime.recorder import Figures, Live

_NONE = float("nan")


@dataclass(frozen=True, slots=True)
class Prices:
    """What the deployment costs."""

    per_hour_usd: float = _NONE
    """All GPUs together; NaN: not known, and neither is the cost of tokens."""
    lent_credit: float = 0.5
    """What a wholly lent KV pool is worth, as a share of that price."""


class GatewayPlant:
    """A running gateway, seen and steered from its own process."""

    def __init__(self, gateway: Gateway, *, kv_tokens: float | None = None, prices: Prices | None = None, gpu: GpuReader | None = None,
                 patch: Callable[[Mapping[str, Any]], object] | None = None) -> None:  # fmt: skip
        """`kv_tokens`: tokens that all backends' KV holds together, which kv_budget_fraction is a share of; None: what the settings or the
        backends say of each, and where one says nothing the knob is refused, unless backends turn it themselves. `patch`: how live settings are changed (`LiveConfig.patch`), so that the change has a version and can be
        reverted; None: directly.
        """
        self._gateway, self._kv_tokens, self._patch = gateway, kv_tokens, patch
        self._prices, self._gpu = prices or Prices(), gpu
        self._mark = gateway.recorder.mark()
        self._last = self._counted()
        self._base_order = gateway.settings.queue.order
        self._batch_cap = _NONE
        self._kv_fraction, self._depth, self._tier, self._split = 1.0, 0.0, 0.0, 0.0
        self._pool = gateway.pool if isinstance(gateway.pool, Pool) else None
        if self._pool is not None and self._pool.variant:
            self._tier = float(QUANTIZATION_TIERS.index(self._pool.variant))

    # --- seeing ----------------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """The window since the last snapshot, and how things stand; the next window begins here."""
        gateway = self._gateway
        figures, self._mark = gateway.recorder.since(self._mark)
        before, self._last = self._last, self._counted()
        span_s = figures.span_s
        waiting, loads = gateway.recorder.waiting(), self._loads()
        drafted, accepted = (self._last[name] - before[name] for name in ("drafted", "accepted"))
        vip = gateway.recorder.vip_class
        p50_ttft, p99_ttft = _ms(figures.ttft)
        p50_itl, p99_itl = _ms(figures.itl)
        return Snapshot(
            queue_depth=float(len(waiting)) + _sum(load.waiting for load in loads),
            active_requests=self._active(loads),
            kv_cache_occupancy=self._occupancy(loads),
            mean_prompt_length=figures.mean_prompt_tokens,
            p50_ttft_ms=p50_ttft,
            p99_ttft_ms=p99_ttft,
            p50_itl_ms=p50_itl,
            p99_itl_ms=p99_itl,
            throughput_tps=figures.emitted_tokens / span_s if span_s > 0 else 0.0,
            slo_compliance_rate=figures.slo_compliance,
            gpu_memory_used_gb=self._gpu_gb(),
            estimated_cost_per_1k=self._cost(figures),
            request_arrival_rate=figures.arrivals / span_s if span_s > 0 else 0.0,
            spec_acceptance_rate=accepted / drafted if drafted > 0 else _NONE,
            eviction_events=max(0.0, self._last["evicted_blocks"] - before["evicted_blocks"]),
            preemptions=max(0.0, self._last["preemptions"] - before["preemptions"]),
            goodput_rps=figures.good / span_s if span_s > 0 else 0.0,
            oldest_wait_ms=(gateway.clock() - waiting[0].ask.arrival_s) * 1e3 if waiting else 0.0,
            waiting_prompt_tokens=float(sum(me.ask.prompt_tokens for me in waiting)),
            vip_queue_depth=_vips(waiting, vip),
            vip_slo_compliance_rate=figures.vip_slo_compliance,
            mean_output_length=figures.mean_output_tokens,
            batch_cap=self._seats() if math.isnan(self._batch_cap) else self._batch_cap,
            kv_budget_fraction=self._kv_fraction,
            speculation_depth=self._depth,
            quantization_tier=self._tier,
            prefill_decode_split=self._split,
            priority_routing=float(gateway.settings.queue.order == "priority"),
            window_s=span_s,
        )

    def _loads(self) -> list[Load]:
        return [backend.load() for backend in self._gateway.pool.backends]

    def _counted(self) -> dict[str, float]:
        """The backends' own counters, added up; 0 where none tells."""
        loads = self._loads()
        counted = {
            name: _sum(load.more.get(name, _NONE) for load in loads) for name in ("drafted", "accepted", "evicted_blocks")
        }  # fmt: skip
        return counted | {"preemptions": _sum(load.preemptions for load in loads)}

    def _active(self, loads: Sequence[Load]) -> float:
        """Requests that run: the backends' word, and where there is none, requests in flight."""
        seats = self._gateway.dispatcher.seats
        return float(sum(s.used if math.isnan(x.running) else x.running for s, x in zip(seats, loads, strict=True)))

    def _occupancy(self, loads: Sequence[Load]) -> float:
        """Share of the KV that this service may use: the backends' word, else the tokens in flight, else unknown."""
        told = [load.kv_used_fraction for load in loads if not math.isnan(load.kv_used_fraction)]
        if told:
            return sum(told) / len(told)
        held = self._held()
        return min(1.0, self._gateway.dispatcher.kv_tokens / (held * self._kv_fraction)) if held else _NONE

    def _held(self) -> float | None:
        """Tokens that all backends' KV holds together; None if of one it is not known."""
        if self._kv_tokens is not None:
            return self._kv_tokens
        said = {one.name: one.kv_tokens for one in self._gateway.settings.backends}
        each = [said.get(one.name) or one.capabilities().kv_tokens for one in self._gateway.pool.backends]
        known = [tokens for tokens in each if tokens is not None]
        return float(sum(known)) if len(known) == len(each) else None

    def _seats(self) -> float:
        return float(sum(seat.limit for seat in self._gateway.dispatcher.seats))

    def _gpu_gb(self) -> float:
        gpus = self._gpu.look() if self._gpu is not None else ()
        return sum(gpu.memory_used_bytes for gpu in gpus) / 1e9 if gpus else _NONE

    def _cost(self, figures: Figures) -> float:
        """US$ per 1,000 tokens of the window, less the credit for lent KV."""
        if not figures.emitted_tokens or math.isnan(self._prices.per_hour_usd):
            return _NONE
        share = 1.0 - self._prices.lent_credit * (1.0 - self._kv_fraction)
        return 1e3 * self._prices.per_hour_usd / S_PER_HOUR * figures.span_s * share / figures.emitted_tokens

    def knobs(self) -> dict[str, object]:
        """How the six knobs stand; batch_cap that nobody has turned is the seats there are."""
        return {
            "batch_cap": int(self._seats() if math.isnan(self._batch_cap) else self._batch_cap),
            "kv_budget_fraction": self._kv_fraction,
            "speculation_depth": int(self._depth),
            "quantization_tier": QUANTIZATION_TIERS[int(self._tier)],
            "prefill_decode_split": bool(self._split),
            "priority_routing": self._gateway.settings.queue.order == "priority",
        }

    # --- steering --------------------------------------------------------------------------------------------------------

    def apply(self, command: Knobs) -> Applied:
        """Turn knobs at once; requests under way go on. Says what took effect, and why the rest did not."""
        accepted: dict[str, object] = {}
        refused: dict[str, str] = {}
        for name, value in command.given().items():
            problem = self._TURN[name](self, value)
            if problem:
                refused[name] = problem
            else:
                accepted[name] = value
        if accepted:
            self._gateway.dispatcher.renew()
        return Applied(accepted, refused)

    def release_batch_cap(self) -> None:
        """As many in flight as there are seats, as if nobody had ever turned the knob: there may be more than a command can say."""
        self._gateway.dispatcher.total_cap = math.inf
        self._batch_cap = _NONE
        self._gateway.dispatcher.renew()

    def _turn_batch_cap(self, value: object) -> str:
        assert isinstance(value, int)
        self._gateway.dispatcher.total_cap = float(value)
        self._batch_cap = float(value)
        return ""

    def _turn_kv(self, value: object) -> str:
        assert isinstance(value, int | float)
        able = self._able("kv_budget_fraction")
        if able:
            problem = self._backends_turn(able, "kv_budget_fraction", value)
            if problem:
                return problem
        # Backends that turn it themselves know their memory better than a count of tokens does.
        held = self._kv_tokens if able else self._held()
        if held is None and not able:
            return (
                "no backend can change it, and how many tokens their KV holds is not known: set backends.NAME.kv_tokens"
            )
        if held is not None:
            self._gateway.dispatcher.kv_tokens_cap = math.inf if value >= 1.0 else held * float(value)
        self._kv_fraction = float(value)
        return ""

    def _turn_drafts(self, value: object) -> str:
        able = self._able("speculation_depth")
        if not able:
            return "no backend takes a draft length while it runs" if value else ""
        problem = self._backends_turn(able, "speculation_depth", value)
        if not problem:
            assert isinstance(value, int)
            self._depth = float(value)
        return problem

    def _turn_tier(self, value: object) -> str:
        tier = str(value)
        if self._pool is None or not self._pool.variants():
            return f"no backend is configured as a variant, so none is {tier}"
        problem = self._pool.set_variant(tier)
        if not problem:
            self._tier = float(QUANTIZATION_TIERS.index(tier))
        return problem

    def _turn_split(self, value: object) -> str:
        if self._pool is None:
            return "the pool of backends cannot be split"
        problem = self._pool.set_split(bool(value))
        if not problem:
            self._split = float(bool(value))
        return problem

    def _turn_priority(self, value: object) -> str:
        gateway = self._gateway
        order = "priority" if value else ("fcfs" if self._base_order == "priority" else self._base_order)
        if self._patch is not None:
            self._patch({"queue.order": order})
        else:
            queue = msgspec.structs.replace(gateway.settings.queue, order=order)
            gateway.change(msgspec.structs.replace(gateway.settings, queue=queue))
        able = self._able("priority_routing")
        return self._backends_turn(able, "priority_routing", value) if able else ""

    def _able(self, knob: str) -> list[Backend]:
        return [backend for backend in self._gateway.pool.backends if knob in backend.capabilities().knobs]

    def _backends_turn(self, backends: Sequence[Backend], knob: str, value: object) -> str:
        """Turn it at all of these; the first reason why not."""
        for backend in backends:
            refused: Mapping[str, str] = backend.apply({knob: value})
            if refused:
                return f"{backend.name}: {refused[knob]}"
        return ""

    _TURN = {  # noqa: RUF012 (a table, never changed)
        "batch_cap": _turn_batch_cap, "kv_budget_fraction": _turn_kv, "speculation_depth": _turn_drafts,
        "quantization_tier": _turn_tier, "prefill_decode_split": _turn_split, "priority_routing": _turn_priority,
    }  # fmt: skip
    assert set(_TURN) == set(LEVERS)


def _ms(histogram: ItlHistogram) -> tuple[float, float]:
    """Median and 99th percentile, ms; NaN where there is nothing."""
    p50, p99 = histogram.percentiles([50, 99])
    return p50 * 1e3, p99 * 1e3


def _vips(waiting: Sequence[Live], vip: int | None) -> float:
    return 0.0 if vip is None else float(sum(me.ask.slo_class == vip for me in waiting))


def _sum(values: Iterable[float]) -> float:
    """Sum of those that are known."""
    return math.fsum(value for value in values if not math.isnan(value))
