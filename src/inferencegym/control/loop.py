"""A policy at the wheel of any plant: each window a snapshot, an observation, an answer, the guard's word, a command. One loop for a simulation and a live gateway.

What a policy is shown and what its answer means comes from `decision.turn` and the surface, as in the environments. Time comes from outside: a
`clock` (seconds) and a `wait` that returns True when it is time to end; a simulated plant's `wait` runs its window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from inferencegym.control.asking import Answer, Ask
from inferencegym.control.guard import FALLBACK, FOUND, NAME, NOBODY, POLICY, Guard
from inferencegym.control.limits import found
from inferencegym.decision.columns import Float32s, Floats
from inferencegym.decision.knobs import LEVERS, Applied, Knobs, KnobsSurface
from inferencegym.decision.plant import Plant
from inferencegym.decision.policy import Policy
from inferencegym.decision.snapshot import Snapshot
from inferencegym.decision.turn import in_force, observe
from inferencegym.ground.errors import ConfigError, InputError, OfflineError

#: Waits so many seconds, or until somebody wants the end; True: end.
Wait = Callable[[float], bool]
#: (policy, guard): told before a command, for those who look at the plant.
Tell = Callable[[str, str], None]
_RESTORING = "settings found at the start"


@dataclass(frozen=True, slots=True)
class Window:
    """All there is to know of one window of control."""

    number: int
    at_s: float
    """The loop's clock at its beginning."""
    snapshot: Snapshot | None
    observation: Float32s | None
    """What the policies were shown; None: no snapshot."""
    action: Knobs | None
    """The policy's own answer, before the guard; None: it was not asked, or gave none."""
    driver: str
    """Who decided: policy, fallback, found or nobody."""
    command: Knobs
    """What was sent (in a dry run: what would have been)."""
    applied: Applied
    reasons: tuple[str, ...]
    """The guard's verdict in words; empty: the policy steers, and nothing was held back."""
    outside: dict[str, float]
    """Columns beyond the surface's range, and how far."""
    answer_s: float
    """Time that the policies took to answer."""
    took_s: float
    """Time that the whole window took, but for the wait."""


@dataclass(slots=True)
class Summary:
    """What came of a session."""

    windows: int = 0
    drivers: Counter[str] = field(default_factory=Counter)
    """Windows that each one decided."""
    trips: int = 0
    """How often the policy's turn was ended."""
    missing: int = 0
    """Windows without a snapshot."""
    lost: int = 0
    """Commands that did not arrive."""
    outside: Counter[str] = field(default_factory=Counter)
    """Columns to windows in which they were beyond the surface's range."""
    longest_s: float = 0.0
    """The slowest window, but for its wait."""
    found: Knobs = field(default_factory=Knobs)
    given_back: bool | None = None
    """Whether the settings found at the start were put back; None: they were to stay, or nothing was changed."""
    note: str = ""
    """What became of giving back, in words."""


