"""A load test: requests of a workload sent to a server at their times (open loop) or so many at once (closed loop), and what the client saw.

Latency counts from the time a request was due, not from when the generator got round to it: a stalled generator or server hides nothing
(no coordinated omission). The generator's own delay is the records' `queue_s`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from inferencegym.bench.client import Client, Seen, Shot, Target
from inferencegym.bench.prompts import Prompts
from inferencegym.ground.errors import ConfigError
from inferencegym.ground.rng import stream
from inferencegym.metrics.itl import ItlHistogram
from inferencegym.metrics.record import Outcome, Records
from inferencegym.workload import Workload

Floats = npt.NDArray[np.float64]
#: Requests under way at most, in the open loop: beyond it sending waits, which the records show.
MOST_IN_FLIGHT = 2048
TIMELINE_POINTS = 200
#: Longest answer asked for where a workload does not say one.
_DEFAULT_OUTPUT = 128
Progress = Callable[[int, int, int], None]
"""Called with (done, under way, in all)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send when."""

    workload: Workload
    concurrency: int | None = None
    """So many at once, the next when one ends (arrival times are not used); None: each at its time."""
    most_in_flight: int = MOST_IN_FLIGHT
    warmup: int = 0
    """The first so many requests are sent and not counted."""
    hang_up_share: float = 0.0
    """Share of requests whose client leaves before the end."""
    hang_up_after_s: float = 0.5
    seed: int = 0
    same_prompts: bool = False
    """Send the texts that any run of this seed sends; else nothing is in a server's prefix cache from an earlier run."""

    def __post_init__(self) -> None:
        if self.concurrency is not None and self.concurrency < 1:
            raise ConfigError("concurrency", f"{self.concurrency}", allowed="1 or more")
        if self.most_in_flight < 1:
            raise ConfigError("max-in-flight", f"{self.most_in_flight}", allowed="1 or more")
        if not 0 <= self.warmup < len(self.workload):
            raise ConfigError("warmup", f"{self.warmup} of {len(self.workload)} requests", allowed="0 or more, fewer than all")  # fmt: skip
        if not 0 <= self.hang_up_share <= 1:
            raise ConfigError("cancel", f"{self.hang_up_share}", allowed="a share, 0 to 1")


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a load test showed."""

    records: Records
    """One row a counted request, seen by the client; `row` is its row in the workload."""
    itl: ItlHistogram
    request_ids: tuple[str, ...]
    """The `x-request-id` of each record, to join with the server's own log."""
    errors: Mapping[str, int]
    """What went wrong, and how often."""
    workload: Workload
    timeline: Mapping[str, Floats] = field(default_factory=dict)
    """t_s, running (tokens flow), waiting (sent, no token yet), output_tps."""


async def run(plan: Plan, target: Target, progress: Progress | None = None) -> LoadResult:
    """Send everything, wait for the last answer. What was asked and has not ended when this is cancelled is hung up."""
    async with Client(target) as client:
        return await _Run(plan, client, progress).all()


class _Run:
    """One test under way."""

    def __init__(self, plan: Plan, client: Client, progress: Progress | None) -> None:
        self.plan, self.client, self.progress = plan, client, progress
        self.n = len(plan.workload)
        self.due = np.full(self.n, np.nan)
        self.seen: list[Seen | None] = [None] * self.n
        self.ids = [""] * self.n
        # One prefix a run, so that ids are told apart in a server's log.
        self.name = uuid.uuid4().hex[:8]
        self.prompts = Prompts(plan.workload, plan.seed, "" if plan.same_prompts else self.name)
        self.leaves = stream(plan.seed, "bench.hang_up").random(self.n) < plan.hang_up_share
        self.followers: dict[int, list[int]] = {}
        self.done = self.under_way = 0
        self.seats = asyncio.Semaphore(plan.concurrency or plan.most_in_flight)

    async def all(self) -> LoadResult:
        loop = asyncio.get_running_loop()
        self.begin_s = loop.time()
        async with asyncio.TaskGroup() as group:
            if self.plan.concurrency is None:
                await self._open(group)
            else:
                for row in range(self.n):
                    await self.seats.acquire()
                    group.create_task(self._one(row, loop.time()))
        return self._result()

    async def _open(self, group: asyncio.TaskGroup) -> None:
        work, loop = self.plan.workload, asyncio.get_running_loop()
        self.group = group
        for row in np.flatnonzero(work.after >= 0).tolist():
            self.followers.setdefault(int(work.after[row]), []).append(row)
        for row in np.flatnonzero(work.after < 0).tolist():
            due = self.begin_s + float(work.arrival_s[row])
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            group.create_task(self._seated(row, due))

    async def _seated(self, row: int, due: float) -> None:
        await self.seats.acquire()
        await self._one(row, due)

    async def _follow(self, row: int, due: float) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, due - loop.time()))
        await self._seated(row, due)

    async def _one(self, row: int, due: float) -> None:
        work = self.plan.workload
        budget, length = int(work.output_budget_tokens[row]), int(work.output_tokens[row])
        self.ids[row] = f"{self.name}-{row}"
        headers = [("x-slo-class", work.slo_class_names[work.slo_class[row]])] if len(work.slo_class_names) > 1 else []
        if len(work.tenant_names) > 1:
            headers.append(("x-tenant", work.tenant_names[work.tenant[row]]))
        if work.session_id[row] >= 0:
            headers.append(("x-session-affinity", str(work.session_id[row])))
        shot = Shot(
            prompt=self.prompts.text(row), max_tokens=length or budget or _DEFAULT_OUTPUT, request_id=self.ids[row], priority=int(work.priority[row]),
            headers=tuple(headers), hang_up_after_s=self.plan.hang_up_after_s if self.leaves[row] else None,
        )  # fmt: skip
        self.under_way += 1
        self._say()
        seen = await self.client.ask(shot)
        self.seats.release()
        self.due[row], self.seen[row] = due, seen
        self.under_way -= 1
        self.done += 1
        self._say()
        for follower in self.followers.get(row, ()):
            self.group.create_task(self._follow(follower, seen.finish_s + float(work.think_s[follower])))

    def _say(self) -> None:
        if self.progress is not None:
            self.progress(self.done, self.under_way, self.n)

    def _result(self) -> LoadResult:
        work = self.plan.workload
        rows = np.arange(self.plan.warmup, self.n)
        seen = [one for one in self.seen[self.plan.warmup :] if one is not None]
        assert len(seen) == len(rows), "every request has ended"
        first = min(float(np.nanmin(self.due[rows])), min(one.sent_s for one in seen))
        sent = np.array([one.sent_s for one in seen]) - first
        arrival = np.minimum(self.due[rows] - first, sent)
        records = Records.of(
            observer="client",
            row=rows,
            arrival_s=arrival,
            enqueued_s=sent,
            scheduled_s=sent,
            first_token_s=np.array([one.first_token_s for one in seen]) - first,
            finish_s=np.array([one.finish_s for one in seen]) - first,
            prompt_tokens=[work.prompt_tokens[row] if one.prompt_tokens is None else one.prompt_tokens for row, one in zip(rows, seen, strict=True)],
            output_tokens=[one.pieces if one.output_tokens is None else one.output_tokens for one in seen],
            cached_tokens=[one.cached_tokens for one in seen],
            outcome=[int(_outcome(one)) for one in seen],
            slo_class=work.slo_class[rows],
            priority=work.priority[rows],
            tenant=work.tenant[rows],
        )  # fmt: skip
        gaps = [np.asarray(one.gaps_s) for one in seen]
        ps = np.rint(np.maximum(np.concatenate(gaps) if gaps else np.zeros(0), 0.0) * 1e12).astype(np.int64)
        errors = Counter(one.error for one in seen if one.error)
        ids = tuple(self.ids[row] for row in rows.tolist())
        return LoadResult(records, ItlHistogram.of_gaps(ps), ids, dict(errors), work, timeline_of(records))


