"""Every page in every state that a reader meets: no fault that axe-core calls serious, light, dark and on a phone, where no page scrolls sideways.

Pictures of all of them go to out/screenshots, for people.
"""

from __future__ import annotations

import pytest

pytest.importorskip("playwright", reason="playwright is not installed: pip install '.[dev]'")

from playwright.sync_api import expect

from tests.web.browser.driving import arena_path, ended, look

FOUR = ("sieve", "lru", "largest-first", "random")


def arena_empty(page, server):
    page.goto(f"{server.page}/arena")
    page.locator("#start").wait_for()


def arena_done(page, server):
    page.goto(server.page + arena_path("hard", FOUR, horizon_ticks=2000))
    ended(page, 4)
    page.get_by_role("button", name="Table of").first.click()


def arena_of_knobs(page, server):
    page.goto(server.page + arena_path("bursty_workload", ("slo-feedback", "vllm-like"), seed=5, windows=12))
    ended(page, 2)


def episode_crashed(page, server):
    path = arena_path("hard", ("lru", "sieve"), horizon_ticks=1500, gpu_blocks=1000).replace("/arena?", "/episode?")
    page.goto(f"{server.page}{path}&policy=0")
    page.locator("#state[data-state=crashed]").wait_for()
    expect(page.locator("#why")).to_contain_text("block")


def episode_of_knobs(page, server):
    path = arena_path("bursty_workload", ("slo-feedback",), windows=12).replace("/arena?", "/episode?")
    page.goto(f"{server.page}{path}&policy=0")
    page.locator("#state[data-state=completed]").wait_for()
    expect(page.locator("#why")).not_to_contain_text("still being played")


def workloads_empty(page, server):
    page.goto(f"{server.page}/workloads")
    page.locator("#workload-a").wait_for()


def workloads_two(page, server):
    page.goto(f"{server.page}/workloads?a=azure-conversation&b=azure-code")
    expect(page.locator("#figures")).to_contain_text("azure-code")


def leaderboard(page, server):
    page.goto(f"{server.page}/leaderboard")
    page.locator("#board").wait_for()


def no_runtime(page, server):
    page.goto(f"{server.page}/runtime")
    page.locator("main h1").wait_for()


STATES = [
    arena_empty, arena_done, arena_of_knobs, episode_crashed, episode_of_knobs, workloads_empty, workloads_two, leaderboard, no_runtime,
]  # fmt: skip


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_it_looks_right(env_server, viewer, state):
    page = viewer.context.new_page()
    state(page, env_server)
    found = look(page, state.__name__.replace("_", "-"))
    assert not found, "\n".join(found)


def test_the_runtime_looks_right(serve_server, viewer):
    page = viewer.open(f"{serve_server.page}/runtime")
    page.locator("#tiles").wait_for()
    found = look(page, "runtime")
    assert not found, "\n".join(found)


def test_the_readers_theme_is_kept_and_charts_follow_it(env_server, viewer):
    page = viewer.open(env_server.page + arena_path("easy", FOUR[:2], horizon_ticks=300))
    ended(page, 2)
    page.locator("figure[data-chart]").first.scroll_into_view_if_needed()
    expect(page.locator("figure[data-chart] canvas").first).to_be_visible()
    paper = "getComputedStyle(document.body).backgroundColor"
    ink = """() => { const c = document.querySelector("figure[data-chart] canvas"), d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
        let sum = 0, n = 0; for (let i = 0; i < d.length; i += 4) if (d[i + 3] > 200) { sum += d[i] + d[i + 1] + d[i + 2]; n++; } return sum / n; }"""
    with viewer.watch.expecting("willReadFrequently"):  # Chromium's advice to whoever reads a canvas: to this test
        light, drawn = page.evaluate(paper), page.evaluate(ink)
        page.locator("#theme").select_option("dark")
        assert page.evaluate(paper) != light
        page.wait_for_function(f"was => Math.abs(({ink})() - was) > 20", arg=drawn)
    page.reload()
    expect(page.locator("#theme")).to_have_value("dark")
    assert page.evaluate(paper) != light
