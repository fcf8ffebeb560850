"""What the dashboard costs: a run of six policies on `hard` streamed into a real page and played back there, ten runs one after another, and twenty viewers of one run.

A real `inferencegym env` and a real Chromium without a GPU, on loopback. Frame times are the gaps between the page's animation frames from the
first card until the last policy has ended, milliseconds; long tasks are the browser's own count of what held its main thread for over 50 ms.
CPU is user and system time of the server and all its descendants, as shares of one core over the same time. Memory is what belongs to no other
process (unique set size), MiB, after runs that have filled what the server keeps of ended runs. The browser takes its share of the same cores, so
a small machine makes every figure worse, not better.

`python benchmarks/dashboard.py` prints a table, `--json` one JSON object. Needs the extra `dev` and a Chromium (apt-get install chromium).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import struct
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import inferencegym  # noqa: E402
from inferencegym.web.runs import Limits  # noqa: E402
from tests.web.browser.driving import HOW_TO_GET, Server, Viewer, arena_path, ended, find_chromium, launch  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Page

TASK = "hard"
#: A learned policy and five rules.
POLICIES = ("learned", "sieve", "swapper", "lru", "largest-first", "vip-first")
#: Frame time at p95, ms; shares of one core; growth of memory from the first of the ten runs to the last, MiB.
TARGETS = {"frame_p95_ms": 100.0, "cpu_share": 0.60, "playback_frame_p95_ms": 100.0, "server_growth_mib": 20.0, "page_growth_mib": 20.0, "viewers_frame_p95_ms": 100.0,
           "viewers_cpu_share": 0.60}  # fmt: skip
LONGEST_RUN_S = 900.0
_MEASURE = """
(() => {
  const seen = { gaps: [], tasks: [] };
  let last = 0;
  const next = (now) => { if (last) seen.gaps.push(now - last); last = now; requestAnimationFrame(next); };
  requestAnimationFrame(next);
  new PerformanceObserver((list) => { for (const one of list.getEntries()) seen.tasks.push(one.duration); }).observe({ type: "longtask" });
  window.measured = { clear: () => { seen.gaps.length = 0; seen.tasks.length = 0; }, read: () => seen };
})();
"""


class Meter:
    """CPU seconds and memory of a server and all that it has started, sampled while it works."""

    def __init__(self, pid: int):
        self._root = psutil.Process(pid)
        self._spent: dict[int, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _family(self) -> list[psutil.Process]:
        return [self._root, *self._root.children(recursive=True)]

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self.cpu_s()

    def cpu_s(self) -> float:
        """CPU seconds so far; of a process that has ended, what it had spent a tenth of a second before."""
        for one in self._family():
            try:
                times = one.cpu_times()
            except psutil.NoSuchProcess:
                continue
            self._spent[one.pid] = times.user + times.system
        return sum(self._spent.values())

    def server_cpu_s(self) -> float:
        """CPU seconds of the server's own process."""
        times = self._root.cpu_times()
        return times.user + times.system

    def memory_mib(self) -> dict[str, float]:
        """Memory of the server's own process and of all together."""
        own = self._root.memory_full_info().uss
        rest = 0
        for one in self._root.children(recursive=True):
            try:
                rest += one.memory_full_info().uss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return {"server": own / 2**20, "together": (own + rest) / 2**20}

    def close(self) -> None:
        """Stop sampling."""
        self._over.set()
        self._thread.join()


def ask(url: str, body: Any = None) -> Any:
    """JSON of the interface; with a body, a POST."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(
        urllib.request.Request(url, data, {"content-type": "application/json"}), timeout=60
    ) as answer:
        return json.load(answer)


def follow(server: Server, spec: dict[str, Any], told: dict[str, Any]) -> None:
    """A viewer without a page: reads a run's whole stream, counts numbered frames and their bytes."""
    run = ask(f"{server.page}/api/runs", spec)["id"]
    url = f"{server.page}/api/runs/{run}/stream?frame=0"
    frames = size = 0
    with urllib.request.urlopen(url, timeout=120) as stream:
        while head := stream.read(8):
            header, payload = struct.unpack("<II", head)
            if "frame" in json.loads(stream.read(header)):
                frames += 1
                size += 8 + header + payload
            stream.read(payload)
    told.update(frames=frames, bytes=size)


