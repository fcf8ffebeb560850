"""Arrays and a note in one `.npz` file: written whole or not at all, and read as a stranger's.

Nothing in a file is executed (no pickles), its unpacked size is bounded before it is unpacked, and whatever is wrong with it comes out as
one InputError. Trained policies and checkpoints are such files.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inferencegym.ground.errors import InputError

Array = npt.NDArray[Any]
_NOTE = "notes"
_MOST_NOTE_BYTES = 64 * 1024 * 1024
#: What NumPy, zipfile and json raise over bytes that are not what they seem.
BROKEN = (
    zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError, RuntimeError,
    SyntaxError, MemoryError, AttributeError,
)  # fmt: skip


def write_archive(path: Path, notes: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write notes (JSON) and arrays; a reader sees the old file or the new one, never half of one."""
    if _NOTE in arrays:
        raise AssertionError(f"'{_NOTE}' is the note's own name")
    text = np.frombuffer(json.dumps(notes, sort_keys=True).encode(), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            np.savez(file, allow_pickle=False, **{_NOTE: text}, **arrays)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_archive(path: Path, *, most_bytes: int) -> tuple[dict[str, Any], dict[str, Array]]:
    """Notes and arrays of a file that `write_archive` wrote; InputError for anything else. `most_bytes`: largest size, unpacked."""
    if not path.is_file():
        raise InputError("there is no such file", file=path)
    try:
        with zipfile.ZipFile(path) as zipped:
            size = sum(member.file_size for member in zipped.infolist())
        if size > most_bytes:
            raise ValueError(f"it is larger than {most_bytes // 2**20} MiB")
        with np.load(path, allow_pickle=False) as data:
            arrays = {key: data[key] for key in data.files}
        text = arrays.pop(_NOTE).tobytes()
        if len(text) > _MOST_NOTE_BYTES:
            raise ValueError("its notes are too long")
        notes = json.loads(text)
        if not isinstance(notes, dict):
            raise ValueError("its notes are no object")
    except BROKEN as error:
        raise InputError(f"is broken or something else ({error or type(error).__name__})", file=path) from error
    return notes, arrays
