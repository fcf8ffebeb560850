"""The dashboard behind the gateway: put together when somebody first asks for it, with the gateway's own rules of who may look."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from importlib.util import find_spec
from typing import Any

from inferencegym.ground.errors import MissingExtraError
from inferencegym.runtime.errors import ApiError
from inferencegym.runtime.keys import Keyring
from inferencegym.runtime.mounts import Guest, Prepare
from inferencegym.web.feed import Feed

PREFIX = "/dashboard"
#: What the extra `web` brings.
_EXTRA = "starlette"


def where(wanted: bool, url: str) -> str:
    """The start-up line's words on the dashboard."""
    if not wanted:
        return ""
    if not available():
        return f"; no dashboard: {_missing()}"
    return f", dashboard on {url}{PREFIX}"


def available() -> bool:
    """Whether the extra is installed; imports nothing of it."""
    return find_spec(_EXTRA) is not None


def preparing(feed: Feed | None, keyring: Keyring, *, several: bool) -> Prepare:
    """What imports the dashboard and makes it. `feed`: None where the extra is missing; `several`: this is one of several workers, so a viewer's next request may be another's."""

    def prepare() -> Callable[[], Guest]:
        if feed is None:
            raise _missing()
        from starlette.exceptions import HTTPException

        from inferencegym.web.app import make_dashboard
        from inferencegym.web.compose import sections
        from inferencegym.web.live import RuntimeSection

        # What settings mean is read out of their source the first time, which takes 50 ms: here it holds up nobody.
        feed.standing.settings()

        def authorise(request: Any) -> None:
            try:
                keyring.admin(request.headers.get("authorization", "").encode("latin-1"))
            except ApiError as error:
                challenge = {"www-authenticate": "Bearer"} if error.status == 401 else None
                raise HTTPException(error.status, error.message, challenge) from error

        def make() -> Guest:
            made = [RuntimeSection(feed), *sections()]
            # A run of the Arena lives in one process, and the next request for it may come to another worker.
            shown = [section for section in made if not (several and section.name == "arena")]
            app = make_dashboard(shown, server="serve", authorise=authorise if len(keyring) else None)
            return _Dashboard(app, [section.close for section in made])

        return make

    return prepare


def _missing() -> MissingExtraError:
    return MissingExtraError("web", "The dashboard")


class _Dashboard:
    """The application, and how it ends: the gateway's server knows no lifespan."""

    def __init__(self, app: Any, closers: list[Callable[[], None]]) -> None:
        self._app, self._closers = app, closers

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        await self._app(scope, receive, send)

    def close(self) -> None:
        """End what the sections have begun."""
        for close in self._closers:
            close()
