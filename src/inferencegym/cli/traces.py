"""`inferencegym traces`: which workloads there are, what they look like, where to get originals, and how to describe
your own.

Tables for people, `--json` for programs. Times are seconds, lengths tokens, sizes bytes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from inferencegym.ground.errors import ConfigError
from inferencegym.ground.units import show_bytes, show_number
from inferencegym.workload import describe as figures
from inferencegym.workload import names, read
from inferencegym.workload.catalogue import ORIGINALS
from inferencegym.workload.fetch import fetch as fetch_original
from inferencegym.workload.files import whole_file
from inferencegym.workload.find import VARIABLE, fetched_folder, found_traces, trace_folders
from inferencegym.workload.fitting import compare, renamed
from inferencegym.workload.fitting import fit as fit_workload
from inferencegym.workload.generate import mean_rate_rps
from inferencegym.workload.named import load
from inferencegym.workload.shipped import load_named
from inferencegym.workload.spec import dump

app = typer.Typer(no_args_is_help=True, help="Workloads: list, describe, fetch, fit.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Trace = Annotated[
    str, typer.Argument(help="A file, a trace's name in INFERENCEGYM_TRACE_DIR, or a shipped description.")
]
Column = Annotated[
    list[str] | None,
    typer.Option(
        help="OURS=THEIRS for any table, e.g. arrival_s=ts:ms (units s, ms, us, ns, min, h, date); repeat it."
    ),
]
Sort = Annotated[bool, typer.Option("--sort", help="Sort rows whose time runs backwards.")]
Prefixes = Annotated[bool, typer.Option(help="Read prefix ids.")]
Sessions = Annotated[int | None, typer.Option(help="Traces without a common clock: only the first sessions.")]
Pool = Annotated[str | None, typer.Option(help="ServeGen's clients: which pool.")]
Seed = Annotated[int, typer.Option(help="Seed of what is drawn.")]


@app.command("list")
def list_traces(json_: Json = False) -> None:
    """List shipped descriptions, files that are here, and originals that can be fetched."""
    found = {"descriptions": _descriptions(), "files": _files(), "originals": _originals()}
    if json_:
        _print_json(found)
        return
    console = Console()
    console.print(_described(found["descriptions"]))
    folders = ", ".join(str(folder) for folder in trace_folders())
    if found["files"]:
        console.print(
            _table(f"Files in {folders}", found["files"], {"name": "name", "requests": "rows", "size": "size"})
        )
    else:
        console.print(f"No trace files: set {VARIABLE} to a folder that holds some, or fetch one.\n", highlight=False)
    headings = {"name": "name", "licence": "licence", "about": "what"}
    console.print(_table("Originals: inferencegym traces fetch NAME", found["originals"], headings))


@app.command("describe")
def describe(
    trace: Trace,
    duration: Annotated[
        float | None,
        typer.Option(help="Seconds: to generate for a description (default 3600), from the start of a real trace."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Mean requests per second; the arrival pattern is kept and scaled.")
    ] = None,
    seed: Seed = 0,
    format_: Annotated[str | None, typer.Option("--format", help="File format, where the columns do not tell.")] = None,
    column: Column = None,
    sort: Sort = False,
    prefixes: Prefixes = True,
    sessions: Sessions = None,
    pool: Pool = None,
    json_: Json = False,
) -> None:
    """Show a workload's rates, burstiness, lengths, sessions and shared prefixes."""
    options = {
        "format": format_, "columns": _columns(column), "sort": sort, "prefixes": prefixes, "sessions": sessions, "pool": pool,
    }  # fmt: skip
    workload = load(trace, seed=seed, duration_s=duration, rate_rps=rate, **options)
    found = figures.describe(workload)
    if json_:
        _print_json(found)
        return
    _show(Console(), found)


@app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(help="An original's name; see `traces list`.")],
    to: Annotated[Path | None, typer.Option(help="Folder; by default a cache folder in which names are found.")] = None,
    json_: Json = False,
) -> None:
    """Download an original from its publisher; call again to go on after a break."""
    original = ORIGINALS.get(name)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=json_) as bar:
        task = bar.add_task(original.file_name, total=None)
        got = fetch_original(
            original, to or fetched_folder(), lambda here, total: bar.update(task, completed=here, total=total)
        )
    if json_:
        _print_json(
            {
                "name": original.name, "path": str(got.path), "size_bytes": got.size_bytes, "sha256": got.sha256,
                "checked_by": got.checked_by, "downloaded": got.downloaded, "licence": original.licence,
                "attribution": original.attribution,
            }
        )  # fmt: skip
        return
    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"{'fetched' if got.downloaded else 'already here'}: {escape(str(got.path))} ({show_bytes(got.size_bytes)})"
    )
    console.print(f"sha256 {got.sha256}, compared with {got.checked_by}")
    console.print(f"{escape(original.attribution)}, {original.licence}")


