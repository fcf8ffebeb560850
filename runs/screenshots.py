"""The pictures of the dashboard that README and docs show: docs/images/{arena,episode,runtime,workloads,leaderboard}.png.

    python runs/screenshots.py                # all, in about two minutes
    python runs/screenshots.py --only arena

Starts `inferencegym env` and `inferencegym serve --backend mock` with real load, opens each page in Chromium as a reader would, light theme,
1400 px wide, and photographs it. Needs the extra `dev` and a Chromium (apt-get install chromium).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.web.browser.driving import HOW_TO_GET, Server, arena_path, drawn, ended, find_chromium, launch, settle  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Page

IMAGES = ROOT / "docs" / "images"
WIDTH_PX = 1400
#: What a picture may weigh in the repository, bytes.
MOST_BYTES = 300_000
#: Seconds of traffic that the runtime's picture shows.
TRAFFIC_S = 45
LONGEST_MS = 600_000
FOUR = ("learned", "sieve", "lru", "fixed:admit_free")
#: A pool that one of them loses, so that its map and its crash are worth a look.
CRASHING = arena_path("hard", ("lru", "sieve"), horizon_ticks=1500, gpu_blocks=1000)


def arena(page: Page, server: Server) -> int:
    """Four policies on `hard`, to the end; one never makes room, and crashes."""
    page.goto(server.page + arena_path("hard", FOUR))
    ended(page, len(FOUR), LONGEST_MS / 1000)
    return 1120


def episode(page: Page, server: Server) -> int:
    """The end of an episode that crashes."""
    page.goto(f"{server.page}{CRASHING.replace('/arena?', '/episode?')}&policy=0")
    page.locator("#state[data-state=crashed]").wait_for(timeout=LONGEST_MS)
    page.locator("#why li").first.wait_for()
    return 1500


def runtime(page: Page, server: Server) -> int:
    """A gateway under load."""
    page.goto(f"{server.page}/runtime")
    page.locator("#tiles").wait_for(timeout=LONGEST_MS)
    load = [sys.executable, "-m", "inferencegym", "load", "--url", server.url, "--duration", str(TRAFFIC_S), "--rate", "12",
            "--requests", str(12 * TRAFFIC_S), "--prompt-tokens", "512", "--output-tokens", "128"]  # fmt: skip
    with subprocess.Popen(load, stdout=subprocess.DEVNULL) as running:
        page.wait_for_timeout(TRAFFIC_S * 800)
        picture_taken(page, "runtime", 1500)
        assert running.wait(120) == 0, "the load generator failed"
    return 0


def workloads(page: Page, server: Server) -> int:
    """Two shipped fits side by side."""
    page.goto(f"{server.page}/workloads?a=azure-conversation&b=azure-code")
    page.locator("#figures").wait_for(timeout=LONGEST_MS)
    page.wait_for_load_state("networkidle")
    return 1500


def leaderboard(page: Page, server: Server) -> int:
    """Every policy on every task."""
    page.goto(f"{server.page}/leaderboard")
    page.locator("#board").wait_for(timeout=LONGEST_MS)
    page.wait_for_load_state("networkidle")
    return 1500


SHOWN: dict[str, Callable[[Page, Server], int]] = {
    "arena": arena,
    "episode": episode,
    "runtime": runtime,
    "workloads": workloads,
    "leaderboard": leaderboard,
}


def picture_taken(page: Page, name: str, tall: int) -> None:
    """Write the picture of a page from its top, so many pixels tall at most, in all its colours: a palette of 256 loses the legend's."""
    page.evaluate("scrollTo(0, 0)")
    height = min(tall, page.evaluate("document.documentElement.scrollHeight"))
    page.set_viewport_size({"width": WIDTH_PX, "height": height})
    page.mouse.move(2, 2)
    settle(page)
    drawn(page)
    path = IMAGES / f"{name}.png"
    page.screenshot(path=path)
    size = path.stat().st_size
    print(f"{path.relative_to(ROOT)}: {WIDTH_PX} x {height} px, {size / 1000:.0f} kB", flush=True)
    assert size < MOST_BYTES, f"{path} weighs {size} bytes, more than {MOST_BYTES}"


def main() -> None:
    """Take the pictures."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=list(SHOWN), help="one picture")
    given = parser.parse_args()
    if find_chromium() is None:
        sys.exit(HOW_TO_GET)
    IMAGES.mkdir(parents=True, exist_ok=True)
    names = [given.only] if given.only else list(SHOWN)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        servers: dict[str, Server] = {}
        browser = launch(playwright)
        try:
            for name in names:
                kind = "serve" if name == "runtime" else "env"
                if kind not in servers:
                    command = ("serve", "--backend", "mock") if kind == "serve" else ("env", "pagedkv", "--no-web")
                    servers[kind] = Server(*command, log=Path(folder) / kind)
                page = browser.new_page(viewport={"width": WIDTH_PX, "height": 1000}, color_scheme="light", reduced_motion="reduce")  # fmt: skip
                tall = SHOWN[name](page, servers[kind])
                if tall:
                    picture_taken(page, name, tall)
                page.close()
        finally:
            browser.close()
            for server in servers.values():
                server.stop()


if __name__ == "__main__":
    main()
