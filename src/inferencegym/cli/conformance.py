"""`inferencegym conformance`: does a server behave as OpenAI's clients, and those who run it, may expect? Exit code 1 where a must fails."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import inferencegym
from inferencegym.bench.conformance.check import Result
from inferencegym.bench.conformance.show import MARKS, as_json, conforms, counts, page
from inferencegym.bench.conformance.suite import CHECKS, run
from inferencegym.bench.conformance.talk import Asked
from inferencegym.ground.errors import ConfigError
from inferencegym.report.frame import write_whole

_COLOURS = {"pass": "green", "fail": "red", "skipped": "dim"}


def conformance(
    url: Annotated[str, typer.Argument(help="The server, without /v1.")] = "",
    model: Annotated[str, typer.Option(help="Model to ask for; default: the first the server names.")] = "",
    key_env: Annotated[str, typer.Option(help="Environment variable with the API key.")] = "OPENAI_API_KEY",
    upstream: Annotated[
        int | None,
        typer.Option(
            min=1, max=65_535, help="Serve a scripted upstream on this port; the server is a gateway in front of it."
        ),
    ] = None,
    pid: Annotated[
        int | None, typer.Option(help="The server's process: it gets SIGTERM at the end, to see it drain.")
    ] = None,
    burst: Annotated[int, typer.Option(min=2, max=10_000, help="Requests at once, for queue and overload.")] = 64,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for one check.")] = 60.0,
    only: Annotated[str, typer.Option(help="Checks or groups, with commas; default: all.")] = "",
    strict: Annotated[bool, typer.Option(help="Exit code 1 also where a should fails.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Say what would be checked, and ask nobody.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write one self-contained HTML file.")] = None,
) -> None:
    """Check from outside whether an OpenAI-compatible server behaves as clients and operators may expect."""
    console = Console()
    if list_:
        table = Table("check", "group", "level", "what")
        for check in CHECKS:
            table.add_row(check.id, check.group, check.level, check.sentence)
        console.print(table)
        return
    if not url:
        raise ConfigError("URL", "is missing", allowed="e.g. inferencegym conformance http://127.0.0.1:8000")
    asked = Asked(
        url.rstrip("/").removesuffix("/v1"), model, os.environ.get(key_env, ""), burst=burst, limit_s=timeout, pid=pid
    )
    names = tuple(name.strip() for name in only.split(",") if name.strip())

    def say(result: Result) -> None:
        colour = _COLOURS[result.verdict]
        console.print(f"[{colour}]{MARKS[result.verdict]:10}[/] {result.check.level:7}[bold]{result.check.id}[/]: {escape(result.check.sentence)}"
                      + (f" [dim]({escape(result.note)})[/]" if result.note else ""), soft_wrap=True, highlight=False)  # fmt: skip

    results = asyncio.run(run(asked, names=names, upstream_port=upstream, on_result=None if json_ else say))
    about = {
        "server": asked.url, "model": model, "behind it": "" if upstream is None else "the suite's scripted upstream",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "inferencegym": inferencegym.__version__,
    }  # fmt: skip
    if report is not None:
        write_whole(report, page(results, about, shlex.join(["inferencegym", *sys.argv[1:]])))
    if json_:
        sys.stdout.write(json.dumps(as_json(results, about), indent=1) + "\n")
    else:
        console.print(counts(results))
        if report is not None:
            console.print(f"report: {report.resolve()}", soft_wrap=True)
    if not conforms(results, strict=strict):
        raise typer.Exit(1)
