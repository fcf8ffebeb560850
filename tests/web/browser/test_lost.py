"""What a viewer sees when the connection is lost or the server starts again: a clear message, the same numbers afterwards, and no change for anyone else."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("playwright", reason="playwright is not installed: pip install '.[dev]'")

from playwright.sync_api import expect

from tests.web.browser.driving import Wire, arena_path, ended

TWO = ("sieve", "lru")
SIX = (*TWO, "largest-first", "size-and-age", "vip-first", "swapper")
#: Long enough that a wire can be cut in the middle of it.
LONG = arena_path("hard", SIX, seed=7)


def figures(page):
    return page.locator("[data-card]").all_inner_texts()


def banner(page):
    return page.locator("#banners [data-banner]")


def started(page):
    """Wait until something of the run has arrived."""
    page.wait_for_function("() => Number(document.querySelector('#playhead')?.value ?? 0) > 100")


def test_a_cut_connection_is_told_and_the_run_goes_on_where_it_was(env_server, viewers):
    wire = Wire(env_server.port)
    try:
        mine, other = viewers(), viewers()
        page, theirs = mine.open(wire.page + LONG), other.open(env_server.page + LONG)
        started(page)
        with mine.watch.expecting("ERR_", "Failed to load"):
            wire.cut()
            expect(banner(page).first).to_contain_text(re.compile("connection|lost|reach", re.IGNORECASE))
            ended(theirs, 6, 120)
            assert page.locator("[data-card][data-state=running]").count() > 0, (
                "the page claims an end that it cannot know"
            )
            assert banner(theirs).count() == 0
            wire.mend()
            now = page.locator("#banners").get_by_role("button", name=re.compile("now|again", re.IGNORECASE))
            if now.count():
                now.first.click()
            ended(page, 6, 120)
        assert figures(page) == figures(theirs)
        expect(banner(page)).to_have_count(0)
    finally:
        wire.close()


def test_a_server_that_starts_again_plays_the_run_again(own_server, viewers):
    server = own_server("env", "pagedkv", "--no-web")
    viewer = viewers()
    page = viewer.open(server.page + arena_path("hard", TWO, seed=7, horizon_ticks=3000))
    ended(page, 2)
    before = figures(page)
    fresh = viewer.open(server.page + LONG)
    started(fresh)
    with viewer.watch.expecting("ERR_", "Failed to load", "404"):
        server.kill()
        expect(banner(fresh).first).to_contain_text(re.compile("connection|lost|reach", re.IGNORECASE))
        server.start()
        expect(banner(fresh).filter(has_text=re.compile("restarted|again", re.IGNORECASE)).first).to_be_visible()
        ended(fresh, 6, 120)
        page.reload()
        ended(page, 2)
    assert figures(page) == before


def test_offline_a_start_is_refused_in_words(env_server, viewer):
    page = viewer.open(f"{env_server.page}/arena")
    page.locator("#task").select_option("easy")
    with viewer.watch.expecting("ERR_INTERNET_DISCONNECTED", "Failed to load"):
        viewer.context.set_offline(True)
        page.locator("#start").click()
        expect(page.get_by_text("cannot be reached").first).to_be_visible()
        viewer.context.set_offline(False)


def test_an_episode_of_a_server_that_starts_again_goes_on_and_stops_complaining(own_server, viewers):
    server = own_server("env", "pagedkv", "--no-web")
    viewer = viewers()
    page = viewer.open(server.page + LONG.replace("/arena?", "/episode?") + "&policy=0")
    expect(page.locator("#position")).to_contain_text(re.compile(r"tick [1-9]"))
    with viewer.watch.expecting("ERR_", "Failed to load", "404"):
        server.kill()
        expect(banner(page).first).to_contain_text("connection")
        server.start()
        expect(banner(page).filter(has_text="restarted")).to_be_visible()
        expect(banner(page).filter(has_text="lost")).to_have_count(0)
        expect(page.locator("#state[data-state=completed]")).to_be_visible(timeout=120_000)
