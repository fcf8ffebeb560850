"""When requests come: a law of gaps on a clock that runs as fast as the rate says, which keeps bursts and moves them
together.

Gaps are drawn with a mean of 1 on that clock; where the rate is high it runs fast. For Poisson gaps this is exactly a
Poisson process of the moving rate. Times are seconds, rates requests per second.
"""

from __future__ import annotations

from math import ceil, gamma, sqrt
from typing import NamedTuple

import numpy as np

from inferencegym.ground.rng import stream
from inferencegym.workload.chance import (
    from_grid,
    from_log_grid,
    log_grid_mean,
    normal_cdf,
    normal_quantile,
    with_memory,
)
from inferencegym.workload.spec import (
    Campaigns,
    Copula,
    Even,
    Gamma,
    GapLaw,
    Hours,
    OnOff,
    Poisson,
    RateShape,
    Replay,
    Sine,
    Spikes,
    Ticks,
    Traffic,
    Wander,
    Weibull,
)
from inferencegym.workload.workload import Floats

#: A smooth wave is made of this many steps a period.
_SINE_STEPS = 96


class Steps(NamedTuple):
    """A rate that is constant between edges: level[i] from edge[i] to edge[i + 1]."""

    edge_s: Floats
    level: Floats


def own_rate_rps(traffic: Traffic) -> float:
    """The mean rate a description asks for; a copula without one has that of its gaps."""
    if traffic.rate_rps is not None:
        return traffic.rate_rps
    assert isinstance(traffic.gaps, Copula), "only a copula has a rate of its own (spec.check says so)"
    return 1.0 / log_grid_mean(traffic.gaps.probs, traffic.gaps.gap_q_s)


def draw_arrivals(traffic: Traffic, rate_rps: float, seed: int, name: str, *, until_s: float) -> Floats:
    """Arrival times from 0 up to, but not at, `until_s`, rising; the same for the same seed and stream name."""
    steps = rate_steps(traffic.rate, seed, name, until_s)
    if isinstance(traffic.gaps, Ticks):
        arrival_s = _ticks(traffic.gaps, steps, rate_rps, seed, name, until_s)
    else:
        work = np.concatenate([[0.0], np.cumsum(np.diff(steps.edge_s) * steps.level)]) * rate_rps
        clock = _unit_gaps(traffic.gaps, stream(seed, f"{name}.gaps"), float(work[-1]))
        # Where the rate is 0 the clock stands still and interp would be ambiguous: it takes the end of such a stretch.
        arrival_s = np.interp(clock, work, steps.edge_s)
        arrival_s = arrival_s[: np.searchsorted(arrival_s, until_s)]
    return np.floor(arrival_s) if traffic.whole_seconds else arrival_s


# --- gaps -------------------------------------------------------------------------------------------------------------


def _unit_gaps(law: GapLaw, rng: np.random.Generator, end: float) -> Floats:
    """Rising sums of gaps with a mean of 1, below `end`."""
    size = int(end + 10.0 * sqrt(end + 1.0)) + 16
    while True:
        # A law with a long memory may fall short of its mean for long: draw twice as much from the same start then.
        sums = np.cumsum(_gaps(law, _again(rng), size))
        if sums[-1] >= end:
            return sums[: np.searchsorted(sums, end)]
        size *= 2


def _again(rng: np.random.Generator) -> np.random.Generator:
    """A generator in the state `rng` is in, which stays there."""
    copy = np.random.Generator(type(rng.bit_generator)())
    copy.bit_generator.state = rng.bit_generator.state
    return copy


def _gaps(law: GapLaw, rng: np.random.Generator, size: int) -> Floats:
    if isinstance(law, Poisson):
        return rng.exponential(size=size)
    if isinstance(law, Gamma):
        shape = 1.0 / law.cv**2
        return rng.gamma(shape, 1.0 / shape, size)
    if isinstance(law, Weibull):
        return rng.weibull(law.shape, size) / gamma(1.0 + 1.0 / law.shape)
    if isinstance(law, Even):
        return np.ones(size)
    assert isinstance(law, Copula), f"no gaps for {law}"
    score = normal_cdf(scores(law, rng, size))
    return from_log_grid(score, law.probs, law.gap_q_s) / log_grid_mean(law.probs, law.gap_q_s)


def scores(law: Copula, rng: np.random.Generator, size: int) -> Floats:
    """The normal scores that drive the gaps: white noise and AR(1) series in the given shares of variance."""
    # Noise is drawn row by row, so that a longer draw begins with the shorter one.
    noise = rng.standard_normal((size, len(law.phis) + 1))
    score = noise[:, 0] * sqrt(max(0.0, 1.0 - sum(law.weights)))
    for i, (weight, phi) in enumerate(zip(law.weights, law.phis, strict=True)):
        score += sqrt(weight) * with_memory(np.ascontiguousarray(noise[:, i + 1]), phi)
    return score


def _ticks(law: Ticks, steps: Steps, rate_rps: float, seed: int, name: str, until_s: float) -> Floats:
    tick_s = np.arange(ceil(until_s / law.tick_s)) * law.tick_s
    level = steps.level[np.searchsorted(steps.edge_s, tick_s, side="right") - 1]
    rng = stream(seed, f"{name}.gaps")
    batches = rng.poisson(level * rate_rps * law.tick_s)
    arrival_s = np.repeat(tick_s, batches)
    if not law.spread:
        return arrival_s
    spread_s = np.sort(arrival_s + rng.random(len(arrival_s)) * law.tick_s)
    return spread_s[: np.searchsorted(spread_s, until_s)]


