"""One request at the mock: a count of tokens, read as text. Reading slowly makes pieces larger, never memory. Times are seconds of the backend's clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from inferencegym.engine.live import End, Ticket
from inferencegym.ground.rng import stream
from inferencegym.runtime.ports import Ask, BackendError, Piece, Usage

if TYPE_CHECKING:
    from inferencegym.runtime.backends.mock import MockBackend

_SYLLABLES = ("ba", "de", "fi", "go", "lu", "ma", "ne", "pi", "ro", "su", "ta", "ve")
_WORDS = 4096


def _book() -> tuple[str, list[int]]:
    """A long text, twice, and where its tokens begin: no word follows itself, so no client takes it for a stuck stream."""
    picks = stream(0, "mock.text").integers(0, len(_SYLLABLES) ** 2 - 1, _WORDS).tolist()
    words, last = [], -1
    for pick in picks:
        last = pick + (pick >= last)
        words.append(f" {_SYLLABLES[last // len(_SYLLABLES)]}{_SYLLABLES[last % len(_SYLLABLES)]}")
    starts = [0]
    for word in words * 2:
        starts.append(starts[-1] + len(word))
    return "".join(words) * 2, starts


_TEXT, _STARTS = _book()


def text_of(begin: int, count: int) -> str:
    """Tokens begin .. begin + count of an endless text that repeats after 4,096."""
    first = begin % _WORDS
    if count <= _WORDS:
        return _TEXT[_STARTS[first] : _STARTS[first + count]]
    whole, rest = divmod(count, _WORDS)
    return _TEXT[_STARTS[first] : _STARTS[first + _WORDS]] * whole + text_of(begin, rest)


class MockAnswer:
    """What the gateway reads."""

    __slots__ = ("_backend", "_begin", "_die_at", "_end", "_error", "_made", "_over", "_read", "_waiter", "ask", "cut", "scheduled_s", "target",
                 "ticket", "timer")  # fmt: skip

    def __init__(self, backend: MockBackend, ask: Ask, number: int) -> None:
        self._backend, self.ask = backend, ask
        self.ticket: Ticket | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.scheduled_s = float("nan")
        self.target = 0
        """Tokens it will have."""
        self.cut = False
        """Whether the caller's limit ends it, not its own length."""
        self._begin = number * 31
        self._made = self._read = 0
        self._end: End | None = None
        self._error: BackendError | None = None
        self._die_at: int | None = None
        self._over = False
        self._waiter: asyncio.Future[None] | None = None

    # --- the gateway -----------------------------------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self

    async def __anext__(self) -> Piece:
        """What was made since the last piece; waits if that is nothing."""
        while True:
            if self._made > self._read:
                return self._piece()
            if self._error is not None:
                raise self._error
            if self._over:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def ready(self) -> bool:
        """Whether `__anext__` would return at once."""
        return self._made > self._read or self._over or self._error is not None

    def abort(self) -> None:
        """Nobody reads it any more."""
        if not self._over and self._error is None:
            self._close()

    def _piece(self) -> Piece:
        count = self._made - self._read
        text = text_of(self._begin + self._read, count)
        self._read = self._made
        end = self._end
        if end is None:
            return Piece(text, count)
        self._over = True
        usage = Usage(self.ask.prompt_tokens, end.output_tokens, end.cached_tokens, end.preemptions)
        return Piece(text, count, finish_reason="length" if self.cut else "stop", usage=usage)

    # --- the backend -----------------------------------------------------------------------------------------------------

    def more(self, tokens: int, scheduled_ps: int) -> None:
        """The engine has made so many tokens more."""
        if not self._made:
            self._began(scheduled_ps)
        self._made += tokens
        if self._die_at is not None and self._made >= self._die_at:
            self._made = self._die_at
            self.die()
        self._wake()

    def finish(self, end: End) -> None:
        """The engine has made all of it."""
        if not self._made:
            self._began(end.scheduled_ps)
        self.ticket = None
        if self._die_at is not None:
            self._made = self._die_at
            self._error = _death()
        else:
            self._made, self._end = end.output_tokens, end
        self._wake()

    def _began(self, scheduled_ps: int) -> None:
        """When the engine began, between the request's coming and now: timers that fire early let the engine run ahead of the clock by a moment."""
        began_s = max(self.scheduled_s, self._backend.seconds(scheduled_ps))
        self.scheduled_s = min(began_s, self._backend.now_s())

    def fail(self, error: BackendError) -> None:
        """It breaks off; what was made stands."""
        if self._error is None and not self._over and self._end is None:
            self._error = error
            self._stop_timer()
            self._wake()

    def die_after(self, share: float) -> None:
        """The mock lets it die on the way, after this share of its tokens, at least one if there are two."""
        self._die_at = min(max(1, round(self.target * share)), self.target - 1)

    def die(self) -> None:
        """Its connection breaks."""
        self.fail(_death())
        self._backend.drop(self)

    def _close(self) -> None:
        self._over = True
        self._made = self._read
        self._stop_timer()
        self._backend.drop(self)
        self._wake()

    def _stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)


def _death() -> BackendError:
    return BackendError("the backend closed the connection in the middle of its answer")
