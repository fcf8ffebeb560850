"""A page of ours around HTML: one file with nothing from outside and no script, which says at its head what made it.

`framed` makes the page; `section`, `table` and `facts` are its parts, all with a place in the document's outline for those who listen to it.
Text that is handed in is HTML where a parameter says so, and is escaped everywhere else. No units.
"""

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from inferencegym.report.style import paper_css

#: More columns than this are printed small.
MANY = 8


def framed(
    title: str,
    body: str,
    *,
    command: str,
    digests: Mapping[str, str],
    version: str,
    context: Mapping[str, str] | None = None,
    style: str = "",
) -> str:
    """The whole page.

    `body`: HTML; `digests`: what was used -> its digest; `version`: of the package that made the figures; `context`: further facts;
    `style`: CSS of the body's own.
    """
    made = (
        f'<p class="made">Made with inferencegym {html.escape(version)} by</p><pre class="made"><code>{html.escape(command)}</code></pre>'
        f"<dl>{facts(context or {})}{facts(digests, code=True)}</dl>"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="generator" content="inferencegym {html.escape(version, quote=True)}">'
        f"<title>{html.escape(title)}</title><style>{paper_css()}{style}</style></head>"
        f"<body><main><header><h1>{html.escape(title)}</h1>{made}</header>{body}</main></body></html>\n"
    )


def section(title: str, body: str) -> str:
    """A part of the page under a heading of second rank. `body`: HTML. Nothing if there is no body."""
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>" if body else ""


def facts(known: Mapping[str, str], *, code: bool = False) -> str:
    """Names and values as entries of a <dl>; empty ones left out. `code`: values are set like code, as digests are."""
    rows = []
    for name, value in known.items():
        if value:
            shown = f"<code>{html.escape(value)}</code>" if code else html.escape(value)
            rows.append(f"<dt>{html.escape(name)}</dt><dd>{shown}</dd>")
    return "".join(rows)


def table(
    caption: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    words: Collection[int] = (),
    marked: Collection[int] = (),
) -> str:
    """A table that scrolls sideways where the screen is narrow. The first cell of a row is its heading.

    `heads`, `rows`: HTML; `words`: columns that hold words, set to the left; `marked`: rows that stand out.
    """
    side = [' class="words"' if i in words else "" for i in range(len(heads))]
    head = "".join(f'<th scope="col"{side[i]}>{text}</th>' for i, text in enumerate(heads))
    lines = []
    for number, row in enumerate(rows):
        assert len(row) == len(heads), f"row {number} has {len(row)} cells for {len(heads)} columns"
        cells = "".join(f"<td{side[i]}>{text}</td>" for i, text in enumerate(row) if i)
        lines.append(f'<tr{" class=marked" if number in marked else ""}><th scope="row">{row[0]}</th>{cells}</tr>')
    said = html.escape(caption, quote=True)
    many = ' class="many"' if len(heads) > MANY else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{said}"><table{many}><caption><span>{said}</span></caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def write_whole(path: Path | str, text: str) -> None:
    """Write a text file, whole or not at all; its folder is made."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
