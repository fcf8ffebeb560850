"""How fast the engine is: CPU seconds, medians of several runs in one process, after compilation unless a figure says otherwise.

`python benchmarks/engine.py` prints a table, `--json` one JSON object. `day_*` needs `servegen_r1_day.parquet` (see --traces).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
REQUESTS = 200_000
TARGETS = {
    "conv_req_per_cpu_s": (1_000_000, "at least"),
    "preempt_req_per_cpu_s": (300_000, "at least"),
    "features_req_per_cpu_s": (150_000, "at least"),
    "steps_per_cpu_s": (10_000_000, "at least"),
    "day_cpu_s": (10, "at most"),
    "day_peak_rss_mb": (1_500, "at most"),
    "fork_us": (50, "at most"),
    "cold_start_s": (40, "at most"),
    "warm_start_s": (2, "at most"),
    "import_cpu_s": (0.5, "at most"),
}


def cpu_s(work: Callable[[], object]) -> float:
    """CPU seconds of this process for one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def conversation(rate_rps: float, requests: int = REQUESTS, seed: int = 1):
    from inferencegym import generate

    return generate("azure-conversation", seed=seed, arrivals="poisson", rate_rps=rate_rps, requests=requests)


def saturation_rps(deployment, settings, requests: int = 20_000) -> float:
    """Requests a second when they all stand in the queue from the start."""
    from inferencegym import simulate

    workload = conversation(1e5, requests)
    result = simulate(workload, deployment, settings, timeline_points=0)
    return requests / float(np.max(result.records.finish_s))


def rate_of(deployment, settings, workload, repeats: int, counter: str | None = None) -> tuple[float, dict[str, float]]:
    """Requests (or a counter) per CPU second of building and running the engine: median, and what the run counted."""
    from inferencegym import Engine

    machine = deployment.machine(settings)
    runs, totals = [], {}
    for _ in range(repeats):
        engine = Engine(workload, machine, settings)
        runs.append(cpu_s(engine.run))
        totals = engine.totals()
    amount = len(workload) if counter is None else totals[counter]
    return amount / statistics.median(runs), totals | {"cpu_s_min": min(runs), "cpu_s_max": max(runs)}


def measure(repeats: int) -> dict[str, float]:
    from inferencegym import Deployment, EngineSettings, generate, simulate

    found: dict[str, float] = {}
    deployment = Deployment(model="llama-3.1-8b", gpu="h100")
    settings = EngineSettings()
    simulate(conversation(20.0, 500), deployment, settings, timeline_points=0)  # compile
    limit = saturation_rps(deployment, settings)
    found["conv_saturation_rps"] = limit
    busy = conversation(0.8 * limit)
    found["conv_req_per_cpu_s"], totals = rate_of(deployment, settings, busy, repeats)
    found["conv_preempted_fraction"] = totals["preemptions"] / REQUESTS

    # The same requests through a pool so small that at least a tenth of them are preempted.
    blocks = 2_000
    tight = EngineSettings(max_model_len=15_000)
    while True:
        small = replace(deployment, kv_blocks=blocks)
        rate, totals = rate_of(small, tight, busy, 1)
        if totals["preemptions"] >= REQUESTS / 10 or blocks < 1_000:
            break
        blocks -= 200
    rate, totals = rate_of(small, tight, busy, repeats)
    found["preempt_req_per_cpu_s"] = rate
    found["preempt_fraction"] = totals["preemptions"] / REQUESTS
    found["preempt_kv_blocks"] = blocks

    full = EngineSettings(order="aging", aging_s=5.0, speculation_depth=3, acceptance=(0.7,), prefix_caching=True)
    sessions = generate(sessions_spec(0.8 * limit), seed=3, requests=REQUESTS)
    found["features_req_per_cpu_s"], totals = rate_of(deployment, full, sessions, repeats)
    found["features_prefix_hit_tokens_fraction"] = totals["hit_tokens"] / float(sessions.prompt_tokens.sum())
    found["features_draft_acceptance"] = totals["accepted"] / max(totals["drafted"], 1)
    found["features_classes"] = len(np.unique(sessions.priority))

    quiet = conversation(2.0)
    found["steps_per_cpu_s"], _ = rate_of(deployment, settings, quiet, repeats, "steps")
    found["fork_us"], found["fork_kept_us"] = fork_us(deployment)
    return found


