"""The command `inferencegym`: one verb a file, errors as one clear line, exit code 1 for what the user can mend.

A verb's file is imported when the verb is called: the help and the version need no engine.
"""

from __future__ import annotations

import sys
from functools import cached_property
from importlib import import_module
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

import inferencegym
from inferencegym.ground.errors import InferenceGymError

#: Verb -> (what it does, as the help says; where it is).
VERBS = {
    "simulate": (
        "Run a trace through an engine and show what users would have felt, and what it costs.",
        "inferencegym.cli.simulate:simulate",
    ),
    "evaluate": (
        "Compare policies on tasks, with intervals, beside the best configuration that never changes.",
        "inferencegym.cli.evaluate:evaluate",
    ),
    "train": (
        "Train a policy for a task; the best on validation scenarios is kept as one small file.",
        "inferencegym.cli.train:train",
    ),
    "explain": (
        "Say what a policy does when, and turn it into a decision tree to read and deploy.",
        "inferencegym.cli.explain:explain",
    ),
    "replay": (
        "Show a record of an episode; with --verify, play it again and grade what comes out.",
        "inferencegym.cli.replay:replay",
    ),
    "env": (
        "Serve environments over OpenEnv: sockets, plain HTTP, tasks, grader, baseline, a page, and the dashboard.",
        "inferencegym.cli.env:env",
    ),
    "load": (
        "Send requests to a server, at their times or so many at once, and show what clients felt.",
        "inferencegym.cli.load:load",
    ),
    "serve": (
        "Serve an OpenAI-compatible API in front of an engine: admission, order, batches, streams, limits.",
        "inferencegym.cli.serve:app",
    ),
    "control": (
        "Let a policy steer a live gateway behind a guard; Ctrl-C gives the old settings back.",
        "inferencegym.cli.control:control",
    ),
    "conformance": (
        "Check from outside whether an OpenAI-compatible server behaves as clients and operators may expect.",
        "inferencegym.cli.conformance:conformance",
    ),
    "traces": ("Workloads: list, describe, fetch, fit.", "inferencegym.cli.traces:app"),
}


class Verb(TyperCommand):
    """A verb that is imported when it is called."""

    def __init__(self, name: str) -> None:
        super().__init__(name, help=VERBS[name][0])

    @cached_property
    def real(self) -> Any:
        """The command itself."""
        module, _, attribute = VERBS[str(self.name)][1].partition(":")
        found = getattr(import_module(module), attribute)
        if not isinstance(found, typer.Typer):
            function, found = found, typer.Typer(add_completion=False)
            found.command(self.name)(function)
        command = typer.main.get_command(found)
        command.name, command.help = self.name, command.help or self.help
        return command

    def make_context(self, *arguments: Any, **named: Any) -> Any:
        """The command's own context, which runs the command."""
        return self.real.make_context(*arguments, **named)


class Verbs(TyperGroup):
    """All verbs, none of them imported."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.commands = {name: Verb(name) for name in VERBS}


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    help="Learn, test and run serving policies for large language models.",
)


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
        Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
