"""Everything the server answers itself: models, health, metrics, the live configuration, drain, and the description of it all."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import msgspec

from inferencegym import __version__
from inferencegym.decision.knobs import LEVERS, Knobs
from inferencegym.decision.plant import Plant
from inferencegym.ground.errors import ConfigError
from inferencegym.runtime.app import Call, Page, Reply
from inferencegym.runtime.errors import ApiError, bad_request
from inferencegym.runtime.gateway import Gateway
from inferencegym.runtime.live import LiveConfig, version_of
from inferencegym.runtime.openapi import document
from inferencegym.runtime.steering import Steering
from inferencegym.runtime.wire import not_json

_encode = msgspec.json.Encoder().encode
#: Seconds after which a gateway that drains, or has no backend, may be asked again.
_RETRY_S = 2.0


class Metrics(Protocol):
    """What is counted, for whoever scrapes."""

    def prometheus(self) -> str:
        """In Prometheus' text format."""

    def json(self) -> Mapping[str, Any]:
        """The same as an object."""


@runtime_checkable
class Releasable(Plant, Protocol):
    """A plant whose batch_cap can be given back to whoever had it before."""

    def release_batch_cap(self) -> None:
        """As if it had never been turned."""


class Wanted(msgspec.Struct):
    """The body of `PATCH /v1/runtime/config`."""

    changes: dict[str, Any]
    """Dotted names to new values, or sections as objects."""
    reason: str = ""
    dry_run: bool = False
    version: int | None = None
    """The version that the change was made for; 412 if it is not the one in force."""


class Revert(msgspec.Struct):
    """The body of `POST /v1/runtime/config/revert`."""

    to: int
    reason: str = ""
    dry_run: bool = False
    version: int | None = None


