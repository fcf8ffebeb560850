"""A workload: what was asked, as equal-length columns sorted by arrival, and the operations that keep its structure.

Times are seconds from the start of the workload, lengths are tokens. Gaps, sessions, `after` links and shared
prefixes survive every operation here, or the operation says what it gave up.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

from inferencegym.ground.errors import ConfigError, InputError
from inferencegym.ground.rng import stream
from inferencegym.ground.units import MAX_S

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Ints32 = npt.NDArray[np.int32]
Ints16 = npt.NDArray[np.int16]
Bools = npt.NDArray[np.bool_]

#: Column name to dtype, in the order they are written. The prefix ids stand beside them, as they have no fixed length
#: a row.
COLUMNS: dict[str, str] = {
    "arrival_s": "float64",
    "prompt_tokens": "int32",
    "output_tokens": "int32",
    "output_budget_tokens": "int32",
    "priority": "int16",
    "tenant": "int32",
    "slo_class": "int16",
    "kind": "int16",
    "session_id": "int64",
    "after": "int32",
    "think_s": "float64",
}
#: Lowest and highest value of each integer column.
RANGES: dict[str, tuple[int, int]] = {
    "prompt_tokens": (0, 2**31 - 1),
    "output_tokens": (0, 2**31 - 1),
    "output_budget_tokens": (0, 2**31 - 1),
    "priority": (0, 127),
    "tenant": (0, 2**31 - 1),
    "slo_class": (0, 2**15 - 1),
    "kind": (0, 2**15 - 1),
    "session_id": (-1, 2**63 - 1),
    "after": (-1, 2**31 - 2),
    "prefix_offsets": (0, 2**63 - 1),
    "prefix_ids": (0, 2**63 - 1),
}
#: Columns that are codes of names.
NAMED = {"tenant": "tenant_names", "slo_class": "slo_class_names", "kind": "kind_names"}
DEFAULTS: dict[str, float] = {"session_id": -1, "after": -1}
DEFAULT_NAMES = ("default",)


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """Requests in the order they arrive, a column a field. Make one with `Workload.of`, `read` or `generate`."""

    arrival_s: Floats
    """When the request arrives. For a row that waits for another (`after`), a guess: it arrives `think_s` after that
    one ends.
    """
    prompt_tokens: Ints32
    """At least 1, unless the request failed at the source."""
    output_tokens: Ints32
    """The true length of the answer: an oracle that only an executor may read. 0 says that the request failed at the
    source.
    """
    output_budget_tokens: Ints32
    """The most tokens the caller allows (`max_tokens`); 0 if not given."""
    priority: Ints16
    """0 to 127; lower is sooner."""
    tenant: Ints32
    """Index into `tenant_names`."""
    slo_class: Ints16
    """Index into `slo_class_names`."""
    kind: Ints16
    """Index into `kind_names`: the traffic class (chat, code, API, ...)."""
    session_id: Ints
    """Requests of one conversation share it; -1 for none."""
    after: Ints32
    """The earlier row whose end this one waits for; -1 for none (it arrives at `arrival_s` whatever happens)."""
    think_s: Floats
    """Pause between the end of row `after` and this request; not used where `after` is -1."""
    prefix_offsets: Ints
    """int64[n+1]: the ids of row i are prefix_ids[prefix_offsets[i] : prefix_offsets[i + 1]]."""
    prefix_ids: Ints
    """Each id names the WHOLE prefix up to and including its block: equal ids mean equal tokens from the first one
    on.
    """
    prefix_block_tokens: int
    """Tokens a block; 0 if no row has ids."""
    tenant_names: tuple[str, ...] = DEFAULT_NAMES
    slo_class_names: tuple[str, ...] = DEFAULT_NAMES
    kind_names: tuple[str, ...] = DEFAULT_NAMES
    name: str = "workload"
    source: str = "made in Python"
    """Where it comes from: a file and its digest, or the description and seed it was generated from."""
    attribution: str = ""
    """Whom to credit for the data behind it, and its licence."""

    @classmethod
    def of(
        cls,
        *,
        arrival_s: npt.ArrayLike,
        prompt_tokens: npt.ArrayLike,
        output_tokens: npt.ArrayLike,
        sort: bool = True,
        **optional: Any,
    ) -> Workload:
        """A checked workload from columns of any number type; columns left out take their defaults.

        Rows out of order are sorted by arrival (ties stay as given), and `after` follows them; with `sort=False` they
        are an error. Errors name the row as given, counted from 1.
        """
        given = {"arrival_s": arrival_s, "prompt_tokens": prompt_tokens, "output_tokens": output_tokens, **optional}
        names = {field.name for field in fields(cls)}
        unknown = sorted(set(given) - names)
        if unknown:
            raise InputError(f"there is no such column; columns are {', '.join(COLUMNS)}", column=unknown[0])
        columns: dict[str, Any] = _typed({name: given[name] for name in COLUMNS if name in given})
        offsets, ids = _prefixes(given, len(columns["arrival_s"]))
        listed: dict[str, Any] = {name: _names(given[name], name) for name in NAMED.values() if name in given}
        texts: dict[str, Any] = {name: str(given[name]) for name in ("name", "source", "attribution") if name in given}
        made = cls(
            **columns,
            prefix_offsets=offsets,
            prefix_ids=ids,
            prefix_block_tokens=_block_tokens(given.get("prefix_block_tokens", 0)),
            **listed,
            **texts,
        )
        _check(made)
        return _sorted(made, sort)

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def duration_s(self) -> float:
        """Time of the last arrival (0 for an empty workload)."""
        return float(self.arrival_s[-1]) if len(self) else 0.0

    @property
    def rate_rps(self) -> float:
        """Mean requests per second up to the last arrival; 0 where there is no such time."""
        return len(self) / self.duration_s if self.duration_s > 0 else 0.0

    def columns(self) -> dict[str, Any]:
        """The columns (arrays) by name, prefixes not among them."""
        return {name: getattr(self, name) for name in COLUMNS}

    def digest(self) -> str:
        """A fingerprint of all requests (sha256, hex); where they come from and what they are called does not count."""
        found = sha256(b"inferencegym.workload 1")
        held = {**self.columns(), "prefix_offsets": self.prefix_offsets, "prefix_ids": self.prefix_ids}
        for name, column in held.items():
            found.update(name.encode())
            found.update(np.ascontiguousarray(column, dtype=column.dtype.newbyteorder("<")).data)
        for names in NAMED.values():
            found.update(repr(getattr(self, names)).encode())
        found.update(str(self.prefix_block_tokens).encode())
        return found.hexdigest()

    def prefix_of(self, row: int) -> Ints:
        """The prefix ids of one row."""
        return self.prefix_ids[self.prefix_offsets[row] : self.prefix_offsets[row + 1]]

    def with_(self, **changes: Any) -> Workload:
        """A copy with some columns or names changed; checked and sorted like a new one."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return Workload.of(**(held | changes))

    # --- choosing rows ------------------------------------------------------------------------------------------------

    def take(self, mask: Bools) -> Workload:
        """The rows where `mask` is true.

        A row that waited for one that is gone waits for what that one waited for, and the pauses add up; if there is
        nothing left to wait for, it arrives at its own `arrival_s`.
        """
        keep = np.asarray(mask)
        if keep.dtype != np.bool_ or keep.shape != self.arrival_s.shape:
            raise ConfigError("mask", f"is {keep.dtype}{list(keep.shape)}", allowed=f"bool[{len(self)}]")
        if keep.all():
            return self
        after, think_s = _relinked(self.after, self.think_s, keep)
        rows = np.flatnonzero(keep)
        columns = {name: column[rows] for name, column in self.columns().items()}
        offsets, ids = take_ragged(self.prefix_offsets, self.prefix_ids, rows)
        return replace(self, **columns | {"after": after, "think_s": think_s}, prefix_offsets=offsets, prefix_ids=ids)

    def servable(self) -> tuple[Workload, int]:
        """The rows that did not fail at the source (output of at least 1 token), and how many were left out."""
        good = self.output_tokens > 0
        return self.take(good), len(self) - int(np.count_nonzero(good))

    def head(self, requests: int) -> Workload:
        """The first rows."""
        if requests < 0:
            raise ConfigError("requests", f"{requests} is negative", allowed="0 or more")
        return self.take(np.arange(len(self)) < requests)

    def window(self, start_s: float, end_s: float) -> Workload:
        """Rows that arrive from `start_s` up to, but not at, `end_s`; time starts anew at `start_s`."""
        if not 0 <= start_s < end_s:
            raise ConfigError("window", f"{start_s} s to {end_s} s", allowed="0 <= start_s < end_s")
        chosen = self.take((self.arrival_s >= start_s) & (self.arrival_s < end_s))
        return replace(
            chosen, arrival_s=chosen.arrival_s - start_s, source=f"{self.source}; {start_s:g} to {end_s:g} s"
        )

    def thin(self, keep: float, seed: int = 0) -> Workload:
        """A random share of the traffic, at the times it had: whole sessions, and single requests of none."""
        if not 0 < keep <= 1:
            raise ConfigError("keep", f"{keep} is not a share", allowed="more than 0, at most 1")
        rng = stream(seed, "workload.thin")
        chain = session_of(self)
        lucky = rng.random(int(chain.max(initial=-1)) + 1) < keep
        return replace(self.take(lucky[chain]), source=f"{self.source}; thinned to {keep:g}, seed {seed}")

    # --- changing time ------------------------------------------------------------------------------------------------

    def scale_rate(self, factor: float) -> Workload:
        """The same requests `factor` times as fast: all gaps between arrivals shrink alike, so their pattern stays.

        The pauses of people (`think_s`) stay as they are.
        """
        if not (np.isfinite(factor) and factor > 0):
            raise ConfigError("factor", f"{factor}", allowed="more than 0")
        return replace(self, arrival_s=_in_range(self.arrival_s / factor), source=f"{self.source}; rate x {factor:g}")

    def splice(self, other: Workload, at_s: float, *, share_prefixes: bool = False) -> Workload:
        """Both workloads in one, the other starting at `at_s`.

        Sessions stay apart. So do prefixes, unless `share_prefixes` says that equal ids mean the same tokens in both.
        """
        if not (np.isfinite(at_s) and at_s >= 0):
            raise ConfigError("at_s", f"{at_s}", allowed="0 or more")
        block_tokens = {w.prefix_block_tokens for w in (self, other)} - {0}
        if len(block_tokens) > 1:
            raise ConfigError(
                "splice", f"prefix blocks of {sorted(block_tokens)} tokens do not go together", allowed="equal sizes"
            )
        columns: dict[str, Any] = {
            name: np.concatenate([held, getattr(other, name)]) for name, held in self.columns().items()
        }
        mine = len(self)
        _in_range(other.arrival_s + at_s)
        columns["arrival_s"][mine:] += at_s
        columns["after"][mine:][other.after >= 0] += mine
        columns["session_id"] = _apart(self.session_id, other.session_id)
        names: dict[str, Any] = {}
        for column, listed in NAMED.items():
            names[listed], codes = _merged_names(getattr(self, listed), getattr(other, listed))
            columns[column][mine:] = codes[getattr(other, column)]
        both_ids = (self.prefix_ids, other.prefix_ids)
        joined = replace(
            self,
            **columns,
            **names,
            prefix_offsets=np.concatenate([self.prefix_offsets, other.prefix_offsets[1:] + self.prefix_offsets[-1]]),
            prefix_ids=np.concatenate(both_ids) if share_prefixes else _apart(*both_ids),
            prefix_block_tokens=max(block_tokens, default=0),
            name=f"{self.name}+{other.name}",
            source=f"{self.source}; with {other.source} from {at_s:g} s",
            attribution="; ".join(dict.fromkeys(text for text in (self.attribution, other.attribution) if text)),
        )
        return _sorted(joined, True)

    def append(self, other: Workload, gap_s: float = 0.0) -> Workload:
        """The other workload after this one, its time starting `gap_s` after the last arrival here."""
        if not (np.isfinite(gap_s) and gap_s >= 0):
            raise ConfigError("gap_s", f"{gap_s}", allowed="0 or more")
        return self.splice(other, self.duration_s + gap_s)


