"""What happened to each request: one row per request that ended, as equal-length columns.

Times are seconds from the start of the workload, NaN where the thing never happened; lengths are tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from inferencegym.ground.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

FORMAT = "inferencegym.records"
FORMAT_VERSION = 1


class Outcome(IntEnum):
    """How a request ended."""

    OK = 0
    """All its tokens were made."""
    REFUSED_LENGTH = 1
    """The prompt is as long as the longest sequence the deployment takes, or longer."""
    NEVER_FITS = 2
    """Its KV would not fit the whole block pool."""
    ABORTED = 3
    """The caller went away."""
    REJECTED = 4
    """Turned away at the door: queue full, rate limit, or too long a wait ahead."""
    FAILED = 5
    """The server or the backend broke."""


#: Column name to dtype, in the order they are written.
COLUMNS: dict[str, str] = {
    "row": "int64",
    "arrival_s": "float64",
    "enqueued_s": "float64",
    "scheduled_s": "float64",
    "first_token_s": "float64",
    "finish_s": "float64",
    "prompt_tokens": "int32",
    "output_tokens": "int32",
    "cached_tokens": "int32",
    "preemptions": "int32",
    "swaps": "int32",
    "outcome": "int8",
    "slo_class": "int16",
    "priority": "int16",
    "tenant": "int32",
    "replica": "int32",
}

#: Columns that may hold NaN, for a thing that never happened.
OPTIONAL_TIMES = ("scheduled_s", "first_token_s")


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """Requests that ended, a column a field; in workload row order when they are those of a whole run."""

    row: npt.NDArray[np.int64]
    """The request's row in its workload."""
    arrival_s: Floats
    """When it reached the observer."""
    enqueued_s: Floats
    """When it entered the engine's waiting queue."""
    scheduled_s: Floats
    """When its first tokens were granted; NaN if never."""
    first_token_s: Floats
    """When its first output token was made; NaN if never. A later preemption does not move it."""
    finish_s: Floats
    """When it ended, in whatever way."""
    prompt_tokens: npt.NDArray[np.int32]
    output_tokens: npt.NDArray[np.int32]
    """Output tokens that were made."""
    cached_tokens: npt.NDArray[np.int32]
    """Prompt tokens found in the prefix cache at first admission."""
    preemptions: npt.NDArray[np.int32]
    swaps: npt.NDArray[np.int32]
    """How many of the preemptions moved the KV to the CPU tier instead of dropping it."""
    outcome: npt.NDArray[np.int8]
    """A code of `Outcome`."""
    slo_class: npt.NDArray[np.int16]
    priority: npt.NDArray[np.int16]
    tenant: npt.NDArray[np.int32]
    replica: npt.NDArray[np.int32]
    """The replica that finished it; -1 if none took it."""
    observer: str = "engine"
    """Whose clock and eyes these are: engine, gateway or client."""

    def __post_init__(self) -> None:
        for name, dtype in COLUMNS.items():
            column = getattr(self, name)
            assert column.dtype == dtype, f"Records.{name} must be {dtype}, not {column.dtype}"
            assert column.shape == self.row.shape, f"Records.{name} must have {self.row.shape}, not {column.shape}"

    def __len__(self) -> int:
        return len(self.row)

    @classmethod
    def of(cls, observer: str = "engine", **columns: npt.ArrayLike) -> Records:
        """Records from columns of any number type; those left out are zero, and times that may be missing NaN."""
        unknown = sorted(set(columns) - set(COLUMNS))
        assert not unknown, f"Records have no column {unknown}; known: {list(COLUMNS)}"
        length = len(np.asarray(next(iter(columns.values())))) if columns else 0
        made: dict[str, Any] = {name: _filled(name, length) for name in COLUMNS}
        made["row"] = np.arange(length, dtype=np.int64)
        made |= {name: np.ascontiguousarray(column, dtype=COLUMNS[name]) for name, column in columns.items()}
        if "enqueued_s" not in columns:
            made["enqueued_s"] = made["arrival_s"]
        return cls(observer=observer, **made)

    @property
    def ok(self) -> Bools:
        """Whether the request completed."""
        completed: Bools = self.outcome == Outcome.OK
        return completed

    @property
    def queue_s(self) -> Floats:
        """Arrival to first grant of tokens; NaN if it was never scheduled."""
        return self.scheduled_s - self.arrival_s

    @property
    def ttft_s(self) -> Floats:
        """Arrival to first output token; NaN if there was none."""
        return self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> Floats:
        """Mean time of each output token after the first; NaN unless completed with two or more."""
        gaps = np.where(self.ok & (self.output_tokens >= 2), self.output_tokens - 1.0, np.nan)
        return (self.finish_s - self.first_token_s) / gaps

    @property
    def e2e_s(self) -> Floats:
        """Arrival to last output token; NaN unless completed."""
        return np.where(self.ok, self.finish_s - self.arrival_s, np.nan)

    def take(self, rows: npt.NDArray[np.int64] | Bools) -> Records:
        """The records at these positions, or where this mask is true."""
        return Records(**{name: getattr(self, name)[rows] for name in COLUMNS}, observer=self.observer)

    def sorted_by_row(self) -> Records:
        """The same records in workload row order."""
        return self.take(np.argsort(self.row, kind="stable"))

    def out_of_order(self) -> npt.NDArray[np.int64]:
        """Positions that break the law of the lifecycle; none in a sound run.

        The law: arrival <= enqueued <= scheduled <= first token <= finish, where a time that never came is passed
        over; a token needs a schedule; and a completed request has all of them.
        """
        times = np.stack([self.arrival_s, self.enqueued_s, self.scheduled_s, self.first_token_s, self.finish_s])
        reached = np.fmax.accumulate(times, axis=0)
        backwards = (times[1:] < reached[:-1]).any(axis=0)
        unborn = np.isnan(times[[0, 1, 4]]).any(axis=0)
        token_without_schedule = np.isnan(self.scheduled_s) & ~np.isnan(self.first_token_s)
        hollow = self.ok & np.isnan(self.first_token_s)
        return np.flatnonzero(backwards | unborn | token_without_schedule | hollow)

    def to_table(self) -> pa.Table:
        """As an Arrow table, a time that never came as null."""
        import pyarrow as pa

        columns = {name: pa.array(getattr(self, name), from_pandas=True) for name in COLUMNS}
        metadata = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "observer": self.observer}
        return pa.table(columns).replace_schema_metadata(metadata)

    @classmethod
    def from_table(cls, table: pa.Table) -> Records:
        """Records from an Arrow table that `to_table` made."""
        import pyarrow as pa

        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        if metadata.get("format") != FORMAT:
            raise InputError(f"not a table of records: its metadata does not say format = '{FORMAT}'")
        if metadata.get("format_version") != str(FORMAT_VERSION):
            found = metadata.get("format_version")
            raise InputError(f"records of format version {found}; this release reads version {FORMAT_VERSION}")
        made: dict[str, Any] = {}
        for name, dtype in COLUMNS.items():
            if name not in table.column_names:
                raise InputError(f"the column is missing; needed: {', '.join(COLUMNS)}", column=name)
            column = table.column(name)
            if column.type != pa.from_numpy_dtype(np.dtype(dtype)):
                raise InputError(f"the column must be of type {dtype}, not {column.type}", column=name)
            if column.null_count and name not in OPTIONAL_TIMES:
                row = int(np.argmax(column.is_null().to_numpy())) + 1
                raise InputError("a value is missing", column=name, row=row)
            made[name] = np.ascontiguousarray(column.to_numpy(), dtype=dtype)
        return cls(observer=metadata.get("observer", "engine"), **made)


def concat(parts: Iterable[Records]) -> Records:
    """All these records, one part after the other; they must be of one observer."""
    listed = list(parts)
    observers = {part.observer for part in listed}
    assert len(observers) == 1, f"records of one observer are wanted, not of {sorted(observers)}"
    columns = {name: np.concatenate([getattr(part, name) for part in listed]) for name in COLUMNS}
    return Records(**columns, observer=listed[0].observer)


def outcome_counts(records: Records) -> dict[str, int]:
    """How many requests ended in each way, by the outcome's name in lower case; every outcome is listed."""
    counts = np.bincount(records.outcome, minlength=len(Outcome))
    return {outcome.name.lower(): int(counts[outcome]) for outcome in Outcome}


def _filled(name: str, length: int) -> npt.NDArray[Any]:
    return np.full(length, np.nan if name in OPTIONAL_TIMES else 0, dtype=COLUMNS[name])
