"""Downloads against a server on this machine: whole, resumed, corrupted, cut short, missing, and not reachable at
all.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from inferencegym.ground.errors import InputError, OfflineError
from inferencegym.workload.catalogue import ORIGINALS, Original
from inferencegym.workload.fetch import LOCK, fetch

CONTENT = bytes(range(256)) * 4000


@dataclass
class Shop:
    """What the server offers, and what it was asked for."""

    content: bytes = CONTENT
    etag: str | None = '"one"'
    cut_at: int | None = None
    ranges: bool = True
    asked: list[str | None] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def shop() -> Iterator[Shop]:
    held = Shop()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            held.asked.append(self.headers.get("Range"))
            if self.path != "/trace.csv":
                self.send_error(404)
                return
            start = 0
            wanted = self.headers.get("Range")
            if wanted and held.ranges and self.headers.get("If-Range") == held.etag:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                if start >= len(held.content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(held.content)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(held.content) - 1}/{len(held.content)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(held.content) - start))
            if held.etag:
                self.send_header("ETag", held.etag)
            self.end_headers()
            self.wfile.write(held.content[start : held.cut_at])

        def log_message(self, *_: object) -> None:
            """Tests are quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    held.url = f"http://127.0.0.1:{server.server_port}/trace.csv"
    yield held
    server.shutdown()
    thread.join()
    server.server_close()


def original(url: str, digest: str | None = None) -> Original:
    return Original("trace", url, "CC0", "nobody", "a test", sha256=digest)


def names_in(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_comes_whole_with_progress_and_its_checksum_is_noted(shop, tmp_path):
    seen: list[tuple[int, int | None]] = []
    got = fetch(original(shop.url), tmp_path / "new", lambda here, total: seen.append((here, total)))
    assert got.path.read_bytes() == CONTENT
    assert got.sha256 == sha256(CONTENT).hexdigest()
    assert got.downloaded
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [here for here, _ in seen] == sorted(here for here, _ in seen)
    assert names_in(tmp_path / "new") == {"trace.csv", LOCK}
    again = fetch(original(shop.url), tmp_path / "new")
    assert not again.downloaded
    assert len(shop.asked) == 1


def test_a_broken_download_goes_on_where_it_stopped(shop, tmp_path):
    shop.cut_at = 300_000
    with pytest.raises(OfflineError, match="call again"):
        fetch(original(shop.url), tmp_path)
    assert "trace.csv" not in names_in(tmp_path)
    shop.cut_at = None
    got = fetch(original(shop.url, sha256(CONTENT).hexdigest()), tmp_path)
    assert shop.asked[-1] == "bytes=300000-"
    assert got.path.read_bytes() == CONTENT
    assert names_in(tmp_path) == {"trace.csv"}


@pytest.mark.parametrize("change", [{"etag": '"two"', "content": CONTENT[::-1]}, {"ranges": False}, {"etag": None}])
def test_two_versions_of_a_file_are_never_joined(shop, tmp_path, change):
    shop.cut_at = 300_000
    with pytest.raises(OfflineError):
        fetch(original(shop.url), tmp_path)
    shop.cut_at = None
    for name, value in change.items():
        setattr(shop, name, value)
    assert fetch(original(shop.url), tmp_path).path.read_bytes() == shop.content


def test_a_part_that_is_whole_already_is_not_asked_for_again(shop, tmp_path):
    (tmp_path / ".trace.csv.part").write_bytes(CONTENT)
    (tmp_path / ".trace.csv.part.etag").write_text('"one"')
    assert fetch(original(shop.url), tmp_path).path.read_bytes() == CONTENT


def test_a_wrong_checksum_throws_the_download_away(shop, tmp_path):
    with pytest.raises(InputError, match="was expected") as told:
        fetch(original(shop.url, "0" * 64), tmp_path)
    assert str(tmp_path / "trace.csv") in str(told.value)
    assert names_in(tmp_path) == set()


def test_a_file_that_changed_since_its_first_fetch_is_noticed(shop, tmp_path):
    path = fetch(original(shop.url), tmp_path).path
    path.write_bytes(b"tampered")
    with pytest.raises(InputError, match="fetch again"):
        fetch(original(shop.url), tmp_path)
    assert path.exists(), "a file that was here before is the user's: it is not deleted"
    path.unlink()
    shop.content = b"another"
    with pytest.raises(InputError, match=LOCK):
        fetch(original(shop.url), tmp_path)


def test_what_is_not_there_is_said_in_one_line(shop, tmp_path):
    with pytest.raises(OfflineError, match="404") as told:
        fetch(original(shop.url.replace("trace", "other")), tmp_path)
    assert "\n" not in str(told.value)


def test_no_network_is_said_in_one_line_with_what_to_do(shop, tmp_path):
    port = shop.url.split(":")[2].split("/")[0]
    with pytest.raises(OfflineError, match="shipped descriptions") as told:
        fetch(original(f"http://127.0.0.1:1{port}/trace.csv".replace(f"1{port}", "9")), tmp_path)
    assert "\n" not in str(told.value)


def test_a_broken_note_of_checksums_is_named(shop, tmp_path):
    (tmp_path / LOCK).write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        fetch(original(shop.url), tmp_path)


def test_every_original_has_an_address_a_licence_and_someone_to_credit():
    for name in ORIGINALS.names():
        one = ORIGINALS.get(name)
        assert one.url.startswith("https://")
        assert one.file_name.rsplit(".", 1)[0] == one.name
        assert one.licence in ("CC-BY-4.0", "Apache-2.0")
        assert one.attribution
