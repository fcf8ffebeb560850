"""What each order of the queue does below, at and beyond capacity: the whole gateway in virtual time, with the mock engine behind it.

Four tenants ask for unequal shares, two classes have different TTFT objectives, all through the same seats. Writes docs/results/overload.md and .json.
Takes about two minutes on one core; nothing is random but the named streams of one seed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from inferencegym.engine.deployment import Deployment
from inferencegym.engine.settings import EngineSettings
from inferencegym.ground.clock import run_virtual
from inferencegym.ground.rng import stream
from inferencegym.metrics.record import Outcome, Records
from inferencegym.runtime.backends.mock import MockBackend
from inferencegym.runtime.backends.mock_lengths import Lengths
from inferencegym.runtime.backends.pool import Pool, Traits
from inferencegym.runtime.errors import ApiError
from inferencegym.runtime.gateway import Gateway, Head
from inferencegym.runtime.ports import COMPLETIONS
from inferencegym.runtime.recorder import Recorder
from inferencegym.runtime.settings import AdmissionSettings, DispatchSettings, QueueSettings, ServiceClass, Settings
from inferencegym.runtime.wire import Completion

DOCS = Path(__file__).resolve().parent.parent / "docs" / "results"
SEATS = 16
LOADS = (0.5, 0.9, 1.2, 2.0, 10.0)
READ_AT = 2.0
WARM_S, MEASURED_S = 10.0, 50.0
CLASSES = (ServiceClass("interactive", priority=0, ttft_slo_s=1.0), ServiceClass("batch", priority=5, ttft_slo_s=8.0))


@dataclass(frozen=True)
class Tenant:
    """Who asks, how much of all requests are theirs, and of what length."""

    name: str
    share: float
    prompt_tokens: int
    max_tokens: int


TENANTS = (
    Tenant("heavy", 0.60, 800, 256),
    Tenant("middle", 0.25, 400, 256),
    Tenant("light", 0.10, 200, 128),
    Tenant("tiny", 0.05, 100, 64),
)
ENGINE = EngineSettings(max_num_seqs=SEATS, prefix_caching=False)
QUEUE: dict[str, Any] = {"ttl_s": 10.0, "max_requests": 1000}
#: Name of a row, to the settings that differ.
ROWS: dict[str, tuple[QueueSettings, AdmissionSettings]] = {
    **{order: (QueueSettings(order=order, **QUEUE), AdmissionSettings()) for order in ("fcfs", "priority", "aging", "wfq", "vtc", "edf", "sjf")},
    **{f"{order}, predicted wait": (QueueSettings(order=order, **QUEUE), AdmissionSettings(predicted_wait=True)) for order in ("fcfs", "priority", "vtc", "edf")},
}  # fmt: skip


async def offered(settings: Settings, rate_rps: float, until_s: float, seed: int) -> tuple[Records, list[str]]:
    """Poisson arrivals at this rate through a new gateway; its records, and the names of its tenants."""
    gateway = await played(settings, rate_rps, until_s, seed)
    return gateway.recorder.records(), list(gateway.recorder.journal.tenant_names())


async def played(
    settings: Settings, rate_rps: float, until_s: float, seed: int, tenants_of: tuple[Tenant, ...] = TENANTS, engine: EngineSettings = ENGINE
) -> Gateway:  # fmt: skip
    """The same with these tenants on this engine; the gateway, which has ended."""
    loop = asyncio.get_running_loop()
    backend = MockBackend(
        deployment=Deployment(), settings=engine, models=("m",), lengths=Lengths(80.0, 0.7), seed=seed
    )
    recorder = Recorder(settings.classes, loop.time, keep=1_000_000)
    pool = Pool([backend], traits={backend.name: Traits(health_interval_s=inf)})
    gateway = Gateway(settings, pool, recorder, loop.time)
    await gateway.start()
    draw = stream(seed, "overload.arrivals")
    arrivals = np.cumsum(draw.exponential(1 / rate_rps, int(2 * rate_rps * until_s) + 100))
    tenants = draw.choice(len(tenants_of), len(arrivals), p=[one.share for one in tenants_of])
    classes = draw.integers(0, len(settings.classes), len(arrivals))
    spread = draw.lognormal(0.0, 0.4, len(arrivals))
    tasks = set()

    async def client(row: int) -> None:
        tenant = tenants_of[tenants[row]]
        prompt = [1] * max(1, round(tenant.prompt_tokens * spread[row]))
        body = Completion(model="m", prompt=prompt, max_tokens=tenant.max_tokens, stream=True)
        head = Head(str(row), slo_class=settings.classes[classes[row]].name, tenant=tenant.name)
        try:
            flow = gateway.submit(gateway.ask(COMPLETIONS, b"", body, head, loop.time()))
            while await flow.next() is not None:
                pass
        except ApiError:
            return  # it is in the records

    for row, at_s in enumerate(arrivals.tolist()):
        if at_s >= until_s:
            break
        loop.call_at(at_s, lambda row=row: tasks.add(loop.create_task(client(row))))
    await asyncio.sleep(until_s)
    await asyncio.gather(*tasks)
    await gateway.stop()
    return gateway


def settings_of(row: str) -> Settings:
    """The settings of a row of the table."""
    queue, admission = ROWS[row]
    return Settings(queue=queue, admission=admission, classes=CLASSES, dispatch=DispatchSettings(max_concurrency=SEATS))


def capacity_rps(seed: int) -> float:
    """Requests a second that the engine ends while far more are offered (measured in the same way)."""
    records, _ = run_virtual(offered(settings_of("fcfs"), 200.0, WARM_S + 20.0, seed))
    done = records.finish_s[records.outcome == Outcome.OK]
    return float(((done >= WARM_S) & (done < WARM_S + 20.0)).sum() / 20.0)


def entitled(demands: np.ndarray, total: float) -> np.ndarray:
    """Max-min fair shares of a total: nobody gets more than it asks for, and who gets less has as much as anybody."""
    shares, left = np.zeros(len(demands)), total
    order = np.argsort(demands)
    for rank, which in enumerate(order):
        shares[which] = min(demands[which], left / (len(demands) - rank))
        left -= shares[which]
    return shares


def jain(values: np.ndarray) -> float:
    """Jain's index: 1 when all are equal, 1/n when one has everything."""
    return float(values.sum() ** 2 / (len(values) * (values**2).sum()))


