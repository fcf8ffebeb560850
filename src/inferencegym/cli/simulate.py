"""`inferencegym simulate`: one trace through one or several deployments side by side; a table, JSON, and a report to look at."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import inferencegym
from inferencegym.cli.compose import Variant, settings_table, variants
from inferencegym.engine.deployment import Deployment
from inferencegym.engine.profile import Profile, load_profile
from inferencegym.engine.settings import EngineSettings
from inferencegym.engine.simulate import SimulationResult
from inferencegym.engine.simulate import simulate as run_simulation
from inferencegym.ground.errors import ConfigError
from inferencegym.ground.facts import load_facts
from inferencegym.metrics.slo import Slo
from inferencegym.metrics.summary import Summary
from inferencegym.metrics.vocabulary import metric
from inferencegym.workload import Workload, generate, is_description, read

#: Rows of the table: a metric and, for latencies, the statistic.
ROWS: tuple[tuple[str, str], ...] = (
    *[(name, statistic) for name in ("ttft_s", "itl_s", "tpot_s", "e2e_s") for statistic in ("p50", "p90", "p99")],
    ("throughput_rps", ""), ("output_tps", ""), ("goodput_rps", ""), ("slo_attainment", ""), ("kv_used_mean", ""),
    ("kv_used_max", ""), ("prefix_hit_fraction", ""), ("preemptions", ""), ("cost_per_1k_output_tokens", ""),
)  # fmt: skip
#: Which of them carry an uncertainty band on screen.
BANDED = {
    ("ttft_s", "p50"),
    ("ttft_s", "p99"),
    ("tpot_s", "p50"),
    ("e2e_s", "p50"),
    ("e2e_s", "p99"),
    ("output_tps", ""),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One variant's result, and its figures when every step is slower or faster by the profile's uncertainty."""

    variant: Variant
    result: SimulationResult
    summary: Summary
    slower: Summary | None
    faster: Summary | None

    def band(self, name: str, statistic: str) -> tuple[float, float] | None:
        """(low, high) of a figure, if it was computed."""
        if self.slower is None or self.faster is None:
            return None
        values = [s.value(name, statistic) for s in (self.faster, self.summary, self.slower)]
        known = [value for value in values if value is not None]
        return (min(known), max(known)) if known else None


def simulate(
    trace: Annotated[
        str,
        typer.Option(
            help="A shipped fit (see `traces list`), a real trace's name in INFERENCEGYM_TRACE_DIR, or a file."
        ),
    ] = "azure-conversation",
    model: Annotated[str, typer.Option(help="Model to serve.")] = "llama-3.1-8b",
    gpu: Annotated[str, typer.Option(help="GPU to serve it on.")] = "h100",
    tp: Annotated[int, typer.Option(help="GPUs a replica (tensor parallel).")] = 1,
    replicas: Annotated[int, typer.Option(help="Replicas behind the router.")] = 1,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="NAME=VALUE[,VALUE...]; several values are compared side by side. Names: engine.* and deployment.*, e.g. engine.max_num_seqs=64,256.",
        ),
    ] = None,
    duration: Annotated[
        float | None,
        typer.Option(
            help="Seconds of traffic: generated for a fit (default 3600), a window from the start for a real trace."
        ),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Mean requests per second; the arrival pattern is kept and scaled.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Step-time profile, a name or a TOML file; default: the GPU's.")
    ] = None,
    facts: Annotated[Path | None, typer.Option(help="TOML file with your own GPUs and models.")] = None,
    slo_ttft_ms: Annotated[float, typer.Option(help="Objective for the time to first token.")] = 500.0,
    slo_tpot_ms: Annotated[float, typer.Option(help="Objective for the time per output token.")] = 50.0,
    band: Annotated[
        bool, typer.Option(help="Also run with every step slower and faster by the profile's uncertainty.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Seed of the generated traffic and of the engine.")] = 0,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write one self-contained HTML file with charts.")] = None,
) -> None:
    """Run a trace through an engine and show what users would have felt, and what it costs."""
    if facts is not None:
        load_facts(facts)
    workload, left_out = load_workload(trace, seed=seed, duration_s=duration, rate_rps=rate)
    base = Deployment(model=model, gpu=gpu, tensor_parallel=tp, replicas=replicas)
    chosen = variants(base, EngineSettings(), set_ or [])
    own_profile = None if profile is None else load_profile(profile)
    slo = Slo(ttft_s=slo_ttft_ms / 1000, tpot_s=slo_tpot_ms / 1000)
    outcomes = _run_all(workload, chosen, own_profile, slo, seed, band, quiet=json_)
    if report is not None:
        _write_report(report, workload, outcomes, left_out)
    if json_:
        sys.stdout.write(json.dumps(_as_json(workload, outcomes, left_out), indent=2) + "\n")
        return
    console = Console()
    console.print(_headline(workload, left_out))
    console.print(_table(outcomes))
    _say_endings(console, outcomes)
    if report is not None:
        console.print(f"report: {report.resolve()}", soft_wrap=True)


def load_workload(trace: str, *, seed: int, duration_s: float | None, rate_rps: float | None) -> tuple[Workload, int]:
    """The workload a name or file stands for, scaled as asked, and how many failed rows were left out."""
    if is_description(trace):
        return generate(trace, seed=seed, duration_s=duration_s or 3600.0, rate_rps=rate_rps).servable()
    workload = read(trace)
    if duration_s is not None:
        workload = workload.window(0.0, duration_s)
    workload, left_out = workload.servable()
    if rate_rps is not None:
        if rate_rps <= 0:
            raise ConfigError("--rate", f"{rate_rps} requests per second", allowed="more than 0")
        workload = workload.scale_rate(rate_rps * workload.duration_s / max(len(workload), 1))
    return workload, left_out


