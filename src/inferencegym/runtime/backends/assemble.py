"""A whole answer put together from the events of a stream, for servers that go on computing when the client of a whole answer has left.

Seen with llama.cpp's server: it notices a closed connection only where it writes to it. Text, reasoning, refusals and the arguments of tool calls
are joined, log-probabilities appended, choice by choice; every other field is the last that came.
"""

from __future__ import annotations

from typing import Any

import msgspec

from inferencegym.runtime.ports import CHAT, Piece, Usage

#: Parts of a delta that come bit by bit; others are said once.
_JOINED = ("content", "reasoning_content", "reasoning", "refusal", "arguments")


class Assembly:
    """Events of one answer so far."""

    def __init__(self, endpoint: str) -> None:
        self._chat = endpoint == CHAT
        self._head: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._tokens = 0
        self._usage: Usage | None = None
        self._finish: str | None = None

    def add(self, piece: Piece) -> None:
        """One event more; the usage may come without its bytes."""
        self._tokens += piece.tokens
        self._usage = piece.usage or self._usage
        self._finish = piece.finish_reason or self._finish
        if piece.raw is None:
            return
        event = msgspec.json.decode(piece.raw, type=dict[str, Any])
        for choice in event.pop("choices", []):
            self._add_choice(choice)
        self._head.update(event)

    def _add_choice(self, choice: dict[str, Any]) -> None:
        index = choice.get("index", 0)
        whole = self._choices.setdefault(index, {"index": index, "finish_reason": None})
        if self._chat:
            _merge(whole.setdefault("message", {"role": "assistant", "content": None}), choice.get("delta") or {})
        else:
            whole["text"] = whole.get("text", "") + (choice.get("text") or "")
        if choice.get("logprobs") is not None:
            _append(whole.setdefault("logprobs", {}), choice["logprobs"])
        if choice.get("finish_reason") is not None:
            whole["finish_reason"] = choice["finish_reason"]

    def piece(self) -> Piece:
        """The whole answer, as if it had been asked for so."""
        tokens = self._tokens if self._usage is None else self._usage.completion_tokens
        usage = self._usage or Usage(0, tokens)
        head = {name: value for name, value in self._head.items() if name != "usage"}
        head["object"] = "chat.completion" if self._chat else "text_completion"
        body = head | {
            "choices": [self._choices[index] for index in sorted(self._choices)],
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": tokens,
                "total_tokens": usage.prompt_tokens + tokens,
                "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
            },
        }
        return Piece(tokens=tokens, finish_reason=self._finish, raw=msgspec.json.encode(body), usage=self._usage)


def _merge(whole: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if value is None:
            continue
        if name in _JOINED:
            whole[name] = (whole.get(name) or "") + value
        elif name == "tool_calls":
            calls = whole.setdefault(name, [])
            for call in value:
                _merge_call(calls, call)
        elif isinstance(value, dict):
            _merge(whole.setdefault(name, {}), value)
        else:
            whole[name] = value


def _merge_call(calls: list[dict[str, Any]], call: dict[str, Any]) -> None:
    """A tool call's number says which one it goes on with; it is not part of a whole answer."""
    number = call.get("index", len(calls))
    while len(calls) <= number:
        calls.append({})
    _merge(calls[number], {name: value for name, value in call.items() if name != "index"})


def _append(whole: dict[str, Any], more: dict[str, Any]) -> None:
    for name, values in more.items():
        if isinstance(values, list):
            whole[name] = whole.get(name, []) + values
        else:
            whole[name] = values
