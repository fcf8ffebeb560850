"""How true the simulator is: against measured kernels, real vLLM runs, and published serving points. Nothing is fitted on what it is judged by
unless the line says so.

    python benchmarks/fidelity.py [--data DIR] [--only kernels|vllm|silicon] [--json] [--markdown docs/fidelity.md]

Runs on any folder with files of these formats (`../shared/data/groundtruth/README.md`): `kernel_step_times.parquet`,
`vllm*.parquet` with `.meta.json`, `silicon_points.parquet`. Errors are relative; MAPE is the mean of their absolute values.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from fidelity_kernels import kernel_report
from scipy.optimize import minimize

from inferencegym import Deployment, EngineSettings, Workload
from inferencegym.engine.engine import Engine
from inferencegym.engine.profile import load_profile
from inferencegym.ground.errors import InferenceGymError
from inferencegym.ground.facts import gpu, load_facts, model
from inferencegym.ground.rng import stream
from inferencegym.metrics.record import Records

ROOT = Path(__file__).resolve().parent.parent
STATISTICS = {
    "mean": np.mean,
    "p50": lambda x: np.quantile(x, 0.5),
    "p90": lambda x: np.quantile(x, 0.9),
    "p99": lambda x: np.quantile(x, 0.99),
}
METRICS = ("ttft_s", "tpot_s", "e2e_s")

#: Preemptions of the published runs, where their own report says so (LLMServingSim's example; not derivable from the rows).
KNOWN_PREEMPTIONS = {"vllm019_rtx4090_llama31_8b": 194}

#: Points of the public InferenceMAX suite are told by these prompt and output lengths. Its scripts (github.com/SemiAnalysisAI/InferenceX,
#: benchmarks/70b_fp8_*, and its client, kimbochen/bench_serving) say how they ran: FP8 KV, 8,192 tokens a step, no prefix cache;
#: ten requests for every client, all clients starting at once, lengths uniform from 0.8 of the nominal ones to all of them.
SUITE_LENGTHS = {(1024, 1024), (1024, 8192), (8192, 1024)}
SUITE_WAVES = 10
SUITE_SHORTEST = 0.8
SUITE_TOKENS_A_STEP = 8192


# --- vLLM runs --------------------------------------------------------------------------------------------------------


#: How GPUs are called in the files, as words, and by us. GB200 or B300 are none of these: nobody described them.
GPU_WORDS = (
    (r"rtx ?4090", "rtx-4090"), (r"rtx ?pro ?6000", "rtx-pro-6000"), (r"b200", "b200"), (r"h200", "h200"), (r"h100", "h100"),
    (r"a100", "a100-80g"), (r"l40s", "l40s"), (r"mi300x", "mi300x"),
)  # fmt: skip


def gpu_name(said: str) -> str:
    """Our name of a GPU, from a system's name, a hardware record or a file name. UnknownNameError if nobody described it."""
    words = re.sub(r"[^a-z0-9]+", " ", said.lower())
    for pattern, name in GPU_WORDS:
        if re.search(rf"\b{pattern}\b", words):
            return name
    return gpu(said).name


def model_name(path: str) -> str:
    """Our name of a model, from a hub path: without its publisher, tuning, format and date. UnknownNameError if nobody described it."""
    said = path.split("/")[-1].lower().removeprefix("meta-")
    while (shorter := re.sub(r"-(instruct|chat|it|fp8|nvfp4|v0\.\d|\d{4})$", "", said)) != said:
        said = shorter
    return model(said).name


