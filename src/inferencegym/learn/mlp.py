"""A small network while it learns: its weights and normalisation as arrays of a policy file, the odds it gives to choices, and how it takes over another's.

Choices stand side by side in parts (six knobs, or the one action of a tick); `offsets` says where each part begins. Arrays are those of
`policies.trained.load`. Tanh between layers, as every network here has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from inferencegym.decision.columns import Float32s
from inferencegym.decision.encodings import AT
from inferencegym.decision.knobs import COLUMNS
from inferencegym.ground.archive import Array
from inferencegym.ground.errors import ConfigError, MissingExtraError
from inferencegym.policies import trained
from inferencegym.policies.catalogue import trained_file

try:
    import torch
    from torch import nn
except ImportError as error:
    raise MissingExtraError("train", "training a network") from error

ACTIVATION = "tanh"
#: Columns of knobs that show what was chosen, or time; they are scaled alike, whatever was seen of them.
_PLAIN = (*COLUMNS.names[AT], "pause_left_s", "window_s", "snapshot_age_s", "episode_fraction")
_PLAIN_SCALE = 2.0
_LEAST_DEVIATION = 0.02
_BARRED = -1e9


class Mlp:
    """Linear layers with tanh between them, on observations less `mean`, times `scale` (float32[k] each)."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """`sizes`: widths from the observation's to the scores'. Torch's own generator draws the first weights: seed it before."""
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        self.net = nn.Sequential(*layers[:-1])
        self.mean, self.scale = np.zeros(sizes[0], np.float32), np.ones(sizes[0], np.float32)

    @property
    def linear(self) -> list[Any]:
        """The layers that have weights, first to last."""
        return [one for one in self.net if isinstance(one, nn.Linear)]

    def inputs(self, observations: Float32s) -> Any:
        """Tensor float32[n, k], normalised."""
        return torch.from_numpy((observations - self.mean) * self.scale)

    def normalise(self, observations: Float32s, surface: str) -> None:
        """Scale from now on by what was seen, float32[n, k]: a column that hardly changes by fifty at most."""
        seen = observations.astype(np.float64)
        deviation = np.maximum(seen.std(axis=0), _LEAST_DEVIATION)
        if surface == "knobs":
            deviation[[COLUMNS.index(name) for name in _PLAIN]] = 1.0 / _PLAIN_SCALE
        self.mean, self.scale = seen.mean(axis=0).astype(np.float32), (1.0 / deviation).astype(np.float32)

    def arrays(self) -> dict[str, Array]:
        """A copy of all that it is."""
        found: dict[str, Array] = {"mean": self.mean.copy(), "scale": self.scale.copy()}
        for i, layer in enumerate(self.linear):
            found[f"w{i}"] = np.ascontiguousarray(layer.weight.detach().numpy().T)
            found[f"b{i}"] = layer.bias.detach().numpy().copy()
        return found

    def put(self, arrays: dict[str, Array]) -> None:
        """Become what `arrays` gave. ValueError if a layer has another shape, KeyError if one is missing."""
        self.mean, self.scale = arrays["mean"].copy(), arrays["scale"].copy()
        put_layers(self.linear, arrays)


def put_layers(layers: Sequence[Any], arrays: dict[str, Array]) -> None:
    """Weights w0, b0, w1, ... of `arrays` into linear layers. ValueError: another shape."""
    with torch.no_grad():
        for i, layer in enumerate(layers):
            weights = arrays[f"w{i}"]
            if weights.shape != tuple(reversed(layer.weight.shape)):
                raise ValueError(f"layer {i} has another shape")
            layer.weight.copy_(torch.from_numpy(weights.T.copy()))
            layer.bias.copy_(torch.from_numpy(arrays[f"b{i}"]))


def log_odds(scores: Any, barred: Any, offsets: Sequence[int]) -> Any:
    """Tensor [n, m]: logarithms of the odds, part by part; `barred` bool[n, m] is what must not be chosen."""
    masked = scores.masked_fill(barred, _BARRED)
    return torch.cat([torch.log_softmax(masked[:, a:b], dim=1) for a, b in pairwise(offsets)], dim=1)


def choices_of(logs: Any, offsets: Sequence[int]) -> Any:
    """Tensor int64[n, parts]: the likeliest choice of each part, counted within it."""
    return torch.stack([logs[:, a:b].argmax(dim=1) for a, b in pairwise(offsets)], dim=1)


def taken_over(start: str, surface: str, head: str, hidden: Sequence[int]) -> dict[str, Array] | None:
    """Arrays of the network in `file:PATH`, which fine-tuning begins with; None if `start` names no file.

    ConfigError for what is no policy file, or a policy of another kind, surface, head, activation or width.
    """
    path = trained_file(start)
    if path is None:
        return None
    trained.load(path)
    notes, arrays = trained.read(path)
    wanted = f"a network on '{surface}' with head '{head}', {ACTIVATION}, hidden {list(hidden)}"
    had = f"a {notes.kind} on '{notes.surface}' with head '{notes.head}'"
    if notes.kind == "network":
        depth = sum(name.startswith("w") for name in arrays)
        had = f"a network on '{notes.surface}' with head '{notes.head}', {notes.activation}, hidden {[arrays[f'b{i}'].size for i in range(depth - 1)]}"
    if had != wanted:
        raise ConfigError("start", f"'{path}' holds {had}", allowed=wanted)
    return arrays