def sessions_spec(rate_rps: float) -> object:
    """Sessions that share growing prefixes, in three priority classes."""
    from inferencegym.workload import benchmark_sessions

    return benchmark_sessions(rate_rps)


def fork_us(deployment) -> tuple[float, float]:
    """A fork of an engine with 200 running and 1,000 waiting requests, microseconds of CPU: each let go before the next (median of
    batches), as a planner does, and 200 kept at once, where the system's page faults come on top.
    """
    from inferencegym import Engine, EngineSettings

    settings = EngineSettings(max_num_seqs=200, prefix_caching=False)
    engine = Engine(conversation(1e4, 1_300), deployment.machine(settings), settings)
    while engine.gauges().waiting < 1_000 or engine.gauges().running < 200:
        engine.run(steps=1)

    def forks() -> None:
        for _ in range(200):
            engine.fork()

    forks()
    kept = cpu_s(lambda: [engine.fork() for _ in range(200)]) / 200 * 1e6
    return statistics.median(cpu_s(forks) / 200 * 1e6 for _ in range(15)), kept


def day(path: Path) -> dict[str, float]:
    """A day of ServeGen's reasoning traffic: read, simulated on 8 replicas, summarised; in a process of its own."""
    script = f"""
import json, resource, time
import inferencegym as ig
from inferencegym.metrics.slo import Slo
ig.simulate(ig.generate("azure-conversation", seed=0, requests=200), timeline_points=0)
start = time.process_time()
workload = ig.read({str(path)!r})
workload, _ = workload.servable()
deployment = ig.Deployment(model="llama-3.1-8b", gpu="h100", replicas=8, router="least_loaded")
result = ig.simulate(workload, deployment)
summary = result.summary(Slo(ttft_s=1.0, tpot_s=0.05))
print(json.dumps(dict(day_cpu_s=time.process_time() - start,
    day_peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    day_requests=len(workload), day_ttft_p99_s=summary.ttft_s.p99, day_steps=result.totals["steps"])))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def start_up() -> dict[str, float]:
    """First and second `simulate` in fresh processes with an empty kernel cache, and the bare import; CPU and wall seconds."""
    found = {}
    command = [sys.executable, "-m", "inferencegym", "simulate", "--duration", "60", "--no-band", "--json"]
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"NUMBA_CACHE_DIR": cache}
        for name in ("cold", "warm"):
            cpu, wall = child_s(command, environment)
            found[f"{name}_start_s"] = cpu
            found[f"{name}_start_wall_s"] = wall
    runs = [child_s([sys.executable, "-c", "import inferencegym"], dict(os.environ))[0] for _ in range(5)]
    found["import_cpu_s"] = statistics.median(runs)
    return found


def child_s(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """(CPU, wall) seconds of a child process."""
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, time.perf_counter() - wall


def show(found: dict[str, float]) -> None:
    for name, value in found.items():
        goal = ""
        if name in TARGETS:
            target, kind = TARGETS[name]
            met = value >= target if kind == "at least" else value <= target
            goal = f"   {kind} {target:,}: {'met' if met else 'NOT MET'}"
        print(f"{name:38} {value:>16,.4g}{goal}" if value < 1000 else f"{name:38} {value:>16,.0f}{goal}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_argument("--repeats", type=int, default=5, help="runs to take the median of")
    options.add_argument(
        "--traces", type=Path, default=ROOT.parent / "shared" / "data" / "traces", help="folder of real traces"
    )
    options.add_argument(
        "--skip-start", action="store_true", help="leave out the start-up figures, which compile everything anew"
    )
    given = options.parse_args()
    found = measure(given.repeats)
    trace = given.traces / "servegen_r1_day.parquet"
    if trace.exists():
        found |= day(trace)
    else:
        print(f"{trace} is not there: day_cpu_s and day_peak_rss_mb are left out", file=sys.stderr)
    if not given.skip_start:
        found |= start_up()
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)


if __name__ == "__main__":
    main()
