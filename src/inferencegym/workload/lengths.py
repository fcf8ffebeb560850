"""How long prompts and answers are: fixed, uniform, lognormal or measured laws, with the dependence between the two.
Tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from inferencegym.ground.errors import ConfigError
from inferencegym.workload.chance import correlated, from_grid, normal_cdf, normal_quantile
from inferencegym.workload.spec import FixedLengths, GridLengths, LengthLaw, LognormalLengths, UniformLengths
from inferencegym.workload.workload import Floats, Ints

#: Share of draws of a lognormal law that must fit under its maxima; below that the maxima, not the law, would make
#: the lengths.
_LEAST_FIT = 0.01


class Lengths(NamedTuple):
    """Drawn lengths, and for each request where its prompt stands in the law (0 shortest, 1 longest)."""

    prompt_tokens: Ints
    output_tokens: Ints
    rank: Floats


def draw_lengths(law: LengthLaw, rng: np.random.Generator, size: int) -> Lengths:
    """Lengths of `size` requests."""
    if isinstance(law, FixedLengths):
        whole = np.full(size, law.prompt_tokens), np.full(size, law.output_tokens)
        return Lengths(*whole, rng.random(size))
    if isinstance(law, UniformLengths):
        (least, most), (least_out, most_out) = law.prompt_tokens, law.output_tokens
        prompt = rng.integers(least, most, size, endpoint=True)
        rank = (prompt - least + 0.5) / (most - least + 1)
        return Lengths(prompt, rng.integers(least_out, most_out, size, endpoint=True), rank)
    if isinstance(law, LognormalLengths):
        return _lognormal(law, rng, size)
    return _from_grid(law, rng, size)


def _lognormal(law: LognormalLengths, rng: np.random.Generator, size: int) -> Lengths:
    kept: list[Floats] = []
    missing, drawn = size, 0
    while missing > 0:
        z = rng.standard_normal(missing + 16)
        z_out = correlated(rng, z, law.correlation)
        prompt = _whole(law.prompt_median * np.exp(law.prompt_sigma * z))
        output = _whole(law.output_median * np.exp(law.output_sigma * z_out))
        fits = (prompt <= law.most_prompt_tokens) & (output <= law.most_output_tokens)
        kept.append(np.stack([prompt[fits], output[fits], z[fits]])[:, :missing])
        drawn += len(z)
        missing -= kept[-1].shape[1]
        if drawn - 16 > (size - missing) / _LEAST_FIT + 1000:
            raise ConfigError("lengths", "fewer than 1 % of draws fit under most_prompt_tokens and most_output_tokens")
    if not kept:
        return Lengths(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    prompt, output, z = np.concatenate(kept, axis=1)
    return Lengths(prompt.astype(np.int64), output.astype(np.int64), normal_cdf(z))


def _from_grid(law: GridLengths, rng: np.random.Generator, size: int) -> Lengths:
    u, v = rng.random(size), rng.random(size)
    if law.correlation:
        v = normal_cdf(correlated(rng, normal_quantile(np.clip(u, 1e-12, 1 - 1e-12).tolist()), law.correlation))
    prompt = _whole(from_grid(u, law.prompt_probs, law.prompt_q))
    bin_of = np.minimum((u * len(law.output_q)).astype(np.int64), len(law.output_q) - 1)
    output = np.empty(size)
    for i, quantiles in enumerate(law.output_q):
        here = bin_of == i
        output[here] = from_grid(v[here], law.output_probs, quantiles)
    return Lengths(prompt.astype(np.int64), _whole(output).astype(np.int64), u)


def _whole(tokens: Floats) -> Floats:
    """The nearest whole number of tokens, at least 1: a request without a token is none."""
    return np.maximum(np.rint(tokens), 1.0)
