"""The laws of the engine, numbered, as functions over a running engine or its records. docs/invariants.md says what each one means.

Each returns the list of its violations as sentences (empty: the law holds), so that tests, debugging sessions and a doubtful user can
call the same check: `check(engine)` or `check_arena(arena)` runs all that need one state, `check_records(records, workload)` those that
need a finished run.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from inferencegym.engine import memory
from inferencegym.engine.codes import Phase
from inferencegym.engine.engine import Engine
from inferencegym.metrics.record import Outcome, Records
from inferencegym.workload import Workload

#: Number, name and sentence of each law; the page is generated from it.
LAWS: tuple[tuple[int, str, str], ...] = (
    (
        1,
        "requests conserved",
        "Every request that arrived is waiting, running, on the wire or has ended, exactly once.",
    ),
    (2, "blocks conserved", "Blank, cached and held KV blocks add up to the pool, at any instant."),
    (
        3,
        "lifecycle order",
        "arrival <= scheduled <= first token <= finish, and TTFT keeps its first value across preemptions.",
    ),
    (4, "clock monotonic", "Time never goes back, and no record ends after the engine's clock."),
    (
        5,
        "causality",
        "No plan reads the oracle: what was planned up to a time is the same whatever answers come after it.",
    ),
    (6, "work conserving", "A replica with a request that fits has a step in flight."),
    (7, "determinism", "The same workload, machine, settings and seed give the same records, to the bit."),
    (8, "leap = step by step", "Leaping over runs of decode changes no record, no gap and no counter."),
    (9, "row = single", "Engines that share a call do not see each other; a fork continues exactly as its original."),
)


def check(engine: Engine) -> list[str]:
    """Violations of laws 1, 2, 4 and 6 in an engine's present state."""
    return check_arena(engine.arena)


def check_arena(arena: memory.Arena) -> list[str]:
    """`check` of an engine's bytes: a row of a fleet."""
    return [problem for law in _CHECKS for problem in law(arena)]


def check_records(records: Records, workload: Workload) -> list[str]:
    """Violations of laws 1, 3 and 4 in the records of a whole run."""
    problems = []
    if sorted(records.row.tolist()) != list(range(len(workload))):
        problems.append("law 1: not every request of the workload has exactly one record")
    for row in records.out_of_order().tolist():
        problems.append(f"law 3: the record of request {row} goes back in time")
    ok = records.outcome == Outcome.OK
    if (records.output_tokens[ok] > workload.output_tokens[records.row[ok]]).any():
        problems.append("law 3: a request got more tokens than it asked for")
    return problems


def _parts(arena: memory.Arena) -> tuple[memory.Structured, memory.Structured, list[memory.Structured]]:
    """Header, cores, and each replica's slots that were ever used (what lies beyond is not even zero in a fork)."""
    core, slots = memory.part_of(arena, "core"), memory.part_of(arena, "slots")
    return memory.header_of(arena)[0], core, [slots[r][: int(used)] for r, used in enumerate(core["slots_used"])]


def _requests_conserved(arena: memory.Arena) -> list[str]:
    header, core, slots = _parts(arena)
    live = sum(int((mine["state"] != 0).sum()) for mine in slots)
    held = int(core["waiting"].sum() + core["running"].sum() + header["wire_len"])
    problems = []
    if live != held:
        problems.append(f"law 1: {live} live slots, but {held} requests wait, run or travel")
    padding = sum(int((mine["state"] == 6).sum()) for mine in slots)  # finished, but still computed (static batching)
    if int(header["arrived"] - header["ended"]) != held - padding:
        problems.append(f"law 1: {header['arrived']} arrived, {header['ended']} ended, {held - padding} are here")
    return problems


