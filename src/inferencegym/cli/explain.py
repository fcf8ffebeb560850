"""`inferencegym explain`: what a policy does when, in words, as JSON or as a page; and the same policy as a decision tree to read and deploy."""

from __future__ import annotations

import html
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from inferencegym.cli.evaluate import make_room, show
from inferencegym.envs import catalogue
from inferencegym.envs.actors import BEST_STATIC, actor
from inferencegym.envs.grade import load_anchors
from inferencegym.ground.errors import ConfigError
from inferencegym.learn.distill import LEAVES, Distilled, distil, write
from inferencegym.learn.evaluate import Evaluation, Row, evaluate
from inferencegym.learn.explain import Explanation
from inferencegym.learn.explain import explain as look
from inferencegym.learn.explain_page import write_page
from inferencegym.learn.page import score_label
from inferencegym.policies.trained import SUFFIX
from inferencegym.policies.tree import TreePolicy
from inferencegym.report.frame import table


def explain(
    policy: Annotated[
        str,
        typer.Argument(
            help="A trained policy's file, learned, or any other name that `evaluate --policy` takes, but no planner's."
        ),
    ],
    task: Annotated[str, typer.Option(help="Name of a task, or its TOML file.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    seeds: Annotated[int, typer.Option(min=1, help="Scenarios to look at: the first so many of the split.")] = 8,
    scenario: Annotated[
        int | None, typer.Option(min=0, help="Scenario of the episode that is shown. Default: the middle one by value.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write one self-contained HTML page.")] = None,
    tree: Annotated[
        Path | None,
        typer.Option(
            help="Distil a decision tree that decides as the policy does, and write it as a policy file (.npz)."
        ),
    ] = None,
    leaves: Annotated[int, typer.Option(min=1, help="Most leaves of the tree.")] = LEAVES,
    test: Annotated[
        int,
        typer.Option(
            min=0, help="With --tree: test scenarios on which policy, tree and best static are compared; 0: none."
        ),
    ] = 50,
    workers: Annotated[
        int,
        typer.Option(min=1, help="Processes that the test scenarios are shared out to; results do not depend on it."),
    ] = os.cpu_count() or 1,
    json_: Annotated[
        Path | None,
        typer.Option("--json", help="Write everything as JSON to a file; - prints it instead of the tables."),
    ] = None,
) -> None:
    """Say what a policy does when, and turn it into a decision tree to read and deploy."""
    quiet = json_ is not None and str(json_) == "-"
    if tree is not None and tree.suffix != SUFFIX:
        raise ConfigError("--tree", f"'{tree.name}'", allowed=f"a name that ends in {SUFFIX}")
    make_room("--json", None if quiet or json_ is None else json_.parent)
    make_room("--report", None if report is None else report.parent)
    make_room("--tree", None if tree is None else tree.parent)
    found_task = catalogue.task(task)
    player = actor(policy, found_task)
    console, aside = Console(stderr=quiet), Console(stderr=True)
    with aside.status("looking at what it does"):
        found = look(found_task, player, split=split, scenarios=seeds, shown=scenario, name=policy)
    distilled, compared = None, None
    if tree is not None:
        with aside.status("distilling a tree"):
            distilled = distil(found_task, player, leaves=leaves)
            write(tree, found_task, distilled, source=policy)
        if test:
            with aside.status(f"comparing on {test} test scenarios"):
                players = [
                    policy,
                    str(tree),
                    *([BEST_STATIC] if load_anchors(found_task) and policy != BEST_STATIC else []),
                ]
                compared = evaluate(players, [task], scenarios=test, workers=workers)
    if report is not None:
        command = shlex.join(["inferencegym", *sys.argv[1:]])
        write_page(report, found, command=command, tree=distilled, scores="" if compared is None else _scores(compared))
    if json_ is not None:
        text = json.dumps(_plain(found, distilled, compared), indent=1) + "\n"
        if quiet:
            sys.stdout.write(text)
            return
        json_.write_text(text, encoding="utf-8")
    _say(console, found, player, distilled, compared)
    for what, where in (("tree", tree), ("JSON", json_), ("report", report)):
        if where is not None:
            console.print(f"{what}: {where.resolve()}", soft_wrap=True)


def _plain(found: Explanation, tree: Distilled | None, compared: Evaluation | None) -> dict[str, Any]:
    told = found.as_json()
    if tree is not None:
        told["tree"] = {
            "text": tree.text(), "leaves": tree.tree.branches.leaves, "shares": list(tree.shares), "agreement": tree.agreement,
            "validation": tree.validation, "policy_validation": tree.teacher, "best_static_validation": tree.static,
            "tried": [{"round": one.round, "weighted": one.weighted, "leaves": one.leaves, "validation": one.mean} for one in tree.tried],
        }  # fmt: skip
    if compared is not None:
        told["compared"] = compared.as_json()["table"]
    return told


def _say(
    console: Console, found: Explanation, player: Any, tree: Distilled | None, compared: Evaluation | None
) -> None:
    console.print(
        f"{found.policy} on {found.task}: {found.decisions:,} decisions in {found.scenarios} {found.split} scenarios, mean value {found.value:.4f}",
        soft_wrap=True, highlight=False, markup=False,
    )  # fmt: skip
    if found.constant:
        console.print(
            "never moved: " + ", ".join(f"{name} = {value}" for name, value in found.constant.items()),
            soft_wrap=True,
            highlight=False,
        )
    table = Table(title="what its choices hang on", title_justify="left", title_style="bold")
    table.add_column("column")
    table.add_column("decisions it changes when shuffled", justify="right")
    for one in found.importance:
        if one.changed > 0.0:
            table.add_row(one.column, f"{one.changed:.1%}")
    if table.row_count:
        console.print(table)
    else:
        console.print("no column changes a decision: it does always the same")
    # A tree explains itself.
    text = tree.text() if tree is not None else player.text() if isinstance(player, TreePolicy) else ""
    if tree is not None:
        console.print(
            f"as a tree of {tree.tree.branches.leaves} leaves, which decides alike in {tree.agreement:.1%} of decisions (after each leaf: how often it is reached)",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    if text:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    if compared is not None:
        show(console, compared)


def _scores(compared: Evaluation) -> str:
    """The comparison as an HTML table."""
    rows: list[Row] = compared.table()
    heads = ("policy", score_label(rows[0].graded), "value", "above best static")
    lines = []
    for row in rows:
        above = "" if row.difference is None else str(row.difference)
        lines.append([html.escape(row.policy), html.escape(str(row.score)), f"{row.value:.4f}", html.escape(above)])
    said = f"{len(compared.scenarios)} {compared.split} scenarios; interquartile mean and 95 % interval; difference on the same scenarios."
    return table(said, heads, lines)
