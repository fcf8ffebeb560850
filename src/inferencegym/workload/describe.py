"""What a workload looks like in figures: rates, burstiness, lengths, sessions, and what an endless prefix cache would
find.

Times are seconds, lengths tokens, rates requests per second.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from inferencegym.workload.prefixes import endless_cache
from inferencegym.workload.workload import Floats, Workload

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)


def describe(w: Workload) -> dict[str, Any]:
    """All figures, ready for JSON; a figure that the workload has no data for is None."""
    figures: dict[str, Any] = {
        "name": w.name,
        "source": w.source,
        "attribution": w.attribution,
        "digest": w.digest(),
        "requests": len(w),
        "duration_s": w.duration_s,
        "failed_at_source": int(np.count_nonzero(w.output_tokens == 0)),
        "arrivals": _arrivals(w),
        "prompt_tokens": spread(w.prompt_tokens[w.output_tokens > 0]),
        "output_tokens": spread(w.output_tokens[w.output_tokens > 0]),
        "correlation": _correlation(w),
        "sessions": _sessions(w),
        "prefixes": _prefixes(w),
    }
    named: tuple[tuple[str, npt.NDArray[Any], tuple[str, ...]], ...] = (
        ("kinds", w.kind, w.kind_names),
        ("tenants", w.tenant, w.tenant_names),
        ("slo_classes", w.slo_class, w.slo_class_names),
    )
    for column, codes, names in named:
        counts = np.bincount(codes, minlength=len(names))
        figures[column] = {name: int(counts[i]) for i, name in enumerate(names) if counts[i]}
    return figures


def dispersion(arrival_s: Floats, window_s: float) -> float | None:
    """Variance over mean of the counts in whole windows (1 for Poisson); None with fewer than two windows."""
    windows = int(arrival_s[-1] // window_s) if len(arrival_s) else 0
    if windows < 2:
        return None
    counts = np.bincount((arrival_s[arrival_s < windows * window_s] // window_s).astype(np.int64), minlength=windows)
    return float(counts.var(ddof=1) / counts.mean()) if counts.any() else None


def spread(values: npt.NDArray[Any]) -> dict[str, float] | None:
    """Mean, extremes and quantiles; None of no values."""
    if not len(values):
        return None
    found = {f"p{q * 100:g}": float(v) for q, v in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)}
    return found | {"max": float(values.max()), "mean": float(values.mean())}


def _arrivals(w: Workload) -> dict[str, Any]:
    gaps_s = np.diff(w.arrival_s)
    minutes = int(w.duration_s // 60)
    per_minute = np.bincount((w.arrival_s[w.arrival_s < minutes * 60] // 60).astype(np.int64), minlength=minutes)
    mean_gap_s = float(gaps_s.mean()) if len(gaps_s) else 0.0
    return {
        "rate_rps": w.rate_rps,
        "peak_minute": int(per_minute.max()) if minutes else None,
        "quietest_minute": int(per_minute.min()) if minutes else None,
        "gap_cv": float(gaps_s.std()) / mean_gap_s if mean_gap_s > 0 else None,
        "idc_1s": dispersion(w.arrival_s, 1.0),
        "idc_60s": dispersion(w.arrival_s, 60.0),
        "gaps_s": spread(gaps_s),
        "closed_loop": int(np.count_nonzero(w.after >= 0)),
    }


def _correlation(w: Workload) -> dict[str, float] | None:
    served = w.output_tokens > 0
    prompt, output = w.prompt_tokens[served].astype(float), w.output_tokens[served].astype(float)
    if len(prompt) < 2 or prompt.std() == 0 or output.std() == 0:
        return None
    return {
        "pearson": float(np.corrcoef(prompt, output)[0, 1]),
        "spearman": float(np.corrcoef(_ranks(prompt), _ranks(output))[0, 1]),
    }


def _ranks(values: Floats) -> Floats:
    """Ranks with ties at their middle."""
    ordered, of, counts = np.unique(values, return_inverse=True, return_counts=True)
    assert len(ordered) == len(counts)
    middle: Floats = np.cumsum(counts) - (counts + 1) / 2
    return middle[of]


def _sessions(w: Workload) -> dict[str, Any] | None:
    member = w.session_id >= 0
    if not member.any():
        return None
    _, turns = np.unique(w.session_id[member], return_counts=True)
    waits = w.after >= 0
    return {"count": len(turns), "turns": spread(turns), "think_s": spread(w.think_s[waits])}


def _prefixes(w: Workload) -> dict[str, Any] | None:
    if not len(w.prefix_ids):
        return None
    reuse = endless_cache(w)
    return {
        "block_tokens": w.prefix_block_tokens,
        "ids": len(w.prefix_ids),
        "hit_rate_tokens": reuse.hit_rate_tokens,
        "hit_rate_blocks": reuse.hit_rate_blocks,
    }
