"""What each column of an observation adds to a network's choice: integrated gradients, which sum to what they explain.

Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks": column i gets (x - x0)_i times the mean of the output's derivative by
it on the straight path from a baseline x0 to the observation x. Explained is the chosen choice's score above the mean score of its part (its
knob, or all of paging's actions), since a network's scores mean nothing but by comparison. In double precision, NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inferencegym.decision.columns import Float32s, Floats, Masks
from inferencegym.decision.encodings import find_encoding
from inferencegym.decision.knobs import LEVERS
from inferencegym.policies.network import Layer, NetworkPolicy
from inferencegym.policies.simple import surface_of

#: Nodes of the first Gauss-Legendre rule; it is doubled until every sum is met, or until there are the most.
_NODES, _MOST_NODES = 16, 1024
#: How far the attributions may sum from what they explain, over the largest difference explained.
TOLERANCE = 1e-6
Weights = list[tuple[Floats, Floats]]


@dataclass(frozen=True, slots=True)
class Attribution:
    """What one column adds."""

    column: str
    unit: str
    share: float
    """Of all that columns add, signs aside; shares sum to 1."""
    by_knob: dict[str, float]
    """Mean size of what it adds to the choice of each knob that moves (`action` on paging, `command` of a list), in units of the score."""


@dataclass(frozen=True, slots=True)
class Attributions:
    """The columns of one network's decisions, those that add most first."""

    decisions: int
    """That were looked at."""
    residual: float
    """How far the attributions of a decision sum from its score's difference to the baseline's, at worst, over the largest such difference."""
    columns: tuple[Attribution, ...]


def attributions(policy: NetworkPolicy, observations: Float32s, masks: Masks) -> Attributions:
    """Attribute what a network chose on n observations to their k columns; the baseline is their mean.

    observations : float32[n, k]
    masks : int8[n, m], what was allowed
    """
    x = observations.astype(np.float64)
    baseline = x.mean(axis=0)
    chosen = chosen_scores(policy, observations, masks)
    sizes: dict[str, Floats] = {}
    worst = 0.0
    for i, part in enumerate(_parts(policy)):
        # A knob that never moves hangs on nothing.
        if np.ptp(chosen[:, i]) > 0:
            found, differences = integrated(policy, x, baseline, contrast(policy, chosen[:, i]))
            sizes[part] = np.abs(found).mean(axis=0)
            worst = max(worst, _residual(found, differences))
    columns = surface_of(policy.surface).columns
    total: Floats = np.sum(list(sizes.values()), axis=0) if sizes else np.zeros(len(columns))
    whole = float(total.sum())
    rows = [
        Attribution(column.name, column.unit, float(total[i]) / whole, {part: float(size[i]) for part, size in sizes.items()})
        for i, column in enumerate(columns)
        if total[i] > 0.0
    ]  # fmt: skip
    return Attributions(len(x), worst, tuple(sorted(rows, key=lambda one: -one.share)))


def chosen_scores(policy: NetworkPolicy, observations: Float32s, masks: Masks) -> npt.NDArray[np.int64]:
    """int64[n, parts]: the number, among all scores, of the one that each part of n actions was chosen by."""
    sizes = policy.head.sizes
    legal = masks if policy.surface == "paging" else find_encoding(policy.head.name).mask(masks, observations)
    assert legal is not None, "a network scores choices, and choices have a mask"
    scores = np.where(legal, policy.scores_of(observations), -np.inf)
    starts = np.cumsum([0, *sizes[:-1]])
    return np.stack([start + scores[:, start : start + size].argmax(axis=1) for start, size in zip(starts, sizes, strict=True)], axis=1)  # fmt: skip


def _parts(policy: NetworkPolicy) -> tuple[str, ...]:
    """What each part of an action is called."""
    if policy.surface == "paging":
        return ("action",)
    return LEVERS if len(policy.head.sizes) == len(LEVERS) else ("command",)


def contrast(policy: NetworkPolicy, chosen: npt.NDArray[np.int64]) -> Floats:
    """float64[n, m]: weights of the m scores whose sum is the chosen score above the mean of its part. `chosen`: numbers of scores, int64[n]."""
    ends = np.cumsum(policy.head.sizes)
    parts = np.repeat(np.arange(len(ends)), policy.head.sizes)
    same = parts[None, :] == parts[chosen][:, None]
    found: Floats = same / -same.sum(axis=1, keepdims=True)
    found[np.arange(len(chosen)), chosen] += 1.0
    return found


