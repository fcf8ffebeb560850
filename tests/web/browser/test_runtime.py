"""The Runtime page over a real gateway: with real load, a setting changed while it runs, and a key asked for where the server has keys."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request

import pytest

pytest.importorskip("playwright", reason="playwright is not installed: pip install '.[dev]'")

from playwright.sync_api import expect


@pytest.fixture
def load(serve_server):
    """`inferencegym load` against the gateway, for as long as the test lasts."""
    command = [sys.executable, "-m", "inferencegym", "load", "--url", serve_server.url, "--rate", "8", "--requests", "400",
               "--prompt-tokens", "256", "--output-tokens", "64"]  # fmt: skip
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield running
    running.kill()
    running.wait()


def test_before_any_traffic_the_page_says_what_to_try(own_server, viewer):
    server = own_server("serve", "--backend", "mock")
    page = viewer.open(f"{server.page}/runtime")
    expect(page.locator("main")).to_contain_text("inferencegym load")


def test_live_traffic_is_shown(serve_server, load, viewer):
    page = viewer.open(f"{serve_server.page}/runtime")
    tiles = page.locator("#tiles [data-tile]")
    assert tiles.count() >= 4
    page.wait_for_function(
        "() => [...document.querySelectorAll('#tiles [data-tile]')].some((t) => /tokens/i.test(t.innerText) && /[1-9]/.test(t.innerText))"
    )
    expect(page.locator("#backends")).to_contain_text("mock")
    expect(page.locator("#classes tbody tr").first).to_be_visible()
    # The reader's pause stops this page only.
    page.locator("#pause").click()
    stands = page.locator("#tiles").inner_text()
    page.wait_for_timeout(2500)
    assert page.locator("#tiles").inner_text() == stands
    page.locator("#pause").click()
    page.wait_for_function("was => document.querySelector('#tiles').innerText !== was", arg=stands)


def test_a_changed_setting_is_seen(serve_server, viewer):
    page = viewer.open(f"{serve_server.page}/runtime")
    knobs = page.locator("#knobs")
    expect(knobs).to_be_visible()
    url = f"{serve_server.url}/v1/runtime/config"
    body = json.dumps({"changes": {"dispatch.max_concurrency": 7}}).encode()
    request = urllib.request.Request(url, body, {"content-type": "application/json"}, method="PATCH")
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200
    expect(page.locator("main")).to_contain_text(re.compile(r"dispatch\.max_concurrency"))


def test_where_the_server_has_keys_the_page_asks_for_one(own_server, viewer, tmp_path):
    made = subprocess.run(
        [sys.executable, "-m", "inferencegym", "serve", "key", "ops", "--admin"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    key = re.search(r"sk-\S+", made)[0]
    (tmp_path / "keys.toml").write_text(made.partition("\n")[2])
    server = own_server("serve", "--backend", "mock", "--config", str(tmp_path / "keys.toml"))
    page = viewer.context.new_page()
    with viewer.watch.expecting("401"):
        page.goto(f"{server.page}/runtime")
        field = page.get_by_label("Key", exact=True)
        field.fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_text("did not accept the key")).to_be_visible()
        field.fill(key)
        page.keyboard.press("Enter")
        expect(page.locator("#tiles")).to_be_visible()
    page.reload()
    expect(page.locator("#tiles")).to_be_visible()
    assert key not in page.url
    assert key not in page.content()


def test_an_environment_server_says_where_the_runtime_is(env_server, viewer):
    page = viewer.open(f"{env_server.page}/runtime")
    expect(page.locator("main")).to_contain_text("inferencegym serve")