def play(page: Page, server: Server, meter: Meter, path: str, others: list[threading.Thread]) -> dict[str, Any]:
    """One run from the opening of its link to its end, with other viewers who come as soon as it has begun: how the page moved and what the server spent."""
    page.goto(f"{server.page}/arena")
    page.locator("#start").wait_for()
    page.goto("about:blank")
    asked = lambda one: one.method == "POST" and one.url.endswith("/api/runs")  # noqa: E731
    with page.expect_response(lambda one: asked(one.request)) as started:
        with page.expect_request(asked):
            page.goto(f"{server.page}{path}", wait_until="commit")
        began, cpu, own = time.perf_counter(), meter.cpu_s(), meter.server_cpu_s()
    run_id = started.value.json()["id"]
    page.locator("[data-card]").first.wait_for()
    page.locator("figure[data-chart]").first.evaluate("one => one.scrollIntoView()")  # a window full of charts
    page.evaluate("measured.clear()")
    for other in others:
        other.start()
    ended(page, len(POLICIES), LONGEST_RUN_S)
    for other in others:
        other.join(60)
    wall_s = time.perf_counter() - began
    spent, own_spent = meter.cpu_s() - cpu, meter.server_cpu_s() - own
    return {
        "wall_s": wall_s,
        "cpu_share": spent / wall_s,
        "server_cpu_share": own_spent / wall_s,
        "cpu_s": spent,
        "cpu_s_as_the_run_tells": ask(f"{server.page}/api/runs/{run_id}")["cpu_s"],
        **moved(page),
    }


def play_back(page: Page) -> dict[str, Any]:
    """The run that has ended, from its beginning to its end again at a thousand ticks a second: how the page moved."""
    page.locator("#speed").select_option("1000")
    page.locator("#playhead").press("Home")
    page.evaluate("measured.clear()")
    page.locator("#pause").click()
    page.wait_for_function("() => { const at = document.querySelector('#playhead'); return Number(at.value) > 0 && at.value === at.max; }", timeout=60_000)  # fmt: skip
    return moved(page)


def moved(page: Page) -> dict[str, float]:
    """The page's frames since `measured.clear()`."""
    seen = page.evaluate("measured.read()")
    gaps, tasks = np.array(seen["gaps"]), np.array(seen["tasks"])
    return {
        "frames": len(gaps),
        "frame_p50_ms": float(np.percentile(gaps, 50)),
        "frame_p95_ms": float(np.percentile(gaps, 95)),
        "frame_max_ms": float(gaps.max()),
        "long_tasks": len(tasks),
        "long_task_max_ms": float(tasks.max()) if len(tasks) else 0.0,
    }


