"""Checks of clients that leave, seen through the server's own gauges; and of more requests than it can take. Times are seconds."""

from __future__ import annotations

import asyncio
from typing import Any

from inferencegym.bench.conformance.check import MUST, SHOULD, Group, expect, skip
from inferencegym.bench.conformance.talk import NOTICE_S, Answer, Probe

GROUP = Group("leaving")
OVERLOAD = Group("overload")
REFUSED = (429, 503, 529)


async def _idle(probe: Probe) -> None:
    became, _, seen = await probe.until(lambda running, waiting: running + waiting == 0, 10.0)
    if not became:
        skip(f"somebody else keeps it busy: {seen[0]:g} run, {seen[1]:g} wait")


async def _forgotten(probe: Probe) -> str:
    # Who is forgotten by the engine at its next step, and by a gauge that is set each second, is forgotten in time.
    became, after_s, seen = await probe.until(lambda running, waiting: running + waiting == 0, 2 * NOTICE_S)
    expect(became, f"after {after_s:.1f} s {seen[0]:g} run and {seen[1]:g} wait", f"none within {2 * NOTICE_S:g} s")
    return f"seen after {after_s * 1e3:.0f} ms"


@GROUP.check("leave-stream", MUST)
async def leave_stream(probe: Probe) -> str:
    """A client that leaves a stream is no longer worked for."""
    await _idle(probe)
    async with probe.begun(probe.lasting()):
        await _runs(probe)
    return await _forgotten(probe)


@GROUP.check("leave-whole", MUST)
async def leave_whole(probe: Probe) -> str:
    """So is one that leaves before a whole answer."""
    await _idle(probe)
    await probe.left(probe.lasting(), asyncio.ensure_future(_runs(probe)))
    return await _forgotten(probe)


async def _runs(probe: Probe) -> None:
    became, after_s, seen = await probe.until(lambda running, waiting: running >= 1, 2.0)
    if not became:
        skip(f"its metrics show {seen[0]:g} running requests {after_s:.1f} s after one came")


@GROUP.check("leave-queue", MUST)
async def leave_queue(probe: Probe) -> str:
    """Clients that wait in the queue and leave are forgotten, all at once."""
    await _idle(probe)
    crowd = [asyncio.ensure_future(probe.post(probe.lasting())) for _ in range(probe.asked.burst)]
    try:
        became, _, seen = await probe.until(lambda running, waiting: waiting >= 1, 2.0)
    finally:
        for one in crowd:
            one.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
    told = await _forgotten(probe)
    if not became:
        skip(f"none of {probe.asked.burst} waited (--burst); all were forgotten: {told}")
    return f"{seen[1]:g} waited, {told}"


# --- too many --------------------------------------------------------------------------------------------------------------


async def _burst(probe: Probe) -> list[Answer | BaseException]:
    """The answers of many requests sent at once; made once."""
    if "burst" not in probe.shared:
        asked = [probe.post(probe.chat(max_tokens=64, ignore_eos=True)) for _ in range(probe.asked.burst)]
        probe.shared["burst"] = await asyncio.gather(*asked, return_exceptions=True)
    told: list[Answer | BaseException] = probe.shared["burst"]
    return told


async def _sent_away(probe: Probe) -> list[Answer]:
    answers = [one for one in await _burst(probe) if isinstance(one, Answer)]
    away = [one for one in answers if one.status != 200]
    if not away:
        skip(f"it took all {len(answers)} (--burst)")
    return away


@OVERLOAD.check("burst-answered", MUST)
async def burst_answered(probe: Probe) -> str:
    """Of many requests at once each gets an answer."""
    told = await _burst(probe)
    lost: list[Any] = [one for one in told if not isinstance(one, Answer)]
    expect(not lost, f"{len(lost)} of {len(told)} got none: {lost[:1]!r}", "an answer for each")
    counts: dict[int, int] = {}
    for one in told:
        if isinstance(one, Answer):
            counts[one.status] = counts.get(one.status, 0) + 1
    return ", ".join(f"{count} x {status}" for status, count in sorted(counts.items()))


@OVERLOAD.check("overload-status", MUST)
async def overload_status(probe: Probe) -> str:
    """Who is sent away is told 429, 503 or 529, in the envelope."""
    codes = {str(one.refused(*REFUSED)["code"]) for one in await _sent_away(probe)}
    return f"codes {', '.join(sorted(codes))}"


@OVERLOAD.check("overload-retry-after", SHOULD)
async def overload_retry_after(probe: Probe) -> str:
    """And when to come back."""
    hints = [one.headers.get("retry-after") for one in await _sent_away(probe)]
    expect(all(hint is not None and hint.isdigit() for hint in hints), f"Retry-After {hints[0]!r}", "whole seconds")
    return f"Retry-After {', '.join(sorted({str(hint) for hint in hints}))}"


@OVERLOAD.check("overload-over", MUST)
async def overload_over(probe: Probe) -> None:
    """After it, requests are answered as before."""
    await _burst(probe)
    (await probe.post(probe.chat())).ok()