def vllm_run(file: Path) -> dict[str, Any]:
    """One run: uncalibrated errors of all requests, and errors of the second half after calibration on the first."""
    meta = json.loads(file.with_suffix("").with_suffix(".meta.json").read_text())
    rows = pq.read_table(file).to_pydict()
    rows = {name: np.array(values) for name, values in rows.items() if name != "request_id"}
    first = int(np.argmin(rows["arrival_s"]))
    arrival_s = rows["arrival_s"] - rows["arrival_s"][first] + rows["queued_s"][first]  # one zero for the two clocks
    order = np.argsort(arrival_s, kind="stable")
    rows = {name: values[order] for name, values in rows.items()}
    arrival_s = arrival_s[order]
    offset = arrival_s.min()
    workload = Workload.of(
        arrival_s=arrival_s - offset, prompt_tokens=rows["prompt_tokens"], output_tokens=rows["output_tokens"]
    )
    real = {
        "ttft_s": rows["first_token_s"] - arrival_s,
        "tpot_s": (rows["last_token_s"] - rows["first_token_s"]) / np.maximum(rows["output_tokens"] - 1, 1),
        "e2e_s": rows["last_token_s"] - arrival_s,
    }
    arguments = meta["engine_kwargs"]
    cache = meta.get("kv_cache") or {}
    deployment = Deployment(
        model=model_name(meta["model"]),
        gpu=gpu_name((meta.get("hardware") or {}).get("device_name") or file.stem),
        tensor_parallel=arguments.get("tensor_parallel_size", 1),
        weight_format="fp8" if "fp8" in meta["model"].lower() else "bf16",
        kv_format="fp8" if str(arguments.get("kv_cache_dtype")).startswith("fp8") else "bf16",
        replicas=arguments.get("data_parallel_size", 1),
        router="least_loaded",
        kv_blocks=cache.get("num_gpu_blocks"),
        block_size=cache.get("block_size", 16),
        gpu_memory_utilization=cache.get("gpu_memory_utilization", 0.9),
    )
    settings = EngineSettings(
        max_num_seqs=arguments["max_num_seqs"],
        max_num_batched_tokens=arguments["max_num_batched_tokens"],
        prefix_caching=bool(cache.get("enable_prefix_caching", True)),
    )
    half = len(workload) // 2
    plain, plain_totals = run(workload, deployment, settings)
    factor, extra_s = calibrate(workload, deployment, settings, real, half)
    fitted, fitted_totals = run(workload, deployment, settings, factor, extra_s)
    known = KNOWN_PREEMPTIONS.get(file.stem)
    return {
        "requests": len(workload),
        "model": deployment.model,
        "gpu": deployment.gpu,
        "assumed": [f"{name} is not modelled" for name in ("enable_expert_parallel",) if arguments.get(name)],
        "kv_blocks": deployment.kv_blocks or deployment.kv_blocks_that_fit(),
        "profile": load_profile(deployment.gpu_facts.name).describe(),
        "uncalibrated": errors(plain, real, slice(None)),
        "calibration": {
            "factor": factor,
            "extra_ms_per_step": extra_s * 1e3,
            "fitted_on": f"first {half} requests (TTFT, TPOT, E2E means)",
        },
        "calibrated_second_half": errors(fitted, real, slice(half, None)),
        "preemptions": {
            "real": known,
            "uncalibrated": plain_totals["preemptions"],
            "calibrated": fitted_totals["preemptions"],
        },
    }


def run(
    workload: Workload, deployment: Deployment, settings: EngineSettings, factor: float = 1.0, extra_s: float = 0.0
) -> tuple[Records, dict[str, int]]:
    """A simulation with every step stretched and lengthened."""
    machine = deployment.machine(settings, factor=factor, extra_step_s=extra_s)
    engine = Engine(workload, machine, settings)
    return engine.run().sorted_by_row(), engine.totals()


def calibrate(
    workload: Workload, deployment: Deployment, settings: EngineSettings, real: dict[str, np.ndarray], half: int
) -> tuple[float, float]:
    """(factor, extra seconds a step) that bring the first half's means closest, in relative terms."""

    def miss(x: np.ndarray) -> float:
        records, _ = run(workload, deployment, settings, float(np.exp(x[0])), max(float(x[1]), 0.0) * 1e-3)
        means = [np.nanmean(getattr(records, name)[:half]) / np.mean(real[name][:half]) - 1 for name in METRICS]
        return float(np.sum(np.square(means))) + max(-float(x[1]), 0.0)

    best = min(
        (
            minimize(miss, start, method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-7, "maxiter": 120})
            for start in ([0.0, 0.5], [0.1, 0.1], [-0.1, 1.0])
        ),
        key=lambda found: found.fun,
    )
    return float(np.exp(best.x[0])), max(float(best.x[1]), 0.0) * 1e-3


def errors(records: Records, real: dict[str, np.ndarray], part: slice) -> dict[str, dict[str, float]]:
    """Relative error of each statistic of each metric."""
    found = {}
    for name in METRICS:
        ours, theirs = getattr(records, name)[part], real[name][part]
        ours, theirs = ours[np.isfinite(ours)], theirs[np.isfinite(theirs)]
        found[name] = {label: float(f(ours) / f(theirs) - 1) for label, f in STATISTICS.items()}
    return found


# --- serving points ---------------------------------------------------------------------------------------------------


