"""One request's way through the gateway: it waits, has a seat at a backend, and is read piece by piece until it ends, once, whoever ends it.

    waiting ──seat──► running ──pieces──► over (ok | client left | out of time | backend broke)
       ▲                 │ failed before anything was computed
       └── another seat ─┘

No task belongs to a flow: who reads it waits in `next`; clients, timers and backends end it from outside. Times are the gateway's clock's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from inferencegym.metrics.record import Outcome
from inferencegym.runtime.dispatch import Lane, Seats
from inferencegym.runtime.errors import ApiError
from inferencegym.runtime.ports import Answer, Ask, BackendError, Piece, Usage

if TYPE_CHECKING:
    from inferencegym.runtime.gateway import Gateway

#: Backends that are tried for one request.
MOST_TRIES = 3
#: What a backend says about our own key or address is no business of the client's.
_OURS = {401, 403, 407}


class Flow:
    """A request under way. `next` until it gives None; `leave` when nobody reads any more."""

    __slots__ = ("_gateway", "_patience", "_timer", "_waiter", "answer", "ask", "code", "dispatched_s", "enqueued_s", "failure", "finish_reason", "finish_s", "first_s",
                 "lane", "on_fail", "outcome", "output_tokens", "over", "seat", "tried", "usage")  # fmt: skip

    def __init__(self, gateway: Gateway, ask: Ask, lane: Lane) -> None:
        self._gateway, self.ask, self.lane = gateway, ask, lane
        self.answer: Answer | None = None
        self.seat: Seats | None = None
        self.tried: list[Seats] = []
        self.over = False
        self.outcome: Outcome | None = None
        self.code = ""
        """Why it ended, where it did not end well."""
        self.failure: ApiError | None = None
        self.finish_reason = ""
        """Why the backend says that the answer ended: stop, length, ..."""
        self.usage: Usage | None = None
        """Tokens as the backend counted them."""
        self.output_tokens = 0
        """Tokens as they came."""
        self.enqueued_s = gateway.clock()
        self.dispatched_s = self.first_s = self.finish_s = float("nan")
        self.on_fail: Callable[[], None] | None = None
        """Called when it ends by `fail`, for a reader that may be stuck elsewhere."""
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None

    # --- who reads -------------------------------------------------------------------------------------------------------

    async def next(self) -> Piece | None:
        """The next piece; None when it has ended. ApiError when it ended badly; what came before stands."""
        while True:
            if self.over:
                self._tell()
                return None
            answer = self.answer
            if answer is None:
                await self._seated()
                continue
            try:
                piece = await answer.__anext__()
            except StopAsyncIteration:
                if not self.over:
                    self._end(Outcome.OK)
            except BackendError as error:
                if not self.over:
                    self._broke(error)
                continue
            if not self.over:
                self._account(answer, piece)
                return piece

    def ready(self) -> bool:
        """Whether `next` would return at once, with a piece or the end."""
        return self.over or (self.answer is not None and self.answer.ready())

    def leave(self, why: str = "client_left") -> None:
        """The client is gone: stop, now, wherever the request is. Idempotent."""
        if not self.over:
            self._end(Outcome.ABORTED, why)

    def fail(self, failure: ApiError) -> None:
        """Its time is over, or the gateway stops: end it with this error."""
        if not self.over:
            outcome = Outcome.REJECTED if self.seat is None and not self.tried else Outcome.FAILED
            self._end(outcome, failure.code, failure)
            if self.on_fail is not None:
                self.on_fail()

    def usage_now(self) -> Usage:
        """Tokens so far: the backend's count, else ours."""
        return self.usage or Usage(self.ask.prompt_tokens, self.output_tokens)

    def overhead_s(self, now_s: float) -> float:
        """Time since the request's head that neither the queue nor the backend had."""
        since_s = self.finish_s if self.over else self.first_s
        return self.enqueued_s - self.ask.arrival_s + (now_s - since_s if since_s == since_s else 0.0)

    # --- who drives ------------------------------------------------------------------------------------------------------

    def begin(self, seat: Seats) -> None:
        """It has a seat."""
        gateway = self._gateway
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.seat = seat
        self.dispatched_s = gateway.clock()
        gateway.recorder.scheduled(self.ask, self.dispatched_s, seat.number)
        gateway.admission.began(self.ask, gateway.dispatcher.in_flight)
        if self.ask.trace is not None:
            self.ask.trace.handed(self.ask, seat.backend.name, self.dispatched_s)
        self.answer = seat.backend.submit(self.ask)
        self._wake()

    def wait_until(self, at_s: float, failure: ApiError) -> None:
        """While it waits for a seat: no longer than that."""
        self._timer = asyncio.get_running_loop().call_at(at_s, self.fail, failure)

    def end_at(self, at_s: float, failure: ApiError) -> None:
        """Wherever it is then: no longer than that."""
        self._patience = asyncio.get_running_loop().call_at(at_s, self.fail, failure)

    async def _seated(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _tell(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _account(self, answer: Answer, piece: Piece) -> None:
        gateway, ask = self._gateway, self.ask
        if self.first_s != self.first_s:
            self.first_s = gateway.clock()
            gateway.recorder.scheduled(ask, answer.scheduled_s, self.seat.number if self.seat else 0)
            gateway.admission.first_token(ask, gateway.dispatcher.in_flight)
        if piece.finish_reason is not None:
            self.finish_reason = piece.finish_reason
        if piece.usage is not None:
            self.usage = piece.usage
        if piece.tokens:
            self.output_tokens += piece.tokens
            gateway.recorder.tokens(ask, piece.tokens)
            self.lane.queue.charge(ask, piece.tokens)

    def _broke(self, error: BackendError) -> None:
        """The backend failed it: another one, if nothing was computed, else the end."""
        gateway, seat = self._gateway, self.seat
        assert seat is not None, "only a request with a seat is at a backend"
        self.answer = self.seat = None
        self.tried.append(seat)
        gateway.pool.report(seat.backend, error)
        busy = not error.fault and error.status in (429, 503)
        again = None
        if self.first_s != self.first_s and (not error.sent or busy) and len(self.tried) < MOST_TRIES:
            gateway.dispatcher.free_seat(seat, self.ask)
            again = gateway.dispatcher.take(self.ask, [s for s in self.lane.seats if s not in self.tried])
            if again is not None:
                gateway.retries += 1
                self.begin(again)
        else:
            gateway.dispatcher.free_seat(seat, self.ask)
        if again is None:
            failure = failure_of(error, seat.backend.name)
            self._end(Outcome.FAILED, failure.code, failure)
        gateway.dispatcher.seat_freed(seat)

    def _end(self, outcome: Outcome, code: str = "", failure: ApiError | None = None) -> None:
        gateway, seat, answer = self._gateway, self.seat, self.answer
        self.over, self.outcome, self.code, self.failure = True, outcome, code, failure
        self.finish_s = gateway.clock()
        for timer in (self._timer, self._patience):
            if timer is not None:
                timer.cancel()
        self._timer = self._patience = None
        self.answer = self.seat = None
        gateway.ended(self)
        if answer is not None and outcome is not Outcome.OK:
            answer.abort()
        if seat is not None:
            if outcome is Outcome.OK:
                gateway.pool.report(seat.backend, None)
            else:
                gateway.pool.release(seat.backend)
            gateway.dispatcher.free_seat(seat, self.ask)
            gateway.dispatcher.seat_freed(seat)
        elif not self.tried:
            gateway.dispatcher.remove(self.lane, self.ask)
        self._wake()


class _Inner(msgspec.Struct):
    message: str = ""
    param: str | None = None
    code: str | int | None = None


class _Envelope(msgspec.Struct):
    error: _Inner


def failure_of(error: BackendError, name: str) -> ApiError:
    """What the client is told: the backend's own words where they are about the request, in our envelope."""
    if error.status in _OURS:
        return ApiError(502, "backend_refused_us", f"The backend '{name}' refused the gateway's credentials")
    message, code, param = error.message, error.code, None
    if error.body:
        try:
            told = msgspec.json.decode(error.body, type=_Envelope).error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            told = _Inner()
        message, param = told.message or message, told.param
        code = told.code if isinstance(told.code, str) and told.code else code
    return ApiError(error.status, code, message, param, retry_after_s=error.retry_after_s)
