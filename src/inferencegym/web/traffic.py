"""Figures of one workload for the dashboard, as plain data: those of `workload.describe`, and the curves behind them. Runs at the desk, never in the server.

Times are seconds, lengths tokens, rates requests per second. Bins are the same for all workloads, so that two can be laid over one another.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from inferencegym.workload.describe import describe, dispersion
from inferencegym.workload.prefixes import endless_cache
from inferencegym.workload.workload import Floats, Workload

#: Widths of the windows that arrivals are counted in.
SCALES_S = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21_600.0, 86_400.0)
#: A curve of rates has at most so many bins; a scale of burstiness has at least and at most so many windows.
_MOST_BINS, _FEWEST_WINDOWS, _MOST_WINDOWS = 240, 10, 10_000_000
#: Upper end of lengths that have a bin of their own; no model has a longer context.
_MOST_TOKENS = 1 << 26
_MOST_BLOCKS = 96


def figures(w: Workload) -> dict[str, Any]:
    """`described`: what `inferencegym traces describe --json` prints; `curves`: what the page draws. None where there is no data for one."""
    served = w.output_tokens > 0
    return {
        "described": describe(w),
        "curves": {
            "rate": rate_curve(w.arrival_s),
            "burstiness": burstiness(w.arrival_s),
            "gaps_s": shares_of_times(np.diff(w.arrival_s)),
            "prompt_tokens": shares_of_counts(w.prompt_tokens[served]),
            "output_tokens": shares_of_counts(w.output_tokens[served]),
            **_session_curves(w),
            "reuse": reuse_by_depth(w),
        },
    }


def rate_curve(arrival_s: Floats) -> dict[str, Any] | None:
    """Mean rate in each whole bin, whose width is the finest that gives at most 240 of them; None with fewer than two."""
    span_s = float(arrival_s[-1]) if len(arrival_s) else 0.0
    fits = [width for width in SCALES_S if span_s / width <= _MOST_BINS]
    bin_s = fits[0] if fits else span_s / _MOST_BINS
    bins = int(span_s // bin_s)
    if bins < 2:
        return None
    return {
        "bin_s": bin_s,
        "from_s": [bin_s * i for i in range(bins)],
        "rps": (_counts(arrival_s, bin_s) / bin_s).tolist(),
    }


def burstiness(arrival_s: Floats) -> list[dict[str, float]]:
    """Over windows of several widths: variance over mean of their counts (1 for Poisson), and the fullest over the mean."""
    found = []
    for window_s in SCALES_S:
        windows = int(arrival_s[-1] // window_s) if len(arrival_s) else 0
        index = dispersion(arrival_s, window_s) if _FEWEST_WINDOWS <= windows <= _MOST_WINDOWS else None
        if index is not None:
            counts = _counts(arrival_s, window_s)
            peak = float(counts.max() / counts.mean())
            found.append({"window_s": window_s, "idc": index, "peak_over_mean": peak, "windows": windows})
    return found


def shares_of_counts(values: npt.NDArray[Any]) -> dict[str, Any] | None:
    """Shares of whole numbers from 1 on, in bins of a third of an octave: each holds at least one whole number."""
    edges = np.unique(np.ceil(2.0 ** (np.arange(3 * 26 + 1) / 3)))
    assert edges[-1] == _MOST_TOKENS
    return _shares(values.astype(float), edges)


def shares_of_times(values: npt.NDArray[Any]) -> dict[str, Any] | None:
    """Shares of times in bins of a fifth of a decade from 0.1 ms to some 30 years."""
    return _shares(values, 10.0 ** (np.arange(-4 * 5, 9 * 5 + 1) / 5))


def reuse_by_depth(w: Workload) -> dict[str, Any] | None:
    """Of the prompts that reach a block, the share whose first tokens up to and including it an earlier prompt had; at most 96 depths."""
    if not len(w.prefix_ids):
        return None
    reuse = endless_cache(w)
    deepest = int(reuse.prompt_blocks.max(initial=0))
    depths = np.unique(np.round(np.geomspace(1, max(deepest, 1), _MOST_BLOCKS)).astype(np.int64))
    reach = _at_least(reuse.prompt_blocks, depths)
    found = _at_least(reuse.hit_blocks, depths)
    kept = reach > 0
    return {
        "block_tokens": w.prefix_block_tokens,
        "depth_tokens": (depths[kept] * w.prefix_block_tokens).tolist(),
        "share": (found[kept] / reach[kept]).tolist(),
        "prompts": reach[kept].tolist(),
    }


def _session_curves(w: Workload) -> dict[str, Any]:
    member = w.session_id >= 0
    if not member.any():
        return {"turns": None, "think_s": None}
    _, turns = np.unique(w.session_id[member], return_counts=True)
    return {"turns": shares_of_counts(turns), "think_s": shares_of_times(w.think_s[w.after >= 0])}


def _counts(arrival_s: Floats, window_s: float) -> npt.NDArray[np.int64]:
    """Arrivals in each whole window."""
    windows = int(arrival_s[-1] // window_s)
    return np.bincount((arrival_s[arrival_s < windows * window_s] // window_s).astype(np.int64), minlength=windows)


def _at_least(values: npt.NDArray[Any], limits: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many values reach each limit."""
    return len(values) - np.searchsorted(np.sort(values), limits, side="left")


def _shares(values: npt.NDArray[Any], edges: Floats) -> dict[str, Any] | None:
    """Shares of all values in the bins that hold any (and those between), and below and above all bins."""
    if not len(values):
        return None
    counts, _ = np.histogram(values[values < edges[-1]], edges)
    used = np.flatnonzero(counts)
    first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
    return {
        "edges": edges[first : last + 1].tolist() if len(used) else [],
        "shares": (counts[first:last] / len(values)).tolist(),
        "below": float(np.count_nonzero(values < edges[0]) / len(values)),
        "above": float(np.count_nonzero(values >= edges[-1]) / len(values)),
        "lowest": float(edges[0]),
    }