def silicon_report(file: Path) -> dict[str, Any]:
    """Dense FP8 points of vLLM: closed loop of `concurrency` clients, simulated; nothing is fitted on them."""
    points = [
        p
        for p in pq.read_table(file).to_pylist()
        if p["backend"] == "vllm" and p["gemm_quant_mode"] == "fp8" and p["pp_size"] == 1
    ]
    rows, skipped = [], {}
    for point in points:
        if point["concurrency"] < 1:
            skipped["no concurrency given"] = skipped.get("no concurrency given", 0) + 1
            continue
        try:
            rows.append(silicon_point(point))
        except InferenceGymError as error:
            reason = str(error).split(";")[0][:120]
            skipped[reason] = skipped.get(reason, 0) + 1
    found: dict[str, Any] = {"points": len(rows), "skipped": skipped, "by_system": {}}
    if not rows:
        return found
    for name in ("tpot", "ttft"):
        error = np.array([row[f"{name}_error"] for row in rows])
        found[f"{name}_mape"] = float(np.mean(np.abs(error)))
        found[f"{name}_median_abs"] = float(np.median(np.abs(error)))
        found[f"{name}_median"] = float(np.median(error))
    possible = [row for row in rows if row["prompt_flops_of_ceiling"] <= 1.0]
    found["above_ceiling"] = len(rows) - len(possible)
    if possible:
        found["tpot_mape_below_ceiling"] = float(np.mean([abs(row["tpot_error"]) for row in possible]))
        found["ttft_mape_below_ceiling"] = float(np.mean([abs(row["ttft_error"]) for row in possible]))
    for key in sorted({(row["system"], row["model"], row["load"]) for row in rows}):
        group = [row for row in rows if (row["system"], row["model"], row["load"]) == key]
        found["by_system"][" ".join(key)] = {
            "points": len(group),
            "tpot_mape": float(np.mean([abs(row["tpot_error"]) for row in group])),
            "ttft_mape": float(np.mean([abs(row["ttft_error"]) for row in group])),
        }
    found["worst"] = sorted(rows, key=lambda row: -abs(row["tpot_error"]))[:8]
    return found


def closed_loop(clients: int, isl: int, osl: int, waves: int, spread_s: float = 0.0) -> Workload:
    """Each client sends its next request when the answer to its last one is complete; the clients start spread over `spread_s`."""
    n = clients * waves
    row = np.arange(n)
    return Workload.of(
        arrival_s=np.where(row < clients, row / clients * spread_s, spread_s),
        prompt_tokens=np.full(n, isl),
        output_tokens=np.full(n, osl),
        after=np.where(row < clients, -1, row - clients),
        name=f"closed loop of {clients}",
    )


def prompt_share(point: dict[str, Any], deployment: Deployment) -> float:
    """By Little's law, the prompt arithmetic a point claims per second, relative to what measured matrix products of that GPU reach.

    Above 1 it cannot have been a steady closed loop of prompts that were all computed (prefix hits, or another load, would explain it).
    """
    model, card = deployment.model_facts, deployment.gpu_facts
    profile = load_profile(card.name)
    e2e_s = (point["silicon_ttft_ms"] + point["silicon_tpot_ms"] * (point["osl"] - 1)) / 1e3
    tokens_per_s = point["concurrency"] / e2e_s * (point["isl"] + point["osl"])
    flops = 2.0 * (model.layers * model.attention_params + model.dense_ffn_params) * tokens_per_s / point["tp_size"]
    return float(flops / (card.bf16_flops * profile.factors.flop_share * profile.speedup["fp8"][1]))


def suite_loop(clients: int, isl: int, osl: int) -> Workload:
    """The suite's load: as `closed_loop`, but all start at once and lengths differ."""
    n = clients * SUITE_WAVES
    row = np.arange(n)
    lengths = stream(0, f"suite {clients} {isl} {osl}")
    return Workload.of(
        arrival_s=np.zeros(n),
        prompt_tokens=lengths.integers(int(isl * SUITE_SHORTEST), isl + 1, n),
        output_tokens=lengths.integers(int(osl * SUITE_SHORTEST), osl + 1, n),
        after=np.where(row < clients, -1, row - clients),
        name=f"suite of {clients}",
    )


def suite_means(point: dict[str, Any], deployment: Deployment) -> tuple[float, float]:
    """(TPOT, TTFT) in seconds under the suite's load and settings; means over all requests, the first wave too, as its client has them."""
    settings = EngineSettings(
        prefix_caching=False, max_num_seqs=point["concurrency"], max_num_batched_tokens=SUITE_TOKENS_A_STEP
    )
    load = suite_loop(point["concurrency"], point["isl"], point["osl"])
    records, _ = run(load, deployment.with_(kv_format="fp8"), settings)
    return float(np.nanmean(records.tpot_s)), float(np.nanmean(records.ttft_s))