def session_of(workload: Workload) -> Ints:
    """A number for each row, equal within a session or a chain of `after` links, from 0 up without holes."""
    chain = np.arange(len(workload), dtype=np.int64)
    waits = workload.after >= 0
    chain[waits] = workload.after[waits]
    # Each pass makes every row point twice as far back; a row that waits for nothing points to itself.
    while not np.array_equal(chain, nearer := chain[chain]):
        chain = nearer
    has_session = workload.session_id >= 0
    keys = np.where(has_session, workload.session_id, 0)
    _, first_row, of = np.unique(keys[has_session], return_index=True, return_inverse=True)
    chain[has_session] = chain[np.flatnonzero(has_session)[first_row]][of]
    dense: Ints = np.unique(chain, return_inverse=True)[1].astype(np.int64)
    return dense


def take_ragged(offsets: Ints, values: Ints, rows: Ints) -> tuple[Ints, Ints]:
    """Offsets and values of these rows of a ragged column."""
    lengths = np.diff(offsets)[rows]
    new_offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(lengths, out=new_offsets[1:])
    if new_offsets[-1] == 0:
        return new_offsets, np.zeros(0, np.int64)
    places = np.arange(new_offsets[-1]) + np.repeat(offsets[rows] - new_offsets[:-1], lengths)
    return new_offsets, values[places]


