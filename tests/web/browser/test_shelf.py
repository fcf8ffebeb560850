"""Workloads side by side, and the leaderboard, whose rows lead into the Arena."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("playwright", reason="playwright is not installed: pip install '.[dev]'")

from playwright.sync_api import expect

from tests.web.browser.driving import ended


def test_two_workloads_side_by_side(env_server, viewer):
    page = viewer.open(f"{env_server.page}/workloads")
    page.locator("#workload-a").select_option("azure-conversation")
    page.locator("#workload-b").select_option("azure-code")
    figures = page.locator("#figures")
    expect(figures).to_contain_text("azure-conversation")
    expect(figures).to_contain_text("azure-code")
    expect(page.locator("figure[data-chart]").first).to_be_visible()
    expect(page.locator("main")).to_contain_text("inferencegym traces describe")
    assert "a=azure-conversation" in page.url
    assert "b=azure-code" in page.url
    shown = figures.inner_text()
    page.reload()
    expect(page.locator("#figures")).to_have_text(shown, use_inner_text=True)


def test_an_unknown_workload_is_an_error_that_says_what_there_is(env_server, viewer):
    with viewer.watch.expecting("400", "404"):
        page = viewer.open(f"{env_server.page}/workloads?a=nothing-of-that-name")
        expect(page.locator("main")).to_contain_text(re.compile("nothing-of-that-name"))


def test_the_leaderboard_is_sorted_and_leads_into_the_arena(env_server, viewer):
    page = viewer.open(f"{env_server.page}/leaderboard")
    board = page.locator("#board")
    expect(board).to_be_visible()
    hard = board.locator("[data-task=hard]").first
    rows = hard.locator("[data-policy]")
    before = [row.get_attribute("data-policy") for row in rows.all()]
    assert len(before) >= 3
    header = hard.locator("thead button").first
    header.click()
    until_sorted = [row.get_attribute("data-policy") for row in rows.all()]
    assert sorted(until_sorted) == sorted(before)
    assert until_sorted != before
    hard.locator("[data-policy=sieve] a[href*='arena?']").first.click()
    assert "/arena?" in page.url
    ended(page, 2, 180)