def steady_means(point: dict[str, Any], deployment: Deployment) -> tuple[float, float]:
    """(TPOT, TTFT) in seconds of a steady closed loop, where nothing is known of the load but its concurrency.

    Clients that all start at once stay in step for ever in a simulator, as equal requests take equal times; in a real test they drift
    apart. So they start spread over one answer's duration (found by a first run), and the first wave is not counted.
    """
    settings = EngineSettings(prefix_caching=False)
    clients, isl, osl = point["concurrency"], point["isl"], point["osl"]
    together, _ = run(closed_loop(clients, isl, osl, waves=2), deployment, settings)
    spread_s = float(np.nanmean(together.e2e_s[clients:]))
    records, _ = run(closed_loop(clients, isl, osl, waves=5, spread_s=spread_s), deployment, settings)
    return float(np.nanmean(records.tpot_s[clients:])), float(np.nanmean(records.ttft_s[clients:]))


def silicon_point(point: dict[str, Any]) -> dict[str, Any]:
    """One serving point, simulated under its suite's load, or under a steady closed loop if its load is not known."""
    deployment = Deployment(
        model=model_name(point["model_path"]),
        gpu=gpu_name(point["system"]),
        tensor_parallel=point["tp_size"],
        weight_format="fp8",
    )
    in_suite = (point["isl"], point["osl"]) in SUITE_LENGTHS
    tpot_s, ttft_s = (suite_means if in_suite else steady_means)(point, deployment)
    tpot_ms, ttft_ms = tpot_s * 1e3, ttft_s * 1e3
    return {
        "system": point["system"], "model": deployment.model, "tp": point["tp_size"], "isl": point["isl"], "osl": point["osl"],
        "concurrency": point["concurrency"], "load": "suite" if in_suite else "steady",
        "tpot_ms": tpot_ms, "real_tpot_ms": point["silicon_tpot_ms"],
        "ttft_ms": ttft_ms, "real_ttft_ms": point["silicon_ttft_ms"],
        "prompt_flops_of_ceiling": prompt_share(point, deployment),
        "tpot_error": tpot_ms / point["silicon_tpot_ms"] - 1, "ttft_error": ttft_ms / point["silicon_ttft_ms"] - 1,
    }  # fmt: skip


# --- all of it --------------------------------------------------------------------------------------------------------


def report(data: Path, only: str | None) -> dict[str, Any]:
    """Every part whose files are there."""
    found: dict[str, Any] = {"data": data.name}
    if (data / "facts.toml").exists():
        load_facts(data / "facts.toml")
    if only in (None, "kernels") and (data / "kernel_step_times.parquet").exists():
        found["kernels"] = kernel_report(data)
    if only in (None, "vllm"):
        runs = {}
        for file in sorted(data.glob("vllm*.parquet")):
            if file.with_suffix("").with_suffix(".meta.json").exists():
                try:
                    runs[file.stem] = vllm_run(file)
                except InferenceGymError as error:
                    runs[file.stem] = {"skipped": str(error)}
        found["vllm"] = runs
    if only in (None, "silicon") and (data / "silicon_points.parquet").exists():
        found["silicon"] = silicon_report(data / "silicon_points.parquet")
    if len(found) == 1:
        sys.exit(f"{data}: none of kernel_step_times.parquet, vllm*.parquet, silicon_points.parquet is there")
    return found


def percent(value: float) -> str:
    return f"{value:+.1%}"


