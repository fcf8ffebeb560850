"""Reading what a server sends: any bytes are an event or a `BackendError`, however they are cut, and the parts that count are found."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencegym.runtime.backends.events import EventStream, garbage, piece_of, read_event, told
from inferencegym.runtime.ports import BackendError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["choices", "index", "delta", "text", "usage", "error", "code", "message", "content"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_an_event_or_a_told_error(raw):
    piece = error = None
    try:
        piece = piece_of(read_event(raw), raw, whole=False)
    except BackendError as told_error:
        error = told_error
    assert piece is None or (piece.raw == raw and piece.tokens >= 0)
    assert error is None or (error.message and error.status >= 400)
    assert told(raw, 400).body == raw
    assert garbage("x").fault


@given(
    st.lists(st.text(st.characters(blacklist_characters="\r\n", codec="utf-8"), max_size=20), max_size=6),
    st.lists(st.integers(1, 9), min_size=1, max_size=30),
    st.sampled_from(["\n", "\r\n"]),
)  # fmt: skip
def test_events_are_found_however_they_are_cut(texts, sizes, newline):
    stream = "".join(f": c{newline}data: {text}{newline}{newline}" for text in texts).encode()
    cut, found, at, turn = EventStream(), [], 0, 0
    while at < len(stream):
        size = sizes[turn % len(sizes)]
        found += cut.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
    # An event without data is none.
    assert [*found, *cut.end()] == [text.encode() for text in texts if text]


@pytest.mark.parametrize(
    ("event", "tokens", "finish"),
    [
        ({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}, 0, None),
        ({"choices": [{"index": 0, "delta": {"content": "a"}}, {"index": 1, "delta": {"content": "b"}}]}, 2, None),
        ({"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}}]}, 1, None),
        ({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0}]}}]}, 1, None),
        ({"choices": [{"index": 0, "text": "a", "finish_reason": "length"}]}, 1, "length"),
        ({"choices": None, "usage": None, "error": None}, 0, None),
        ({"choices": [], "object": "error.is.not.here"}, 0, None),
    ],
)
def test_what_counts_is_found(event, tokens, finish):
    raw = json.dumps(event).encode()
    piece = piece_of(read_event(raw), raw, whole=False)
    assert (piece.tokens, piece.finish_reason, piece.usage) == (tokens, finish, None)
