"""A description out of a workload: quantile grids of lengths and gaps, the gaps' memory, and how prefixes are shared.

What comes out generates workloads of any length and rate; no row of the original is in it. Times are seconds, lengths
tokens.
"""

from __future__ import annotations

from math import sqrt

import msgspec
import numpy as np
import numpy.typing as npt

from inferencegym.ground.errors import InputError
from inferencegym.ground.rng import stream
from inferencegym.workload.arrivals import scores
from inferencegym.workload.chance import from_log_grid, log_grid_mean, normal_cdf, normal_quantile
from inferencegym.workload.describe import describe, dispersion
from inferencegym.workload.generate import generate
from inferencegym.workload.prefixes import endless_cache
from inferencegym.workload.spec import Class, Copula, GridLengths, PrefixTree, Spec, Tenant, Ticks, Traffic, Wander
from inferencegym.workload.workload import Floats, Ints, Ints32, Workload

#: Every half per cent, and closer at the ends.
PROMPT_PROBS = (
    0.0,
    0.0005,
    0.001,
    0.0025,
    *(i / 200 for i in range(1, 198)),
    0.99,
    0.9925,
    0.995,
    0.9975,
    0.999,
    0.9995,
    1.0,
)
OUTPUT_PROBS = (0.0, 0.005, 0.01, *(i / 50 for i in range(1, 50)), 0.99, 0.995, 1.0)
GAP_PROBS = (
    0.0, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, *(i / 40 for i in range(2, 39)),
    0.96, 0.97, 0.98, 0.985, 0.99, 0.9925, 0.995, 0.9975, 0.999, 0.9995, 1.0,
)  # fmt: skip
SHARE_PROBS = tuple(i / 20 for i in range(21))
_LEAST_REQUESTS = 100
_BIN_REQUESTS = 100
_MOST_BINS = 16
#: Gaps of 0 (equal stamps) have no logarithm; they become this.
_SHORTEST_GAP_S = 1e-6
_LAGS = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 75, 100)
_REPEATS = 24
#: Gaps drawn to see how counts vary: a long trace needs fewer repeats.
_MOST_DRAWN = 200_000