def silicon_lines(s: dict[str, Any]) -> list[str]:
    """The page's part on serving points."""
    skipped = "; ".join(f"{count} ({reason})" for reason, count in s["skipped"].items()) or "none"
    lines = ["## Serving points: dense FP8 on vLLM", ""]
    if not s["points"]:
        return [*lines, f"No point could be simulated. Skipped: {skipped}.", ""]
    lines += [
        f"{s['points']} points, each a closed loop of its concurrency, simulated request by request. No number is fitted on them, but two choices "
        "were made after their errors were seen: the load of `suite`, and the B200's FP8 speed-up (other GPUs' median instead of its own suspect table). "
        f"TPOT MAPE {s['tpot_mape']:.1%} (median {s['tpot_median_abs']:.1%}), TTFT MAPE {s['ttft_mape']:.1%} (median {s['ttft_median_abs']:.1%}). "
        f"Skipped: {skipped}.", "",
        "- `suite`: points of the public InferenceMAX suite, under the settings and the load that its scripts say (FP8 KV, 8,192 tokens a step, all "
        "clients at once, ten requests each, lengths 0.8 to 1 of the nominal ones). That they are of this suite is our inference from their lengths, and "
        "we looked the scripts up because TTFT was far off without them.",
        "- `steady`: nothing is known of the load but its concurrency; clients start spread out, KV is bf16.",
    ]  # fmt: skip
    if s["above_ceiling"] and "tpot_mape_below_ceiling" in s:
        lines.append(
            f"- {s['above_ceiling']} of the points claim more prompt arithmetic a second (by Little's law) than measured matrix products of their GPU "
            f"reach, so they cannot be steady closed loops of unseen prompts; without them TPOT MAPE {s['tpot_mape_below_ceiling']:.1%}, "
            f"TTFT MAPE {s['ttft_mape_below_ceiling']:.1%}. (That criterion was chosen after the errors were seen.)"
        )
    lines += ["", "| system, model, load | points | TPOT MAPE | TTFT MAPE |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {row['points']} | {row['tpot_mape']:.1%} | {row['ttft_mape']:.1%} |"
        for name, row in s["by_system"].items()
    ]
    return [*lines, ""]


def markdown(found: dict[str, Any]) -> str:
    """docs/fidelity.md."""
    lines = [
        "# Fidelity: how far to believe the simulator", "",
        "Generated by `python benchmarks/fidelity.py --markdown docs/fidelity.md`. The data is described in its README; a part of each set is kept back",
        "and was never seen by us. Scheduling follows vLLM v1 as of 0.32.0; what differs is listed at the end.", "",
    ]  # fmt: skip
    if "kernels" in found:
        lines += ["## Step times against measured kernels", "", found["kernels"].get("note", ""), ""]
        columns = [
            "mape", "decode", "prefill", "mixed", "p90", "held_out", "shipped", "leave_one_model_out", "with_tp", "plain_roofline",
        ]  # fmt: skip
        lines += ["| GPU | points | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
        for card, row in found["kernels"]["gpus"].items():
            cells = [f"{row[name]:.1%}" if isinstance(row.get(name), float) else "-" for name in columns]
            lines.append(f"| {card} | {row.get('points', '')} | " + " | ".join(cells) + " |")
        lines.append("")
    for stem, row in found.get("vllm", {}).items():
        lines += [f"## vLLM run `{stem}`", ""]
        if "skipped" in row:
            lines += [row["skipped"], ""]
            continue
        c = row["calibration"]
        lines += [
            f"{row['requests']} requests, {row['model']} on {row['gpu']}, {row['kv_blocks']} KV blocks. Profile: {row['profile']}. "
            f"Calibration (step time x {c['factor']:.3f} + {c['extra_ms_per_step']:.2f} ms) fitted on the {c['fitted_on']}; "
            f"preemptions: real {row['preemptions']['real'] or 'not known'}, uncalibrated {row['preemptions']['uncalibrated']}, calibrated {row['preemptions']['calibrated']}.", "",
            "| | mean | p50 | p90 | p99 |", "|---|---|---|---|---|",
        ]  # fmt: skip
        for part, title in (
            ("uncalibrated", "uncalibrated, all"),
            ("calibrated_second_half", "calibrated, second half"),
        ):
            for name in METRICS:
                cells = " | ".join(percent(row[part][name][s]) for s in STATISTICS)
                lines.append(f"| {name[:-2].upper()} {title} | {cells} |")
        lines.append("")
    if "silicon" in found:
        lines += silicon_lines(found["silicon"])
    lines += [
        "## What differs from vLLM", "",
        "- Two requests that compute the same block at the same time share it at once; vLLM keeps both copies while both run.",
        "- Generated blocks become findable when their request lets go of them, not when they fill: nobody can ask for them earlier.",
        "- Sliding-window layers are charged their full window in every decode step, and their KV is kept whole.",
        "- Host time is a constant per step; tokenisation and HTTP are outside the engine.",
        "- LoRA, encoder inputs, structured output and pipeline parallelism are not modelled.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "groundtruth")
    options.add_argument("--only", choices=["kernels", "vllm", "silicon"])
    options.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_argument("--markdown", type=Path, help="write the page")
    given = options.parse_args()
    found = report(given.data, given.only)
    if given.markdown:
        given.markdown.write_text(markdown(found))
    print(json.dumps(found, indent=2) if given.json else markdown(found))


if __name__ == "__main__":
    main()
