"""The serving suites: batching modes, batch size x timeout, priorities and starvation in virtual time; a 10 x overload and a real llama.cpp over HTTP.

    python runs/serving_suites.py [--only batching,sweep,priority,overload,llama] [--seed 1]

Virtual suites run the whole gateway with the mock engine (two minutes, nothing random but the seed's streams); the live ones start `inferencegym serve`
(`serving_live.py`; five minutes). Each writes its part of docs/results/serving.json, and serving.md is made of all parts that are there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from inferencegym.engine.settings import EngineSettings
from inferencegym.ground.clock import run_virtual
from inferencegym.metrics.record import Outcome, Records
from inferencegym.runtime.settings import DispatchSettings, QueueSettings, ServiceClass, Settings

sys.path.insert(0, str(Path(__file__).resolve().parent))

import serving_live
from overload import Tenant, entitled, jain, played

DOCS = Path(__file__).resolve().parent.parent / "docs" / "results"
SEATS, FOR_S, WARM_S = 8, 60.0, 5.0
ONE = (Tenant("all", 1.0, 200, 128),)
#: A batch that runs until its longest member ends, as the predecessor's worker did; and an engine that lets requests in at every step.
ENGINES = {name: EngineSettings(max_num_seqs=SEATS, prefix_caching=False, scheduler=name) for name in ("static", "vllm")}  # fmt: skip
#: The modes: none; full batches, with a timeout that is only there for the last; whoever came within 10 ms.
MODES = {
    "off": DispatchSettings(max_concurrency=SEATS),
    "by size (8, 2 s)": DispatchSettings(max_concurrency=SEATS, batching=True, max_batch_size=8, batch_timeout_ms=2000.0),
    "by time (10 ms)": DispatchSettings(max_concurrency=SEATS, batching=True, max_batch_size=8, batch_timeout_ms=10.0),
}  # fmt: skip
SIZES, TIMEOUTS_MS = (1, 2, 4, 8), (0.0, 10.0, 50.0, 200.0, 1000.0)
#: Shares of the engine's capacity.
LOADS = (0.3, 0.9)
#: Half of the requests urgent, by ranks; the tenants ask for unequal shares.
CLASSES = (
    ServiceClass("urgent", priority=0),
    ServiceClass("usual", priority=2),
    ServiceClass("background", priority=9),
)
TENANTS = (Tenant("loud", 0.8, 300, 128), Tenant("quiet", 0.2, 300, 128))
ORDERS = {
    "fcfs": QueueSettings(order="fcfs", ttl_s=120.0),
    "priority": QueueSettings(order="priority", ttl_s=120.0),
    "aging (1 s a level)": QueueSettings(order="aging", aging_s=1.0, ttl_s=120.0),
    "vtc": QueueSettings(order="vtc", ttl_s=120.0),
}
#: Who waits longer than this many times the median of all, or leaves the queue unserved, is starved.
STARVED = 10.0


def capacity_rps(engine: EngineSettings, tenants: tuple[Tenant, ...], seed: int) -> float:
    """Requests a second that the engine ends while far more are offered."""
    settings = Settings(queue=QueueSettings(ttl_s=1000.0), dispatch=MODES["off"])
    records = run_virtual(played(settings, 100.0, 30.0, seed, tenants, engine)).recorder.records()
    done = records.finish_s[records.outcome == Outcome.OK]
    return float(((done >= WARM_S) & (done < 30.0)).sum() / (30.0 - WARM_S))


def measured(records: Records) -> Records:
    """Requests that arrived after the beginning."""
    return records.take(records.arrival_s >= WARM_S)


def batch_run(engine: EngineSettings, dispatch: DispatchSettings, rate_rps: float, seed: int) -> dict[str, Any]:
    """One run of a batching mode: what was served how fast, and how requests were let go."""
    gateway = run_virtual(
        played(Settings(queue=QueueSettings(ttl_s=300.0), dispatch=dispatch), rate_rps, FOR_S, seed, ONE, engine)
    )
    here = measured(gateway.recorder.records())
    assert (here.outcome == Outcome.OK).all(), "everybody is served"
    released, batches = gateway.dispatcher.released, gateway.dispatcher.batches
    return {
        "rps": len(here) / (float(here.finish_s.max()) - WARM_S),
        "tokens_per_s": float(here.output_tokens.sum()) / (float(here.finish_s.max()) - WARM_S),
        "ttft_p50_s": float(np.median(here.ttft_s)),
        "ttft_p99_s": float(np.quantile(here.ttft_s, 0.99)),
        "e2e_p99_s": float(np.quantile(here.finish_s - here.arrival_s, 0.99)),
        "mean_batch": sum(released.values()) / max(sum(batches.values()), 1),
        "batches": {reason: count for reason, count in batches.items() if count},
    }


def batching(seed: int) -> dict[str, Any]:
    """Every mode on both engines, below and near capacity."""
    told: dict[str, Any] = {}
    for name, engine in ENGINES.items():
        most = capacity_rps(engine, ONE, seed)
        told[name] = {"capacity_rps": most, "rows": []}
        for load in LOADS:
            for mode, dispatch in MODES.items():
                row = {"load": load, "mode": mode, **batch_run(engine, dispatch, load * most, seed)}
                told[name]["rows"].append(row)
                print(name, row, flush=True)
    return told


def sweep(seed: int) -> list[dict[str, Any]]:
    """Batch size by timeout on the engine whose batches are static, at 0.6 of what it can do."""
    engine, rows = ENGINES["static"], []
    rate_rps = 0.6 * capacity_rps(engine, ONE, seed)
    for size in SIZES:
        for timeout_ms in TIMEOUTS_MS:
            dispatch = DispatchSettings(
                max_concurrency=SEATS, batching=True, max_batch_size=size, batch_timeout_ms=timeout_ms
            )
            rows.append({"size": size, "timeout_ms": timeout_ms, **batch_run(engine, dispatch, rate_rps, seed)})
            print(rows[-1], flush=True)
    return rows


def priority(seed: int) -> dict[str, Any]:
    """Waits of three classes and two tenants at 1.2 x capacity for a minute, then until all are served or have given up."""
    engine = ENGINES["vllm"]
    most, told = capacity_rps(engine, TENANTS, seed), {}
    for order, queue in ORDERS.items():
        settings = Settings(queue=queue, classes=CLASSES, dispatch=MODES["off"])
        gateway = run_virtual(played(settings, 1.2 * most, FOR_S, seed, TENANTS, engine))
        names = list(gateway.recorder.journal.tenant_names())
        told[order] = waits(measured(gateway.recorder.records()), [one.name for one in CLASSES], names)
        print(order, told[order], flush=True)
    return {"capacity_rps": most, "orders": told}


def waits(here: Records, classes: list[str], tenants: list[str]) -> dict[str, Any]:
    """Waiting times by class and tenant, the starved, and Jain's index of what the tenants were served."""
    waited_s = np.where(np.isnan(here.scheduled_s), here.finish_s, here.scheduled_s) - here.arrival_s
    starved = (waited_s > STARVED * np.median(waited_s)) | (here.outcome != Outcome.OK)
    told: dict[str, Any] = {
        "starved": int(starved.sum()),
        "requests": len(here),
        "unserved": int((here.outcome != Outcome.OK).sum()),
    }
    for codes, names in ((here.slo_class, classes), (here.tenant, tenants)):
        for number, name in enumerate(names):
            mine = waited_s[codes == number]
            told[name] = {
                "p50_s": float(np.median(mine)),
                "p99_s": float(np.quantile(mine, 0.99)),
                "most_s": float(mine.max()),
            }
    # What was served while too much was offered, by the price of vtc, against each tenant's max-min fair share of it.
    price = here.prompt_tokens + 2.0 * here.output_tokens
    by_then = here.finish_s <= FOR_S
    demand = np.array([price[here.tenant == number].sum() for number in range(len(tenants))])
    served = np.array([price[(here.tenant == number) & by_then].sum() for number in range(len(tenants))])
    told["jain"] = jain(served / entitled(demand, float(served.sum())))
    return told


