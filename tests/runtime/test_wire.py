"""What is read, what is refused, and what is rendered, without a server."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferencegym.runtime import wire
from inferencegym.runtime.errors import ApiError
from inferencegym.runtime.flow import failure_of
from inferencegym.runtime.ports import CHAT, COMPLETIONS, EMBEDDINGS, Ask, BackendError, Capabilities, Piece, Usage
from inferencegym.runtime.render import DONE, Events, Whole, error_event

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = sorted(set(wire.Chat.__struct_fields__) | set(wire.Completion.__struct_fields__))


def read(endpoint, body, able=None):
    """The fields, or the error, which must be a 400; anything else is raised."""
    try:
        fields = wire.read(endpoint, body)
        if able is not None:
            wire.refuse_what_it_cannot(fields, endpoint, able, "b")
        return fields
    except ApiError as refused:
        if refused.status != 400:
            raise
        return refused


@given(st.sampled_from([CHAT, COMPLETIONS, EMBEDDINGS]), st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(endpoint, body):
    fields = read(endpoint, body)
    assert not isinstance(fields, ApiError) or json.loads(fields.body())["error"]["message"]


@settings(max_examples=300)
@given(st.sampled_from([CHAT, COMPLETIONS]), st.dictionaries(st.sampled_from(NAMES), JSON, max_size=6))
def test_any_object_is_read_or_refused_and_what_is_read_can_be_used(endpoint, body):
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}], "prompt": "a"} | body
    fields = read(endpoint, msgspec.json.encode(body), able=Capabilities(fields=frozenset()))
    if isinstance(fields, ApiError):
        return
    assert wire.prompt_tokens(fields) >= 1
    limit = wire.answer_limit(fields)
    assert limit is None or limit >= 1
    assert isinstance(wire.beginning(fields), str)


@pytest.mark.parametrize("value", [True, "8", 8.5, [8], {}, 0, -1])
def test_only_a_number_is_a_number(value):
    with pytest.raises(ApiError) as caught:
        wire.read(CHAT, msgspec.json.encode({"model": "m", "messages": [{"role": "user"}], "max_tokens": value}))
    assert caught.value.param == "max_tokens"


@pytest.mark.parametrize(
    ("prompt", "tokens", "prompts"),
    [("", 1, 1), ("abcd", 1, 1), ("abcde", 2, 1), ([5, 6, 7], 3, 1), (["abcd", "abcd"], 2, 2), ([[1, 2], [3]], 3, 2), ("日本", 2, 1), ([], 1, 1)],
)  # fmt: skip
def test_prompts_are_counted(prompt, tokens, prompts):
    fields = wire.read(COMPLETIONS, msgspec.json.encode({"model": "m", "prompt": prompt}))
    assert wire.prompt_tokens(fields) == tokens
    assert wire.prompts(fields.prompt) == prompts


def test_text_in_parts_counts_like_text():
    def tokens(content):
        body = {"model": "m", "messages": [{"role": "user", "content": content}]}
        return wire.prompt_tokens(wire.read(CHAT, msgspec.json.encode(body)))

    assert (
        tokens([{"type": "text", "text": "x" * 40}, {"type": "image_url", "image_url": {"url": "data:"}}])
        == tokens("x" * 40)
        == 14
    )


def ask(endpoint=CHAT, **body):
    body = {"model": 'a "quoted" m', "messages": [{"role": "user"}], "prompt": "p"} | body
    fields = wire.read(endpoint, msgspec.json.encode(body))
    return Ask("id-1", endpoint, fields.model, b"", fields, 7, None, bool(fields.stream), 0.0)


@given(st.sampled_from([CHAT, COMPLETIONS]), st.lists(st.text(), min_size=1, max_size=5))
def test_events_and_whole_answers_say_the_same_text(endpoint, texts):
    one = ask(endpoint, stream=True, stream_options={"include_usage": True})
    events, whole = Events(one), Whole(one)
    pieces = [Piece(text=text, tokens=1) for text in texts]
    pieces[-1].finish_reason = "length"
    usage = Usage(7, len(texts), 2)
    data = b"".join(events.event(piece) for piece in pieces) + events.end(usage)
    assert data.endswith(DONE)
    told = [json.loads(line.removeprefix(b"data: ")) for line in data.split(b"\n\n")[:-2]]
    for piece in pieces:
        whole.add(piece)
    answer = json.loads(whole.body(usage))
    *chunks, last = told
    assert last["choices"] == []
    assert last["usage"] == answer["usage"]
    assert answer["usage"]["total_tokens"] == 7 + len(texts)
    assert {chunk["model"] for chunk in told} == {answer["model"]} == {'a "quoted" m'}
    key = "delta" if endpoint == CHAT else "text"
    said = [chunk["choices"][0][key] for chunk in chunks]
    joined = "".join(delta["content"] for delta in said) if endpoint == CHAT else "".join(said)
    choice = answer["choices"][0]
    assert joined == (choice["message"]["content"] if endpoint == CHAT else choice["text"]) == "".join(texts)
    assert choice["finish_reason"] == chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_several_choices_stay_apart():
    whole = Whole(ask(n=2))
    for index, text in ((1, "b"), (0, "a"), (1, "B")):
        whole.add(Piece(text=text, index=index))
    assert [c["message"]["content"] for c in json.loads(whole.body(Usage(1, 3)))["choices"]] == ["a", "bB"]


def test_a_servers_own_bytes_pass_as_they_are():
    events = Events(ask(stream=True, stream_options={"include_usage": True}))
    assert events.event(Piece(raw=b'{"x":1}')) == b'data: {"x":1}\n\n'
    assert events.end(Usage(1, 1)) == DONE, "the server has told the usage itself"
    whole = Whole(ask())
    whole.add(Piece(raw=b'{"y":2}'))
    assert whole.body(Usage(1, 1)) == b'{"y":2}'


def test_an_error_is_an_event():
    event = error_event(ApiError(502, "backend_broke_off", "it died\n\ndata: [DONE]"))
    assert event.count(b"\n\n") == 1, "no text can end the event early"
    assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "backend_broke_off"


@pytest.mark.parametrize(
    "body", [None, b"", b"\xff", b"[]", b'{"error":"text"}', b"[" * 9999, b'{"error":{"message":"m","code":7}}']
)
def test_a_backends_own_error_is_told_in_our_envelope(body):
    told = failure_of(
        BackendError("it failed", status=422, code="backend_error", body=body, retry_after_s=1.5, fault=False), "b"
    )
    assert (told.status, told.code, told.retry_after_s) == (422, "backend_error", 1.5)
    assert told.message in ("it failed", "m")
