"""The surface `knobs`: commands as words, numbers and JSON are one and the same, and what is wrong is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencegym.decision.knobs import (  # fmt: skip
    COLUMNS,
    GRID,
    LEVERS,
    OFFSETS,
    QUANTIZATION_TIERS,
    RANGES,
    Knobs,
    KnobsSurface,
    check_levers,
)
from inferencegym.decision.snapshot import NAMES, Snapshot
from inferencegym.decision.surface import Surface, as_mask
from inferencegym.ground.errors import ConfigError

SURFACE = KnobsSurface()
ALL = np.ones(SURFACE.mask_size, np.int8)

commands = st.builds(
    Knobs,
    batch_cap=st.none() | st.integers(1, 512),
    kv_budget_fraction=st.none() | st.floats(0.1, 1.0),
    speculation_depth=st.none() | st.integers(0, 8),
    quantization_tier=st.none() | st.sampled_from(QUANTIZATION_TIERS),
    prefill_decode_split=st.none() | st.booleans(),
    priority_routing=st.none() | st.booleans(),
)
whole_commands = commands.filter(lambda knobs: len(knobs.given()) == len(LEVERS))


# --- one command in many forms ----------------------------------------------------------------------------------------


@given(commands)
def test_levers_and_back(knobs: Knobs) -> None:
    levers = knobs.levers()
    assert (levers.shape, levers.dtype) == ((6,), np.float64)
    assert Knobs.of(levers) == knobs
    assert np.array_equal(Knobs.of(levers).levers(), levers, equal_nan=True)
    assert set(knobs.given()) == {name for name, value in zip(LEVERS, levers, strict=True) if not np.isnan(value)}
    check_levers(levers)


@given(commands)
def test_the_surface_takes_every_form_of_a_command(knobs: Knobs) -> None:
    levers = knobs.levers()
    forms: list[Any] = [knobs, knobs.given(), json.loads(json.dumps(knobs.given()))]
    if len(knobs.given()) == len(LEVERS):
        forms += [levers, levers.tolist(), tuple(levers)]
    for form in forms:
        assert np.array_equal(SURFACE.dense(form), levers, equal_nan=True)
    assert SURFACE.action(SURFACE.dense(knobs)) == knobs


@given(commands.filter(lambda knobs: knobs.given()), st.sampled_from(["{}", "Let me think.\n{}\nThat is all.", 'First {{"batch": 3}}, no: {}', "```json\n{}\n```"]))  # fmt: skip
def test_an_answer_in_words_is_read(knobs: Knobs, phrase: str) -> None:
    assert SURFACE.parse(phrase.format(json.dumps(knobs.given(), indent=1))) == knobs


def test_the_last_object_counts() -> None:
    assert SURFACE.parse('{"batch_cap": 8} ... better: {"batch_cap": 16}') == Knobs(batch_cap=16)


def test_samples_of_the_dict_space_are_commands() -> None:
    """As `gymnasium.spaces.Dict` draws them: NumPy numbers and arrays of one."""
    space = gymnasium.spaces.Dict(
        {
            "batch_cap": gymnasium.spaces.Discrete(512, start=1),
            "kv_budget_fraction": gymnasium.spaces.Box(0.1, 1.0, (1,), np.float64),
            "speculation_depth": gymnasium.spaces.Discrete(9),
            "quantization_tier": gymnasium.spaces.Discrete(3),
            "prefill_decode_split": gymnasium.spaces.Discrete(2),
            "priority_routing": gymnasium.spaces.Discrete(2),
        },
        seed=3,
    )
    for _ in range(50):
        sample = space.sample()
        levers = SURFACE.dense(sample)
        assert levers.tolist() == [float(np.asarray(sample[name]).item()) for name in LEVERS]
        check_levers(levers)
        Knobs.of(levers)


@given(st.data())
def test_every_point_of_the_grid_is_a_command(data: st.DataObject) -> None:
    levers = np.array([data.draw(st.sampled_from(GRID[name])) for name in LEVERS])
    assert np.array_equal(SURFACE.dense(levers), levers)
    assert SURFACE.legal(levers, ALL)
    for name, (low, high) in RANGES.items():
        assert (min(GRID[name]), max(GRID[name])) == (low, high)


def test_ends_of_the_ranges_are_allowed() -> None:
    for name, (low, high) in RANGES.items():
        for value in (low, high):
            number = value if name == "kv_budget_fraction" else int(value)
            assert Knobs(**{name: number}).given() == {name: number}  # type: ignore[arg-type]


# --- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"batch_cap": 0}, r"batch_cap.*1\.\.512"),
        ({"batch_cap": 513}, r"batch_cap.*1\.\.512"),
        ({"batch_cap": 2.5}, "batch_cap.*whole number"),
        ({"batch_cap": True}, "batch_cap.*True"),
        ({"batch_cap": "64"}, "batch_cap.*'64'"),
        ({"batch_cap": float("nan")}, "batch_cap.*nan"),
        ({"batch_cap": float("inf")}, "batch_cap.*inf"),
        ({"kv_budget_fraction": 0.05}, r"kv_budget_fraction.*0\.1\.\.1"),
        ({"kv_budget_fraction": 1.01}, r"kv_budget_fraction.*0\.1\.\.1"),
        ({"kv_budget_fraction": float("nan")}, "kv_budget_fraction.*nan"),
        ({"speculation_depth": 9}, r"speculation_depth.*0\.\.8"),
        ({"speculation_depth": -1}, r"speculation_depth.*0\.\.8"),
        ({"quantization_tier": "FP8"}, "quantization_tier.*'FP8'.*FP16, INT8, INT4"),
        ({"quantization_tier": 1}, "quantization_tier.*FP16, INT8, INT4"),
        ({"prefill_decode_split": 1}, "prefill_decode_split.*true, false"),
        ({"priority_routing": "yes"}, "priority_routing.*true, false"),
    ],
)
def test_a_wrong_command_is_refused_by_name(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Knobs(**given)


@pytest.mark.parametrize(
    ("action", "says"),
    [
        ({"batch": 3}, "there is no knob 'batch'.*batch_cap"),
        ({"batch_cap": 1000}, r"batch_cap.*1\.\.512"),
        ({"batch_cap": 3.5}, "batch_cap.*3.5"),
        ({"batch_cap": "big"}, "batch_cap.*'big'"),
        ({"batch_cap": float("nan")}, "batch_cap.*nan"),
        ({"batch_cap": np.array([1, 2])}, "batch_cap.*not one"),
        ({"batch_cap": []}, "batch_cap.*not one"),
        ({"batch_cap": {"value": 3}}, "batch_cap.*not one"),
        ({"quantization_tier": "int8"}, "quantization_tier.*FP16, INT8, INT4"),
        ({"quantization_tier": 3}, r"quantization_tier.*0\.\.2"),
        ({"prefill_decode_split": 2}, r"prefill_decode_split.*0\.\.1"),
        ({"kv_budget_fraction": 0}, r"kv_budget_fraction.*0\.1\.\.1"),
        ([1, 2, 3], "six numbers"),
        (7, "six numbers"),
        (None, "six numbers"),
        ([64, np.nan, 0, 0, 0, 0], "kv_budget_fraction is NaN"),
        ([64, 0.5, 0, 0.5, 0, 0], "quantization_tier.*0.5"),
        ([64, 0.5, 9, 0, 0, 0], r"speculation_depth.*0\.\.8"),
        ([64, np.inf, 0, 0, 0, 0], "kv_budget_fraction"),
    ],
)
def test_a_wrong_action_is_refused_by_name(action: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SURFACE.dense(action)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("I would rather not.", "no JSON object"),
        ("{batch_cap: 3}", "no JSON object"),
        ('{"temperature": 0.7}', "no JSON object"),
        ('{"batch_cap": 9999}', r"1\.\.512"),
        ('{"batch_cap": NaN}', "batch_cap"),
        ('{"batch_cap": 8, "cap": 3}', "there is no knob 'cap'"),
        ('{"quantization_tier": "FP32"}', "FP16, INT8, INT4"),
    ],
)
def test_a_wrong_answer_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SURFACE.parse(text)


def test_levers_out_of_range_are_named_in_any_row() -> None:
    levers = np.tile(np.array([64, 0.5, 2, 1, 0, 1.0]), (4, 1))
    check_levers(levers)
    levers[2, 3] = 5
    with pytest.raises(ConfigError, match=r"quantization_tier.*5 is out of range.*0\.\.2"):
        check_levers(levers)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SURFACE.dense({"batch_cap": True}), "batch_cap.*True"),
        (lambda: SURFACE.dense({"kv_budget_fraction": np.True_}), "kv_budget_fraction.*True"),
        (lambda: SURFACE.dense({"quantization_tier": False}), "quantization_tier.*False"),
        (lambda: SURFACE.parse('{"batch_cap": true}'), "batch_cap.*True"),
        (lambda: SURFACE.dense({"prefill_decode_split": "true"}), "prefill_decode_split.*true, false"),
        (lambda: SURFACE.dense([64, "half", 0, 0, 0, 0]), "six numbers"),
        (lambda: SURFACE.dense(["64", "0.5", "0", "0", "0", "0"]), "six numbers"),
        (lambda: SURFACE.dense("more"), "six numbers"),
        (lambda: SURFACE.dense({3: 1, "cap": 2}), "there is no knob '3'"),
        (lambda: Knobs(batch_cap=np.True_), "batch_cap.*True"),
        (lambda: Knobs(batch_cap=[8]), r"batch_cap.*\[8\]"),
        (lambda: Knobs(kv_budget_fraction={}), "kv_budget_fraction"),
    ],
)
def test_values_of_a_wrong_type_are_refused_by_name(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()


# --- the mask ---------------------------------------------------------------------------------------------------------


def masked(**allowed: list[float]) -> np.ndarray:
    mask = []
    for name, values in GRID.items():
        mask += [value in allowed.get(name, list(values)) for value in values]
    return as_mask(mask)


def test_the_mask_has_a_place_for_every_choice() -> None:
    assert SURFACE.mask_size == sum(map(len, GRID.values())) == OFFSETS[-1]
    assert masked().dtype == np.int8
    assert masked().tolist() == ALL.tolist()
    assert tuple(GRID) == LEVERS


def test_the_mask_forbids_what_it_says_and_allows_the_rest() -> None:
    no_split = masked(prefill_decode_split=[0.0])
    assert SURFACE.legal(Knobs(prefill_decode_split=False, batch_cap=37), no_split)
    assert SURFACE.legal(Knobs(batch_cap=37), no_split)
    assert not SURFACE.legal(Knobs(prefill_decode_split=True), no_split)
    small = masked(batch_cap=[4.0, 8.0, 16.0])
    assert [SURFACE.legal({"batch_cap": cap}, small) for cap in (3, 4, 11, 16, 17)] == [False, True, True, True, False]
    none = masked(batch_cap=[])
    assert not SURFACE.legal({"batch_cap": 4}, none)
    assert SURFACE.legal({"speculation_depth": 4}, none)


# --- words ------------------------------------------------------------------------------------------------------------


def test_the_description_names_every_column_with_its_unit_and_every_allowed_choice() -> None:
    values = COLUMNS.natural_low + 0.25 * (COLUMNS.natural_high - COLUMNS.natural_low)
    text = SURFACE.describe(COLUMNS.encode(values), masked(prefill_decode_split=[0.0], quantization_tier=[0.0, 1.0], batch_cap=[8.0, 16.0]))  # fmt: skip
    lines = text.splitlines()
    for column, value in zip(COLUMNS, values, strict=True):
        mine = [line for line in lines if line.startswith(f"- {column.name}: ") and column.what in line]
        assert len(mine) == 1
        shown, rest = mine[0].removeprefix(f"- {column.name}: ").split(" ", 1)
        assert float(shown) == pytest.approx(value, rel=2e-3)
        assert rest.startswith(column.unit)
    assert "- batch_cap: 8 to 16" in lines
    assert "- kv_budget_fraction: 0.1 to 1" in lines
    assert "- quantization_tier: FP16, INT8" in lines
    assert "- prefill_decode_split: false" in lines
    assert "- priority_routing: false, true" in lines


def test_it_is_a_surface_whose_columns_are_a_snapshot() -> None:
    surface: Surface = SURFACE
    assert (surface.name, surface.cadence) == ("knobs", "window")
    assert COLUMNS.names == NAMES
    snapshot = Snapshot.of(np.arange(len(NAMES), dtype=np.float64))
    assert snapshot.values().tolist() == list(range(len(NAMES)))
    blank = Snapshot(queue_depth=0, active_requests=0, kv_cache_occupancy=0)
    assert np.isfinite(COLUMNS.encode(blank.values())).all()
    assert np.array_equal(Snapshot.of(blank.values()).values(), blank.values(), equal_nan=True)
