"""Corners of a workload that random ones hardly reach: numbers that fill their type, names, and clocks.

Complements `test_workload.py`. Times are seconds, lengths tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from inferencegym.ground.errors import ConfigError, InputError
from inferencegym.ground.units import MAX_S
from inferencegym.workload import Workload
from inferencegym.workload.workload import COLUMNS, session_of
from tests.workload.strategies import workloads


def small(**changed: Any) -> Workload:
    """Three plain requests, two of them at once."""
    columns = {"arrival_s": [0.0, 1.0, 1.0], "prompt_tokens": [5, 6, 7], "output_tokens": [1, 2, 3]}
    return Workload.of(**columns | changed)


@given(workloads())
def test_columns_are_what_kernels_count_on_after_any_operation(w: Workload) -> None:
    for one in (w, w.head(3), w.window(0, 50), w.scale_rate(2), w.append(w), w.thin(0.5), w.servable()[0]):
        for name, dtype in COLUMNS.items():
            column = getattr(one, name)
            assert column.dtype == np.dtype(dtype), name
            assert column.flags.c_contiguous, name
        assert one.prefix_offsets.dtype == one.prefix_ids.dtype == np.int64
        assert one.with_().digest() == one.digest(), "checked again, it is sound and sorted"


def test_defaults() -> None:
    w = small()
    assert w.output_budget_tokens.tolist() == w.priority.tolist() == w.tenant.tolist() == [0, 0, 0]
    assert w.session_id.tolist() == w.after.tolist() == [-1, -1, -1]
    assert w.tenant_names == w.slo_class_names == w.kind_names == ("default",)
    assert (w.prefix_block_tokens, len(w.prefix_ids), w.duration_s, w.rate_rps) == (0, 0, 1.0, 3.0)


def test_ties_stay_as_given_and_links_follow() -> None:
    w = small(arrival_s=[2.0, 1.0, 1.0], after=[2, -1, 1], think_s=[0.5, 0.0, 0.25])
    assert w.prompt_tokens.tolist() == [6, 7, 5]
    assert w.after.tolist() == [-1, 0, 1]
    assert w.think_s.tolist() == [0.0, 0.25, 0.5]


def test_errors_name_the_row_as_given_not_as_sorted() -> None:
    with pytest.raises(InputError) as told:
        small(arrival_s=[5.0, 1.0, 3.0], after=[-1, 0, -1])
    assert (told.value.column, told.value.row) == ("after", 2)


@pytest.mark.parametrize(
    ("column", "values", "row"),
    [
        ("output_tokens", [1, 2, 1e300], 3),
        ("output_tokens", [1, None, 3], 1),
        ("prompt_tokens", np.array([5, 2**64 - 1, 7], np.uint64), 2),
        ("session_id", [0.0, 0.0, 2.0**63], 3),
        ("session_id", [0, -2, 0], 2),
        ("arrival_s", [0.0, 1.0, 2.0 * MAX_S], 3),
        ("after", [-1, 2, -1], 2),
    ],
)
def test_a_number_that_its_type_cannot_hold_is_never_wrapped_or_rounded(column: str, values: Any, row: int) -> None:
    with pytest.raises(InputError) as told:
        small(**{column: values})
    assert (told.value.column, told.value.row) == (column, row)


@pytest.mark.parametrize(
    ("ids", "row"),
    [([1, -2], 2), ([1.0, 2.5], 2), (["a", "b"], 1), (np.array([7, 2**63], np.uint64), 2), ([[1], [2]], None)],
)
def test_prefix_ids_are_whole_numbers_from_0_up_named_by_their_row(ids: Any, row: int | None) -> None:
    with pytest.raises(InputError) as told:
        small(prefix_ids=ids, prefix_offsets=[0, 1, 2, 2], prefix_block_tokens=4)
    assert (told.value.column, told.value.row) == ("prefix_ids", row)


@pytest.mark.parametrize(
    ("changed", "column"),
    [
        ({"prefix_block_tokens": 2.5}, "prefix_block_tokens"),
        ({"prefix_block_tokens": True}, "prefix_block_tokens"),
        ({"prefix_block_tokens": -1}, "prefix_block_tokens"),
        ({"prefix_block_tokens": 2**31}, "prefix_block_tokens"),
        ({"tenant_names": ("a", "a")}, "tenant_names"),
        ({"tenant_names": ("",)}, "tenant_names"),
        ({"tenant_names": ()}, "tenant_names"),
        ({"kind_names": "chat"}, "kind_names"),
        ({"slo_class_names": (1,)}, "slo_class_names"),
    ],
)
def test_names_and_block_sizes_that_mean_nothing_are_refused(changed: dict[str, Any], column: str) -> None:
    with pytest.raises(InputError) as told:
        small(**changed)
    assert told.value.column == column


def test_names_may_be_given_as_a_list() -> None:
    assert small(tenant_names=["a", "b"]).tenant_names == ("a", "b")


def test_ids_may_cover_the_answer_in_full_blocks_or_a_partial_last_block_of_the_prompt() -> None:
    sizes = {"arrival_s": [0.0], "prompt_tokens": [5], "output_tokens": [7], "prefix_block_tokens": 4}
    for count in (0, 1, 2, 3):
        assert len(Workload.of(**sizes, prefix_ids=range(count), prefix_offsets=[0, count]).prefix_of(0)) == count
    with pytest.raises(InputError, match="more than prompt and output"):
        Workload.of(**sizes, prefix_ids=range(4), prefix_offsets=[0, 4])


@given(workloads(min_size=1))
def test_rows_that_belong_together_are_one_conversation(w: Workload) -> None:
    of = session_of(w)
    assert sorted(set(of.tolist())) == list(range(int(of.max()) + 1))
    for row in range(len(w)):
        for other in range(row):
            # The strategy links rows of one session only, so that there is nothing else to belong to.
            assert (of[row] == of[other]) == (w.session_id[row] == w.session_id[other] >= 0)


def test_a_chain_of_links_is_a_conversation_too() -> None:
    assert session_of(small(after=[-1, 0, -1])).tolist() == [0, 0, 1]
    assert session_of(small(after=[-1, 0, 1], session_id=[-1, -1, 9])).tolist() == [0, 0, 0]


def test_hashed_ids_and_sessions_that_fill_the_range_stay_apart_without_wrapping() -> None:
    top = 2**63 - 1
    w = small(
        prefix_ids=[top, top - 5, 1],
        prefix_offsets=[0, 1, 2, 3],
        prefix_block_tokens=8,
        session_id=[top, top - 1, -1],
    )
    for both in (w.append(w), w.append(small())):
        assert (both.prefix_ids >= 0).all()
        assert (both.session_id >= -1).all()
    both = w.append(w)
    assert len(set(both.prefix_ids.tolist())) == 6
    assert len(set(both.session_id[both.session_id >= 0].tolist())) == 4
    assert np.count_nonzero(both.session_id == -1) == 2


def test_blocks_of_different_sizes_do_not_go_together() -> None:
    one = small(prefix_ids=[1], prefix_offsets=[0, 1, 1, 1], prefix_block_tokens=8)
    with pytest.raises(ConfigError, match="equal sizes"):
        one.splice(one.with_(prefix_block_tokens=16), 0.0)


def test_every_operation_says_what_it_did_in_the_source() -> None:
    w = small(source="a file")
    assert "0 to 1 s" in w.window(0, 1).source
    assert "thinned to 0.5, seed 3" in w.thin(0.5, 3).source
    assert "rate x 2" in w.scale_rate(2).source
    assert "a file; with a file from 1 s" in w.append(w).source


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda w: w.window(float("nan"), 1), "window"),
        (lambda w: w.thin(float("nan")), "keep"),
        (lambda w: w.scale_rate(float("inf")), "factor"),
        (lambda w: w.splice(w, float("inf")), "at_s"),
        (lambda w: w.splice(w, float("nan")), "at_s"),
        (lambda w: w.append(w, -2), "gap_s"),
        (lambda w: w.take(np.ones(2, np.bool_)), "mask"),
    ],
)
def test_what_is_no_number_is_no_setting(call: Callable[[Workload], Workload], field: str) -> None:
    with pytest.raises(ConfigError, match="allowed") as told:
        call(small())
    assert told.value.field == field


def test_time_beyond_the_engines_clock_is_refused_after_any_operation() -> None:
    with pytest.raises(InputError, match="clock"):
        small().scale_rate(1e-12)
    with pytest.raises(InputError, match="clock"):
        small().splice(small(), MAX_S)
