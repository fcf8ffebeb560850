"""The page of an evaluation: one HTML file without anything from outside, with a table and a chart of intervals for every task."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from inferencegym.learn.evaluate import Evaluation, Row
from inferencegym.learn.explain_page import CSS
from inferencegym.learn.statistics import Estimate

_WIDTH, _LEFT, _LINE = 640, 190, 24


def write_page(path: Path, evaluation: Evaluation, *, command: str, more: Mapping[str, str] | None = None) -> None:
    """Write the file. `more`: see `page`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(evaluation, command=command, more=more), encoding="utf-8")


def page(evaluation: Evaluation, *, command: str, more: Mapping[str, str] | None = None) -> str:
    """The whole page as text. `more`: task -> HTML that follows its table, such as explanations of policies."""
    more = more or {}
    rows = evaluation.table()
    n = len(evaluation.scenarios)
    parts = [
        "<h1>Policies compared</h1>",
        f"<p>Made by <code>{html.escape(command)}</code> with inferencegym {html.escape(evaluation.version)}, on {n} scenarios of the split"
        f" <b>{html.escape(evaluation.split)}</b>.</p>",
        "<p><b>grade</b>: 0 for the random policy, 1 for a planner that knows the future, on the same scenario; where a task has no such anchors,"
        " the <b>value</b> of the episodes themselves. Dots are interquartile means, lines their 95 % stratified bootstrap intervals."
        " <b>beats static</b>: the chance that an episode of the policy is better than one of the best static configuration, which never changes."
        " <b>return</b>: the sum of rewards. On the right, in italics, what the value is made of.</p>",
    ]
    for name in dict.fromkeys(row.task for row in rows):
        own = [row for row in rows if row.task == name]
        parts += [f"<h2>{html.escape(name)}</h2>", _chart(own), _table(own)]
        digest = next((one.digest for one in evaluation.episodes if one.task == name), "")
        if digest:
            parts.append(f"<p><em>digest {digest}</em></p>")
        parts.append(more.get(name, ""))
    for name, why in evaluation.skipped.items():
        parts.append(f"<p>Not played: {html.escape(name)}: {html.escape(why)}</p>")
    parts += [f"<p>No result of {html.escape(line)}</p>" for line in evaluation.missing()]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Policies compared</title><style>{_CSS}{CSS if more else ''}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def score_label(graded: bool) -> str:
    """What a row's score is."""
    return "grade" if graded else "value (no anchors)"


#: What is told of a language model's questions: heading, figure(s) of `Usage.report`, how they are written.
_ASKED = (
    ("questions", ("questions",), "{:.0f}"),
    ("parse failures", ("parse_failures",), "{:.0f}"),
    ("not allowed", ("illegal",), "{:.0f}"),
    ("retries", ("retries",), "{:.0f}"),
    ("tokens in, out", ("prompt_tokens", "completion_tokens"), "{:.0f}, {:.0f}"),
    ("s/question (p95)", ("latency_mean_s", "latency_p95_s"), "{:.2f} ({:.2f})"),
    ("US$", ("cost_usd",), "{:.4f}"),
)


def asked_labels(asked: Sequence[Mapping[str, float]]) -> list[str]:
    """Headings of what language models asked for in some rows: none if there are no such rows."""
    return [label for label, names, _ in _ASKED if any(set(names) <= set(one) for one in asked)]


def asked_cells(one: Mapping[str, float] | None, asked: Sequence[Mapping[str, float]]) -> list[str]:
    """A row's figures below those headings; empty for a policy that asks nobody."""
    labels = asked_labels(asked)
    shown = [(names, form) for label, names, form in _ASKED if label in labels]
    return [form.format(*(one[n] for n in names)) if one and set(names) <= set(one) else "" for names, form in shown]


def _interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return "<td></td>"
    return f"<td>{estimate.value:.3f} <em>{estimate.low:.3f} .. {estimate.high:.3f}</em></td>"


def _table(rows: list[Row]) -> str:
    terms = list(dict.fromkeys(name for row in rows for name in row.parts))
    beats, crashed = any(row.improvement for row in rows), any(row.crashed for row in rows)
    heads = ["policy", score_label(rows[0].graded), "value", "return"]
    heads += (["crashed"] if crashed else []) + (["beats static"] if beats else [])
    asked = [row.asked for row in rows if row.asked is not None]
    heads += asked_labels(asked)
    lines = []
    for row in rows:
        cells = f"{_interval(row.score)}<td>{row.value:.4f}</td><td>{row.total_reward:.2f}</td>"
        cells += f"<td>{row.crashed:.0%}</td>" if crashed else ""
        cells += _interval(row.improvement) if beats else ""
        cells += "".join(f"<td>{html.escape(text)}</td>" for text in asked_cells(row.asked, asked))
        cells += "".join(f"<td>{row.parts.get(name, 0.0):+.3f}</td>" for name in terms)
        lines.append(f"<tr><th scope='row'>{html.escape(row.policy)}</th>{cells}</tr>")
    head = "".join(f"<th scope='col'>{html.escape(text)}</th>" for text in heads)
    head += "".join(f"<th scope='col' class='part'>{html.escape(name)}</th>" for name in terms)
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"


def _ticks(low: float, high: float) -> list[float]:
    """Some round numbers from low to high."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _chart(rows: list[Row]) -> str:
    """A dot and a whisker for each policy."""
    low = min(0.0, *(row.score.low for row in rows))
    high = max(1.0 if rows[0].graded else 0.0, *(row.score.high for row in rows)) or 1.0
    height = _LINE * len(rows) + 34

    def x(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - 16)

    said = "; ".join(f"{row.policy} {row.score}" for row in rows)
    lines = [f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{html.escape(said, quote=True)}">']
    for value in _ticks(low, high):
        lines.append(
            f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="4" y2="{height - 26}"/>'
            f'<text x="{x(value):.1f}" y="{height - 10}" text-anchor="middle">{value:.4g}</text>'
        )
    for i, row in enumerate(rows):
        y = _LINE * i + 16
        lines.append(
            f'<text class="label" x="{_LEFT - 10}" y="{y + 4}" text-anchor="end">{html.escape(row.policy[:26])}</text>'
            f'<line class="bar" x1="{x(row.score.low):.1f}" x2="{x(row.score.high):.1f}" y1="{y}" y2="{y}"/>'
            f'<circle class="dot" cx="{x(row.score.value):.1f}" cy="{y}" r="4.5"/>'
        )
    return "".join(lines) + "</svg>"


_CSS = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1a1a1a;--soft:#5c5c5c;--rule:#d8d8d8;--mark:#f3f6fa}
@media (prefers-color-scheme:dark){:root{--paper:#15181c;--ink:#e8e8e8;--soft:#a8adb3;--rule:#343a41;--mark:#1f252c}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1160px;margin:0 auto;padding:1.5rem}h1{font-size:1.6rem;margin:0 0 .5rem}h2{font-size:1.2rem;margin:2rem 0 .5rem}
code{background:var(--mark);padding:.1em .35em;border-radius:4px;overflow-wrap:anywhere}em{color:var(--soft);font-style:normal;font-size:.85em}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .8rem;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap}th:first-child{text-align:left;font-weight:500}.part{font-weight:400;font-style:italic}
svg{max-width:720px;width:100%;height:auto}svg text{fill:var(--soft);font:12px system-ui,sans-serif}svg .label{fill:var(--ink)}
.grid{stroke:var(--rule)}.bar{stroke:#0072B2;stroke-width:3;stroke-linecap:round}.dot{fill:#0072B2}
"""
