"""Tasks by name: finds a shipped task's data file, or a user's own, and hands it to the family that can read it.

A family's module is imported only when one of its tasks is asked for, so that naming a task costs nothing.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from pathlib import Path

from inferencegym.envs.batch import Task
from inferencegym.ground.errors import ConfigError, InputError, UnknownNameError

FOLDER = Path(__file__).parent / "tasks"
#: A family, and the module whose `load(path)` reads its tasks.
FAMILIES = {"llmserve": "inferencegym.envs.llmserve", "pagedkv": "inferencegym.envs.pagedkv"}


def task(name: str | Path) -> Task:
    """The shipped task of that name, or the task in a TOML file (anything that ends in .toml). Shipped ones are read once."""
    if str(name).endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise InputError("no such file; a task is a TOML file or one of " + ", ".join(task_names()), file=path)
        return _load(path)
    return _shipped(str(name))


@lru_cache(maxsize=64)
def _shipped(name: str) -> Task:
    if name not in task_names():
        raise UnknownNameError("task", name, task_names())
    return _load(FOLDER / f"{name}.toml")


@lru_cache(maxsize=1)
def _families() -> dict[str, str]:
    return {path.stem: family_of(path) for path in sorted(FOLDER.glob("*.toml"))}


def task_names(family: str | None = None) -> tuple[str, ...]:
    """The shipped tasks, of one family (llmserve, pagedkv) or of both."""
    if family is not None and family not in FAMILIES:
        raise UnknownNameError("family", family, tuple(FAMILIES))
    found = [name for name, of in _families().items() if family in (None, of)]
    # From easy to hard where the names say so; the rest as the alphabet has it.
    ladder = ("easy", "medium", "hard", "static_workload", "bursty_workload", "adversarial_multitenant")
    return tuple(sorted(found, key=lambda name: (ladder.index(name) if name in ladder else len(ladder), name)))


def family_of(path: Path) -> str:
    """The family that a task's file names."""
    try:
        family = tomllib.loads(path.read_text(encoding="utf-8")).get("family")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"is not TOML: {error}", file=path) from error
    if family not in FAMILIES:
        raise ConfigError(f"{path.name}: family", f"{family!r} is not known", allowed=", ".join(FAMILIES))
    return str(family)


def _load(path: Path) -> Task:
    load: Callable[[Path], Task] = import_module(FAMILIES[family_of(path)]).load
    return load(path)
