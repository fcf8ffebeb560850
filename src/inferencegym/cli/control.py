"""`inferencegym control`: a policy at the wheel of a live gateway, behind a guard; a live table, JSON lines of every window, and the old settings back at the end."""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from inferencegym.cli.interrupt import STATUS
from inferencegym.control.asking import InTime
from inferencegym.control.guard import POLICY, Guard, Rules
from inferencegym.control.limits import Limits
from inferencegym.control.loop import Loop, Summary, Window
from inferencegym.control.record import Recording
from inferencegym.control.remote import RemotePlant
from inferencegym.decision.encodings import show_lever
from inferencegym.decision.knobs import LEVERS, QUANTIZATION_TIERS, RANGES
from inferencegym.decision.policy import Policy
from inferencegym.decision.snapshot import Snapshot
from inferencegym.decision.turn import in_force
from inferencegym.ground.errors import ConfigError, InputError
from inferencegym.policies.catalogue import policy as policy_of
from inferencegym.policies.catalogue import trained_file

#: Names of `--fallback` that are no policies.
FOUND, NONE = "found", "none"
_RULES = Rules()
#: Rows of the live table.
_ROWS = 12
_SHORT = {"batch_cap": "seats", "kv_budget_fraction": "kv", "speculation_depth": "drafts", "quantization_tier": "tier", "prefill_decode_split": "split", "priority_routing": "priority"}  # fmt: skip


def control(
    url: Annotated[str, typer.Argument(help="The gateway, with or without /v1.")],
    policy: Annotated[str, typer.Option(help="A name (slo-feedback, aimd, ...), a trained policy's file, fixed:batch_cap=64, or module:Class.")] = "slo-feedback",
    fallback: Annotated[str, typer.Option(help="Who stands in: a policy as above; found: the settings found at the start; none.")] = "slo-feedback",
    window: Annotated[float, typer.Option(help="Seconds of a window; policies are trained on 5.")] = 5.0,
    windows: Annotated[int | None, typer.Option(min=1, help="End after so many; default: at Ctrl-C.")] = None,
    slo_below: Annotated[float, typer.Option(help="Share within the TTFT objectives below which a window is bad...")] = _RULES.slo_below,
    slo_windows: Annotated[int, typer.Option(help="...and how many in a row end the policy's turn.")] = _RULES.slo_windows,
    ttft_ms: Annotated[float | None, typer.Option(help="p99 TTFT above which a window is bad too; needed where the gateway has no objectives.")] = None,
    calm_windows: Annotated[int, typer.Option(help="Calm windows after which the policy comes back.")] = _RULES.calm_windows,
    limit: Annotated[list[str] | None, typer.Option(help="Range of a knob, as batch_cap=8..128; may be given several times.")] = None,
    seed: Annotated[int, typer.Option(help="Of a policy that draws.")] = 0,
    key: Annotated[str, typer.Option(envvar="INFERENCEGYM_KEY", help="An administrator's API key; better in the environment, where no process list shows it.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look and decide, but send nothing.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the last settings in force at the end.")] = False,
    record: Annotated[Path | None, typer.Option(help="Write every window to this file, as JSON lines.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the summary as JSON, and no table.")] = False,
) -> None:  # fmt: skip
    """Let a policy steer a live gateway behind a guard; Ctrl-C gives the old settings back."""
    rules = Rules(limits=Limits(_ranges(limit or [])), slo_below=slo_below, slo_windows=slo_windows, calm_windows=calm_windows, ttft_most_ms=math.inf if ttft_ms is None else ttft_ms)  # fmt: skip
    guard = Guard(rules, window_s=window, fallback="" if fallback == NONE else fallback)
    limit_s = window * rules.slow_share
    stand_in = None if fallback in (FOUND, NONE) else _named(fallback)
    with RemotePlant(url, key=key, timeout_s=max(1.0, window)) as plant, ExitStack() as stack:
        loop = Loop(
            plant, _named(policy), guard, ask=InTime(limit_s), ask_fallback=InTime(limit_s), fallback=stand_in,
            clock=time.monotonic, seed=seed, dry_run=dry_run, tell=plant.name, release=plant.release,
        )  # fmt: skip
        if fallback != NONE and ttft_ms is None:
            _warn_if_blind(plant)
        stop = stack.enter_context(_ctrl_c())
        show = stack.enter_context(_shown(loop, json_, url, policy, fallback))
        keeper = None if record is None else stack.enter_context(
            Recording(record, url=url, policy=policy, fallback=fallback, window_s=window, dry_run=dry_run, seed=seed)
        )  # fmt: skip

        def on_window(one: Window) -> None:
            if keeper is not None:
                keeper.write(one)
            show(one)

        try:
            loop.run(stop.wait, windows=windows, on_window=on_window)
        except BaseException:
            if loop.summary.windows:
                typer.echo(loop.give_back(keep=keep).note, err=True)
            raise
        summary = loop.give_back(keep=keep)
    _end(loop, summary, json_, record)
    if stop.is_set():
        raise typer.Exit(STATUS)


def _warn_if_blind(plant: RemotePlant) -> None:
    """Say so where the guard cannot see trouble: a gateway without objectives keeps them all."""
    try:
        blind = not plant.has_objectives()
    except InputError as error:
        typer.echo(f"warning: {error}; the guard goes by its SLO share all the same", err=True)
        return
    if blind:
        typer.echo("warning: no class of this gateway has a TTFT objective, so its SLO is always 100 % and the guard cannot see that a policy does harm; set classes.NAME.ttft_slo_s there, or give --ttft-ms", err=True)  # fmt: skip


