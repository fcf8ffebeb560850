"""The one place that knows the order of things: a request is let in, waits, is handed over, answered, and written down.

`ask` makes it of what came over the wire, `submit` lets it in and gives its `Flow`, from which the answer is read. No HTTP here: the same gateway
runs in a test's process under virtual time. Times are seconds of `clock`, which must go as the event loop's does.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from inferencegym.metrics.record import Outcome
from inferencegym.runtime import wire
from inferencegym.runtime.admission import Admission
from inferencegym.runtime.dispatch import Chooser, Dispatcher, Lane, Seats
from inferencegym.runtime.errors import ApiError, bad_request, overloaded
from inferencegym.runtime.flow import Flow
from inferencegym.runtime.ports import CHAT, COMPLETIONS, Ask, Backend, Clock, Queue
from inferencegym.runtime.queues import make_queue
from inferencegym.runtime.recorder import Recorder
from inferencegym.runtime.settings import Key, Settings
from inferencegym.runtime.shared import SharedLimits

#: When to come back to a gateway that drains: another replica should have taken over by then.
RETRY_DRAINING_S = 1.0
#: When to come back where no backend is well: about one round of health checks.
RETRY_NO_BACKEND_S = 2.0


class Pool(Chooser, Protocol):
    """The backends, as the gateway needs them."""

    async def start(self) -> None:
        """Start them."""

    async def stop(self) -> None:
        """End them."""

    def ready(self) -> bool:
        """Whether some backend would take a request."""

    def models(self) -> tuple[str, ...]:
        """Names that can be asked for."""

    def set_routing(self, routing: str) -> None:
        """From the next request on."""


class Companion(Protocol):
    """Something that runs as long as the gateway does."""

    def start(self) -> None:
        """The backends have started."""

    def stop(self) -> None:
        """All requests have ended."""


@dataclass(slots=True)
class Head:
    """What a request's headers say."""

    id: str
    slo_class: str = ""
    ttl_s: float = float("inf")
    timeout_s: float = float("inf")
    no_queue: bool = False
    session: str = ""
    tenant: str = ""
    traceparent: str = ""
    key: Key | None = None