def _blocks_conserved(arena: memory.Arena) -> list[str]:
    """Held blocks are counted from the requests themselves: shared ones once, the crowd's from their tokens."""
    header, core, slots = _parts(arena)
    nodes = memory.part_of(arena, "nodes")
    problems = []
    for r in range(len(core)):
        held = 0
        for slot in slots[r][slots[r]["state"] != 0]:
            blocks = int(slot["blocks"])
            if slot["in_crowd"] and core["scheduler"][r] <= 1:
                # The step in flight has its block already where the next token starts one.
                tokens = int(slot["computed"] + core["turn"][r] - slot["turn"])
                in_flight = 1 if core["step_end_ps"][r] >= 0 else 0
                blocks = -(-(tokens + in_flight) // int(header["block_size"]))
            held += blocks - int(slot["shared"])
        alive = _live_nodes(core, nodes, r)
        published = int(((alive["refs"] > 0) & (alive["extent"] == 0)).sum())
        total = held + published + int(core["blank"][r] + core["cached_free"][r])
        if total != int(core["pool_blocks"][r]):
            problems.append(f"law 2: replica {r} accounts for {total} blocks of {core['pool_blocks'][r]}")
    return problems


def _live_nodes(core: memory.Structured, nodes: memory.Structured, r: int) -> memory.Structured:
    """Nodes of the prefix cache that are in use: all ever used less those on the free list."""
    used = nodes[r][: int(core["nodes_used"][r])]
    alive = np.ones(len(used), dtype=bool)
    node = int(core["free_node"][r])
    while node >= 0:
        alive[node] = False
        node = int(used[node]["next"])
    return used[alive]


def _clock(arena: memory.Arena) -> list[str]:
    header, core, _ = _parts(arena)
    problems = []
    for r in range(len(core)):
        end = int(core["step_end_ps"][r])
        if end >= 0 and end < int(core["now_ps"][r]):
            problems.append(f"law 4: replica {r} has a step that ends before it began")
        if int(core["now_ps"][r]) > int(header["now_ps"]) and end < 0:
            problems.append(f"law 4: replica {r} is ahead of the cluster's clock")
    return problems


def _work_conserving(arena: memory.Arena) -> list[str]:
    _, core, slots = _parts(arena)
    problems = []
    for r in np.flatnonzero(core["step_end_ps"] < 0).tolist():
        if core["running"][r] > 0:
            problems.append(f"law 6: replica {r} runs {core['running'][r]} requests and has no step in flight")
        elif core["waiting"][r] > 0 and not (slots[r]["state"] == Phase.ON_WIRE).any():
            # Nobody else holds a block, so the head fits, or it never will and is refused.
            problems.append(f"law 6: {core['waiting'][r]} requests wait for an idle replica {r}")
    return problems


def page() -> str:
    """docs/invariants.md."""
    lines = [
        "# The laws of the engine",
        "",
        "Generated by `python -m inferencegym.engine.invariants`; the checks are functions in `engine/invariants.py`, the tests in `tests/laws/`.",
        "",
        "| law | name | what it says | how it is tested |",
        "|---|---|---|---|",
    ]
    lines += [f"| {number} | {name} | {text} | {_TESTS[number]} |" for number, name, text in LAWS]
    lines += [
        "",
        "Parity, the spine of the tests: **P0** the fast engine equals the naive one of `tests/reference/` exactly (`tests/parity/test_p0.py`); "
        "**P1** the loop inside Numba equals a Python loop over the same planner (`tests/parity/test_p1.py`).",
        "",
    ]
    return "\n".join(lines)


_TESTS: dict[int, str] = {
    1: "`check` after every window of random runs; `check_records` at their end",
    2: "`check` after every window of random runs, every scheduler, prefix cache and swap on and off",
    3: "`check_records`; a preempted request's first token is the one before the preemption",
    4: "`check` after every window",
    5: "two workloads that differ only in answers not yet given plan alike up to there",
    6: "`check` after every window",
    7: "run twice, compare bytes",
    8: "`run(leaps=False)` against `run()`, records, gaps and counters",
    9: "a fork run to the end against its original; two engines run in turns against each run alone",
}

_CHECKS: tuple[Callable[[memory.Arena], list[str]], ...] = (
    _requests_conserved,
    _blocks_conserved,
    _clock,
    _work_conserving,
)

if __name__ == "__main__":
    import sys

    sys.stdout.write(page())
