"""What clients send, read once and strictly: OpenAI's fields, vLLM's beyond them, and what of it a backend cannot honour.

Unknown fields are tolerated and handed on; known ones must have their type (a boolean is no number). Lengths are tokens, times seconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from inferencegym.runtime.errors import ApiError, bad_request
from inferencegym.runtime.ports import CHAT, COMPLETIONS, EMBEDDINGS, Capabilities

Tokens = Annotated[int, Meta(ge=0, le=10_000_000)]
Wanted = Annotated[int, Meta(ge=1, le=10_000_000)]
Choices = Annotated[int, Meta(ge=1, le=128)]
Whole = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Rank = Annotated[int, Meta(ge=-1_000_000, le=1_000_000)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
Heat = Annotated[float, Meta(ge=0, le=2)]
Name = Annotated[str, Meta(min_length=1, max_length=512)]
TokenIds = list[Tokens]


class StreamOptions(Struct):
    """What a stream tells beside the text."""

    include_usage: bool | None = None
    """One more event at the end, with the usage of the whole request."""
    continuous_usage_stats: bool | None = None
    """The usage so far in each event (vLLM's)."""


class Part(Struct):
    """One part of a message: text, or something a backend may know."""

    type: str
    text: str | None = None


class Message(Struct):
    """One turn of a conversation."""

    role: Annotated[str, Meta(min_length=1, max_length=64)]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None


class Sampled(Struct, kw_only=True):
    """Fields that chat and completions share."""

    model: Name
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Wanted | None = None
    n: Choices | None = None
    stop: str | list[str] | None = None
    seed: Whole | None = None
    temperature: Heat | None = None
    top_p: Share | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    # vLLM's
    priority: Rank | None = None
    """Lower is sooner."""
    ignore_eos: bool | None = None
    min_tokens: Tokens | None = None
    top_k: Annotated[int, Meta(ge=-1, le=10_000_000)] | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Meta(ge=0, le=1000)] | None = None
    stop_token_ids: TokenIds | None = None
    prompt_logprobs: Whole | None = None
    structured_outputs: dict[str, Any] | None = None
    kv_transfer_params: dict[str, Any] | None = None
    cache_salt: str | None = None
    response_format: dict[str, Any] | None = None


