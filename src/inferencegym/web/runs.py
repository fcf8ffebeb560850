"""The runs of a server: each is played once, in a process of its own, for everybody who asks for it.

A run is fixed by its spec and never waits for a viewer, so no viewer can change another's. At most `at_once` are played together, at a share of
one core between them; others wait in line. A finished run is kept until memory is needed; one that nobody watches is given up. Seconds, bytes.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from inferencegym.ground.errors import ConfigError, InferenceGymError
from inferencegym.web import frames, worker
from inferencegym.web.desk import context
from inferencegym.web.spec import Prepared, Spec

_log = logging.getLogger(__name__)
WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"


class UnknownRunError(InferenceGymError, LookupError):
    """No run of that name is here: it was never begun, given up, or forgotten with a restart."""


class BusyError(InferenceGymError):
    """The line is full."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server spends on runs."""

    at_once: int = 4
    share: float = 0.5
    """Of one core, all runs together."""
    line: int = 32
    """Runs that may wait."""
    unwatched_s: float = 60.0
    """After so long without a viewer a run that is not finished is given up."""
    kept_bytes: int = 24 << 20
    """Of finished runs that nobody watches."""

    def __post_init__(self) -> None:
        if not 0.01 <= self.share <= 1.0:
            raise ConfigError("share", f"{self.share} of a core", allowed="0.01..1")
        if self.at_once < 1 or self.line < 0:
            raise ConfigError("at_once", f"{self.at_once}, line {self.line}", allowed="1 or more; 0 or more")


@dataclass(slots=True)
class Part:
    """One policy of a run."""

    name: str
    state: str = WAITING
    """waiting, running, completed, crashed or failed."""
    samples: int = 0
    decisions: int = 0
    result: dict[str, Any] | None = None
    message: str = ""
    actions: bytearray = field(default_factory=bytearray)
    """Dense actions so far, as `Playing.actions` holds them."""


