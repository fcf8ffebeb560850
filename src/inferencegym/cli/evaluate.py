"""`inferencegym evaluate`: policies on tasks, a table with intervals that a stranger can read, JSON, a page, and records to replay."""

from __future__ import annotations

import html
import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from inferencegym.cli.interrupt import STATUS, first_then_end
from inferencegym.envs import catalogue
from inferencegym.envs.actors import LANGUAGE_MODEL, LEARNED, actor
from inferencegym.envs.openenv.llm_usage import Price
from inferencegym.ground.errors import ConfigError, InferenceGymError
from inferencegym.learn.evaluate import ALL, EpisodeResult, Evaluation, Interrupted, Row
from inferencegym.learn.evaluate import Progress as Tell
from inferencegym.learn.evaluate import evaluate as play
from inferencegym.learn.explain import explain
from inferencegym.learn.explain_page import sections
from inferencegym.learn.page import asked_cells, asked_labels, score_label, write_page
from inferencegym.learn.statistics import Estimate
from inferencegym.policies.catalogue import trained_file

#: Scenarios that a trained policy on the page is explained by.
_LOOKED_AT = 4
#: The option --ray, of every verb that has it.
RAY = "Work as tasks of a Ray cluster: local (one of --workers processors on this machine), auto, or HOST:PORT. Results do not depend on it."


