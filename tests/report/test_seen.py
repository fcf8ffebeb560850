"""The reports in a real browser: axe-core finds nothing serious, a phone does not scroll them sideways, and paper gets all of them, black on white."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.report.conftest import VERBS
from tests.web.browser.driving import HOW_TO_GET, NARROWEST, Watch, faults, find_chromium, launch, sideways_px, widest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.skipif(find_chromium() is None, reason=HOW_TO_GET)]
#: Width of A4 between margins of 14 mm, CSS pixels.
A4_PX = 688


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser without a window."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


@pytest.fixture(params=VERBS)
def opened(
    request: pytest.FixtureRequest, browser: Browser, made: dict[str, tuple[str, str]], tmp_path: Path
) -> Iterator[Page]:
    """Each report in a dark browser; at the end it has asked for nothing and complained of nothing."""
    file = tmp_path / "report.html"
    file.write_text(made[request.param][1])
    context = browser.new_context(color_scheme="dark", viewport={"width": 1300, "height": 900})
    watch = Watch(context)
    page = context.new_page()
    page.goto(file.as_uri())
    yield page
    context.close()
    assert watch.problems == []


def unfold(page: Page) -> None:
    """Open what is folded up."""
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true })")


def test_axe_finds_nothing_serious_in_dark_and_light(opened: Page) -> None:
    unfold(opened)
    assert faults(opened) == []
    opened.evaluate("document.documentElement.dataset.theme = 'light'")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert faults(opened) == []


def test_a_phone_does_not_scroll_sideways(opened: Page) -> None:
    opened.set_viewport_size({"width": NARROWEST, "height": 800})
    unfold(opened)
    assert sideways_px(opened) <= 0, widest(opened)


def test_print_is_black_on_white_unfolded_and_not_cut_off(opened: Page) -> None:
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
    opened.set_viewport_size({"width": A4_PX, "height": 970})
    opened.emulate_media(media="print")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert sideways_px(opened) <= 0, widest(opened)
    folded = "[...document.querySelectorAll('details > :not(summary)')].filter((one) => one.getBoundingClientRect().height < 1).length"
    assert opened.evaluate(folded) == 0
