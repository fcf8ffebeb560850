"""Encodings of the knobs are bijections where they say so, their masks agree with the surface, and deltas start from what is in force."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencegym.decision.encodings import (
    ENCODINGS,
    BoxKnobs,
    DeltaKnobs,
    MultiDiscreteKnobs,
    PresetKnobs,
    find_encoding,
    in_force,
)
from inferencegym.decision.knobs import COLUMNS, GRID, LEVERS, OFFSETS, check_levers
from inferencegym.envs.encodings import EncodedAction, space_of
from inferencegym.envs.registration import LLMSERVE, PAGEDKV
from inferencegym.ground.errors import ConfigError, UnknownNameError


def seeing(*rows):
    """Observations in which these knobs are in force."""
    natural = np.zeros((len(rows), len(COLUMNS)))
    natural[:, [COLUMNS.index(name) for name in LEVERS]] = rows
    return COLUMNS.encode(natural)


def blank(n):
    return np.zeros((n, len(COLUMNS)), np.float32)


def test_multidiscrete_is_a_bijection_onto_the_whole_grid():
    encoding = MultiDiscreteKnobs()
    assert space_of(encoding).nvec.tolist() == [10, 10, 9, 3, 2, 2]
    indices = np.array(list(itertools.product(*[range(n) for n in (10, 10, 9, 3, 2, 2)])))
    levers = encoding.levers(indices, blank(len(indices)))
    check_levers(levers)
    assert len(np.unique(levers, axis=0)) == 10 * 10 * 9 * 3 * 2 * 2
    np.testing.assert_array_equal(encoding.indices(levers), indices)
    with pytest.raises(ConfigError, match="not on the grid"):
        encoding.indices(np.array([[48, 1.0, 0, 0, 0, 0]]))


def test_presets_are_a_bijection_and_all_in_the_table():
    encoding = PresetKnobs()
    n = int(space_of(encoding).n)
    assert 32 <= n <= 64
    levers = encoding.levers(np.arange(n), blank(n))
    check_levers(levers)
    np.testing.assert_array_equal(encoding.indices(levers), np.arange(n))
    assert len(encoding.table().splitlines()) == n + 2
    for i, name in enumerate(LEVERS):
        assert set(levers[:, i]) <= set(GRID[name])


def test_a_masked_value_masks_the_presets_that_use_it():
    encoding = PresetKnobs()
    mask = np.ones((1, OFFSETS[-1]), np.int8)
    mask[0, OFFSETS[LEVERS.index("prefill_decode_split")] + 1] = 0
    allowed = encoding.mask(mask, blank(1))[0]
    np.testing.assert_array_equal(allowed, encoding.presets[:, LEVERS.index("prefill_decode_split")] == 0)
    assert 0 < allowed.sum() < len(allowed)


def test_deltas_move_one_knob_of_what_is_in_force():
    encoding = DeltaKnobs()
    now = [64, 0.8, 2, 1, 0, 1]
    moved = encoding.levers(np.arange(13), np.repeat(seeing(now), 13, axis=0))
    assert np.isnan(moved[0]).all()
    expected = [32, 128, 0.7, 0.9, 1, 3, 0, 2, 0, 1, 0, 1]
    for action, value in enumerate(expected, start=1):
        knob = (action - 1) // 2
        assert moved[action, knob] == pytest.approx(value)
        assert np.isnan(np.delete(moved[action], knob)).all()


def test_deltas_between_two_grid_values_go_to_the_next_one():
    moved = DeltaKnobs().levers(np.array([1, 2, 3, 4]), np.repeat(seeing([48, 0.85, 2, 1, 0, 1]), 4, axis=0))
    assert moved[:2, 0].tolist() == [32, 64]
    np.testing.assert_allclose(moved[2:, 1], [0.8, 0.9])


def test_deltas_at_the_ends_are_masked_and_keep_the_knob():
    encoding = DeltaKnobs()
    observations = seeing([1, 0.1, 0, 0, 0, 0], [512, 1.0, 8, 2, 1, 1])
    masks = encoding.mask(np.ones((2, OFFSETS[-1]), np.int8), observations)
    assert masks[0].tolist() == [1] + [0, 1] * 6
    assert masks[1].tolist() == [1] + [1, 0] * 6
    assert encoding.levers(np.array([1, 2]), observations)[[0, 1], 0].tolist() == [1, 512]


@given(st.lists(st.integers(0, 12), min_size=30, max_size=30))
def test_walking_by_deltas_stays_on_the_grid(actions):
    encoding = DeltaKnobs()
    now = np.array([[16, 0.5, 4, 1, 0, 0.0]])
    for action in actions:
        moved = encoding.levers(np.array([action]), seeing(now[0]))
        now = np.where(np.isnan(moved), now, moved)
        check_levers(now)
    MultiDiscreteKnobs().indices(now)


@given(st.integers(1, 512), st.integers(10, 100), st.integers(0, 8), st.integers(0, 2), st.booleans(), st.booleans())
def test_the_knobs_in_force_are_read_back_from_an_observation(batch, kv, depth, tier, split, routing):
    levers = [batch, kv / 100, depth, tier, split, routing]
    np.testing.assert_allclose(in_force(seeing(levers))[0], levers, rtol=1e-6)


@given(st.integers(1, 512), st.floats(0.1, 1.0), st.integers(0, 8), st.integers(0, 2), st.booleans(), st.booleans())
def test_box_reaches_every_setting(batch, kv, depth, tier, split, routing):
    levers = np.array([[batch, kv, depth, tier, split, routing]], float)
    encoding = BoxKnobs()
    np.testing.assert_allclose(encoding.levers(encoding.numbers(levers), blank(1)), levers, atol=1e-9)


@given(st.lists(st.floats(-1, 1), min_size=6, max_size=6))
def test_box_never_leaves_the_ranges(numbers):
    check_levers(BoxKnobs().levers(np.array([numbers]), blank(1)))


@pytest.mark.parametrize("bad", [np.full((1, 6), 1.5), np.full((1, 6), np.nan), np.zeros((1, 5))])
def test_box_refuses_what_is_outside(bad):
    with pytest.raises(ConfigError, match=r"-1\.\.1"):
        BoxKnobs().levers(bad, blank(1))


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("multidiscrete", [10, 0, 0, 0, 0, 0]),
        ("multidiscrete", [0.0] * 6),
        ("preset", 60),
        ("preset", -1),
        ("delta", 13),
        ("delta", 1.0),
    ],
)
def test_indices_outside_the_space_are_refused(name, bad):
    with pytest.raises(ConfigError):
        find_encoding(name).levers(np.array([bad]), blank(1))


@pytest.mark.parametrize("name", list(ENCODINGS))
def test_an_encoded_environment_plays(name):
    env = EncodedAction(gym.make(LLMSERVE), name)
    _, info = env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(6):
        mask = info.get("action_mask")
        if name == "multidiscrete":
            assert env.action_masks().shape == (36,)
            action = env.action_space.sample()
            action[4] = 0
        else:
            action = env.action_space.sample(mask=mask) if name in ("preset", "delta") else env.action_space.sample()
        _, _, _, _, info = env.step(action)
    assert (mask is None) == (name == "box")
    twin = pickle.loads(pickle.dumps(env))
    np.testing.assert_array_equal(twin.step(action)[0], env.step(action)[0])
    assert env.spec.make().action_space == env.action_space


def test_a_delta_of_a_wrapped_environment_moves_what_the_engine_has():
    env = EncodedAction(gym.make(LLMSERVE), "delta")
    observation, _ = env.reset(seed=0)
    before = in_force(observation[None])[0]
    observation, *_ = env.step(1)
    after = in_force(observation[None])[0]
    assert after[0] < before[0]
    np.testing.assert_array_equal(after[1:], before[1:])


def test_only_knobs_are_encoded_and_only_by_known_names():
    with pytest.raises(ConfigError, match="LLMServe"):
        EncodedAction(gym.make(PAGEDKV))
    with pytest.raises(UnknownNameError, match="preset"):
        EncodedAction(gym.make(LLMSERVE), "presets")


def test_the_tables_in_the_docs_are_those_of_the_code():
    page = (Path(__file__).resolve().parents[2] / "docs" / "environments" / "encodings.md").read_text()
    assert PresetKnobs().table() in page
    assert DeltaKnobs().table() in page
    for name, kind in ENCODINGS.items():
        assert f"`{name}` (v{kind.version})" in page
