"""Charts say what they show and in which unit, keep a series' colour, and place values where they belong."""

from __future__ import annotations

import re

import numpy as np
import pytest

from inferencegym.report.chart import Axis, Line, Whisker, chart, legend, log_ticks, ticks, whiskers
from inferencegym.report.palette import colour, dash
from tests.report.reading import read, words

TIME, WAITING = Axis("time", "s"), Axis("waiting", "requests")


def line(index: int, *values: float) -> Line:
    return Line(f"run {index}", index, np.arange(len(values), dtype=float), np.array(values))


def test_an_axis_without_unit_is_refused() -> None:
    with pytest.raises(AssertionError, match="unit"):
        Axis("time", "")


def test_both_axes_have_units_and_the_picture_says_what_is_to_be_seen() -> None:
    drawn = read(chart([line(0, 0, 5, 3)], title="Queue", x=TIME, y=WAITING, log_x=False))
    labels = [words(one) for one in drawn.iter("text") if one.get("class") == "label"]
    assert labels == ["time (s)", "waiting (requests)"]
    (picture,) = drawn.iter("svg")
    assert picture.get("role") == "img"
    assert picture.get("aria-label") == (
        "Queue: waiting (requests) against time (s). run 0: 0 to 5 where time goes from 0 to 2."
    )


def test_a_series_keeps_colour_and_dash_in_chart_and_legend() -> None:
    drawn = chart([line(3, 1, 2), line(9, 2, 1)], title="t", x=TIME, y=WAITING)
    keys = legend([f"run {i}" for i in range(10)])
    for index in (3, 9):
        for text in (drawn, keys):
            assert f"stroke:{colour(index)}" in text
            assert f'stroke-dasharray="{dash(index)}"' in text


def test_no_colour_is_written_out_so_that_all_follow_the_theme() -> None:
    dots = whiskers([Whisker("lru", 0.5, 0.4, 0.6)], title="t", x=Axis("grade", "0..1"), low=0, high=1)
    lines = chart([line(0, 1, 2)], title="t", x=TIME, y=WAITING) + legend(["a"])
    assert not re.search(r"#[0-9a-f]{3,6}\b|rgb\(", dots + lines)


def test_higher_values_are_drawn_higher() -> None:
    drawn = chart([line(0, 1, 4, 2)], title="t", x=TIME, y=WAITING)
    (points,) = re.findall(r'points="([^"]*)"', drawn)
    heights = [float(point.split(",")[1]) for point in points.split()]
    assert heights[1] < heights[2] < heights[0]


def test_dots_lie_within_their_intervals_in_the_order_of_the_values() -> None:
    rows = [Whisker("a", -0.2, -0.5, 0.1), Whisker("b <i>", 0.9, 0.8, 1.3)]
    drawn = whiskers(rows, title="Grades", x=Axis("grade", "0..1"), low=0.0, high=1.0)
    dots = [float(x) for x in re.findall(r'cx="([^"]*)"', drawn)]
    bars = re.findall(r'<line x1="([^"]*)" x2="([^"]*)"', drawn)
    assert [float(low) < dot < float(high) for (low, high), dot in zip(bars, dots, strict=True)] == [True, True]
    assert dots[0] < dots[1]
    assert "b &lt;i&gt;" in drawn
    assert "grade (0..1)" in drawn


def test_nothing_to_draw_is_said() -> None:
    assert "Nothing to show" in chart([line(0)], title="t", x=TIME, y=WAITING)


def test_a_constant_line_can_be_drawn() -> None:
    assert "nan" not in chart([line(0, 0.0, 0.0)], title="t", x=TIME, y=WAITING).lower()


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 1e-6), (3.0, 3.2), (0.0, 7e9), (-0.4, 1.1)])
def test_ticks_lie_inside_and_are_few(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-9 * high <= tick <= high * (1 + 1e-9) for tick in found)
    assert all(1e-3 <= tick <= 1e4 for tick in log_ticks(1e-3, 1e4))


def test_large_ticks_are_short() -> None:
    drawn = read(chart([line(0, 0, 300_000)], title="t", x=TIME, y=WAITING))
    shown = [words(one) for one in drawn.iter("text")]
    assert "100k" in shown
    assert max(len(text) for text in shown if text[0].isdigit()) <= 5
