"""A serving endpoint as a plant: a queue in front of it that the knobs steer, and the figures of each window, all of it measured from outside.

One event loop in a thread of its own carries all real sessions, so that a window that waits holds up nobody else. Times are seconds of that loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from inferencegym.decision.knobs import QUANTIZATION_TIERS, Applied, Knobs
from inferencegym.decision.snapshot import Snapshot
from inferencegym.envs.openenv.real import Endpoint, RealSettings, Request

T = TypeVar("T")
#: Columns that nobody outside the engine can know: they read 0.
UNOBSERVED = ("gpu_memory_used_gb", "spec_acceptance_rate", "eviction_events", "preemptions", "pause_left_s")
_NONE = float("nan")


@lru_cache(maxsize=1)
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="real-mode", daemon=True).start()
    return loop


def submit(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Run a coroutine on the loop of all real sessions."""
    return asyncio.run_coroutine_threadsafe(work, _loop())


@dataclass(slots=True)
class Window:
    """What happened in one window, for rewards and for people."""

    length_s: float = 0.0
    arrived: list[Request] = field(default_factory=list)
    finished: list[Request] = field(default_factory=list)
    failed: list[Request] = field(default_factory=list)
    first: list[Request] = field(default_factory=list)
    """Requests whose first token came."""
    gaps_s: list[float] = field(default_factory=list)
    pieces_by_tier: list[int] = field(default_factory=lambda: [0, 0, 0])
    """Tokens of the window's answers by weight format."""
    most_running: int = 0


