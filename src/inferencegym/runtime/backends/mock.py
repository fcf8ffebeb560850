"""An engine that is not there: our own engine with a latency profile, in real, scaled or virtual time, behind the same port as real ones.

One timer serves the whole engine: it fires when a step ends, the step's tokens go out, and once everybody has answered to that (a freed seat is taken
again at the same instant, as in `simulate`) the next step is planned. If the process is late, steps are caught up with: no drift.
Engine times are picoseconds since the start, all others seconds of `clock`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from inferencegym.engine.codes import Ending
from inferencegym.engine.deployment import Deployment
from inferencegym.engine.live import End, LiveEngine, News, Ticket
from inferencegym.engine.loop import FAR_PS
from inferencegym.engine.profile import Profile, load_profile
from inferencegym.engine.settings import EngineSettings
from inferencegym.ground.errors import ConfigError
from inferencegym.runtime.backends.mock_answer import MockAnswer
from inferencegym.runtime.backends.mock_lengths import Failures, Lengths, TellTale
from inferencegym.runtime.backends.mock_prefix import prefix_keys
from inferencegym.runtime.ports import Ask, BackendError, Capabilities, Clock, Load
from inferencegym.runtime.settings import BackendSettings

#: Tenants that the engine tells apart (order=vtc); later ones share the last number.
TENANTS = 64
#: When the engine is idle and its clock beyond this (13 days), it starts again from 0.
_OLD_PS = 1 << 60
_INT16 = (-(1 << 15), (1 << 15) - 1)
_ABORTED, _OK = int(Ending.ABORTED), int(Ending.OK)

FIELDS = frozenset({"ignore_eos", "min_tokens"})
KNOBS = frozenset({"batch_cap", "kv_budget_fraction", "speculation_depth", "priority_routing"})


class MockBackend:
    """Answers as an engine of this deployment would, with text that means nothing."""

    def __init__(
        self,
        name: str = "main",
        *,
        deployment: Deployment | None = None,
        settings: EngineSettings | None = None,
        profile: Profile | None = None,
        models: tuple[str, ...] = (),
        time_scale: float = 1.0,
        failures: Mapping[str, float] | None = None,
        lengths: Lengths | None = None,
        seed: int = 0,
        clock: Clock | None = None,
    ) -> None:
        """`time_scale`: how many times faster than real time; `failures`: chance of each type (`mock_lengths.FAILURES`); `clock`: as the loop's."""
        self.name = name
        self.deployment = deployment or Deployment()
        self.settings = settings or EngineSettings()
        self.profile = profile or load_profile(self.deployment.gpu_facts.name)
        self.models = models or (self.deployment.model_facts.name,)
        self.seed = seed
        if time_scale <= 0:
            raise ConfigError(f"backends.{name}.time_scale", f"{time_scale} is too slow", allowed="above 0")
        self._ps_per_s = 1e12 * time_scale
        self._failures = Failures(failures or {}, seed, name)
        self._lengths = lengths or Lengths()
        self._lengths.begin(seed, name)
        self._machine = self.deployment.machine(self.settings, self.profile)
        self._clock = clock
        self._base_order = self.settings.order
        self.engine = self._new_engine()
        self._max_model_len = self.engine.max_model_len
        self._tenants: dict[str, int] = {}
        self._answers: set[MockAnswer] = set()
        self._started = False
        self._number = 0

    @classmethod
    def of(cls, one: BackendSettings, *, seed: int = 0, clock: Clock | None = None) -> MockBackend:
        """From the settings of a backend of kind mock."""
        at = f"backends.{one.name}"
        deployment = Deployment(model=one.model or "llama-3.1-8b", gpu=one.gpu, tensor_parallel=one.gpus)
        known: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in one.engine.items()
        }
        for name in ("max_num_seqs", "max_model_len"):
            if getattr(one, name) is not None:
                if name in known:
                    raise ConfigError(f"{at}.engine.{name}", f"{at}.{name} says it too", allowed="one of the two")
                known[name] = getattr(one, name)
        try:
            settings = EngineSettings().with_(**known)
        except TypeError as error:
            raise ConfigError(
                f"{at}.engine", f"has a value of the wrong type ({error})", allowed="numbers and names"
            ) from error
        profile = load_profile(one.profile) if one.profile else None
        served = one.served_models or ((one.model,) if one.model else ())
        return cls(
            one.name, deployment=deployment, settings=settings, profile=profile, models=served, time_scale=one.time_scale,
            failures=one.failures, seed=seed, clock=clock,
        )  # fmt: skip

    def _new_engine(self) -> LiveEngine:
        return LiveEngine(self._machine, self.settings, seed=self.seed, tenants=TENANTS)

    # --- its life --------------------------------------------------------------------------------------------------------

    def capabilities(self) -> Capabilities:
        """Seats as they are now; chat and completions."""
        seats = self.settings.max_num_seqs or self._machine.max_num_seqs
        seats *= self._machine.replicas
        held = self._machine.kv_blocks * self._machine.block_size * self._machine.replicas
        return Capabilities(
            fields=FIELDS, native_concurrency=seats, knobs=KNOBS, max_model_len=self._max_model_len, kv_tokens=held
        )

    async def start(self) -> None:
        """Time begins. The first time on a machine the kernels are compiled here (seconds)."""
        if self._started:
            return
        loop = asyncio.get_running_loop()
        self.engine.advance(0)
        self._loop = loop
        self.now_s = self._clock or loop.time
        self._soon: Callable[[Callable[[], None]], asyncio.Handle] = getattr(loop, "call_last", loop.call_soon)
        self._start_s = self.now_s()
        self._step: asyncio.TimerHandle | None = None
        self._step_ps = FAR_PS
        self._plan: asyncio.Handle | None = None
        self._held_ps: int | None = None
        self._latest_ps = 0
        self._started = True

    async def stop(self) -> None:
        """Requests under way break off."""
        if not self._started:
            return
        self._started = False
        for handle in (self._step, self._plan):
            if handle is not None:
                handle.cancel()
        for answer in list(self._answers):
            answer.fail(BackendError(f"the backend '{self.name}' was stopped", status=503, fault=False))
        self._answers.clear()
        self.engine = self._new_engine()

    async def healthy(self) -> bool:
        """Whether it runs."""
        return self._started

    # --- requests --------------------------------------------------------------------------------------------------------

    def submit(self, ask: Ask) -> MockAnswer:
        """A request arrives at the engine."""
        answer = MockAnswer(self, ask, self._number)
        self._number += 1
        if not self._started:
            answer.fail(BackendError(f"the backend '{self.name}' is not running", status=503, sent=False))
            return answer
        answer.scheduled_s = self.now_s()
        failure = self._failures.draw()
        if failure is not None:
            self._spoil(answer, failure)
        else:
            self._enter(answer)
        return answer

    def _spoil(self, answer: MockAnswer, failure: TellTale) -> None:
        """Make a request go wrong in one way."""
        if failure.error is not None:
            answer.fail(failure.error)
        elif failure.delay_s:
            answer.timer = self._loop.call_later(failure.delay_s, self._enter, answer)
        elif failure.dies_after is not None:
            self._enter(answer)
            answer.die_after(failure.dies_after)
        # What is left hangs: it never comes to the engine, and ends when its client does.

    def _enter(self, answer: MockAnswer) -> None:
        ask, fields = answer.ask, answer.ask.fields
        answer.timer = None
        room = self._max_model_len - ask.prompt_tokens
        if room < 1:
            told = f"the prompt has {ask.prompt_tokens} tokens; the model takes {self._max_model_len}, prompt and answer together"
            answer.fail(BackendError(told, status=400, code="context_length_exceeded", fault=False, sent=False))
            return
        limit = room if ask.max_tokens is None else min(ask.max_tokens, room)
        ignores_end = bool(getattr(fields, "ignore_eos", False))
        answer.target = tokens = (
            limit if ignores_end else self._lengths.draw(getattr(fields, "min_tokens", None) or 1, limit)
        )
        answer.cut = tokens == limit
        if self.engine.now_ps > _OLD_PS and self.engine.alive == 0 and self._step is None and self._plan is None:
            self._begin_again()
        at_ps = self._at_ps()
        self._latest_ps = at_ps
        slo_s = ask.slo_ttft_s
        self._answers.add(answer)
        answer.ticket = self.engine.submit(
            at_ps, max(ask.prompt_tokens, 1), tokens, owner=answer, watch=ask.stream, budget_tokens=min(ask.max_tokens or 0, room),
            priority=min(max(ask.priority, _INT16[0]), _INT16[1]), tenant=self._tenant(ask.tenant),
            keys=prefix_keys(ask, self._machine.block_size) if self.settings.prefix_caching else (),
            **({"slo_ttft_ps": int(slo_s * 1e12)} if slo_s < 3600.0 else {}),
        )  # fmt: skip
        # A step in flight ends with a plan that will see it. An idle replica plans at once.
        if self._plan is None and (self._step_ps >= FAR_PS or self._machine.replicas > 1):
            self._plan = self._soon(self._on_plan)

    def _begin_again(self) -> None:
        self.engine = self._new_engine()
        self._start_s = self.now_s()
        self._latest_ps = 0
        self._step_ps = FAR_PS

    def _tenant(self, name: str) -> int:
        known = self._tenants.get(name)
        if known is None:
            if len(self._tenants) >= TENANTS:
                return TENANTS - 1
            known = self._tenants[name] = len(self._tenants)
        return known

    def drop(self, answer: MockAnswer) -> None:
        """The client of a request is gone, or the mock lets it die: its blocks and seat are free."""
        self._answers.discard(answer)
        ticket = answer.ticket
        if ticket is not None and ticket.row >= 0 and self._started:
            answer.ticket = None
            at_ps = self._at_ps()
            # A plan that is to come shall not come before this.
            self._latest_ps = max(self._latest_ps, at_ps)
            self._told(self.engine.abort(ticket, at_ps))
            if self._plan is None and self._held_ps is None:
                self._set_timer()

    # --- time ------------------------------------------------------------------------------------------------------------

    def _at_ps(self) -> int:
        """The engine's time: the instant that is being gone through, else the clock's, but never beyond what is still to happen."""
        if self._held_ps is not None:
            return self._held_ps
        now_ps = round((self.now_s() - self._start_s) * self._ps_per_s)
        return min(max(now_ps, self._latest_ps, self.engine.now_ps), self._step_ps)

    def seconds(self, ps: int) -> float:
        """A time of the engine on the clock."""
        return self._start_s + ps / self._ps_per_s

    def _on_step(self) -> None:
        """A step has ended: its tokens go out; when all has been said to that, the next one is planned."""
        self._step = None
        at_ps = self._held_ps = self._step_ps
        news = self.engine.commit(at_ps)
        for ticket, tokens, scheduled_ps in news.given:
            ticket.owner.more(tokens, scheduled_ps)
        self._told(news)
        if self._plan is None:
            self._plan = self._soon(self._on_plan)

    def _on_plan(self) -> None:
        """The other half of the instant."""
        self._plan = None
        at_ps = self._latest_ps if self._held_ps is None else self._held_ps
        self._held_ps = None
        self._told(self.engine.plan(at_ps))
        self._set_timer()

    def _told(self, news: News) -> None:
        for ticket, end in news.ended:
            self._ended(ticket, end)

    def _set_timer(self) -> None:
        next_ps = self.engine.next_ps
        if next_ps == self._step_ps and self._step is not None:
            return
        if self._step is not None:
            self._step.cancel()
            self._step = None
        self._step_ps = next_ps
        if next_ps < FAR_PS:
            self._step = self._loop.call_at(self.seconds(next_ps), self._on_step)

    def _ended(self, ticket: Ticket, end: End) -> None:
        answer: MockAnswer = ticket.owner
        self._answers.discard(answer)
        if end.outcome == _OK:
            answer.finish(end)
        elif end.outcome != _ABORTED:
            told = f"the request's KV does not fit into the backend's memory ({answer.ask.prompt_tokens} prompt tokens)"
            answer.fail(BackendError(told, status=400, code="context_length_exceeded", fault=False))

    # --- looking and steering --------------------------------------------------------------------------------------------

    def load(self) -> Load:
        """Queue, seats and KV as after the last step."""
        gauges = self.engine.live_gauges()
        return Load(
            running=gauges.running,
            waiting=gauges.waiting,
            kv_used_fraction=max(gauges.kv_used_blocks, 0) / max(gauges.kv_pool_blocks, 1),
            preemptions=gauges.preemptions,
            more=Totals(self.engine),
        )

    def apply(self, knobs: Mapping[str, object]) -> Mapping[str, str]:
        """Seats, KV share, draft length and priority order change from the next step on; the rest is fixed at the start."""
        refused: dict[str, str] = {}
        changes: dict[str, object] = {}
        for knob, value in knobs.items():
            if knob not in KNOBS:
                refused[knob] = f"the mock backend '{self.name}' cannot change it while it runs"
            elif knob == "priority_routing":
                changes["order"] = (
                    "priority" if value else ("fcfs" if self._base_order == "priority" else self._base_order)
                )
            else:
                changes[_SETTING[knob]] = value
        for name, value in changes.items():
            knob = _KNOB[name]
            try:
                self.engine.change(**{name: value})
            except ConfigError as error:
                refused[knob] = str(error)
        self.settings = self.engine.settings
        return refused


class Totals(Mapping[str, float]):
    """The engine's counters, added up when somebody asks: routers look at loads all the time, and never at these."""

    __slots__ = ("_engine",)

    def __init__(self, engine: LiveEngine) -> None:
        self._engine = engine

    def __getitem__(self, name: str) -> float:
        if name not in MORE:
            raise KeyError(name)
        return float(self._engine.total(name))

    def __iter__(self) -> Iterator[str]:
        return iter(MORE)

    def __len__(self) -> int:
        return len(MORE)


#: Counters of the engine that `Load.more` has, since the start.
MORE = ("evicted_blocks", "hit_tokens", "prefill_tokens", "emitted_tokens", "drafted", "accepted", "steps", "swaps")
_SETTING = {
    "batch_cap": "max_num_seqs",
    "kv_budget_fraction": "kv_budget_fraction",
    "speculation_depth": "speculation_depth",
}
_KNOB = {setting: knob for knob, setting in _SETTING.items()} | {"order": "priority_routing"}
