"""Requests that ended, as columns: Parquet files of Records and, beside each, the Workload that would bring the same traffic again.

A row is packed into one block of bytes that grows: no object of it stays, so the memory of a crowd that has left is not held in pieces by what was
written down of it. Files are written by a thread of their own. Of a request's content nothing is here but its length: tenants by name, sessions as
numbers that mean nothing outside their file. Times are seconds from the recorder's start, lengths tokens.
"""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inferencegym.ground.errors import ConfigError, InputError
from inferencegym.metrics.record import COLUMNS, Records

if TYPE_CHECKING:
    from inferencegym.runtime.recorder import Live
    from inferencegym.workload import Workload

_LOG = logging.getLogger(__name__)
#: Tenants that get a name in the files; further ones share the last.
MOST_TENANTS = 10_000
_OTHERS = "others"
_INT16 = (-(1 << 15), (1 << 15) - 1)
_NO_SESSION = -1

#: A request that ended: the columns of Records in their order, then what only a Workload has: budget in tokens, and the hash of its session.
_ROW = np.dtype([*COLUMNS.items(), ("budget", "int32"), ("session", "int64")])
_PACK = struct.Struct("=" + "".join({"int64": "q", "float64": "d", "int32": "i", "int16": "h", "int8": "b"}[_ROW[name].name] for name in _ROW.names or ()))  # fmt: skip
Rows = np.ndarray[Any, np.dtype[np.void]]


class Journal:
    """Rows of requests that ended: bounded, whatever comes."""

    def __init__(self, class_names: Sequence[str], *, path: str | Path | None, rows_per_file: int, keep: int) -> None:
        if rows_per_file < 1 or keep < 1:
            raise ConfigError(
                "recorder", f"rows_per_file={rows_per_file}, keep={keep} hold nothing", allowed="1 or more"
            )
        self.class_names = tuple(class_names)
        self.files = 0
        """Pairs of files begun so far."""
        self.dropped = 0
        """Requests that were let go of because there is no path to write them to."""
        self.written = self.lost = 0
        """Requests that lie in whole files, and that could not be written; counted by the writer's thread."""
        self._path = None if path is None else Path(path)
        self._rows_per_file, self._keep = rows_per_file, keep
        self._rows = bytearray()
        self._tenants: dict[str, int] = {}
        self._started = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")
        self._writer: ThreadPoolExecutor | None = None
        self._pending: list[Future[None]] = []
        if self._path is not None:
            try:
                self._path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(
                    "recorder.folder", f"'{path}' cannot be made: {error.strerror}", allowed="a folder"
                ) from error
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="journal")
            self.files = _last_file(self._path)

    def add(self, me: Live, finish_s: float, outcome: int, start_s: float) -> None:
        """One request has ended at `finish_s` of the clock on which the recorder began at `start_s`."""
        ask = me.ask
        priority = ask.priority
        self._rows += _PACK.pack(
            me.row, ask.arrival_s - start_s, me.enqueued_s - start_s, me.scheduled_s - start_s, me.first_s - start_s,
            finish_s - start_s, me.prompt, me.output, me.cached, me.preemptions, 0, outcome, ask.slo_class,
            # The formats hold 16 bits (Workload: 0..127); a rank beyond is written as the last there is.
            min(max(priority, _INT16[0]), _INT16[1]), self._tenant(ask.tenant), me.replica, ask.max_tokens or 0,
            hash(ask.session) if ask.session else _NO_SESSION,
        )  # fmt: skip
        if self._writer is not None:
            if len(self._rows) >= self._rows_per_file * _PACK.size:
                self._rotate()
        elif len(self._rows) >= 2 * self._keep * _PACK.size:
            self.dropped += len(self._rows) // _PACK.size - self._keep
            # A new block, not the old one's end: what it had grown to goes back whole.
            self._rows = self._rows[-self._keep * _PACK.size :]

    def _tenant(self, name: str) -> int:
        known = self._tenants.get(name)
        if known is None:
            if len(self._tenants) >= MOST_TENANTS:
                name = _OTHERS
            known = self._tenants.setdefault(name, len(self._tenants))
        return known

    def tenant_names(self) -> tuple[str, ...]:
        """Names of the records' tenant codes."""
        return tuple(name or "default" for name in self._tenants) or ("default",)

    def records(self) -> Records:
        """The rows in memory, in the order they ended."""
        return _records(_table(self._rows))

    def workload(self) -> Workload:
        """The traffic of the rows in memory, as it arrived. Requests without an answer have 0 output tokens (see `Workload.servable`)."""
        return _workload(
            _table(self._rows),
            self.class_names,
            self.tenant_names(),
            f"recorded by the gateway started at {self._started}",
        )[0]

    def _rotate(self) -> None:
        assert self._path is not None, "rows are written where there is a path"
        assert self._writer is not None, "a closed journal takes no rows"
        rows, self._rows = _table(self._rows), bytearray()
        self.files += 1
        self._pending = [future for future in self._pending if not future.done()]
        source = f"recorded by the gateway started at {self._started}, part {self.files}"
        names = self.tenant_names()
        self._pending.append(
            self._writer.submit(self._write, self._path, self.files, rows, self.class_names, names, source)
        )

    def _write(self, folder: Path, number: int, rows: Rows, *names: Any) -> None:
        """In the writer's thread: a full disk costs these rows, and is said; no request of a client breaks for it."""
        try:
            _write(folder, number, rows, *names)
        except (OSError, InputError) as error:
            self.lost += len(rows)
            _LOG.error("records-%05d in %s could not be written: %s", number, folder, error)
        else:
            self.written += len(rows)

    def rotate(self) -> None:
        """Begin a file with what has ended, if there is anything and somewhere to write it."""
        if self._rows and self._writer is not None:
            self._rotate()

    def close(self) -> None:
        """Write the rest and wait for the writer."""
        if self._writer is None:
            return
        self.rotate()
        self._writer.shutdown(wait=True)
        self._writer = None
        for future in self._pending:
            future.result()
        self._pending.clear()


