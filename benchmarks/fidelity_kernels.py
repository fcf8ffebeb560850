"""Step times against measured kernels: shipped profiles, refits, leave one model out, and a plain roofline beside them.

Imported by `fidelity.py` and by `runs/fit_profiles.py`, which makes the shipped profiles with the same `fit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy.optimize import least_squares

from inferencegym.engine.latency import chunk_ps
from inferencegym.engine.profile import Factors, Profile, load_profile
from inferencegym.engine.step_time import Terms
from inferencegym.ground.errors import InferenceGymError
from inferencegym.ground.facts import gpu, model

#: Name, start, lower and upper bound of each fitted factor: physical ones (no share above 1, no negative overhead).
FITTED = (
    ("p", 2.0, 1.0, 6.0), ("hbm_share", 0.8, 0.4, 1.0), ("flop_share", 0.75, 0.3, 1.0), ("kv_share", 0.8, 0.3, 1.0),
    ("attention_share", 0.6, 0.1, 1.0), ("attention_half_tokens", 300.0, 0.0, 4000.0), ("attention_p", 4.0, 1.0, 16.0), ("expert_hbm_share", 0.7, 0.2, 1.0), ("expert_flop_share", 0.5, 0.1, 1.0),
    ("expert_spread", 0.7, 0.2, 1.0), ("attention_passes", 6.0, 0.0, 60.0), ("hidden_passes", 12.0, 2.0, 40.0),
    ("ffn_passes", 4.0, 1.0, 20.0), ("step_s", 50e-6, 0.0, 600e-6), ("layer_s", 20e-6, 0.0, 80e-6), ("prefill_layer_s", 15e-6, 0.0, 80e-6),
    ("decode_layer_s", 4e-6, 0.0, 40e-6), ("sequence_layer_s", 1e-8, 0.0, 2e-6), ("expert_layer_s", 15e-6, 0.0, 80e-6),
)  # fmt: skip
LINK = (("link_latency_s", 5e-6, 0.5e-6, 40e-6), ("link_share", 0.7, 0.2, 1.0))
#: How strongly a factor that the data says little about is held to its prior: in units of one row's log error over the factor's whole range.
PRIOR_WEIGHT = 0.7
#: The same when a model is left out: the fewer models a GPU was measured with, the more its factors lean on other GPUs'.
PRIOR_WEIGHT_LEFT_OUT = 6.0
ROOFLINE = Factors(
    p=64.0, hbm_share=1.0, flop_share=1.0, kv_share=1.0, attention_share=1.0, hidden_passes=0.0, ffn_passes=0.0, attention_passes=0.0,
    expert_hbm_share=1.0, expert_flop_share=1.0, expert_spread=1.0, attention_p=64.0, step_s=0.0, layer_s=0.0,
    prefill_layer_s=0.0, decode_layer_s=0.0, expert_layer_s=0.0, link_latency_s=0.0, link_share=1.0,
)  # fmt: skip

GENERIC = Factors(**{name: start for name, start, *_ in FITTED + LINK})


@dataclass(frozen=True)
class Steps:
    """Rows of `kernel_step_times` for one GPU, model and TP, as arrays."""

    system: str
    model: str
    tp: int
    kind: np.ndarray
    prefill: np.ndarray
    cached: np.ndarray
    decodes: np.ndarray
    context: np.ndarray
    seconds: np.ndarray


def load_steps(file: Path) -> tuple[list[Steps], dict[str, str]]:
    """Groups whose GPU and model we know, and the others with the reason."""
    table = pq.read_table(file).to_pydict()
    columns = {name: np.array(values) for name, values in table.items()}
    found, skipped = [], {}
    for key in sorted(set(zip(table["system"], table["model"], table["tp"], strict=True))):
        rows = (columns["system"] == key[0]) & (columns["model"] == key[1]) & (columns["tp"] == key[2])
        try:
            names = gpu(key[0]).name, model(key[1]).name
        except InferenceGymError as error:
            skipped[f"{key[0]} {key[1]}"] = str(error)
            continue
        found.append(
            Steps(
                *names, int(key[2]), columns["step_kind"][rows], columns["prefill_tokens"][rows].astype(float), columns["cached_prefix_tokens"][rows].astype(float),
                columns["decode_seqs"][rows].astype(float), columns["context_tokens"][rows].astype(float), columns["step_ms"][rows] / 1e3,
            )
        )  # fmt: skip
    return found, skipped


def predict(steps: Steps, profile: Profile) -> np.ndarray:
    """Seconds of each row, by the same terms that make the engine's tables."""
    terms = Terms(model(steps.model), gpu(steps.system), profile, steps.tp)
    f, m = profile.factors, terms.model
    prompts = (steps.prefill > 0).astype(float)
    seconds = terms.linear(steps.prefill + steps.decodes) + terms.head(steps.decodes + prompts) + terms.decodes(steps.decodes)
    seconds = seconds + steps.decodes * steps.context * terms.kv_token_s(m.layers - m.window_layers)
    per_pair, half, per_token, p, _ = terms.chunk_coefficients()
    n, past = np.maximum(steps.prefill, 1.0), steps.cached
    arithmetic, reading = per_pair * n * (past + 0.5 * n) * (n + half) / n, per_token * (past + n)
    larger, smaller = np.maximum(arithmetic, reading), np.minimum(arithmetic, reading)
    chunk = larger * (1.0 + (smaller / larger) ** p) ** (1.0 / p)
    return seconds + prompts * (chunk + m.layers * f.prefill_layer_s)