def integrated(policy: NetworkPolicy, x: Floats, baseline: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """(attributions, float64[n, k]; the differences that they sum to, float64[n]) of n weighted sums of scores.

    x : float64[n, k], observations
    baseline : float64[k]
    weights : float64[n, m], of the m scores in the sum of each row

    Of tanh the integral is a Gauss-Legendre sum, of as many nodes as it takes. Of ReLU it is exact: the path is cut where a unit switches,
    and between two cuts the gradient does not change.
    """
    layers = _double(policy.layers)
    differences: Floats = ((_forward(layers, x, policy.activation) - _forward(layers, baseline[None], policy.activation)) * weights).sum(axis=1)  # fmt: skip
    if policy.activation == "relu":
        steps = [_piecewise(layers, row, baseline, weight) for row, weight in zip(x, weights, strict=True)]
        return (x - baseline) * np.stack(steps), differences
    nodes = _NODES
    found: Floats = np.zeros_like(x)
    rows = np.arange(len(x))
    scale = max(float(np.abs(differences).max()), np.finfo(np.float64).tiny)
    while len(rows):
        found[rows] = (x[rows] - baseline) * _gauss(layers, x[rows], baseline, weights[rows], nodes)
        off = np.abs(found[rows].sum(axis=1) - differences[rows]) > TOLERANCE * scale
        if nodes >= _MOST_NODES:
            break
        rows, nodes = rows[off], 2 * nodes
    return found, differences


def _gauss(layers: Weights, x: Floats, baseline: Floats, weights: Floats, nodes: int) -> Floats:
    """Mean gradient along each row's path, float64[n, k], of a tanh network."""
    places, shares = np.polynomial.legendre.leggauss(nodes)
    total: Floats = np.zeros_like(x)
    for place, share in zip(places.tolist(), shares.tolist(), strict=True):
        at = baseline + 0.5 * (place + 1.0) * (x - baseline)
        slopes = []
        for matrix, bias in layers[:-1]:
            at = np.tanh(at @ matrix + bias)
            slopes.append(1.0 - at * at)
        total += 0.5 * share * _back(layers, weights, slopes)
    return total


def _piecewise(layers: Weights, x: Floats, baseline: Floats, weight: Floats) -> Floats:
    """Mean gradient along one path, float64[k], of a ReLU network."""
    cuts: Floats = np.array([0.0, 1.0])
    for depth in range(1, len(layers)):
        ends = _before(layers[:depth], baseline + cuts[:, None] * (x - baseline))
        # Up to this layer everything is linear between two cuts, so a unit that changes sign does it at one place.
        first, last = ends[:-1], ends[1:]
        piece, unit = np.nonzero(first * last < 0.0)
        share = first[piece, unit] / (first[piece, unit] - last[piece, unit])
        cuts = np.unique(np.concatenate([cuts, cuts[piece] + share * (cuts[piece + 1] - cuts[piece])]))
    at = baseline + 0.5 * (cuts[:-1] + cuts[1:])[:, None] * (x - baseline)
    slopes = []
    for matrix, bias in layers[:-1]:
        at = at @ matrix + bias
        slopes.append((at > 0.0).astype(np.float64))
        at = np.maximum(at, 0.0)
    gradients = _back(layers, np.broadcast_to(weight, (len(at), len(weight))), slopes)
    found: Floats = np.diff(cuts) @ gradients
    return found


def _before(layers: Weights, x: Floats) -> Floats:
    """What comes into the last of some layers' units, float64[n, units], of a ReLU network."""
    for matrix, bias in layers[:-1]:
        x = np.maximum(x @ matrix + bias, 0.0)
    matrix, bias = layers[-1]
    found: Floats = x @ matrix + bias
    return found


def _back(layers: Weights, weights: Floats, slopes: Sequence[Floats]) -> Floats:
    """Gradient of the weighted scores by the observation, float64[n, k]. `slopes`: of each hidden layer's units, float64[n, units]."""
    gradient: Floats = weights @ layers[-1][0].T
    for (matrix, _), slope in zip(layers[-2::-1], slopes[::-1], strict=True):
        gradient = (gradient * slope) @ matrix.T
    return gradient


def _forward(layers: Weights, x: Floats, activation: str) -> Floats:
    for matrix, bias in layers[:-1]:
        x = x @ matrix + bias
        x = np.maximum(x, 0.0) if activation == "relu" else np.tanh(x)
    matrix, bias = layers[-1]
    found: Floats = x @ matrix + bias
    return found


def _double(layers: Sequence[Layer]) -> Weights:
    return [(matrix.astype(np.float64), bias.astype(np.float64)) for matrix, bias in layers]


def _residual(found: Floats, differences: Floats) -> float:
    largest = float(np.abs(differences).max())
    return float(np.abs(found.sum(axis=1) - differences).max()) / largest if largest else 0.0
