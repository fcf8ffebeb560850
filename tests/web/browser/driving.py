"""Driving the dashboard as a person would: real servers as processes, Chromium without a window, and a watch on everything a page may do wrong.

Needs the packages playwright and axe-playwright-python (extra `dev`) and a Chromium of the system; downloads no browser.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests import starting
from tests.starting import free_port, until_healthy

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Playwright

ROOT = Path(__file__).resolve().parents[3]
#: Pictures of every page state, for people and for CI to keep; git ignores them.
PICTURES = ROOT / "out" / "screenshots"
#: The narrowest screen that pages promise to fit, and the one that pictures are taken of, CSS pixels.
NARROWEST, PHONE = 360, 380
TALLEST = 6000
WIDE = {"width": 1400, "height": 1000}
#: How long a page may take for anything, seconds: this machine may be busy with other tests.
PATIENCE_S = 30
HOW_TO_GET = "no Chromium: apt-get install chromium, or name one in INFERENCEGYM_CHROMIUM"
_ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]  # fmt: skip
_GRAVE = ("serious", "critical")


def find_chromium() -> str | None:
    """Path of a Chromium; None where there is none."""
    named = os.environ.get("INFERENCEGYM_CHROMIUM")
    if named:
        return named
    return next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )


def launch(playwright: Playwright) -> Browser:
    """A browser without a window."""
    return playwright.chromium.launch(executable_path=find_chromium(), args=_ARGUMENTS)


class Server:
    """`inferencegym COMMAND…` on a port of loopback, in a process and a session of its own, from its making to `stop`."""

    def __init__(self, *command: str, log: Path, port: int | None = None, environment: dict[str, str] | None = None):
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.page = f"{self.url}/dashboard"
        self._command = [sys.executable, "-m", "inferencegym", *command, "--port", str(self.port)]
        self._environment = {**os.environ, **(environment or {})}
        self._log = log
        self.start()

    def start(self) -> None:
        """Start, or start again on the same port."""
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )
        try:
            until_healthy(self._process, self.url, 120)
        except AssertionError as error:
            self.kill()
            raise AssertionError(f"{error}; it said:\n{self.written()[-2000:]}") from error

    @property
    def pid(self) -> int:
        """Process id of the server; its children are found from it."""
        return self._process.pid

    def kill(self) -> None:
        """As when the power fails: the server and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(20)

    def stop(self) -> None:
        """As when it is told to; whatever of it is still there is ended."""
        self._process.terminate()
        try:
            self._process.wait(30)
        finally:
            self.kill()

    def written(self) -> str:
        """What it has said so far."""
        return self._log.read_text()


class Watch:
    """What went wrong in the pages of a context: console errors, exceptions, failed requests, requests to other hosts, breaches of the content policy."""

    def __init__(self, context: BrowserContext):
        self._context = context
        self.problems: list[str] = []
        self._awaited: list[str] = []
        context.on("console", self._console)
        context.on("weberror", lambda error: self._note(f"exception: {error.error}"))
        context.on("request", self._request)
        context.on("requestfailed", self._failed)
        context.add_init_script(
            "addEventListener('securitypolicyviolation', (e) => console.error(`content policy: ${e.violatedDirective} ${e.blockedURI}`))"
        )

    @contextlib.contextmanager
    def expecting(self, *parts: str) -> Iterator[None]:
        """While a test breaks something on purpose: problems that hold one of these words are no problems."""
        self._awaited.extend(parts)
        yield
        for page in self._context.pages:
            page.wait_for_timeout(300)  # the browser tells of a failed request a little after the page has shown it
        for part in parts:
            self._awaited.remove(part)

    def _note(self, problem: str) -> None:
        if not any(part in problem for part in self._awaited):
            self.problems.append(problem)

    def _console(self, message: Any) -> None:
        if message.type in ("error", "assert") or (message.type == "warning" and "GPU stall" not in message.text):
            self._note(f"console {message.type}: {message.text} ({message.location.get('url', '')})")

    def _request(self, request: Any) -> None:
        parts = urllib.parse.urlsplit(request.url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "127.0.0.1":
            self._note(f"asked the world outside: {request.url}")

    def _failed(self, request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # a page that is left, or gives a stream up, aborts its requests
            self._note(f"request failed: {request.method} {request.url} {request.failure}")


class Viewer:
    """One person's browser: a context of its own, with its pages watched."""

    def __init__(self, browser: Browser, *, scheme: str = "light", width: int = WIDE["width"]):
        self.context = browser.new_context(
            viewport={"width": width, "height": WIDE["height"]}, color_scheme=scheme, reduced_motion="reduce",
            accept_downloads=True, permissions=["clipboard-read", "clipboard-write"],
        )  # fmt: skip
        self.context.set_default_timeout(PATIENCE_S * 1000)
        self.watch = Watch(self.context)

    def open(self, url: str) -> Page:
        """A page in a tab of its own, with its shell drawn."""
        page = self.context.new_page()
        page.goto(url)
        page.locator("main h1:not([aria-busy=true] h1)").first.wait_for()
        return page

    def close(self) -> None:
        """Close; AssertionError if anything went wrong meanwhile."""
        self.context.close()
        assert not self.watch.problems, "\n".join(self.watch.problems)


class Wire:
    """A TCP proxy before a server, which can be cut and mended: a lost connection as a page sees it."""

    def __init__(self, target: int):
        import socket

        self._target = target
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.page = f"{self.url}/dashboard"
        self._whole = threading.Event()
        self._whole.set()
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        import socket

        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            if not self._whole.is_set():
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target), timeout=10)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._sockets |= {near, far}
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: Any, sink: Any) -> None:
        import socket

        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._sockets -= {source, sink}
        source.close()

    def cut(self) -> None:
        """Break every connection and refuse new ones."""
        import socket

        self._whole.clear()
        with self._lock:
            broken = list(self._sockets)
        for one in broken:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Let connections through again."""
        self._whole.set()

    def close(self) -> None:
        """End it."""
        self.cut()
        self._listening.close()


def faults(page: Page, *rules: str) -> list[str]:
    """What axe-core calls serious or critical, one line each: by these rules only, or by all it has."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, options={"runOnly": list(rules)} if rules else {}).response["violations"]
    return [
        f"{one['id']} ({one['impact']}): {one['help']}\n    " + "\n    ".join(
            f"{' '.join(map(str, node['target']))}  {node['html'][:160]}  {node.get('failureSummary', '')[:300]!r}" for node in one["nodes"][:4]
        )
        for one in found if one["impact"] in _GRAVE
    ]  # fmt: skip


