"""A scripted OpenAI-compatible server for tests; it lives with the conformance suite, which puts it behind gateways."""

from __future__ import annotations

from inferencegym.bench.conformance.upstream import Act, Seen, Upstream

__all__ = ["Act", "Seen", "Upstream"]
