"""A request meets its SLO if it completed and each given limit of its class holds; no other way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencegym.ground.errors import ConfigError
from inferencegym.metrics.record import Outcome, Records
from inferencegym.metrics.slo import Slo, SloTable, attainment, goodput_rps, judge
from tests.metrics.strategies import CLASSES, records

LIMIT = st.none() | st.floats(0.001, 300)
SLOS = st.builds(Slo, ttft_s=LIMIT, tpot_s=LIMIT, e2e_s=LIMIT)
NAMES = ("chat", "batch", "agent")
TABLES = st.builds(SloTable, default=SLOS, by_class=st.dictionaries(st.sampled_from(NAMES), SLOS))
assert len(NAMES) == CLASSES


def meets(made: Records, row: int, slo: Slo) -> bool:
    """The definition, for one row, in plain Python."""
    if made.outcome[row] != Outcome.OK:
        return False
    if slo.ttft_s is not None and made.first_token_s[row] - made.arrival_s[row] > slo.ttft_s:
        return False
    if slo.e2e_s is not None and made.finish_s[row] - made.arrival_s[row] > slo.e2e_s:
        return False
    if slo.tpot_s is None or made.output_tokens[row] < 2:
        return True
    return (made.finish_s[row] - made.first_token_s[row]) / (made.output_tokens[row] - 1) <= slo.tpot_s


@given(records(), SLOS)
def test_met_is_the_definition_row_by_row(made, slo):
    assert slo.met(made).tolist() == [meets(made, row, slo) for row in range(len(made))]


@given(records(), TABLES)
def test_each_request_is_judged_by_its_class(made, table):
    judged, met = judge(made, table, NAMES)
    slos = [table.of(NAMES[code]) for code in made.slo_class]
    assert judged.tolist() == [bool(slo) for slo in slos]
    assert met.tolist() == [bool(slo) and meets(made, row, slo) for row, slo in enumerate(slos)]


@given(records(), TABLES, st.floats(0.1, 1000))
def test_goodput_and_attainment_agree(made, table, span_s):
    share, rate = attainment(made, table, NAMES), goodput_rps(made, table, NAMES, span_s)
    judged, _ = judge(made, table, NAMES)
    if judged.any():
        assert share is not None
        assert rate is not None
        assert 0 <= share <= 1
        assert rate * span_s == pytest.approx(share * np.count_nonzero(judged))
    else:
        assert share is None
        assert rate is None


@given(records(), SLOS, st.floats(1, 10))
def test_a_wider_limit_never_loses_a_request(made, slo, factor):
    wider = Slo(**{name: limit * factor for name, limit in slo.limits().items()})
    assert (slo.met(made) <= wider.met(made)).all()


def test_a_request_that_takes_just_the_limit_meets_it():
    made = Records.of(arrival_s=[1.0], scheduled_s=[1.0], first_token_s=[1.5], finish_s=[3.5], output_tokens=[5])
    assert Slo(ttft_s=0.5, tpot_s=0.5, e2e_s=2.5).met(made).tolist() == [True]
    for missed in (Slo(ttft_s=0.49), Slo(tpot_s=0.49), Slo(e2e_s=2.49)):
        assert missed.met(made).tolist() == [False]


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_limit_that_is_none_is_refused_by_name(bad):
    with pytest.raises(ConfigError, match=r"slo\.tpot_s: .* allowed: a number of seconds above 0"):
        Slo(tpot_s=bad)


def test_an_slo_reads_as_a_screen_shows_it():
    assert str(Slo(ttft_s=0.5, tpot_s=0.05)) == "TTFT <= 500 ms, TPOT <= 50.0 ms"
    assert str(Slo()) == "none"
    assert not Slo()
    assert not SloTable()
    assert SloTable(by_class={"chat": Slo(ttft_s=1)})