class Chat(Sampled, kw_only=True):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Wanted | None = None
    """The newer name of `max_tokens`; goes before it."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None


class Completion(Sampled, kw_only=True):
    """The body of `POST /v1/completions`."""

    # Strings, token ids, or lists of either: msgspec has one kind of list in a union, so `prompts` looks closer.
    prompt: str | list[str | Tokens | TokenIds]
    best_of: Choices | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    suffix: str | None = None


class Embedding(Struct, kw_only=True):
    """The body of `POST /v1/embeddings`."""

    model: Name
    input: str | list[str | Tokens | TokenIds]
    user: str | None = None
    encoding_format: str | None = None
    dimensions: Wanted | None = None
    priority: Rank | None = None


Fields = Chat | Completion | Embedding

BODIES: Mapping[str, type[Chat] | type[Completion] | type[Embedding]] = {
    CHAT: Chat,
    COMPLETIONS: Completion,
    EMBEDDINGS: Embedding,
}
_DECODERS: Mapping[str, Any] = {name: msgspec.json.Decoder(kind) for name, kind in BODIES.items()}

#: Fields that change what an answer is or holds: a backend that lists what it honours and does not list one of these gets no such request.
#: The others are shades of sampling, which a backend without sampling may pass over.
STRUCTURAL: frozenset[str] = frozenset({
    "n", "best_of", "stop", "stop_token_ids", "logprobs", "top_logprobs", "prompt_logprobs", "echo", "suffix", "logit_bias",
    "tools", "tool_choice", "functions", "function_call", "response_format", "structured_outputs", "modalities", "audio",
    "kv_transfer_params", "ignore_eos", "min_tokens",
})  # fmt: skip

#: Values that ask for nothing, so that any backend honours them.
_NOTHING: Mapping[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "logprobs": (False,), "echo": (False,), "top_logprobs": (0,), "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"), "response_format": ({"type": "text"},), "modalities": (["text"],), "ignore_eos": (False,),
    "min_tokens": (0,), "suffix": ("",), "stop": ([], ""), "tools": ([],), "functions": ([],), "logit_bias": ({},), "stop_token_ids": ([],),
}  # fmt: skip

_PLACE = re.compile(r" - at `\$\.?([^`]*)`$")
#: Characters of a token, in the mean over English text and code: what every estimate goes by where there is no tokenizer.
BYTES_PER_TOKEN = 4
#: What a turn's role and its marks cost in common chat templates, tokens.
TOKENS_PER_MESSAGE = 4


def read(endpoint: str, body: bytes) -> Fields:
    """The body as its struct. ApiError 400: no JSON, or a field is missing, of the wrong type or out of range; says which."""
    try:
        fields: Fields = _DECODERS[endpoint].decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise not_json(error) from error
    if isinstance(fields, Sampled) and fields.stream_options is not None and not fields.stream:
        raise bad_request("stream_options is only allowed where stream is true", "stream_options")
    return fields


def not_json(error: Exception) -> ApiError:
    """400 for a body that no JSON reader takes."""
    told = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
    return bad_request(f"The request body is not valid JSON: {told}", code="invalid_json")


def _invalid(told: str) -> ApiError:
    place = _PLACE.search(told)
    missing = re.search(r"missing required field `([^`]+)`", told)
    param = missing[1] if missing else place[1] or None if place else None
    return bad_request(told.replace("`$.", "`"), param, "missing_required_parameter" if missing else "invalid_value")


def refuse_what_it_cannot(fields: Fields, endpoint: str, able: Capabilities, name: str) -> None:
    """ApiError 400 if the backend `name` could not honour the request."""
    if endpoint not in able.endpoints:
        allowed = ", ".join(sorted(able.endpoints))
        raise bad_request(
            f"Model '{fields.model}' has no {endpoint} here; it has: {allowed}", code="unsupported_endpoint"
        )
    if able.fields is None or isinstance(fields, Embedding):
        return
    for field in _missing(able.fields):
        value = getattr(fields, field, None)
        if value is not None and value not in _NOTHING.get(field, ()):
            raise bad_request(
                f"'{field}' is not supported by the backend '{name}' of model '{fields.model}'",
                field,
                "unsupported_parameter",
            )
    if isinstance(fields, Completion) and prompts(fields.prompt) > 1 and "prompts" not in able.fields:
        raise bad_request(f"The backend '{name}' takes one prompt a request", "prompt", "unsupported_parameter")


@lru_cache(maxsize=64)
def _missing(able: frozenset[str]) -> tuple[str, ...]:
    return tuple(sorted(STRUCTURAL - able))


def prompts(prompt: str | list[Any]) -> int:
    """How many prompts there are in one: a text or a list of token ids is one."""
    return 1 if isinstance(prompt, str) or not prompt or isinstance(prompt[0], int) else len(prompt)


def estimate_tokens(text: str) -> int:
    """About how many tokens a text has: a quarter of its bytes, rounded up."""
    size = len(text) if text.isascii() else len(text.encode())
    return -(-size // BYTES_PER_TOKEN)


def prompt_tokens(fields: Fields) -> int:
    """About how many tokens the request brings, at least 1: exact for token ids, estimated for text; pictures and sound are not counted."""
    if isinstance(fields, Chat):
        return sum(TOKENS_PER_MESSAGE + _content_tokens(message.content) for message in fields.messages)
    return max(1, _tokens_in(fields.prompt if isinstance(fields, Completion) else fields.input))


def _content_tokens(content: str | list[Part] | None) -> int:
    if isinstance(content, str):
        return estimate_tokens(content)
    return 0 if content is None else sum(estimate_tokens(part.text) for part in content if part.text)


def _tokens_in(prompt: str | list[Any]) -> int:
    if isinstance(prompt, str):
        return estimate_tokens(prompt)
    return sum(1 if isinstance(part, int) else _tokens_in(part) for part in prompt)


def answer_limit(fields: Fields) -> int | None:
    """The caller's limit of the answer, tokens; 0 for embeddings."""
    if isinstance(fields, Chat):
        return fields.max_tokens if fields.max_completion_tokens is None else fields.max_completion_tokens
    return fields.max_tokens if isinstance(fields, Completion) else 0


def beginning(fields: Fields, limit: int = 256) -> str:
    """The first characters of the prompt, by which requests of one conversation or template are known again."""
    if isinstance(fields, Chat):
        first = fields.messages[0].content
        text = first if isinstance(first, str) else "".join(part.text or "" for part in first or ())
        return text[:limit]
    prompt = fields.prompt if isinstance(fields, Completion) else fields.input
    return prompt[:limit] if isinstance(prompt, str) else str(prompt[:limit])[:limit]
