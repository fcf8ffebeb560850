"""The Arena as a person uses it: choose, start, watch, pause, share, take home; and the figures are those of `inferencegym evaluate`, to the last digit."""

from __future__ import annotations

import html
import json
import re
import shlex
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

pytest.importorskip("playwright", reason="playwright is not installed: pip install '.[dev]'")

from playwright.sync_api import expect

from tests.web.browser.driving import arena_path, ended, until

#: Ticks that show what there is to see in about a second.
SHORT = 400
FOUR = ("sieve", "lru", "largest-first", "random")


def cards(page):
    return page.locator("[data-card]")


def figures(page):
    """What the cards say, without what moves while a run is under way."""
    return cards(page).all_inner_texts()


def choose_none(page):
    chosen = page.locator("[data-policy]:checked")
    while chosen.count():
        chosen.first.uncheck()


def test_a_person_compares_four_policies(env_server, viewer):
    page = viewer.open(f"{env_server.page}/arena")
    page.locator("#task").select_option("hard")
    choose_none(page)
    for name in FOUR:
        page.locator(f"[data-policy={name}]").check()
    page.locator("#seed").fill("3")
    page.get_by_text("Overrides", exact=True).click()
    page.locator("#set-horizon_ticks").fill(str(SHORT))
    page.locator("#start").click()
    ended(page, 4)
    assert page.url == env_server.page + arena_path("hard", FOUR, seed=3, horizon_ticks=SHORT)
    for name in FOUR:
        card = cards(page).filter(has_text=name)
        expect(card).to_have_count(1)
        expect(card).to_contain_text(re.compile("COMPLETED|CRASHED", re.IGNORECASE))
    # Every group of the contract has a chart that says what it shows, in words, with its unit.
    charts = page.locator("figure[data-chart]")
    assert charts.count() >= 5
    charts.first.scroll_into_view_if_needed()
    expect(charts.first.locator("[role=img]")).to_have_attribute("aria-label", re.compile(r"last"))


def test_the_reader_holds_the_playhead(env_server, viewer):
    page = viewer.open(env_server.page + arena_path("hard", FOUR[:2], horizon_ticks=SHORT))
    ended(page, 2)
    playhead = page.locator("#playhead")
    playhead.focus()
    page.keyboard.press("Home")
    first = int(playhead.input_value())
    page.locator("#step").click()
    assert int(playhead.input_value()) == first + 1
    page.locator("#step").click()
    page.locator("#back").click()
    assert int(playhead.input_value()) == first + 1
    early = figures(page)
    playhead.focus()
    page.keyboard.press("End")
    assert int(playhead.input_value()) >= SHORT - 1
    assert figures(page) != early, "the cards follow the playhead"
    # Playing moves on by itself until it is paused, and then stands.
    page.keyboard.press("Home")
    page.locator("#speed").select_option("20")
    until(lambda: int(playhead.input_value()) > first + 2, "playing does not move the playhead")
    page.locator("#pause").click()
    stands = playhead.input_value()
    page.wait_for_timeout(400)
    assert playhead.input_value() == stands


def test_who_follows_the_link_sees_the_same(env_server, viewers):
    link = env_server.page + arena_path("bursty_workload", ("slo-feedback", "vllm-like"), seed=5, windows=12)
    mine = viewers().open(link)
    ended(mine, 2)
    mine.locator("#copy-link").click()
    copied = until(lambda: mine.evaluate("navigator.clipboard.readText()"), "nothing was copied")
    theirs = viewers(scheme="dark").open(copied)
    ended(theirs, 2)
    assert figures(theirs) == figures(mine)
    assert theirs.locator("#seed").input_value() == "5"
    assert theirs.locator("[data-policy=slo-feedback]").is_checked()


def test_what_is_taken_home_is_what_evaluate_says(env_server, viewer, tmp_path):
    page = viewer.open(env_server.page + arena_path("easy", ("sieve", "lru"), seed=1))
    ended(page, 2)
    taken = {}
    for kind in ("json", "parquet", "html"):
        with page.expect_download() as download:
            page.locator(f"[data-export={kind}]").click()
        taken[kind] = tmp_path / download.value.suggested_filename
        download.value.save_as(taken[kind])
        assert taken[kind].suffix == f".{kind}"

    # The command that the page shows gives the same numbers.
    command = page.get_by_text(re.compile(r"^inferencegym evaluate .*")).first.inner_text()
    shown = shlex.split(command)
    assert shown[0] == "inferencegym"
    told = subprocess.run(
        [sys.executable, "-m", *shown, "--json", "-"], check=True, capture_output=True, text=True, timeout=120
    )
    evaluated = {one["policy"]: one for one in json.loads(told.stdout)["episodes"] if one["scenario"] == 1}

    exported = json.loads(taken["json"].read_text())
    assert len(exported["policies"]) == 2
    for one in exported["policies"]:
        for field in ("value", "grade", "total_reward", "steps", "crashed", "parts", "facts"):
            assert one["result"][field] == evaluated[one["name"]][field], field

    rows = pq.read_table(taken["parquet"]).to_pylist()
    for name, one in evaluated.items():
        mine = [row for row in rows if row["policy"] == name]
        assert len(mine) == 2000
        assert mine[-1]["score_so_far"] == pytest.approx(one["value"], abs=1e-6), (
            "float32 on the way, as the page draws it"
        )

    report = taken["html"].read_text()
    assert "<script" not in report
    assert not re.search(r"(src|href)=[\"']https?://", report)
    assert command in html.unescape(report)


def test_a_bad_override_is_told_at_its_field(env_server, viewer):
    page = viewer.open(f"{env_server.page}/arena")
    told = page.locator("[data-field=gpu_blocks] .error")
    with viewer.watch.expecting("400"):
        page.get_by_text("Overrides", exact=True).click()
        page.locator("#set-gpu_blocks").fill("-5")
        page.locator("#start").click()
        expect(told).to_contain_text("gpu_blocks")
        expect(page.locator("#set-gpu_blocks")).to_have_attribute("aria-invalid", "true")
        expect(page.locator("#set-gpu_blocks")).to_be_focused()
        expect(cards(page)).to_have_count(0)
        # The same in a link that somebody has sent.
        page.goto(env_server.page + arena_path("hard", FOUR[:2], gpu_blocks=-5))
        expect(told).to_contain_text("gpu_blocks")
        expect(cards(page)).to_have_count(0)


def test_six_policies_are_the_most(env_server, viewer):
    page = viewer.open(f"{env_server.page}/arena")
    page.locator("#task").select_option("hard")
    choose_none(page)
    boxes = page.locator("[data-policy]")
    for i in range(6):
        boxes.nth(i).check()
    seventh = boxes.nth(6)
    assert seventh.is_disabled() or seventh.get_attribute("aria-disabled") == "true"
    boxes.nth(0).uncheck()
    expect(seventh).to_be_enabled()


def test_from_a_card_into_the_episode(env_server, viewer):
    page = viewer.open(env_server.page + arena_path("hard", FOUR[:2], horizon_ticks=SHORT))
    ended(page, 2)
    page.get_by_role("button", name="Look into lru").click()
    expect(page.locator("#kv-map")).to_be_visible()
    assert "/episode?" in page.url
    assert "policy=1" in page.url
    page.go_back()
    expect(cards(page)).to_have_count(2)