def _run_all(
    workload: Workload, chosen: list[Variant], profile: Profile | None, slo: Slo, seed: int, band: bool, *, quiet: bool
) -> list[Outcome]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as bar:
        task = bar.add_task("compiling the engine (first run only), then simulating", total=float(len(chosen)))
        outcomes = []
        for i, variant in enumerate(chosen):
            outcomes.append(
                _run_one(
                    workload,
                    variant,
                    profile,
                    slo,
                    seed,
                    band,
                    lambda share, i=i: bar.update(task, completed=i + share),
                )
            )
            bar.update(task, description=f"simulating {variant.label}")
    return outcomes


def _run_one(
    workload: Workload, variant: Variant, profile: Profile | None, slo: Slo, seed: int, band: bool, progress: Any
) -> Outcome:
    result = run_simulation(
        workload, variant.deployment, variant.settings, seed=seed, profile=profile, progress=progress
    )
    bands: list[Summary | None] = [None, None]
    if band and result.uncertainty > 0:
        for i, factor in enumerate((1 + result.uncertainty, 1 - result.uncertainty)):
            other = run_simulation(
                workload,
                variant.deployment,
                variant.settings,
                seed=seed,
                profile=profile,
                timeline_points=0,
                step_time_factor=factor,
            )
            bands[i] = other.summary(slo)
    return Outcome(variant, result, result.summary(slo), bands[0], bands[1])


# --- showing it -------------------------------------------------------------------------------------------------------


def _headline(workload: Workload, left_out: int) -> str:
    rate = len(workload) / max(workload.duration_s, 1e-9)
    text = f"[bold]{workload.name}[/]: {len(workload):,} requests in {workload.duration_s:,.0f} s ({rate:.2f}/s); {workload.source}"
    return text + (f"; {left_out} rows that failed at the source left out" if left_out else "")


def _table(outcomes: list[Outcome]) -> Table:
    table = Table(header_style="bold")
    table.add_column("", no_wrap=True)
    for outcome in outcomes:
        table.add_column(outcome.variant.label.replace(", ", "\n"), justify="right", overflow="fold")
    for name, statistic in ROWS:
        values = [outcome.summary.value(name, statistic) for outcome in outcomes]
        if all(value is None for value in values):
            continue
        shown = metric(name)
        heading = f"{shown.heading} {statistic}".strip()
        cells = [_cell(outcome, name, statistic, value) for outcome, value in zip(outcomes, values, strict=True)]
        table.add_row(heading, *cells, end_section=statistic == "p99")
    return table


def _cell(outcome: Outcome, name: str, statistic: str, value: float | None) -> str:
    if value is None:
        return "-"
    text = metric(name).show(value)
    limits = outcome.band(name, statistic) if (name, statistic) in BANDED else None
    if limits is None:
        return text
    return f"{text}\n[dim]{metric(name).show(limits[0])} .. {metric(name).show(limits[1])}[/]"


def _say_endings(console: Console, outcomes: list[Outcome]) -> None:
    """Requests that were not served are said aloud."""
    for outcome in outcomes:
        lost = {name: count for name, count in outcome.summary.outcomes.items() if count and name != "ok"}
        if lost:
            said = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in lost.items())
            console.print(f"[yellow]{outcome.variant.label}: not served: {said}[/]")
    share = outcomes[0].result.uncertainty
    if any(outcome.slower for outcome in outcomes):
        console.print(f"[dim]low .. high: all steps {share:.0%} faster .. slower, the step-time profile's own error[/]")


def _as_json(workload: Workload, outcomes: list[Outcome], left_out: int) -> dict[str, Any]:
    return {
        "version": inferencegym.__version__,
        "workload": {
            "name": workload.name, "source": workload.source, "requests": len(workload), "duration_s": workload.duration_s,
            "digest": workload.digest(), "left_out": left_out,
        },
        "runs": [
            {
                "label": outcome.variant.label,
                "settings": settings_table(outcome.variant),
                "profile": outcome.result.profile.describe(),
                "uncertainty": outcome.result.uncertainty,
                "summary": outcome.summary.to_dict(),
                "band": {
                    f"{name} {statistic}".strip(): limits
                    for name, statistic in ROWS
                    if (limits := outcome.band(name, statistic)) is not None
                },
            }
            for outcome in outcomes
        ],
    }  # fmt: skip


def _write_report(path: Path, workload: Workload, outcomes: list[Outcome], left_out: int) -> None:
    from inferencegym.bench.report import ReportRun, write_report

    runs = [
        ReportRun(
            label=outcome.variant.label,
            records=outcome.result.records,
            itl=outcome.result.itl,
            summary=outcome.summary,
            timeline=outcome.result.timeline,
            settings=settings_table(outcome.variant),
            band={f"{n} {s}".strip(): limits for n, s in ROWS if (limits := outcome.band(n, s)) is not None} or None,
        )
        for outcome in outcomes
    ]
    profiles = {o.result.profile.digest: o.result.profile for o in outcomes}
    context = {
        "workload": f"{workload.name}: {workload.source}",
        "attribution": workload.attribution,
        "rows left out (failed at the source)": str(left_out),
        "step-time profile": "; ".join(one.describe() for one in profiles.values()),
    }
    digests = {"workload digest": workload.digest()}
    digests |= {f"profile digest, {one.name}": digest for digest, one in profiles.items()}
    title = f"{workload.name} on {outcomes[0].result.deployment.model_facts.name}, {outcomes[0].result.deployment.gpu_facts.name}"
    command = shlex.join(["inferencegym", *sys.argv[1:]])
    write_report(
        path, runs, title=title, command=command, context=context, digests=digests, version=inferencegym.__version__
    )
