"""Prometheus' text format 0.0.4, read strictly: a page that Prometheus would refuse is refused here. No units."""

from __future__ import annotations

import re
from collections.abc import Mapping

from inferencegym.ground.errors import InputError

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\"n])*"'
_SAMPLE = re.compile(rf"({_NAME})(\{{(?:{_LABEL}(?:,{_LABEL})*,?)?\}})?[ \t]+(\S+)(?:[ \t]+-?\d+)?\s*")
_HEAD = re.compile(rf"# (HELP|TYPE)[ \t]+({_NAME})(?:[ \t]+(.*))?")
_KINDS = frozenset(("counter", "gauge", "histogram", "summary", "untyped"))
_NUMBERS: Mapping[str, float] = {"+Inf": float("inf"), "-Inf": float("-inf"), "Inf": float("inf"), "NaN": float("nan")}


def read_samples(text: str) -> dict[str, float]:
    """Sum over the labels of each series. InputError names the first line that is wrong."""
    sums: dict[str, float] = {}
    seen: set[tuple[str, str]] = set()
    typed: set[str] = set()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if line.startswith("#"):
            head = _HEAD.fullmatch(line)
            if head is not None and head[1] == "TYPE":
                if head[3] not in _KINDS:
                    raise InputError(f"line {number}: '{head[3]}' is no type of a metric")
                if head[2] in typed:
                    raise InputError(f"line {number}: the type of {head[2]} is told twice")
                typed.add(head[2])
            continue
        found = _SAMPLE.fullmatch(line)
        if found is None:
            raise InputError(f"line {number} is no sample: {line[:80]!r}")
        name, labels, value = found[1], found[2] or "", found[3]
        if (name, labels) in seen:
            raise InputError(f"line {number}: {name}{labels} is told twice")
        seen.add((name, labels))
        try:
            sums[name] = sums.get(name, 0.0) + (_NUMBERS[value] if value in _NUMBERS else float(value))
        except ValueError as error:
            raise InputError(f"line {number}: {value!r} is no number") from error
    if text and not text.endswith("\n"):
        raise InputError("the last line does not end")
    return sums
