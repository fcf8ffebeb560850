"""Any table whose columns a person names: our column -> the file's, with the unit of times. Times become seconds,
lengths are tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from inferencegym.ground.errors import ConfigError, InputError
from inferencegym.workload.options import ReadOptions
from inferencegym.workload.table import TIME_UNITS_S, Table
from inferencegym.workload.workload import COLUMNS, NAMED, Floats, Ints, Workload

#: Our columns that a mapping may name; `after` cannot, as rows may be sorted.
MAPPABLE = tuple(name for name in COLUMNS if name not in ("after", "think_s"))


def from_mapping(table: Table, columns: Mapping[str, str], options: ReadOptions) -> Workload:
    """A workload whose time starts at its first request. Sessions may have any names."""
    for name in columns:
        if name not in MAPPABLE:
            raise ConfigError("columns", f"'{name}' is no column of a workload", allowed=", ".join(MAPPABLE))
    for name in ("arrival_s", "prompt_tokens", "output_tokens"):
        if name not in columns:
            raise ConfigError(
                "columns", f"'{name}' is not named", allowed="arrival_s, prompt_tokens and output_tokens at least"
            )
    made: dict[str, Any] = {}
    for name, said in columns.items():
        if name == "arrival_s":
            made[name] = _times(table, said)
        elif name in NAMED:
            made[name], made[NAMED[name]] = table.codes(said)
        elif name == "session_id":
            made[name] = sessions(table, said)
        else:
            made[name] = table.ints(said, name)
    return tell_columns(table, columns, lambda: Workload.of(**made, sort=options.sort))


def sessions(table: Table, column: str) -> Ints:
    """Sessions called anything, as numbers; where the name is empty there is none (-1)."""
    codes, names = table.codes(column)
    return np.array([-1 if name == "none" else number for number, name in enumerate(names)], np.int64)[codes]


def tell_columns(
    table: Table, columns: Mapping[str, str], make: Callable[[], Workload], rows: Ints | None = None
) -> Workload:
    """Make a workload; an error names the file's column and row, not ours.

    rows : int64[n], where each row of the workload stands in the file (from 0), if it was moved
    """
    try:
        return make()
    except InputError as error:
        said = columns.get(error.column or "", error.column)
        row = error.row if error.row is None or rows is None else int(rows[error.row - 1]) + 1
        raise InputError(error.problem, file=table.file, row=row, column=said) from error


def _times(table: Table, said: str) -> Floats:
    name, unit = (said, "s") if said in table else _split(said)
    found = table.seconds(name) if unit == "date" else table.floats(name) * TIME_UNITS_S[unit]
    return found - found.min(initial=found[0]) if len(found) else found


def _split(said: str) -> tuple[str, str]:
    name, colon, unit = said.rpartition(":")
    if not colon:
        return said, "s"
    if unit not in TIME_UNITS_S and unit != "date":
        raise ConfigError(
            "columns", f"'{said}': '{unit}' is no unit of time", allowed=f"{', '.join(TIME_UNITS_S)}, date"
        )
    return name, unit