class RealPlant:
    """Protocol `decision.plant.Plant`. `window` sends requests as they fall due, and goes on with what is still in flight from the last one."""

    def __init__(self, settings: RealSettings, start: Knobs, endpoint: Endpoint | None = None) -> None:
        self.settings = settings
        self._time = _loop().time
        self._endpoint = endpoint or Endpoint(settings, self._time)
        self.levers = Knobs(
            batch_cap=start.batch_cap or 1, kv_budget_fraction=start.kv_budget_fraction or 1.0, speculation_depth=0,
            quantization_tier="FP16", prefill_decode_split=False, priority_routing=bool(start.priority_routing),
        )  # fmt: skip
        self.apply(Knobs(speculation_depth=start.speculation_depth, quantization_tier=start.quantization_tier))
        self._waiting: list[Request] = []
        self._running: dict[Request, asyncio.Task[None]] = {}
        self._ended = asyncio.Event()
        self._closed = False
        self.now = Window()
        self._seen = self._measured(self.now)

    # --- the port --------------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """As the last window ended."""
        return self._seen

    def apply(self, command: Knobs) -> Applied:
        """Turn what can be turned from outside; requests that already run are left alone."""
        accepted, refused = {}, {}
        for name, value in command.given().items():
            why = self._refusal(name, value)
            if why:
                refused[name] = why
            else:
                accepted[name] = value
        self.levers = Knobs(**(self.levers.given() | accepted))  # type: ignore[arg-type]
        return Applied(accepted, refused)

    def _refusal(self, name: str, value: Any) -> str:
        if value == self.levers.given()[name]:
            return ""
        if name == "prefill_decode_split":
            return "an endpoint's pools cannot be split from outside; the knob stays off"
        if name == "speculation_depth" and not self.settings.draft_field:
            return "the endpoint takes no draft length (LLMSERVE_REAL_DRAFT_FIELD is not set); the knob stays at 0"
        if name == "quantization_tier" and self.settings.model_of(value) is None:
            return f"LLMSERVE_REAL_VARIANTS names no model for {value}"
        return ""

    # --- a window --------------------------------------------------------------------------------------------------------

    async def window(self, due: Sequence[tuple[float, Request]], length_s: float) -> Window:
        """Let `length_s` seconds pass, in which each request arrives at its offset; what was measured. Runs on the loop of `submit`."""
        loop = asyncio.get_running_loop()
        begin_s = self._time()
        if not self._closed:
            self._ended.clear()
        self._pump()  # the knobs may have opened the gate
        # Timers of one instant fire in any order; whichever does delivers all that is due, in order.
        coming = deque(sorted(((begin_s + offset_s, request) for offset_s, request in due), key=lambda pair: pair[0]))
        timers = [loop.call_at(due_s, self._arrive, coming) for due_s, _ in coming]
        timers.append(loop.call_at(begin_s + length_s, self._ended.set))
        try:
            await self._ended.wait()
        finally:
            for timer in timers:
                timer.cancel()
        if coming and not self._closed:
            self._arrive(deque((begin_s, request) for _, request in coming))
        window, self.now = self.now, Window()
        window.length_s = self._time() - begin_s
        self.now.most_running = len(self._running)
        self._seen = self._measured(window)
        return window

    async def stop(self) -> int:
        """Give up what is in flight or waiting; how many requests that was."""
        tasks = list(self._running.values())
        given_up = len(tasks) + len(self._waiting)
        self._waiting.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return given_up

    async def close(self) -> None:
        """Stop, end a window that goes on, and close the connections."""
        self._closed = True
        self._ended.set()
        await self.stop()
        await self._endpoint.close()

    # --- the queue -------------------------------------------------------------------------------------------------------

    def _arrive(self, coming: deque[tuple[float, Request]]) -> None:
        # A timer may fire a clock's grain early.
        while coming and coming[0][0] <= self._time() + 1e-6:
            _, request = coming.popleft()
            request.arrived_s = self._time()
            self.now.arrived.append(request)
            self._waiting.append(request)
            self._pump()

    def tokens_in_flight(self) -> int:
        """Prompt tokens, and those that answers may still come to, of all that runs."""
        return sum(request.prompt_tokens + request.most_tokens for request in self._running)

    def _pump(self) -> None:
        """Send what may run now: the first of the queue, until the seats or the tokens are gone. One always runs, however large."""
        levers = self.levers
        assert levers.batch_cap is not None
        room = (levers.kv_budget_fraction or 1.0) * self.settings.kv_tokens
        if levers.priority_routing:
            self._waiting.sort(key=lambda request: (request.priority, request.arrived_s, request.row))
        else:
            self._waiting.sort(key=lambda request: (request.arrived_s, request.row))
        while self._waiting and not self._closed and len(self._running) < levers.batch_cap:
            request = self._waiting[0]
            if self._running and self.tokens_in_flight() + request.prompt_tokens + request.most_tokens > room:
                break
            self._waiting.pop(0)
            tier = levers.quantization_tier or "FP16"
            request.tier, request.model = QUANTIZATION_TIERS.index(tier), self.settings.model_of(tier) or ""
            self._running[request] = asyncio.get_running_loop().create_task(self._serve(request))
            self.now.most_running = max(self.now.most_running, len(self._running))

    async def _serve(self, request: Request) -> None:
        try:
            await self._endpoint.ask(request, self.levers.speculation_depth or 0, self._heard)
            (self.now.failed if request.problem else self.now.finished).append(request)
        finally:
            del self._running[request]
        self._pump()

    def _heard(self, request: Request, now_s: float) -> None:
        if len(request.chunks_s) == 1:
            self.now.first.append(request)
        else:
            self.now.gaps_s.append(now_s - request.chunks_s[-2])
        self.now.pieces_by_tier[request.tier] += 1

    # --- figures ---------------------------------------------------------------------------------------------------------

    def cost_usd(self, requests: Sequence[Request]) -> float | None:
        """What requests cost by the endpoint's own count of tokens; None if one has no count or its model no price."""
        costs = [
            self.settings.cost_usd(request.model, request.prompt_tokens, request.emitted) if request.usage else None
            for request in requests
        ]
        return None if None in costs else float(sum(cost for cost in costs if cost is not None))

    def _measured(self, window: Window) -> Snapshot:
        now, levers, span = self._time(), self.levers, window.length_s or 1.0
        most = min(
            (request.priority for request in [*self._waiting, *self._running, *window.arrived, *window.finished]),
            default=0,
        )
        waiting = self._waiting
        room = (levers.kv_budget_fraction or 1.0) * self.settings.kv_tokens
        held = sum(request.prompt_tokens + request.emitted for request in self._running)
        finished = window.finished
        tokens = sum(request.emitted for request in finished)
        cost = self.cost_usd(finished) if finished else None
        return Snapshot(
            queue_depth=float(len(waiting)), active_requests=float(len(self._running)), kv_cache_occupancy=min(1.0, held / room),
            mean_prompt_length=_mean([request.prompt_tokens for request in window.arrived]),
            p50_ttft_ms=_share([1e3 * request.ttft_s for request in window.first], 50), p99_ttft_ms=_share([1e3 * request.ttft_s for request in window.first], 99),
            p50_itl_ms=_share([1e3 * gap for gap in window.gaps_s], 50), p99_itl_ms=_share([1e3 * gap for gap in window.gaps_s], 99),
            throughput_tps=sum(window.pieces_by_tier) / span, slo_compliance_rate=self._compliance(window, now, lambda _: True),
            estimated_cost_per_1k=1e3 * cost / tokens if cost is not None and tokens else _NONE,
            request_arrival_rate=len(window.arrived) / span, goodput_rps=sum(request.met for request in finished) / span,
            oldest_wait_ms=1e3 * max((now - request.arrived_s for request in waiting), default=0.0),
            waiting_prompt_tokens=float(sum(request.prompt_tokens for request in waiting)),
            vip_queue_depth=float(sum(request.priority == most for request in waiting)),
            vip_slo_compliance_rate=self._compliance(window, now, lambda request: request.priority == most),
            mean_output_length=_mean([request.emitted for request in finished]),
            batch_cap=float(levers.batch_cap or 1), kv_budget_fraction=float(levers.kv_budget_fraction or 1.0),
            speculation_depth=float(levers.speculation_depth or 0), quantization_tier=float(QUANTIZATION_TIERS.index(levers.quantization_tier or "FP16")),
            prefill_decode_split=0.0, priority_routing=float(bool(levers.priority_routing)), window_s=window.length_s,
        )  # fmt: skip

    def _compliance(self, window: Window, now: float, of: Callable[[Request], bool]) -> float:
        came = [request.ttft_s <= request.ttft_limit_s for request in window.first if of(request)]
        late = [
            request
            for request in [*self._waiting, *self._running]
            if of(request) and not request.chunks_s and now - request.arrived_s > request.ttft_limit_s
        ]
        lost = [request for request in window.failed if of(request) and not request.chunks_s]
        total = len(came) + len(late) + len(lost)
        return sum(came) / total if total else 1.0


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else _NONE


def _share(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent)) if values else _NONE
