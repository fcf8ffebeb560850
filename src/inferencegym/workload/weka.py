"""Reader of coding-agent sessions, which have no common clock: sessions start by a Poisson process, turns wait for
answers or replay.

Prefix ids are local to a session and become global ones that name whole prefixes. They are 68 million, so they are
read a row group at a time, straight to where they end up. Times are seconds, lengths tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from inferencegym.ground.errors import InputError
from inferencegym.ground.rng import stream
from inferencegym.workload.mapped import tell_columns
from inferencegym.workload.options import ReadOptions
from inferencegym.workload.prefixes import chained, offsets_of
from inferencegym.workload.public import CREDITS
from inferencegym.workload.table import Table, read_parquet
from inferencegym.workload.workload import Ints, Workload

BLOCK_TOKENS = 64
_PLAIN = ("session_id", "agent", "kind", "arrival_s", "prompt_tokens", "output_tokens", "think_s")


def read_weka(path: Path, options: ReadOptions) -> Workload:
    """All sessions, or the first `options.sessions` of the file."""
    table = read_parquet(path, _PLAIN)
    table.require(*_PLAIN)
    session = table.ints("session_id")
    rows = np.flatnonzero(_first_sessions(session, options.sessions))
    number, start_s = _starts(session[rows], options)
    kind, kind_names = table.codes("kind")
    own_s = table.floats("arrival_s")[rows]
    after = _predecessors(session[rows], table.ints("agent")[rows]) if options.closed_loop else np.full(len(rows), -1)
    think_s = table.floats("think_s", gaps=True)[rows]
    # Where the pause is not known, as the time of the answer before is not, the whole gap stands in for it.
    think_s = np.where(np.isnan(think_s), own_s - own_s[np.maximum(after, 0)], think_s)
    arrival_s = start_s[number] + own_s
    if (own_s < 0).any():
        at = int(np.argmax(own_s < 0))
        raise InputError(f"{own_s[at]} is negative", file=path, row=int(rows[at]) + 1, column="arrival_s")
    order = np.argsort(arrival_s, kind="stable")
    place = np.empty(len(rows), np.int64)
    place[order] = np.arange(len(rows))
    after = np.where(after >= 0, place[after], -1)
    columns: dict[str, Any] = {
        "arrival_s": arrival_s[order],
        "prompt_tokens": table.ints("prompt_tokens")[rows][order],
        "output_tokens": table.ints("output_tokens")[rows][order],
        "kind": kind[rows][order],
        "kind_names": kind_names,
        "session_id": session[rows][order],
        "after": after[order],
        "think_s": np.where(after >= 0, think_s, 0.0)[order],
    }
    if options.prefixes:
        columns["prefix_offsets"], columns["prefix_ids"] = _read_ids(path, session, rows, place)
        columns["prefix_block_tokens"] = BLOCK_TOKENS
    way = "turns wait for answers" if options.closed_loop else "turns at their recorded times"
    started = f"one in {options.session_every_s:g} s on average (seed {options.seed})"
    source = f"{int(number.max(initial=-1)) + 1} sessions, {started}, {way}"
    return tell_columns(
        table,
        {"prefix_ids": "hash_ids"},
        lambda: Workload.of(**columns, sort=False, name=path.stem, source=source, attribution=CREDITS["weka"]),
        rows=rows[order],
    )


def _first_sessions(session: Ints, count: int | None) -> np.ndarray:
    if count is None:
        return np.ones(len(session), np.bool_)
    _, first = np.unique(session, return_index=True)
    return np.isin(session, session[np.sort(first)[:count]])


def _starts(session: Ints, options: ReadOptions) -> tuple[Ints, np.ndarray]:
    """Each row's session counted from 0 in file order, and when each session starts."""
    _, first, of = np.unique(session, return_index=True, return_inverse=True)
    number = np.argsort(np.argsort(first))[of]
    gaps_s = stream(options.seed, "workload.weka.starts").exponential(options.session_every_s, len(first))
    return number, np.cumsum(gaps_s) - gaps_s[:1].sum()


def _predecessors(session: Ints, agent: Ints) -> Ints:
    """The row each one waits for: the one before of its agent; for a sub-agent's first, the one before it of the main
    agent.
    """
    rows = np.arange(len(session))
    after = np.full(len(session), -1)
    order = np.lexsort((rows, agent, session))
    same = (session[order][1:] == session[order][:-1]) & (agent[order][1:] == agent[order][:-1])
    after[order[1:][same]] = order[:-1][same]
    main = np.where(agent == 0, rows, -1)
    last_main = np.maximum.accumulate(main)
    beginner = (after < 0) & (agent != 0) & (last_main >= 0)
    boss = np.where(beginner, last_main, 0)
    here = beginner & (session[boss] == session)
    after[here] = boss[here]
    return after


def _read_ids(path: Path, session: Ints, rows: Ints, place: Ints) -> tuple[Ints, Ints]:
    """Offsets and ids in the order of `place` (where each of `rows` ends up)."""
    wanted = np.full(len(session), -1, np.int64)
    wanted[rows] = place
    lengths = np.zeros(len(rows), np.int64)
    for first, offsets, _ in _groups(path, wanted, lengths_only=True):
        here = wanted[first : first + len(offsets) - 1]
        lengths[here[here >= 0]] = np.diff(offsets)[here >= 0]
    out_offsets = offsets_of(lengths)
    ids = np.empty(out_offsets[-1], np.int64)
    for first, offsets, values in _groups(path, wanted, lengths_only=False):
        here = wanted[first : first + len(offsets) - 1]
        named = chained(offsets, values, session[first : first + len(here)])
        for row in np.flatnonzero(here >= 0).tolist():
            at = out_offsets[here[row]]
            ids[at : at + offsets[row + 1] - offsets[row]] = named[offsets[row] : offsets[row + 1]]
    return out_offsets, ids


def _groups(path: Path, wanted: Ints, *, lengths_only: bool) -> Any:
    """(first row, offsets, ids) of each row group that holds a wanted row, from its first such row to its last."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = 0
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.metadata.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                here = np.flatnonzero(wanted[first : first + size] >= 0)
                if len(here):
                    found = file.read_row_group(group, columns=["hash_ids"]).column("hash_ids")
                    low, many = int(here[0]), int(here[-1] - here[0]) + 1
                    table = Table(path, {"hash_ids": found.slice(low, many)}, many, {})
                    try:
                        offsets, values = table.lists("hash_ids")
                    except InputError as error:
                        row = None if error.row is None else first + low + error.row
                        raise InputError(error.problem, file=path, row=row, column=error.column) from error
                    yield first + low, offsets, values[:0] if lengths_only else values
                first += size
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"cannot be read as Parquet: {str(error).splitlines()[0]}", file=path) from error
