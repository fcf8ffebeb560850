"""A session of control as JSON lines, one a window: what was seen, shown, answered, sent, and why. Not known is null; times in seconds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from inferencegym.control.loop import Window
from inferencegym.decision.snapshot import NAMES
from inferencegym.ground.errors import InputError

FORMAT = 1


def as_json(window: Window) -> dict[str, Any]:
    """A window in JSON's own types; the observation as encoded numbers in the order of the snapshot's fields."""
    return {
        "window": window.number, "at_s": window.at_s, "driver": window.driver, "reasons": list(window.reasons),
        "snapshot": None if window.snapshot is None else dict(zip(NAMES, window.snapshot.values().tolist(), strict=True)),
        "observation": None if window.observation is None else window.observation.tolist(),
        "action": None if window.action is None else window.action.given(), "command": window.command.given(),
        "applied": asdict(window.applied), "outside": window.outside, "answer_s": window.answer_s, "took_s": window.took_s,
    }  # fmt: skip


class Recording:
    """Writes a file, line by line: what was written stays, however the session ends."""

    def __init__(self, path: Path, **about: object) -> None:
        """`about`: what the first line says of the session."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb", buffering=0)
        self._line({"format": FORMAT, **about})

    def write(self, window: Window) -> None:
        """One more window."""
        self._line(as_json(window))

    def _line(self, told: dict[str, Any]) -> None:
        self._file.write(msgspec.json.encode(told) + b"\n")

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:  # fmt: skip
        self._file.close()


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(what the session was, its windows) of a file; InputError for any other. A last line that was cut off is left out."""
    lines = path.read_bytes().split(b"\n")
    told: list[dict[str, Any]] = []
    for row, line in enumerate(lines[:-1], 1):
        try:
            told.append(msgspec.json.decode(line, type=dict[str, Any]))
        except msgspec.MsgspecError as error:
            raise InputError(f"is no JSON object: {error}", file=path, row=row) from error
    if not told or told[0].get("format") != FORMAT:
        raise InputError(f"is no session of control in format {FORMAT}", file=path)
    return told[0], told[1:]
