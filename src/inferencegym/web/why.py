"""Why an episode ended as it did, in sentences that are computed: what a crash wanted and what could have averted it, or what cost an episode most.

Runs at the Desk. A sentence may carry the decision that it speaks of, so that the page can lead there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from inferencegym.decision.paging import NAMES, NUMBER
from inferencegym.engine.paging.memory import ACTIVE, LIVE, WORD, part, scalars
from inferencegym.envs import pool
from inferencegym.web import costs
from inferencegym.web.detail import Asked, replay
from inferencegym.web.replay import Replay

#: Ticks before a crash that are told one by one and searched for a way out.
LAST_TICKS = 50
FULL = 0.95
#: Actions that make room on the GPU at once or after a copy, and those of them that only touch idle caches.
FREEING = tuple(NUMBER[name] for name in NAMES if name.startswith(("evict", "swap", "shred", "preempt_swap")))
IDLE_ONLY = tuple(NUMBER[name] for name in NAMES if name.startswith(("evict", "swap")))
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Said:
    """A sentence, and the decision it is about if it is about one."""

    text: str
    decision: int | None = None


def why(asked: Asked) -> dict[str, Any]:
    """The explanation: {crashed, over, decision, sample, words, moments, samples}; `moments` are [decision, sentence] of those words that have one."""
    found = replay(asked)
    if not found.over:
        said = [Said("The episode is still being played; come back when it has ended.")]
    elif found.crashed:
        said = _crash(found)
    else:
        said = [Said(text, decision) for text, decision in costs.costs(found, asked)]
    return {
        "crashed": found.crashed, "over": found.over, "decision": found.total, "sample": found.total // found.per_sample,
        "words": [one.text for one in said], "moments": [[one.decision, one.text] for one in said if one.decision is not None],
        "samples": _table(found) if found.crashed else [],
    }  # fmt: skip


def _crash(found: Replay) -> list[Said]:
    batch, total = found.head, found.total
    s = scalars(batch.arena, 0)
    tick, free = int(s["tick"]), int(s["gpu_blocks"] - s["gpu_used"])
    growers = growing(batch)
    size = {request: blocks for (_, blocks), request in _owners(batch)}
    said = [
        Said(
            f"Crashed at tick {tick:,} of {int(s['horizon']):,}: {_count(len(growers), 'active request')} needed one more block each, and"
            f" {_count(free, 'block')} of {int(s['gpu_blocks']):,} {'was' if free == 1 else 'were'} free.",
            total - 1,
        ),
        Said(_who(batch, growers, size)),
        Said(_held(batch)),
    ]
    first, since = full_since(found)
    if since is not None:
        above = Said(
            f"GPU use was at {FULL:.0%} or more from tick {since // found.per_sample:,} on, {_count(tick - since // found.per_sample, 'tick')} before the crash.",
            since,
        )
        said.append(above)
    if first is not None and first != since:
        said.append(Said(f"GPU use had first reached {FULL:.0%} at tick {first // found.per_sample:,}.", first))
    said.append(Said(_missed(found)))
    last = way_out(found)
    if last is None:
        said.append(
            Said(
                f"No single other action in the last {_count(min(LAST_TICKS, tick), 'tick')} would have got it past this tick:"
                " by then too much had been let in."
            )
        )
    else:
        decision, actions = last
        others = ", ".join(NAMES[a].replace("_", " ") for a in actions)
        taken = NAMES[int(found.actions[decision])].replace("_", " ")
        said.append(
            Said(
                f"The last way out was decision {decision:,} (tick {decision // found.per_sample:,}): instead of '{taken}', any of these, and then the same"
                f" actions as played, would have got it past tick {tick:,}: {others}.",
                decision,
            )
        )
    return said


def growing(batch: Any) -> list[int]:
    """The active requests that need another block at the tick that crashed."""
    s = scalars(batch.arena, 0)
    live = part(batch.arena, 0, "live_at", LIVE, int(s["capacity"]))[: int(s["requests"])]
    block = int(s["block_tokens"])
    needs = (live["state"] == ACTIVE) & ((live["ready"] - live["context"] - int(s["tick"])) % block == 0)
    found = np.flatnonzero(needs).tolist()
    phases = part(batch.arena, 0, "phases_at", WORD, block)["bits"]
    assert len(found) == int(phases[int(s["tick"]) % block]), "the machine counts as many"
    return found


def full_since(found: Replay) -> tuple[int | None, int | None]:
    """The first decision at which FULL of the GPU's blocks or more were in use, and the first of the unbroken row of such that leads to the end."""
    above = found.observations[: found.total, 0] >= np.float32(FULL)
    at = np.flatnonzero(above)
    if len(at) == 0:
        return None, None
    if not above[-1]:
        return int(at[0]), None
    below = np.flatnonzero(~above)
    return int(at[0]), int(below[-1]) + 1 if len(below) else 0