# --- checks -----------------------------------------------------------------------------------------------------------


def _typed(given: dict[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """The columns with their dtypes, all of one length; a value that does not fit its dtype is an error, never
    rounded.
    """
    length = None
    made: dict[str, npt.NDArray[Any]] = {}
    for name, values in given.items():
        raw = np.asarray(values)
        if raw.ndim != 1:
            raise InputError(f"must be one-dimensional, not of shape {list(raw.shape)}", column=name)
        length = len(raw) if length is None else length
        if len(raw) != length:
            raise InputError(f"has {len(raw)} values where 'arrival_s' has {length}", column=name)
        made[name] = as_floats(raw, name) if COLUMNS[name] == "float64" else as_ints(raw, name).astype(COLUMNS[name])
    for name, dtype in COLUMNS.items():
        if name not in made:
            made[name] = np.full(length or 0, DEFAULTS.get(name, 0), dtype)
    return {name: np.ascontiguousarray(made[name]) for name in COLUMNS}


def as_floats(raw: npt.NDArray[Any], column: str) -> Floats:
    """Numbers as float64; anything that is not a finite number is an error that names its row."""
    if raw.dtype.kind not in "iufb" and len(raw):
        raise InputError(f"holds {raw.dtype}, not numbers", row=1, column=column)
    made: Floats = raw.astype(np.float64)
    bad = ~np.isfinite(made)
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(f"{made[row]} is not a finite number", row=row + 1, column=column)
    return made


def as_ints(raw: npt.NDArray[Any], column: str) -> Ints:
    """Numbers as int64 within the column's range."""
    _check_whole(raw, column)
    made: Ints = raw.astype(np.int64)
    return made


def _check_whole(raw: npt.NDArray[Any], column: str) -> None:
    """Fractions, NaN and what is out of the column's range are errors that name their row."""
    if raw.dtype.kind not in "iufb" and len(raw):
        raise InputError(f"holds {raw.dtype}, not whole numbers", row=1, column=column)
    low, high = RANGES.get(column, (-(2**63), 2**63 - 1))
    with np.errstate(invalid="ignore"):
        bad = (
            # Not `<= high`: the largest int64 is no float64, and would become one that is out of range.
            ~((raw >= low) & (raw < high + 1) & (raw == np.floor(raw)))
            if raw.dtype.kind == "f"
            else (raw < low) | (raw > high)
        )
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(f"{raw[row]} is not a whole number from {low} to {high}", row=row + 1, column=column)


def _prefixes(given: dict[str, Any], length: int) -> tuple[Ints, Ints]:
    raw_offsets = np.asarray(given.get("prefix_offsets", np.zeros(length + 1, np.int64)))
    raw_ids = np.asarray(given.get("prefix_ids", np.zeros(0, np.int64)))
    for name, raw in (("prefix_offsets", raw_offsets), ("prefix_ids", raw_ids)):
        if raw.ndim != 1:
            raise InputError(f"must be one-dimensional, not of shape {list(raw.shape)}", column=name)
    offsets = np.ascontiguousarray(as_ints(raw_offsets, "prefix_offsets"))
    if offsets.shape != (length + 1,) or offsets[0] != 0 or offsets[-1] != len(raw_ids) or (np.diff(offsets) < 0).any():
        raise InputError(
            f"must rise from 0 to {len(raw_ids)} (the number of ids) in {length + 1} values", column="prefix_offsets"
        )
    try:
        _check_whole(raw_ids, "prefix_ids")
    except InputError as error:
        # The place among all ids says nothing to a reader; the row that holds it does.
        row = int(np.searchsorted(offsets, (error.row or 1) - 1, side="right"))
        raise InputError(error.problem, row=row, column="prefix_ids") from error
    # Not `as_ints`, which copies: the largest trace has half a gigabyte of ids.
    return offsets, np.ascontiguousarray(raw_ids, dtype=np.int64)


def _block_tokens(given: Any) -> int:
    if isinstance(given, bool) or not isinstance(given, int | np.integer) or not 0 <= given < 2**31:
        raise InputError(f"{given!r} is not a whole number from 0 to {2**31 - 1}", column="prefix_block_tokens")
    return int(given)


def _names(given: Any, column: str) -> tuple[str, ...]:
    listed = () if isinstance(given, str) else tuple(given)
    if not listed or not all(isinstance(name, str) and name for name in listed) or len(set(listed)) < len(listed):
        raise InputError(f"{given!r} is not a list of names, none empty and none twice", column=column)
    return listed


def _check(w: Workload) -> None:
    """What the dtypes do not say."""
    _first_bad(w.arrival_s < 0, w.arrival_s, "arrival_s", "is negative")
    _first_bad(w.arrival_s > MAX_S, w.arrival_s, "arrival_s", f"s is beyond the engine's clock ({MAX_S:,} s)")
    _first_bad((w.think_s < 0) | (w.think_s > MAX_S), w.think_s, "think_s", f"is not from 0 to {MAX_S:,} s")
    _first_bad(
        (w.prompt_tokens == 0) & (w.output_tokens > 0),
        w.prompt_tokens,
        "prompt_tokens",
        "where the output is not 0: allowed from 1 up",
    )
    budget = w.output_budget_tokens
    _first_bad(
        (budget > 0) & (budget < w.output_tokens),
        budget,
        "output_budget_tokens",
        "is less than the output; 0 says it is not known",
    )
    _first_bad(w.after >= len(w), w.after, "after", f"does not name a row (rows count from 0 here, to {len(w) - 1})")
    _first_bad(w.after == np.arange(len(w)), w.after, "after", "is the row itself (rows count from 0 here)")
    waits = np.flatnonzero(w.after >= 0)
    late = w.arrival_s[w.after[waits]] > w.arrival_s[waits]
    if late.any():
        row = int(waits[np.argmax(late)])
        raise InputError(f"{w.after[row]} arrives later than the row that waits for it", row=row + 1, column="after")
    for column, names in NAMED.items():
        listed = getattr(w, names)
        _first_bad(
            getattr(w, column) >= len(listed), getattr(w, column), column, f"has no name: {names} lists {len(listed)}"
        )
    if w.prefix_block_tokens == 0 and len(w.prefix_ids):
        raise InputError(
            f"{w.prefix_block_tokens}, but there are {len(w.prefix_ids)} prefix ids", column="prefix_block_tokens"
        )
    if w.prefix_block_tokens:
        size = w.prefix_block_tokens
        most = -(-w.prompt_tokens.astype(np.int64) // size)
        with_output = (w.prompt_tokens.astype(np.int64) + w.output_tokens) // size
        ids = np.diff(w.prefix_offsets)
        _first_bad(
            ids > np.maximum(most, with_output),
            ids,
            "prefix_ids",
            f"ids are more than prompt and output have blocks of {size} tokens",
        )


def _first_bad(bad: Bools, values: npt.NDArray[Any], column: str, problem: str) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(f"{values[row]} {problem}", row=row + 1, column=column)


def _in_range(arrival_s: Floats) -> Floats:
    _first_bad(arrival_s > MAX_S, arrival_s, "arrival_s", f"s is beyond the engine's clock ({MAX_S:,} s)")
    return arrival_s


# --- moving rows ------------------------------------------------------------------------------------------------------


def _sorted(w: Workload, allowed: bool) -> Workload:
    backwards = np.diff(w.arrival_s) < 0
    if not backwards.any():
        _first_bad(
            w.after >= np.arange(len(w)), w.after, "after", "does not name an earlier row (rows count from 0 here)"
        )
        return w
    if not allowed:
        row = int(np.argmax(backwards)) + 1
        raise InputError(
            f"{w.arrival_s[row]} comes after {w.arrival_s[row - 1]}: time runs backwards "
            "(ask for sort=True, --sort, to have rows sorted)",
            row=row + 1,
            column="arrival_s",
        )
    order = np.argsort(w.arrival_s, kind="stable")
    place = np.empty(len(w), np.int32)
    place[order] = np.arange(len(w), dtype=np.int32)
    columns = {name: column[order] for name, column in w.columns().items()}
    waits = columns["after"] >= 0
    columns["after"][waits] = place[columns["after"][waits]]
    later = np.zeros(len(w), np.bool_)
    later[order] = columns["after"] >= np.arange(len(w))
    _first_bad(later, w.after, "after", "arrives no earlier than the row that waits for it (rows count from 0 here)")
    offsets, ids = take_ragged(w.prefix_offsets, w.prefix_ids, order)
    return replace(w, **columns, prefix_offsets=offsets, prefix_ids=ids)


def _relinked(after: Ints32, think_s: Floats, keep: Bools) -> tuple[Ints32, Floats]:
    """`after` and `think_s` of the rows that stay: links skip rows that go, and their pauses add up."""
    target, pause_s = after.copy(), think_s.copy()
    while (lost := (target >= 0) & ~keep[target]).any():
        gone = target[lost]
        # Where nothing is left to wait for, the pause has no meaning any more.
        pause_s[lost] = np.where(after[gone] >= 0, pause_s[lost] + think_s[gone], 0.0)
        target[lost] = after[gone]
    place = np.cumsum(keep, dtype=np.int32) - np.int32(1)
    kept, kept_pause_s = target[keep], pause_s[keep]
    waits = kept >= 0
    kept[waits] = place[kept[waits]]
    return kept, kept_pause_s


def _merged_names(mine: tuple[str, ...], other: tuple[str, ...]) -> tuple[tuple[str, ...], Ints]:
    """One list of names for both, and the other's codes in it."""
    merged = tuple(dict.fromkeys((*mine, *other)))
    return merged, np.array([merged.index(name) for name in other], np.int64)


def _apart(mine: Ints, other: Ints) -> Ints:
    """Both runs of numbers in one, the other's moved beyond mine so that none is common; -1, for none, stays."""
    first_free = int(mine.max(initial=-1)) + 1
    if first_free + int(other.max(initial=-1)) >= 2**63 - 1:
        # Hashed numbers fill the whole range and leave no room beyond them.
        mine, other = _numbered(mine), _numbered(other)
        first_free = int(mine.max(initial=-1)) + 1
    return np.concatenate([mine, np.where(other >= 0, other + first_free, other)])


def _numbered(values: Ints) -> Ints:
    """The same numbers equal, but from 0 up without holes; -1 stays."""
    made = values.copy()
    held = values >= 0
    made[held] = np.unique(values[held], return_inverse=True)[1]
    return made