class Gateway:
    """The gateway without its HTTP."""

    def __init__(self, settings: Settings, pool: Pool, recorder: Recorder, clock: Clock) -> None:  # fmt: skip
        self.settings, self.pool, self.recorder, self.clock = settings, pool, recorder, clock
        self._own_caps = {b.name: b.max_concurrency for b in settings.backends}
        self._classes = {c.name: number for number, c in enumerate(settings.classes)}
        self.dispatcher = Dispatcher(pool, self._new_queue, settings.dispatch, self._own_cap, clock, self._hand_over)
        self.admission = Admission(settings, clock, self.limit)
        self.shared = SharedLimits(settings.shared, self.admission, clock) if settings.shared.redis_url else None
        """Limits held together with other gateways."""
        self._flows: dict[Ask, Flow] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._idle: list[asyncio.Future[None]] = []
        self.draining = False
        self.started = False
        self.companions: list[Companion] = []
        self.retries = 0
        """Requests that were handed to another backend."""

    # --- a request -------------------------------------------------------------------------------------------------------

    def ask(self, endpoint: str, body: bytes, fields: wire.Fields, head: Head, arrival_s: float) -> Ask:
        """The request as the gateway needs it. ApiError 400: there is no such service class."""
        number = self._class_of(head)
        mine, queue = self.settings.classes[number], self.settings.queue
        ttl_s = min(queue.ttl_s, head.ttl_s, queue.ttl_s if mine.ttl_s is None else mine.ttl_s)
        stream = not isinstance(fields, wire.Embedding) and bool(fields.stream)
        return Ask(
            id=head.id, endpoint=endpoint, model=fields.model, body=body, fields=fields,
            prompt_tokens=wire.prompt_tokens(fields), max_tokens=wire.answer_limit(fields),
            stream=stream, arrival_s=arrival_s, priority=mine.priority + (fields.priority or 0),
            slo_class=number, tenant=head.key.name if head.key else head.tenant, deadline_s=arrival_s + ttl_s,
            slo_ttft_s=mine.ttft_slo_s, session=head.session or fields.user or wire.beginning(fields),
            traceparent=head.traceparent, no_queue=head.no_queue,
        )  # fmt: skip

    async def counted_for_all(self, ask: Ask) -> bool:
        """Whether Redis counted a request's rates, for all gateways together; `submit` must be told. ApiError: it refused the request."""
        if self.shared is None:
            return False
        self._check(ask)
        try:
            return await self.shared.take(ask)
        except ApiError as error:
            self.recorder.reject(ask, error.code)
            raise

    def submit(self, ask: Ask, timeout_s: float = float("inf"), *, shared: bool = False) -> Flow:
        """Let a request in. ApiError: why not, and when to come back.

        timeout_s : the client's own patience, to its last token
        shared : its rates have been counted for all gateways together
        """
        lane = self._check(ask)
        try:
            self.admission.admit(ask, self, shared=shared)
        except ApiError as error:
            self.recorder.reject(ask, error.code)
            raise
        self.recorder.begin(ask)
        flow = self._flows[ask] = Flow(self, ask, lane)
        self._watch_time(flow, timeout_s)
        self.dispatcher.push(lane, ask)
        if flow.answer is None and not flow.over:
            self._waits(flow)
        return flow

    def _check(self, ask: Ask) -> Lane:
        """The lane of a request that can be served here, now. ApiError 400, 404, 503."""
        lane = self.dispatcher.lane(ask.model)
        if lane is None:
            raise ApiError(404, "model_not_found", f"There is no model '{ask.model}' here; there are: {', '.join(self.pool.models())}", "model")  # fmt: skip
        for seat in lane.seats:
            wire.refuse_what_it_cannot(ask.fields, ask.endpoint, seat.able, seat.backend.name)
        try:
            self._open(ask, lane)
        except ApiError as error:
            self.recorder.reject(ask, error.code)
            raise
        return lane

    def _open(self, ask: Ask, lane: Lane) -> None:
        """ApiError 503 if nobody is let in now."""
        if self.draining:
            raise overloaded(
                "The server is shutting down; another one will take the request", RETRY_DRAINING_S, "draining"
            )
        if not self.started:
            raise overloaded("The backends are starting", RETRY_NO_BACKEND_S, "starting")
        if not self.dispatcher.any_usable(lane) and not any(seat.used for seat in lane.seats):
            raise overloaded(f"No backend of model '{ask.model}' is well now", RETRY_NO_BACKEND_S, "no_backend")

    def _class_of(self, head: Head) -> int:
        name = (head.key.slo_class if head.key else "") or head.slo_class
        if not name:
            return 0
        number = self._classes.get(name)
        if number is None:
            raise bad_request(
                f"There is no service class '{name}'; there are: {', '.join(self._classes)}", "x-slo-class"
            )
        return number

    def _waits(self, flow: Flow) -> None:
        """It found no seat: it waits as long as it may."""
        told = f"The request waited {flow.ask.deadline_s - flow.ask.arrival_s:g} s and found no free seat"
        flow.wait_until(flow.ask.deadline_s, overloaded(told, self.admission.retry_after_s(self), "queue_timeout"))

    def _hand_over(self, ask: Ask, seat: Seats) -> None:
        self._flows[ask].begin(seat)

    def ended(self, flow: Flow) -> None:
        """A flow ended, and tells so itself: write it down."""
        assert flow.outcome is not None, "a flow that ended has an outcome"
        del self._flows[flow.ask]
        usage = flow.usage
        self.recorder.finish(
            flow.ask, flow.outcome, usage, reason=flow.finish_reason if flow.outcome is Outcome.OK else flow.code,
            preemptions=0 if usage is None else usage.preemptions,
        )  # fmt: skip
        self.admission.release(
            flow.ask, flow.usage_now().completion_tokens, in_flight=self.dispatcher.in_flight, whole=flow.outcome is Outcome.OK
        )  # fmt: skip
        if not self._flows:
            for future in self._idle:
                if not future.done():
                    future.set_result(None)
            self._idle.clear()

    # --- time ------------------------------------------------------------------------------------------------------------

    def _watch_time(self, flow: Flow, timeout_s: float) -> None:
        """All requests have the same longest time, so one timer for the oldest does; a client that is less patient gets its own."""
        longest_s = self.settings.server.request_timeout_s
        if timeout_s < longest_s:
            flow.end_at(flow.ask.arrival_s + timeout_s, _out_of_time(timeout_s))
        elif self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_at(flow.ask.arrival_s + longest_s, self._sweep_old)

    def _sweep_old(self) -> None:
        """End what is too old, and look again when the next one will be. uvloop's timers may be half a millisecond early."""
        self._sweep = None
        longest_s = self.settings.server.request_timeout_s
        limit_s = self.clock() - longest_s + 1e-3
        for flow in list(self._flows.values()):
            if flow.ask.arrival_s > limit_s:
                self._sweep = asyncio.get_running_loop().call_at(flow.ask.arrival_s + longest_s, self._sweep_old)
                break
            flow.fail(_out_of_time(longest_s))

    # --- what others see -------------------------------------------------------------------------------------------------

    def waiting(self) -> int:
        """Requests that wait for a seat."""
        return self.dispatcher.waiting()

    def in_flight(self) -> int:
        """Requests that have a seat."""
        return self.dispatcher.in_flight

    def would_wait(self, ask: Ask) -> bool:
        """Whether a request would find no free seat, or others of its queue before it."""
        return self.dispatcher.would_wait(ask.model)

    def limit(self, requests: float) -> None:
        """No more requests in flight than that, to all backends together: what an adaptive limit learned."""
        self.dispatcher.learned_cap = requests
        self.dispatcher.pump()

    def under_way(self) -> int:
        """Requests that were let in and have not ended."""
        return len(self._flows)

    def ready(self) -> bool:
        """Whether it takes requests: not draining, and some backend is well."""
        return self.started and not self.draining and self.pool.ready()

    def endpoints(self) -> frozenset[str]:
        """Endpoints that some backend has."""
        return frozenset().union(*(seat.able.endpoints for seat in self.dispatcher.seats)) or frozenset(
            {CHAT, COMPLETIONS}
        )

    # --- its life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the backends. ConfigError, BackendError: what is missing."""
        if self.shared is not None:
            await self.shared.start()
        await self.pool.start()
        self.dispatcher.renew()
        for one in self.companions:
            one.start()
        self.started = True

    async def stop(self) -> None:
        """End all: what is still under way is told so."""
        self.drain()
        self.end_all(ApiError(503, "shutdown", "The server has shut down", retry_after_s=RETRY_DRAINING_S))
        if self._sweep is not None:
            self._sweep.cancel()
        if self.shared is not None:
            await self.shared.stop()
        await self.pool.stop()
        for one in self.companions:
            one.stop()
        self.recorder.close()

    def end_all(self, failure: ApiError) -> None:
        """Whatever is under way ends with this error."""
        for flow in list(self._flows.values()):
            flow.fail(failure)

    def drain(self) -> None:
        """Take nothing new; what was let in goes on."""
        if not self.draining:
            self.draining = True
            self.dispatcher.close()

    def resume(self) -> None:
        """Take requests again."""
        self.draining = False
        self.dispatcher.closing = False

    async def idle(self) -> None:
        """Return when nothing is under way."""
        while self._flows:
            future = asyncio.get_running_loop().create_future()
            self._idle.append(future)
            await future

    def change(self, new: Settings) -> None:
        """Live settings changed; nobody who waits or runs is lost."""
        old, self.settings = self.settings, new
        self.pool.set_routing(new.routing)
        if new.classes != old.classes:
            self.recorder.change_classes(new.classes)
        if new.queue != old.queue or new.classes != old.classes:
            self.dispatcher.change_order(self._new_queue)
        self.admission.change(new)
        self.dispatcher.change(new.dispatch)

    def _new_queue(self) -> Queue:
        return make_queue(self.settings.queue, self.settings.classes, self.settings.weights())

    def _own_cap(self, backend: Backend) -> int | None:
        return self._own_caps.get(backend.name)


def _out_of_time(limit_s: float) -> ApiError:
    return ApiError(504, "deadline_exceeded", f"The request took longer than {limit_s:g} s")