def _last_file(folder: Path) -> int:
    """Number of the last file there, so that a restart adds to it and overwrites nothing."""
    numbers = [file.stem.rpartition("-")[2] for file in folder.glob("records-*.parquet")]
    return max((int(number) for number in numbers if number.isdigit()), default=0)


def _write(
    folder: Path, number: int, rows: Rows, classes: tuple[str, ...], tenants: tuple[str, ...], source: str
) -> None:
    """Both files; record i is of row i of the workload."""
    # Arrow weighs 40 MiB: only who writes files carries it.
    import pyarrow.parquet as pq

    from inferencegym.workload.files import whole_file, write

    workload, order = _workload(rows, classes, tenants, source)
    records = _records(rows).take(order)
    table = Records(
        **{name: getattr(records, name) for name in COLUMNS if name != "row"},
        row=np.arange(len(rows)),
        observer="gateway",
    ).to_table()
    write(workload, folder / f"workload-{number:05d}.parquet")
    whole_file(folder / f"records-{number:05d}.parquet", lambda file: pq.write_table(table, file, compression="zstd"))


def _table(packed: bytearray) -> Rows:
    """The rows as one record array, a copy."""
    return np.frombuffer(bytes(packed), _ROW)


def _records(rows: Rows) -> Records:
    return Records.of("gateway", **{name: np.ascontiguousarray(rows[name]) for name in COLUMNS})


def _sessions(hashes: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Numbers from 0 in the order in which sessions first ended a request; -1 for none."""
    known, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    codes = np.full(len(known), -1)
    named = np.flatnonzero(known != _NO_SESSION)
    codes[named[np.argsort(first[named])]] = np.arange(len(named))
    return codes[inverse]


def _workload(
    rows: Rows, classes: tuple[str, ...], tenants: tuple[str, ...], source: str
) -> tuple[Workload, np.ndarray[Any, np.dtype[np.int64]]]:
    """The workload of these rows, and their positions in the order of arrival (ties: of admission)."""
    if not len(rows):
        raise InputError("no request has ended yet: there is nothing to write")
    from inferencegym.workload import Workload

    arrival_s = np.maximum(rows["arrival_s"], 0.0)
    order = np.lexsort((rows["row"], arrival_s))
    made = Workload.of(
        arrival_s=arrival_s[order],
        prompt_tokens=rows["prompt_tokens"][order],
        output_tokens=rows["output_tokens"][order],
        output_budget_tokens=np.maximum(rows["budget"], rows["output_tokens"] * (rows["budget"] > 0))[order],
        priority=np.clip(rows["priority"], 0, 127)[order],
        tenant=rows["tenant"][order],
        tenant_names=tenants,
        slo_class=rows["slo_class"][order],
        slo_class_names=classes,
        session_id=_sessions(rows["session"])[order],
        name="recorded",
        source=source,
    )  # fmt: skip
    return made, order
