"""What LLMServe's tasks are like, measured: loads, the best setting in each phase, whether a knob's choice dominates, whether return and grade agree.

Writes docs/environments/llmserve-measured.md and .json. Takes about ten minutes on one core; real traces from INFERENCEGYM_TRACE_DIR.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from inferencegym.decision.knobs import GRID, LEVERS, QUANTIZATION_TIERS, Knobs
from inferencegym.envs.catalogue import task, task_names
from inferencegym.envs.serve_planner import grid_levers, values_of, windows_of
from inferencegym.envs.serve_task import ServeTask
from inferencegym.envs.splits import scenario
from inferencegym.ground.errors import InferenceGymError
from inferencegym.ground.rng import stream
from inferencegym.learn.statistics import spearman

DOCS = Path(__file__).resolve().parent.parent / "docs" / "environments"
TRIALS, TRIAL_WINDOWS = 500, 16


def steady(of: ServeTask, rate_rps: float, windows: int = 36) -> ServeTask:
    """The task with the same requests at a steady Poisson rate."""
    file = of.file
    # A replayed trace is steadied through the fit made of it.
    spec = msgspec.to_builtins(task(f"{of.name}_fit").spec if file.traffic.source == "trace" else of.spec)
    total = sum(part.get("rate_rps", 0.0) for part in spec["traffic"]) or rate_rps
    parts = [
        {k: v for k, v in part.items() if k not in ("rate", "gaps", "whole_seconds")}
        | {"rate_rps": part.get("rate_rps", rate_rps) / total * rate_rps, "gaps": {"law": "poisson"}}
        for part in spec["traffic"]
    ]
    traffic = msgspec.structs.replace(
        file.traffic, source="description", rate_rps=0.0, shift_s=0.0, description=spec | {"traffic": parts}
    )
    return ServeTask(msgspec.structs.replace(file, traffic=traffic, windows=windows))


def capacity_rps(of: ServeTask, mean_rps: float) -> float:
    """The highest steady rate at which some FP16 setting without a split keeps 90 % of the weight within its objectives."""
    settings = np.array([(cap, 1.0, depth, 0.0, 0.0, 1.0) for cap in (64.0, 256.0) for depth in (0.0, 2.0, 4.0)])

    def kept(rate_rps: float) -> float:
        same = steady(of, rate_rps)
        batch = same.batch(len(settings))
        for row in range(len(settings)):
            batch.start(row, scenario("validation", 0))
        batch.actions[:] = settings
        for _ in range(same.steps):
            batch.step()
        tally = batch.sums[:, 3] / np.maximum(batch.sums[:, 3] + 1e-9, batch.worth[:, 0] * (1 - 2.0 / same.steps))
        return float(tally.max())

    low, high = 0.2 * mean_rps, 4.0 * mean_rps
    for _ in range(7):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if kept(middle) >= 0.9 else (low, middle)
    return float(np.sqrt(low * high))


def loads(of: ServeTask) -> dict[str, float]:
    """Arrival rates of windows over ten training scenarios, against capacity."""
    rates = []
    for index in range(10):
        arrival_s = of.workload(scenario("train", index)).arrival_s
        edges = np.arange(of.steps + 1) * of.file.window_s
        rates.append(np.histogram(arrival_s, edges)[0] / of.file.window_s)
    rate = np.concatenate(rates)
    mean = float(rate.mean())
    capacity = capacity_rps(of, mean)
    middle = (np.quantile(rate, 0.05) + np.quantile(rate, 0.95)) / 2
    quiet, busy = rate[rate < middle], rate[rate >= middle]
    return {
        "mean_rps": mean,
        "capacity_rps": capacity,
        "load": mean / capacity,
        "quiet_share": len(quiet) / len(rate),
        "quiet_load": float(quiet.mean()) / capacity,
        "busy_load": float(busy.mean()) / capacity,
    }


def phases(of: ServeTask) -> list[dict[str, Any]]:
    """The best setting of the grid, held for the whole episode, by what it earned in quiet and in busy windows."""
    settings = grid_levers()
    numbers = [scenario("train", i) for i in range(2)]
    earned = windows_of(of, settings, numbers)
    rate = np.concatenate(
        [
            np.histogram(of.workload(n).arrival_s, np.arange(of.steps + 1) * of.file.window_s)[0] / of.file.window_s
            for n in numbers
        ]
    )
    middle = (np.quantile(rate, 0.05) + np.quantile(rate, 0.95)) / 2
    overall = int(np.argmax(earned.sum(axis=1)))
    rows = []
    for phase, where in (("whole episode", rate >= 0), ("quiet", rate < middle), ("busy", rate >= middle)):
        sums = earned[:, where].sum(axis=1) / len(numbers)
        best = int(np.argmax(sums))
        rows.append(
            {"phase": phase, "windows": float(where.mean()), "best": short(settings[best]), "earns": float(sums[best]), "overall_best_earns": float(sums[overall])}
        )  # fmt: skip
    return rows


def short(levers: Any) -> str:
    """A setting in a few words."""
    k = Knobs.of(levers)
    return f"{k.batch_cap} seats, {k.kv_budget_fraction:g} KV, {k.speculation_depth} drafts, {k.quantization_tier}" + (
        ", split" if k.prefill_decode_split else "") + (", priority" if k.priority_routing else "")  # fmt: skip


def domination(of: ServeTask) -> dict[str, dict[str, float]]:
    """By knob: the setting that wins most often over another one, the other knobs random and the same; share of trials won (ties are half)."""
    brief = ServeTask(msgspec.structs.replace(of.file, windows=TRIAL_WINDOWS))
    rng = stream(7, f"domination.{of.name}")
    found = {}
    for i, (name, values) in enumerate(GRID.items()):
        if name == "prefill_decode_split" and not of.plan.can_split:
            continue
        rest = np.stack([rng.choice(np.array(v), TRIALS) for v in GRID.values()], axis=1)
        pairs = np.array([rng.choice(len(values), 2, replace=False) for _ in range(TRIALS)])
        a, b = rest.copy(), rest.copy()
        a[:, i], b[:, i] = np.array(values)[pairs[:, 0]], np.array(values)[pairs[:, 1]]
        score = np.zeros(TRIALS)
        chunk = 50
        for start in range(0, TRIALS, chunk):
            part = slice(start, start + chunk)
            number = scenario("train", 1000 + start // chunk)
            both = values_of(brief, np.concatenate([a[part], b[part]]), [number])[:, 0]
            score[part] = np.sign(np.round(both[:chunk] - both[chunk:], 9))
        wins = {}
        for v, value in enumerate(values):
            mine = np.concatenate([score[pairs[:, 0] == v], -score[pairs[:, 1] == v]])
            wins[f"{value:g}"] = float((mine > 0).mean() + 0.5 * (mine == 0).mean())
        best = max(wins, key=lambda value: wins[value])
        label = QUANTIZATION_TIERS[int(float(best))] if name == "quantization_tier" else best
        found[name] = {"best": label, "won": wins[best]}
    return found


def agreement(of: ServeTask) -> dict[str, float]:
    """Spearman's rank correlation of return and value over 200 random settings, and how often a reward was cut at 1."""
    rng = stream(8, f"agreement.{of.name}")
    settings = np.stack([rng.choice(np.array(v), 200) for v in GRID.values()], axis=1)
    batch = of.batch(200)
    for row in range(200):
        batch.start(row, scenario("train", 2000))
    total, cut = np.zeros(200), 0
    for t in range(of.steps):
        # Half of them hold their setting, half draw another one every ten windows.
        if t % 10 == 0:
            settings[100:] = np.stack([rng.choice(np.array(v), 100) for v in GRID.values()], axis=1)
        batch.actions[:] = settings
        batch.step()
        total += batch.rewards
        cut += int((np.abs(batch.rewards) >= 1.0).sum())
    value = batch.value_terms.sum(axis=1)
    return {"spearman": float(spearman(total, value)), "rewards_cut": cut / (200 * of.steps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", default="all")
    options = parser.parse_args()
    names = (
        tuple(n for n in task_names("llmserve") if not n.endswith("_fit"))
        if options.tasks == "all"
        else tuple(options.tasks.split(","))
    )
    path = DOCS / "llmserve-measured.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        try:
            of = task(name)
            digest = of.digest
        except InferenceGymError as error:
            print(f"{name}: skipped: {error}")
            continue
        found[name] = {
            "digest": digest,
            "loads": loads(of),
            "phases": phases(of),
            "domination": domination(of),
            "agreement": agreement(of),
        }
        DOCS.mkdir(exist_ok=True, parents=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(name, json.dumps(found[name]["loads"]), json.dumps(found[name]["agreement"]), flush=True)
    (DOCS / "llmserve-measured.md").write_text(page(found))


def page(found: dict[str, Any]) -> str:
    """The tables as Markdown."""
    lines = [
        "# LLMServe's tasks, measured", "", "Made by `runs/serve_tables.py`. Capacity: the highest steady rate at which some FP16 setting keeps 90 % of the "
        "weight within its objectives. Busy and quiet windows are told apart half way between the 5th and the 95th percentile of the arrival rate.", "",
        "## Load", "", "| task | requests/s | capacity | load | quiet windows | load in quiet ones | in busy ones |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, one in found.items():
        x = one["loads"]
        lines.append(
            f"| {name} | {x['mean_rps']:.1f} | {x['capacity_rps']:.1f} | {x['load']:.2f} | {x['quiet_share']:.0%} | {x['quiet_load']:.2f} | {x['busy_load']:.2f} |"
        )
    lines += ["", "## The best setting by phase", "", "Each of 324 settings was held for whole episodes; what it earned is added up by phase.", "", "| task | phase | best setting | earns | the best of the whole episode earns there |", "|---|---|---|---|---|"]  # fmt: skip
    for name, one in found.items():
        for x in one["phases"]:
            lines.append(
                f"| {name} | {x['phase']} ({x['windows']:.0%}) | {x['best']} | {x['earns']:.3f} | {x['overall_best_earns']:.3f} |"
            )
    knobs = [name for name in LEVERS if any(name in one["domination"] for one in found.values())]
    lines += ["", "## Does a knob's setting dominate?", "", f"{TRIALS} paired trials of 16 windows for each knob and task: two random settings of the knob, everything else random and the same. "
              "The setting that won the largest share of its trials (a tie is half a win):", "", "| task | " + " | ".join(knobs) + " |", "|" + "---|" * (len(knobs) + 1)]  # fmt: skip
    for name, one in found.items():
        cells = [
            f"{one['domination'][k]['best']} {one['domination'][k]['won']:.0%}" if k in one["domination"] else "-"
            for k in knobs
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "## Do return and value agree?", "", "200 policies a task, half of them random settings that are held, half that draw another one every ten windows.", "", "| task | Spearman's rank correlation | rewards cut at 1 |", "|---|---|---|"]  # fmt: skip
    for name, one in found.items():
        lines.append(f"| {name} | {one['agreement']['spearman']:.4f} | {one['agreement']['rewards_cut']:.2%} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
