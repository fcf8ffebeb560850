"""The live half of the serving suites: a real gateway process under ten times its capacity, and a real llama.cpp behind it. Called by `serving_suites.py`.

The client is `inferencegym.bench`, in this process. Times are seconds; latencies are what the client saw, on whatever else the machine did.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from inferencegym.bench.client import Target
from inferencegym.bench.load import LoadResult, Plan, run, synthetic
from inferencegym.metrics.record import Outcome
from inferencegym.testing.servers import free_port, until_healthy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.openenv.llama import ENGINE, GGUF, engine_files

SLO_S = 1.0
SEATS, PROMPT, ANSWER = 8, 200, 64
#: Offered for how long, as shares of the measured peak; the last is the overload.
STEPS = ((0.7, 15.0), (1.0, 15.0), (1.3, 15.0), (10.0, 60.0))
SLOTS = 2
#: Batching modes that the real engine is tried with.
MODES = {"off": ("dispatch.batching=false",), "by size (2, 2 s)": ("dispatch.batching=true", "dispatch.max_batch_size=2", "dispatch.batch_timeout_ms=2000"),
         "by time (10 ms)": ("dispatch.batching=true", "dispatch.max_batch_size=2", "dispatch.batch_timeout_ms=10")}  # fmt: skip
ORDERS = ("fcfs", "priority", "aging", "vtc")


@contextmanager
def gateway(*given: str, toml: str = "") -> Iterator[str]:
    """`inferencegym serve` with these flags and this file of settings; where it is. It has a session of its own, so that the system shares its processors fairly."""
    port = free_port()
    with tempfile.NamedTemporaryFile("w", suffix=".toml", delete=False) as file:
        file.write(toml)
    command = [
        sys.executable,
        "-m",
        "inferencegym",
        "serve",
        "--config",
        file.name,
        "--port",
        str(port),
        "--set",
        "server.log=error",
        *given,
    ]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        until_healthy(process, f"http://127.0.0.1:{port}", 300)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)
        Path(file.name).unlink()


def flags(*settings: str) -> list[str]:
    """`--set` before each."""
    return [word for one in settings for word in ("--set", one)]


def ask(url: str, model: str, workload: Any, **plan: Any) -> LoadResult:
    """Send a workload."""
    return asyncio.run(run(Plan(workload, **plan), Target(url, model, extra={"ignore_eos": True})))


def figures(seen: LoadResult, offered_s: float) -> dict[str, Any]:
    """What the client saw: goodput within the objective, and how fast a refusal came."""
    records = seen.records
    ok, refused = records.outcome == Outcome.OK, records.outcome == Outcome.REJECTED
    met = ok & (records.first_token_s - records.arrival_s <= SLO_S)
    took_s = (records.finish_s - records.scheduled_s)[refused]
    return {
        "offered_rps": len(records) / offered_s, "goodput_rps": float(met.sum()) / offered_s, "served_rps": float(ok.sum()) / offered_s,
        "refused": int(refused.sum()), "failed": int((~ok & ~refused).sum()),
        "refused_p50_ms": float(np.median(took_s) * 1e3) if refused.any() else None,
        "refused_p99_ms": float(np.quantile(took_s, 0.99) * 1e3) if refused.any() else None,
        "client_late_p99_ms": float(np.quantile(records.scheduled_s - records.arrival_s, 0.99) * 1e3),
        "ttft_p99_s": float(np.quantile((records.first_token_s - records.arrival_s)[ok], 0.99)),
    }  # fmt: skip


def overload(seed: int) -> dict[str, Any]:
    """Ten times the capacity for a minute over HTTP, with predicted wait and without; before it, loads around the peak."""
    told: dict[str, Any] = {"slo_s": SLO_S, "load_average": os.getloadavg()[0], "rows": []}
    shared = ("backends.main.kind=mock", "backends.main.model=llama-3.1-8b", f"backends.main.max_num_seqs={SEATS}", "queue.ttl_s=10")  # fmt: skip
    for predicted in ("true", "false"):
        with gateway(
            *flags(*shared, f"admission.predicted_wait={predicted}"),
            toml=f'[[classes]]\nname = "default"\nttft_slo_s = {SLO_S}\n',
        ) as url:
            closed = ask(url, "llama-3.1-8b", synthetic(requests=150, rate_rps=None, prompt_tokens=PROMPT, output_tokens=ANSWER), concurrency=SEATS, warmup=20)  # fmt: skip
            peak = told.setdefault("closed_rps", len(closed.records) / float(closed.records.finish_s.max()))
            for load, lasting_s in STEPS if predicted == "true" else STEPS[-1:]:
                work = synthetic(requests=round(load * peak * lasting_s), rate_rps=load * peak, prompt_tokens=PROMPT, output_tokens=ANSWER, seed=seed)  # fmt: skip
                row = {"predicted_wait": predicted == "true", "load": load, "lasting_s": lasting_s, **figures(ask(url, "llama-3.1-8b", work), lasting_s)}  # fmt: skip
                told["rows"].append(row)
                print(row, flush=True)
    peak = max(row["goodput_rps"] for row in told["rows"])
    told["peak_goodput_rps"] = peak
    told["kept_at_10x"] = next(row["goodput_rps"] for row in told["rows"] if row["load"] == 10.0) / peak
    return told


def llama(seed: int) -> dict[str, Any]:
    """SmolLM2 on llama.cpp's own server through the gateway: batching modes, then each order of the queue under a crowd of three priorities."""
    python, gguf = engine_files()
    real = ("backends.main.kind=llama.cpp", "backends.main.model=smollm2", f"backends.main.model_path={gguf}", f"backends.main.slots={SLOTS}",
            "backends.main.ctx=1024", "backends.main.threads=1", f"backends.main.command={python}")  # fmt: skip
    told: dict[str, Any] = {
        "engine": ENGINE,
        "model": GGUF,
        "load_average": os.getloadavg()[0],
        "modes": {},
        "orders": {},
    }
    with gateway(*flags(*real, "queue.ttl_s=300")) as url:
        ask(url, "smollm2", synthetic(requests=2, rate_rps=None, prompt_tokens=20, output_tokens=4), concurrency=2)
        for mode, changes in MODES.items():
            patch(url, dict(one.split("=") for one in changes))
            seen = ask(url, "smollm2", synthetic(requests=12, rate_rps=None, prompt_tokens=40, output_tokens=16), concurrency=4)  # fmt: skip
            records = seen.records
            assert (records.outcome == Outcome.OK).all(), seen.errors
            whole_s = float(records.finish_s.max())
            ttft_s = records.first_token_s - records.enqueued_s
            told["modes"][mode] = {"rps": len(records) / whole_s, "tokens_per_s": float(records.output_tokens.sum()) / whole_s, "ttft_p50_s": float(np.median(ttft_s)), "ttft_most_s": float(ttft_s.max())}  # fmt: skip
            print(mode, told["modes"][mode], flush=True)
        patch(url, {"dispatch.batching": False})
        for order in ORDERS:
            patch(url, {"queue.order": order, "queue.aging_s": 1.0 if order == "aging" else 10.0})
            told["orders"][order] = crowd(url, seed)
            print(order, told["orders"][order], flush=True)
    return told


