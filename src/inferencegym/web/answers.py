"""How the dashboard's interface answers: JSON, and errors as `{"error": {"message", "field", "allowed"}}` with a status that fits."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from inferencegym.ground.errors import ConfigError, InferenceGymError, OfflineError, UnknownNameError
from inferencegym.web.desk import DeskError

#: Largest body of a request, bytes.
MOST_BYTES = 1 << 20


def answer(value: Any, status: int = 200) -> Response:
    """A value as JSON; floats with every digit."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def refusal(status: int, message: str, *, field: str | None = None, allowed: str | None = None) -> Response:
    """An error as the pages expect it."""
    return answer({"error": {"message": message, "field": field, "allowed": allowed}}, status)


async def body(request: Request, kind: type[Any]) -> Any:
    """A JSON body of a kind. ConfigError where it is something else; a body must come as application/json, which no foreign page can send unasked."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "Send JSON, with the header content-type: application/json")
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MOST_BYTES:
            raise HTTPException(413, f"The body is larger than {MOST_BYTES >> 10} KiB")
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise ConfigError("body", str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError("body", f"is no JSON: {error}", allowed="a JSON object") from error


def number(request: Request, name: str, default: int, most: int) -> int:
    """A whole number from 0 to `most` of an address's query; ConfigError for anything else."""
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(most)) and int(text) <= most):
        raise ConfigError(name, f"'{text[:40]}' is no such number", allowed=f"whole numbers 0..{most}")
    return int(text)


async def ours(_: Request, error: Exception) -> Response:
    """An error that a person can cause."""
    assert isinstance(error, InferenceGymError)
    if isinstance(error, UnknownNameError):
        return refusal(400, str(error), field=error.kind, allowed=", ".join(error.known))
    if isinstance(error, ConfigError):
        return refusal(400, str(error), field=error.field, allowed=error.allowed)
    return refusal(503 if isinstance(error, DeskError | OfflineError) else 400, str(error))


async def http(_: Request, error: Exception) -> Response:
    """What routing refuses: an unknown path, another method."""
    assert isinstance(error, HTTPException)
    said = refusal(error.status_code, error.detail)
    said.headers.update(error.headers or {})
    return said
