"""A foreign table on its way to a workload: columns as they came, taken out one by one with errors that name file,
row and column.

Rows count from 1, a header not counted. What a column holds is checked here; what it means is checked by `Workload.of`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from inferencegym.ground.errors import InputError
from inferencegym.workload.workload import Floats, Ints, as_floats, as_ints

if TYPE_CHECKING:
    # Arrow weighs 40 MiB: only who reads files carries it.
    import pyarrow as pa

#: Units that a column's time may be given in.
TIME_UNITS_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Table:
    """Named columns of one length, as Arrow arrays (CSV, Parquet) or Python lists (JSON lines)."""

    file: Path
    columns: dict[str, pa.ChunkedArray | list[Any]]
    length: int
    metadata: dict[str, str]

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def require(self, *names: str) -> None:
        """An error that names what is missing and what is there."""
        for name in names:
            if name not in self.columns:
                raise InputError(f"is missing; the file has {listed(self.columns)}", file=self.file, column=name)

    def floats(self, name: str, *, gaps: bool = False) -> Floats:
        """A column of finite numbers; with `gaps`, NaN may stand where the source does not know."""
        return self._located(name, _floats_or_nan if gaps else as_floats)

    def ints(self, name: str, as_column: str | None = None) -> Ints:
        """A column of whole numbers, within the range of the workload column it is for."""
        return self._located(name, lambda raw, _: as_ints(raw, as_column or name))

    def codes(self, name: str) -> tuple[Ints, tuple[str, ...]]:
        """A column of names as codes and the list of names, in order of first appearance. An empty name is called
        'none'.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        self.require(name)
        column = self.columns[name]
        if isinstance(column, list):
            listed = [_text(value, name, row, self.file) for row, value in enumerate(column, 1)]
            column = pa.chunked_array([pa.array(listed, pa.string())])
        coded = pc.dictionary_encode(_names(column, self.file, name)).combine_chunks()
        coded = coded.chunk(0) if isinstance(coded, pa.ChunkedArray) else coded
        names = tuple(_decoded(value) or "none" for value in coded.dictionary.to_pylist())
        return coded.indices.to_numpy(zero_copy_only=False).astype(np.int64), names or ("default",)

    def seconds(self, name: str) -> Floats:
        """A column of dates and times, as seconds since 1970 (UTC where no zone is given)."""
        self.require(name)
        column = self.columns[name]
        fast = None if isinstance(column, list) else _fast_times(_plain(column))
        if fast is not None:
            return fast
        texts = self._texts(name)
        return np.array([_one_time(text, self.file, row, name) for row, text in enumerate(texts, 1)], dtype=np.float64)

    def lists(self, name: str) -> tuple[Ints, Ints]:
        """A column of lists of whole numbers, as offsets and values."""
        import pyarrow as pa

        self.require(name)
        column = self.columns[name]
        if isinstance(column, list):
            return _python_lists(column, self.file, name)
        offsets, values = _arrow_lists(column, pa.types.is_integer, self.file, name)
        self._refuse(name, offsets, values, (values < 0) | (values > 2**63 - 1), "is not a whole number from 0 up")
        return offsets, values.astype(np.int64)

    def float_lists(self, name: str) -> tuple[Ints, Floats]:
        """A column of lists of finite numbers (of a Parquet file), as offsets and values."""
        import pyarrow as pa

        self.require(name)
        offsets, values = _arrow_lists(self.columns[name], pa.types.is_floating, self.file, name)
        self._refuse(name, offsets, values, ~np.isfinite(values), "is not a finite number")
        return offsets, values.astype(np.float64)

    def _refuse(
        self, name: str, offsets: Ints, values: npt.NDArray[Any], bad: npt.NDArray[np.bool_], problem: str
    ) -> None:
        if bad.any():
            at = int(np.argmax(bad))
            row = int(np.searchsorted(offsets, at, side="right"))
            raise InputError(f"{values[at]} in the list {problem}", file=self.file, row=row, column=name)

    def _located(self, name: str, check: Callable[[npt.NDArray[Any], str], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        self.require(name)
        try:
            return check(self._numbers(name), name)
        except InputError as error:
            raise InputError(error.problem, file=self.file, row=error.row, column=name) from error

    def _numbers(self, name: str) -> npt.NDArray[Any]:
        import pyarrow as pa

        column = self.columns[name]
        if isinstance(column, list):
            return _python_numbers(column, self.file, name)
        column = _plain(column)
        if column.null_count:
            raise InputError("is empty", file=self.file, row=_first_null(column), column=name)
        if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
            return _parsed(column, self.file, name)
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise InputError(f"holds {column.type}, not numbers", file=self.file, row=1, column=name)
        found: npt.NDArray[Any] = column.to_numpy()
        return found

    def _texts(self, name: str) -> list[str]:
        column = self.columns[name]
        values = column if isinstance(column, list) else _plain(column).to_pylist()
        return [_text(value, name, row, self.file) for row, value in enumerate(values, 1)]


def listed(columns: Iterable[str]) -> str:
    """Column names of a file, as a terminal can show them: no more than a line, nothing that moves the cursor."""
    text = ", ".join(name if name.isprintable() else repr(name) for name in columns)
    return (text if len(text) <= 300 else f"{text[:300]} ...") or "no columns"


# --- out of files -----------------------------------------------------------------------------------------------------


def read_csv(path: Path) -> Table:
    """Every column of a CSV file as text; a row with too few or too many values is an error that names it."""
    import pyarrow as pa
    from pyarrow import csv

    _refuse_empty(path)
    names = csv_header(path)
    try:
        found = csv.read_csv(
            path,
            read_options=csv.ReadOptions(use_threads=False, encoding="utf8", skip_rows=1, column_names=names),
            parse_options=csv.ParseOptions(newlines_in_values=False),
            convert_options=csv.ConvertOptions(
                check_utf8=False, column_types=dict.fromkeys(names, pa.binary()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise _csv_error(str(error), names, path) from error
    return Table(path, {name: found.column(i) for i, name in enumerate(names)}, found.num_rows, {})


def _csv_error(said: str, names: list[str], path: Path) -> InputError:
    """Arrow's words for a row with too few or too many values, in ours; its rows count the header."""
    found = re.search(r"Row #(\d+): Expected \d+ columns, got (\d+): (.*)", said)
    if found is None:
        return InputError(f"cannot be read as CSV: {said.splitlines()[0]}", file=path)
    row, count, text = found.groups()
    problem = f"has {count} values where the header has {len(names)} ({', '.join(names)}): {text[:80]!r}"
    return InputError(problem, file=path, row=int(row) - 1)


def csv_header(path: Path) -> list[str]:
    """Column names of a CSV file, as its first line has them."""
    import csv

    with path.open("rb") as file:
        line = file.readline(1 << 20)
    try:
        text = line.decode("utf-8-sig").strip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError("its first line is not text (UTF-8)", file=path) from error
    try:
        names = [name.strip() for name in next(csv.reader([text]), [])]
    except csv.Error:  # a line break inside, or a name of 100,000 letters
        names = []
    if not names or len(set(names)) < len(names) or "\x00" in text:
        raise InputError(f"its first line is no header with a name for each column: {text[:80]!r}", file=path)
    return names


def read_json_lines(path: Path) -> Table:
    """Every field of a JSON-lines file; each line must be an object with the fields of the first."""
    _refuse_empty(path)
    rows: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for line in file:
            if not line.strip():
                continue
            # The line with the metadata is no row.
            number = len(rows) + (0 if rows and _is_metadata(rows[0]) else 1)
            rows.append(_json_object(line, path, number))
    metadata = {}
    if rows and _is_metadata(rows[0]):
        metadata = {str(name): str(value) for name, value in rows.pop(0).items()}
    columns: dict[str, pa.ChunkedArray | list[Any]] = {}
    for name in rows[0] if rows else ():
        columns[name] = [row.get(name, _ABSENT) for row in rows]
        if _ABSENT in columns[name] and any(value is _ABSENT for value in columns[name]):
            at = next(i for i, value in enumerate(columns[name]) if value is _ABSENT)
            raise InputError("is missing in this row", file=path, row=at + 1, column=name)
    return Table(path, columns, len(rows), metadata)


def _json_object(line: bytes, path: Path, row: int) -> dict[str, Any]:
    import msgspec

    try:
        found = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"is not JSON: {error}", file=path, row=row) from error
    if not isinstance(found, dict):
        raise InputError(f"is no JSON object: {str(found)[:60]!r}", file=path, row=row)
    return found


def _is_metadata(first: dict[str, Any]) -> bool:
    return "format" in first and "arrival_s" not in first


def json_columns(path: Path) -> tuple[list[str], dict[str, str]]:
    """Field names of a JSON-lines file and its metadata line, if it has one; only the first lines are read."""
    _refuse_empty(path)
    with path.open("rb") as file:
        lines = [line for line in islice(file, 64) if line.strip()][:2]
    found: list[dict[str, Any]] = []
    for line in lines:
        number = len(found) + (0 if found and _is_metadata(found[0]) else 1)
        found.append(_json_object(line, path, number))
    if found and _is_metadata(found[0]):
        return list(found[1]) if len(found) > 1 else [], {str(k): str(v) for k, v in found[0].items()}
    return list(found[0]) if found else [], {}


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> Table:
    """Columns of a Parquet file (all, or those of `columns` that it has)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    _refuse_empty(path)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            chosen = names if columns is None else [name for name in columns if name in names]
            found = file.read(columns=chosen)
            raw = file.schema_arrow.metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"cannot be read as Parquet: {str(error).splitlines()[0]}", file=path) from error
    metadata = {_decoded(k): _decoded(v) for k, v in raw.items() if k != b"ARROW:schema"}
    return Table(path, {name: found.column(name) for name in chosen}, found.num_rows, metadata)


def parquet_columns(path: Path) -> tuple[list[str], dict[str, str]]:
    """Column names and file metadata of a Parquet file, without its data."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    _refuse_empty(path)
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"cannot be read as Parquet: {str(error).splitlines()[0]}", file=path) from error
    return schema.names, {_decoded(k): _decoded(v) for k, v in (schema.metadata or {}).items() if k != b"ARROW:schema"}


_ABSENT = object()
#: How numbers are written in text; "nan" and "inf" are read, so that what refuses them can say where they are.
_NUMBER = re.compile(r"[+-]?(?:(?:[0-9]+[.]?[0-9]*|[.][0-9]+)(?:[eE][+-]?[0-9]+)?|(?i:nan|inf|infinity))")


def _refuse_empty(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"cannot be opened: {error.strerror}", file=path) from error
    if size == 0:
        raise InputError("is empty", file=path)


def _floats_or_nan(raw: npt.NDArray[Any], column: str) -> Floats:
    made = np.array(raw, dtype=np.float64)
    unknown = np.isnan(made)
    as_floats(np.where(unknown, 0.0, made), column)
    return made


# --- values -----------------------------------------------------------------------------------------------------------


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa

    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _names(column: pa.ChunkedArray, file: Path, name: str) -> pa.ChunkedArray:
    """A column of names as bytes (which any text is, well-formed or not), without nulls."""
    import pyarrow as pa
    import pyarrow.compute as pc

    plain = _plain(column)
    if pa.types.is_null(plain.type):
        return pa.chunked_array([pa.array([b""] * len(plain), pa.binary())])
    if pa.types.is_integer(plain.type):
        plain = plain.cast(pa.string())
    if not any(check(plain.type) for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary)):
        raise InputError(f"holds {plain.type}, not names", file=file, row=1, column=name)
    return pc.fill_null(plain.cast(pa.binary()), b"")


def _arrow_lists(
    column: pa.ChunkedArray | list[Any], is_wanted: Callable[[pa.DataType], bool], file: Path, name: str
) -> tuple[Ints, npt.NDArray[Any]]:
    """Offsets and values of a column of lists, neither with nulls."""
    import pyarrow as pa

    assert not isinstance(column, list)
    whole = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if not (pa.types.is_list(whole.type) or pa.types.is_large_list(whole.type)) or not is_wanted(whole.type.value_type):
        wanted = "whole numbers" if is_wanted is pa.types.is_integer else "numbers"
        raise InputError(f"holds {whole.type}, not lists of {wanted}", file=file, row=1, column=name)
    if whole.null_count:
        raise InputError("is empty (null)", file=file, row=_first_null(whole), column=name)
    offsets = whole.offsets.to_numpy().astype(np.int64)
    offsets = offsets - offsets[0]
    values = whole.flatten()
    if values.null_count:
        row = int(np.searchsorted(offsets, _first_null(values) - 1, side="right"))
        raise InputError("has an empty (null) number", file=file, row=row, column=name)
    return offsets, values.to_numpy(zero_copy_only=False)


def _first_null(column: pa.Array | pa.ChunkedArray) -> int:
    import pyarrow.compute as pc

    return int(pc.index(pc.is_null(column), True).as_py()) + 1


def _parsed(column: pa.ChunkedArray, file: Path, name: str) -> npt.NDArray[Any]:
    """Numbers out of text: whole ones as int64 where all are, else float64."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for kind in (pa.int64(), pa.float64()):
        try:
            texts = pc.utf8_trim_whitespace(column.cast(pa.string()))
            found: npt.NDArray[Any] = texts.cast(kind).to_numpy()
        except pa.ArrowInvalid:
            continue
        # Arrow also takes 0x10 for a number.
        if pc.all(pc.match_substring_regex(texts, f"^(?:{_NUMBER.pattern})$")).as_py() is not False:
            return found
    for row, value in enumerate(column.to_pylist(), 1):
        text = _decoded(value).strip()
        if _NUMBER.fullmatch(text) is None:
            problem = f"{text[:40]!r} is not a number" if text else "is empty"
            raise InputError(problem, file=file, row=row, column=name)
    raise AssertionError("Arrow reads every number of the pattern")


def _python_numbers(values: list[Any], file: Path, name: str) -> npt.NDArray[Any]:
    for row, value in enumerate(values, 1):
        if isinstance(value, bool) or not isinstance(value, int | float):
            shown = "is empty (null)" if value is None else f"{str(value)[:40]!r} is not a number"
            raise InputError(shown, file=file, row=row, column=name)
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InputError(f"{value} is too large", file=file, row=row, column=name)
    return np.array(values, dtype=np.int64 if all(isinstance(value, int) for value in values) else np.float64)


def _python_lists(values: list[Any], file: Path, name: str) -> tuple[Ints, Ints]:
    offsets = np.zeros(len(values) + 1, np.int64)
    flat: list[int] = []
    for row, value in enumerate(values, 1):
        if not isinstance(value, list):
            raise InputError(f"{str(value)[:40]!r} is not a list", file=file, row=row, column=name)
        for one in value:
            if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < 2**63:
                raise InputError(
                    f"{str(one)[:40]!r} in the list is not a whole number from 0 up", file=file, row=row, column=name
                )
        flat.extend(value)
        offsets[row] = len(flat)
    return offsets, np.array(flat, dtype=np.int64)


def _text(value: Any, column: str, row: int, file: Path) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        return _decoded(value)
    if isinstance(value, str | int | float | datetime):
        return str(value)
    raise InputError(f"{str(value)[:40]!r} is not a name", file=file, row=row, column=column)


def _decoded(raw: bytes | None) -> str:
    return "" if raw is None else raw.decode("utf-8", errors="replace") if isinstance(raw, bytes) else str(raw)


# --- dates ------------------------------------------------------------------------------------------------------------


def _fast_times(column: pa.ChunkedArray) -> Floats | None:
    """All at once, where all texts have a zone or none has, as the sources' have; else None."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for kind in (pa.timestamp("ns"), pa.timestamp("ns", "UTC")):
        try:
            stamps = pc.utf8_trim_whitespace(column.cast(pa.string())).cast(kind)
        except pa.ArrowInvalid:
            continue
        if not stamps.null_count:
            found: Floats = stamps.cast(pa.int64()).to_numpy() / 1e9
            return found
    return None


def _one_time(text: str, file: Path, row: int, column: str) -> float:
    try:
        # Python reads up to six digits of a second; sources give seven.
        head, dot, tail = text.partition(".")
        digits = len(tail) - len(tail.lstrip("0123456789"))
        found = datetime.fromisoformat(f"{head}{dot}{tail[: min(digits, 6)]}{tail[digits:]}")
    except ValueError:
        raise InputError(f"{text[:40]!r} is not a date and time", file=file, row=row, column=column) from None
    zoned = found if found.tzinfo is not None else found.replace(tzinfo=UTC)
    return zoned.timestamp()