def patch(url: str, changes: dict[str, Any]) -> None:
    """Change live settings; texts are read as JSON where they can be."""

    def read(value: Any) -> Any:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except json.JSONDecodeError:
            return value

    body = json.dumps({"changes": {name: read(value) for name, value in changes.items()}}).encode()
    asked = urllib.request.Request(
        f"{url}/v1/runtime/config", body, {"content-type": "application/json"}, method="PATCH"
    )
    with urllib.request.urlopen(asked, timeout=30):
        pass


def crowd(url: str, seed: int) -> dict[str, Any]:
    """Twenty-four requests at once, in turn of priorities 9, 2, 0: the time to the first token of each."""
    ranks = np.tile(np.array([9, 2, 0]), 8)
    work = synthetic(requests=24, rate_rps=None, prompt_tokens=30, output_tokens=12, seed=seed)
    work = dataclasses.replace(work, priority=ranks.astype(work.priority.dtype))
    records = ask(url, "smollm2", work).records
    assert (records.outcome == Outcome.OK).all(), "everybody is served"
    ttft_s = records.first_token_s - records.enqueued_s
    return {str(rank): {"p50_s": float(np.median(ttft_s[ranks == rank])), "most_s": float(ttft_s[ranks == rank].max())} for rank in (0, 2, 9)}  # fmt: skip


def page(found: dict[str, Any]) -> list[str]:
    """The live parts as Markdown lines."""
    lines: list[str] = []
    if "overload" in found:
        part = found["overload"]
        lines += ["## Ten times overload over HTTP", "", f"`inferencegym serve` with the mock engine in real time ({SEATS} seats, {PROMPT} tokens in, {ANSWER} out), objective TTFT {part['slo_s']:g} s, patience 10 s; the client on the same two cores, load average {part['load_average']:.1f} at the start. Closed loop at {SEATS}: {part['closed_rps']:.1f} requests a second. At 10 x with predicted wait the goodput is {100 * part['kept_at_10x']:.0f} % of the best ({part['peak_goodput_rps']:.1f} a second).", ""]  # fmt: skip
        lines += ["| predicted wait | load | goodput, 1/s | served, 1/s | p99 TTFT of the served, s | refused | refusal p50 / p99, ms | client late p99, ms | failed |", "|" + "---|" * 9]  # fmt: skip
        for row in part["rows"]:
            refusal = (
                "-" if row["refused_p99_ms"] is None else f"{row['refused_p50_ms']:.1f} / {row['refused_p99_ms']:.0f}"
            )
            lines.append(f"| {'yes' if row['predicted_wait'] else 'no'} | {row['load']:g} x, {row['lasting_s']:g} s | {row['goodput_rps']:.1f} | {row['served_rps']:.1f} | {row['ttft_p99_s']:.2f} | {row['refused']} | {refusal} | {row['client_late_p99_ms']:.0f} | {row['failed']} |")  # fmt: skip
        lines.append("")
    if "llama" in found:
        part = found["llama"]
        lines += ["## A real engine", "", f"llama.cpp ({part['engine']}, {part['model']}) with {SLOTS} slots and one thread, started by the gateway; load average {part['load_average']:.1f} at the start, so only orders and rough sizes mean something.", ""]  # fmt: skip
        lines += ["| batching | requests/s | tokens/s | p50 TTFT, s | worst TTFT, s |", "|---|---|---|---|---|"]
        lines += [f"| {mode} | {got['rps']:.2f} | {got['tokens_per_s']:.1f} | {got['ttft_p50_s']:.2f} | {got['ttft_most_s']:.2f} |" for mode, got in part["modes"].items()]  # fmt: skip
        lines += ["", "Twenty-four requests at once, in turn of priorities 9, 2, 0; TTFT p50 / worst, s:", "", "| order | priority 0 | priority 2 | priority 9 |", "|---|---|---|---|"]  # fmt: skip
        lines += [f"| {order} | " + " | ".join(f"{got[rank]['p50_s']:.1f} / {got[rank]['most_s']:.1f}" for rank in ("0", "2", "9")) + " |" for order, got in part["orders"].items()]  # fmt: skip
        lines.append("")
    return lines
