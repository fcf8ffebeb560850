"""ServeGen's clients, drawn anew: for each client and 10-minute window its observed rate, the fitted law of its gaps,
its lengths.

Rates are requests per second, times seconds, lengths tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from inferencegym.ground.errors import ConfigError, InputError
from inferencegym.ground.rng import stream
from inferencegym.workload.options import ReadOptions
from inferencegym.workload.prefixes import offsets_of
from inferencegym.workload.public import CREDITS
from inferencegym.workload.table import Table, read_parquet
from inferencegym.workload.workload import Floats, Ints, Workload

WINDOW_S = 600.0
LENGTHS_WINDOW_S = 21_600
_RATES = ("model", "client_id", "window_start_s", "rate_rps", "dist", "shape")
_LENGTHS = ("model", "client_id", "window_start_s", "field", "q")
#: A prompt is text alone, or text and images.
_PROMPT_FIELDS = {"input_tokens", "text_tokens", "image_tokens", "image_count"}
_MOST_TOKENS = 100_000_000
_MOST_REQUESTS = 50_000_000


class Windows(NamedTuple):
    """A row for each client and window of one pool."""

    client: Ints
    start_s: Floats
    rate_rps: Floats
    shape: Floats
    weibull: np.ndarray


def read_pool(path: Path, options: ReadOptions) -> Workload:
    """A realisation of one pool of clients; the lengths lie in the file `..._lengths` beside the rates."""
    windows, span = _windows(read_parquet(path, _RATES), options)
    rng = stream(options.seed, "workload.servegen.arrivals")
    wanted = windows.rate_rps * WINDOW_S
    if wanted.sum() > _MOST_REQUESTS:
        raise ConfigError(
            "duration_s", f"asks for about {wanted.sum():.3g} requests", allowed=f"at most {_MOST_REQUESTS:,}"
        )
    # A fraction of a request becomes a whole one by chance, so that rates hold on average.
    counts = np.floor(wanted + rng.random(len(wanted))).astype(np.int64)
    arrival_s = np.repeat(windows.start_s, counts) + _inside(windows, counts, rng)
    client = np.repeat(windows.client, counts)
    inside = (arrival_s >= span[0]) & (arrival_s < span[1])
    arrival_s, client = arrival_s[inside], client[inside]
    prompt, output = _lengths(path, options.pool or "", client, arrival_s, options.seed)
    names, codes = np.unique(client, return_inverse=True)
    return Workload.of(
        arrival_s=arrival_s - span[0],
        prompt_tokens=prompt,
        output_tokens=output,
        tenant=codes,
        tenant_names=tuple(f"c{name:03d}" for name in names.tolist()) or ("default",),
        kind_names=(options.pool,),
        name=f"servegen-{options.pool}",
        source=f"clients of pool {options.pool}, {span[0]:g} to {span[1]:g} s, drawn with seed {options.seed}",
        attribution=CREDITS["servegen"],
    )


def _windows(table: Table, options: ReadOptions) -> tuple[Windows, tuple[float, float]]:
    pools, listed = table.codes("model")
    if options.pool not in listed:
        raise ConfigError(
            "pool",
            f"{options.pool!r}; these are rates of clients, from which one pool's requests are drawn",
            allowed=", ".join(listed),
        )
    start_s = table.ints("window_start_s").astype(float)
    rate_rps, shape = table.floats("rate_rps"), table.floats("shape")
    # Gaps of a law with a smaller shape overflow.
    for name, values, least in (("rate_rps", rate_rps, 0.0), ("shape", shape, 0.006), ("window_start_s", start_s, 0.0)):
        bad = values < least
        if bad.any():
            row = int(np.argmax(bad))
            raise InputError(f"{values[row]} is less than {least:g}", file=table.file, row=row + 1, column=name)
    mine = pools == listed.index(options.pool)
    end_s = (
        float(start_s[mine].max()) + WINDOW_S if options.duration_s is None else options.start_s + options.duration_s
    )
    mine &= (start_s + WINDOW_S > options.start_s) & (start_s < end_s)
    if not mine.any():
        raise ConfigError("start_s", f"pool {options.pool} has no window from {options.start_s:g} to {end_s:g} s")
    laws, law_names = table.codes("dist")
    unknown = set(law_names) - {"Gamma", "Weibull"}
    if unknown:
        raise InputError(f"{unknown.pop()!r} is no law of gaps; known: Gamma, Weibull", file=table.file, column="dist")
    weibull = laws == (law_names.index("Weibull") if "Weibull" in law_names else -1)
    found = Windows(table.ints("client_id")[mine], start_s[mine], rate_rps[mine], shape[mine], weibull[mine])
    return found, (options.start_s, end_s)


def _inside(windows: Windows, counts: Ints, rng: np.random.Generator) -> Floats:
    """Seconds into its window of each request: gaps of the client's law, scaled to fill the window."""
    gaps_each = counts + 1
    shape = np.repeat(windows.shape, gaps_each)
    weibull = np.repeat(windows.weibull, gaps_each)
    gaps = np.empty(len(shape))
    gaps[weibull] = rng.weibull(shape[weibull])
    gaps[~weibull] = rng.standard_gamma(shape[~weibull])
    # A gamma of a tiny shape may be 0 to the last bit; a window of such gaps alone would have no length.
    gaps += 1e-300
    offsets = offsets_of(gaps_each)
    sums = np.cumsum(gaps)
    before = np.where(offsets[:-1] > 0, sums[np.maximum(offsets[:-1] - 1, 0)], 0.0)
    total = sums[offsets[1:] - 1] - before
    place = np.repeat(before, gaps_each)
    share = (sums - place) / np.repeat(np.maximum(total, 1e-300), gaps_each)
    last = np.zeros(len(gaps), np.bool_)
    last[offsets[1:] - 1] = True
    within_s: Floats = np.clip(share[~last], 0.0, 1.0) * WINDOW_S
    return within_s


