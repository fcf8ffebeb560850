"""Download a published trace: goes on where an earlier try stopped, checks what came, and shows up whole or not at all.

Sizes are bytes. Nothing is tried twice in silence: what went wrong is said in one line, and the next call resumes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import file_digest
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from inferencegym.ground.errors import InputError, OfflineError
from inferencegym.workload.catalogue import Original
from inferencegym.workload.files import whole_file

#: Checksums noted at the first fetch of each file.
LOCK = "checksums.json"
TIMEOUT_S = 30.0
_PIECE = 1 << 18

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are here and the bytes there are, if the server says."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that is here now."""

    path: Path
    size_bytes: int
    sha256: str
    checked_by: str
    """What the checksum was compared with."""
    downloaded: bool
    """False where the file was here before."""


def fetch(original: Original, folder: Path, progress: Progress | None = None) -> Fetched:
    """Bring an original into `folder`, unless it is there; either way its checksum is compared with what is known."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder cannot be made: {error.strerror}", file=folder) from error
    target = folder / original.file_name
    if target.exists():
        return _accept(original, target, target, downloaded=False)
    part = target.with_name(f".{target.name}.part")
    _download(original.url, part, progress or _say_nothing)
    found = _accept(original, part, target, downloaded=True)
    part.replace(target)
    _etag_file(part).unlink(missing_ok=True)
    return found


def _say_nothing(_here: int, _all: int | None) -> None:
    """No progress is wanted."""


def _accept(original: Original, path: Path, target: Path, *, downloaded: bool) -> Fetched:
    with path.open("rb") as file:
        sha256 = file_digest(file, "sha256").hexdigest()
    lock = target.with_name(LOCK)
    noted = _read_lock(lock)
    expected = original.sha256 or noted.get(target.name)
    if expected is not None and sha256 != expected:
        advice = "delete it and fetch again"
        if downloaded:
            path.unlink()
            _etag_file(path).unlink(missing_ok=True)
            advice = "the download was thrown away; fetch again"
            if original.sha256 is None:
                advice += f", or delete its line in {LOCK} if the publisher changed the file"
        raise InputError(f"has sha256 {sha256}, but {expected} was expected; {advice}", file=target)
    checked_by = "the published checksum" if original.sha256 else f"the note of the first fetch in {LOCK}"
    if expected is None:
        checked_by = f"nothing: no checksum is published, so it was noted in {LOCK}"
        text = json.dumps(noted | {target.name: sha256}, indent=2, sort_keys=True) + "\n"
        whole_file(lock, lambda file: _put(file, text))
    return Fetched(target, path.stat().st_size, sha256, checked_by, downloaded)


def _put(file: IO[bytes], text: str) -> None:
    file.write(text.encode())


def _read_lock(lock: Path) -> dict[str, str]:
    if not lock.exists():
        return {}
    try:
        found = json.loads(lock.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"is not JSON: {error}; delete it to note checksums anew", file=lock) from error
    if not isinstance(found, dict):
        raise InputError("is no JSON object; delete it to note checksums anew", file=lock)
    return {str(name): str(value) for name, value in found.items()}


# --- over the network -------------------------------------------------------------------------------------------------


def _download(url: str, part: Path, progress: Progress) -> None:
    """Fill `part` to the end; bytes that are in it are not asked for again if the server still has that file."""
    here = part.stat().st_size if part.exists() else 0
    try:
        with _open(url, here, _etag_file(part)) as answer:
            if answer.status == 206 and _starts_at(answer) != here:
                raise OfflineError(f"{url}: the server sent another part than was asked for; delete {part}")
            here = here if answer.status == 206 else 0
            length = answer.headers.get("Content-Length")
            total = None if length is None else here + int(length)
            _note_etag(answer, _etag_file(part))
            here = _pour(answer, part, here, total, progress)
    except HTTPError as error:
        error.close()
        if error.code == 416 and here and _whole_length(error) == here:
            return  # all of it was here: a break between the last byte and the end of the earlier call
        raise OfflineError(f"{url}: the server says {error.code} {error.reason}; nothing was changed") from error
    except (URLError, HTTPException, OSError) as error:
        if isinstance(error, OfflineError):
            raise
        reason = getattr(error, "reason", None) or error
        raise OfflineError(
            f"{url} cannot be reached ({reason}); without a network, use the shipped descriptions "
            "(inferencegym traces list) or files in INFERENCEGYM_TRACE_DIR"
        ) from error
    if total is not None and here < total:
        raise OfflineError(
            f"{url}: the connection ended after {here:,} of {total:,} bytes; call again to go on from there"
        )


def _open(url: str, here: int, etag_file: Path) -> HTTPResponse:
    request = Request(url, headers={"User-Agent": "inferencegym"})
    if here and etag_file.exists():
        request.add_header("Range", f"bytes={here}-")
        # Bytes of two versions of a file must not end up in one: the server sends the whole one if it changed.
        request.add_header("If-Range", etag_file.read_text(encoding="utf-8"))
    answer: HTTPResponse = urlopen(request, timeout=TIMEOUT_S)
    return answer


def _pour(answer: HTTPResponse, part: Path, here: int, total: int | None, progress: Progress) -> int:
    with part.open("r+b" if here else "wb") as file:
        file.seek(here)
        progress(here, total)
        while piece := answer.read(_PIECE):
            file.write(piece)
            here += len(piece)
            progress(here, total)
        file.truncate()
    return here


def _etag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _note_etag(answer: HTTPResponse, etag_file: Path) -> None:
    """What tells this version of the file from another; without it a broken download starts anew."""
    mark = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
    if mark is None or mark.startswith("W/"):
        etag_file.unlink(missing_ok=True)
    else:
        etag_file.write_text(mark, encoding="utf-8")


def _starts_at(answer: HTTPResponse) -> int | None:
    """Start of the part that a 206 brings ('bytes 100-199/200')."""
    said = answer.headers.get("Content-Range", "").removeprefix("bytes ").split("-")[0]
    return int(said) if said.isdigit() else None


def _whole_length(error: HTTPError) -> int | None:
    """Length of the whole file, as a 416 says it ('bytes */200')."""
    said = error.headers.get("Content-Range", "").rpartition("/")[2]
    return int(said) if said.isdigit() else None