def fit(w: Workload) -> Spec:
    """A description whose workloads resemble this one; sessions are not modelled, prefixes are (the notes say so)."""
    served, failed = w.servable()
    if len(served) < _LEAST_REQUESTS:
        raise InputError(
            f"{w.name}: {len(served)} requests with an answer are too few to fit; it takes {_LEAST_REQUESTS} or more"
        )
    if w.duration_s <= 0:
        raise InputError(f"{w.name}: all requests arrive at once; there is nothing to fit arrivals on")
    figures = describe(w)
    gaps, rate = _arrivals(served)
    bins = int(np.clip(len(served) // _BIN_REQUESTS, 1, _MOST_BINS))
    notes = []
    if figures["sessions"] is not None:
        notes.append(
            "The original has sessions; here requests come one by one and share prefixes only as `prefixes` says."
        )
    traffic = Traffic(
        kind=w.kind_names[0] if len(w.kind_names) == 1 else "mixed",
        gaps=gaps,
        rate_rps=None if isinstance(gaps, Copula) else len(w) / w.duration_s,
        rate=rate,
        lengths=_lengths(served, bins),
        failed_share=failed / len(w),
        prefixes=_tree(served, bins),
        tenants=_shares(Tenant, w.tenant, w.tenant_names),
        classes=_classes(w),
    )
    return Spec(
        name=w.name,
        source=w.source,
        attribution=w.attribution,
        notes=tuple(notes),
        fitted_on={"rows": len(w), "window_s": [0, round(w.duration_s, 3)], "digest": w.digest()},
        measured=_measured(figures),
        traffic=(traffic,),
    )


def quantile_grid(values: npt.NDArray[np.number], probs: tuple[float, ...], digits: int = 5) -> tuple[float, ...]:
    """Quantiles to a few digits; whole numbers stay whole."""
    found = [float(f"{value:.{digits}g}") for value in np.quantile(values, probs)]
    return tuple(int(value) if value == int(value) else value for value in found)


def calibrated_copula(law: Copula, *, idc_60s: float, duration_s: float) -> Copula:
    """The law with the weight of its slowest part changed so that counts in 60 s vary as they should, in the median
    of repeats.
    """
    room = 1.0 - sum(law.weights[:-1])
    low, high = 0.0, 0.95 * room
    for _ in range(12):
        middle = (low + high) / 2
        changed = msgspec.structs.replace(law, weights=(*law.weights[:-1], middle))
        low, high = (middle, high) if _median_idc(changed, duration_s) < idc_60s else (low, middle)
    return msgspec.structs.replace(law, weights=(*law.weights[:-1], float(f"{(low + high) / 2:.3g}")))


def wander_of_counts(counts: Floats, every_s: float, *, idc: float | None = None) -> Wander | None:
    """The random level that makes Poisson counts vary as these do; None where they vary no more than Poisson ones."""
    mean = float(counts.mean())
    wanted = float(counts.var(ddof=1) / mean) if idc is None else idc
    if wanted <= 1.05 or len(counts) < 4:
        return None
    centred = counts - mean
    # Poisson noise adds to the variance but not to the covariance with the next window.
    next_to = float(np.mean(centred[1:] * centred[:-1]) / (mean * (wanted - 1.0)))
    return Wander(
        every_s=every_s,
        gamma_shape=float(f"{mean / (wanted - 1.0):.4g}"),
        memory=float(np.clip(round(next_to, 3), 0.0, 0.95)),
    )


def _median_idc(law: Copula, duration_s: float) -> float:
    found = []
    mean_gap_s = log_grid_mean(law.probs, law.gap_q_s)
    duration_s = min(duration_s, _MOST_DRAWN * mean_gap_s)
    size = int(1.6 * duration_s / mean_gap_s)
    for seed in range(int(np.clip(_MOST_DRAWN * 5 // size, 4, _REPEATS))):
        score = normal_cdf(scores(law, stream(seed, "fitting.idc"), size))
        arrival_s = np.cumsum(from_log_grid(score, law.probs, law.gap_q_s))
        found.append(dispersion(arrival_s[arrival_s < duration_s], 60.0) or 0.0)
    return float(np.median(found))


# --- arrivals ---------------------------------------------------------------------------------------------------------


def _arrivals(w: Workload) -> tuple[Copula | Ticks, tuple[Wander, ...]]:
    tick_s = tick_of(w.arrival_s)
    if tick_s is not None:
        minutes = int(w.duration_s // 60)
        counts = np.bincount(
            (w.arrival_s[w.arrival_s < minutes * 60] // 60).astype(np.int64), minlength=minutes
        ).astype(float)
        wander = wander_of_counts(counts, 60.0) if minutes else None
        return Ticks(tick_s=tick_s), () if wander is None else (wander,)
    return _copula(w), ()


def tick_of(arrival_s: Floats) -> float | None:
    """The step of a coarse clock, if stamps lie on one: few distinct gaps, most requests share a stamp."""
    stamps = np.unique(arrival_s)
    if len(stamps) < 8 or len(stamps) > len(arrival_s) / 3:
        return None
    gaps_s = np.diff(stamps)
    step_s = float(np.median(gaps_s))
    return round(step_s, 6) if float(np.mean(np.abs(gaps_s - step_s) < 0.02 * step_s)) > 0.9 else None


def _copula(w: Workload) -> Copula:
    gaps_s = np.maximum(np.diff(w.arrival_s), _SHORTEST_GAP_S)
    ranks = np.argsort(np.argsort(gaps_s, kind="stable"), kind="stable")
    score = normal_quantile(((ranks + 0.5) / len(gaps_s)).tolist())
    lags = [lag for lag in _LAGS if lag < len(score) // 4]
    memory = [float(np.mean(score[lag:] * score[:-lag])) for lag in lags]
    law = Copula(probs=GAP_PROBS, gap_q_s=quantile_grid(gaps_s, GAP_PROBS, 4), **_two_parts(lags, memory))
    idc = dispersion(w.arrival_s, 60.0)
    if idc is None or w.duration_s < 600:
        return law
    return calibrated_copula(law, idc_60s=idc, duration_s=w.duration_s)


def _two_parts(lags: list[int], memory: list[float]) -> dict[str, tuple[float, ...]]:
    """Weights and phis of a quick and a slow AR(1) whose autocorrelation w1 phi1^k + w2 phi2^k is nearest to the
    measured one.
    """
    k = np.array(lags, dtype=float)
    wanted = np.array(memory)
    best, found = np.inf, (0.0, 0.0, 0.3, 0.98)
    for slow in (0.9, 0.95, 0.97, 0.98, 0.985, 0.99, 0.995, 0.998):
        for quick in (0.1, 0.3, 0.5, 0.7):
            basis = np.stack([quick**k, slow**k], axis=1)
            weights = np.clip(np.linalg.lstsq(basis, wanted, rcond=None)[0], 0.0, 0.45)
            error = float(np.sum((basis @ weights - wanted) ** 2))
            if error < best:
                best, found = error, (float(weights[0]), float(weights[1]), quick, slow)
    return {"weights": (round(found[0], 4), round(found[1], 4)), "phis": (found[2], found[3])}


# --- lengths, prefixes, labels ----------------------------------------------------------------------------------------


def _lengths(w: Workload, bins: int) -> GridLengths:
    # Equal prompts are spread over their bins by chance of order, as `from_grid` will do.
    order = np.argsort(w.prompt_tokens, kind="stable")
    output_q = tuple(quantile_grid(w.output_tokens[part], OUTPUT_PROBS) for part in np.array_split(order, bins))
    return GridLengths(
        prompt_probs=PROMPT_PROBS,
        prompt_q=quantile_grid(w.prompt_tokens, PROMPT_PROBS),
        output_probs=OUTPUT_PROBS,
        output_q=output_q,
    )


def _tree(w: Workload, bins: int) -> PrefixTree | None:
    if not len(w.prefix_ids):
        return None
    reuse = endless_cache(w)
    has = reuse.prompt_blocks > 0
    share = np.where(has, reuse.hit_blocks / np.maximum(reuse.prompt_blocks, 1), 0.0)
    order = np.argsort(w.prompt_tokens, kind="stable")
    lags_s = _lags(w, reuse.hit_blocks)
    first, counts = np.unique(w.prefix_ids[w.prefix_offsets[:-1][has]], return_counts=True)
    common = counts[counts >= len(w) / 20]
    return (
        PrefixTree(
            block_tokens=w.prefix_block_tokens,
            matched_probs=SHARE_PROBS,
            matched_q=tuple(quantile_grid(share[part], SHARE_PROBS, 4) for part in np.array_split(order, bins)),
            lag_probs=SHARE_PROBS,
            lag_q_s=quantile_grid(lags_s, SHARE_PROBS, 4) if len(lags_s) else (0.0,) * len(SHARE_PROBS),
            # Only where a few first blocks begin all the traffic; else every first block is one of its own or copied.
            first_block_shares=tuple(float(f"{c / common.sum():.4g}") for c in common)
            if common.sum() > 0.95 * has.sum() > 0
            else (),
        )
        if len(first)
        else None
    )


def _lags(w: Workload, hits: Ints) -> Floats:
    """How long ago the deepest block that a row repeats was last asked for, for rows that repeat more than one."""
    rows = np.flatnonzero(hits > 1)
    deepest = w.prefix_ids[w.prefix_offsets[rows] + hits[rows] - 1]
    row_of_id = np.repeat(np.arange(len(w)), np.diff(w.prefix_offsets))
    order = np.lexsort((row_of_id, w.prefix_ids))
    sorted_ids, sorted_rows = w.prefix_ids[order], row_of_id[order]
    # The place of (id, row) among all pairs; the pair before it is the same id in the last earlier row.
    start = np.searchsorted(sorted_ids, deepest)
    _, names = np.unique(sorted_ids, return_inverse=True)
    key = names.astype(np.int64) * len(w) + sorted_rows
    place = np.searchsorted(key, names[start].astype(np.int64) * len(w) + rows)
    before = np.maximum(place - 1, 0)
    sound = (place > 0) & (sorted_ids[before] == deepest)
    ago_s: Floats = w.arrival_s[rows[sound]] - w.arrival_s[sorted_rows[before[sound]]]
    return ago_s


def _shares(kind: type[Tenant], codes: Ints32, names: tuple[str, ...]) -> tuple[Tenant, ...]:
    counts = np.bincount(codes, minlength=len(names))
    if np.count_nonzero(counts) < 2:
        return ()
    return tuple(kind(name=names[i], share=float(f"{counts[i] / counts.sum():.4g}")) for i in np.flatnonzero(counts))


def _classes(w: Workload) -> tuple[Class, ...]:
    pairs, counts = np.unique(np.stack([w.slo_class, w.priority], axis=1), axis=0, return_counts=True)
    if len(pairs) < 2 and w.priority.max() == 0:
        return ()
    return tuple(
        Class(name=w.slo_class_names[code], priority=int(priority), share=float(f"{count / len(w):.4g}"))
        for (code, priority), count in zip(pairs.tolist(), counts.tolist(), strict=True)
    )


def _measured(figures: dict[str, object]) -> dict[str, object]:
    arrivals, prefixes = figures["arrivals"], figures["prefixes"]
    assert isinstance(arrivals, dict)
    kept = {name: arrivals[name] for name in ("rate_rps", "gap_cv", "idc_1s", "idc_60s")}
    found: dict[str, object] = {name: float(f"{value:.5g}") for name, value in kept.items() if value is not None}
    if isinstance(prefixes, dict):
        found |= {name: round(prefixes[name], 4) for name in ("hit_rate_tokens", "hit_rate_blocks")}
    return found


# --- how good a description is
# ------------------------------------------------------------------------------------------


def distance(one: npt.NDArray[np.number], other: npt.NDArray[np.number]) -> float:
    """Kolmogorov-Smirnov distance of two samples: the largest difference between their cumulated shares."""
    if not len(one) or not len(other):
        return 1.0
    values = np.concatenate([one, other])
    shares = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (one, other)]
    return float(np.max(np.abs(shares[0] - shares[1])))


def compare(spec: Spec, w: Workload, seed: int = 0) -> dict[str, float]:
    """A generated workload of the same size beside the original: distances of lengths and gaps, and the limit for
    chance alone.
    """
    served, _ = w.servable()
    made, _ = generate(spec, seed=seed, requests=len(w)).servable()
    return {
        "ks_prompt": distance(made.prompt_tokens, served.prompt_tokens),
        "ks_output": distance(made.output_tokens, served.output_tokens),
        "ks_gaps": distance(np.diff(made.arrival_s), np.diff(served.arrival_s)),
        "ks_chance": 1.36 * sqrt(1.0 / len(made) + 1.0 / len(served)),
    }


def renamed(spec: Spec, name: str) -> Spec:
    """The same description under another name."""
    return msgspec.structs.replace(spec, name=name)


__all__ = ["calibrated_copula", "compare", "distance", "fit", "quantile_grid", "renamed", "wander_of_counts"]