def heap_mib(page: Page) -> float:
    """What the page's JavaScript holds after a collection, MiB."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    used = session.send("Runtime.getHeapUsage")
    session.detach()
    return (used["usedSize"] + used.get("backingStorageSize", 0)) / 2**20


def again(page: Page, seed: int, policies: int) -> None:
    """Another run in the same page: another seed, and Start."""
    if not page.locator("#seed").is_visible():
        page.get_by_text("Set up").click()
    page.locator("#seed").fill(str(seed))
    page.locator("#start").click()
    page.wait_for_function("seed => new URL(location.href).searchParams.get('seed') === seed", arg=str(seed))
    page.wait_for_function(
        "() => [...document.querySelectorAll('[data-card]')].some((c) => ['waiting', 'running'].includes(c.dataset.state))"
    )
    ended(page, policies, LONGEST_RUN_S)


def run(ticks: int | None, runs: int, viewers: int) -> dict[str, Any]:
    """All figures."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = Server("env", "pagedkv", "--no-web", log=Path(folder) / "log")
        meter = Meter(server.pid)
        browser = launch(playwright)
        viewer = Viewer(browser)
        viewer.context.add_init_script(_MEASURE)
        try:
            page = viewer.context.new_page()
            names = list(POLICIES)
            overrides = {} if ticks is None else {"horizon_ticks": ticks}
            one = play(page, server, meter, arena_path(TASK, names, **overrides), [])
            playback = play_back(page)
            spec = {"task": TASK, "policies": names, "split": "validation", "seed": 0, "overrides": overrides}
            # The server keeps what has ended, to a limit; whether its memory is flat shows beyond it.
            kept, filled = 0, 0
            while kept < 2 * Limits().kept_bytes and ticks is None:
                told_one: dict[str, Any] = {}
                follow(server, {**spec, "seed": 1000 + filled}, told_one)
                kept, filled = kept + told_one["bytes"], filled + 1
            memory = []
            for seed in range(1, runs + 1):
                again(page, seed, len(names))
                memory.append({**meter.memory_mib(), "page": heap_mib(page)})
            told: list[dict[str, Any]] = [{} for _ in range(viewers - 1)]
            spec["seed"] = runs + 1
            others = [threading.Thread(target=follow, args=(server, spec, one_told), daemon=True) for one_told in told]
            crowd = play(page, server, meter, arena_path(TASK, names, seed=runs + 1, **overrides), others)
            assert len({(one["frames"], one["bytes"]) for one in told}) <= 1, told
            problems = list(viewer.watch.problems)
        finally:
            viewer.context.close()
            browser.close()
            meter.close()
            server.stop()
    return {
        "policies": names,
        "ticks": ticks,
        "one_viewer": one,
        "playback": playback,
        "memory_mib_after_each_run": memory,
        "runs_before_these": filled,
        "viewers": viewers,
        "crowd": {**crowd, "streamed_mib_each": told[0]["bytes"] / 2**20 if told else 0.0},
        "page_problems": problems,
        "figures": {
            "frame_p95_ms": one["frame_p95_ms"],
            "cpu_share": one["cpu_share"],
            "playback_frame_p95_ms": playback["frame_p95_ms"],
            "server_growth_mib": memory[-1]["together"] - memory[0]["together"],
            "page_growth_mib": memory[-1]["page"] - memory[0]["page"],
            "viewers_frame_p95_ms": crowd["frame_p95_ms"],
            "viewers_cpu_share": crowd["cpu_share"],
        },
    }


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [f"Six policies on {TASK}: {', '.join(result['policies'])}", ""]
    for name, target in TARGETS.items():
        value = result["figures"][name]
        lines.append(f"{name:24} {value:10.2f}   target below {target:g}   {'ok' if value < target else 'MISSED'}")
    for title, part in (
        ("one viewer", result["one_viewer"]),
        ("played back", result["playback"]),
        (f"{result['viewers']} viewers", result["crowd"]),
    ):
        lines += ["", title, *(f"  {name:22} {value:10.2f}" for name, value in part.items())]
    lines += ["", "memory after each run, MiB: " + "; ".join(
        f"{one['server']:.0f} server, {one['together']:.0f} together, {one['page']:.0f} page" for one in result["memory_mib_after_each_run"]
    )]  # fmt: skip
    lines += [f"problem in the page: {problem}" for problem in result["page_problems"]]
    return "\n".join(lines)


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--ticks", type=int, help="shorter runs, for a quick look (default: the task's own 10,000)")
    parser.add_argument("--runs", type=int, default=10, help="runs one after another, for the memory (default 10)")
    parser.add_argument("--viewers", type=int, default=20, help="viewers at once: one page and so many streams but one (default 20)")  # fmt: skip
    given = parser.parse_args()
    if find_chromium() is None:
        sys.exit(HOW_TO_GET)
    result = {
        "version": inferencegym.__version__,
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "load_at_start": os.getloadavg()},
        "targets": TARGETS,
        **run(given.ticks, given.runs, given.viewers),
    }
    print(json.dumps(result, indent=1) if given.json else table(result))


if __name__ == "__main__":
    main()
