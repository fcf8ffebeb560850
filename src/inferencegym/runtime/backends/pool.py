"""Several backends as one: which of them a request goes to, which are well, and which come back.

Every `pick` is followed by one `report` (it answered, or failed) or `release` (the client left). Times are seconds of the event loop.
Routing `prefix` is consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2018): a session keeps its backend until that has more
than BALANCE times its fair share of the requests under way; then the next one on the ring takes what is too much.
"""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

from inferencegym.decision.knobs import QUANTIZATION_TIERS
from inferencegym.ground.errors import ConfigError, UnknownNameError
from inferencegym.runtime.backends.breaker import Breaker
from inferencegym.runtime.ports import Ask, Backend, BackendError

ROUTINGS = ("round_robin", "least_loaded", "prefix")
BALANCE = 1.25
#: Points on the ring for a backend of weight 1.
_POINTS = 64


@dataclass(frozen=True, slots=True)
class Traits:
    """What the pool knows of a backend beside the backend itself."""

    weight: float = 1.0
    variant: str = ""
    """Weight format (FP16, INT8, INT4); empty: not one of several."""
    pool: str = ""
    """prefill or decode; empty: both."""
    health_interval_s: float = 5.0


@dataclass(slots=True, eq=False)
class Member:
    """A backend in the pool, and how it fares."""

    backend: Backend
    traits: Traits
    breaker: Breaker = field(default_factory=Breaker)
    started: bool = False
    healthy: bool = True
    in_flight: int = 0
    picked: int = 0
    """Requests that went there since the start."""
    failed: int = 0
    """Requests that failed there since the start."""
    probed_s: float = math.nan
    """When its health was last asked for, of the loop's time; NaN: never."""
    credit: float = 0.0
    """Of the smooth weighted round robin."""
    problem: str = ""
    """Why it is not healthy."""

    def load(self) -> float:
        """Requests there per unit of weight; more than ours where it says so."""
        said = self.backend.load()
        there = said.running + said.waiting
        return (self.in_flight if math.isnan(there) else max(self.in_flight, there)) / self.traits.weight