@app.command("fit")
def fit(
    file: Trace,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to write the description.")],
    name: Annotated[str | None, typer.Option(help="Name of the description; by default the file's.")] = None,
    seed: Seed = 0,
    format_: Annotated[str | None, typer.Option("--format", help="File format, where the columns do not tell.")] = None,
    column: Column = None,
    sort: Sort = False,
    prefixes: Prefixes = True,
    sessions: Sessions = None,
    pool: Pool = None,
    json_: Json = False,
) -> None:
    """Make a description of a trace, which generates workloads like it without holding any of its rows."""
    if out.suffix != ".json":
        raise ConfigError("--out", f"'{out}'", allowed="a file that ends in .json")
    workload = read(
        file,
        format=format_,
        columns=_columns(column),
        sort=sort,
        prefixes=prefixes,
        sessions=sessions,
        pool=pool,
        seed=seed,
    )
    spec = fit_workload(workload)
    spec = spec if name is None else renamed(spec, name)
    distances = compare(spec, workload, seed)
    whole_file(out, lambda held: _write_text(held, dump(spec)))
    if json_:
        _print_json(
            {"out": str(out), "name": spec.name, "requests": len(workload), "distances": distances, "notes": spec.notes}
        )
        return
    console = Console(highlight=False)
    console.print(f"{escape(spec.name)}: described {len(workload):,} requests in {escape(str(out))}", soft_wrap=True)
    table = Table("generated beside original", "Kolmogorov-Smirnov distance", title=None)
    table.columns[1].justify = "right"
    for key, label in (
        ("ks_prompt", "prompt tokens"),
        ("ks_output", "output tokens"),
        ("ks_gaps", "gaps between arrivals"),
    ):
        table.add_row(label, f"{distances[key]:.4f}")
    table.add_row("[dim]by chance alone, one time in twenty[/]", f"[dim]{distances['ks_chance']:.4f}[/]")
    console.print(table)
    for note in spec.notes:
        console.print(escape(note))
    console.print(f"use it: inferencegym simulate --trace {escape(str(out))}", soft_wrap=True)


# --- what there is ----------------------------------------------------------------------------------------------------


def _descriptions() -> list[dict[str, Any]]:
    found = []
    for name in names():
        spec = load_named(name)
        rate = mean_rate_rps(spec)
        found.append({"name": name, "rate_rps": rate, "licence": spec.licence, "source": spec.source})
    return found


def _described(rows: list[dict[str, Any]]) -> Table:
    shown = [row | {"rate_rps": f"{row['rate_rps']:.2f}"} for row in rows]
    headings = {"name": "name", "rate_rps": "requests/s", "licence": "licence", "source": "fitted on"}
    return _table("Descriptions that come with the package: generate as much as you like", shown, headings)


def _files() -> list[dict[str, Any]]:
    return [
        {"name": name, "path": str(path), "requests": _rows(path), "size": show_bytes(path.stat().st_size)}
        for name, path in found_traces().items()
    ]


def _rows(path: Path) -> int | None:
    """Rows of a Parquet file; text files would have to be read whole to know."""
    if path.suffix != ".parquet":
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: int = pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError):
        return None  # listing goes on; `describe` says what is wrong with the file
    return rows


def _originals() -> list[dict[str, Any]]:
    listed = [ORIGINALS.get(name) for name in ORIGINALS.names()]
    return [
        {"name": one.name, "licence": one.licence, "about": one.about, "url": one.url, "attribution": one.attribution,
         "checksum_known": one.sha256 is not None}
        for one in listed
    ]  # fmt: skip


def _columns(given: list[str] | None) -> dict[str, str] | None:
    if not given:
        return None
    pairs = [one.partition("=") for one in given]
    for ours, equals, theirs in pairs:
        if not (ours and equals and theirs):
            raise ConfigError("--column", f"'{ours}{equals}{theirs}'", allowed="OURS=THEIRS, e.g. arrival_s=ts:ms")
    return {ours: theirs for ours, _, theirs in pairs}


