"""`inferencegym serve`: the OpenAI-compatible gateway in front of real engines, or of one that is not there; and its settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from inferencegym.ground.errors import ConfigError, MissingExtraError

File = Annotated[Path | None, typer.Option("--config", help="TOML file of settings (else LLM_RUNTIME_CONFIG).")]
Given = Annotated[
    list[str] | None, typer.Option("--set", help="Any setting, as queue.order=vtc; may be given several times.")
]
Kind = Annotated[str | None, typer.Option(help="mock, openai, llama.cpp or vllm; default mock.")]
Url = Annotated[str | None, typer.Option(help="Where the backend's API is, without /v1.")]
Model = Annotated[
    str | None, typer.Option(help="Model the backend serves; for mock one of the catalogue, for llama.cpp a GGUF file.")
]
Host = Annotated[str | None, typer.Option(help="Address to listen on; beyond loopback keys are required.")]
Port = Annotated[int | None, typer.Option(min=0, max=65_535, help="Port to listen on; default 8000; 0: any.")]
Record = Annotated[
    Path | None,
    typer.Option(
        help="Folder to write live traffic to, as Parquet files that `simulate --trace` reads; never content."
    ),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes that share the port; default 1.")]
Dashboard = Annotated[
    bool | None, typer.Option("--dashboard/--no-dashboard", help="The dashboard at /dashboard; default yes.")
]

app = typer.Typer(
    add_completion=False,
    help="Serve an OpenAI-compatible API in front of an engine: admission, order, batches, streams, limits.\n\n"
    "Settings: defaults < file < environment (LLM_RUNTIME_*) < flags.",
)
config = typer.Typer(
    no_args_is_help=True, help="Settings: what is in force and where it came from; whether all can be."
)
app.add_typer(config, name="config")


@app.callback(invoke_without_command=True)
def serve(
    context: typer.Context,
    backend: Kind = None,
    url: Url = None,
    model: Model = None,
    host: Host = None,
    port: Port = None,
    workers: Workers = None,
    record: Record = None,
    dashboard: Dashboard = None,
    config: File = None,
    given: Given = None,
) -> None:
    """Serve until a signal: the first one drains, the second one ends at once."""
    if context.invoked_subcommand is not None:
        return
    loaded = _load(config, given, backend, url, model, host, port, workers, record, dashboard)
    try:
        from inferencegym.cli.dashboard import where
        from inferencegym.cli.gateway import make_app
        from inferencegym.runtime.keys import check_exposure
        from inferencegym.runtime.ports import BackendError
        from inferencegym.runtime.server import serve as run
    except ModuleNotFoundError as error:
        raise MissingExtraError("serve", "The runtime") from error
    settings = loaded.settings
    _all_in_force(settings)
    check_exposure(settings)
    kinds = ", ".join(f"{one.name} ({one.kind})" for one in settings.backends)
    url = f"http://{settings.server.host}:{settings.server.port}"
    typer.echo(f"inferencegym serves {kinds} on {url}/v1{where(settings.server.dashboard, url)}", err=True)
    try:
        run(make_app, settings)
    except BackendError as error:
        raise ConfigError("backends", error.message) from error


@config.command("show")
def show(
    backend: Kind = None,
    url: Url = None,
    model: Model = None,
    config: File = None,
    given: Given = None,
    every: Annotated[bool, typer.Option("--all", help="Also what is at its default.")] = False,
) -> None:
    """Settings in force, and where each came from; secrets are hidden."""
    from inferencegym.runtime.loading import show as lines

    table = Table("setting", "value", "from", "meaning")
    for line in lines(_load(config, given, backend, url, model)):
        if every or line.origin != "default":
            table.add_row(line.name, line.value, line.origin, line.meaning)
    Console().print(table)


@config.command("check")
def check(backend: Kind = None, url: Url = None, model: Model = None, config: File = None, given: Given = None) -> None:
    """Exit code 0 if the server would start with these settings as they are."""
    from inferencegym.runtime.keys import check_exposure

    settings = _load(config, given, backend, url, model).settings
    _all_in_force(settings)
    check_exposure(settings)
    typer.echo(f"all right: {len(settings.backends)} backend(s), {len(settings.keys)} key(s), order {settings.queue.order}")  # fmt: skip


@app.command("key")
def key(
    name: Annotated[str, typer.Argument(help="Its holder, as limits, metrics and logs will call them.")],
    admin: Annotated[bool, typer.Option(help="May read and change the live configuration.")] = False,
) -> None:
    """Make an API key: the key once, and the lines for the settings, which hold its hash only."""
    from inferencegym.runtime.keys import new_key

    secret, digest = new_key()
    typer.echo(f"# The key, shown only now: {secret}")
    typer.echo(f'[[keys]]\nname = "{name}"\nsha256 = "{digest}"' + ("\nadmin = true" if admin else ""))


def _all_in_force(settings: Any) -> None:
    """ConfigError for a limit that is configured and could never hold; further ones are told before it."""
    from inferencegym.runtime.checks import check_settings

    problems = check_settings(settings)
    for problem in problems[1:]:
        typer.echo(f"error: {problem}", err=True)
    if problems:
        raise problems[0]


def _load(
    file: Path | None, given: list[str] | None, kind: str | None, url: str | None, model: str | None,
    host: str | None = None, port: int | None = None, workers: int | None = None, record: Path | None = None,
    dashboard: bool | None = None,
) -> Any:  # fmt: skip
    """Settings of file, environment and flags; without any backend, the mock."""
    from inferencegym.runtime.loading import load

    flags: dict[str, object] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError("--set", f"'{text}' is not NAME=VALUE", allowed="e.g. queue.order=vtc")
        flags[name.strip()] = value.strip()
    flags |= {
        f"server.{name}": value for name, value in (("host", host), ("port", port), ("workers", workers), ("dashboard", dashboard)) if value is not None
    }  # fmt: skip
    if record is not None:
        flags["recorder.folder"] = str(record)
    makers = {
        field: value for field, value in flags.items() if field.startswith("backends.") and field.endswith(".kind")
    }
    held = [one.name for one in load(file, os.environ, makers).settings.backends]
    wanted = {"kind": kind, "url": url, "model": model}
    if kind == "llama.cpp" and url is None:
        wanted["model_path"] = wanted.pop("model")
    if len(held) > 1 and any(value is not None for value in wanted.values()):
        raise ConfigError("--backend", f"the settings have {len(held)} backends: {', '.join(held)}", allowed="--set backends.NAME.FIELD=VALUE")  # fmt: skip
    name = held[0] if held else "main"
    if not held and kind is None:
        wanted["kind"] = "mock" if url is None else "openai"
    mine = {f"backends.{name}.{field}": value for field, value in wanted.items() if value is not None}
    return load(file, os.environ, mine | flags)
