"""Chance, in named streams: one seed for a run, and an independent generator for each thing that draws.

A new draw in one stream moves no other stream, so adding a feature leaves earlier results as they were. No units.
"""

from __future__ import annotations

from hashlib import sha256

import numpy as np

from inferencegym.ground.errors import ConfigError


def stream(seed: int, name: str) -> np.random.Generator:
    """The generator called `name` of the run with this seed; the same pair gives the same numbers everywhere."""
    if seed < 0:
        raise ConfigError("seed", f"{seed} is negative", allowed="an integer of at least 0")
    # Python's hash() of a string changes from process to process; a digest does not.
    digest = sha256(name.encode()).digest()
    words = np.frombuffer(digest[:16], dtype="<u4").tolist()
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *words])))
