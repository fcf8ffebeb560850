"""Where a training stands, in one file: everything that the next update depends on, so that it can go on as if it had never stopped.

A state is notes (plain data) and arrays. It is written whole or not at all, and read without executing anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inferencegym.ground.archive import Array, read_archive, write_archive
from inferencegym.ground.errors import ConfigError, InputError

FORMAT = 1
NAME = "checkpoint.npz"
_MOST_BYTES = 4 * 1024**3
_ALLOWED = "a checkpoint.npz that `inferencegym train` wrote"
State = tuple[dict[str, Any], dict[str, Array]]


def save(path: Path, header: dict[str, Any], state: State, more: dict[str, Array]) -> None:
    """Write a learner's state; `header` and `more` are the training's own notes and arrays."""
    notes, arrays = state
    told = {"checkpoint": FORMAT, "header": header, "learner": notes}
    write_archive(path, told, {f"learner.{name}": array for name, array in arrays.items()} | {f"training.{name}": array for name, array in more.items()})  # fmt: skip


def load(path: Path) -> tuple[dict[str, Any], State, dict[str, Array]]:
    """(header, the learner's state, the training's arrays) of a checkpoint; ConfigError for anything else."""
    try:
        told, arrays = read_archive(path, most_bytes=_MOST_BYTES)
    except InputError as error:
        raise ConfigError("checkpoint", f"'{path}': {error.problem}", allowed=_ALLOWED) from error
    header, notes = told.get("header"), told.get("learner")
    if told.get("checkpoint") != FORMAT or not isinstance(header, dict) or not isinstance(notes, dict):
        raise foreign(path, f"it is not written in format {FORMAT}")
    learner: dict[str, Array] = {}
    more: dict[str, Array] = {}
    for name, array in arrays.items():
        part, _, rest = name.partition(".")
        (learner if part == "learner" else more)[rest] = array
    return header, (notes, learner), more


def foreign(path: Path, why: str) -> ConfigError:
    """What is said of a file that is whole, but none of ours."""
    return ConfigError("checkpoint", f"'{path}' is not a checkpoint of this training: {why}", allowed=_ALLOWED)
