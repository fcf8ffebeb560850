"""Checks of a server's end: SIGTERM while a stream is under way. Times are seconds; the server is gone afterwards, so these come last."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass

import aiohttp

from inferencegym.bench.conformance.check import MUST, SHOULD, Group, expect, skip
from inferencegym.bench.conformance.talk import Answer, Probe, events_of

GROUP = Group("drain")
#: What a server gets to hear the signal, to answer while it drains, and to close when its last stream has ended.
HEAR_S, ANSWER_S, CLOSE_S = 0.5, 5.0, 10.0


@dataclass(frozen=True, slots=True)
class End:
    """What was seen of it. An answer that is None was refused by the machine: nobody listens any more."""

    new: Answer | None
    ready: Answer | None
    alive: Answer | None
    had_probes: tuple[bool, bool]
    """Whether /readyz and /livez were there before."""
    got: bytes
    broken: str
    under_way: bool
    """Whether the stream was still running when the others were looked at."""
    closed: bool


async def _end(probe: Probe) -> End:
    """Once: a stream begins, SIGTERM, three looks, the stream's end, the port's."""
    if probe.asked.pid is None:
        skip("needs the server's process, which ends by it (--pid PID)")
    if "end" not in probe.shared:
        # A task of its own: the signal is sent once, whatever becomes of the check that was first.
        probe.shared["end"] = asyncio.ensure_future(_seen(probe, probe.asked.pid))
    end: End = await asyncio.shield(probe.shared["end"])
    if not end.under_way:
        skip("the stream was over before the server was asked again")
    return end


async def _seen(probe: Probe, pid: int) -> End:
    had = [await probe.call("GET", path) for path in ("/readyz", "/livez")]
    got, broken = b"", ""
    async with probe.session.post(f"{probe.asked.url}/v1/chat/completions", json=probe.lasting(stream=True)) as answer:
        got += await answer.content.readany()
        os.kill(pid, signal.SIGTERM)
        # There is no event to wait for: a server may hear a signal without saying so.
        await asyncio.sleep(HEAR_S)
        new = await _try(probe, "POST", "/v1/chat/completions", probe.chat())
        ready = await _try(probe, "GET", "/readyz" if had[0].status == 200 else "/health", None)
        alive = await _try(probe, "GET", "/livez", None)
        under_way = True
        try:
            got += answer.content.read_nowait()
            under_way = b"[DONE]" not in got
            async with asyncio.timeout(probe.asked.limit_s / 2):
                async for part in answer.content.iter_any():
                    got += part
        except (aiohttp.ClientError, ConnectionError) as error:
            broken = type(error).__name__
        except TimeoutError:
            broken = f"nothing more came for {probe.asked.limit_s / 2:g} s"
    closed, clock = False, asyncio.get_running_loop().time
    by = clock() + CLOSE_S
    while not closed and clock() < by:
        closed = await _try(probe, "GET", "/livez", None) is None
        await asyncio.sleep(0.1)
    return End(new, ready, alive, (had[0].status == 200, had[1].status == 200), got, broken, under_way, closed)


async def _try(probe: Probe, method: str, path: str, body: object) -> Answer | None:
    # A connection of its own: one that is kept open says nothing of whether new ones are taken.
    try:
        async with asyncio.timeout(ANSWER_S):
            return await probe.call(method, path, body, headers={"connection": "close"})
    except TimeoutError:
        return Answer(0, {}, f"no answer within {ANSWER_S:g} s".encode())
    except (aiohttp.ClientError, ConnectionError):
        return None


@GROUP.check("drain-stream", MUST)
async def drain_stream(probe: Probe) -> str:
    """After SIGTERM a stream that is under way goes on to its end."""
    end = await _end(probe)
    datas = events_of(end.got)
    expect(not end.broken, f"after {len(datas)} events: {end.broken}", "the whole stream")
    expect("[DONE]" in datas, f"{len(datas)} events and no [DONE]: {datas[-1:]}", "the whole stream")
    return f"{len(datas)} events"


@GROUP.check("drain-refuses", MUST)
async def drain_refuses(probe: Probe) -> str:
    """New requests are refused: 503 in the envelope, or no connection."""
    new = (await _end(probe)).new
    if new is None:
        return "no connection"
    return f"code {new.refused(503)['code']}"


@GROUP.check("drain-ready", SHOULD)
async def drain_ready(probe: Probe) -> str:
    """Readiness says 503."""
    end = await _end(probe)
    if end.ready is None:
        return "no connection"
    expect(end.ready.status == 503, end.ready.said(), "503")
    return "/readyz" if end.had_probes[0] else "/health"


@GROUP.check("drain-alive", SHOULD)
async def drain_alive(probe: Probe) -> None:
    """Liveness stays 200, so that nobody ends it early."""
    end = await _end(probe)
    if not end.had_probes[1]:
        skip("it has no /livez")
    expect(end.alive is not None, "no connection", "200")
    assert end.alive is not None
    expect(end.alive.status == 200, end.alive.said(), "200")


@GROUP.check("drain-ends", MUST)
async def drain_ends(probe: Probe) -> None:
    """When the last stream has ended the port closes."""
    expect((await _end(probe)).closed, f"still open {CLOSE_S:g} s later", "closed")