def _lengths(path: Path, pool: str, client: Ints, arrival_s: Floats, seed: int) -> tuple[Ints, Ints]:
    beside = path.with_name(path.name.replace("_rates", "_lengths"))
    if beside == path or not beside.is_file():
        raise InputError(f"needs {path.stem.replace('_rates', '')}_lengths.parquet beside it", file=path)
    table = read_parquet(beside, _LENGTHS)
    probs = _probabilities(table)
    grids = _grids(table, pool, probs)
    rng = stream(seed, "workload.servegen.lengths")
    period = (arrival_s // LENGTHS_WINDOW_S).astype(np.int64)
    values: dict[str, Floats] = {}
    for field in sorted({name for name, _, _ in grids}):
        values[field] = _draw_field(field, grids, probs, client, period, rng)
    if "input_tokens" in values:
        prompt = values["input_tokens"]
    else:
        prompt = values["text_tokens"] + values["image_tokens"] * np.rint(values["image_count"])
    return np.maximum(np.rint(prompt), 1).astype(np.int64), np.maximum(np.rint(values["output_tokens"]), 1).astype(
        np.int64
    )


def _draw_field(
    field: str, grids: dict[Any, Floats], probs: Floats, client: Ints, period: Ints, rng: np.random.Generator
) -> Floats:
    """Values from each client's quantiles of that period; a client without any draws from those of a random other
    one.
    """
    u, lot = rng.random(len(client)), rng.random(len(client))
    found = np.empty(len(client))
    for one in np.unique(period).tolist():
        known = sorted(who for name, who, when in grids if name == field and when == one) or sorted(
            {who for name, who, _ in grids if name == field}
        )
        here = np.flatnonzero(period == one)
        lender = np.array(known)[(lot[here] * len(known)).astype(np.int64)]
        whose = np.where(np.isin(client[here], known), client[here], lender)
        for who in np.unique(whose).tolist():
            mine = here[whose == who]
            quantiles = grids.get((field, who, one))
            if quantiles is None:
                quantiles = next(grids[key] for key in sorted(grids) if key[:2] == (field, who))
            found[mine] = np.interp(u[mine], probs, quantiles)
    return found


def _grids(table: Table, pool: str, probs: Floats) -> dict[Any, Floats]:
    """Quantiles by field, client and period of 6 hours."""
    table.require(*_LENGTHS)
    pools, listed = table.codes("model")
    if pool not in listed:
        raise InputError(f"has no lengths of pool {pool}; it has {', '.join(listed)}", file=table.file, column="model")
    fields, field_names = table.codes("field")
    client, start = table.ints("client_id"), table.ints("window_start_s")
    offsets, values = table.float_lists("q")
    found = {}
    for row in np.flatnonzero(pools == listed.index(pool)).tolist():
        key = (field_names[fields[row]], int(client[row]), int(start[row] // LENGTHS_WINDOW_S))
        found[key] = values[offsets[row] : offsets[row + 1]]
        if len(found[key]) != len(probs) or (np.diff(found[key]) < 0).any() or not _sane(found[key]):
            problem = f"must be {len(probs)} rising quantiles from 0 to {_MOST_TOKENS}, one for each probability"
            raise InputError(problem, file=table.file, row=row + 1, column="q")
    missing = {"output_tokens", *_PROMPT_FIELDS} - {field for field, _, _ in found}
    if missing and missing != {"input_tokens"} and missing != _PROMPT_FIELDS - {"input_tokens"}:
        problem = f"has no {', '.join(sorted(missing))} of pool {pool}"
        raise InputError(problem, file=table.file, column="field")
    return found


def _sane(quantiles: Floats) -> bool:
    return bool(quantiles[0] >= 0 and quantiles[-1] <= _MOST_TOKENS)


def _probabilities(table: Table) -> Floats:
    import json

    try:
        probs = np.array(json.loads(table.metadata["probabilities"]), dtype=float)
    except (KeyError, ValueError, TypeError):
        probs = np.zeros(0)
    if probs.ndim != 1 or len(probs) < 2 or not (np.diff(probs) > 0).all() or (probs[0], probs[-1]) != (0.0, 1.0):
        problem = "its metadata does not list the probabilities of q, rising from 0 to 1"
        raise InputError(problem, file=table.file, column="q")
    return probs
