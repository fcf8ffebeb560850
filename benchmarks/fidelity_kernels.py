"""Step times against measured kernels: shipped profiles, refits, leave one model out, and a plain roofline beside them.

Imported by `fidelity.py` and by `runs/fit_profiles.py`, which makes the shipped profiles with the same `fit`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy.optimize import least_squares

from inferencegym.engine.profile import Factors, Profile, load_profile, profile_names
from inferencegym.engine.step_time import Terms
from inferencegym.ground.errors import UnknownNameError
from inferencegym.ground.facts import gpu, gpus, load_facts, model

#: Name, start, lower and upper bound of each fitted factor: physical ones (no share above 1, no negative overhead).
FITTED = (
    ("p", 2.0, 1.0, 6.0), ("hbm_share", 0.8, 0.4, 0.95), ("flop_share", 0.75, 0.3, 0.95), ("kv_share", 0.8, 0.3, 1.0),
    ("past_attention_share", 0.6, 0.1, 1.0), ("attention_share", 0.6, 0.1, 1.0),
    ("attention_half_tokens", 1000.0, 0.0, 4000.0), ("expert_hbm_share", 0.8, 0.2, 1.0),
    ("expert_flop_share", 0.5, 0.1, 1.0),
    ("expert_skew", 0.7, 0.0, 1.2), ("expert_pad_tokens", 30.0, 0.0, 128.0),
    ("attention_passes", 6.0, 0.0, 60.0), ("hidden_passes", 12.0, 2.0, 40.0), ("ffn_passes", 4.0, 1.0, 20.0),
    ("step_s", 50e-6, 0.0, 600e-6), ("layer_s", 20e-6, 0.0, 80e-6), ("prefill_layer_s", 15e-6, 0.0, 80e-6),
    ("decode_layer_s", 1e-6, 0.0, 40e-6), ("sequence_layer_s", 3e-8, 0.0, 2e-7), ("expert_layer_s", 10e-6, 0.0, 80e-6),
)  # fmt: skip
LINK = (("link_latency_s", 6e-6, 0.5e-6, 40e-6), ("link_share", 0.6, 0.05, 1.0))
#: Message sizes at which an all-reduce's time is fitted, bytes, and how many times more or less than latency +
#: bytes / speed it may be.
MESSAGE_BYTES = np.array([4e3, 32e3, 128e3, 512e3, 1e6, 2e6, 4e6, 16e6, 128e6])
MESSAGE_FACTOR = 10.0
#: How strongly a factor that the data says little about is held to its prior: in units of one row's log error over the
#: factor's whole range.
PRIOR_WEIGHT = 0.7
#: The same when a model is left out: the fewer models were measured, the more other GPUs' factors count.
PRIOR_WEIGHT_LEFT_OUT = 3.0
#: Log errors much below this count squared, much above it by their size: a few odd kernels do not decide.
ODD = 0.03
KINDS = ("decode", "prefill", "mixed")
ROOFLINE = Factors(
    p=64.0, hbm_share=1.0, flop_share=1.0, kv_share=1.0, past_attention_share=1.0, attention_share=1.0,
    attention_half_tokens=0.0, hidden_passes=0.0, ffn_passes=0.0, attention_passes=0.0, expert_hbm_share=1.0,
    expert_flop_share=1.0, expert_skew=0.0, expert_pad_tokens=0.0, step_s=0.0, layer_s=0.0, prefill_layer_s=0.0,
    decode_layer_s=0.0, sequence_layer_s=0.0, expert_layer_s=0.0, link_latency_s=0.0, link_share=1.0,
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

    def of(self, rows: np.ndarray) -> Steps:
        """Some of the rows (a mask)."""
        names = ("kind", "prefill", "cached", "decodes", "context", "seconds")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})


def load_steps(file: Path) -> tuple[list[Steps], dict[str, str], dict[str, str]]:
    """Groups of rows; what was skipped and why; and how facts were guessed of GPUs that nobody described.

    A `facts.toml` beside the file describes GPUs and models of one's own (docs/profiles.md).
    """
    if (file.parent / "facts.toml").exists():
        load_facts(file.parent / "facts.toml")
    table = pq.read_table(file).to_pydict()
    columns = {name: np.array(values) for name, values in table.items()}
    found: list[Steps] = []
    strangers: dict[str, list[Steps]] = {}
    skipped = {}
    for system, net, tp in sorted(set(zip(table["system"], table["model"], table["tp"], strict=True))):
        rows = (columns["system"] == system) & (columns["model"] == net) & (columns["tp"] == tp)
        try:
            net = model(net).name
        except UnknownNameError as error:
            skipped[f"{system} {net}"] = f"{error} Describe it in {file.parent / 'facts.toml'}."
            continue
        steps = Steps(
            system, net, int(tp), columns["step_kind"][rows], columns["prefill_tokens"][rows].astype(float),
            columns["cached_prefix_tokens"][rows].astype(float), columns["decode_seqs"][rows].astype(float),
            columns["context_tokens"][rows].astype(float), columns["step_ms"][rows] / 1e3,
        )  # fmt: skip
        try:
            found.append(replace(steps, system=gpu(system).name))
        except UnknownNameError:
            strangers.setdefault(system, []).append(steps)
    guesses = {system: guess_gpu(system, groups) for system, groups in strangers.items()}
    return found + [steps for groups in strangers.values() for steps in groups], skipped, guesses


def guess_gpu(name: str, groups: list[Steps]) -> str:
    """Make an undescribed GPU known: the known GPU whose steps are most alike, its peaks scaled; says what was done.

    Looks at the first half of each group only (`first_half`), so that the second can still judge.
    """
    half = [group.of(first_half(group)) for group in groups]
    best: tuple[float, str, np.ndarray] | None = None
    for known in gpus():
        if not load_profile(known).all_reduce:
            continue  # nothing measured there either
        profile = load_profile(known).with_factors(host_s=0.0)
        logs = [np.log(group.seconds / predict(replace(group, system=known), profile)) for group in half]
        spread = float(np.mean(np.abs(np.concatenate(logs) - np.median(np.concatenate(logs)))))
        if best is None or spread < best[0]:
            best = (spread, known, np.concatenate(logs))
    assert best is not None
    _, alike, logs_alike = best
    kinds = np.concatenate([group.kind for group in half])
    slower = {
        kind: float(np.exp(np.median(logs_alike[kinds == kind]))) if (kinds == kind).any() else 1.0 for kind in KINDS
    }
    card = gpu(alike)
    with NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(f'[gpu."{name}"]\nsource = "guessed by fidelity_kernels.py from {alike}"\n')
        file.write(f"memory_bytes = {card.memory_bytes!r}\npcie_bytes_per_s = {card.pcie_bytes_per_s!r}\n")
        file.write(f"hbm_bytes_per_s = {card.hbm_bytes_per_s / slower['decode']!r}\n")
        file.write(f"bf16_flops = {card.bf16_flops / slower['prefill']!r}\n")
        if card.link_bytes_per_s is not None:
            file.write(f"link_bytes_per_s = {card.link_bytes_per_s!r}\n")
        file.flush()
        load_facts(file.name)
    return (
        f"not described; taken as {alike} with bandwidth x{1 / slower['decode']:.2f} and FLOP/s x{1 / slower['prefill']:.2f}, "
        "from the first half of its rows; `held_out` is the figure to look at"
    )


def first_half(steps: Steps) -> np.ndarray:
    """Every other row: a split that has every sort of row on both sides."""
    return np.arange(len(steps.seconds)) % 2 == 0


def predict(steps: Steps, profile: Profile) -> np.ndarray:
    """Seconds of each row, by the same terms that make the engine's tables."""
    terms = Terms(model(steps.model), gpu(steps.system), profile, steps.tp)
    m = terms.model
    prompts = (steps.prefill > 0).astype(float)
    seconds = (
        terms.linear(steps.prefill + steps.decodes) + terms.head(steps.decodes + prompts) + terms.decodes(steps.decodes)
    )
    seconds = seconds + steps.decodes * (steps.context + 1) * terms.kv_token_s(m.layers - m.window_layers)
    return seconds + prompts * (
        chunk_seconds(steps, terms.chunk_coefficients()) + m.layers * profile.factors.prefill_layer_s
    )


