"""What an OpenAI-compatible server sends, read once: server-sent events cut out of bytes, and each event's tokens, ends and usage.

The bytes stay what they are, for forwarding; only what the gateway counts is decoded. Tokens are counts.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from inferencegym.runtime.ports import BackendError, Piece, Usage

#: An event, an answer or an error body longer than this is not one.
MAX_EVENT_BYTES = 16 << 20


#: How many tokens; what is below or beyond is no count.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
#: What a raw field holds that is not there.
_NONE = msgspec.Raw(b"null")


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: msgspec.Raw = _NONE


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    finish_reason: str | None = None
    delta: _Delta | None = None
    text: str | None = None


class _Cached(msgspec.Struct, gc=False):
    cached_tokens: Count | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: _Cached | None = None


class Timings(msgspec.Struct, gc=False):
    """What llama.cpp says of one answer: tokens, and milliseconds of computing."""

    cache_n: Count = 0
    prompt_n: Count = 0
    prompt_ms: float = 0.0
    predicted_n: Count = 0
    predicted_ms: float = 0.0


class Event(msgspec.Struct, gc=False):
    """The parts of an event or of a whole answer that are counted."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    timings: Timings | None = None
    error: msgspec.Raw = _NONE

    def counted(self) -> Usage | None:
        """The tokens as the backend counted them; llama.cpp's `timings` where there is no usage."""
        if self.usage is not None:
            details = self.usage.prompt_tokens_details
            cached = 0 if details is None else details.cached_tokens or 0
            return Usage(self.usage.prompt_tokens or 0, self.usage.completion_tokens or 0, cached)
        if self.timings is not None:
            return Usage(self.timings.cache_n + self.timings.prompt_n, self.timings.predicted_n, self.timings.cache_n)
        return None


class _Error(msgspec.Struct, gc=False):
    message: str | None = None
    code: int | str | None = None


_EVENT = msgspec.json.Decoder(Event)
_ERROR = msgspec.json.Decoder(_Error)
_ANY = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read_event(raw: bytes) -> Event:
    """The event, or the whole answer, in these bytes. BackendError if they are no such thing, or if it tells of an error."""
    try:
        event = _EVENT.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise garbage(f"{error}: {_short(raw)}") from None
    if event.error != _NONE:
        raise told(raw, 500)
    return event


def piece_of(event: Event, raw: bytes, whole: bool) -> Piece:
    """The piece to hand on. Of an event without usage, each choice with content counts as one token."""
    tokens = index = 0
    finish = None
    for choice in event.choices or ():
        index = choice.index
        if choice.finish_reason is not None:
            finish = choice.finish_reason
        delta = choice.delta
        if choice.text or (delta is not None and (delta.content or _says_more(delta))):
            tokens += 1
    usage = None if event.usage is None and event.timings is None else event.counted()
    if whole and usage is not None:
        tokens = usage.completion_tokens
    return Piece("", tokens, index, finish, raw, usage)


def _says_more(delta: _Delta) -> bool:
    return bool(delta.reasoning_content or delta.reasoning or delta.refusal or delta.tool_calls != _NONE)


def garbage(what: str) -> BackendError:
    """The backend sent something that is not the protocol."""
    return BackendError(f"the backend sent what cannot be read: {what}", code="backend_garbage")


def told(body: bytes, status: int, retry_after_s: float | None = None) -> BackendError:
    """The error that a backend told, `status` unless the body has one of its own (llama.cpp's events have)."""
    message = code = None
    try:
        fields = _ANY.decode(body)
        inner = fields.get("error", body)
        # OpenAI: {"error": {...}}; older vLLM: the object itself; some: {"error": "text"} or {"detail": "text"}.
        if bytes(inner)[:1] == b"{":
            error = _ERROR.decode(inner)
            message, code = error.message, error.code
        else:
            message = msgspec.json.decode(inner, type=str)
        if message is None and "detail" in fields:
            message = bytes(fields["detail"]).decode("utf-8", "replace").strip('"')
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        message = _short(body)
    if isinstance(code, int) and 400 <= code < 600 and status >= 500:
        status = code
    return BackendError(
        message or f"the backend answered {status}",
        status=status,
        code=code if isinstance(code, str) and code else f"backend_{status}",
        body=body,
        retry_after_s=retry_after_s,
        # 501: it cannot do this; 503 with a time and 529: busy. Neither says that it is ill.
        fault=status >= 500 and status not in (501, 529) and not (status == 503 and retry_after_s is not None),
        sent=status not in (429, 503, 529),
    )


def _short(raw: bytes) -> str:
    return repr(raw[:80].decode("utf-8", "replace")) + (" ..." if len(raw) > 80 else "")


class EventStream:
    """Cuts server-sent events out of bytes that come in any portions. Lines may end in LF or CRLF; comments and other fields are dropped."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The `data` of the events that are now whole, in order (several lines of one event joined by LF)."""
        if self._rest:
            data = self._rest + data
        elif data.endswith(b"\n\n") and data.count(b"\n") == 2 and data.startswith(b"data: {"):
            return [data[6:-2]]  # what comes nearly always: one event in one piece
        held = b""
        if b"\r" in data:
            # JSON never holds a bare CR, so it can only belong to a line's end; one at the very end waits for its LF.
            if data.endswith(b"\r"):
                data, held = data[:-1], b"\r"
            data = data.replace(b"\r\n", b"\n")
        whole, _, rest = data.rpartition(b"\n\n")
        self._rest = rest + held
        if len(self._rest) > MAX_EVENT_BYTES:
            raise garbage(f"an event of more than {MAX_EVENT_BYTES} bytes")
        return self._events(whole) if whole else []

    def end(self) -> list[bytes]:
        """The stream has ended: an event whose blank line did not come any more."""
        rest, self._rest = self._rest.strip(), b""
        return self._events(rest) if rest else []

    @staticmethod
    def _events(whole: bytes) -> list[bytes]:
        events = []
        for block in whole.split(b"\n\n"):
            if block.startswith(b"data: {") and b"\n" not in block:
                events.append(block[6:])
                continue
            lines = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
            if any(lines):
                events.append(b"\n".join(lines))
        return events
