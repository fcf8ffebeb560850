"""How kernels are compiled: one decorator, one set of options, one cache that cannot go stale.

Numba checks only the file a cached function stands in, not the files of the functions it calls. Our kernels call each other
across files, so the cache folder is named after the sizes and times of all kernel files together: edit any, and all compile again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

import numba

__all__ = ["kernel"]

F = TypeVar("F", bound=Callable[..., object])


def _cache_folder() -> str:
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        stat = file.stat()
        if b"@kernel" in file.read_bytes():
            digest.update(f"{file}:{stat.st_size}:{stat.st_mtime_ns}".encode())
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return str(root / "inferencegym" / f"numba-{numba.__version__}-{digest.hexdigest()[:16]}")


if not os.environ.get("NUMBA_CACHE_DIR"):
    setattr(numba.config, "CACHE_DIR", _cache_folder())  # noqa: B010 (numba types its settings as constants)


def kernel(function: F) -> F:
    """Compile `function` with Numba in no-Python mode and keep the machine code on disk.

    No fastmath (results must not depend on the compiler's mood), no bounds checks, no Python errors inside:
    kernels return codes, and the Python face turns them into errors. `NUMBA_DISABLE_JIT=1` leaves plain Python.
    """
    return cast(F, numba.njit(cache=True, error_model="numpy")(function))