def sideways_px(page: Page) -> int:
    """How far the page itself can be scrolled sideways, CSS pixels; 0 as it should be."""
    return page.evaluate("document.scrollingElement.scrollWidth - innerWidth")


def widest(page: Page) -> list[str]:
    """What sticks out of the window on the right and is not inside a box that scrolls: where to look when a page scrolls sideways."""
    return page.evaluate(
        """() => [...document.querySelectorAll("main *, header *")].filter((e) => {
            if (e.getBoundingClientRect().right <= innerWidth + 1) return false;
            for (let up = e.parentElement; up; up = up.parentElement)
              if (["auto", "scroll", "hidden", "clip"].includes(getComputedStyle(up).overflowX)) return false;
            return true;
          }).slice(0, 5).map((e) => `${e.tagName}#${e.id}.${e.className} ${Math.round(e.getBoundingClientRect().right)} px`)"""
    )


def look(page: Page, name: str, *, phone: bool = True) -> list[str]:
    """Pictures of a page as it stands, light, dark and on a phone, into out/screenshots; and its faults in each, one line each."""
    size, found = page.viewport_size, []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        photograph(page, f"{name}-{scheme}")
        # What is dark differs from what is light in its colours only.
        found += [
            f"{name}, {scheme}: {fault}" for fault in faults(page, *(["color-contrast"] if scheme == "dark" else []))
        ]
    page.emulate_media(color_scheme="light")
    if phone:
        page.set_viewport_size({"width": PHONE, "height": 800})
        photograph(page, f"{name}-phone")
        found += [f"{name}, phone: {fault}" for fault in faults(page)]
        page.set_viewport_size({"width": NARROWEST, "height": 740})
        settle(page)
        if over := sideways_px(page):
            found.append(f"{name}, phone: scrolls {over} px sideways because of {widest(page)}")
        page.set_viewport_size(size)
    return found


def photograph(page: Page, name: str) -> None:
    """A picture of the whole page, in out/screenshots: in a window as tall as the page, since charts draw only what is on screen."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    size = page.viewport_size
    page.set_viewport_size(
        {"width": size["width"], "height": min(TALLEST, page.evaluate("document.documentElement.scrollHeight"))}
    )
    settle(page)
    drawn(page)
    page.screenshot(path=PICTURES / f"{name}.png")
    page.set_viewport_size(size)


def drawn(page: Page) -> None:
    """Wait until nothing is left to be drawn: charts take turns, so that a page never stands still."""
    page.wait_for_function("() => !document.documentElement.hasAttribute('data-drawing')")
    settle(page)


def settle(page: Page) -> None:
    """Wait until the page has drawn twice since whatever was done to it: observers run and charts are drawn in frames."""
    page.evaluate(
        "() => new Promise((done) => { let n = 4; const next = () => (n-- ? requestAnimationFrame(next) : done()); next(); })"
    )


def until(true: Any, problem: str, limit_s: float = PATIENCE_S) -> Any:
    """Ask until the answer is true, and give it; AssertionError with the problem when the time is over. For facts outside a page."""
    return starting.until(true, problem, limit_s, poll_s=0.05)


def ended(page: Page, policies: int, limit_s: float = 60) -> None:
    """Return when every policy of the Arena's run has ended well or by a crash; AssertionError if one has failed."""
    page.wait_for_function(
        """n => { const cards = [...document.querySelectorAll('[data-card]')];
          return cards.length === n && cards.every((c) => ['completed', 'crashed', 'failed'].includes(c.dataset.state)); }""",
        arg=policies,
        timeout=limit_s * 1000,
    )
    assert page.locator("[data-card][data-state=failed]").count() == 0, "a policy failed"


def arena_path(
    task: str, policies: Sequence[str], *, split: str = "validation", seed: int = 0, **overrides: Any
) -> str:
    """The Arena's share link, below the mount."""
    fields = {"task": task, "policies": ",".join(policies), "split": split, "seed": seed}
    fields.update({f"set.{name}": value for name, value in overrides.items()})
    return f"/arena?{urllib.parse.urlencode(fields, safe=',')}"