def chunk_seconds(steps: Steps, coefficients: np.ndarray) -> np.ndarray:
    """Prefill attention, as `chunk_ps` has it.

    A mixed row's prefill tokens are an average piece of prompts as long as `cached_prefix_tokens` says (that is how
    aiconfigurator puts mixed steps together), not a chunk after that many tokens: a piece of a longer prompt has
    half of the rest before it on average, and more tokens than a prompt has are several prompts.
    """
    past_pair, new_pair, half, past_token, new_token = coefficients
    mixed = steps.kind == "mixed"
    n = steps.prefill
    past = np.where(mixed, np.maximum(steps.cached - n, 0.0) / 2, steps.cached)
    length = np.where(mixed, np.minimum(n, steps.cached), n)
    return past * np.maximum(past_pair * n, past_token) + new_pair * 0.5 * n * (length + half) + new_token * n


def fit(groups: Sequence[Steps], start: Profile, prior_weight: float = PRIOR_WEIGHT) -> Profile:
    """Factors and all-reduce tables that make the log of the error small, robustly."""
    groups_of_gpus = sorted({group.tp for group in groups if group.tp > 1})
    names = FITTED + (LINK if groups_of_gpus else ())
    low, high = np.array([x[2] for x in names]), np.array([x[3] for x in names])
    tables = len(groups_of_gpus) * len(MESSAGE_BYTES)

    def profile(x: np.ndarray) -> Profile:
        values = low + x[: len(names)] * (high - low)
        guess = replace(
            start.with_factors(**{name: float(value) for (name, *_), value in zip(names, values, strict=True)}),
            all_reduce={},
        )
        stretched = MESSAGE_FACTOR ** (2 * x[len(names) :].reshape(-1, len(MESSAGE_BYTES)) - 1)
        return replace(
            guess,
            all_reduce={
                gpus: all_reduce_table(guess, gpus, stretch)
                for gpus, stretch in zip(groups_of_gpus, stretched, strict=True)
            },
        )

    def miss(x: np.ndarray) -> np.ndarray:
        guess = profile(x)
        rows = np.concatenate([np.log(predict(group, guess) / group.seconds) for group in groups])
        soft = np.sign(rows) * ODD * np.sqrt(2 * (np.sqrt(1 + (rows / ODD) ** 2) - 1))
        return np.concatenate([soft, prior_weight * (x - prior)])

    known = (np.array([getattr(start.factors, name) for name, *_ in names]) - low) / (high - low)
    prior = np.concatenate([known, np.full(tables, 0.5)])
    found = least_squares(miss, np.clip(prior, 1e-3, 1 - 1e-3), bounds=(0, 1), x_scale=0.1, max_nfev=60)
    return profile(found.x)


