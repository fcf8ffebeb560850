"""`inferencegym train`: a policy for a task, with its score on validation scenarios beside the best static configuration's as it learns."""

from __future__ import annotations

import json
import math
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from inferencegym.cli.evaluate import RAY, make_room
from inferencegym.cli.sweep import against, train_many
from inferencegym.envs import catalogue
from inferencegym.ground.errors import ConfigError
from inferencegym.learn import checkpoint
from inferencegym.learn.config import DEFAULTS, TrainConfig, defaults, load
from inferencegym.learn.randomise import from_text
from inferencegym.learn.settings import ALGORITHMS
from inferencegym.learn.train import CONFIG, Result
from inferencegym.learn.train import Progress as Standing
from inferencegym.learn.train import train as learn


def train(
    task: Annotated[str | None, typer.Option(help="Name of a task, or its TOML file. Needed without --config.")] = None,
    algo: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(ALGORITHMS)}. Default: {DEFAULTS['knobs']} on knobs, {DEFAULTS['paging']} on paging."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Decisions to learn from, of all rows together. Default: the task's and algorithm's own."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="One seed, one curve, one policy. Default: 0.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the training. Default: out/TASK-ALGO-SEED; of several, out/TASK-ALGO-sweep."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file of settings, such as the config.toml of another training. Options go before it."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the training in --out, or each of several, was interrupted.")
    ] = False,
    minutes: Annotated[
        float | None, typer.Option(help="Stop after so many minutes, each of several; --resume goes on.")
    ] = None,
    every: Annotated[int | None, typer.Option(help="Decisions between two looks at the validation scenarios.")] = None,
    randomise: Annotated[
        str | None,
        typer.Option(
            help="What varies between training episodes, e.g. delay=0..3,rate=0.8..1.25,lengths=0.8..1.25,gpus=h100+a100 (of knobs only)."
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Train so many seeds, from --seed on, each in a folder of its own.")
    ] = 1,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=A,B,...: train with each value of a setting of config.toml; given again, with all combinations."
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Trainings at once, of --seeds and --sweep; results do not depend on it.")
    ] = os.cpu_count() or 1,
    ray: Annotated[str | None, typer.Option(help=RAY)] = None,
    json_: Annotated[
        Path | None,
        typer.Option("--json", help="Write the result as JSON to a file; - prints it instead of the table."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing on the way.")] = False,
) -> None:
    """Train a policy for a task; the best on validation scenarios is kept as one small file."""
    if minutes is not None and not 0 < minutes < math.inf:
        raise ConfigError("--minutes", f"{minutes:g}", allowed="more than 0")
    many = seeds > 1 or bool(sweep) or ray is not None
    given = {
        "task": task,
        "algorithm": algo,
        "steps": steps,
        "seed": seed,
        "validate_every": every,
        "randomise": None if randomise is None else from_text(randomise),
    }
    wanted = settings(
        config, {name: value for name, value in given.items() if value is not None}, out, resume and not many
    )
    if many:
        train_many(wanted, out, seeds=seeds, changes=sweep or [], workers=workers, ray=ray, minutes=minutes, resume=resume, json_=json_, quiet=quiet)  # fmt: skip
        return
    folder = out or Path("out") / f"{Path(wanted.task).stem}-{wanted.algorithm}-{wanted.seed}"
    printed = json_ is not None and str(json_) == "-"
    make_room("--out", folder)
    make_room("--json", None if printed or json_ is None else json_.parent)
    console = Console(stderr=True)
    if not quiet:
        console.print(f"{wanted.algorithm} on {escape(wanted.task)}, {wanted.steps:,} steps, seed {wanted.seed}: {folder}", soft_wrap=True, highlight=False)  # fmt: skip
    with _Screen(console, wanted, quiet) as screen:
        try:
            result = learn(wanted, folder, resume=resume, minutes=minutes, tell=screen.tell)
        except KeyboardInterrupt:
            screen.close()
            console.print(_interrupted(folder), soft_wrap=True, highlight=False)
            raise typer.Exit(130) from None
    text = json.dumps(result.as_json(), indent=1) + "\n"
    if printed:
        sys.stdout.write(text)
        return
    if json_ is not None:
        json_.write_text(text, encoding="utf-8")
    show(Console(), result)


def settings(file: Path | None, given: dict[str, object], out: Path | None, resume: bool) -> TrainConfig:
    """What is to be trained: options over a file's settings over the defaults; or, of a training that goes on, its own with those options."""
    if resume and file is None:
        folder = out
        if folder is None and "task" in given:
            base = defaults(str(given["task"]), str(given.get("algorithm") or "") or None)
            folder = Path("out") / f"{Path(base.task).stem}-{base.algorithm}-{given.get('seed', base.seed)}"
        if folder is None:
            raise ConfigError("--resume", "says not which training", allowed="--out FOLDER")
        if not (folder / checkpoint.NAME).is_file():
            raise ConfigError("--resume", f"'{folder}' holds no checkpoint", allowed="the --out of a training that has begun; without --resume it begins")  # fmt: skip
        had = load(folder / CONFIG)
        for option, name in (("--task", "task"), ("--algo", "algorithm")):
            if name in given and given[name] != getattr(had, name):
                raise ConfigError(
                    option,
                    f"{given[name]}, but '{folder}' trains {getattr(had, name)}",
                    allowed="leave it out, or another --out",
                )
        return had.with_(**given)
    if file is not None:
        return load(file, **given)
    if "task" not in given:
        raise ConfigError(
            "--task",
            "is missing",
            allowed=f"{', '.join(catalogue.task_names())}, a TOML file; or --config FILE",
        )
    base = defaults(str(given["task"]), str(given.get("algorithm") or "") or None)
    found = base.with_(**given)
    # A short training is looked at as often as a long one.
    if "steps" in given and "validate_every" not in given:
        found = found.with_(validate_every=max(1, base.validate_every * found.steps // base.steps))
    return found


class _Screen:
    """The line that moves, and a line for each look at the validation scenarios."""

    def __init__(self, console: Console, config: TrainConfig, quiet: bool) -> None:
        self.console, self.quiet = console, quiet
        self.bar = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"), console=console, transient=True, disable=quiet)  # fmt: skip
        self.line = self.bar.add_task("starting", total=config.steps, said="")

    def __enter__(self) -> _Screen:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """The moving line is gone."""
        self.bar.stop()

    def tell(self, now: Standing) -> None:
        """Show how it stands."""
        best = "" if now.best is None else f"best {now.best:.4f}{against(now.best, now.best_static)}, "
        self.bar.update(self.line, completed=now.steps, description=f"{now.steps:,} steps", said=f"{best}{_time(now.left_s)} left")  # fmt: skip
        if now.validation is None or self.quiet:
            return
        star = " (new best)" if now.best_steps == now.steps else ""
        self.console.print(
            f"{now.steps:>12,} steps  validation {now.validation:.4f}{star}{against(now.validation, now.best_static)}", highlight=False, soft_wrap=True
        )  # fmt: skip


def show(console: Console, result: Result) -> None:
    """The table, and what to type next."""
    config = result.config
    table = Table(title=f"{config.task}: {config.algorithm}, seed {config.seed}", title_justify="left", title_style="bold", show_header=False)  # fmt: skip
    table.add_column("what")
    table.add_column("how much", overflow="fold")
    table.add_row("best on validation", f"{result.best:.4f} (mean value of {config.validation_scenarios} scenarios, after {result.best_steps:,} steps)")  # fmt: skip
    static = "not searched for this task" if result.best_static is None else f"{result.best_static:.4f}"
    table.add_row("best static, same scenarios", static)
    if result.best_delayed is not None:
        table.add_row("with old news, same scenarios", f"{result.best_delayed:.4f} (1 to {config.randomise.delay[1]} decisions old)")  # fmt: skip
    table.add_row("steps", f"{result.steps:,} of {config.steps:,}; ended by {_ENDS[result.ended]}")
    table.add_row("time", f"{_time(result.wall_s)}; {result.steps_per_cpu_s:,.0f} steps per CPU second, all told")
    table.add_row("policy", str(result.policy))
    console.print(table)
    if not find_spec("tensorboard"):
        console.print("curves: curve.csv beside it; for TensorBoard: pip install tensorboard", style="dim", highlight=False)  # fmt: skip
    if result.ended in ("time", "stopped"):
        console.print(f"go on:    inferencegym train --resume --out {result.policy.parent}", soft_wrap=True, highlight=False, markup=False)  # fmt: skip
    console.print(
        f"evaluate: inferencegym evaluate --policy {result.policy},best-static --task {config.task}", soft_wrap=True, highlight=False, markup=False
    )  # fmt: skip


_ENDS = {
    "all steps": "the number of steps",
    "patience": "patience: no new best for long",
    "time": "--minutes",
    "stopped": "a request",
}


def _interrupted(folder: Path) -> str:
    if (folder / checkpoint.NAME).is_file():
        return f"interrupted; go on from the last checkpoint: inferencegym train --resume --out {folder}"
    return "interrupted before the first checkpoint"


def _time(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
