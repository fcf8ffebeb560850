"""Each metric is defined once, and the page, the summary and the names of others all follow the table."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from inferencegym.ground.errors import UnknownNameError
from inferencegym.metrics.record import Outcome
from inferencegym.metrics.summary import ClassSummary, Summary
from inferencegym.metrics.vocabulary import METRICS, metric, to_markdown

PAGE = Path(__file__).resolve().parents[2] / "docs" / "vocabulary.md"
#: Fields of a Summary that say what it is of, and are no metrics.
NOT_METRICS = {"observer", "gpus", "outcomes", "by_class", "totals", "slo"}


def test_the_page_is_the_tables():
    assert PAGE.read_text() == to_markdown(), "type: python -m inferencegym.metrics.vocabulary > docs/vocabulary.md"


@pytest.mark.parametrize("kind", [Summary, ClassSummary])
def test_all_that_a_summary_holds_is_in_the_table(kind):
    names = {field.name for field in dataclasses.fields(kind)} - NOT_METRICS
    assert names - {entry.name for entry in METRICS} == set()


def test_every_outcome_is_a_metric():
    assert {outcome.name.lower() for outcome in Outcome} - {entry.name for entry in METRICS} == set()


@pytest.mark.parametrize("column", ["name", "label", "prometheus", "vllm"])
def test_no_two_metrics_share_a_name(column):
    names = [getattr(entry, column) for entry in METRICS if getattr(entry, column)]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("entry", METRICS, ids=lambda entry: entry.name)
def test_a_metric_is_told_in_full(entry):
    assert entry.unit
    assert entry.formula
    assert entry.description.endswith(".")
    assert entry.screen_scale > 0
    # Names carry units: a time in seconds ends in _s, a rate in requests a second in _rps.
    assert (entry.unit == "s") == entry.name.endswith("_s")
    assert (entry.unit == "requests/s") == entry.name.endswith("_rps")
    assert "|" not in entry.formula + entry.description, "would break the page's table"
    if entry.prometheus and entry.kind == "counter":
        assert entry.prometheus.endswith("_total")


def test_values_are_shown_in_the_screens_unit():
    assert metric("ttft_s").heading == "TTFT (ms)"
    assert metric("ttft_s").show(0.1234) == "123"
    assert metric("slo_attainment").heading == "SLO met (%)"
    assert metric("slo_attainment").show(0.987) == "98.7"
    assert metric("preemptions").heading == "Preemptions"
    assert metric("preemptions").show(3) == "3"
    assert metric("ttft_s").show(None) == metric("ttft_s").show(math.nan) == "-"


def test_an_unknown_metric_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"Unknown metric 'ttft'.*Did you mean 'ttft_s'"):
        metric("ttft")
