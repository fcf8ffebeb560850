"""What comes in with a request before its JSON is read: headers that mean something here, and the body, in parts, with a cap."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from inferencegym.runtime.errors import ApiError, bad_request
from inferencegym.runtime.gateway import Head
from inferencegym.runtime.keys import Keyring
from inferencegym.runtime.stream import Message

Receive = Callable[[], Awaitable[Message]]
#: Headers that we look at; all others pass by.
_WISHES = frozenset({
    b"traceparent", b"x-slo-class", b"x-queue-ttl-ms", b"x-no-queue", b"x-session-affinity", b"x-tenant", b"x-stainless-read-timeout",
})  # fmt: skip
SEEN = _WISHES | {
    b"authorization", b"content-length", b"content-type", b"content-encoding", b"x-request-id", b"origin", b"accept", b"if-match",
    b"access-control-request-method",
}  # fmt: skip
_TRUE, _FALSE = frozenset({b"1", b"true", b"yes"}), frozenset({b"0", b"false", b"no", b""})


class ClientGoneError(Exception):
    """The client left before its request was whole: there is nobody to answer."""


def head_of(headers: dict[bytes, bytes], call_id: str, keyring: Keyring) -> Head:
    """What the headers say. ApiError 400, 401."""
    head = Head(call_id, key=keyring.find(headers.get(b"authorization")))
    if not _WISHES.isdisjoint(headers):  # most clients send none of these
        head.slo_class = _text(headers, b"x-slo-class")
        head.session = _text(headers, b"x-session-affinity")
        head.tenant = _text(headers, b"x-tenant")
        head.traceparent = _text(headers, b"traceparent")
        head.ttl_s = _number(headers, b"x-queue-ttl-ms") / 1e3
        head.timeout_s = _number(headers, b"x-stainless-read-timeout")
        head.no_queue = _flag(headers, b"x-no-queue")
    return head


async def body_of(receive: Receive, headers: dict[bytes, bytes], limit: int, typed: bool = True) -> bytes:
    """The request's body, at most `limit` bytes; `typed`: its type must be JSON if it is told. ApiError 413, 415; ClientGoneError."""
    declared = headers.get(b"content-length", b"0")
    if not declared.isdigit() or int(declared) > limit:
        raise _too_large(limit)
    if typed:
        _check_type(headers)
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGoneError
    body: bytes = message["body"]
    if message["more_body"]:
        body = await _rest(receive, body, limit)
    if len(body) > limit:
        raise _too_large(limit)
    return body


async def _rest(receive: Receive, body: bytes, limit: int) -> bytes:
    """The rest of a body that comes in parts. ApiError 413 as soon as it is too large."""
    parts, size, more = [body], len(body), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        parts.append(message["body"])
        size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
        more = message["more_body"]
    return b"".join(parts)


def _check_type(headers: dict[bytes, bytes]) -> None:
    kind = headers.get(b"content-type")
    if kind is not None:
        kind = kind.partition(b";")[0].strip().lower()
        if kind != b"application/json" and not kind.endswith(b"+json"):
            raise ApiError(
                415, "unsupported_media_type", "The body must be JSON: send 'Content-Type: application/json'"
            )
    coding = headers.get(b"content-encoding", b"identity").strip().lower()
    if coding != b"identity":
        raise ApiError(415, "unsupported_encoding", "The body must not be compressed")


def _too_large(limit: int) -> ApiError:
    return ApiError(413, "body_too_large", f"The request body is larger than {limit} bytes")


def _text(headers: dict[bytes, bytes], name: bytes) -> str:
    text = headers.get(name, b"").decode("latin-1").strip()
    if len(text) > 256:
        raise bad_request(f"{name.decode()} is longer than 256 characters", name.decode())
    return text


def _number(headers: dict[bytes, bytes], name: bytes) -> float:
    """A header's number above 0; infinite if there is none. ApiError 400."""
    value = headers.get(name)
    if value is None:
        return float("inf")
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not number > 0:
        raise bad_request(f"{name.decode()} must be a number above 0", name.decode())
    return number


def _flag(headers: dict[bytes, bytes], name: bytes) -> bool:
    value = headers.get(name, b"").strip().lower()
    if value not in _TRUE and value not in _FALSE:
        raise bad_request(f"{name.decode()} must be true or false", name.decode())
    return value in _TRUE
