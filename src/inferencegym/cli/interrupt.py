"""Ctrl-C in a verb that can end with what it has: the first is a KeyboardInterrupt, the second ends the process at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Exit status of a command that Ctrl-C ended (128 + SIGINT).
STATUS = 130


@contextmanager
def first_then_end() -> Iterator[None]:
    """In this block the second Ctrl-C kills, whatever the answer to the first is busy with; nothing changes for those who ignore it or have a handler of their own."""
    mine = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not mine or threading.current_thread() is not threading.main_thread():
        yield
        return

    def first(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
