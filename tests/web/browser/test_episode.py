"""The Episode page: the KV map, why an episode crashed, beside the best static setting, and all of it by keyboard."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("playwright", reason="playwright is not installed: pip install '.[dev]'")

from playwright.sync_api import expect

from tests.web.browser.driving import arena_path, until

#: A pool so small that a policy which only admits loses it at once.
CRASH = {"horizon_ticks": 600, "gpu_blocks": 1500}


def episode_path(task, policies, policy=0, **options):
    return arena_path(task, policies, **options).replace("/arena?", "/episode?") + f"&policy={policy}"


@pytest.fixture
def crashed(env_server, viewer):
    """A page on an episode that crashes."""
    page = viewer.open(env_server.page + episode_path("hard", ("random", "sieve"), **CRASH))
    expect(page.locator("#kv-map")).to_be_visible()
    expect(page.locator("main")).to_contain_text(re.compile("crashed", re.IGNORECASE))
    return page


def test_the_map_tells_what_memory_holds_at_each_decision(crashed):
    kv, slider = crashed.locator("#kv-map"), crashed.locator("#decision")
    slider.focus()
    crashed.keyboard.press("Home")
    start = kv.get_attribute("aria-label")
    assert re.search(r"free", start)
    crashed.keyboard.press("End")
    until(lambda: kv.get_attribute("aria-label") != start, "the map does not follow the decision")
    assert re.search(r"active", kv.get_attribute("aria-label"))
    assert "decision=" in crashed.url


def test_a_crash_is_explained_with_numbers(crashed):
    why = crashed.locator("#why")
    expect(why).to_contain_text(re.compile(r"\d+ block"))
    expect(why).to_contain_text(re.compile(r"tick", re.IGNORECASE))


def test_beside_the_best_static_setting(crashed):
    crashed.locator("#compare").select_option("best-static")
    until(lambda: "with=best-static" in crashed.url, "the comparison is not in the link")
    expect(crashed.locator("figure[data-chart]").filter(has_text="best-static").first).to_be_visible()


def test_the_log_is_searched_by_action(crashed):
    log = crashed.locator("#log")
    log.scroll_into_view_if_needed()
    expect(log.locator("tbody tr").first).to_be_visible()
    assert log.locator("tbody tr").count() > 5


def test_by_keyboard_alone(crashed):
    """From the top of the page, Tab reaches the slider and every other control shows where the focus is."""
    crashed.evaluate("document.activeElement?.blur()")
    reached = []
    for _ in range(60):
        crashed.keyboard.press("Tab")
        reached.append(crashed.evaluate("document.activeElement.id || document.activeElement.tagName"))
        shown = crashed.evaluate(
            "(() => { const s = getComputedStyle(document.activeElement); return s.outlineStyle !== 'none' || s.boxShadow !== 'none'; })()"
        )
        assert shown, f"no visible focus on {reached[-1]}"
        if "kv-map" in reached:
            break
    assert "decision" in reached
    assert "kv-map" in reached, reached


def test_a_deployments_episode_has_knobs_instead_of_blocks(env_server, viewer):
    page = viewer.open(env_server.page + episode_path("bursty_workload", ("slo-feedback",), windows=12))
    expect(page.locator("main")).to_contain_text("batch")
    expect(page.locator("figure[data-chart]").first).to_be_visible()
    assert page.locator("#kv-map").count() == 0 or not page.locator("#kv-map").is_visible()