def way_out(found: Replay) -> tuple[int, list[int]] | None:
    """The latest decision at which a single other legal action, followed by the actions as played, survives the tick that crashed, and those actions."""
    for decision in range(found.total - 1, _begin(found) - 1, -1):
        others = [a for a in np.flatnonzero(found.masks[decision]).tolist() if a != int(found.actions[decision])]
        twins = found.at(decision).branch(0, len(others)) if others else None
        if twins is None:
            continue
        twins.actions[:] = others
        twins.step()
        for later in range(decision + 1, found.total):
            twins.actions[:] = found.actions[later]
            twins.step()
        saved = [a for a, gone in zip(others, twins.terminated.tolist(), strict=True) if not gone]
        if saved:
            return decision, saved
    return None


def _begin(found: Replay) -> int:
    """The first decision of the last ticks."""
    return max(0, found.total - LAST_TICKS * found.per_sample)


def _owners(batch: Any) -> list[tuple[tuple[int, int], int]]:
    seen = pool.look(batch, 0)
    return list(zip(seen.owners, seen.requests, strict=True))


def _who(batch: Any, growers: list[int], size: dict[int, int]) -> str:
    tier = batch.task.traffic(batch.scenarios[0]).table["tier"]
    largest = sorted(growers, key=lambda i: -size[i])[:_NAMED]
    named = ", ".join(
        f"request {i} ({'VIP' if tier[i] else 'free'}, {size[i]} blocks with the new one)" for i in largest
    )
    rest = len(growers) - len(largest)
    return f"{'It was' if len(growers) == 1 else 'They were'} {named}{f', and {rest:,} more' if rest else ''}."


def _held(batch: Any) -> str:
    """Who held the memory at the end, and what of it lay idle."""
    blocks, count = [0] * len(pool.KINDS), [0] * len(pool.KINDS)
    growers = set(growing(batch))
    for (kind, size), request in _owners(batch):
        # The new block of a request that grows is wanted, not held.
        blocks[kind] += size - (request in growers)
        count[kind] += 1
    active, loading, idle = blocks[0] + blocks[1], blocks[2] + blocks[3], blocks[4] + blocks[5]
    text = f"Active requests held {active:,} blocks, loading ones {loading:,}, idle caches {idle:,}, and {blocks[pool.LEAVING]:,} were still leaving for the CPU."
    caches = count[4] + count[5]
    if caches:
        return f"{text} The {_count(caches, 'idle cache')} ({_count(idle, 'block')}) could have been evicted."
    return f"{text} Nothing lay idle: only preempting an active request could have made room."


def _missed(found: Replay) -> str:
    begin, total = _begin(found), found.total
    taken = found.actions[begin:total]
    masks = found.masks[begin:total]
    could, could_idle = masks[:, FREEING].any(axis=1), masks[:, IDLE_ONLY].any(axis=1)
    made = np.isin(taken, FREEING) & masks[np.arange(total - begin), taken].astype(bool)
    admitted = int(
        (
            np.isin(taken, (NUMBER["admit_free"], NUMBER["admit_vip"])) & (masks[np.arange(total - begin), taken] == 1)
        ).sum()
    )
    return (
        f"In the last {_count(total - begin, 'decision')} it made room {_count(int(made.sum()), 'time')}; evicting or swapping an idle cache was possible in"
        f" {int(could_idle.sum()):,} of them, any kind of making room in {int(could.sum()):,}. It admitted {_count(admitted, 'request')}."
    )


def _table(found: Replay) -> list[dict[str, Any]]:
    """The last ticks one by one, each as it stood before its decisions, with what was done; the last line is the crash."""
    begin, per = _begin(found), found.per_sample
    listed = []
    for decision in range(begin, found.total + 1, per):
        batch = found.at(decision)
        s = scalars(batch.arena, 0)
        facts = batch.facts(0)
        done = range(decision, min(decision + per, found.total))
        listed.append({
            "sample": decision // per, "decision": decision, "gpu_used": int(facts["gpu_used"]), "free": int(s["gpu_blocks"] - s["gpu_used"]),
            "active": int(facts["free_active"] + facts["vip_active"]), "loading": int(facts["free_loading"] + facts["vip_loading"]),
            "idle_blocks": int(facts["free_idle_blocks"] + facts["vip_idle_blocks"]), "waiting": int(facts["free_waiting"] + facts["vip_waiting"]),
            "wanted": wanted(batch, decision == found.total), "actions": [NAMES[int(found.actions[d])].replace("_", " ") for d in done],
            "legal": [bool(found.masks[d, int(found.actions[d])]) for d in done],
            "could_free": [int(found.masks[d, list(FREEING)].sum()) for d in done],
        })  # fmt: skip
    return listed


def wanted(batch: Any, crashed: bool) -> int:
    """Blocks that the active requests of now will ask for when this tick passes; in a crash, those they asked for in vain."""
    s = scalars(batch.arena, 0)
    phases = part(batch.arena, 0, "phases_at", WORD, int(s["block_tokens"]))["bits"]
    return int(phases[(int(s["tick"]) + (0 if crashed else 1)) % int(s["block_tokens"])])


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
