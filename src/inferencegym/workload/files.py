"""Our own file format: one Parquet table (or JSON lines at the edges) that holds a workload whole, with where it
comes from.

Format `inferencegym.workload`, version 1; `docs/workloads.md` lists the columns. Times are seconds, lengths tokens.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from inferencegym.ground.errors import ConfigError, InputError
from inferencegym.workload.table import Table
from inferencegym.workload.workload import COLUMNS, DEFAULTS, NAMED, Ints, Workload

FORMAT = "inferencegym.workload"
FORMAT_VERSION = 1
REQUIRED = ("arrival_s", "prompt_tokens", "output_tokens")
_ROWS_A_GROUP = 65_536


def write(workload: Workload, path: str | Path) -> Path:
    """Write `.parquet` or `.jsonl`. The file appears whole or not at all. Columns that hold their default throughout
    are left out.
    """
    target = Path(path)
    writers: dict[str, Callable[[Workload, IO[bytes]], None]] = {
        ".parquet": _write_parquet,
        ".jsonl": _write_json_lines,
    }
    writer = writers.get(target.suffix)
    if writer is None:
        raise ConfigError("path", f"'{target.name}' ends in '{target.suffix}'", allowed=" or ".join(writers))
    whole_file(target, lambda file: writer(workload, file))
    return target


def whole_file(target: Path, fill: Callable[[IO[bytes]], None]) -> None:
    """Fill a file beside `target` and move it there at the end; if anything goes wrong, nothing is left behind."""
    try:
        held = NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False)  # noqa: SIM115 (moved, not deleted)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", file=target) from error
    try:
        with held as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        # A temporary file is for its owner alone; a workload is as open as the process's other files.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(held.name, 0o666 & ~mask)
        os.replace(held.name, target)
    except BaseException as error:
        with suppress(FileNotFoundError):
            os.unlink(held.name)
        if isinstance(error, OSError):
            raise InputError(f"cannot be written: {error.strerror or error}", file=target) from error
        raise


def is_ours(names: list[str], metadata: dict[str, str]) -> bool:
    """Whether a file says that it is in our format."""
    return metadata.get("format") == FORMAT and "arrival_s" in names


def from_table(table: Table) -> Workload:
    """A workload from a table in our format."""
    meta = table.metadata
    if meta.get("version") != str(FORMAT_VERSION):
        raise InputError(
            f"is {FORMAT} version {meta.get('version')}; this package reads version {FORMAT_VERSION}", file=table.file
        )
    if "rows" in meta and table.length != _whole(meta, "rows", table):
        problem = f"says that it holds {meta['rows']} rows and holds {table.length}: it is not whole"
        raise InputError(problem, file=table.file)
    if table.length == 0:
        # JSON lines name their columns in each row: without rows there is no column.
        table = Table(table.file, {name: [] for name in REQUIRED}, 0, meta)
    table.require(*REQUIRED)
    columns: dict[str, Any] = {}
    for name, dtype in COLUMNS.items():
        if name in table and name not in NAMED:
            columns[name] = table.floats(name) if dtype == "float64" else table.ints(name)
        elif name in NAMED and (name in table or NAMED[name] in meta):
            codes, found = table.codes(name) if name in table else (np.zeros(table.length, np.int64), ())
            columns[name], columns[NAMED[name]] = _in_order(codes, found, meta.get(NAMED[name]), table)
    columns["prefix_block_tokens"] = _whole({"prefix_block_tokens": "0"} | meta, "prefix_block_tokens", table)
    if "prefix_ids" in table:
        columns["prefix_offsets"], columns["prefix_ids"] = table.lists("prefix_ids")
    for name in ("name", "source", "attribution"):
        columns[name] = meta.get(name, "")
    try:
        return Workload.of(**columns, sort=False)
    except InputError as error:
        raise error.in_file(table.file) from error


def _in_order(codes: Ints, found: tuple[str, ...], listed: str | None, table: Table) -> tuple[Ints, tuple[str, ...]]:
    """Codes in the order of the names that the file's metadata lists (also names that no row has)."""
    if listed is None:
        return codes, found
    try:
        names = json.loads(listed)
    except ValueError:
        names = None
    if not isinstance(names, list) or not {*found} <= {name for name in names if isinstance(name, str)}:
        problem = f"its metadata lists the names {listed[:80]}, and its rows have {', '.join(found)[:80]}"
        raise InputError(problem, file=table.file)
    return np.array([names.index(name) for name in found], np.int64)[codes] if found else codes, tuple(names)


def _whole(metadata: dict[str, str], name: str, table: Table) -> int:
    said = metadata.get(name, "")
    if not (said.isascii() and said.isdigit() and len(said) < 19):
        raise InputError(f"{name} is {said[:40]!r} in the file's metadata, not a whole number", file=table.file)
    return int(said)


def _metadata(w: Workload) -> dict[str, str]:
    return {
        "format": FORMAT,
        "version": str(FORMAT_VERSION),
        "name": w.name,
        "source": w.source,
        "attribution": w.attribution,
        "rows": str(len(w)),
        "prefix_block_tokens": str(w.prefix_block_tokens),
    } | {names: json.dumps(getattr(w, names), ensure_ascii=False) for names in NAMED.values()}


def _said(w: Workload) -> Iterator[tuple[str, npt.NDArray[Any], tuple[str, ...] | None]]:
    """Columns that say something: the required ones, and those that differ from their default anywhere."""
    for name, column in w.columns().items():
        names = getattr(w, NAMED[name]) if name in NAMED else None
        plain = bool((column == DEFAULTS.get(name, 0)).all()) and names in (None, ("default",))
        if not plain or name in REQUIRED:
            yield name, column, names


def _write_parquet(w: Workload, file: IO[bytes]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays: dict[str, Any] = {}
    for name, column, names in _said(w):
        arrays[name] = (
            pa.array(column) if names is None else pa.DictionaryArray.from_arrays(column.astype(np.int32), list(names))
        )
    if w.prefix_block_tokens:
        arrays["prefix_ids"] = pa.LargeListArray.from_arrays(w.prefix_offsets, w.prefix_ids)
    table = pa.table(arrays).replace_schema_metadata(_metadata(w))
    pq.write_table(table, file, compression="zstd", row_group_size=_ROWS_A_GROUP, write_page_checksum=True)


def _write_json_lines(w: Workload, file: IO[bytes]) -> None:
    file.write(json.dumps(_metadata(w), ensure_ascii=False).encode() + b"\n")
    said = list(_said(w))
    for row in range(len(w)):
        line: dict[str, Any] = {
            name: column[row].item() if names is None else names[column[row]] for name, column, names in said
        }
        if w.prefix_block_tokens:
            line["prefix_ids"] = w.prefix_of(row).tolist()
        file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
