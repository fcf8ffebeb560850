"""`inferencegym load`: requests against any OpenAI-compatible server; a table of what clients felt, JSON, and a report beside earlier runs."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

import inferencegym
from inferencegym.bench.client import CHAT, PATHS, Client, Target, TargetError
from inferencegym.bench.kept import Kept, differences, keep, read_kept
from inferencegym.bench.load import MOST_IN_FLIGHT, LoadResult, Plan, run, synthetic
from inferencegym.cli.simulate import load_workload
from inferencegym.ground.errors import ConfigError
from inferencegym.metrics.slo import Slo
from inferencegym.metrics.vocabulary import metric

ROWS: tuple[tuple[str, str], ...] = (
    *[(name, statistic) for name in ("ttft_s", "itl_s", "tpot_s", "e2e_s") for statistic in ("p50", "p90", "p99")],
    ("arrival_rps", ""), ("throughput_rps", ""), ("output_tps", ""), ("goodput_rps", ""), ("slo_attainment", ""), ("prefix_hit_fraction", ""),
    ("queue_s", "p99"),
)  # fmt: skip
#: What a kept run is compared by.
COMPARED = (
    *[(name, statistic) for name in ("ttft_s", "tpot_s", "e2e_s") for statistic in ("p50", "p99")], ("goodput_rps", ""),
)  # fmt: skip


def load(
    url: Annotated[str, typer.Option(help="The server, without /v1.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Model to ask for; default: the first the server names.")] = None,
    endpoint: Annotated[str, typer.Option(help="chat or completions.")] = CHAT,
    trace: Annotated[
        str | None, typer.Option(help="A shipped fit, a real trace's name, or a file; default: requests of one size.")
    ] = None,
    duration: Annotated[float | None, typer.Option(help="Seconds of the trace.")] = None,
    rate: Annotated[
        str | None, typer.Option(help="Open loop: requests a second; several, as 1,2,4, are runs side by side.")
    ] = None,
    concurrency: Annotated[
        str | None, typer.Option(help="Closed loop: requests at once; several are runs side by side.")
    ] = None,
    requests: Annotated[int, typer.Option(help="How many, without a trace; with one: at most so many.")] = 100,
    prompt_tokens: Annotated[int, typer.Option(help="Prompt length, without a trace.")] = 128,
    output_tokens: Annotated[int, typer.Option(help="Answer length, without a trace.")] = 64,
    burstiness: Annotated[
        float, typer.Option(help="Of arrivals without a trace: 1 Poisson, 0 evenly spaced, above 1 in bursts.")
    ] = 1.0,
    warmup: Annotated[int, typer.Option(help="Requests sent first and not counted.")] = 0,
    ignore_eos: Annotated[
        bool, typer.Option(help="Ask for answers of full length (vLLM and InferenceGym know ignore_eos).")
    ] = False,
    cancel: Annotated[float, typer.Option(help="Share of requests whose client hangs up.")] = 0.0,
    cancel_after: Annotated[float, typer.Option(help="Seconds after which it does.")] = 0.5,
    max_in_flight: Annotated[int, typer.Option(help="Open loop: requests under way at most.")] = MOST_IN_FLIGHT,
    timeout: Annotated[float, typer.Option(help="Seconds after which the client gives a request up.")] = 600.0,
    slo_ttft_ms: Annotated[float, typer.Option(help="Objective for the time to first token.")] = 500.0,
    slo_tpot_ms: Annotated[float, typer.Option(help="Objective for the time per output token.")] = 50.0,
    key_env: Annotated[str, typer.Option(help="Environment variable with the API key.")] = "OPENAI_API_KEY",
    seed: Annotated[int, typer.Option(help="Seed of arrivals, prompts and cancellations.")] = 0,
    same_prompts: Annotated[
        bool, typer.Option(help="Send what any run of this seed sends, even if a server has it in its prefix cache.")
    ] = False,
    save: Annotated[Path | None, typer.Option(help="Folder to keep the runs in (Parquet and JSON).")] = None,
    compare: Annotated[Path | None, typer.Option(help="Folder of an earlier run to stand beside this one.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write one self-contained HTML file with charts.")] = None,
) -> None:
    """Send requests to a server, at their times or so many at once, and show what clients felt."""
    if endpoint not in PATHS:
        raise ConfigError("--endpoint", f"'{endpoint}'", allowed=", ".join(PATHS))
    if rate is not None and concurrency is not None:
        raise ConfigError("--concurrency", "is given beside --rate", allowed="one of the two")
    before = [] if compare is None else read_kept(compare)
    slo = Slo(ttft_s=slo_ttft_ms / 1000, tpot_s=slo_tpot_ms / 1000)
    plans = _plans(trace, duration, rate, concurrency, requests, prompt_tokens, output_tokens, burstiness, warmup, max_in_flight, cancel, cancel_after, seed, same_prompts)  # fmt: skip
    target = Target(
        url=url, model=model or "", endpoint=endpoint, api_key=os.environ.get(key_env, ""), timeout_s=timeout, extra={"ignore_eos": True} if ignore_eos else {},
    )  # fmt: skip
    kept = asyncio.run(_run_all(plans, target, slo, quiet=json_))
    if save is not None:
        keep(save, kept)
    shown = [*before, *kept]
    if report is not None:
        _write_report(report, shown, url)
    changes = {one.label: differences(one, before[0], COMPARED) for one in kept} if len(before) == 1 else {}
    if json_:
        sys.stdout.write(json.dumps(_as_json(shown, changes), indent=2) + "\n")
        return
    console = Console()
    console.print(_table(shown))
    for label, found in changes.items():
        said = "; ".join(f"{name} {text}" for name, text in found.items())
        console.print(f"{label} against {before[0].label}, 95 %: {said}", soft_wrap=True)
    for one in kept:
        _say_endings(console, one)
    if report is not None:
        console.print(f"report: {report.resolve()}", soft_wrap=True)


def _plans(
    trace: str | None, duration_s: float | None, rate: str | None, concurrency: str | None, requests: int, prompt_tokens: int, output_tokens: int,
    burstiness: float, warmup: int, most_in_flight: int, cancel: float, cancel_after_s: float, seed: int, same_prompts: bool,
) -> dict[str, Plan]:  # fmt: skip
    """The runs by label."""
    rates = _numbers("--rate", rate) if rate is not None else []
    seats = [int(x) for x in _numbers("--concurrency", concurrency)] if concurrency is not None else []
    if not rates and not seats and trace is None:
        seats = [8]
    plans = {}
    runs: list[tuple[str, float | None, int | None]] = [(f"{x:g} requests/s", x, None) for x in rates]
    runs += [(f"{n} at once", None, n) for n in seats]
    for label, rate_rps, at_once in runs or [(str(trace), None, None)]:
        if trace is None:
            work = synthetic(
                requests=requests, rate_rps=rate_rps, prompt_tokens=prompt_tokens, output_tokens=output_tokens, burstiness=burstiness, seed=seed
            )  # fmt: skip
        else:
            work = load_workload(trace, seed=seed, duration_s=duration_s, rate_rps=rate_rps)[0]
            work = work if duration_s is not None else work.head(min(requests, len(work)))
        plans[label] = Plan(
            work, concurrency=at_once, most_in_flight=most_in_flight, warmup=warmup, hang_up_share=cancel, hang_up_after_s=cancel_after_s, seed=seed,
            same_prompts=same_prompts,
        )  # fmt: skip
    return plans


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(name, f"'{text}'", allowed="a number, or several with commas between") from None


async def _run_all(plans: dict[str, Plan], target: Target, slo: Slo, *, quiet: bool) -> list[Kept]:
    if not target.model:
        async with Client(target) as client:
            names = await client.models()
        if not names:
            raise TargetError(f"{target.url} offers no model; name one with --model")
        target = Target(**{name: getattr(target, name) for name in target.__dataclass_fields__} | {"model": names[0]})
    kept = []
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"), TextColumn("{task.fields[now]}"), TimeElapsedColumn())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as bar:
        for label, plan in plans.items():
            task = bar.add_task(label, total=float(len(plan.workload)), now="")

            def said(done: int, now: int, _: int, task: TaskID = task) -> None:
                bar.update(task, completed=done, now=f"{now} under way")

            result = await run(plan, target, said)
            kept.append(_kept(label, plan, target, result, slo))
    return kept


def _kept(label: str, plan: Plan, target: Target, result: LoadResult, slo: Slo) -> Kept:
    settings = {
        "url": target.url, "model": target.model, "endpoint": target.endpoint, "workload": f"{plan.workload.name}: {plan.workload.source}",
        "workload_digest": plan.workload.digest(), "requests": str(len(plan.workload)), "loop": "open" if plan.concurrency is None else f"closed, {plan.concurrency} at once",
        "warmup": str(plan.warmup), "hang_up_share": f"{plan.hang_up_share:g}", "seed": str(plan.seed), "slo": str(slo),
    }  # fmt: skip
    return Kept(label, result.records, result.itl, slo, plan.workload.slo_class_names, result.timeline, settings, result.errors, result.request_ids)  # fmt: skip


# --- showing it -------------------------------------------------------------------------------------------------------


def _table(runs: list[Kept]) -> Table:
    table = Table(header_style="bold")
    table.add_column("", no_wrap=True)
    for one in runs:
        table.add_column(one.label, justify="right", overflow="fold")
    for name, statistic in ROWS:
        values = [one.summary.value(name, statistic) for one in runs]
        if any(value is not None for value in values):
            heading = "Generator's delay (ms) p99" if name == "queue_s" else f"{metric(name).heading} {statistic}".strip()  # fmt: skip
            cells = [metric(name).show(value) for value in values]
            table.add_row(heading, *cells, end_section=statistic == "p99")
    return table


def _say_endings(console: Console, one: Kept) -> None:
    lost = {name: count for name, count in one.summary.outcomes.items() if count and name != "ok"}
    if lost:
        said = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in lost.items())
        console.print(f"[yellow]{one.label}: not served: {said}[/]")
    for text, count in sorted(one.errors.items(), key=lambda item: -item[1])[:3]:
        console.print(f"  {count:,} x {text}", style="dim", markup=False, soft_wrap=True)


def _as_json(runs: list[Kept], changes: dict[str, dict[str, str]]) -> dict[str, Any]:
    return {
        "version": inferencegym.__version__,
        "runs": [
            {
                "label": one.label,
                "settings": dict(one.settings),
                "summary": one.summary.to_dict(),
                "errors": dict(one.errors),
            }
            for one in runs
        ],
        "against_earlier": changes,
    }


def _write_report(path: Path, runs: list[Kept], url: str) -> None:
    from inferencegym.bench.report import ReportRun, write_report

    columns = [
        ReportRun(label=one.label, records=one.records, itl=one.itl, summary=one.summary, timeline=one.timeline, settings=one.settings)
        for one in runs
    ]  # fmt: skip
    context = {
        "seen by": "the client; latencies count from the time a request was due",
        "queue time": "the load generator's own delay: how late requests were sent",
        "requests waiting, running": "sent and without a token yet; tokens flowing",
    }
    # Runs kept by an earlier release do not say theirs.
    digests = {f"workload digest, {one.label}": one.settings.get("workload_digest", "") for one in runs}
    if len(set(digests.values())) == 1:
        digests = {"workload digest": next(iter(digests.values()))}
    command = shlex.join(["inferencegym", *sys.argv[1:]])
    write_report(
        path,
        columns,
        title=f"Load on {url}",
        command=command,
        context=context,
        digests=digests,
        version=inferencegym.__version__,
    )
