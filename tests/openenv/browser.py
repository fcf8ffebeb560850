"""A browser for tests: Chromium without a window, steered over its debugging socket, so that no browser package has to be installed."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

from websockets.sync.client import connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page:
    """One tab. `wait` polls a JavaScript expression until it is true."""

    def __init__(self, url: str, profile: Path, width: int = 1400, height: int = 1000):
        self._chromium = subprocess.Popen(
            [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={profile}",
             f"--window-size={width},{height}", "--no-first-run", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            told = profile / "DevToolsActivePort"
            self._until(lambda: told.is_file() and told.read_text().count("\n") >= 1, "chromium did not start")
            port = told.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=10) as answer:
                listed = json.load(answer)
            target = next(one for one in listed if one["type"] == "page")
            self._open = contextlib.ExitStack()
            self._socket = self._open.enter_context(connect(target["webSocketDebuggerUrl"], max_size=2**26))
            self._id = 0
            self.errors: list[str] = []
            self._call("Runtime.enable")
            self._call("Page.enable")
            self._call("Page.navigate", url=url)
        except BaseException:
            self._chromium.kill()
            self._chromium.wait()
            raise

    @staticmethod
    def _until(true, problem, limit_s=30.0):
        end = time.monotonic() + limit_s
        while not true():
            assert time.monotonic() < end, problem
            time.sleep(0.1)

    def _call(self, method, **params):
        self._id += 1
        self._socket.send(json.dumps({"id": self._id, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(answer["params"]["exceptionDetails"].get("text", "exception"))
            if answer.get("id") == self._id:
                assert "error" not in answer, answer
                return answer["result"]

    def js(self, expression):
        """The value of a JavaScript expression."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression, limit_s=60.0):
        """Wait until an expression is true."""
        self._until(lambda: self.js(expression), f"never true: {expression}", limit_s)

    def click(self, words):
        """Click the visible button with these words."""
        # Gradio keeps unseen copies of its tabs' buttons to measure them.
        seen = "b.offsetParent && getComputedStyle(b).visibility !== 'hidden'"
        buttons = f"[...document.querySelectorAll('button')].filter(b => b.innerText.trim() === {json.dumps(words)} && {seen})"
        self.wait(f"{buttons}.length > 0")
        self.js(f"{buttons}.at(-1).click()")

    def screenshot(self, path):
        """A PNG of what is seen, to its full height."""
        tall = self.js("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": self.js("innerWidth"), "height": min(tall, 3000), "scale": 1}
        found = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        Path(path).write_bytes(base64.b64decode(found["data"]))

    def close(self):
        """End the browser."""
        self._open.close()
        self._chromium.terminate()
        self._chromium.wait(20)
