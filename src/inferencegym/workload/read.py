"""Read a workload from a file of any known format; which one is told by the ending and the columns.

Times are seconds, lengths tokens. A file that is wrong gives one error that names file, row (1 is the first after a
header) and column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import file_digest
from pathlib import Path

from inferencegym.ground.errors import ConfigError, InputError, UnknownNameError
from inferencegym.workload import files, public, servegen, weka
from inferencegym.workload.find import find
from inferencegym.workload.mapped import from_mapping
from inferencegym.workload.options import ReadOptions
from inferencegym.workload.table import (
    Table,
    csv_header,
    json_columns,
    listed,
    parquet_columns,
    read_csv,
    read_json_lines,
    read_parquet,
)
from inferencegym.workload.workload import Workload


@dataclass(frozen=True, slots=True)
class Format:
    """How one format is told and read."""

    endings: tuple[str, ...]
    told_by: frozenset[str]
    """Columns that the format has and others do not have together."""
    load: Callable[[Path, ReadOptions], Workload]
    about: str


def _tabular(convert: Callable[[Table, ReadOptions], Workload]) -> Callable[[Path, ReadOptions], Workload]:
    return lambda path, options: convert(load_table(path), options)


#: In the order they are tried: those with more particular columns first.
FORMATS: dict[str, Format] = {
    "inferencegym": Format(
        (".parquet", ".jsonl"), frozenset(), _tabular(lambda table, _: files.from_table(table)), "our own format"
    ),
    "burstgpt": Format(
        (".csv",),
        frozenset({"Timestamp", "Request tokens", "Response tokens"}),
        _tabular(public.burstgpt),
        "BurstGPT_1.csv to _3.csv",
    ),
    "azure": Format(
        (".csv",),
        frozenset({"TIMESTAMP", "ContextTokens", "GeneratedTokens"}),
        _tabular(public.azure),
        "Azure 2023 and 2024",
    ),
    "mooncake": Format(
        (".jsonl",),
        frozenset({"timestamp", "input_length", "output_length"}),
        _tabular(public.mooncake),
        "Mooncake's JSON lines",
    ),
    "servegen": Format(
        (".parquet",),
        frozenset({"client_id", "rate_rps", "dist"}),
        servegen.read_pool,
        "ServeGen's clients: a pool drawn anew",
    ),
    "weka": Format(
        (".parquet",),
        frozenset({"session_id", "agent", "think_s", "hash_ids"}),
        weka.read_weka,
        "sessions of coding agents",
    ),
    "ragpulse": Format(
        (".parquet",),
        frozenset({"n_passages", "hash_ids"}),
        _tabular(public.ragpulse),
        "RAGPulse with ragpulse_chunks beside",
    ),
    "trace": Format(
        (".parquet",),
        frozenset({"arrival_s", "prompt_tokens", "output_tokens"}),
        _tabular(public.trace),
        "Parquet with arrival_s, prompt_tokens, output_tokens and, if there, kind, tenant, session_id, hash_ids",
    ),
}


def read(
    path_or_name: str | Path,
    *,
    format: str | None = None,  # noqa: A002 (what a person would type)
    columns: Mapping[str, str] | None = None,
    sort: bool = False,
    prefixes: bool = True,
    sessions: int | None = None,
    session_every_s: float = 60.0,
    closed_loop: bool = True,
    pool: str | None = None,
    start_s: float = 0.0,
    duration_s: float | None = None,
    seed: int = 0,
) -> Workload:
    """A workload from a file.

    path_or_name : a file, or the name of one in INFERENCEGYM_TRACE_DIR (`azure_conv_2023`)
    format : one of FORMATS, where the columns do not tell
    columns : for any CSV, JSON lines or Parquet: our column -> the file's, times with a unit ({"arrival_s": "ts:ms"};
    `:date` for dates)
    sort : take rows whose time runs backwards, and sort them; without it they are an error
    prefixes : read prefix ids (the coding-agent trace has 68 million, half a gigabyte)
    sessions, session_every_s, closed_loop : traces without a common clock: how many sessions, how far apart they
    start on average (Poisson, from `seed`), and whether a turn waits for the answer before it
    pool, start_s, duration_s : ServeGen clients: which pool (deepseek-r1, m-large, ...), and which part of its time
    """
    path = find(path_or_name)
    options = ReadOptions(
        sort=sort, prefixes=prefixes, sessions=sessions, session_every_s=session_every_s, closed_loop=closed_loop,
        pool=pool, start_s=start_s, duration_s=duration_s, seed=seed,
    )  # fmt: skip
    try:
        if columns is not None:
            if format is not None:
                raise ConfigError("format", "does not go together with columns", allowed="one of the two")
            kind, workload = "mapped", from_mapping(load_table(path), columns, options)
        else:
            kind = detect(path) if format is None else _known(format)
            workload = FORMATS[kind].load(path, options)
    except InputError as error:
        if error.file is not None:
            raise
        raise error.in_file(path) from error
    if not len(workload) and kind not in ("inferencegym", "servegen"):
        # Ours may be empty, and so may what is drawn anew; a trace without rows is what is left of one.
        raise InputError("has no rows", file=path)
    if workload.name != "workload" and workload.source != "made in Python":
        return replace(workload, source=f"read from {path.name} (sha256 {_digest(path)}); {workload.source}")
    return replace(workload, name=path.stem, source=f"read from {path.name} (sha256 {_digest(path)})")


def detect(path: Path) -> str:
    """The format of a file, told by its ending and columns."""
    names, metadata = _columns_of(path)
    if metadata.get("format") == files.FORMAT:
        return "inferencegym"
    for name, known in FORMATS.items():
        if path.suffix in known.endings and known.told_by and known.told_by <= set(names):
            return name
    raise InputError(
        f"has {listed(names)}, which is no format that is known ({', '.join(FORMATS)}); "
        "name its columns: columns={'arrival_s': 'ts:ms', 'prompt_tokens': 'in', 'output_tokens': 'out'}",
        file=path,
    )


def load_table(path: Path) -> Table:
    """Any table."""
    loaders = {".csv": read_csv, ".jsonl": read_json_lines, ".parquet": read_parquet}
    if path.suffix not in loaders:
        raise InputError(f"ends in '{path.suffix}'; known endings: {', '.join(loaders)}", file=path)
    return loaders[path.suffix](path)


def _columns_of(path: Path) -> tuple[list[str], dict[str, str]]:
    if path.suffix == ".csv":
        return csv_header(path), {}
    if path.suffix == ".parquet":
        return parquet_columns(path)
    if path.suffix == ".jsonl":
        return json_columns(path)
    raise InputError(f"ends in '{path.suffix}'; known endings: .csv, .jsonl, .parquet", file=path)


def _known(name: str) -> str:
    if name not in FORMATS:
        raise UnknownNameError("format", name, FORMATS)
    return name


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()[:16]
