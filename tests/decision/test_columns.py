"""Columns: what is encoded decodes to itself within the range, saturates beyond it, and is 0 where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencegym.decision.columns import Column, Columns
from inferencegym.decision.knobs import COLUMNS
from inferencegym.ground.errors import ConfigError

MIXED = Columns(
    [
        Column("share", "share", 0, 1, "linear from zero"),
        Column("queue", "requests", 0, 10_000, "log", log=True),
        Column("trend", "requests/s", -50, 200, "signed"),
        Column("age", "s", 10, 20, "linear from above zero"),
    ]
)


@pytest.mark.parametrize("columns", [MIXED, COLUMNS], ids=["mixed", "knobs"])
@given(data=st.data())
def test_within_the_range_decoding_is_the_inverse(columns: Columns, data: st.DataObject) -> None:
    values = np.array([data.draw(st.floats(c.low, c.high)) for c in columns])
    encoded = columns.encode(values)
    assert encoded.dtype == np.float32
    assert ((encoded >= columns.low) & (encoded <= columns.high)).all()
    # float32 keeps 2^-24 of the span, of the logarithm where the scale is one.
    back = columns.decode(encoded)
    for column, value, found in zip(columns, values, back, strict=True):
        span = np.log1p(column.high) * (1 + value) if column.log else max(column.high, -column.low) - min(column.low, 0)
        assert abs(found - value) <= 1e-7 * span + 1e-12, column.name


def test_by_hand() -> None:
    encoded = MIXED.encode(np.array([0.25, 99.0, -50.0, 15.0]))
    assert encoded.tolist() == pytest.approx([0.25, np.log(100) / np.log(10_001), -0.25, 0.5])
    assert MIXED.low.tolist() == [0, 0, -1, 0]
    assert MIXED.high.tolist() == [1, 1, 1, 1]


def test_ends_of_the_range_are_the_ends_of_the_code() -> None:
    for columns in (MIXED, COLUMNS):
        top = columns.encode(columns.natural_high)
        assert top.tolist() == [1.0] * len(columns)
        assert columns.decode(top) == pytest.approx(columns.natural_high)
        unsigned = columns.natural_low >= 0
        assert (columns.encode(columns.natural_low)[unsigned] == 0).all()


def test_beyond_the_range_values_saturate_and_what_does_not_exist_is_zero() -> None:
    assert MIXED.encode(np.array([7.0, 1e9, -1e9, 21.0])).tolist() == [1, 1, -1, 1]
    assert MIXED.encode(np.array([-7.0, -1e9, 1e9, 9.0])).tolist() == [0, 0, 1, 0]
    assert MIXED.encode(np.full(4, np.inf)).tolist() == [1, 1, 1, 1]
    assert MIXED.encode(np.full(4, -np.inf)).tolist() == [0, 0, -1, 0]
    assert MIXED.encode(np.full(4, np.nan)).tolist() == [0, 0, 0, 0]


def test_rows_are_encoded_like_single_observations() -> None:
    rng = np.random.default_rng(1)
    values = rng.uniform(-100, 300, (5, 3, len(MIXED)))
    encoded = MIXED.encode(values)
    assert encoded.shape == values.shape
    assert np.array_equal(encoded[2, 1], MIXED.encode(values[2, 1]))
    assert np.array_equal(MIXED.decode(encoded)[4, 0], MIXED.decode(encoded[4, 0]))


def test_encoding_leaves_the_values_alone() -> None:
    values = np.array([np.nan, 20_000.0, 1.0, 12.0])
    before = values.copy()
    MIXED.encode(values)
    assert np.array_equal(values, before, equal_nan=True)


def test_columns_are_found_by_name_and_read_by_people() -> None:
    assert (MIXED.index("trend"), len(MIXED), MIXED[1].unit) == (2, 4, "requests")
    assert MIXED.read(MIXED.encode(np.array([0.5, 0.0, 100.0, 10.0]))) == {"share": 0.5, "queue": 0.0, "trend": 100.0, "age": 10.0}  # fmt: skip
    with pytest.raises(ConfigError, match=r"there is no 'trends'.*share, queue, trend, age"):
        MIXED.index("trends")
    table = MIXED.table()
    assert all(f"`{c.name}` | {c.unit} | {c.low:g} to {c.high:g}" in table for c in MIXED)


@pytest.mark.parametrize(("low", "high", "log"), [(1, 1, False), (2, 1, False), (1, 5, True), (-1, 5, True), (float("nan"), 1, False)])  # fmt: skip
def test_ranges_that_make_no_sense_are_refused(low: float, high: float, log: bool) -> None:
    with pytest.raises(ConfigError, match="low < high"):
        Column("x", "s", low, high, "what", log=log)


def test_two_columns_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="same name"):
        Columns([Column("x", "s", 0, 1, "one"), Column("x", "s", 0, 2, "two")])
