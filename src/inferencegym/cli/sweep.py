"""`inferencegym train --seeds N --sweep NAME=A,B`: many trainings at once, and one table of what each setting came to over its seeds."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from inferencegym.cli.evaluate import make_room
from inferencegym.ground.errors import ConfigError
from inferencegym.learn.config import TrainConfig
from inferencegym.learn.sweep import NAME, Point, Run, as_json, grid, points, sweep, values_of
from inferencegym.learn.train import Result


def train_many(
    base: TrainConfig, out: Path | None, *, seeds: int, changes: Sequence[str], workers: int, ray: str | None, minutes: float | None, resume: bool,
    json_: Path | None, quiet: bool,
) -> None:  # fmt: skip
    """Train a grid of settings and seeds, and show it. `changes`: NAME=A,B,... of each setting; the rest as `train`'s options."""
    folder = out or Path("out") / f"{Path(base.task).stem}-{base.algorithm}-sweep"
    given = [values_of(text) for text in changes]
    if len(dict(given)) < len(given):
        raise ConfigError("--sweep", "a setting is given twice", allowed="each once, with all its values")
    runs = grid(base, folder, seeds=seeds, changes=dict(given))
    printed = json_ is not None and str(json_) == "-"
    make_room("--out", folder)
    make_room("--json", None if printed or json_ is None else json_.parent)
    console = Console(stderr=True)
    if not quiet:
        where = f"on Ray ({ray})" if ray else f"{min(workers, len(runs))} at once"
        console.print(f"{base.algorithm} on {escape(base.task)}: {len(runs)} trainings of {base.steps:,} steps, {where}: {folder}", soft_wrap=True, highlight=False)  # fmt: skip

    def tell(done: int, all_: int, run: Run, result: Result) -> None:
        if not quiet:
            console.print(f"{done}/{all_}  {run.folder.name}: best {result.best:.4f} on validation{against(result.best, result.best_static)}", highlight=False, markup=False, soft_wrap=True)  # fmt: skip

    try:
        results = sweep(runs, workers=workers, ray=ray, minutes=minutes, resume=resume, progress=tell)
    except KeyboardInterrupt:
        console.print("interrupted; the same command with --resume goes on", highlight=False)
        raise typer.Exit(130) from None
    told = as_json(runs, results)
    text = json.dumps(told, indent=1) + "\n"
    (folder / NAME).write_text(text, encoding="utf-8")
    if printed:
        sys.stdout.write(text)
        return
    if json_ is not None:
        json_.write_text(text, encoding="utf-8")
    _show(Console(), base, points(runs, results), results[0].best_static)


def _show(console: Console, base: TrainConfig, found: Sequence[Point], static: float | None) -> None:
    table = Table(title=f"{base.task}: {base.algorithm}, best values on validation", title_justify="left", title_style="bold")  # fmt: skip
    names = list(found[0].changed)
    for name in names:
        table.add_column(name)
    for name in ("seeds", "mean", "worst", "best"):
        table.add_column(name, justify="right")
    for point in found:
        changed = [str(point.changed[name]) for name in names]
        table.add_row(*changed, str(point.seeds), *(f"{value:.4f}" for value in (point.mean, point.low, point.high)))
    console.print(table)
    if static is not None:
        console.print(f"best static, same scenarios: {static:.4f}", highlight=False)
    console.print(f"evaluate: inferencegym evaluate --policy {found[0].best},best-static --task {base.task}", soft_wrap=True, highlight=False, markup=False)  # fmt: skip


def against(value: float, static: float | None) -> str:
    """How far a validation value is from the best static configuration's, in brackets; nothing where that was never searched."""
    return "" if static is None else f" ({value - static:+.4f} against best static)"