class Loop:
    """One session of control: a plant, a policy, a guard."""

    def __init__(
        self, plant: Plant, policy: Policy, guard: Guard, *, ask: Ask, clock: Callable[[], float], fallback: Policy | None = None, ask_fallback: Ask | None = None,
        seed: int = 0, horizon: int | None = None, dry_run: bool = False, tell: Tell = lambda policy, guard: None, release: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """`fallback`: who stands in; None: the settings found at the start, if the guard has a fallback at all. `ask_fallback`: as `ask`, which
        is used where it is None. `horizon`: windows of the episode that a policy was trained on, for its column `episode_fraction`; None: as the
        plant says. `dry_run`: nothing is sent. `release`: gives batch_cap back where more seats were found than a command can say.
        """
        for one in (policy, fallback):
            if one is not None and one.surface != "knobs":
                raise ConfigError("policy", f"'{one.name}' acts on '{one.surface}'", allowed="policies of surface 'knobs'")  # fmt: skip
        self.plant, self.policy, self.fallback, self.guard = plant, policy, fallback, guard
        self._ask, self._ask_fallback, self._clock = ask, ask_fallback or ask, clock
        self._seed, self._horizon, self._dry_run, self._tell = seed, horizon, dry_run, tell
        self._release = release
        self._surface = KnobsSurface()
        self._before = self._wheel = ""
        self._owed: set[str] = set()
        self._sent = False
        self.summary = Summary()
        self.found_notes: tuple[str, ...] = ()
        self.found_at: Floats = np.full(len(LEVERS), np.nan)
        """float64[6]: the knobs found at the start, also where no command could say them."""

    def start(self) -> Snapshot:
        """Look once, and remember the settings found. What goes wrong here is raised: a wrong address is no outage."""
        snapshot = self.plant.snapshot()
        self.summary.found, self.found_notes = found(in_force(snapshot))
        self.found_at = in_force(snapshot)
        return snapshot

    def run(self, wait: Wait, *, windows: int | None = None, on_window: Callable[[Window], None] = lambda window: None) -> Summary:  # fmt: skip
        """Steer until `wait` says so or `windows` are over. A window begins every `guard.window_s`; one that is missed is left out, not made up for."""
        snapshot: Snapshot | None = self.start()
        due_s = self._clock()
        while windows is None or self.summary.windows < windows:
            on_window(self.turn(snapshot))
            snapshot = None
            due_s = max(due_s + self.guard.window_s, self._clock())
            if wait(max(0.0, due_s - self._clock())):
                break
        return self.summary

    def turn(self, snapshot: Snapshot | None = None) -> Window:
        """One window: look (unless `snapshot` is what was seen just now), decide, send."""
        begun_s, problem = self._clock(), ""
        if snapshot is None:
            snapshot, problem = self._see()
        look = self.guard.look(snapshot, problem)
        driver, reasons, answer_s = look.driver, list(look.reasons), 0.0
        observation, action, command, applied = None, None, Knobs(), Applied()
        if snapshot is not None:
            observation = observe(self._surface, snapshot, self._fraction())
        if snapshot is not None and observation is not None and driver != NOBODY:
            answer = Answer(None, "", 0.0)
            if driver == POLICY:
                answer = self._put(POLICY, observation)
                driver, said = self.guard.answered(answer.problem)
                reasons += said
                action, answer_s = answer.command, answer.seconds
            if driver == FALLBACK:
                answer = self._put(FALLBACK, observation)
                answer_s += answer.seconds
                if answer.command is None:
                    reasons.append(f"the fallback {answer.problem}: the settings found at the start")
                    driver = FOUND
            if driver == FOUND:
                answer = Answer(self.summary.found, "", 0.0)
            command, said = self.guard.hold(self._handed_over(driver, answer.command or Knobs(), snapshot), snapshot)
            reasons += said
            applied, said = self._send(driver, command, snapshot)
            reasons += said
        self._before = driver
        window = Window(
            self.summary.windows, begun_s, snapshot, observation, action, driver, command, applied, tuple(reasons), look.odd, answer_s,
            self._clock() - begun_s,
        )  # fmt: skip
        self._count(window)
        return window

    def give_back(self, keep: bool = False) -> Summary:
        """Put the settings found at the start in force again (not if `keep`, or if nothing was sent); the summary says what became of it."""
        summary = self.summary
        if keep or not self._sent:
            summary.note = "the last settings stay in force" if self._sent else "nothing was changed"
            return summary
        try:
            self._tell(_RESTORING, NAME)
            applied = self.plant.apply(summary.found)
            if self._release is not None and not np.array_equal(self.found_at[:1], summary.found.levers()[:1]):
                self._release()
            now = in_force(self.plant.snapshot())
        except (OfflineError, InputError, ConfigError) as error:
            summary.given_back, summary.note = False, f"the settings found at the start could not be put back: {error}"
            return summary
        # What nobody was ever let turn is as it was, refused or not.
        before = self.found_at
        left = [
            f"{name} stands at {now[i]:g}, not {before[i]:g}" + (f" ({applied.refused[name]})" if name in applied.refused else "")
            for i, name in enumerate(LEVERS) if not np.array_equal(now[i], before[i], equal_nan=True)
        ]  # fmt: skip
        summary.given_back = not left
        summary.note = (
            "the settings found at the start are in force again" if not left else "given back, but " + "; ".join(left)
        )
        return summary

    def _see(self) -> tuple[Snapshot | None, str]:
        """A snapshot, or why there is none. A key that is not accepted is raised: no fallback could steer either."""
        try:
            return self.plant.snapshot(), ""
        except (OfflineError, InputError) as error:
            return None, str(error)

    def _put(self, who: str, observation: Float32s) -> Answer:
        """Ask one of the two; whoever was not at the wheel in the last window begins anew."""
        seed = self._seed if self._before != who else None
        mask = self.guard.mask()
        if who == POLICY:
            return self._ask(self.policy, observation, mask, seed)
        if self.fallback is None:
            return Answer(self.summary.found, "", 0.0)
        return self._ask_fallback(self.fallback, observation, mask, seed)

    def _handed_over(self, driver: str, command: Knobs, snapshot: Snapshot) -> Knobs:
        """The command, and the settings found of those knobs that the last one at the wheel left elsewhere and this one does not name."""
        if driver == NOBODY:
            return command
        if self._wheel not in ("", driver):
            self._owed = set(LEVERS)
        self._wheel = driver
        levers, home = command.levers(), self.summary.found.levers()
        away = home != in_force(snapshot)
        self._owed = {name for name in self._owed if np.isnan(levers[LEVERS.index(name)]) and away[LEVERS.index(name)]}
        for name in self._owed:
            levers[LEVERS.index(name)] = home[LEVERS.index(name)]
        return Knobs.of(levers) if self._owed else command

    def _send(self, driver: str, command: Knobs, snapshot: Snapshot) -> tuple[Applied, tuple[str, ...]]:
        """What took effect, and what is to be said of it."""
        if self._dry_run or not command.given():
            return Applied(), ()
        names = {POLICY: self.policy.name, FALLBACK: f"{self.guard.fallback} (for {self.policy.name})", FOUND: _RESTORING}  # fmt: skip
        try:
            self._tell(names.get(driver, driver), NAME)
            # Even if no answer comes, it may have arrived.
            self._sent = True
            applied = self.plant.apply(command)
        except (OfflineError, InputError) as error:
            self.summary.lost += 1
            return Applied(), (f"the command did not arrive: {error}",)
        return applied, self.guard.refused(applied, command, snapshot)

    def _fraction(self) -> float | None:
        return None if self._horizon is None else min(1.0, self.summary.windows / self._horizon)

    def _count(self, window: Window) -> None:
        summary = self.summary
        summary.windows += 1
        summary.drivers[window.driver] += 1
        summary.trips = self.guard.trips
        summary.missing += window.snapshot is None
        summary.outside.update(window.outside.keys())
        summary.longest_s = max(summary.longest_s, window.took_s)
