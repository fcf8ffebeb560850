"""The page of an evaluation: one HTML file without anything from outside, with a table and a chart of intervals for every task."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from inferencegym.learn.evaluate import Evaluation, Row
from inferencegym.learn.explain_pictures import CSS
from inferencegym.learn.statistics import Estimate
from inferencegym.report.chart import Axis, Whisker, whiskers
from inferencegym.report.frame import framed, section, table, write_whole


def write_page(path: Path, evaluation: Evaluation, *, command: str, more: Mapping[str, str] | None = None) -> None:
    """Write the file, whole or not at all. `more`: see `page`."""
    write_whole(path, page(evaluation, command=command, more=more))


def page(evaluation: Evaluation, *, command: str, more: Mapping[str, str] | None = None) -> str:
    """The whole page as text. `more`: task -> HTML that follows its table, such as explanations of policies."""
    more = more or {}
    rows = evaluation.table()
    tasks = list(dict.fromkeys(row.task for row in rows))
    parts = [
        "<p><b>grade</b>: 0 for the random policy, 1 for a planner that knows the future, on the same scenario; where a task has no such anchors,"
        " the <b>value</b> of the episodes themselves. Dots are interquartile means, lines their 95 % stratified bootstrap intervals."
        " <b>beats static</b>: the chance that an episode of the policy is better than one of the best static configuration, which never changes."
        " <b>return</b>: the sum of rewards. On the right, in italics, what the value is made of.</p>",
    ]
    for name in tasks:
        own = [row for row in rows if row.task == name]
        parts.append(section(name, _chart(own) + _table(own, bool(evaluation.unplayed)) + more.get(name, "")))
    left_out = [
        f"<p>Not played: {html.escape(name)}: {html.escape(why)}</p>" for name, why in evaluation.skipped.items()
    ]
    left_out += [f"<p>No result of {html.escape(line)}</p>" for line in evaluation.missing()]
    parts.append(section("Not played", "".join(left_out)))
    context = {
        "scenarios": f"{len(evaluation.scenarios)} of the split {evaluation.split}",
        "policies": ", ".join(dict.fromkeys(row.policy for row in rows)),
    }
    digests = {f"task digest, {one.task}": one.digest for one in evaluation.episodes}
    return framed(
        "Policies compared", "".join(parts), command=command, digests=digests, context=context, version=evaluation.version,
        style=CSS if more else "",
    )  # fmt: skip


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
        return ""
    return f"{estimate.value:.3f} <em>{estimate.low:.3f} .. {estimate.high:.3f}</em>"


def _table(rows: list[Row], counted: bool) -> str:
    """`counted`: whether to say how many episodes each row has, because some were not played."""
    terms = list(dict.fromkeys(name for row in rows for name in row.parts))
    beats, crashed = any(row.improvement for row in rows), any(row.crashed for row in rows)
    asked = [row.asked for row in rows if row.asked is not None]
    heads = ["policy", score_label(rows[0].graded), "value", "return"]
    heads += ["episodes"] if counted else []
    heads += (["crashed"] if crashed else []) + (["beats static"] if beats else []) + asked_labels(asked)
    lines = []
    for row in rows:
        cells = [html.escape(row.policy), _interval(row.score), f"{row.value:.4f}", f"{row.total_reward:.2f}"]
        cells += [str(row.episodes)] if counted else []
        cells += [f"{row.crashed:.0%}"] if crashed else []
        cells += [_interval(row.improvement)] if beats else []
        cells += [html.escape(text) for text in asked_cells(row.asked, asked)]
        lines.append([*cells, *(f"{row.parts.get(name, 0.0):+.3f}" for name in terms)])
    titles = [html.escape(text) for text in heads] + [f"<i>{html.escape(name)}</i>" for name in terms]
    return table(
        f"{rows[0].task}: interquartile mean and 95 % interval of each policy; other figures are means.", titles, lines
    )


def _chart(rows: list[Row]) -> str:
    """A dot and a whisker for each policy."""
    graded = rows[0].graded
    axis = (
        Axis("grade", "0 random, 1 clairvoyant") if graded else Axis("value", "mean of episodes, the task's own scale")
    )
    shown = [Whisker(row.policy, row.score.value, row.score.low, row.score.high) for row in rows]
    return whiskers(shown, title="Grades" if graded else "Values", x=axis, low=0.0, high=1.0 if graded else 0.0)
