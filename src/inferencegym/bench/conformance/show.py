"""A suite's results for programs (JSON) and for people (one HTML page in the style of our reports). Times are seconds; milliseconds on the page."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from inferencegym.bench.conformance.check import MUST, Result
from inferencegym.report.frame import framed, section, table

MARKS = {"pass": "✓ pass", "fail": "✗ fail", "skipped": "– skipped"}


def counts(results: Sequence[Result]) -> str:
    """In one sentence."""
    told = Counter((one.verdict, one.check.level) for one in results)
    failed = told["fail", "must"], told["fail", "should"]
    passed, skipped = (sum(told[verdict, level] for level in ("must", "should")) for verdict in ("pass", "skipped"))
    return f"{passed} pass, {sum(failed)} fail ({failed[0]} must, {failed[1]} should), {skipped} skipped"


def conforms(results: Sequence[Result], *, strict: bool = False) -> bool:
    """Whether no `must` failed; strictly: no check at all."""
    return not any(one.verdict == "fail" and (strict or one.check.level == MUST) for one in results)


def as_json(results: Sequence[Result], about: Mapping[str, str]) -> dict[str, Any]:
    """One object: what was tested, and each check."""
    return {
        "about": dict(about),
        "conforms": conforms(results),
        "checks": [
            {
                "id": one.check.id, "group": one.check.group, "level": one.check.level, "sentence": one.check.sentence,
                "verdict": one.verdict, "note": one.note, "took_s": round(one.took_s, 4),
            }
            for one in results
        ],
    }  # fmt: skip


def page(results: Sequence[Result], about: Mapping[str, str], command: str) -> str:
    """The page: what failed first, then all by group."""
    failed = [one for one in results if one.verdict == "fail"]
    word = "ok" if conforms(results) else "bad"
    body = [
        f"<p><strong class='{word}'>{'Conforms' if conforms(results) else 'Does not conform'}</strong>: {html.escape(counts(results))}.</p>"
    ]
    if failed:
        body.append(section("What failed", _table("Checks that failed.", failed)))
    for group in dict.fromkeys(one.check.group for one in results):
        own = [one for one in results if one.check.group == group]
        body.append(section(group.capitalize(), _table(f"Checks of {group}.", own)))
    context = {name: value for name, value in about.items() if name != "inferencegym"}  # the page's head says it
    title = f"Conformance: {about.get('server', '')}"
    return framed(
        title, "".join(body), command=command, context=context, digests={}, version=about.get("inferencegym", "")
    )


def _table(caption: str, results: Sequence[Result]) -> str:
    rows = []
    for one in results:
        texts = (one.check.id, one.check.level, one.check.sentence, MARKS[one.verdict], one.note)
        rows.append([*(html.escape(text) for text in texts), f"{one.took_s * 1e3:.0f}"])
    failed = [i for i, one in enumerate(results) if one.verdict == "fail"]
    heads = ("check", "level", "what", "verdict", "seen", "took (ms)")
    return table(caption, heads, rows, words=(1, 2, 3, 4), marked=failed)
