"""Records keep what they are given, break no law unseen, and come back from a file as they went."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencegym.ground.errors import InputError
from inferencegym.metrics.record import COLUMNS, OPTIONAL_TIMES, Outcome, Records, concat, outcome_counts
from tests.metrics.strategies import records


def same(first: Records, second: Records) -> bool:
    columns = all(
        np.array_equal(getattr(first, name), getattr(second, name), equal_nan=name in OPTIONAL_TIMES)
        and getattr(first, name).dtype == getattr(second, name).dtype
        for name in COLUMNS
    )
    return columns and first.observer == second.observer


@given(records())
def test_a_table_gives_the_same_records_back(made):
    assert same(Records.from_table(made.to_table()), made)


@given(records(min_size=1), st.data())
def test_parts_put_together_are_the_whole(made, data):
    cut = data.draw(st.integers(0, len(made)))
    rows = np.arange(len(made))
    assert same(concat([made.take(rows[:cut]), made.take(rows[cut:])]), made)


@given(records(), st.randoms())
def test_sorting_by_row_undoes_a_shuffle(made, random):
    rows = list(range(len(made)))
    random.shuffle(rows)
    assert same(made.take(np.array(rows, dtype=np.int64)).sorted_by_row(), made)


@given(records())
def test_outcomes_are_counted_once_each(made):
    counts = outcome_counts(made)
    assert sum(counts.values()) == len(made)
    assert list(counts) == [outcome.name.lower() for outcome in Outcome]


@given(records())
def test_latencies_nest(made):
    """Queue time is within TTFT, TTFT within E2E, and TPOT fills the rest, wherever they exist."""
    served = made.ok
    assert (made.queue_s[served] <= made.ttft_s[served]).all()
    assert (made.ttft_s[served] <= made.e2e_s[served]).all()
    paced = served & (made.output_tokens >= 2)
    assert np.allclose((made.ttft_s + made.tpot_s * (made.output_tokens - 1))[paced], made.e2e_s[paced])
    assert np.isnan(made.tpot_s[~paced]).all()
    assert np.isnan(made.e2e_s[~served]).all()


@given(records())
def test_lawful_lifecycles_are_found_lawful(made):
    assert made.out_of_order().tolist() == []


GOOD = {
    "arrival_s": [1.0],
    "enqueued_s": [2.0],
    "scheduled_s": [3.0],
    "first_token_s": [4.0],
    "finish_s": [5.0],
    "output_tokens": [3],
}


@pytest.mark.parametrize(
    "broken",
    [
        {"arrival_s": [2.5]},
        {"scheduled_s": [1.5]},
        {"first_token_s": [2.9]},
        {"finish_s": [3.9]},
        {"scheduled_s": [np.nan]},
        {"first_token_s": [np.nan]},
        {"scheduled_s": [np.nan], "first_token_s": [np.nan], "finish_s": [1.9], "outcome": [Outcome.ABORTED]},
        {"arrival_s": [np.nan]},
        {"finish_s": [np.nan]},
    ],
    ids=str,
)
def test_a_broken_lifecycle_is_found(broken):
    assert Records.of(**GOOD).out_of_order().tolist() == []
    assert Records.of(**GOOD | broken).out_of_order().tolist() == [0]


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_of_another_length_or_type_is_refused(column):
    columns = {name: np.zeros(3, dtype) for name, dtype in COLUMNS.items()}
    # A longer column, since a shorter one could pass as broadcast by accident; `row` itself sets the length.
    with pytest.raises(AssertionError, match="must have"):
        Records(**columns | {column: np.zeros(4, COLUMNS[column])})
    with pytest.raises(AssertionError, match="must be"):
        Records(**columns | {column: np.zeros(3, "float32")})


def test_an_unknown_column_is_refused():
    with pytest.raises(AssertionError, match="no column"):
        Records.of(arrival_s=[0.0], latency=[1.0])


@pytest.mark.parametrize("column", COLUMNS)
def test_a_table_with_a_bad_column_is_refused_by_its_name(column):
    table = Records.of(**GOOD).to_table()
    index = table.column_names.index(column)
    for bad in (
        table.drop_columns([column]),
        table.set_column(index, column, pa.array(["x"])),
        *([] if column in OPTIONAL_TIMES else [table.set_column(index, column, pa.array([None], COLUMNS[column]))]),
    ):
        with pytest.raises(InputError) as caught:
            Records.from_table(bad)
        assert caught.value.column == column


@pytest.mark.parametrize(
    "metadata", [None, {"format": "other"}, {"format": "inferencegym.records", "format_version": "9"}]
)
def test_a_table_of_something_else_is_refused(metadata):
    with pytest.raises(InputError, match="format"):
        Records.from_table(Records.of(**GOOD).to_table().replace_schema_metadata(metadata))