def all_reduce_table(profile: Profile, gpus: int, stretch: np.ndarray) -> tuple[tuple[float, float], ...]:
    """(bytes, seconds) of one all-reduce: latency + bytes / speed, stretched; never less for more bytes."""
    terms = Terms(model("llama-3.1-8b"), gpu(profile.name), profile, gpus)
    speed = (terms.gpu.link_bytes_per_s or terms.gpu.pcie_bytes_per_s) * profile.factors.link_share
    seconds = profile.factors.link_latency_s + 2.0 * (gpus - 1) / gpus * MESSAGE_BYTES / speed
    return tuple(
        (float(size), float(time))
        for size, time in zip(MESSAGE_BYTES, np.maximum.accumulate(seconds * stretch), strict=True)
    )


def fit_gpu(
    groups: Sequence[Steps], name: str, prior: Factors | None = None, prior_weight: float = PRIOR_WEIGHT
) -> Profile:
    """All factors of one GPU from its groups."""
    start = Profile(name, prior or GENERIC, "", "fitted", {}, models=tuple(sorted({group.model for group in groups})))
    return fit(groups, start, prior_weight)


def shared_prior(fits: Sequence[Profile], name: str) -> Factors:
    """The median factors of other GPUs' fits, what is assumed where one GPU's data says little.

    Of GPUs of the same sort if there are any: with NVLink (HBM, server boards) or without (GDDR, workstation boards).
    """
    others = [fit for fit in fits if fit.name != name]
    alike = [fit for fit in others if has_link(fit.name) == has_link(name)]
    names = [factor for factor, *_ in FITTED + LINK]
    if not others:
        return GENERIC
    return Factors(**{n: float(np.median([getattr(fit.factors, n) for fit in alike or others])) for n in names})


