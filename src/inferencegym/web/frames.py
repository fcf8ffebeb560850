"""Frames of a run's stream: u32 header bytes, u32 payload bytes (little-endian), header as JSON, payload.

Made once, by the process that plays, and forwarded as they are to every viewer.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from inferencegym.ground.errors import InputError

_HEAD = struct.Struct("<II")


def frame(header: Mapping[str, Any], payload: bytes = b"") -> bytes:
    """One frame."""
    text = msgspec.json.encode(header)
    return _HEAD.pack(len(text), len(payload)) + text + payload


def samples(number: int, policy: int, first: int, rows: int, payload: bytes) -> bytes:
    """Rows of a policy from sample `first` on; the payload is float32, column after column."""
    return frame({"type": "samples", "frame": number, "policy": policy, "first": first, "rows": rows}, payload)


def state(number: int, state: str, message: str = "") -> bytes:
    """What the run has come to."""
    return frame({"type": "state", "frame": number, "state": state, "message": message})


def ended(number: int, policy: int, state: str, result: Mapping[str, Any] | None, message: str = "") -> bytes:
    """A policy is at its end: completed, crashed, or failed with a message and without a result."""
    return frame(
        {"type": "ended", "frame": number, "policy": policy, "state": state, "result": result, "message": message}
    )


def alive(place: int) -> bytes:
    """Sent while there is nothing to send. `place`: in the line, 0 when the run is being played."""
    return frame({"type": "alive", "place": place})


class Reader:
    """Takes a stream's pieces, wherever they are cut, and gives its frames."""

    def __init__(self) -> None:
        self.held = b""
        """The beginning of a frame whose rest has not come."""

    def feed(self, piece: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
        """The (header, payload) of every frame that is whole now. Read it to its end."""
        data, at = self.held + piece, 0
        while len(data) - at >= _HEAD.size:
            head, size = _HEAD.unpack_from(data, at)
            body = at + _HEAD.size + head
            if len(data) < body + size:
                break
            yield msgspec.json.decode(data[at + _HEAD.size : body]), data[body : body + size]
            at = body + size
        self.held = data[at:]


def read(data: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The (header, payload) of whole frames; InputError if the bytes end within one."""
    reader = Reader()
    yield from reader.feed(data)
    if reader.held:
        raise InputError(f"ends within a frame, {len(reader.held)} bytes after its beginning")
