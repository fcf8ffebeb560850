"""The command `inferencegym`: one verb a file, errors as one clear line, exit code 1 for what the user can mend."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

import inferencegym
from inferencegym.cli.evaluate import evaluate
from inferencegym.cli.replay import replay
from inferencegym.cli.simulate import simulate
from inferencegym.cli.traces import app as traces
from inferencegym.ground.errors import InferenceGymError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Learn, test and run serving policies for large language models."
)
app.command()(simulate)
app.command()(evaluate)
app.command()(replay)
app.add_typer(traces, name="traces", help="Workloads: list, describe, fetch, fit.")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(inferencegym.__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Take the options that belong to no verb."""


def main() -> None:
    """Run the command line."""
    try:
        app()
    except InferenceGymError as error:
        Console(stderr=True).print(f"[red]error:[/] {error}", soft_wrap=True, highlight=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
