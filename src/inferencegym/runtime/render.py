"""What clients get: answers of backends that give text, as OpenAI's JSON, whole or as events; of those that speak it themselves, their own bytes.

An event is a template with the text put in as a JSON string: no object is built for a token.
"""

from __future__ import annotations

import time

import msgspec

from inferencegym.runtime.errors import ApiError
from inferencegym.runtime.ports import CHAT, Ask, Piece, Usage
from inferencegym.runtime.wire import Embedding

_encode = msgspec.json.Encoder().encode
DONE = b"data: [DONE]\n\n"
COMMENT = b": still here\n\n"


def usage_json(usage: Usage) -> bytes:
    """The usage object."""
    return (
        b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,"prompt_tokens_details":{"cached_tokens":%d}}'
        % (usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens + usage.completion_tokens, usage.cached_tokens)
    )  # fmt: skip


def error_event(error: ApiError) -> bytes:
    """What ends a stream that broke; no `[DONE]` follows, so that nobody takes the answer for whole."""
    return b"data: " + error.body() + b"\n\n"


class Events:
    """The events of one streamed answer."""

    __slots__ = ("_ask", "_begun", "_chat", "_head", "_raw", "_tail", "_usage", "continuous")

    def __init__(self, ask: Ask) -> None:
        options = None if isinstance(ask.fields, Embedding) else ask.fields.stream_options
        self._usage = bool(options and options.include_usage)
        self.continuous = bool(options and options.include_usage and options.continuous_usage_stats)
        """Whether every event tells the usage so far."""
        self._ask, self._chat = ask, ask.endpoint == CHAT
        self._head = b"data: " + _beginning(ask, stream=True)
        # Where usage was asked for, every event has the field, and all but the last say null.
        self._tail = b'}],"usage":null}\n\n' if self._usage else b"}]}\n\n"
        self._begun: set[int] = set()
        self._raw = False

    def event(self, piece: Piece, usage: Usage | None = None) -> bytes:
        """A piece as one event; empty where it has nothing for the client. `usage`: so far, where every event tells it."""
        if piece.raw is not None:
            self._raw = True
            return b"data: " + piece.raw + b"\n\n"
        if not piece.text and piece.finish_reason is None:
            return b""
        tail = b'}],"usage":' + usage_json(usage) + b"}\n\n" if usage is not None else self._tail
        return self._head + _choice(piece, self._chat, self._role(piece.index)) + tail

    def end(self, usage: Usage) -> bytes:
        """The events after the last piece. A backend that speaks OpenAI's language has told the usage itself, if it was asked for."""
        if not self._usage or self._raw:
            return DONE
        return self._head + b'],"usage":' + usage_json(usage) + b"}\n\n" + DONE

    def _role(self, index: int) -> bytes:
        if not self._chat or index in self._begun:
            return b""
        self._begun.add(index)
        return b'"role":"assistant",'


def _beginning(ask: Ask, stream: bool) -> bytes:
    kind, name = ("chatcmpl", "chat.completion") if ask.endpoint == CHAT else ("cmpl", "text_completion")
    name += ".chunk" if stream and ask.endpoint == CHAT else ""
    return b'{"id":%s,"object":"%s","created":%d,"model":%s,"choices":[' % (
        _encode(f"{kind}-{ask.id}"), name.encode(), int(time.time()), _encode(ask.model),
    )  # fmt: skip


def _choice(piece: Piece, chat: bool, role: bytes) -> bytes:
    """A choice of an event, but for its closing brace."""
    reason = b"null" if piece.finish_reason is None else _encode(piece.finish_reason)
    if chat:
        return b'{"index":%d,"delta":{%b"content":%b},"logprobs":null,"finish_reason":%b' % (
            piece.index, role, _encode(piece.text), reason,
        )  # fmt: skip
    return b'{"index":%d,"text":%b,"logprobs":null,"finish_reason":%b' % (piece.index, _encode(piece.text), reason)


class Whole:
    """An answer that is not streamed: pieces are collected until it is whole."""

    __slots__ = ("_ask", "_raw", "_reasons", "_texts")

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._raw: bytes | None = None
        self._texts: dict[int, list[str]] = {}
        self._reasons: dict[int, str] = {}

    def add(self, piece: Piece) -> None:
        """One more piece."""
        if piece.raw is not None:
            self._raw = piece.raw
            return
        self._texts.setdefault(piece.index, []).append(piece.text)
        if piece.finish_reason is not None:
            self._reasons[piece.index] = piece.finish_reason

    def body(self, usage: Usage) -> bytes:
        """The JSON of the whole answer."""
        if self._raw is not None:
            return self._raw
        form = (
            b'{"index":%d,"message":{"role":"assistant","content":%b},"logprobs":null,"finish_reason":%b}'
            if self._ask.endpoint == CHAT
            else b'{"index":%d,"text":%b,"logprobs":null,"finish_reason":%b}'
        )
        choices = b",".join(
            form % (index, _encode("".join(texts)), _encode(self._reasons.get(index, "stop")))
            for index, texts in sorted((self._texts or {0: []}).items())
        )
        return _beginning(self._ask, stream=False) + choices + b'],"usage":' + usage_json(usage) + b"}"