# --- showing it -------------------------------------------------------------------------------------------------------


def _table(title: str, rows: list[dict[str, Any]], headings: dict[str, str]) -> Table:
    table = Table(title=escape(title), title_justify="left", title_style="bold", header_style="bold")
    for key, heading in headings.items():
        number = any(isinstance(row[key], int) for row in rows)
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*[_cell(row[key]) for key in headings])
    return table


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else escape(str(value))


def _show(console: Console, found: dict[str, Any]) -> None:
    arrivals = found["arrivals"]
    console.print(
        f"[bold]{escape(found['name'])}[/]: {found['requests']:,} requests in {found['duration_s']:,.0f} s",
        highlight=False,
    )
    console.print(escape(found["source"]), soft_wrap=True, highlight=False)
    if found["attribution"]:
        console.print(f"[dim]{escape(found['attribution'])}[/]", soft_wrap=True, highlight=False)
    facts = Table(show_header=False, title="Arrivals and sharing", title_justify="left", title_style="bold")
    for label, value in _facts(found, arrivals):
        facts.add_row(label, value)
    console.print(facts)
    console.print(_spreads(found, arrivals))
    for label, key in (("kinds", "kinds"), ("tenants", "tenants"), ("classes", "slo_classes")):
        if len(found[key]) > 1:
            console.print(f"{label}: {escape(_shares(found[key]))}", highlight=False)


def _spreads(found: dict[str, Any], arrivals: dict[str, Any]) -> Table:
    """Quantiles, one column a quantity: heading, figures, their scale, and whether they count things."""
    sessions = found["sessions"] or {}
    columns: tuple[tuple[str, dict[str, float] | None, float, bool], ...] = (
        ("prompt\ntokens", found["prompt_tokens"], 1.0, True),
        ("output\ntokens", found["output_tokens"], 1.0, True),
        ("gap between\narrivals, ms", arrivals["gaps_s"], 1000.0, False),
        ("turns of\na session", sessions.get("turns"), 1.0, True),
        ("pause before\na turn, s", sessions.get("think_s"), 1.0, False),
    )
    there = [(heading, values, scale, whole) for heading, values, scale, whole in columns if values is not None]
    table = Table(header_style="bold", title="How they spread", title_justify="left", title_style="bold")
    table.add_column("")
    for heading, *_ in there:
        table.add_column(heading, justify="right")
    for statistic in there[0][1] if there else ():
        cells = [
            show_number(values[statistic] * scale, whole=whole and statistic != "mean")
            for _, values, scale, whole in there
        ]
        table.add_row(statistic, *cells)
    return table


def _facts(found: dict[str, Any], arrivals: dict[str, Any]) -> list[tuple[str, str]]:
    def shown(value: float | None) -> str:
        return "-" if value is None else show_number(value)

    facts = [
        ("mean rate, requests/s", shown(arrivals["rate_rps"])),
        (
            "busiest and quietest minute, requests",
            f"{_cell(arrivals['peak_minute'])} and {_cell(arrivals['quietest_minute'])}",
        ),
        ("coefficient of variation of gaps (Poisson: 1)", shown(arrivals["gap_cv"])),
        ("variance over mean of counts in 1 s (Poisson: 1)", shown(arrivals["idc_1s"])),
        ("variance over mean of counts in 60 s (Poisson: 1)", shown(arrivals["idc_60s"])),
    ]
    if found["failed_at_source"]:
        facts.append(("failed at the source (left out below)", f"{found['failed_at_source']:,}"))
    if found["correlation"]:
        facts.append(("rank correlation of prompt and output", f"{found['correlation']['spearman']:.3f}"))
    if found["sessions"]:
        facts.append(("sessions", f"{found['sessions']['count']:,}"))
        facts.append(("requests that wait for an answer", f"{arrivals['closed_loop']:,}"))
    if found["prefixes"]:
        prefixes = found["prefixes"]
        rate = f"{prefixes['hit_rate_tokens']:.1%} of tokens (blocks of {prefixes['block_tokens']})"
        facts.append(("prompt found in an endless prefix cache", rate))
    return facts


def _shares(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    text = ", ".join(f"{name} {count / total:.1%}" for name, count in ordered[:8])
    return text if len(ordered) <= 8 else f"{text}, and {len(ordered) - 8} more"


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def _write_text(file: Any, text: str) -> None:
    file.write(text.encode())