def fit(groups: Sequence[Steps], start: Profile, *, with_link: bool, prior_weight: float = PRIOR_WEIGHT) -> Profile:
    """Factors that make the log of the error small, robustly (soft L1: a few odd kernels do not decide)."""
    names = FITTED + (LINK if with_link else ())
    low, high = np.array([x[2] for x in names]), np.array([x[3] for x in names])

    def profile(x: np.ndarray) -> Profile:
        return start.with_factors(**{name: float(value) for (name, *_), value in zip(names, low + x * (high - low), strict=True)})

    def miss(x: np.ndarray) -> np.ndarray:
        guess = profile(x)
        rows = [np.log(predict(group, guess) / group.seconds) for group in groups]
        return np.concatenate([*rows, prior_weight * (x - prior)])

    prior = (np.array([getattr(start.factors, name) for name, *_ in names]) - low) / (high - low)
    best = None
    for first in (prior, np.full(len(names), 0.3)):
        found = least_squares(miss, np.clip(first, 1e-3, 1 - 1e-3), bounds=(0, 1), loss="soft_l1", f_scale=0.02, x_scale=0.1, max_nfev=200)
        if best is None or found.cost < best.cost:
            best = found
    assert best is not None
    return profile(best.x)


def fit_all_reduce(groups: Sequence[Steps], base: Profile) -> Profile:
    """Latency and speed of an all-reduce for each TP, from the rows of that TP, for GPUs without NVLink: a table, not a datasheet."""
    table = {}
    for tp in sorted({group.tp for group in groups if group.tp > 1}):
        rows = [group for group in groups if group.tp == tp]

        def miss(x: np.ndarray, tp: int = tp, rows: list[Steps] = rows) -> np.ndarray:
            guess = replace(base, all_reduce={**table, tp: (float(np.exp(x[0])), float(np.exp(x[1])))})
            return np.concatenate([np.log(predict(group, guess) / group.seconds) for group in rows])

        found = least_squares(miss, [np.log(20e-6), np.log(5e9)], loss="soft_l1", f_scale=0.05)
        table[tp] = (float(np.exp(found.x[0])), float(np.exp(found.x[1])))
    return replace(base, all_reduce=table)


def fit_gpu(
    groups: Sequence[Steps], name: str, prior: Factors | None = None, prior_weight: float = PRIOR_WEIGHT
) -> Profile:
    """All factors of one GPU from its groups: with the link if it has one, else TP 1 first and a measured all-reduce per TP."""
    start = Profile(name, prior or GENERIC, "", "fitted", {}, models=tuple(sorted({group.model for group in groups})))
    if gpu(name).link_bytes_per_s is not None:
        return fit(groups, start, with_link=any(group.tp > 1 for group in groups), prior_weight=prior_weight)
    single = [group for group in groups if group.tp == 1]
    if not single:
        return fit_all_reduce(groups, start)
    return fit_all_reduce(groups, fit(single, start, with_link=False, prior_weight=prior_weight))


def shared_prior(fits: Sequence[Profile]) -> Factors:
    """The median factors of other GPUs' fits: what is assumed where one GPU's data says little."""
    if not fits:
        return GENERIC
    return Factors(**{name: float(np.median([getattr(fit.factors, name) for fit in fits])) for name, *_ in FITTED + LINK})


def fit_all(groups: Sequence[Steps]) -> tuple[dict[str, Profile], dict[str, Factors]]:
    """Every GPU's fit, with the median of the other GPUs' as its prior; and those priors."""
    names = sorted({group.system for group in groups})
    mine = {name: [group for group in groups if group.system == name] for name in names}
    first = {name: fit_gpu(mine[name], name) for name in names}
    priors = {name: shared_prior([first[other] for other in names if other != name]) for name in names}
    return {name: fit_gpu(mine[name], name, priors[name]) for name in names}, priors