@first_then_end()
def evaluate(
    policy: Annotated[
        str,
        typer.Option(
            help="Names with commas between them, or all: every rule, learned and best-static. A file that `train` wrote (any name that ends in .npz,"
            " or file:PATH). learned: what ships for the task. best-static. clairvoyant, and on knobs model-predictive: planners, slow."
            " fixed:batch_cap=64,speculation_depth=2, fixed:admit_free: the same for ever. llm:MODEL,shots=4: a model behind OPENAI_BASE_URL (docs/llm.md). module:Class:"
            " your own."
        ),
    ] = ALL,
    task: Annotated[
        str,
        typer.Option(
            help="Names of tasks, or TOML files, with commas between them; a family (pagedkv, llmserve); or all."
        ),
    ] = "medium",
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    seeds: Annotated[int, typer.Option(min=1, help="Scenarios to play: the first so many of the split.")] = 50,
    workers: Annotated[int, typer.Option(min=1, help="Processes; results do not depend on it.")] = os.cpu_count() or 1,
    ray: Annotated[str | None, typer.Option(help=RAY)] = None,
    record: Annotated[Path | None, typer.Option(help="Folder for a record of every episode (see `replay`).")] = None,
    json_: Annotated[
        Path | None,
        typer.Option("--json", help="Write everything as JSON to a file; - prints it instead of the table."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write one self-contained HTML page.")] = None,
    price_in: Annotated[
        float | None, typer.Option(help="Of llm policies: US$ per million tokens of prompts; needs --price-out.")
    ] = None,
    price_out: Annotated[
        float | None, typer.Option(help="US$ per million tokens of answers; needs --price-in.")
    ] = None,
) -> None:
    """Compare policies on tasks, with intervals, beside the best configuration that never changes.

    Ctrl-C ends with the episodes that are done.
    """
    tasks, skipped = chosen_tasks(task)
    price = chosen_price(price_in, price_out)
    quiet = json_ is not None and str(json_) == "-"
    make_room("--record", record)
    make_room("--json", None if quiet or json_ is None else json_.parent)
    make_room("--report", None if report is None else report.parent)
    console, errors = Console(stderr=quiet), Console(stderr=True)
    interrupted = False
    try:
        with _progress() as tell:
            evaluation = play(
                chosen_policies(policy),
                tasks,
                split=split,
                scenarios=seeds,
                workers=workers,
                record_to=record,
                progress=tell,
                price=price,
                ray=ray,
            )
    except Interrupted as interrupt:
        interrupted, evaluation = True, interrupt.evaluation
    except KeyboardInterrupt:
        errors.print("interrupted before an episode was done", highlight=False)
        raise typer.Exit(STATUS) from None
    evaluation.skipped.update(skipped)
    if report is not None:
        explained = {}
        try:
            # To explain a policy it has to play: who interrupts will not wait for that.
            explained = {} if interrupted else explanations(evaluation, tasks)
        except KeyboardInterrupt:
            interrupted = True
        write_page(report, evaluation, command=shlex.join(["inferencegym", *sys.argv[1:]]), more=explained)
    if json_ is not None:
        text = json.dumps(evaluation.as_json(), indent=1) + "\n"
        if quiet:
            sys.stdout.write(text)
        else:
            json_.write_text(text, encoding="utf-8")
    if not quiet:
        show(console, evaluation)
        for what, where in (("records", record), ("JSON", json_), ("report", report)):
            if where is not None:
                console.print(f"{what}: {where.resolve()}", soft_wrap=True)
    for missing in evaluation.missing():
        errors.print(f"[red]error:[/] no result of {escape(missing)}", soft_wrap=True, highlight=False)
    if interrupted:
        raise typer.Exit(STATUS)
    if evaluation.unplayed:
        raise typer.Exit(1)


@contextmanager
def _progress() -> Iterator[Tell]:
    """A bar on the error stream, and who moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("starting", total=None)

        def tell(done: int, all_: int, result: EpisodeResult) -> None:
            bar.update(line, completed=done, total=all_, description=f"{result.task} {result.policy}")

        yield tell


def explanations(evaluation: Evaluation, tasks: list[str]) -> dict[str, str]:
    """Task -> what each trained policy that played it does there, folded up, for the page."""
    found: dict[str, str] = {}
    for given in tasks:
        task = catalogue.task(given)
        for name in evaluation.policies(task.name):
            if name != LEARNED and trained_file(name) is None:
                continue
            looked = explain(task, actor(name, task), split=evaluation.split, scenarios=_LOOKED_AT, name=name)
            summary = f"<summary>What {html.escape(name)} does, and when</summary>"
            found[task.name] = found.get(task.name, "") + f"<details>{summary}{''.join(sections(looked))}</details>"
    return found


def make_room(option: str, folder: Path | None) -> None:
    """The folder that results go to, before anything is played: an evening's work must not end in an error."""
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            option, f"{folder} cannot be made: {error.strerror}", allowed="where you may write"
        ) from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(option, f"{folder} cannot be written to", allowed="where you may write")


def chosen_policies(text: str) -> list[str]:
    """Names with commas between them; what follows `fixed:` or `llm:` keeps its commas as long as they part NAME=VALUE."""
    found: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if found and found[-1].startswith(("fixed:", LANGUAGE_MODEL)) and "=" in part and ":" not in part:
            found[-1] += f",{part}"
        else:
            found.append(part)
    if not found:
        raise ConfigError("--policy", "is empty", allowed="names, or all")
    return found


def chosen_price(price_in: float | None, price_out: float | None) -> Price | None:
    """The price of a language model's tokens; half of one is an error."""
    if price_in is None and price_out is None:
        return None
    if price_in is None or price_out is None:
        missing = "--price-in" if price_in is None else "--price-out"
        raise ConfigError(missing, "is not given", allowed="both prices, in US$ per million tokens, or neither")
    return Price(price_in, price_out)


def chosen_tasks(text: str) -> tuple[list[str], dict[str, str]]:
    """Names and files; of a family or of all, those that cannot be had (a trace is not here) are left out, with the reason."""
    names, skipped = [], {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        if part != ALL and part not in catalogue.FAMILIES:
            names.append(part)
            continue
        for name in catalogue.task_names(None if part == ALL else part):
            try:
                catalogue.task(name)
            except InferenceGymError as error:
                skipped[name] = str(error)
            else:
                names.append(name)
    if not names:
        raise ConfigError("--task", f"'{text}' leaves no task to play", allowed=", ".join(catalogue.task_names()))
    return list(dict.fromkeys(names)), skipped


def show(console: Console, evaluation: Evaluation) -> None:
    """The tables, and what was left out."""
    rows = evaluation.table()
    for name in dict.fromkeys(row.task for row in rows):
        own = [row for row in rows if row.task == name]
        console.print(_table(name, own, evaluation))
        if any(row.asked for row in own):
            console.print(_asked(own))
        if any(row.parts for row in own):
            console.print(_parts(own))
    for name, why in evaluation.skipped.items():
        console.print(f"[yellow]not played:[/] {name}: {escape(why)}", soft_wrap=True, highlight=False)
    console.print(
        "grade: 0 = random policy, 1 = planner that knows the future, on the same scenario; interquartile mean and 95 % bootstrap interval.",
        style="dim", highlight=False,
    )  # fmt: skip
    if any(row.improvement for row in rows):
        console.print(
            "beats static: chance that an episode is better than one of the best configuration that never changes.",
            style="dim",
            highlight=False,
        )


def _table(name: str, rows: list[Row], evaluation: Evaluation) -> Table:
    title = f"{name}: {len(evaluation.scenarios)} {evaluation.split} scenarios"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("policy", overflow="fold")
    table.add_column(score_label(rows[0].graded), justify="right", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    beats, crashed = any(row.improvement for row in rows), any(row.crashed for row in rows)
    counted = bool(evaluation.unplayed)
    if counted:
        table.add_column("episodes", justify="right")
    if beats:
        table.add_column("beats static", justify="right", no_wrap=True)
    if crashed:
        table.add_column("crashed", justify="right")
    for row in rows:
        cells = [row.policy, _said(row.score), f"{row.value:.3f}"]
        cells += [str(row.episodes)] if counted else []
        cells += [_said(row.improvement)] if beats else []
        cells += [f"{row.crashed:.0%}"] if crashed else []
        table.add_row(*cells)
    return table


def _asked(rows: list[Row]) -> Table:
    """What the language models among the policies asked for, in all their episodes."""
    table = Table(title="questions to language models", title_justify="left", title_style="dim")
    table.add_column("policy", overflow="fold")
    asked = [row.asked for row in rows if row.asked is not None]
    for label in asked_labels(asked):
        table.add_column(label, justify="right")
    for row in rows:
        if row.asked is not None:
            table.add_row(row.policy, *asked_cells(row.asked, asked))
    return table


def _parts(rows: list[Row]) -> Table:
    """What the values are made of."""
    table = Table(title="parts of the value", title_justify="left", title_style="dim")
    table.add_column("policy", overflow="fold")
    names = tuple(dict.fromkeys(name for row in rows for name in row.parts))
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row.policy, *(f"{row.parts.get(name, 0.0):+.3f}" for name in names))
    return table


def _said(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.value:.3f} ({estimate.low:.3f}..{estimate.high:.3f})"
