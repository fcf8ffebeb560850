"""Asking a policy for a command so that nothing it does can stop the loop: it may raise, answer nonsense, be slow, or never answer.

A question runs in a thread of its own per policy; one that is still busy with the last question is not asked another. Seconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from inferencegym.decision.columns import Float32s, Masks
from inferencegym.decision.knobs import Knobs, KnobsSurface
from inferencegym.decision.policy import Policy
from inferencegym.decision.turn import command_of


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question."""

    command: Knobs | None
    """None: there is none, because of `problem`."""
    problem: str
    """What was wrong, as the end of a sentence about the policy; empty: nothing."""
    seconds: float


#: (policy, observation, mask, seed to begin anew with or None) to an answer.
Ask = Callable[[Policy, Float32s, Masks, int | None], Answer]


class AtOnce:
    """Asks in the loop's own thread: for plants whose time stands still meanwhile. Only a policy that never answers stops it."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._surface = KnobsSurface()

    def __call__(self, policy: Policy, observation: Float32s, mask: Masks, seed: int | None) -> Answer:
        """Ask; the policy gets copies."""
        begun_s = self._clock()
        command, problem = None, ""
        try:
            if seed is not None:
                policy.start(seed)
            command = command_of(self._surface, policy.act(observation.copy(), mask.copy()))
        except Exception as error:  # noqa: BLE001 - a policy is anybody's code: what it raises is told in the verdict
            problem = f"raised {type(error).__name__}: {error}"[:300]
        return Answer(command, problem, self._clock() - begun_s)


class InTime:
    """Asks in a thread, and waits for `limit_s` at most; an answer that comes later is thrown away."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._at_once = AtOnce(time.monotonic)
        self._questions: SimpleQueue[tuple[Policy, Float32s, Masks, int | None]] = SimpleQueue()
        self._answers: SimpleQueue[Answer] = SimpleQueue()
        self._open_since_s: float | None = None
        self._seed: int | None = None
        self._thread: threading.Thread | None = None

    def __call__(self, policy: Policy, observation: Float32s, mask: Masks, seed: int | None) -> Answer:
        """Ask; the answer, or that there is none in time."""
        begun_s = time.monotonic()
        if seed is not None:
            self._seed = seed
        if self._open_since_s is not None and self._answers.empty():
            return Answer(None, f"has not answered for {begun_s - self._open_since_s:.1f} s", 0.0)
        while not self._answers.empty():
            self._answers.get()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"policy {policy.name}", daemon=True)
            self._thread.start()
        self._questions.put((policy, observation.copy(), mask.copy(), self._seed))
        self._open_since_s, self._seed = begun_s, None
        try:
            answer = self._answers.get(timeout=self._limit_s)
        except Empty:
            return Answer(None, f"did not answer within {self._limit_s:g} s", time.monotonic() - begun_s)
        self._open_since_s = None
        return answer

    def _work(self) -> None:
        while True:
            self._answers.put(self._at_once(*self._questions.get()))
