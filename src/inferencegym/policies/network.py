"""A trained network as a policy: a small multilayer perceptron in NumPy, which acts as its trainer's would, without its trainer.

Scores are x @ w0 + b0, through the activation, and so on; the last layer has none. The observation is normalised first,
(observation - mean) * scale, which is folded into the first layer when the policy is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from inferencegym.decision.columns import Float32s, Masks
from inferencegym.decision.surface import Action
from inferencegym.ground.errors import UnknownNameError
from inferencegym.policies.heads import Head

Layer = tuple[Float32s, Float32s]


def _relu(x: Float32s, out: Float32s) -> Float32s:
    return np.maximum(x, np.float32(0), out=out)


ACTIVATIONS: dict[str, Callable[..., Float32s]] = {"tanh": np.tanh, "relu": _relu}


class NetworkPolicy:
    """Plays the choice that a network scores highest among those that the mask allows. It remembers nothing and draws nothing."""

    def __init__(
        self, surface: str, head: Head, mean: Float32s, scale: Float32s, layers: Sequence[Layer], activation: str, *, name: str = "network"
    ) -> None:  # fmt: skip
        """`mean`, `scale`: float32[k]; `layers`: (weights float32[inputs, outputs], biases float32[outputs]), first to last."""
        if activation not in ACTIVATIONS:
            raise UnknownNameError("activation", activation, tuple(ACTIVATIONS))
        self.surface, self.name, self.head = surface, name, head
        self.activation = activation
        (first, bias), *rest = layers
        # In double precision, or folding would cost a digit.
        folded = scale.astype(np.float64)[:, None] * first
        start = bias - mean.astype(np.float64) @ folded
        self.layers: list[Layer] = [(folded.astype(np.float32), start.astype(np.float32)), *rest]
        self._weights = [np.ascontiguousarray(weights) for weights, _ in self.layers]
        self._biases = [np.ascontiguousarray(biases) for _, biases in self.layers]
        self._buffers = [np.zeros(len(biases), np.float32) for biases in self._biases]

    def start(self, seed: int) -> None:
        """Nothing is left to chance."""
        del seed

    def scores(self, observation: Float32s) -> Float32s:
        """float32[m] for one observation, float32[k]; the array is the policy's own, and the next call's."""
        act = ACTIVATIONS[self.activation]
        x = observation
        last = len(self._buffers) - 1
        for i, out in enumerate(self._buffers):
            np.dot(x, self._weights[i], out=out)
            np.add(out, self._biases[i], out=out)
            x = out if i == last else act(out, out=out)
        return x

    def scores_of(self, observations: Float32s) -> Float32s:
        """float32[n, m] for n observations, float32[n, k]."""
        act = ACTIVATIONS[self.activation]
        x = observations
        for i, (weights, biases) in enumerate(self.layers):
            x = x @ weights + biases
            if i < len(self.layers) - 1:
                x = act(x, out=x)
        return x

    def act(self, observation: Float32s, mask: Masks) -> Action:
        """The best legal action."""
        return self.head.choose(self.scores(observation), observation, mask)
