"""The Episode page: the KV map, why an episode crashed, beside the best static setting, and all of it by keyboard."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("playwright", reason="playwright is not installed: pip install '.[dev]'")

from playwright.sync_api import expect

from tests.web.browser.driving import arena_path

#: A pool so small that one of two policies loses it.
CRASH = {"horizon_ticks": 1500, "gpu_blocks": 1000}


def episode_path(task, policies, policy=0, **options):
    return arena_path(task, policies, **options).replace("/arena?", "/episode?") + f"&policy={policy}"


@pytest.fixture
def crashed(env_server, viewer):
    """A page on an episode that crashes."""
    page = viewer.open(env_server.page + episode_path("hard", ("lru", "sieve"), **CRASH))
    expect(page.locator("#kv-map")).to_be_visible()
    expect(page.get_by_text("CRASHED").first).to_be_visible()
    expect(page.locator("#kv-map")).to_have_attribute("aria-label", re.compile("active"))
    return page


def test_the_map_tells_what_memory_holds_at_each_decision(crashed):
    kv, slider = crashed.locator("#kv-map"), crashed.locator("#decision")
    slider.focus()
    crashed.keyboard.press("Home")
    expect(kv).to_have_attribute("aria-label", re.compile(r"free 1,000"))
    crashed.keyboard.press("End")
    expect(kv).to_have_attribute("aria-label", re.compile(r"active free [1-9]"))
    expect(crashed).to_have_url(re.compile(r"decision=\d+"))


def test_a_crash_is_explained_with_numbers(crashed):
    why = crashed.locator("#why")
    expect(why).to_contain_text(re.compile(r"\d+ block"))
    expect(why).to_contain_text(re.compile(r"tick", re.IGNORECASE))


def test_beside_the_best_static_setting(env_server, viewer):
    page = viewer.open(env_server.page + episode_path("easy", ("lru",)))
    page.locator("#compare").select_option("best-static")
    expect(page).to_have_url(re.compile("with=best-static"))
    score = page.locator("figure[data-chart='Score so far']")
    expect(score.locator(".keys")).to_contain_text("best-static")
    score.scroll_into_view_if_needed()
    expect(score.get_by_role("img")).to_have_attribute("aria-label", re.compile(r"best-static: .* last 0\.\d+"))


def test_the_log_is_searched_by_action(crashed):
    log = crashed.get_by_role("region", name="Every decision")
    log.scroll_into_view_if_needed()
    log.get_by_label("Show").select_option(label="admit free")
    rows = log.locator("tbody tr")
    expect(rows.first).to_contain_text("admit free")
    expect(rows.filter(has_not_text="admit free")).to_have_count(0)
    asked = rows.first.get_by_role("button")
    decision = asked.inner_text().replace(",", "")
    asked.click()
    expect(crashed.locator("#decision")).to_have_value(decision)


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


def test_the_playhead_obeys_the_keyboard(crashed):
    slider = crashed.locator("#decision")
    slider.focus()
    crashed.keyboard.press("Home")
    expect(slider).to_have_value("0")
    crashed.keyboard.press("ArrowRight")
    expect(slider).to_have_value("1")
    crashed.keyboard.press("Shift+ArrowRight")
    expect(slider).to_have_value("101")
    crashed.keyboard.press("ArrowLeft")
    expect(slider).to_have_value("100")
    crashed.keyboard.press(" ")
    crashed.wait_for_function("() => Number(document.querySelector('#decision').value) > 105")
    crashed.keyboard.press(" ")
    expect(crashed.locator("#play")).to_have_accessible_name("Play")


def test_a_deployments_episode_has_knobs_instead_of_blocks(env_server, viewer):
    page = viewer.open(env_server.page + episode_path("bursty_workload", ("slo-feedback",), windows=12))
    expect(page.get_by_text("batch cap").or_(page.get_by_text("Batch cap")).first).to_be_visible()
    expect(page.locator("figure[data-chart]").first).to_be_visible()
    assert page.locator("#kv-map").count() == 0 or not page.locator("#kv-map").is_visible()