class Run:
    """One run and what is known of it so far."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.id: str = prepared.id
        self.spec: Spec = prepared.spec
        self.state, self.message = WAITING, ""
        self.parts = [Part(name) for name in self.spec.policies]
        self.frames: list[bytes] = []
        self.bytes = 0
        self.cpu_s = 0.0
        self.watchers = 0
        self._news = asyncio.Event()

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.state in (DONE, FAILED)

    @property
    def news(self) -> asyncio.Event:
        """Set by the next news; take it before you look whether there are any."""
        return self._news

    def add(self, made: list[bytes]) -> None:
        """Append frames, and wake whoever waits for some."""
        self.frames += made
        self.bytes += sum(map(len, made))
        self.tell()

    def tell(self) -> None:
        """Wake whoever waits for news."""
        news, self._news = self._news, asyncio.Event()
        news.set()


class RunTable:
    """All runs of a server. Used from one event loop."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._line: list[Run] = []
        self._played: dict[str, _Play] = {}
        self._given_up: dict[str, asyncio.TimerHandle] = {}
        self._closed = False

    def start(self, prepared: Prepared) -> Run:
        """The run of that name, begun if it is not here. BusyError if the line is full. `prepared`: see `play.prepared`."""
        run = self._runs.get(prepared.id)
        if run is None or run.state == FAILED:
            if self._closed or len(self._line) >= self.limits.line:
                raise BusyError(f"{len(self._line)} runs are waiting in line; try again in a minute")
            run = self._runs[prepared.id] = Run(prepared)
            self._line.append(run)
            self._next()
        self._touch(run)
        return run

    def find(self, run_id: str) -> Run:
        """The run of that name."""
        run = self._runs.get(run_id)
        if run is None:
            raise UnknownRunError(
                "The server does not have this run any more: start it again, and the same numbers come out"
            )
        self._touch(run)
        return run

    def place(self, run: Run) -> int:
        """Its place in the line, from 1; 0 if it is not waiting."""
        return self._line.index(run) + 1 if run in self._line else 0

    def actions(self, run_id: str, policy: int) -> tuple[Spec, bytes]:
        """The complete spec, and the dense actions that a policy has taken so far: int64[t] (paging) or float64[t, 6] (knobs), as bytes."""
        run = self.find(run_id)
        if not 0 <= policy < len(run.parts):
            raise UnknownRunError(f"This run has the policies 0 to {len(run.parts) - 1}; there is no {policy}")
        return run.spec, bytes(run.parts[policy].actions)

    @contextmanager
    def watched(self, run: Run) -> Iterator[None]:
        """While somebody watches, a run is neither given up nor forgotten."""
        run.watchers += 1
        self._touch(run)
        try:
            yield
        finally:
            run.watchers -= 1
            self._touch(run)

    def close(self) -> None:
        """End all that is played; whoever waits is told."""
        self._closed = True
        for handle in self._given_up.values():
            handle.cancel()
        self._given_up.clear()
        for run in [*self._line, *(play.run for play in self._played.values())]:
            self._fail(run, "The server is shutting down")
        self._line.clear()
        for play in self._played.values():
            play.stop()
        self._played.clear()

    def __len__(self) -> int:
        return len(self._runs)

    # --- who may play, who must go -----------------------------------------------------------------------------------

    def _next(self) -> None:
        """Begin those whose turn it is, and tell all that play their share."""
        while self._line and len(self._played) < self.limits.at_once:
            run = self._line.pop(0)
            run.state = RUNNING
            self._played[run.id] = _Play(self, run)
        for play in self._played.values():
            play.tell(self.limits.share / len(self._played))
        for run in self._line:
            run.tell()

    def _touch(self, run: Run) -> None:
        """Somebody came or went: the time after which it is given up begins anew."""
        if run.id in self._runs:
            self._runs.move_to_end(run.id)
        handle = self._given_up.pop(run.id, None)
        if handle is not None:
            handle.cancel()
        if self._closed or self._runs.get(run.id) is not run or run.watchers:
            return
        if run.over:
            self._make_room()
        else:
            later = asyncio.get_running_loop().call_later(self.limits.unwatched_s, self._give_up, run)
            self._given_up[run.id] = later

    def _give_up(self, run: Run) -> None:
        self._given_up.pop(run.id, None)
        if run.watchers or run.over or self._runs.get(run.id) is not run:
            return
        del self._runs[run.id]
        self._fail(run, "Nobody watched this run, so it was given up; start it again")
        if run in self._line:
            self._line.remove(run)
        play = self._played.pop(run.id, None)
        if play is not None:
            play.stop()
        self._next()

    def _make_room(self) -> None:
        """Forget finished runs, those unwatched for longest first, until the rest is small enough; never the latest."""
        over = [run for run in self._runs.values() if run.over]
        held = sum(run.bytes for run in over)
        for run in over[:-1]:
            if held <= self.limits.kept_bytes:
                return
            if not run.watchers:
                held -= run.bytes
                del self._runs[run.id]

    # --- what the players say ----------------------------------------------------------------------------------------

    def heard(self, play: _Play, said: tuple[Any, ...]) -> None:
        """A message of a process that plays."""
        run = play.run
        if self._played.get(run.id) is not play:
            return
        run.cpu_s = said[-1]
        if said[0] == "played":
            for i, samples, decisions, actions in said[1]:
                part = run.parts[i]
                part.state, part.samples, part.decisions = RUNNING, samples, decisions
                part.actions += actions
                run.bytes += len(actions)
            run.add(said[2])
        elif said[0] == "ended":
            _, i, state, result, message, frame, _ = said
            part = run.parts[i]
            part.state, part.result, part.message = state, result, message
            run.add([frame])
        else:
            state, message, frame, _ = said
            run.state, run.message = state, message
            run.add([frame])

    def ended(self, play: _Play, code: int | None) -> None:
        """A process that played is gone."""
        if self._played.get(play.run.id) is not play:
            return
        del self._played[play.run.id]
        if not play.run.over:
            _log.warning("the process that played run %s ended with %s", play.run.id, code)
            self._fail(play.run, f"The process that played this run died (exit code {code}); start it again")
        self._touch(play.run)
        self._next()

    def _fail(self, run: Run, message: str) -> None:
        run.state, run.message = FAILED, message
        for part in run.parts:
            if part.state in (WAITING, RUNNING):
                part.state, part.message = FAILED, message
        run.add([frames.state(len(run.frames), FAILED, message)])


class _Play:
    """A process that plays a run, and the thread that starts it and listens: the fork server may take seconds, and a message may come in pieces."""

    def __init__(self, table: RunTable, run: Run) -> None:
        self.table, self.run = table, run
        self._loop = asyncio.get_running_loop()
        self._here, self._there = context().Pipe()
        self._process = context().Process(target=worker.work, args=(self._there, run.spec), daemon=True)
        self._stopped = False
        self._thread = threading.Thread(target=self._listen, name=f"run-{run.id}", daemon=True)
        self._thread.start()

    def tell(self, share: float) -> None:
        """Its share of a core."""
        try:
            self._here.send(share)
        except OSError:
            _log.debug("run %s is over already", self.run.id)

    def stop(self) -> None:
        """End the process, now or as soon as it has begun."""
        self._stopped = True
        if self._process.pid is not None:
            self._process.terminate()

    def _listen(self) -> None:
        code = None
        if not self._stopped:
            self._process.start()
        self._there.close()
        if self._process.pid is not None:
            # Whoever stops it after this line sees the process.
            if self._stopped:
                self._process.terminate()
            self._hear(self._here)
            self._process.join()
            code = self._process.exitcode
        self._here.close()
        self._call(self.table.ended, self, code)

    def _hear(self, pipe: Connection) -> None:
        while True:
            try:
                said = pipe.recv()
            except (EOFError, OSError):
                return
            self._call(self.table.heard, self, said)

    def _call(self, function: Any, *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            # The server's loop has ended; so has its interest.
            self.stop()
