"""API keys: found by their hash, compared in constant time, and strong enough where others than this machine can knock."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Sequence

from inferencegym.ground.errors import ConfigError
from inferencegym.runtime.errors import ApiError
from inferencegym.runtime.settings import Key, Settings

#: Keys that everybody tries first.
_WEAK_WORDS = (
    "", "key", "test", "token", "secret", "password", "admin", "default", "changeme", "change-me", "example", "none", "null", "empty",
    "sk-1234", "sk-test", "sk-123", "1234", "12345", "123456", "12345678", "api-key", "apikey", "api_key", "token-abc123", "EMPTY", "inferencegym",
)  # fmt: skip
_WEAK = frozenset(hashlib.sha256(word.encode()).hexdigest() for word in _WEAK_WORDS)


class Keyring:
    """The keys that open this server; without any it is open."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._keys = [(bytes.fromhex(key.sha256), key) for key in keys]

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, authorization: bytes | None) -> Key | None:
        """Whose key a header `Authorization: Bearer ...` holds; None on a server without keys. ApiError 401."""
        if not self._keys:
            return None
        scheme, _, token = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer" or not token.strip():
            raise _unknown("No API key; send it as 'Authorization: Bearer KEY'", "missing_api_key")
        digest = hashlib.sha256(token.strip()).digest()
        # All are compared, each in constant time: how long it takes says nothing of which fitted, or how nearly.
        fits = [key for known, key in self._keys if hmac.compare_digest(known, digest)]
        if not fits:
            raise _unknown("The API key is not known here", "invalid_api_key")
        return fits[0]

    def admin(self, authorization: bytes | None) -> Key | None:
        """The same for who may change the server. ApiError 401, 403."""
        key = self.find(authorization)
        if key is not None and not key.admin:
            raise ApiError(403, "not_an_admin", f"The key '{key.name}' may not see or change the configuration")
        return key


def _unknown(message: str, code: str) -> ApiError:
    return ApiError(401, code, message)


def check_exposure(settings: Settings) -> None:
    """ConfigError when the server would listen beyond this machine with no key, or with one that everybody tries first."""
    for key in settings.keys:
        if key.sha256 in _WEAK:
            raise ConfigError(f"keys.{key.name}.sha256", "is the hash of a key that everybody tries first", allowed="a key of 16 characters or more; `inferencegym serve key` makes one")  # fmt: skip
    if not settings.keys and not is_loopback(settings.server.host):
        raise ConfigError("server.host", f"{settings.server.host} can be reached from other machines, and there is no API key", allowed="127.0.0.1, or keys: `inferencegym serve key` makes one")  # fmt: skip


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def new_key() -> tuple[str, str]:
    """A new key, and its hash: the one for its holder, the other for the settings."""
    key = f"sk-{secrets.token_urlsafe(32)}"
    return key, hashlib.sha256(key.encode()).hexdigest()