def _named(name: str) -> Policy:
    """A policy by any name of the catalogue; one out of a file is called as the file."""
    found = policy_of(name, "knobs")
    file = trained_file(name)
    if file is not None:
        found.name = Path(file).name
    return found


def _ranges(given: list[str]) -> dict[str, tuple[float, float]]:
    """`NAME=LEAST..MOST` by name."""
    ranges = {}
    for text in given:
        name, _, span = text.partition("=")
        low, dots, high = span.partition("..")
        try:
            ranges[name.strip()] = (_lever(low), _lever(high if dots else low))
        except ValueError:
            raise ConfigError("--limit", f"'{text}'", allowed="NAME=LEAST..MOST, e.g. batch_cap=8..128") from None
    return ranges


def _lever(text: str) -> float:
    text = text.strip()
    return float(QUANTIZATION_TIERS.index(text)) if text in QUANTIZATION_TIERS else float(text)


@contextmanager
def _ctrl_c() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C (or SIGTERM) sets, so that a window is never cut in two; the second one ends the process at once."""
    stop = threading.Event()

    def first(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        stop.set()

    before = {number: signal.signal(number, first) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- showing it -------------------------------------------------------------------------------------------------------


@contextmanager
def _shown(loop: Loop, quiet: bool, url: str, policy: str, fallback: str) -> Iterator[Callable[[Window], None]]:
    """What shows a window: a table that renews itself; plain lines where there is no terminal; nothing if `quiet`."""
    console = Console()
    head = f"{policy} steers {url}, guarded; fallback: {fallback}. Ctrl-C ends it."
    if quiet:
        yield lambda one: None
    elif not console.is_terminal:
        typer.echo(head)
        yield lambda one: typer.echo(_line(one))
    else:
        last: deque[Window] = deque(maxlen=_ROWS)
        with Live(console=console, auto_refresh=False) as live:

            def show(one: Window) -> None:
                last.append(one)
                live.update(_table(head, last), refresh=True)

            yield show


def _table(title: str, windows: deque[Window]) -> Table:
    table = Table("window", "goodput/s", "p99 TTFT", "SLO", "queue", "knobs", "who", "verdict", title=escape(title), title_justify="left")  # fmt: skip
    for one in windows:
        style = "" if one.driver == POLICY and not one.reasons else "yellow"
        table.add_row(str(one.number), *_figures(one.snapshot), _knobs(one), one.driver, escape("; ".join(one.reasons)) or "as it wants", style=style)  # fmt: skip
    return table


def _line(one: Window) -> str:
    goodput, ttft, slo, queue = _figures(one.snapshot)
    said = "; ".join(one.reasons) or "as it wants"
    return f"window {one.number}: goodput {goodput}/s, p99 TTFT {ttft}, SLO {slo}, queue {queue} | {_knobs(one)} | {one.driver}: {said}"  # fmt: skip


def _figures(seen: Snapshot | None) -> tuple[str, str, str, str]:
    """Goodput, p99 TTFT, SLO and queue; a dash for what is not known."""
    if seen is None:
        return ("-",) * 4
    ttft = "-" if math.isnan(seen.p99_ttft_ms) else f"{seen.p99_ttft_ms:,.0f} ms"
    slo = "-" if math.isnan(seen.slo_compliance_rate) else f"{seen.slo_compliance_rate:.0%}"
    return f"{seen.goodput_rps:.1f}", ttft, slo, f"{seen.queue_depth:.0f}"


def _knobs(one: Window) -> str:
    """The knobs as they stand after the window's command: an arrow where they were changed."""
    if one.snapshot is None:
        return "-"
    parts = []
    for name, before in zip(LEVERS, in_force(one.snapshot).tolist(), strict=True):
        text = _lever_text(name, before)
        if name in one.applied.accepted:
            now = _show(name, one.applied.accepted[name])
            text = now if now == text else f"{text}→{now}"
        parts.append(f"{_SHORT[name]} {text}")
    return ", ".join(parts)


def _show(name: str, value: Any) -> str:
    if name == "quantization_tier":
        return str(value)
    return f"{value:g}" if name in RANGES else ("on" if value else "off")


def _end(loop: Loop, summary: Summary, as_json: bool, record: Path | None) -> None:
    """The summary, for a person or a program."""
    if as_json:
        told = {one.name: getattr(summary, one.name) for one in fields(summary)}
        told |= {"found": summary.found.given(), "found_notes": list(loop.found_notes)}
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
        return
    shares = ", ".join(f"{who} {count}" for who, count in summary.drivers.most_common())
    typer.echo(f"{summary.windows} windows ({shares}); the guard ended the policy's turn {summary.trips} times; without a snapshot {summary.missing}, commands lost {summary.lost}.")  # fmt: skip
    if summary.outside:
        typer.echo("Beyond the range that policies know: " + ", ".join(f"{name} in {count}" for name, count in summary.outside.items()))  # fmt: skip
    typer.echo(summary.note + (f": {_standing(loop.found_at.tolist())}" if summary.given_back else ""))
    if record is not None:
        typer.echo(f"record: {record.resolve()}")


def _standing(levers: list[float]) -> str:
    return ", ".join(f"{_SHORT[name]} {_lever_text(name, value)}" for name, value in zip(LEVERS, levers, strict=True))


def _lever_text(name: str, value: float) -> str:
    return "?" if math.isnan(value) else show_lever(name, value)
