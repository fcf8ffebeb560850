"""Where trace files lie: the folder INFERENCEGYM_TRACE_DIR names, and the one that `traces fetch` fills. No units."""

from __future__ import annotations

import os
from pathlib import Path

from inferencegym.ground.errors import InputError, UnknownNameError
from inferencegym.workload.shipped import names

VARIABLE = "INFERENCEGYM_TRACE_DIR"
SUFFIXES = (".parquet", ".jsonl", ".csv")


def fetched_folder() -> Path:
    """Where `traces fetch` puts files unless told otherwise."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "inferencegym" / "traces"


def trace_folders() -> tuple[Path, ...]:
    """Folders that trace names are looked up in, first come first served; those that are there."""
    named = os.environ.get(VARIABLE)
    folders = ((Path(named),) if named else ()) + (fetched_folder(),)
    return tuple(folder for folder in folders if folder.is_dir())


def found_traces() -> dict[str, Path]:
    """Trace files by name (the file's name without its ending)."""
    found: dict[str, Path] = {}
    for folder in trace_folders():
        for path in sorted(folder.iterdir()):
            if path.suffix in SUFFIXES and not path.name.startswith("."):
                found.setdefault(path.stem, path)
    return found


def find(path_or_name: str | Path) -> Path:
    """The file that a path or a trace's name stands for."""
    path = Path(path_or_name)
    if isinstance(path_or_name, Path) or "/" in path_or_name or path.suffix in (*SUFFIXES, ".json", ".toml"):
        if not path.is_file():
            raise InputError("there is no such file", file=path)
        if path.suffix in (".json", ".toml"):
            raise InputError(
                f"would be a description, not a file of requests: use inferencegym.generate('{path}', duration_s=3600)",
                file=path,
            )
        return path
    traces = found_traces()
    if path_or_name in traces:
        return traces[path_or_name]
    if path_or_name in names():
        raise InputError(
            f"'{path_or_name}' is a description, not a file of requests: "
            f"use inferencegym.generate('{path_or_name}', duration_s=3600)"
        )
    hint = () if os.environ.get(VARIABLE) else (f"files in the folder that {VARIABLE} names (it is not set)",)
    raise UnknownNameError("trace", path_or_name, (*traces, *names(), *hint))
