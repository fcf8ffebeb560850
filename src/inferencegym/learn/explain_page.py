"""An explanation as HTML: `sections` for the page of an evaluation, `write_page` for a page of its own, a file without anything from outside."""

from __future__ import annotations

import html
from pathlib import Path

import inferencegym
from inferencegym.learn.distill import Distilled
from inferencegym.learn.explain import Explanation, Timeline
from inferencegym.learn.explain_pictures import CSS, bars, heat_map, over_time
from inferencegym.learn.gradients import Attributions
from inferencegym.report.chart import Axis
from inferencegym.report.frame import framed, write_whole

#: Columns whose gradients are shown.
_ADDING = 10


def write_page(
    path: Path, found: Explanation, *, command: str, tree: Distilled | None = None, scores: str = ""
) -> None:
    """Write the file, whole or not at all. `scores`: HTML of a comparison of policy and tree, if there is one."""
    title = f"What {found.policy} does on {found.task}"
    context = {"policy": found.policy, "scenarios": f"{found.scenarios} of the split {found.split}"}
    digests = {f"task digest, {found.task}": found.digest}
    body = "".join(sections(found, tree, scores, level=2))
    write_whole(
        path,
        framed(
            title, body, command=command, digests=digests, version=inferencegym.__version__, context=context, style=CSS
        ),
    )


def sections(found: Explanation, tree: Distilled | None = None, scores: str = "", *, level: int = 3) -> list[str]:
    """The explanation in HTML, without a heading of its own; `CSS` belongs to it. `level`: rank of the headings in it."""

    def heading(text: str) -> str:
        return f"<h{level}>{html.escape(text)}</h{level}>"

    stands = ", ".join(f"<b>{name}</b> {value}" for name, value in found.constant.items())
    whose = f'<ul class="legend">{_key("own", found.timeline.policy)}{_key("other", found.timeline.other)}</ul>'
    parts = [
        '<div class="explained">',
        f"<p>{found.decisions:,} decisions in {found.scenarios} {html.escape(found.split)} scenarios; mean value {found.value:.4f}."
        + (f" Never moved: {stands}." if stands else "")
        + "</p>",
        heading("What it chooses, by load"),
        "<p>Each column is an interval of the load with about as many decisions as the others; a cell is the share of its decisions.</p>",
        '<div class="maps">' + "".join(heat_map(one) for one in found.against) + "</div>"
        if found.against
        else "<p>It never moves a knob.</p>",
        heading("What its choices hang on"),
        "<p>Share of decisions that come out otherwise when one column's values are shuffled among all decisions. Columns that say the same"
        " (arrivals and requests that run, say) share what hangs on both.</p>",
        bars(
            [(one.column, one.changed, one.by_knob) for one in found.importance],
            "{:.1%}",
            title="Decisions that hang on a column",
            x=Axis("decisions that come out otherwise", "%"),
        ),
        *_gradients(found.attributions),
        heading(f"One episode: scenario {found.timeline.scenario}, beside {found.timeline.other}"),
        f"<p>Value {found.timeline.value:.4f}, against {found.timeline.other_value:.4f} of {html.escape(found.timeline.other)} on the same requests.{_crashes(found.timeline)}"
        f"</p>{whose}",
        over_time(found.timeline),
        "<p>The lead is in return, the sum of rewards, which are shaped for learning; grades compare values.</p>",
    ]
    if tree is not None:
        parts += [
            heading("The same as a tree to read"),
            f"<p>{tree.tree.branches.leaves} leaves; it decides as the policy does in {tree.agreement:.1%} of its decisions on validation scenarios."
            " After each leaf, how often it is reached.</p>",
            scores,
            f"<pre>{html.escape(tree.text())}</pre>",
        ]
    return [*parts, "</div>"]


def _key(kind: str, name: str) -> str:
    """An entry of the episode's legend."""
    drawn = f'<svg viewBox="0 0 36 10" aria-hidden="true"><polyline class="{kind}" points="0,5 36,5"/></svg>'
    return f"<li>{drawn}{html.escape(name)}</li>"


def _crashes(line: Timeline) -> str:
    """Who did not last as long as the other."""
    own, other = (len(one) for one in line.choices)
    if own == other:
        return ""
    return f" {html.escape(line.policy if own < other else line.other)} crashed after {min(own, other):,} {line.step}s."


def _gradients(found: Attributions | None) -> list[str]:
    """What columns add to a network's choices, or why that cannot be said."""
    if found is None:
        return ["<p>It is no network, so it has no gradients to integrate: shuffling is what there is.</p>"]
    return [
        "<p>And what each column adds to them, by integrated gradients: its part of how far the chosen score, above the mean of its knob's scores,"
        f" is from that at the mean observation. Sizes over {found.decisions:,} decisions, in percent of all columns'; nothing is shuffled, so every"
        " situation is one that occurred.</p>",
        bars(
            [(one.column, one.share, one.by_knob) for one in found.columns[:_ADDING]],
            "{:.3g}",
            title="What columns add",
            x=Axis("part of all columns", "%"),
        ),
    ]