def has_link(name: str) -> bool:
    """Whether a GPU has NVLink or a fabric."""
    return gpu(name).link_bytes_per_s is not None


def known_fits(groups: Sequence[Steps], left_out: str | None = None) -> list[Profile]:
    """A first fit of every GPU, without one model if asked; GPUs that this data lacks speak through their shipped profiles.

    A shipped profile that was fitted on the model left out is silent.
    """
    rest = [group for group in groups if group.model != left_out]
    names = sorted({group.system for group in rest})
    first = [fit_gpu([group for group in rest if group.system == name], name) for name in names]
    here = {group.system for group in groups}
    shipped = [load_profile(name) for name in gpus() if name not in here and name in profile_names()]
    return first + [profile for profile in shipped if profile.trust == "fitted" and left_out not in profile.models]


def fit_all(groups: Sequence[Steps]) -> tuple[dict[str, Profile], dict[str, Factors]]:
    """Every GPU's fit, with the median of the other GPUs' as its prior; and those priors."""
    known = known_fits(groups)
    names = sorted({group.system for group in groups})
    mine = {name: [group for group in groups if group.system == name] for name in names}
    priors = {name: shared_prior(known, name) for name in names}
    return {name: fit_gpu(mine[name], name, priors[name]) for name in names}, priors


def blind_priors(groups: Sequence[Steps]) -> dict[str, dict[str, Factors]]:
    """By model and GPU: the prior from other GPUs' fits when nobody has seen the model."""
    names = sorted({group.system for group in groups})
    found = {}
    for left_out in sorted({group.model for group in groups}):
        known = known_fits(groups, left_out)
        found[left_out] = {name: shared_prior(known, name) for name in names}
    return found


def mape(groups: Sequence[Steps], profile: Profile, kind: str | None = None) -> float:
    """Mean absolute relative error of all rows (of one kind)."""
    return float(np.mean(relative(groups, profile, kind)))


def relative(groups: Sequence[Steps], profile: Profile, kind: str | None = None) -> np.ndarray:
    parts = []
    for group in groups:
        rows = slice(None) if kind is None else group.kind == kind
        parts.append(np.abs(predict(group, profile)[rows] / group.seconds[rows] - 1))
    return np.concatenate(parts)


