"""Starting servers for tests: what `inferencegym.testing.servers` offers to everybody, by the name that the tests here use."""

from inferencegym.testing.servers import InThread, NotReadyError, free_port, until, until_healthy

__all__ = ["InThread", "NotReadyError", "free_port", "until", "until_healthy"]