def figures(records: Records, names: list[str]) -> dict[str, float]:
    """The figures of a run, of requests that arrived in the measured window."""
    here = records.take((records.arrival_s >= WARM_S) & (records.arrival_s < WARM_S + MEASURED_S))
    ok = here.outcome == Outcome.OK
    slo_s = np.array([one.ttft_slo_s for one in CLASSES])[here.slo_class]
    met = ok & (here.ttft_s <= slo_s)
    # Service by the price of vtc: a prompt token 1, an answer token 2. A request refused is taken to have asked for a mean answer.
    mean_answer = float(here.output_tokens[ok].mean())
    asked = here.prompt_tokens + 2.0 * np.where(ok, here.output_tokens, mean_answer)
    tenants = [names.index(one.name) for one in TENANTS]
    demand = np.array([asked[here.tenant == code].sum() for code in tenants])
    served = np.array([asked[(here.tenant == code) & ok].sum() for code in tenants])
    told: dict[str, float] = {
        "offered_rps": len(here) / MEASURED_S,
        "goodput_rps": float(met.sum() / MEASURED_S),
        "served_rps": float(ok.sum() / MEASURED_S),
        "p99_ttft_s": float(np.quantile(here.ttft_s[ok], 0.99)),
        "jain": jain(served / entitled(demand, float(served.sum()))),
    }
    for number, one in enumerate(CLASSES):
        mine = here.slo_class == number
        told[f"met_{one.name}"] = float(met[mine].mean())
    for code, one in zip(tenants, TENANTS, strict=True):
        told[f"served_{one.name}"] = float(ok[here.tenant == code].mean())
    return told