# --- how the rate moves -----------------------------------------------------------------------------------------------


def rate_steps(shapes: tuple[RateShape, ...], seed: int, name: str, until_s: float) -> Steps:
    """The product of all shapes up to `until_s`."""
    parts = [_steps(shape, stream(seed, f"{name}.rate.{i}"), until_s) for i, shape in enumerate(shapes)]
    if not parts:
        return Steps(np.array([0.0, until_s]), np.ones(1))
    edge_s = np.unique(np.concatenate([part.edge_s for part in parts]))
    edge_s = np.append(edge_s[edge_s < until_s], until_s)
    level = np.ones(len(edge_s) - 1)
    for part in parts:
        level *= part.level[np.searchsorted(part.edge_s, edge_s[:-1], side="right") - 1]
    return Steps(edge_s, level)


def _steps(shape: RateShape, rng: np.random.Generator, until_s: float) -> Steps:
    if isinstance(shape, Hours):
        return _repeated(np.roll(np.asarray(shape.levels), -shape.first_hour), 3600.0, until_s)
    if isinstance(shape, Replay):
        return _repeated(np.asarray(shape.levels), shape.every_s, until_s)
    if isinstance(shape, Sine):
        middle = (np.arange(_SINE_STEPS) + 0.5) / _SINE_STEPS
        return _repeated(1.0 + shape.amplitude * np.sin(2 * np.pi * middle), shape.period_s / _SINE_STEPS, until_s)
    if isinstance(shape, Wander):
        return _wander(shape, rng, until_s)
    if isinstance(shape, OnOff):
        return _on_off(shape, rng, until_s)
    if isinstance(shape, Spikes):
        return _spikes(shape, rng, until_s)
    return _campaigns(shape, rng, until_s)


def _even(levels: Floats, every_s: float) -> Steps:
    return Steps(np.arange(len(levels) + 1, dtype=np.float64) * every_s, levels)


def _repeated(levels: Floats, every_s: float, until_s: float) -> Steps:
    relative = levels / levels.mean()
    return _even(np.resize(relative, max(1, ceil(until_s / every_s))), every_s)


def _wander(shape: Wander, rng: np.random.Generator, until_s: float) -> Steps:
    size = max(1, ceil(until_s / shape.every_s))
    if shape.memory == 0.0:
        return _even(rng.gamma(shape.gamma_shape, 1.0 / shape.gamma_shape, size), shape.every_s)
    # Gamma quantiles without SciPy: the shares of the score among a large sorted sample.
    sample = np.sort(rng.gamma(shape.gamma_shape, 1.0 / shape.gamma_shape, 20_001))
    share = normal_cdf(with_memory(rng.standard_normal(size), shape.memory))
    return _even(np.interp(share, np.linspace(0.0, 1.0, len(sample)), sample / sample.mean()), shape.every_s)


def _on_off(shape: OnOff, rng: np.random.Generator, until_s: float) -> Steps:
    burst = (shape.on_s + shape.off_s) / (shape.on_s + shape.quiet * shape.off_s)
    pairs = int(until_s / (shape.on_s + shape.off_s) * 2) + 64
    while True:
        lengths = np.tile([shape.on_s, shape.off_s], pairs)
        if shape.random:
            lengths = lengths * _again(rng).exponential(size=len(lengths))
        edge_s = np.concatenate([[0.0], np.cumsum(lengths)])
        if edge_s[-1] >= until_s:
            return Steps(edge_s, np.tile([burst, burst * shape.quiet], pairs))
        pairs *= 2


def _spikes(shape: Spikes, rng: np.random.Generator, until_s: float) -> Steps:
    # Poisson spikes that overlap merge: a share of exp(-lasting / every) of the time is outside of any.
    outside = float(np.exp(-shape.lasting_s / shape.every_s))
    calm = 1.0 / (outside + (1.0 - outside) * shape.factor)
    start_s = (
        np.sort(rng.random(rng.poisson((until_s + shape.lasting_s) / shape.every_s)) * (until_s + shape.lasting_s))
        - shape.lasting_s
    )
    edge_s = np.unique(np.clip(np.concatenate([[0.0, until_s], start_s, start_s + shape.lasting_s]), 0.0, until_s))
    middle_s = (edge_s[1:] + edge_s[:-1]) / 2
    started = np.searchsorted(start_s, middle_s, side="right")
    ended = np.searchsorted(start_s + shape.lasting_s, middle_s, side="right")
    return Steps(edge_s, np.where(started > ended, shape.factor * calm, calm))


def _campaigns(shape: Campaigns, rng: np.random.Generator, until_s: float) -> Steps:
    hours = max(1, ceil(until_s / 3600.0))
    noise = rng.standard_normal((hours, 2))
    of_day = np.arange(hours) % 24
    wanted = np.asarray(shape.active_share_by_hour)[of_day]
    threshold = normal_quantile(np.clip(wanted, 1e-9, 1 - 1e-9).tolist())
    active = with_memory(np.ascontiguousarray(noise[:, 0]), shape.active_memory) < threshold
    share = normal_cdf(with_memory(np.ascontiguousarray(noise[:, 1]), shape.residual_memory))
    log_count = np.asarray(shape.log_count_by_hour)[of_day] + from_grid(
        share, shape.log_residual_probs, shape.log_residual_q
    )
    count = np.where(active, np.minimum(np.exp(log_count), shape.most_per_hour), 0.0)
    return _even(count / shape.mean_per_hour, 3600.0)