class Pool:
    """Backends behind one door. `routing` can be changed at any time; so can the variant that is preferred and whether the pools are split."""

    def __init__(
        self, backends: Iterable[Backend], routing: str = "round_robin", traits: Mapping[str, Traits] | None = None
    ) -> None:
        """`traits` by the backends' names; those not named have the usual ones."""
        traits = traits or {}
        self.members = [Member(one, traits.get(one.name, Traits())) for one in backends]
        if not self.members:
            raise ConfigError("backends", "there is none", allowed="one or more")
        self._by_backend = {id(member.backend): member for member in self.members}
        self._points, self._owners = _ring(self.members)
        self.variant = ""
        self.split = False
        self.on_change: list[Callable[[], None]] = []
        """Called when a backend came back or went away: requests may wait for that."""
        self._watches: list[asyncio.Task[None]] = []
        self._timers: set[asyncio.TimerHandle] = set()
        self.set_routing(routing)

    # -- its life ----------------------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start all; those that cannot start are left to the health checks. BackendError of the first if none can."""
        failures = [
            one for one in await asyncio.gather(*(self._start(member) for member in self.members)) if one is not None
        ]
        if len(failures) == len(self.members):
            await self.stop()
            raise failures[0]
        self._watches = [
            asyncio.create_task(self._watch(member))
            for member in self.members
            if member.traits.health_interval_s < math.inf
        ]

    async def _start(self, member: Member) -> BackendError | None:
        try:
            await member.backend.start()
        except BackendError as error:
            self._turn(member, False, error.message)
            return error
        member.started = True
        self._turn(member, True, "")
        return None

    async def stop(self) -> None:
        """End the checks and the backends, all at once."""
        for task in self._watches:
            task.cancel()
        for timer in self._timers:
            timer.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        self._watches.clear()
        await asyncio.gather(*(member.backend.stop() for member in self.members))

    async def _watch(self, member: Member) -> None:
        """Ask from time to time; one bad answer may be chance, two are not; one good one is enough to come back."""
        bad = tries = 0
        interval_s = member.traits.health_interval_s
        while True:
            await asyncio.sleep(interval_s * 2 ** min(tries, 5))
            if not member.started:
                await self._start(member)
                tries += 1
                continue
            try:
                async with asyncio.timeout(max(interval_s, 5.0)):
                    well = await member.backend.healthy()
            except TimeoutError:
                well = False
            member.probed_s = asyncio.get_running_loop().time()
            tries, bad = 0, 0 if well else bad + 1
            if well or bad >= 2:
                self._turn(member, well, "" if well else "its health check fails")

    def tell(self, backend: Backend, well: bool, problem: str) -> None:
        """A backend says itself that it went away, came back, or takes another number of requests."""
        self._turn(self._by_backend[id(backend)], well, problem)
        self._changed()

    def _turn(self, member: Member, well: bool, problem: str) -> None:
        member.problem = problem
        if member.healthy != well:
            member.healthy = well
            self._changed()

    def _changed(self) -> None:
        for call in self.on_change:
            call()

    # -- what there is -----------------------------------------------------------------------------------------------------------------------

    @property
    def backends(self) -> list[Backend]:
        """All of them."""
        return [member.backend for member in self.members]

    def models(self) -> tuple[str, ...]:
        """Every name under which somebody here can be asked, in order, each once."""
        return tuple(dict.fromkeys(name for member in self.members for name in member.backend.models))

    def variants(self) -> tuple[str, ...]:
        """The weight formats there are."""
        return tuple(
            tier for tier in QUANTIZATION_TIERS if any(member.traits.variant == tier for member in self.members)
        )

    def ready(self) -> bool:
        """Whether some backend would get a request now."""
        return any(self.usable(member.backend) for member in self.members)

    def usable(self, backend: Backend) -> bool:
        """Whether it may be given a request now: it is well, and its breaker lets one through."""
        member = self._by_backend[id(backend)]
        return member.healthy and member.breaker.can_take(asyncio.get_running_loop().time())

    def member(self, backend: Backend) -> Member:
        """The pool's knowledge of one of its backends."""
        return self._by_backend[id(backend)]

    # -- knobs -------------------------------------------------------------------------------------------------------------------------------

    def set_routing(self, routing: str) -> None:
        """From the next request on. UnknownNameError."""
        if routing not in ROUTINGS:
            raise UnknownNameError("routing", routing, ROUTINGS)
        self.routing = routing

    def set_variant(self, variant: str) -> str:
        """Prefer backends of this weight format, from the next request on; why not, if it cannot be."""
        if variant and variant not in self.variants():
            return f"no backend is of variant {variant}; there are: {', '.join(self.variants()) or 'none'}"
        self.variant = variant
        return ""

    def set_split(self, split: bool) -> str:
        """Send requests with more prompt than answer to the pool `prefill`, the others to `decode`; why not, if it cannot be."""
        if split and not {"prefill", "decode"} <= {member.traits.pool for member in self.members}:
            return "there are no backends of both pools, prefill and decode"
        self.split = split
        return ""

    # -- a request ---------------------------------------------------------------------------------------------------------------------------

    def pick(self, ask: Ask, among: Collection[Backend] | None = None) -> Backend | None:
        """The backend it goes to, `among` those that have room (None: all have); None if none of them is well."""
        now_s = asyncio.get_running_loop().time()
        members = [
            member
            for member in self.members
            if member.healthy
            and member.breaker.can_take(now_s)
            and (among is None or member.backend in among)
            and (not member.backend.models or ask.model in member.backend.models)
        ]
        if self.variant:
            members = _prefer(members, lambda member: member.traits.variant == self.variant)
        if self.split:
            pool = "prefill" if ask.prompt_tokens > (ask.max_tokens or ask.predicted_tokens) else "decode"
            members = _prefer(members, lambda member: member.traits.pool == pool)
        if not members:
            return None
        if len(members) == 1:
            member = members[0]
        elif self.routing == "least_loaded":
            member = min(members, key=Member.load)
            tied = [one for one in members if one.load() == member.load()]
            member = self._in_turn(tied)
        elif self.routing == "prefix" and ask.session:
            member = self._by_session(members, ask.session)
        else:
            member = self._in_turn(members)
        if member.breaker.take(now_s):
            self._later(member.breaker.until_s)
        member.in_flight += 1
        member.picked += 1
        return member.backend

    def report(self, backend: Backend, error: BackendError | None) -> None:
        """It answered (None), or failed; the request is there no more."""
        member = self._by_backend[id(backend)]
        member.in_flight -= 1
        member.failed += error is not None
        loop = asyncio.get_running_loop()
        if not member.breaker.report(error, loop.time()):
            return
        if member.breaker.state == "open":
            self._later(member.breaker.until_s)
        self._changed()

    def release(self, backend: Backend) -> None:
        """The request is there no more, and says nothing of the backend."""
        member = self._by_backend[id(backend)]
        member.in_flight -= 1
        if member.breaker.release():
            self._changed()

    def _later(self, at_s: float) -> None:
        """Tell those who wait when a probe may go."""

        def call() -> None:
            self._timers.discard(timer)
            self._changed()

        timer = asyncio.get_running_loop().call_at(at_s, call)
        self._timers.add(timer)

    def _in_turn(self, members: list[Member]) -> Member:
        """Smooth weighted round robin, as nginx does it: shares by weight, and no bursts."""
        if len(members) == 1:
            return members[0]
        total = 0.0
        for member in members:
            member.credit += member.traits.weight
            total += member.traits.weight
        best = max(members, key=lambda member: member.credit)
        best.credit -= total
        return best

    def _by_session(self, members: list[Member], session: str) -> Member:
        """The first on the ring, from the session's point on, that is not over its share."""
        allowed = set(members)
        share = (
            BALANCE
            * (sum(member.in_flight for member in members) + 1)
            / sum(member.traits.weight for member in members)
        )
        at = bisect_right(self._points, _point(session))
        for i in range(len(self._points)):
            member = self._owners[(at + i) % len(self._points)]
            if member in allowed and member.in_flight < math.ceil(share * member.traits.weight):
                return member
        raise AssertionError("somebody is below BALANCE times the mean")


def _prefer(members: list[Member], wanted: Callable[[Member], bool]) -> list[Member]:
    """Those that are wanted; all, if none is."""
    return [member for member in members if wanted(member)] or members


def _point(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _ring(members: list[Member]) -> tuple[list[int], list[Member]]:
    pairs = [
        (_point(f"{member.backend.name}/{i}"), number)
        for number, member in enumerate(members)
        for i in range(max(1, round(_POINTS * member.traits.weight)))
    ]
    pairs.sort()
    return [point for point, _ in pairs], [members[number] for _, number in pairs]
