"""Time is converted in one place, to the same bit for one value and for a million, and never overflows in silence."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencegym.ground import units
from inferencegym.ground.errors import ConfigError

SECONDS = st.floats(-units.MAX_S, units.MAX_S)


@given(st.lists(SECONDS))
def test_an_array_is_converted_as_each_of_its_values(seconds):
    array = np.array(seconds, dtype=np.float64)
    converted = units.array_to_ps(array)
    assert converted.dtype == np.int64
    assert converted.tolist() == [units.to_ps(value) for value in seconds]
    assert units.array_to_s(converted).tolist() == [units.to_s(value) for value in converted.tolist()]


@given(st.floats(0, 86_400.0))
def test_a_day_survives_the_round_trip_to_a_picosecond(seconds):
    # A float of a day's seconds is itself only exact to some 1.5e-11 s.
    assert units.to_s(units.to_ps(seconds)) == pytest.approx(seconds, rel=1e-15, abs=0.5e-12)


@given(SECONDS, SECONDS)
def test_conversion_keeps_order(first, second):
    low, high = sorted([first, second])
    assert units.to_ps(low) <= units.to_ps(high)


def test_halves_go_to_even():
    assert [units.to_ps(half * 1e-12) for half in (0.5, 1.5, 2.5, 3.5)] == [0, 2, 2, 4]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e7, -1e300])
def test_what_does_not_fit_the_clock_is_refused_by_name(bad):
    with pytest.raises(ConfigError, match=r"arrival_s: .* allowed: finite, at most"):
        units.to_ps(bad, field="arrival_s")
    with pytest.raises(ConfigError, match=r"arrival_s\[1\]: "):
        units.array_to_ps(np.array([0.0, bad]), field="arrival_s")


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12))
def test_a_shown_number_is_right_to_three_digits(value):
    assert float(units.show_number(value).replace(",", "")) == pytest.approx(value, rel=0.00501, abs=1e-300)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (1234567.8, "1,234,568"), (99.96, "100"), (12.34, "12.3"), (9.996, "10.0"), (1.234, "1.23"),
     (0.9996, "1.00"), (0.1234, "0.123"), (0.1, "0.100"), (-5.678, "-5.68")],
)  # fmt: skip
def test_numbers_are_shown_with_three_digits(value, shown):
    assert units.show_number(value) == shown


def test_a_value_that_is_not_there_is_a_dash():
    assert units.show_ms(None) == units.show_ms(math.nan) == "-"
    assert units.show_ms(0.0123) == "12.3"


@pytest.mark.parametrize(
    ("count", "shown"), [(80 * units.GIB, "80.0 GiB"), (1536, "1.5 KiB"), (5 * units.MIB, "5.0 MiB"), (12, "12 B")]
)
def test_bytes_are_shown_in_binary_units(count, shown):
    assert units.show_bytes(count) == shown
