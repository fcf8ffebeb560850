"""Checks of a gateway whose upstream fails as the suite lets it: told honestly, passed on whole, and held against nobody else. Times are seconds."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from inferencegym.bench.conformance.check import MUST, SHOULD, CheckFailedError, CheckSkippedError, Group, expect, skip
from inferencegym.bench.conformance.marked import MarkedUpstream
from inferencegym.bench.conformance.talk import CHAT, NOTICE_S, Answer, Probe, Stream
from inferencegym.bench.conformance.upstream import Seen

GROUP = Group("upstream")
#: A gateway that has set its upstream aside for faults gets so long to take it back.
BACK_S = 20.0
BROKEN = (500, 502, 503, 504)


def _upstream(probe: Probe) -> MarkedUpstream:
    if probe.upstream is None:
        skip("needs a gateway in front of the suite's own server (--upstream PORT)")
    return probe.upstream


async def _well(probe: Probe) -> float:
    """Seconds until an ordinary request is answered; skips if none is, at once if that is known already."""
    clock = asyncio.get_running_loop().time
    begin = clock()
    limit_s = 0.0 if "given up" in probe.shared else BACK_S
    while (answer := await probe.post(probe.chat())).status != 200:
        if clock() - begin > limit_s:
            probe.shared["given up"] = True
            skip(f"since an earlier check ordinary requests are refused: {answer.said()}")
        await asyncio.sleep(0.2)
    probe.shared.pop("given up", None)
    return clock() - begin


async def _marked(probe: Probe, mark: str, stream: bool = False) -> tuple[Answer | Stream, list[Seen]]:
    """A request that the upstream answers as marked: the answer, and what came upstream for it."""
    upstream = _upstream(probe)
    await _well(probe)
    before = len(upstream.seen)
    body = probe.chat(f"[[{mark}]]")
    answer: Answer | Stream = await probe.stream(body) if stream else await probe.post(body)
    # A router may also ask for other pages with the same text, such as /tokenize.
    return answer, [s for s in upstream.seen[before:] if f"[[{mark}]]" in json.dumps(s.body) and s.path == CHAT]


def _tries(seen: list[Seen]) -> str:
    return f"{len(seen)} attempt{'s' if len(seen) != 1 else ''}"


@GROUP.check("pass-fields", SHOULD)
async def pass_fields(probe: Probe) -> None:
    """Fields that the gateway does not know reach the upstream."""
    upstream = _upstream(probe)
    await _well(probe)
    (await probe.post(probe.chat(a_field_of_the_future=7))).ok()
    body = upstream.seen[-1].body
    expect(body.get("a_field_of_the_future") == 7, f"fields {sorted(body)}", "a_field_of_the_future")


@GROUP.check("leave-stream-upstream", MUST)
async def leave_stream(probe: Probe) -> str:
    """A client that leaves a stream ends it upstream."""
    upstream = _upstream(probe)
    await _well(probe)
    count = len(upstream.seen)
    async with probe.begun(probe.chat("[[ok tokens=500 gap_s=0.02]]")):
        seen = await upstream.arrived(count + 1)
    return await _aborted(seen)


@GROUP.check("leave-early-upstream", MUST)
async def leave_early(probe: Probe) -> str:
    """So does one that leaves a stream before its first token."""
    return await _left(probe, stream=True)


@GROUP.check("leave-whole-upstream", MUST)
async def leave_whole(probe: Probe) -> str:
    """And one that leaves before a whole answer."""
    return await _left(probe, stream=False)


async def _left(probe: Probe, stream: bool) -> str:
    upstream = _upstream(probe)
    await _well(probe)
    coming = asyncio.ensure_future(upstream.arrived(len(upstream.seen) + 1))
    await probe.left(probe.chat("[[hang]]", stream=stream), coming)
    return await _aborted(await coming)


async def _aborted(seen: Seen) -> str:
    clock = asyncio.get_running_loop().time
    begin = clock()
    try:
        await asyncio.wait_for(seen.aborted.wait(), NOTICE_S)
    except TimeoutError:
        expect(False, f"the upstream still works {NOTICE_S:g} s later", "the connection upstream is closed")
    return f"after {(clock() - begin) * 1e3:.0f} ms"


@GROUP.check("error-event", MUST)
async def error_event(probe: Probe) -> str:
    """An error event from upstream reaches the client, and no [DONE] after it."""
    return await _told_in_band(probe, "error_event tokens=8 at=3")


@GROUP.check("dies-mid", MUST)
async def dies_mid(probe: Probe) -> str:
    """An upstream that dies in a stream: an error event, and no [DONE]."""
    return await _told_in_band(probe, "die_mid tokens=8 at=3")


@GROUP.check("ends-mid", SHOULD)
async def ends_mid(probe: Probe) -> str:
    """A stream that just ends, without finish_reason and [DONE]: an error event."""
    return await _told_in_band(probe, "end_mid tokens=8 at=3")


async def _told_in_band(probe: Probe, mark: str) -> str:
    got, seen = await _marked(probe, mark, stream=True)
    assert isinstance(got, Stream)
    expect(got.status == 200, got.whole.said(), "200 and the tokens that came")
    expect(not got.broken, f"the connection breaks after {len(got.events)} events: {got.broken}", "an error event")
    errors: list[Any] = [one for one in got.events if isinstance(one, dict) and "error" in one]
    expect(bool(errors), f"{len(got.events)} events, {'[DONE]' if got.done else 'a clean end'}", "an error event")
    expect(not got.done, "an error event, then [DONE]", "no [DONE]: clients take it for success")
    return f"{len(got.events) - 1} pieces, then {str(errors[0]['error'])[:60]}; {_tries(seen)}"


@GROUP.check("garbage", MUST)
async def garbage(probe: Probe) -> str:
    """What is no answer at all becomes a 5xx."""
    answer, seen = await _marked(probe, "garbage_body")
    assert isinstance(answer, Answer)
    answer.refused(*BROKEN)
    return f"{answer.status}, {_tries(seen)}"


@GROUP.check("dies-before", MUST)
async def dies_before(probe: Probe) -> str:
    """An upstream that dies before it answers becomes a 5xx."""
    answer, seen = await _marked(probe, "die")
    assert isinstance(answer, Answer)
    answer.refused(*BROKEN)
    return f"{answer.status}, {_tries(seen)}"


@GROUP.check("dies-before-stream", MUST)
async def dies_before_stream(probe: Probe) -> str:
    """The same for a stream: a status, not an empty stream."""
    got, seen = await _marked(probe, "die", stream=True)
    assert isinstance(got, Stream)
    got.whole.refused(*BROKEN)
    return f"{got.status}, {_tries(seen)}"


@GROUP.check("pass-400", MUST)
async def pass_400(probe: Probe) -> str:
    """What the upstream refuses with 400 is refused with 400, and tried once."""
    answer, seen = await _marked(probe, "status status=400 code=too_odd")
    assert isinstance(answer, Answer)
    answer.refused(400)
    expect(len(seen) == 1, _tries(seen), "one")
    return _tries(seen)


@GROUP.check("breaker-400", MUST)
async def breaker_400(probe: Probe) -> None:
    """Ten bad requests of one client take the upstream from nobody."""
    await _held_against(probe, "status status=400")


@GROUP.check("pass-429", MUST)
async def pass_429(probe: Probe) -> str:
    """429 stays 429, and Retry-After with it."""
    return await _kept(probe, 429)


@GROUP.check("pass-503", MUST)
async def pass_503(probe: Probe) -> str:
    """503 stays 503, and Retry-After with it."""
    return await _kept(probe, 503)


async def _kept(probe: Probe, status: int) -> str:
    answer, seen = await _marked(probe, f"status status={status} retry_after=7")
    assert isinstance(answer, Answer)
    answer.refused(status)
    hint = answer.headers.get("retry-after")
    expect(hint is not None, f"no Retry-After ({_tries(seen)})", "Retry-After: 7")
    expect(hint == "7", f"Retry-After {hint!r}", "7")
    return _tries(seen)


@GROUP.check("breaker-busy", SHOULD)
async def breaker_busy(probe: Probe) -> None:
    """Nor do ten answers 503 with Retry-After: it is busy, not broken."""
    await _held_against(probe, "status status=503 retry_after=1")


async def _held_against(probe: Probe, mark: str) -> None:
    _upstream(probe)
    await _well(probe)
    for _ in range(10):
        await probe.post(probe.chat(f"[[{mark}]]"))
    answer = await probe.post(probe.chat())
    expect(answer.status == 200, f"then an ordinary request: {answer.said()}", "200")


@GROUP.check("recovers", MUST)
async def recovers(probe: Probe) -> str:
    """After all that an ordinary request is answered again."""
    _upstream(probe)
    try:
        return f"after {await _well(probe):.1f} s"
    except CheckSkippedError as told:
        raise CheckFailedError(str(told), "an answer") from told