def mape(groups: Sequence[Steps], profile: Profile, kind: str | None = None) -> float:
    """Mean absolute relative error of all rows (of one kind)."""
    return float(np.mean(relative(groups, profile, kind)))


def relative(groups: Sequence[Steps], profile: Profile, kind: str | None = None) -> np.ndarray:
    parts = []
    for group in groups:
        rows = slice(None) if kind is None else group.kind == kind
        parts.append(np.abs(predict(group, profile)[rows] / group.seconds[rows] - 1))
    return np.concatenate(parts)


def leave_one_model_out(groups: Sequence[Steps], name: str, prior: Factors | None = None) -> tuple[float, dict[str, float]]:
    """Error on each model when fitted on the others: mean over rows, and by model. All-reduce tables stay, they belong to the host."""
    models = sorted({group.model for group in groups})
    errors, by_model = [], {}
    tables = fit_gpu(groups, name, prior).all_reduce
    for left_out in models:
        rest = [group for group in groups if group.model != left_out]
        if not rest:
            continue
        fitted = replace(fit_gpu(rest, name, prior, PRIOR_WEIGHT_LEFT_OUT), all_reduce=tables)
        missed = relative([group for group in groups if group.model == left_out], fitted)
        by_model[left_out] = float(np.mean(missed))
        errors.append(missed)
    return (float(np.mean(np.concatenate(errors))) if errors else float("nan")), by_model


def summary(groups: Sequence[Steps], profile: Profile) -> dict[str, float]:
    """The errors a profile file states."""
    missed = relative(groups, profile)
    found = {"mape": float(np.mean(missed))}
    for kind in ("decode", "prefill", "mixed"):
        if any((group.kind == kind).any() for group in groups):
            found[kind] = mape(groups, profile, kind)
    return found | {"p90": float(np.quantile(missed, 0.9))}


def judged(groups: list[Steps], name: str) -> list[Steps]:
    """The rows a GPU is judged on: without NVLink, TP 1 (its all-reduce is a property of the host)."""
    if gpu(name).link_bytes_per_s is None and any(group.tp == 1 for group in groups):
        return [group for group in groups if group.tp == 1]
    return groups


def kernel_report(data: Path) -> dict[str, Any]:
    """The kernels' part of the fidelity report."""
    groups, skipped = load_steps(data / "kernel_step_times.parquet")
    found: dict[str, Any] = {
        "note": "`mape` to `p90`: factors refitted on this data; `shipped`: the package's profile as it is; `leave_one_model_out`: each model judged by "
        "factors fitted on this GPU's others, leaning on the median factors of the other GPUs; `plain_roofline`: peaks, no factors. GPUs without NVLink are judged at TP 1; `with_tp` has all rows, with the measured all-reduce table.",
        "skipped": skipped,
        "gpus": {},
    }
    names = sorted({group.system for group in groups})
    fits, priors = fit_all(groups)
    for name in names:
        mine = [group for group in groups if group.system == name]
        rows = judged(mine, name)
        fitted = fits[name]
        left_out, by_model = leave_one_model_out(rows, name, priors[name])
        row: dict[str, Any] = {"points": sum(len(group.seconds) for group in rows)} | summary(rows, fitted)
        row["leave_one_model_out"], row["leave_one_model_out_by_model"] = left_out, by_model
        row["plain_roofline"] = mape(rows, replace(fitted, factors=ROOFLINE, all_reduce={}))
        row["with_tp"] = mape(mine, fitted)
        row["chunk_kernel_agrees"] = chunk_agrees(rows[0], fitted)
        try:
            row["shipped"] = mape(rows, load_profile(name).with_factors(host_s=0.0))  # kernel sums have no host time
        except InferenceGymError as error:
            row["shipped"] = str(error)
        found["gpus"][name] = row
    return found


def chunk_agrees(group: Steps, profile: Profile) -> bool:
    """Whether the engine's chunk kernel and the vectorised formula above say the same."""
    terms = Terms(model(group.model), gpu(group.system), profile, group.tp)
    c = terms.chunk_coefficients()
    scaled = c.copy()
    scaled[[0, 2, 4]] *= 1e12
    n, past = 777, 1234
    arithmetic, reading = c[0] * n * (past + 0.5 * n) * (n + c[1]) / n, c[2] * (past + n)
    expected = (arithmetic ** c[3] + reading ** c[3]) ** (1 / c[3])
    return bool(abs(chunk_ps(scaled, n, past) / 1e12 / expected - 1) < 1e-9)
