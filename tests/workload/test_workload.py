"""A workload's laws: sorted, linked backwards, and nothing lost or invented by its operations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencegym.ground.errors import ConfigError, InputError
from inferencegym.workload import Workload
from inferencegym.workload.workload import COLUMNS, session_of
from tests.workload.strategies import workloads


def simple(**changes):
    columns = {"arrival_s": [0.0, 1.0, 2.0], "prompt_tokens": [5, 6, 7], "output_tokens": [1, 2, 3]}
    return Workload.of(**(columns | changes))


def rows_of(w: Workload) -> list[tuple]:
    return sorted(zip(w.arrival_s, w.prompt_tokens, w.output_tokens, w.kind, w.tenant, strict=True))


def is_sound(w: Workload) -> bool:
    waits = np.flatnonzero(w.after >= 0)
    lengths_agree = all(len(getattr(w, name)) == len(w) for name in COLUMNS)
    dtypes_agree = all(getattr(w, name).dtype == dtype for name, dtype in COLUMNS.items())
    return (
        lengths_agree
        and dtypes_agree
        and bool((np.diff(w.arrival_s) >= 0).all())
        and bool((w.after[waits] < waits).all())
        and w.prefix_offsets[-1] == len(w.prefix_ids)
    )


@given(workloads(), st.randoms())
def test_rows_given_in_any_order_make_the_same_workload(w, random):
    # Ties keep the given order, so only rows at different times may be shuffled.
    if len(np.unique(w.arrival_s)) < len(w):
        return
    order = list(range(len(w)))
    random.shuffle(order)
    place = np.argsort(order)
    after = np.array([place[w.after[row]] if w.after[row] >= 0 else -1 for row in order], dtype=int)
    prefixes = [w.prefix_of(row) for row in order]
    columns = {name: column[order] for name, column in w.columns().items()} | {"after": after}
    shuffled = w.with_(
        **columns,
        prefix_offsets=np.concatenate([[0], np.cumsum([len(ids) for ids in prefixes])]),
        prefix_ids=np.concatenate([*prefixes, np.zeros(0, np.int64)]),
    )
    assert shuffled.digest() == w.digest()


@given(workloads(), st.data())
def test_taking_rows_keeps_them_whole_and_links_skip_what_is_gone(w, data):
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(w), max_size=len(w))), dtype=bool)
    taken = w.take(mask)
    assert is_sound(taken)
    kept = np.flatnonzero(mask)
    for new, old in enumerate(kept):
        assert taken.prompt_tokens[new] == w.prompt_tokens[old]
        assert taken.prefix_of(new).tolist() == w.prefix_of(old).tolist()
        # Walk back through rows that are gone, adding their pauses.
        at, pause_s = w.after[old], w.think_s[old]
        while at >= 0 and not mask[at]:
            pause_s = pause_s + w.think_s[at]
            at = w.after[at]
        if at < 0:
            assert taken.after[new] == -1
        else:
            assert kept[taken.after[new]] == at
            assert taken.think_s[new] == pytest.approx(pause_s)


@given(workloads())
def test_servable_leaves_out_exactly_the_failed(w):
    served, left_out = w.servable()
    assert left_out == int((w.output_tokens == 0).sum())
    assert (served.output_tokens > 0).all()
    assert len(served) + left_out == len(w)


@given(workloads(min_size=1), st.floats(0.1, 100))
def test_windows_side_by_side_hold_every_row_once(w, cut_s):
    end_s = max(cut_s, w.duration_s) + 1.0
    first, second = w.window(0.0, cut_s), w.window(cut_s, end_s)
    assert len(first) + len(second) == len(w)
    assert is_sound(first)
    assert is_sound(second)
    np.testing.assert_allclose(np.concatenate([first.arrival_s, second.arrival_s + cut_s]), w.arrival_s)


@given(workloads(min_size=2), st.floats(0.01, 100))
def test_scaling_the_rate_scales_every_gap_alike_and_nothing_else(w, factor):
    scaled = w.scale_rate(factor)
    np.testing.assert_allclose(np.diff(scaled.arrival_s) * factor, np.diff(w.arrival_s), atol=1e-9)
    assert scaled.with_(arrival_s=w.arrival_s).digest() == w.digest()


@given(workloads(), workloads(), st.floats(0, 50))
def test_splicing_keeps_all_rows_and_keeps_the_two_apart(one, two, at_s):
    both = one.splice(two, at_s)
    assert is_sound(both)
    assert len(both) == len(one) + len(two)
    assert np.allclose(np.sort(both.arrival_s), np.sort(np.concatenate([one.arrival_s, two.arrival_s + at_s])))
    sessions = {
        w.session_id[w.session_id >= 0].tobytes() and len(np.unique(w.session_id[w.session_id >= 0]))
        for w in (one, two)
    }
    found = len(np.unique(both.session_id[both.session_id >= 0]))
    assert found == sum(len(np.unique(w.session_id[w.session_id >= 0])) for w in (one, two)), sessions
    assert len(np.unique(both.prefix_ids)) == len(np.unique(one.prefix_ids)) + len(np.unique(two.prefix_ids))


def test_splicing_can_share_prefixes_and_merges_names():
    one = simple(prefix_offsets=[0, 1, 1, 1], prefix_ids=[7], prefix_block_tokens=4, kind_names=("x",))
    two = one.with_(kind_names=("y",))
    shared = one.splice(two, 0.5, share_prefixes=True)
    assert set(shared.prefix_ids.tolist()) == {7}
    assert [shared.kind_names[code] for code in shared.kind] == ["x", "y", "x", "y", "x", "y"]


def test_appending_starts_after_the_last_arrival():
    both = simple().append(simple(), gap_s=10.0)
    assert both.arrival_s.tolist() == [0, 1, 2, 12, 13, 14]


@given(workloads(min_size=1), st.floats(0.05, 1.0), st.integers(0, 5))
def test_thinning_keeps_sessions_whole_and_repeats(w, keep, seed):
    thinned = w.thin(keep, seed)
    assert is_sound(thinned)
    assert thinned.digest() == w.thin(keep, seed).digest()
    # A session is there with all its rows or with none.
    for session in np.unique(w.session_id[w.session_id >= 0]):
        assert (thinned.session_id == session).sum() in (0, (w.session_id == session).sum())


def test_thinning_keeps_about_the_asked_share():
    n = 20_000
    w = Workload.of(arrival_s=np.arange(n), prompt_tokens=np.ones(n), output_tokens=np.ones(n))
    assert len(w.thin(0.3)) == pytest.approx(0.3 * n, rel=0.05)


@given(workloads(min_size=1))
def test_the_digest_sees_every_column(w):
    assert w.digest() == w.with_(name="other", source="other").digest()
    for name in ("prompt_tokens", "think_s", "kind", "priority"):
        changed = getattr(w, name).copy()
        changed[0] = 1 - changed[0] if name == "kind" else changed[0] + 1
        assert w.with_(**{name: changed}).digest() != w.digest(), name


def test_session_of_follows_links_and_session_numbers():
    w = simple(after=[-1, 0, -1], session_id=[-1, -1, 4])
    found = session_of(w)
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("changes", "row", "column"),
    [
        ({"arrival_s": [0.0, float("nan"), 2.0]}, 2, "arrival_s"),
        ({"arrival_s": [0.0, 1.0, float("inf")]}, 3, "arrival_s"),
        ({"arrival_s": [-1.0, 1.0, 2.0]}, 1, "arrival_s"),
        ({"arrival_s": [0.0, 1.0, 1e9]}, 3, "arrival_s"),
        ({"prompt_tokens": [5, 0, 7]}, 2, "prompt_tokens"),
        ({"prompt_tokens": [5, 6.5, 7]}, 2, "prompt_tokens"),
        ({"prompt_tokens": [5, 2**31, 7]}, 2, "prompt_tokens"),
        ({"prompt_tokens": ["5", "6", "7"]}, 1, "prompt_tokens"),
        ({"output_tokens": [1, -2, 3]}, 2, "output_tokens"),
        ({"priority": [0, 128, 0]}, 2, "priority"),
        ({"kind": [0, 0, 1]}, 3, "kind"),
        ({"after": [-1, -1, 3]}, 3, "after"),
        ({"after": [-1, 1, -1]}, 2, "after"),
        ({"after": [2, -1, -1]}, 1, "after"),
        ({"output_budget_tokens": [0, 1, 0]}, 2, "output_budget_tokens"),
        ({"think_s": [0, 0, -1]}, 3, "think_s"),
        ({"prefix_offsets": [0, 3, 3, 3], "prefix_ids": [1, 2, 3], "prefix_block_tokens": 4}, 1, "prefix_ids"),
    ],
)
def test_a_bad_value_is_named_by_row_and_column(changes, row, column):
    with pytest.raises(InputError) as told:
        simple(**changes)
    assert (told.value.row, told.value.column) == (row, column)


@pytest.mark.parametrize(
    ("changes", "column"),
    [
        ({"prompt_tokens": [1, 2]}, "prompt_tokens"),
        ({"prompt_tokens": [[1, 2, 3]]}, "prompt_tokens"),
        ({"colour": [1, 2, 3]}, "colour"),
        ({"prefix_offsets": [0, 2, 1, 1], "prefix_ids": [1], "prefix_block_tokens": 4}, "prefix_offsets"),
        ({"prefix_offsets": [0, 1, 1, 1], "prefix_ids": [1]}, "prefix_block_tokens"),
    ],
)
def test_columns_that_do_not_go_together_are_named(changes, column):
    with pytest.raises(InputError) as told:
        simple(**changes)
    assert told.value.column == column


def test_time_that_runs_backwards_is_an_error_only_when_sorting_is_not_wanted():
    assert simple(arrival_s=[2.0, 1.0, 0.0]).prompt_tokens.tolist() == [7, 6, 5]
    with pytest.raises(InputError, match="runs backwards") as told:
        simple(arrival_s=[0.0, 2.0, 1.0], sort=False)
    assert told.value.row == 3


def test_a_failed_request_may_have_no_prompt():
    w = simple(prompt_tokens=[0, 6, 7], output_tokens=[0, 2, 3])
    assert w.servable()[1] == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda w: w.scale_rate(0),
        lambda w: w.window(2, 1),
        lambda w: w.thin(0),
        lambda w: w.head(-1),
        lambda w: w.splice(w, -1.0),
        lambda w: w.take(np.array([1, 0])),
    ],
)
def test_an_operation_says_what_it_takes(call):
    with pytest.raises(ConfigError, match="allowed"):
        call(simple())


def test_an_empty_workload_is_one_too():
    w = Workload.of(arrival_s=[], prompt_tokens=[], output_tokens=[])
    assert (len(w), w.duration_s, w.rate_rps) == (0, 0.0, 0.0)
    assert len(w.append(simple())) == 3
    assert len(w.head(5)) == 0
