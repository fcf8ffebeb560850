"""What a stranger sees first, without scrolling: the run one came for, a way to begin, why a policy crashed, and words while the server still works."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("playwright", reason="playwright is not installed: pip install '.[dev]'")

from playwright.sync_api import expect

from tests.web.browser.driving import PHONE, WIDE, arena_path, ended

SIX = ("learned", "sieve", "swapper", "lru", "largest-first", "vip-first")


def bottom(locator):
    box = locator.bounding_box()
    return box["y"] + box["height"]


def test_six_cards_and_their_scores_fit_the_first_screen(env_server, viewer):
    page = viewer.open(env_server.page + arena_path("hard", SIX, horizon_ticks=300))
    ended(page, 6)
    for card in page.locator("[data-card]").all():
        assert bottom(card) < WIDE["height"]
        expect(card).to_contain_text("Final score")
    assert bottom(page.locator("figure[data-chart='Score so far']")) < WIDE["height"]
    page.locator("#playhead").focus()
    page.keyboard.press("Home")
    expect(page.locator("[data-card]").first).to_contain_text("Score so far")


def test_a_chart_tells_each_policys_last_value_where_it_ended_before_the_playhead(env_server, viewer):
    page = viewer.open(env_server.page + arena_path("hard", ("fixed:8", "sieve"), horizon_ticks=2000))
    ended(page, 2)
    crashed = page.locator("[data-card][data-state=crashed]")
    expect(crashed).to_have_count(1)
    told = page.locator("figure[data-chart='Requests completed'] .keys .value").first
    told.scroll_into_view_if_needed()
    expect(told).to_have_text(crashed.locator("dl:not(.score) dd").first.inner_text())


def test_a_policy_is_taken_out_of_the_charts_and_put_back(env_server, viewer):
    page = viewer.open(env_server.page + arena_path("hard", SIX[1:3], horizon_ticks=300))
    ended(page, 2)
    shown = page.get_by_role("checkbox", name="Draw sieve in the charts")
    legend = page.locator("figure[data-chart='Score so far'] .keys li").first
    shown.uncheck()
    expect(legend).to_have_attribute("data-off", "true")
    shown.check()
    expect(legend).to_have_attribute("data-off", "false")


def test_on_a_phone_the_examples_come_first_and_one_begins_a_run(env_server, viewers):
    page = viewers(width=PHONE).open(f"{env_server.page}/arena")
    example = page.get_by_role("button", name="Four policies on hard")
    assert bottom(example) < 400
    example.click()
    expect(page.locator("[data-card]")).to_have_count(4)
    expect(page.locator("#pause")).to_be_focused()  # what was pressed is gone; the keyboard goes on from here
    expect(page.locator("[data-card]").first).to_be_in_viewport()


def test_from_the_card_of_a_crash_to_its_reason_in_one_click(env_server, viewers):
    page = viewers(width=PHONE).open(
        env_server.page + arena_path("hard", ("lru", "sieve"), horizon_ticks=1500, gpu_blocks=1000)
    )
    ended(page, 2)
    page.get_by_role("button", name="Why it crashed: lru").click()
    why = page.locator("#why")
    expect(why).to_be_focused()
    expect(why).to_contain_text(re.compile(r"Crashed at tick \d+"))
    expect(page.get_by_role("heading", name="Why did it crash?")).to_be_in_viewport()
    expect(page.locator("#decision")).not_to_have_value("0")


def test_while_the_server_works_the_page_has_a_heading_and_says_so(env_server, viewer):
    held = []
    page = viewer.context.new_page()
    page.route("**/api/catalogue", lambda route: held.append(route))
    with page.expect_request("**/api/catalogue"):
        page.goto(f"{env_server.page}/arena")
    expect(page.get_by_role("heading", name="Arena")).to_be_visible()
    expect(page.get_by_text(re.compile("^Loading"))).to_be_visible()
    held[0].continue_()
    expect(page.locator("#start")).to_be_visible()
    expect(page.get_by_text(re.compile("^Loading"))).to_have_count(0)


def test_without_objectives_nobody_is_in_time_or_late(serve_server, viewer):
    page = viewer.open(f"{serve_server.page}/runtime")
    expect(page.locator("[data-tile=slo]")).to_contain_text("no class has an objective")
    expect(page.locator("#classes tbody tr").first).to_contain_text("no objective")
