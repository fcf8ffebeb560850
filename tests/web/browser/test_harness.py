"""The watch on pages sees what it is there to see, axe-core runs under the dashboard's content policy, and the wire can be cut: else the other tests show nothing."""

from __future__ import annotations

import http.server
import threading
import urllib.request

import pytest

pytest.importorskip("playwright", reason="playwright is not installed: pip install '.[dev]'")

from tests.web.browser.driving import Viewer, Wire, faults, sideways_px

_PAGES = {
    "/quiet": "<!doctype html><html lang=en><title>t</title><main><h1>Quiet</h1></main></html>",
    "/console": "<script src=console.js></script><main><h1>h</h1></main>",
    "/console.js": "console.error('oh'); Promise.reject(new Error('lost'));",
    "/missing": "<img src=nothing.png alt=x><main><h1>h</h1></main>",
    "/outside": "<img src=http://example.org/x.png alt=x><main><h1>h</h1></main>",
    "/inline": "<main><h1>h</h1></main><script>document.title = 'forbidden'</script>",
    "/pale": "<!doctype html><html lang=en><title>t</title><link rel=stylesheet href=pale.css><main><h1>h</h1><p>Pale words</p>"
    "<input></main></html>",
    "/pale.css": "p { color: #ddd; background: #fff; width: 3000px }",
}


class _Sinner(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        page = _PAGES.get(self.path)
        self.send_response(200 if page else 404)
        kind = {"js": "text/javascript", "css": "text/css"}.get(self.path.rpartition(".")[2], "text/html")
        self.send_header("content-type", kind)
        self.send_header(
            "content-security-policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src *"
        )
        self.end_headers()
        self.wfile.write((page or "").encode())

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def sinner():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Sinner) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("console", ["console error: oh", "exception: "]),
        ("missing", ["404"]),
        ("outside", ["asked the world outside: http://example.org/x.png"]),
        ("inline", ["content policy: script-src-elem"]),
    ],
)
def test_the_watch_tells(browser, sinner, path, told):
    viewer = Viewer(browser)
    page = viewer.open(f"http://127.0.0.1:{sinner}/{path}")
    page.wait_for_load_state("networkidle")
    for words in told:
        assert any(words in problem for problem in viewer.watch.problems), viewer.watch.problems
    with pytest.raises(AssertionError):
        viewer.close()


def test_a_quiet_page_has_no_problems_and_no_faults(viewer, sinner):
    page = viewer.open(f"http://127.0.0.1:{sinner}/quiet")
    assert faults(page) == []
    assert sideways_px(page) == 0


def test_pale_words_and_wide_pages_are_faults(viewer, sinner):
    page = viewer.open(f"http://127.0.0.1:{sinner}/pale")
    found = " ".join(faults(page))
    assert "color-contrast" in found
    assert "label" in found
    assert sideways_px(page) > 1000


def test_a_cut_wire_carries_nothing_until_it_is_mended(sinner):
    wire = Wire(sinner)

    def heard():
        with urllib.request.urlopen(f"{wire.url}/quiet", timeout=5) as answer:
            return answer.status

    assert heard() == 200
    wire.cut()
    with pytest.raises(OSError):  # noqa: PT011  refused, reset or ended early, as the moment has it
        heard()
    wire.mend()
    assert heard() == 200
    wire.close()
