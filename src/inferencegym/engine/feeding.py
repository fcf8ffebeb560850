"""The engine's loop for requests that come while it runs: one instant in two halves, and what each request was given since it was last told.

First half, `COMMIT`: steps that end now are committed, and their tokens are out. Second half, `PLAN`: whoever came until then arrives, and the
next steps begin. Between the two a caller can answer what it was given, at the same instant, as a closed loop does in a simulation.
Times in picoseconds.
"""

from __future__ import annotations

import numpy as np

from inferencegym.engine.codes import Phase
from inferencegym.engine.commit import commit
from inferencegym.engine.leaving import abort, find_request
from inferencegym.engine.loop import instant, next_event_ps
from inferencegym.engine.memory import ASKED, TIMES, State, Structured, core_at, header_from, pointer, slot_at
from inferencegym.ground.jit import kernel

COMMIT, PLAN, ADVANCE, ABORT = 0, 1, 2, 3
#: What `feed` answers beside Stop codes: done; the request to abort has not arrived yet.
DONE, NOT_HERE = -1, -2

#: The addresses a live engine hands over, and what `feed` tells of it.
LIVE = np.dtype(
    [
        (name, np.int64)
        for name in (
            "arena_at", "asked_at", "times_at", "given_at", "news_at",
            "next_ps", "news", "ended", "running", "waiting", "used_blocks", "pool_blocks", "preemptions",
        )
    ],
    align=True,
)  # fmt: skip

#: Tokens that the request of a row was told of; -1: it wants to hear of its end only.
GIVEN = np.dtype([("tokens", np.int32)])
#: A request that was given new tokens.
NEWS = np.dtype([("row", np.int64), ("tokens", np.int64), ("scheduled_ps", np.int64)], align=True)

_FREE, _PADDING = int(Phase.FREE), int(Phase.PADDING)
_asked_at, _times_at = pointer(ASKED), pointer(TIMES)
_given_at, _news_at = pointer(GIVEN), pointer(NEWS)


@kernel
def feed(live: Structured, at: int, what: int, row: int) -> int:
    """Let everything before `at` happen, then half an instant (COMMIT, PLAN) or an abort of `row` at `at`; ADVANCE: nothing more.

    live : LIVE[1], counts are written. Records of requests that ended lie in the buffer of records from its beginning. There is room for all.
    """
    me = live[0]
    s = header_from(me["arena_at"])
    w = _asked_at(me["asked_at"], np.int64(0))
    t = _times_at(me["times_at"], np.int64(0))
    s["out_len"] = 0
    code = DONE
    while code == DONE:
        due = next_event_ps(s, w)
        if due >= at:
            break
        code = instant(s, w, t, due)
    if code == DONE and what != ADVANCE:
        s["now_ps"] = at
        if what == COMMIT:
            for r in range(s["replicas"]):
                if core_at(s, r)["step_end_ps"] == at:
                    commit(s, w, t, r)
        elif what == PLAN:
            code = instant(s, w, t, at)
        else:
            r, slot = find_request(s, row)
            if r < 0:
                code = NOT_HERE
            else:
                abort(s, w, r, slot, at)
    me["next_ps"] = next_event_ps(s, w)
    me["ended"] = s["out_len"]
    _tell(s, me)
    return code


@kernel
def _tell(s: State, me: State) -> None:
    """Write news of everybody who got tokens, and the gauges."""
    news = 0
    running = 0
    waiting = 0
    used = 0
    pool = 0
    preemptions = 0
    for r in range(s["replicas"]):
        core = core_at(s, r)
        running += core["running"]
        waiting += core["waiting"]
        pool += core["pool_blocks"]
        used += core["pool_blocks"] - core["blank"] - core["cached_free"]
        preemptions += core["preemptions"]
        for slot in range(core["slots_used"]):
            request = slot_at(s, r, slot)
            if request["state"] == _FREE or request["state"] == _PADDING:
                continue
            told = _given_at(me["given_at"], np.int64(request["row"]))
            made = request["generated"]
            if request["in_crowd"] == 1:
                made += core["turn"] - request["turn"]
            if told["tokens"] >= 0 and made > told["tokens"]:
                entry = _news_at(me["news_at"], np.int64(news))
                entry["row"] = request["row"]
                entry["tokens"] = made - told["tokens"]
                entry["scheduled_ps"] = request["scheduled_ps"]
                told["tokens"] = made
                news += 1
    me["news"] = news
    me["running"] = running
    me["waiting"] = waiting + s["wire_len"]
    me["used_blocks"] = used
    me["pool_blocks"] = pool
    me["preemptions"] = preemptions
