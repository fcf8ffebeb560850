"""Token buckets under any clock: nothing is minted, nobody is blocked for ever, what is reserved is settled."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencegym.runtime.buckets import Bucket

rates = st.floats(0.01, 1000.0)
bursts = st.floats(1.0, 1000.0)
#: Steps of a clock that may go back by an hour or leap ahead by a year.
ticks = st.lists(st.sampled_from([0.0, 0.001, 0.1, 1.0, 10.0, -0.5, -3600.0, 3.2e7]), min_size=1, max_size=60)


@given(rate=rates, burst=bursts, clock=ticks, amount=st.floats(0.1, 20.0))
def test_no_clock_mints_more_than_the_burst_and_the_time_that_went_forward(rate, burst, clock, amount):
    bucket, now_s, forward_s, taken = Bucket(rate, burst), 1e6, 0.0, 0.0
    for tick in clock:
        now_s += tick
        forward_s += max(0.0, tick)
        if bucket.has(amount, now_s):
            bucket.take(amount, now_s)
            taken += amount
        assert bucket.level <= burst
    assert taken <= (burst + rate * forward_s) * (1 + 1e-6) + 1e-6


@given(rate=rates, burst=bursts, clock=ticks, share=st.floats(0.0, 1.0))
def test_after_any_clock_the_told_wait_is_enough(rate, burst, clock, share):
    bucket, now_s = Bucket(rate, burst), 1e6
    for tick in clock:
        now_s += tick
        if bucket.has(burst, now_s):
            bucket.take(burst, now_s)
    amount = burst * share
    wait_s = bucket.wait_s(amount, now_s)
    assert wait_s <= burst / rate * (1 + 1e-9)
    # A second's worth of rounding: the clock's own steps near 3e8 s are 6e-8 s.
    assert bucket.has(amount, now_s + wait_s + 1e-6)


def test_a_clock_that_goes_back_loses_nothing_and_fills_on_from_there():
    bucket = Bucket(1.0, 10.0)
    bucket.take(10.0, 1000.0)
    assert bucket.fill(1003.0) == 3.0
    assert bucket.fill(0.0) == 3.0
    assert bucket.fill(4.0) == 7.0


@given(reserved=st.floats(0, 50), used=st.floats(0, 500))
def test_settling_leaves_what_was_used(reserved, used):
    bucket = Bucket(1.0, 100.0)
    bucket.take(reserved, 0.0)
    bucket.settle(reserved, used, 0.0)
    assert bucket.level == pytest.approx(min(100.0, 100.0 - used))
    # Debt is paid by time, before anything can be taken again.
    assert bucket.wait_s(1.0, 0.0) == pytest.approx(max(0.0, used - 99.0))


def test_more_than_it_holds_never_fits_and_a_smaller_burst_holds_at_once():
    bucket = Bucket(2.0, 10.0)
    assert bucket.wait_s(11.0, 0.0) == math.inf
    bucket.change(4.0, 5.0, 0.0)
    assert (bucket.level, bucket.wait_s(5.0, 0.0)) == (5.0, 0.0)
    bucket.take(5.0, 0.0)
    assert bucket.full_s(0.0) == 1.25