def page(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# Overload: what each order of the queue does",
        "",
        f"Made by `python runs/overload.py` (seed {found['seed']}), in virtual time: the whole gateway, with the mock engine (llama-3.1-8b on one H100) behind {SEATS} seats.",
        f"Capacity, measured with far more offered: {found['capacity_rps']:.1f} requests a second. Arrivals are Poisson; {MEASURED_S:g} s are measured after {WARM_S:g} s.",
        f"Four tenants send {', '.join(f'{100 * one.share:g} % ({one.name})' for one in TENANTS)} of the requests, half of each in class interactive (TTFT 1 s), half in batch (8 s).",
        f"A request waits at most {QUEUE['ttl_s']:g} s. Order settings are the defaults. (Capacity is measured under fcfs; an order that favours short requests can serve more of them.)",
        "",
        "- **goodput**: requests a second that were answered whole with their first token within their class's objective",
        "- **p99 TTFT**: of requests that were answered, from arrival",
        "- **Jain**: fairness of what tenants got, each held against its max-min fair share of what was served; 1 is fair, 0.25 the worst",
        "- **met**: share of the requests of a class that met its objective; **served**: share of a tenant's requests that were answered",
        "",
    ]
    for load in LOADS:
        lines += [
            f"## {load:g} x capacity",
            "",
            "| order | goodput, 1/s | served, 1/s | p99 TTFT, s | Jain | met interactive | met batch | served heavy | served light | served tiny |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row, runs in found["rows"].items():
            got = runs[f"{load:g}"]
            shares = " | ".join(
                f"{100 * got[name]:.0f} %"
                for name in ("met_interactive", "met_batch", "served_heavy", "served_light", "served_tiny")
            )
            lines.append(
                f"| {row} | {got['goodput_rps']:.1f} | {got['served_rps']:.1f} | {got['p99_ttft_s']:.2f} | {got['jain']:.3f} | {shares} |"
            )
        lines.append("")
    return "\n".join([*lines, *reading(found)])


def reading(found: dict[str, Any]) -> list[str]:
    """What the tables say: every figure, and which of two is the greater, is taken from them."""
    rows = found["rows"]
    low, high, most = (f"{load:g}" for load in (LOADS[0], READ_AT, LOADS[-1]))
    at = {row: runs[high] for row, runs in rows.items()}

    def best(early: bool) -> tuple[str, float]:
        row = max((row for row in at if ("predicted" in row) == early), key=lambda row: at[row]["goodput_rps"])
        return row, at[row]["goodput_rps"]

    calm = [runs[low]["goodput_rps"] for runs in rows.values()]
    (alone, alone_rps), (refusing, refusing_rps) = best(early=False), best(early=True)
    flood, flood_early = rows["fcfs"][most]["goodput_rps"], rows["fcfs, predicted wait"][most]["goodput_rps"]
    fairness = ", ".join(
        f"{row} {at[row]['jain']:.3f} ({100 * at[row]['served_tiny']:.0f} %)" for row in ("fcfs", "wfq", "vtc")
    )
    worth_s = QueueSettings().aging_s * (CLASSES[1].priority - CLASSES[0].priority)
    return [
        f"## Reading, at {high} x capacity",
        "",
        f"- At {low} x the goodput of all rows lies between {min(calm):.1f} and {max(calm):.1f} a second.",
        f"- fcfs without early refusal has a goodput of {at['fcfs']['goodput_rps']:.1f} a second, and a p99 TTFT of {at['fcfs']['p99_ttft_s']:.1f} s where a request may wait {QUEUE['ttl_s']:g} s. Of the orders without early refusal {alone} has most: {alone_rps:.1f}.",
        f"- Of the rows that refuse at once what would wait too long, {refusing} has most: {refusing_rps:.1f} of a capacity of {found['capacity_rps']:.1f} a second, {compared(refusing_rps, alone_rps)} any order alone.",
        f"- At {most} x fcfs with predicted wait has a goodput of {flood_early:.1f} a second, {compared(flood_early, flood)} without it ({flood:.1f}).",
        f"- Jain's index, and how much of the smallest tenant's requests are served: {fairness}.",
        f"- Aging {'gives the same figures as' if rows['aging'] == rows['priority'] else 'differs from'} priority: the classes' difference in priority is worth {worth_s:g} s, {compared(worth_s, QUEUE['ttl_s'])} a request may wait ({QUEUE['ttl_s']:g} s).",
        "",
    ]


def compared(mine: float, other: float) -> str:
    """How a figure stands to another."""
    return "as much as" if mine == other else "more than" if mine > other else "less than"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=DOCS)
    arguments = parser.parse_args()
    capacity = capacity_rps(arguments.seed)
    print(f"capacity {capacity:.1f} requests a second", flush=True)
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for row in ROWS:
        rows[row] = {}
        for load in LOADS:
            got = figures(*run_virtual(offered(settings_of(row), load * capacity, WARM_S + MEASURED_S, arguments.seed)))
            rows[row][f"{load:g}"] = got
            print(f"{row:22} {load:4g}  " + "  ".join(f"{name} {value:.3g}" for name, value in got.items()), flush=True)
    found = {"seed": arguments.seed, "capacity_rps": capacity, "rows": rows}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "overload.json").write_text(json.dumps(found, indent=1) + "\n")
    (arguments.out / "overload.md").write_text(page(found))


if __name__ == "__main__":
    main()
