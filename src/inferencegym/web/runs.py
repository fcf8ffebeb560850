"""The runs of a server: each is played once, in a process of its own, for everybody who asks for it.

A run is fixed by its spec and never waits for a viewer, so no viewer can change another's. At most `at_once` are played together, at a share of
one core between them; others wait in line. A finished run is kept until memory is needed; one that nobody watches is given up. Seconds, bytes.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from inferencegym.ground.errors import ConfigError, InferenceGymError
from inferencegym.web import frames
from inferencegym.web.process import PlayProcess
from inferencegym.web.spec import Prepared, Spec

_log = logging.getLogger(__name__)
#: What a run weighs before its first frame: columns, results.
_OWN_BYTES = 32 << 10
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
        self.bytes = _OWN_BYTES
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
        self._played: dict[str, PlayProcess] = {}
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
        for run in [run for run in self._runs.values() if not run.over]:
            self._fail(run, "The server is shutting down")
        self._line.clear()
        for process in self._played.values():
            process.stop()
        self._played.clear()

    def __len__(self) -> int:
        return len(self._runs)

    # --- who may play, who must go -----------------------------------------------------------------------------------

    def _next(self) -> None:
        """Begin those whose turn it is, and tell all that play their share."""
        while self._line and len(self._played) < self.limits.at_once:
            run = self._line.pop(0)
            run.state = RUNNING
            self._played[run.id] = PlayProcess(run.id, run.spec, partial(self._heard, run), partial(self._ended, run))
        for process in self._played.values():
            process.tell(self.limits.share / len(self._played))
        for run in self._line:
            run.tell()

    def _touch(self, run: Run) -> None:
        """Somebody came or went: the time after which it is given up begins anew."""
        if self._runs.get(run.id) is not run:
            # One that was begun anew under the same name is not this one's to touch.
            return
        self._runs.move_to_end(run.id)
        handle = self._given_up.pop(run.id, None)
        if handle is not None:
            handle.cancel()
        if self._closed or run.watchers:
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
        process = self._played.pop(run.id, None)
        if process is not None:
            process.stop()
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

    def _heard(self, run: Run, process: PlayProcess, said: tuple[Any, ...]) -> None:
        """A message of a process that plays."""
        if self._played.get(run.id) is not process:
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
            self._end(run, state, message)
            run.add([frame])

    def _ended(self, run: Run, process: PlayProcess, code: int | None) -> None:
        """A process that played is gone, or never came to be."""
        if self._played.get(run.id) is not process:
            return
        del self._played[run.id]
        if not run.over:
            _log.warning("the process that played run %s ended with %s", run.id, code)
            how = "could not be started" if code is None else f"died (exit code {code})"
            self._fail(run, f"The process that plays this run {how}; start it again")
        self._touch(run)
        self._next()

    def _fail(self, run: Run, message: str) -> None:
        self._end(run, FAILED, message)
        run.add([frames.state(len(run.frames), FAILED, message)])

    def _end(self, run: Run, state: str, message: str) -> None:
        """Nothing more comes of a run: policies that had not come to their end never will."""
        run.state, run.message = state, message
        for part in run.parts:
            if part.state in (WAITING, RUNNING):
                part.state, part.message = FAILED, message
