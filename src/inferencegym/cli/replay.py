"""`inferencegym replay`: what is in a record, and whether its actions really lead to what it claims."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from inferencegym.envs import catalogue
from inferencegym.envs.episode import Episode
from inferencegym.envs.grade import ReplayReport, load_anchors
from inferencegym.envs.grade import replay as run_again


def replay(
    file: Annotated[Path, typer.Argument(help="A record (.parquet or .npz), as `evaluate --record` writes them.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Run the actions again and compare; exit code 1 at the first difference.")
    ] = False,
    task: Annotated[Path | None, typer.Option(help="TOML file of the task, if it is not one of the package's.")] = None,
) -> None:
    """Show a record of an episode; with --verify, play it again and grade what comes out."""
    episode = Episode.load(file)
    console = Console(highlight=False)
    end = "crash" if episode.terminated else "horizon" if episode.truncated else "not ended"
    lines = {
        "task": f"{episode.task} (digest {episode.digest[:12]})",
        "scenario": f"{episode.split} {episode.scenario}",
        "policy": episode.policy or "not said",
        "recorded with": f"inferencegym {episode.version}",
        "steps": f"{len(episode.actions)}, {end}",
        "return": f"{episode.total_reward:.4f}",
        "value claimed": f"{episode.value:.4f} = "
        + " ".join(f"{name} {part:+.4f}" for name, part in episode.parts.items()),
    }
    for name, value in lines.items():
        console.print(f"{name:<14} {value}", soft_wrap=True, markup=False)
    if not verify:
        console.print("not verified; add --verify to run it again", style="dim")
        return
    found = None if task is None else catalogue.task(task)
    report = run_again(episode, found)
    _say(console, report)
    if not report.genuine:
        raise typer.Exit(1)
    known = found or catalogue.task(episode.task)
    anchors = load_anchors(known)
    assert report.outcome is not None
    came = " ".join(f"{name} {part:+.4f}" for name, part in report.outcome.parts.items())
    console.print(f"{'value':<14} {report.outcome.value:.4f} = {came}", soft_wrap=True, markup=False)
    if anchors is None:
        console.print("grade          none: the task has no anchors (runs/anchors.sh makes them)", markup=False)
    else:
        grade = anchors.grade(report.outcome.value, episode.split, episode.scenario)
        console.print(
            f"grade          {grade.grade:.4f} (random {grade.floor:.4f}, clairvoyant {grade.ceiling:.4f})",
            markup=False,
        )


def _say(console: Console, report: ReplayReport) -> None:
    if report.genuine:
        console.print("[green]genuine[/]: every observation and reward came out as recorded")
        return
    console.print("[red]refused[/]: ", end="")
    console.print(report.problem, soft_wrap=True, markup=False)
