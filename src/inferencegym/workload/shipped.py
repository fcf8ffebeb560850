"""The descriptions that come with the package: figures fitted on public traces, never rows of them, each with its
attribution.

They are found by dashed names (`azure-conversation`); a real trace's file has another name (`azure_conv_2023`). No
units.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from inferencegym.ground.errors import UnknownNameError
from inferencegym.workload.spec import Spec, check

FOLDER = Path(__file__).resolve().parent / "fits"


def names() -> tuple[str, ...]:
    """Names of the shipped descriptions."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def is_description(what: str) -> bool:
    """Whether a name or path stands for a description (to `generate`), not for a file of requests (to `read`)."""
    return what.lower() in names() or what.endswith((".json", ".toml"))


@cache
def load_named(name: str) -> Spec:
    """A shipped description."""
    if name.lower() not in names():
        raise UnknownNameError("workload description", name, names())
    path = FOLDER / f"{name.lower()}.json"
    return check(json.loads(path.read_text(encoding="utf-8")), path)