def _outcome(seen: Seen) -> Outcome:
    """An answer without a token (a backend that ended at once) is none."""
    return Outcome.FAILED if seen.outcome == Outcome.OK and seen.pieces == 0 else seen.outcome


def timeline_of(records: Records, points: int = TIMELINE_POINTS) -> dict[str, Floats]:
    """Requests waiting for their first token, requests whose tokens flow, and tokens a second, at evenly spaced times."""
    if len(records) == 0:
        return {}
    times = np.linspace(0.0, float(records.finish_s.max()), points)
    began = np.isfinite(records.first_token_s)
    first = np.where(began, records.first_token_s, records.finish_s)
    waiting = _between(records.enqueued_s, first, times)
    running = _between(first, records.finish_s, times)
    # A request's tokens are spread evenly from its first to its last.
    lasting = np.maximum(records.finish_s - first, 1e-9)[began]
    speed = records.output_tokens[began] / lasting
    starts, ends = np.sort(first[began]), np.sort(records.finish_s[began])
    up = np.concatenate([[0.0], np.cumsum(speed[np.argsort(first[began], kind="stable")])])
    down = np.concatenate([[0.0], np.cumsum(speed[np.argsort(records.finish_s[began], kind="stable")])])
    tps = up[np.searchsorted(starts, times, side="right")] - down[np.searchsorted(ends, times, side="right")]
    return {"t_s": times, "waiting": waiting, "running": running, "output_tps": np.maximum(tps, 0.0)}


def _between(begin: Floats, end: Floats, times: Floats) -> Floats:
    """How many intervals [begin, end) each time lies in."""
    begun = np.searchsorted(np.sort(begin), times, side="right")
    ended = np.searchsorted(np.sort(end), times, side="right")
    found: Floats = (begun - ended).astype(np.float64)
    return found


def synthetic(
    *, requests: int, rate_rps: float | None, prompt_tokens: int, output_tokens: int, burstiness: float = 1.0, seed: int = 0
) -> Workload:  # fmt: skip
    """Requests of one size: gamma arrivals (burstiness 1: Poisson; 0: a metronome; the gaps' variation squared), or all at once where no rate is given."""
    for name, value, least in (("requests", requests, 1), ("prompt-tokens", prompt_tokens, 1), ("output-tokens", output_tokens, 1)):  # fmt: skip
        if value < least:
            raise ConfigError(name, f"{value}", allowed=f"{least} or more")
    if burstiness < 0:
        raise ConfigError("burstiness", f"{burstiness}", allowed="0 or more")
    arrival: Any = np.zeros(requests)
    if rate_rps is not None:
        if rate_rps <= 0:
            raise ConfigError("rate", f"{rate_rps} requests per second", allowed="more than 0")
        chance = stream(seed, "bench.arrivals")
        gaps = (
            np.ones(requests) if burstiness == 0 else chance.gamma(1.0 / burstiness, burstiness, requests)
        ) / rate_rps
        arrival = np.cumsum(gaps) - gaps[0]
    return Workload.of(
        arrival_s=arrival, prompt_tokens=np.full(requests, prompt_tokens), output_tokens=np.full(requests, output_tokens),
        name="synthetic", source=f"{prompt_tokens} tokens in, {output_tokens} out",
    )  # fmt: skip
