"""Browser tests: skipped without Playwright or a Chromium, each with the command that brings it. Servers start once a session, a browser once a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.web.browser.driving import HOW_TO_GET, PATIENCE_S, Server, Viewer, find_chromium, launch

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, and skip them where there is no Chromium before a server is started for them."""
    found = find_chromium()
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.browser)
            if found is None:
                item.add_marker(pytest.mark.skip(reason=HOW_TO_GET))


@pytest.fixture(scope="session")
def env_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`inferencegym env` with its dashboard."""
    server = Server("env", "pagedkv", "--no-web", log=tmp_path_factory.mktemp("env") / "log")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def serve_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`inferencegym serve` on the mock backend, with its dashboard."""
    server = Server("serve", "--backend", "mock", log=tmp_path_factory.mktemp("serve") / "log")
    yield server
    server.stop()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Makes servers that a test may kill."""
    made: list[Server] = []

    def make(*command: str, **options: Any) -> Server:
        made.append(Server(*command, log=tmp_path / f"log{len(made)}", **options))
        return made[-1]

    yield make
    for server in made:
        server.kill()


# One a file and not one a session: its loop runs in the main thread, where other tests call asyncio.run.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser without a window."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE_S * 1000)
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture
def viewers(browser: Browser) -> Iterator[Callable[..., Viewer]]:
    """Makes people with browsers of their own; at the end nothing may have gone wrong in any of their pages."""
    made: list[Viewer] = []

    def make(**options: Any) -> Viewer:
        made.append(Viewer(browser, **options))
        return made[-1]

    yield make
    problems = []
    for viewer in made:
        viewer.context.close()
        problems += viewer.watch.problems
    assert not problems, "\n".join(problems)


@pytest.fixture
def viewer(viewers: Callable[..., Viewer]) -> Viewer:
    """One person with a browser."""
    return viewers()
