"""The process that plays one run: all its policies in turns of a few milliseconds, so that they advance together, at a share of a core.

It hears one thing from the server, its share of a core, and ends when the server is gone. What it says are tuples:
("played", policies' progress, frames, cpu_s), ("ended", policy, state, result, message, frame, cpu_s), ("done" or "failed", message, frame, cpu_s).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from inferencegym.web import frames
from inferencegym.web.desk import begin
from inferencegym.web.spec import Spec

#: A policy's turn, and how long rows are gathered for a frame, seconds.
_TURN_S, _GATHER_S = 0.005, 0.1
#: Shorter waits are put together, seconds.
_LEAST_WAIT_S = 0.005


class _GoneError(Exception):
    """The server is."""


def work(pipe: Connection, spec: Spec) -> None:
    """Play a run to its end."""
    begin()
    try:
        _Work(pipe, spec).play()
    except (_GoneError, EOFError, BrokenPipeError, ConnectionError):
        return
    finally:
        pipe.close()


class _Work:
    def __init__(self, pipe: Connection, spec: Spec) -> None:
        self._pipe, self._spec = pipe, spec
        self._share = float(pipe.recv())
        self._players: dict[int, Any] = {}
        self._number = 0
        self._used_s = 0.0
        """CPU that was used and not yet waited for."""
        self._counted_s = time.process_time()
        self._sent_s = time.monotonic()

    def play(self) -> None:
        self._pipe.send(("played", [], [frames.state(self._next(), "running")], time.process_time()))
        try:
            from inferencegym.web.spec import complete

            _, task = complete(self._spec)
        except Exception as error:  # noqa: BLE001 - whatever it is, the run's viewers are told
            self._end("failed", _said(error))
            return
        for i, name in enumerate(self._spec.policies):
            self._guarded(i, partial(self._begin, i, name, task))
        under_way = dict(self._players)
        while under_way:
            at = min(under_way, key=lambda i: (under_way[i].samples, i))
            player = under_way[at]
            if not self._guarded(at, partial(player.advance, _TURN_S)):
                del under_way[at]
            elif player.over:
                del under_way[at]
                self._guarded(at, partial(self._finish, at, player))
            elif time.monotonic() - self._sent_s >= _GATHER_S:
                self._send()
            self._rest()
        self._end("done", "")

    def _begin(self, at: int, name: str, task: Any) -> None:
        from inferencegym.web.play import Player

        self._players[at] = Player(self._spec, name, task)

    def _guarded(self, at: int, do: Callable[[], None]) -> bool:
        """Do something for one policy; if it fails, that policy alone has failed."""
        try:
            do()
        except (BrokenPipeError, ConnectionError):
            raise
        except Exception as error:  # noqa: BLE001 - a policy may raise anything; its viewers are told, and the others play on
            self._tell_end(at, "failed", None, _said(error))
            return False
        return True

    def _finish(self, at: int, player: Any) -> None:
        result = player.result()
        self._tell_end(at, "crashed" if result["crashed"] else "completed", result, "")

    def _tell_end(self, at: int, state: str, result: dict[str, Any] | None, message: str) -> None:
        self._send()
        frame = frames.ended(self._next(), at, state, result, message)
        self._pipe.send(("ended", at, state, result, message, frame, time.process_time()))

    def _send(self) -> None:
        """What all policies have played since the last time."""
        progress, made = [], []
        for i, player in self._players.items():
            first, rows, payload, actions = player.taken()
            if rows:
                made.append(frames.samples(self._next(), i, first, rows, payload))
                progress.append((i, player.samples, player.playing.steps, actions))
        self._sent_s = time.monotonic()
        if made:
            self._pipe.send(("played", progress, made, time.process_time()))

    def _end(self, state: str, message: str) -> None:
        self._pipe.send((state, message, frames.state(self._next(), state, message), time.process_time()))

    def _next(self) -> int:
        self._number += 1
        return self._number - 1

    def _rest(self) -> None:
        """Wait as long as the share asks for what was computed; hear of another share meanwhile."""
        now_s = time.process_time()
        self._used_s += now_s - self._counted_s
        self._counted_s = now_s
        while True:
            # A new share holds for what is still owed, too: who looks ahead for seconds owes many.
            each_s = 1.0 / self._share - 1.0
            wait_s = self._used_s * each_s
            if each_s == 0.0:
                self._used_s = 0.0
            elif wait_s < _LEAST_WAIT_S:
                wait_s = 0.0
            before_s = time.monotonic()
            told = self._pipe.poll(wait_s)
            if wait_s:
                self._used_s -= (time.monotonic() - before_s) / each_s
            if not told:
                return
            try:
                self._share = float(self._pipe.recv())
            except EOFError:
                raise _GoneError from None


def _said(error: Exception) -> str:
    from inferencegym.ground.errors import InferenceGymError

    return str(error) if isinstance(error, InferenceGymError) else f"{type(error).__name__}: {error}"