def leave_one_model_out(
    groups: Sequence[Steps], name: str, blind: Mapping[str, Mapping[str, Factors]]
) -> tuple[float | None, dict[str, float]]:
    """Error on each model when fitted on this GPU's other models: mean over the rows it is judged on, and by model.

    `blind`: see `blind_priors`; the other GPUs have not seen the model either. A model that this GPU's shipped profile has not seen
    is judged by that profile as it is. None: this data has one model, and the shipped profile knows it.
    """
    errors, by_model = [], {}
    for left_out in sorted({group.model for group in judged(groups, name)}):
        rest = [group for group in groups if group.model != left_out]
        shipped = load_profile(name) if name in profile_names() else None
        if shipped is not None and shipped.trust == "fitted" and left_out not in shipped.models:
            fitted = shipped.with_factors(host_s=0.0)  # kernel sums have no host time
        elif rest:
            fitted = fit_gpu(rest, name, blind[left_out][name], PRIOR_WEIGHT_LEFT_OUT)
        else:
            continue
        missed = relative([group for group in judged(groups, name) if group.model == left_out], fitted)
        by_model[left_out] = float(np.mean(missed))
        errors.append(missed)
    return (float(np.mean(np.concatenate(errors))) if errors else None), by_model


def summary(groups: Sequence[Steps], profile: Profile) -> dict[str, float]:
    """The errors a profile file states."""
    missed = relative(groups, profile)
    found = {"mape": float(np.mean(missed))}
    for kind in KINDS:
        if any((group.kind == kind).any() for group in groups):
            found[kind] = mape(groups, profile, kind)
    return found | {"p90": float(np.quantile(missed, 0.9))}


def judged(groups: Sequence[Steps], name: str) -> list[Steps]:
    """The rows a GPU is judged on: without NVLink, TP 1 (its all-reduce is a property of the host)."""
    if not has_link(name) and any(group.tp == 1 for group in groups):
        return [group for group in groups if group.tp == 1]
    return list(groups)


def kernel_report(data: Path) -> dict[str, Any]:
    """The kernels' part of the fidelity report."""
    groups, skipped, guesses = load_steps(data / "kernel_step_times.parquet")
    names = sorted({group.system for group in groups})
    fits, priors = fit_all(groups)
    blind = blind_priors(groups)
    found = {}
    for name in names:
        mine = [group for group in groups if group.system == name]
        found[name] = gpu_report(mine, name, fits[name], priors[name], blind)
        if name in guesses:
            found[name]["facts"] = guesses[name]
    return {"note": NOTE, "skipped": skipped, "gpus": found}


NOTE = (
    "`mape` to `p90`: factors refitted on these rows, so an error of the formula, not of a forecast; `held_out`: fitted on every "
    "other row, judged on the rest; `shipped`: the package's profile as it is; `leave_one_model_out`: each model judged "
    "by factors fitted on this GPU's other models, leaning on the median factors of the other GPUs of its sort, fitted without that model too "
    "(how much to lean was chosen on this data), or by the shipped profile if that has not seen the model; "
    "`plain_roofline`: peaks, no factors. GPUs without NVLink are judged at TP 1; `with_tp` has all rows, with the "
    "measured all-reduce table. Mixed rows are read as average pieces of prompts as long as their context, which is how "
    "aiconfigurator makes them."
)


def gpu_report(
    groups: Sequence[Steps], name: str, fitted: Profile, prior: Factors, blind: Mapping[str, Mapping[str, Factors]]
) -> dict[str, Any]:
    """One GPU's errors."""
    rows = judged(groups, name)
    left_out, by_model = leave_one_model_out(groups, name, blind)
    half = fit_gpu([group.of(first_half(group)) for group in groups], name, prior)
    row: dict[str, Any] = {"points": sum(len(group.seconds) for group in rows)} | summary(rows, fitted)
    row["held_out"] = mape([group.of(~first_half(group)) for group in rows], half)
    row["leave_one_model_out"], row["leave_one_model_out_by_model"] = left_out, by_model
    row["plain_roofline"] = mape(rows, replace(fitted, factors=ROOFLINE, all_reduce={}))
    row["with_tp"] = mape(groups, fitted)
    try:
        row["shipped"] = mape(rows, load_profile(name).with_factors(host_s=0.0))  # kernel sums have no host time
    except UnknownNameError:
        row["shipped"] = None  # no profile is shipped for it
    return row
