"""Every error a person can cause, as one tree: each says what is wrong, where, and what to type instead.

A programming mistake inside the package is an assertion, never one of these. No units.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from os import PathLike, fspath
from typing import Any


class InferenceGymError(Exception):
    """The root: catch this to catch every error the package raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Python rebuilds an exception by calling its class with `args`, which fails where __init__ asks for more,
        # and would leave a process pool waiting for ever. So it is rebuilt from its parts.
        return _rebuild, (type(self), self.args, self.__dict__)


class InputError(InferenceGymError, ValueError):
    """Data that came in is wrong; names the file, the row (1-based, header not counted) and the column."""

    file: str | None
    row: int | None
    column: str | None

    def __init__(
        self,
        problem: str,
        *,
        file: str | PathLike[str] | None = None,
        row: int | None = None,
        column: str | None = None,
    ) -> None:
        self.file = None if file is None else fspath(file)
        self.row = row
        self.column = column
        self.problem = problem
        super().__init__(_located(problem, self.file, row, column))

    def in_file(self, file: str | PathLike[str]) -> InputError:
        """The same error, told from the file it was found in (for checks that do not know the file)."""
        return type(self)(self.problem, file=file, row=self.row, column=self.column)


class ConfigError(InferenceGymError, ValueError):
    """A setting is wrong; names the field, what was given and what is allowed."""

    field: str
    allowed: str | None

    def __init__(self, field: str, problem: str, *, allowed: str | None = None) -> None:
        self.field = field
        self.allowed = allowed
        tail = "" if allowed is None else f"; allowed: {allowed}"
        super().__init__(f"{field}: {problem}{tail}")


class UnknownNameError(InferenceGymError, LookupError):
    """A name that nothing was registered under; lists the known ones and the nearest."""

    kind: str
    name: str
    known: tuple[str, ...]

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind = kind
        self.name = name
        self.known = tuple(known)
        listed = ", ".join(self.known) if self.known else "none"
        super().__init__(f"Unknown {kind} '{name}'; known: {listed}.{_hint(name, self.known)}")


class OfflineError(InferenceGymError, OSError):
    """Something had to come over the network and could not; says what, and what to do without a network."""


class MissingExtraError(InferenceGymError, ImportError):
    """An optional library is not installed; carries the pip line that brings it."""

    extra: str

    def __init__(self, extra: str, purpose: str) -> None:
        self.extra = extra
        super().__init__(f"{purpose} needs the extra '{extra}'; type: pip install 'inferencegym[{extra}]'")


def _rebuild(kind: type[InferenceGymError], args: tuple[Any, ...], parts: dict[str, Any]) -> InferenceGymError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(parts)
    return error


def _located(problem: str, file: str | None, row: int | None, column: str | None) -> str:
    place = []
    if row is not None:
        place.append(f"row {row}")
    if column is not None:
        place.append(f"column '{column}'")
    return ": ".join(part for part in (file, ", ".join(place), problem) if part)


def _hint(name: str, known: tuple[str, ...]) -> str:
    near = get_close_matches(name.lower(), known, n=1)
    return f" Did you mean '{near[0]}'?" if near else ""
