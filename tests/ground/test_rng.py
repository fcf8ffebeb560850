"""Streams repeat from their seed and name, and do not share numbers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from inferencegym.ground.errors import ConfigError
from inferencegym.ground.rng import stream

SEEDS = st.integers(0, 2**63)


@given(SEEDS, st.text())
def test_the_same_seed_and_name_give_the_same_numbers(seed, name):
    assert (stream(seed, name).random(8) == stream(seed, name).random(8)).all()


@given(SEEDS, st.text(), SEEDS, st.text())
def test_another_seed_or_name_gives_other_numbers(seed, name, other_seed, other_name):
    assume((seed, name) != (other_seed, other_name))
    assert (stream(seed, name).random(8) != stream(other_seed, other_name).random(8)).any()


def test_streams_are_not_correlated():
    first, second = stream(7, "arrivals").normal(size=20_000), stream(7, "lengths").normal(size=20_000)
    # Four standard errors of a correlation of 20,000 independent pairs.
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(20_000)


def test_another_process_draws_the_same():
    code = "from inferencegym.ground.rng import stream; print(stream(3, 'arrivals').integers(0, 2**62))"
    # Python salts its own hash of strings in each process; the stream must not.
    answers = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert answers == {f"{stream(3, 'arrivals').integers(0, 2**62)}\n"}


def test_a_negative_seed_is_refused():
    with pytest.raises(ConfigError, match=r"seed: -1 is negative; allowed: an integer of at least 0"):
        stream(-1, "arrivals")