def read(body: bytes, kind: type[Any]) -> Any:
    """A page's body. ApiError 400."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise bad_request(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise not_json(error) from error


class Pages:
    """The pages of one gateway."""

    def __init__(
        self, gateway: Gateway, live: LiveConfig | None, metrics: Metrics | None, plant: Plant | None = None,
        steering: Steering | None = None,
    ) -> None:  # fmt: skip
        """`steering`: is told of each command to the plant; None: nobody is."""
        self._gateway, self._live, self._metrics, self._plant = gateway, live, metrics, plant
        self._steering = steering
        self._born = int(time.time())
        self._document: bytes | None = None

    def table(self, more: Mapping[str, Mapping[str, Page]] | None = None) -> dict[str, Mapping[str, Page]]:
        """Path to method to page."""
        table: dict[str, dict[str, Page]] = {
            "/v1/models": {"GET": self.models},
            "/v1/models/*": {"GET": self.model},
            "/health": {"GET": self.ready},
            "/readyz": {"GET": self.ready},
            "/livez": {"GET": self.live},
            "/ping": {"GET": self.live},
            "/version": {"GET": self.version},
            "/openapi.json": {"GET": self.openapi},
            "/v1/runtime/drain": {"GET": _admin(self.drain_state), "POST": _admin(self.drain), "DELETE": _admin(self.resume)},
        }  # fmt: skip
        if self._metrics is not None:
            table["/metrics"] = {"GET": self.metrics}
        if self._live is not None:
            table["/v1/runtime/config"] = {"GET": _admin(self.config), "PATCH": _admin(self.change)}
            table["/v1/runtime/config/revert"] = {"POST": _admin(self.revert)}
            table["/v1/runtime/config/audit"] = {"GET": _admin(self.audit)}
        if self._plant is not None:
            table["/v1/runtime/plant"] = {"GET": _admin(self.snapshot), "POST": _admin(self.apply)}
            if isinstance(self._plant, Releasable):
                table["/v1/runtime/plant"] |= {"DELETE": _admin(self.release)}
        return {**table, **(more or {})}

    async def models(self, call: Call) -> Reply:
        """The names that can be asked for."""
        call.app.keyring.find(call.headers.get(b"authorization"))
        return Reply(_encode({"object": "list", "data": [self._model(name) for name in self._gateway.pool.models()]}))

    async def model(self, call: Call) -> Reply:
        """One of them: `/v1/models/NAME`."""
        call.app.keyring.find(call.headers.get(b"authorization"))
        name = call.path.removeprefix("/v1/models/")
        if name not in self._gateway.pool.models():
            raise ApiError(404, "model_not_found", f"There is no model '{name[:200]}' here", "model")
        return Reply(_encode(self._model(name)))

    def _model(self, name: str) -> dict[str, Any]:
        lengths = [s.able.max_model_len for s in self._gateway.dispatcher.seats if name in s.backend.models]
        known = [length for length in lengths if length is not None]
        more = {"max_model_len": min(known)} if known else {}
        return {"id": name, "object": "model", "created": self._born, "owned_by": "inferencegym", **more}

    async def ready(self, call: Call) -> Reply:
        """200 while requests are taken, else 503."""
        gateway = self._gateway
        if gateway.ready():
            return Reply(b'{"status":"ok"}')
        why = ("draining", "The server is shutting down") if gateway.draining else ("not_ready", "No backend is well") if gateway.started else ("starting", "The backends are starting")  # fmt: skip
        raise ApiError(503, *why, retry_after_s=_RETRY_S)

    async def live(self, call: Call) -> Reply:
        """200 as long as the process answers, also while it drains."""
        return Reply(b'{"status":"ok"}')

    async def version(self, call: Call) -> Reply:
        """Which release this is."""
        return Reply(_encode({"version": __version__}))

    async def metrics(self, call: Call) -> Reply:
        """JSON if it is asked for (`?format=json`, or Accept), else Prometheus' text."""
        assert self._metrics is not None, "the page is only in the table if there are metrics"
        accept = call.headers.get(b"accept", b"")
        if b"format=json" in call.query or (b"application/json" in accept and b"text/plain" not in accept):
            return Reply(_encode(self._metrics.json()))
        text = self._metrics.prometheus().encode()
        return Reply(text, headers=[(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")])

    async def openapi(self, call: Call) -> Reply:
        """What there is, as OpenAPI 3.1."""
        if self._document is None or not self._gateway.started:
            gateway, guarded = self._gateway, len(call.app.keyring) > 0
            classes = tuple(one.name for one in gateway.settings.classes)
            self._document = _encode(document(frozenset(self.table()), guarded, gateway.pool.models(), classes))
        return Reply(self._document)

    # --- the live configuration ------------------------------------------------------------------------------------------

    async def config(self, call: Call) -> Reply:
        """What is in force, what can change, within which bounds."""
        assert self._live is not None, "the page is only in the table if settings are live"
        return Reply(_encode(self._live.get()))

    async def change(self, call: Call) -> Reply:
        """Change some settings, all or none."""
        assert self._live is not None, "the page is only in the table if settings are live"
        wanted: Wanted = read(call.body, Wanted)
        change = self._live.patch(
            wanted.changes, by=_who(call), reason=wanted.reason, expected_version=_expected(call, wanted.version), dry_run=wanted.dry_run
        )  # fmt: skip
        return Reply(_encode(change.json()))

    async def revert(self, call: Call) -> Reply:
        """Back to an earlier version."""
        assert self._live is not None, "the page is only in the table if settings are live"
        wanted: Revert = read(call.body, Revert)
        change = self._live.revert(
            wanted.to, by=_who(call), reason=wanted.reason, expected_version=_expected(call, wanted.version), dry_run=wanted.dry_run
        )  # fmt: skip
        return Reply(_encode(change.json()))

    async def audit(self, call: Call) -> Reply:
        """Every change since the start, oldest first."""
        assert self._live is not None, "the page is only in the table if settings are live"
        return Reply(_encode({"changes": [change.json() for change in self._live.audit()]}))

    # --- the plant -------------------------------------------------------------------------------------------------------

    async def snapshot(self, call: Call) -> Reply:
        """What a policy may know; the window since the last time somebody asked. null for what is not known."""
        assert self._plant is not None, "the page is only in the table if there is a plant"
        return Reply(_encode(self._plant.snapshot()))

    async def apply(self, call: Call) -> Reply:
        """Turn knobs, as a policy does; says which took effect, and why the others did not. `policy` and `guard` name who is at the wheel."""
        assert self._plant is not None, "the page is only in the table if there is a plant"
        given: dict[str, Any] = read(call.body, dict[str, Any])
        told = {name: _name(name, given.pop(name)) for name in ("policy", "guard") if name in given}
        unknown = next((name for name in given if name not in LEVERS), None)
        if unknown is not None:
            raise bad_request(f"There is no knob '{unknown[:100]}'; there are: {', '.join(LEVERS)}", unknown[:100])
        try:
            # 3.0 is a whole number in JSON: by way of the levers it becomes one here.
            applied = self._plant.apply(Knobs.of(Knobs(**given).levers()))
        except ConfigError as error:
            raise bad_request(str(error), error.field) from error
        if self._steering is not None:
            self._steering.note(applied, by=_who(call), **told)
        return Reply(_encode({"accepted": applied.accepted, "refused": applied.refused}))

    async def release(self, call: Call) -> Reply:
        """Nobody holds the seats any more: batch_cap is what the backends have, which may be more than a command can say. Other knobs stay."""
        assert isinstance(self._plant, Releasable), "the page is only in the table if the plant can"
        self._plant.release_batch_cap()
        return Reply(b'{"released":["batch_cap"]}')

    # --- drain -----------------------------------------------------------------------------------------------------------

    async def drain(self, call: Call) -> Reply:
        """Take nothing new: for a preStop hook, before SIGTERM."""
        self._gateway.drain()
        return self._state()

    async def resume(self, call: Call) -> Reply:
        """Take requests again."""
        self._gateway.resume()
        return self._state()

    async def drain_state(self, call: Call) -> Reply:
        """Whether it drains, and what is still under way."""
        return self._state()

    def _state(self) -> Reply:
        gateway = self._gateway
        return Reply(_encode({"draining": gateway.draining, "under_way": gateway.under_way(), "waiting": gateway.waiting()}))  # fmt: skip


def _admin(page: Page) -> Page:
    """A page for administrators only."""

    async def guarded(call: Call) -> Reply:
        call.app.keyring.admin(call.headers.get(b"authorization"))
        return await page(call)

    return guarded


def _name(field: str, value: object) -> str:
    """What a sender calls its policy or guard. ApiError 400."""
    if not isinstance(value, str) or len(value) > 200 or not value.isprintable():
        raise bad_request(f"{field} must be a name of at most 200 characters", field)
    return value


def _who(call: Call) -> str:
    key = call.app.keyring.find(call.headers.get(b"authorization"))
    return key.name if key is not None else "anybody"


def _expected(call: Call, version: int | None) -> int | None:
    """The version a change was made for: the body's word, else If-Match."""
    tag = call.headers.get(b"if-match")
    return version if version is not None or tag is None else version_of(tag.decode("latin-1"))