# --- the page ----------------------------------------------------------------------------------------------------------------


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table and an empty line."""
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows), ""]


def speeds(row: dict[str, Any]) -> list[str]:
    """The columns that batch runs share."""
    return [f"{row['rps']:.2f}", f"{row['tokens_per_s']:.0f}", f"{row['ttft_p50_s'] * 1e3:.0f}", f"{row['ttft_p99_s'] * 1e3:.0f}", f"{row['e2e_p99_s']:.2f}", f"{row['mean_batch']:.2f}"]  # fmt: skip


_SPEEDS = ["requests/s", "tokens/s", "p50 TTFT, ms", "p99 TTFT, ms", "p99 whole, s", "mean batch"]


def page(found: dict[str, Any]) -> str:
    """All parts that are there as Markdown."""
    lines = ["# Serving suites", "", "Made by `python runs/serving_suites.py`; every figure is in `serving.json`.", ""]
    if "batching" in found:
        lines += ["## Batching modes (virtual time)", "", f"The mock engine (llama-3.1-8b, H100) with {SEATS} seats, {FOR_S:g} s of Poisson arrivals at a share of each engine's capacity. Engine `static` runs a batch until its longest member ends; `vllm` lets requests in at every step.", ""]  # fmt: skip
        for name, part in found["batching"].items():
            lines += [f"Engine `{name}`, capacity {part['capacity_rps']:.1f} requests a second:", ""]
            rows = [[f"{row['load']:g}", row["mode"], *speeds(row), ", ".join(f"{count} {reason}" for reason, count in row["batches"].items())] for row in part["rows"]]  # fmt: skip
            lines += table(["load", "mode", *_SPEEDS, "why they went"], rows)
    if "sweep" in found:
        lines += ["## Batch size x timeout (virtual time)", "", "Engine `static` at 0.6 of its capacity. A batch goes when it is full, when it can fill all free seats, or when its first request has waited out the timeout.", ""]  # fmt: skip
        lines += table(["size", "timeout, ms", *_SPEEDS], [[str(row["size"]), f"{row['timeout_ms']:g}", *speeds(row)] for row in found["sweep"]])  # fmt: skip
    if "priority" in found:
        part = found["priority"]
        lines += ["## Priorities, fairness, starvation (virtual time)", "", f"1.2 x capacity ({part['capacity_rps']:.1f} requests a second) for {FOR_S:g} s, then until all have ended; they wait at most 120 s. Classes of priority {', '.join(f'{one.priority} ({one.name})' for one in CLASSES)} come equally often; tenant loud sends 80 % of the requests. Starved: waited more than {STARVED:g} times the median, or was never served. Jain: what tenants were served within the {FOR_S:g} s, each held against its max-min fair share.", ""]  # fmt: skip
        names = [one.name for one in CLASSES] + [one.name for one in TENANTS]
        rows = [[order, *(f"{got[name]['p50_s']:.1f} / {got[name]['p99_s']:.1f}" for name in names), f"{got['starved']} of {got['requests']}", f"{got['jain']:.3f}"] for order, got in part["orders"].items()]  # fmt: skip
        lines += table(["order", *(f"{name}, wait p50 / p99, s" for name in names), "starved", "Jain"], rows)
    return "\n".join([*lines, *serving_live.page(found), *reading(found)])


def reading(found: dict[str, Any]) -> list[str]:
    """What the tables say, in figures taken from them."""
    lines = ["## Reading", ""]
    if "batching" in found:
        low = {
            name: {row["mode"]: row for row in part["rows"] if row["load"] == LOADS[0]}
            for name, part in found["batching"].items()
        }
        full = "by size (8, 2 s)"
        lines.append(
            f"- Waiting for full batches only costs: at {LOADS[0]:g} of the capacity the median TTFT grows from {low['vllm']['off']['ttft_p50_s'] * 1e3:.0f} to {low['vllm'][full]['ttft_p50_s'] * 1e3:.0f} ms (`vllm`) and from {low['static']['off']['ttft_p50_s'] * 1e3:.0f} to {low['static'][full]['ttft_p50_s'] * 1e3:.0f} ms (`static`), and throughput does not grow: it is the arrivals'. An engine with a queue of its own forms its batches itself."
        )
        most = {name: part["capacity_rps"] for name, part in found["batching"].items()}
        lines.append(
            f"- Batching at every step serves {most['vllm'] / most['static']:.2f} times as many requests as static batches of the same engine."
        )
    if "priority" in found:
        orders = found["priority"]["orders"]
        aging = next(name for name in orders if name.startswith("aging"))
        lines.append(
            f"- Strict priority starves ({orders['priority']['starved']} of {orders['priority']['requests']}); aging bounds the worst wait of the background class to {orders[aging]['background']['most_s']:.0f} s instead of {orders['priority']['background']['most_s']:.0f} s and still lets the urgent go first; vtc ranks tenants, not classes: who asks for less than its share waits {orders['vtc']['quiet']['p50_s']:.1f} s instead of {orders['fcfs']['quiet']['p50_s']:.1f} s."
        )
    return [*lines, ""]


def main() -> None:
    """Run what is asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="batching,sweep,priority,overload,llama")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=DOCS)
    arguments = parser.parse_args()
    file = arguments.out / "serving.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    suites = {"batching": batching, "sweep": sweep, "priority": priority, "overload": serving_live.overload, "llama": serving_live.llama}  # fmt: skip
    for name in arguments.only.split(","):
        made = suites[name](arguments.seed)
        found[name] = asyncio.run(made) if asyncio.iscoroutine(made) else made
        file.write_text(json.dumps(found, indent=1) + "\n")
        (arguments.out / "serving.md").write_text(page(found))


if __name__ == "__main__":
    main()
