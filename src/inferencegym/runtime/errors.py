"""Everything a client can be told went wrong, in OpenAI's envelope: status, type, code, message, parameter, and when to come back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

from inferencegym.ground.errors import InferenceGymError


@dataclass(eq=False)
class ApiError(InferenceGymError):
    """An answer that is an error. Raised anywhere on a request's way, told once: as a response, or as an event in a stream that has begun."""

    status: int
    """HTTP status."""
    code: str
    """What a program looks at: `model_not_found`, `queue_timeout`, ..."""
    message: str
    """What a person reads: what was wrong, what is allowed."""
    param: str | None = None
    """The field of the request that was wrong."""
    retry_after_s: float | None = None
    """When it is worth to try again; goes out as Retry-After (whole seconds, rounded up) and retry-after-ms."""

    def __post_init__(self) -> None:
        super().__init__(self.message)

    @property
    def type(self) -> str:
        """OpenAI's coarse kind of the status."""
        return _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def body(self) -> bytes:
        """The envelope, JSON."""
        return _ENCODER.encode(
            {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}
        )

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Retry-After and retry-after-ms, where there is a time."""
        if self.retry_after_s is None:
            return []
        whole = str(max(1, math.ceil(self.retry_after_s))).encode()
        return [(b"retry-after", whole), (b"retry-after-ms", str(math.ceil(self.retry_after_s * 1e3)).encode())]


_ENCODER = msgspec.json.Encoder()
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    412: "conflict_error",
    429: "rate_limit_error",
}


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """400: the request cannot be served as it is, now or later."""
    return ApiError(400, code, message, param)


def overloaded(message: str, retry_after_s: float, code: str = "server_is_overloaded") -> ApiError:
    """503: the whole server has too much to do."""
    return ApiError(503, code, message, retry_after_s=retry_after_s)


def slow_down(message: str, retry_after_s: float, code: str = "slow_down") -> ApiError:
    """429: this caller or class asks for more than its share."""
    return ApiError(429, code, message, retry_after_s=retry_after_s)
