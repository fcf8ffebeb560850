"""A gateway somewhere else as a Plant: snapshots and knobs over HTTP, one connection kept open, nothing but the standard library.

The gateway answers `GET /v1/runtime/plant` with a snapshot (null for what is not known) and `POST` with what became of a command; both are for
administrators. Times are seconds; a snapshot's age is the time that its answer took.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from inferencegym.decision.knobs import Applied, Knobs
from inferencegym.decision.snapshot import NAMES, Snapshot
from inferencegym.ground.errors import ConfigError, InputError, OfflineError

PATH = "/v1/runtime/plant"
_CONFIG = "/v1/runtime/config"
#: Characters of a name that a gateway takes.
MOST_NAME = 200


class RemotePlant:
    """Sees and steers a gateway by its URL."""

    def __init__(self, url: str, *, key: str = "", timeout_s: float = 10.0, clock: Callable[[], float] = time.monotonic, policy: str = "", guard: str = "") -> None:  # fmt: skip
        """`url`: http(s)://host[:port], with or without /v1; `key`: an administrator's API key; `timeout_s`: of each exchange; `policy` and
        `guard`: names of who is at the wheel, for those who look at the gateway.
        """
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("url", f"'{url}' is no address of a gateway", allowed="http://host:port or https://host")
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self.url = url
        self._connection = kind(parts.hostname, port, timeout=timeout_s)
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self._clock = clock
        self.name(policy, guard)
        self._headers = {"content-type": "application/json"}
        if key:
            self._headers["authorization"] = f"Bearer {key}"

    def name(self, policy: str, guard: str) -> None:
        """Who is at the wheel from the next command on."""
        self._who = {name: _label(value) for name, value in (("policy", policy), ("guard", guard)) if value}

    def snapshot(self) -> Snapshot:
        """The window since anybody last asked, as the gateway saw it. OfflineError: it cannot be reached; InputError: it says something else."""
        begun_s = self._clock()
        told = self._exchange("GET", None)
        if set(told) != set(NAMES):
            odd = sorted(set(told) ^ set(NAMES))[0]
            raise InputError(
                f"the gateway at {self.url} and this release disagree about the field '{odd}' of a snapshot"
            )
        values = np.array([np.nan if told[name] is None else float(told[name]) for name in NAMES])
        seen = Snapshot.of(values)
        return replace(seen, snapshot_age_s=seen.snapshot_age_s + self._clock() - begun_s)

    def apply(self, command: Knobs) -> Applied:
        """Turn knobs there; says what took effect. A command that sets nothing is not sent."""
        given = command.given()
        if not given:
            return Applied()
        told = self._exchange("POST", json.dumps(self._who | {name: _plain(value) for name, value in given.items()}))
        return Applied(dict(told.get("accepted", {})), dict(told.get("refused", {})))

    def has_objectives(self) -> bool:
        """Whether any class there has an objective for its time to first token; if none has, the SLO share of a snapshot is always 1. InputError: it does not say."""
        told = self._exchange("GET", None, _CONFIG)
        try:
            classes = told["settings"]["classes"].values()
            return any(one["ttft_slo_s"] is not None for one in classes)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"the gateway at {self.url} does not say what its classes are promised") from error

    def release(self) -> None:
        """Give batch_cap back there: as many requests in flight as there are seats, as before anybody turned it."""
        self._exchange("DELETE", None)

    def close(self) -> None:
        """Close the connection; the next exchange opens another."""
        self._connection.close()

    def __enter__(self) -> RemotePlant:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _exchange(self, method: str, body: str | None, path: str = PATH) -> dict[str, Any]:
        """One question. A connection that the gateway closed meanwhile is opened again, once; a command is never sent twice after that."""
        fresh = self._connection.sock is None
        try:
            status, answer = self._once(method, path, body)
        except (HTTPException, OSError) as error:
            self.close()
            # A kept connection may have been closed by the other side while nobody asked: then nothing was heard of this question.
            if fresh or not isinstance(error, ConnectionError):
                raise self._gone(error) from error
            try:
                status, answer = self._once(method, path, body)
            except (HTTPException, OSError) as again:
                self.close()
                raise self._gone(again) from again
        return self._read(status, answer)

    def _once(self, method: str, path: str, body: str | None) -> tuple[int, bytes]:
        self._connection.request(method, self._path + path, body, self._headers)
        response = self._connection.getresponse()
        return response.status, response.read()

    def _gone(self, error: Exception) -> OfflineError:
        return OfflineError(f"the gateway at {self.url} cannot be reached ({error}); is it running there?")

    def _read(self, status: int, answer: bytes) -> dict[str, Any]:
        try:
            told = json.loads(answer)
        except ValueError:
            told = None
        if status == 200 and isinstance(told, dict):
            return told
        error = told.get("error") if isinstance(told, dict) else None
        message = error.get("message", "") if isinstance(error, dict) else answer[:200].decode(errors="replace")
        if status in (401, 403):
            raise ConfigError("key", f"is not accepted by {self.url} ({message})", allowed="an administrator's API key")
        raise InputError(f"the gateway at {self.url} answered {status}: {message}")


def _label(text: str) -> str:
    """A name as a gateway takes it: at most 200 characters that can be printed."""
    short = text if len(text) <= MOST_NAME else text[: MOST_NAME - 3] + "..."
    return "".join(c if c.isprintable() else "?" for c in short)


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value
