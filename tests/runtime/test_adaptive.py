"""Adaptive limits: within their range always, down when latency rises, up again when it falls, settled near what an engine can do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencegym.runtime.adaptive import Aimd, Gradient, Limiter, make_limiter
from inferencegym.runtime.settings import AdmissionSettings

MAKE = {"aimd": lambda: Aimd(2, 50, None, 16.0), "gradient": lambda: Gradient(2, 50, 16.0)}
kinds = pytest.mark.parametrize("kind", sorted(MAKE))


@kinds
@given(samples=st.lists(st.tuples(st.floats(0, 1e4), st.floats(-1e6, 1e6), st.integers(0, 100)), max_size=200))
def test_never_out_of_range_whatever_the_clock_says(kind, samples):
    limiter = MAKE[kind]()
    for latency_s, now_s, in_flight in samples:
        limiter.sample(latency_s, now_s - latency_s, now_s, in_flight)
        assert 2 <= limiter.limit <= 50


def feed(limiter: Limiter, engine_seats: int, count: int, now_s: float) -> float:
    """An engine that computes so many at once: more in flight make all proportionally slower."""
    for _ in range(count):
        in_flight = int(limiter.limit)
        latency_s = 0.1 * max(1.0, in_flight / engine_seats)
        now_s += latency_s / in_flight
        limiter.sample(latency_s, now_s - latency_s, now_s, in_flight)
    return now_s


@kinds
def test_finds_the_neighbourhood_of_what_the_engine_can_do_and_follows_when_it_changes(kind):
    limiter = MAKE[kind]()
    # The first request finds the engine idle, as after a start.
    limiter.sample(0.1, -0.1, 0.0, 1)
    now_s = feed(limiter, 10, 4000, 0.0)
    at_ten = limiter.limit
    assert 9 <= at_ten <= 40
    now_s = feed(limiter, 3, 4000, now_s)
    assert limiter.limit < at_ten
    feed(limiter, 30, 8000, now_s)
    assert limiter.limit > at_ten


@kinds
def test_does_not_grow_while_it_is_not_used(kind):
    limiter = MAKE[kind]()
    for n in range(1000):
        limiter.sample(0.1, n - 0.1, float(n), 1)
    assert limiter.limit == 16.0


def test_one_slow_burst_costs_one_step_and_a_slow_service_more():
    limiter = Aimd(1, 100, 0.5, 50.0)
    for _ in range(20):
        limiter.sample(1.0, 9.0, 10.0, 50)
    assert limiter.limit == 45.0
    limiter.sample(1.0, 10.5, 11.5, 50)
    assert limiter.limit == 40.5


def test_made_by_name():
    assert make_limiter(AdmissionSettings(), 5.0) is None
    assert isinstance(make_limiter(AdmissionSettings(adaptive="aimd"), 5.0), Aimd)
    gradient = make_limiter(AdmissionSettings(adaptive="gradient", max_limit=4), 5.0)
    assert isinstance(gradient, Gradient)
    assert gradient.limit == 4
