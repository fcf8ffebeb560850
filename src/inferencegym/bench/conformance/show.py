"""A suite's results for programs (JSON) and for people (one HTML page in the style of our reports). Times are seconds; milliseconds on the page."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from inferencegym.bench.conformance.check import MUST, Result
from inferencegym.bench.report import facts, framed

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
    body = [
        f"<h1>Conformance: {html.escape(about.get('server', ''))}</h1>",
        f"<p>Made by <code>{html.escape(command)}</code></p>",
        facts(about),
        f"<p><strong>{'Conforms' if conforms(results) else 'Does not conform'}</strong>: {html.escape(counts(results))}.</p>",
    ]
    if failed:
        body += ["<h2>What failed</h2>", _table(failed)]
    for group in dict.fromkeys(one.check.group for one in results):
        body += [
            f"<h2>{html.escape(group.capitalize())}</h2>",
            _table([one for one in results if one.check.group == group]),
        ]
    return framed("Conformance", "".join(body))


def _table(results: Sequence[Result]) -> str:
    heads = "".join(f"<th scope='col'>{head}</th>" for head in ("check", "level", "what", "verdict", "seen", "ms"))
    rows = "".join(
        f"<tr{' class=differs' if one.verdict == 'fail' else ''}><th scope='row'>{html.escape(one.check.id)}</th>"
        + "".join(
            f"<td style='text-align:left'>{html.escape(text)}</td>" for text in (one.check.level, one.check.sentence)
        )
        + f"<td>{MARKS[one.verdict]}</td><td style='text-align:left'>{html.escape(one.note)}</td><td>{one.took_s * 1e3:.0f}</td></tr>"
        for one in results
    )
    return f"<div class='scroll'><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
