"""Which scenarios are for training, which for choosing, which for the final test: three ranges of scenario numbers that never meet.

A scenario number is the seed of all chance in an episode; for tasks on real traces it also chooses the window, within the split's part of the trace.
"""

from __future__ import annotations

from inferencegym.ground.errors import ConfigError, UnknownNameError

#: First scenario number of each split; a split is as long as the gap.
SPLITS = {"train": 0, "validation": 1 << 40, "test": 1 << 41}
SPLIT_SIZE = 1 << 40


def scenario(split: str, index: int) -> int:
    """The number of a split's index-th scenario."""
    if split not in SPLITS:
        raise UnknownNameError("split", split, tuple(SPLITS))
    if not 0 <= index < SPLIT_SIZE:
        raise ConfigError("index", f"{index} is out of range", allowed=f"0..{SPLIT_SIZE - 1}")
    return SPLITS[split] + index


def split_of(number: int) -> tuple[str, int]:
    """The split and index of a scenario number."""
    for split, first in SPLITS.items():
        if first <= number < first + SPLIT_SIZE:
            return split, number - first
    raise ConfigError("scenario", f"{number} belongs to no split", allowed="see inferencegym.envs.splits")
