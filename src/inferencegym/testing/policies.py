"""`check_policy`: whether a policy keeps its promises. Shown situations are drawn at random within the surface's ranges.

It acts legally under any mask, repeats itself for the same seed, forgets the last episode at `start`, leaves what it is shown alone, owns
what it answers, and can be sent to another process in the middle of an episode.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from inferencegym.decision.columns import Float32s, Masks
from inferencegym.decision.knobs import GRID, OFFSETS
from inferencegym.decision.policy import Policy
from inferencegym.decision.surface import Surface
from inferencegym.ground.rng import stream
from inferencegym.policies.simple import surface_of

STEPS = 40


class PolicyError(AssertionError):
    """A promise that a policy breaks."""


def check_policy(make: Callable[[], Policy], *, situations: int = STEPS, seed: int = 0) -> None:
    """Raise PolicyError with the first broken promise. `make` makes a fresh policy; `situations`: how many it is shown in a row."""
    policy = make()
    _check_shape(policy)
    surface = surface_of(policy.surface)
    shown = [_situation(surface, seed, i) for i in range(situations)]
    first = _play(policy, surface, shown, seed=1)
    _same(first, _play(make(), surface, shown, seed=1), "two fresh policies with the same seed act differently")
    _same(first, _play(policy, surface, shown, seed=1), "start() does not forget the last episode")
    _play(policy, surface, shown[::-1], seed=2)
    _same(first, _play(policy, surface, shown, seed=1), "start() does not forget an episode of another kind")
    half = situations // 2
    policy.start(1)
    for observation, mask in shown[:half]:
        policy.act(observation.copy(), mask.copy())
    for way, twin in (("pickled", pickle.loads(pickle.dumps(policy))), ("copied", copy.deepcopy(policy))):
        rest = [_act(twin, surface, *situation) for situation in shown[half:]]
        _same(first[half:], rest, f"a policy {way} in the middle of an episode goes on differently")


def _check_shape(policy: Policy) -> None:
    for part, kind in (("name", str), ("surface", str)):
        if not isinstance(getattr(policy, part, None), kind):
            raise PolicyError(f"has no {part} (a string)")
    for method in ("start", "act"):
        if not callable(getattr(policy, method, None)):
            raise PolicyError(f"has no method {method}")


def _situation(surface: Surface, seed: int, i: int) -> tuple[Float32s, Masks]:
    """A random observation within the surface's range and a mask that leaves a choice everywhere."""
    rng = stream(seed, f"check_policy.{i}")
    low, high = surface.columns.low, surface.columns.high
    observation = (low + rng.random(len(low)) * (high - low)).astype(np.float32)
    mask = (rng.random(surface.mask_size) < 0.5).astype(np.int8)
    if surface.name == "knobs":
        # As engines mask: all but the split, where there are too few replicas for it.
        mask[:] = 1
        split = list(GRID).index("prefill_decode_split")
        mask[OFFSETS[split] + 1] = rng.random() < 0.5
    else:
        # As a pool masks: the largest idle cache is there when the oldest is, and what can be swapped can be dropped.
        mask[4:8] = (mask & np.roll(mask, -2))[4:8]
        mask[6:8] = mask[4:6]
        mask[0:4] = np.maximum(np.tile(mask[0:2], 2), mask[4:8])
        mask[12:14] = np.maximum(mask[12:14], mask[14:16])
        mask[-1] = 1
    return observation, mask


def _play(policy: Policy, surface: Surface, shown: Sequence[tuple[Float32s, Masks]], seed: int) -> list[Any]:
    policy.start(seed)
    return [_act(policy, surface, observation, mask) for observation, mask in shown]


def _act(policy: Policy, surface: Surface, observation: Float32s, mask: Masks) -> Any:
    """The dense action, after all that one answer promises has been checked."""
    seen, allowed = observation.copy(), mask.copy()
    seen.setflags(write=False)
    allowed.setflags(write=False)
    try:
        action = policy.act(seen, allowed)
    except ValueError as error:
        if "read-only" in str(error):
            raise PolicyError(f"changes what it is shown: {error}") from error
        raise
    dense = surface.dense(action)
    if not surface.legal(action, mask):
        raise PolicyError(f"took {action!r}, which the mask forbids")
    return dense.copy()


def _same(expected: Sequence[Any], got: Sequence[Any], problem: str) -> None:
    for i, (a, b) in enumerate(zip(expected, got, strict=True)):
        if not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            raise PolicyError(f"{problem}: situation {i}, {a} and {b}")
