"""The report: well-formed, self-contained, honest about what is missing, and safe whatever a label says."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from inferencegym.bench.report import ReportRun, gap_curve, page, value_curve, write_report
from inferencegym.metrics.itl import ItlHistogram
from inferencegym.metrics.record import Records
from inferencegym.metrics.summary import summarise


def run(label: str, n: int = 50) -> ReportRun:
    rng = np.random.default_rng(len(label))
    arrival = np.cumsum(rng.exponential(0.1, n))
    first = arrival + rng.exponential(0.2, n)
    records = Records.of(
        row=np.arange(n), arrival_s=arrival, scheduled_s=arrival, first_token_s=first, finish_s=first + rng.exponential(1.0, n),
        prompt_tokens=np.full(n, 100), output_tokens=rng.integers(1, 50, n),
    )  # fmt: skip
    itl = ItlHistogram.of_gaps(rng.integers(10**9, 10**11, n))
    timeline = {name: np.linspace(0, 1, 20) for name in ("t_s", "running", "waiting", "kv_used_fraction", "output_tps")}
    return ReportRun(
        label,
        records,
        itl,
        summarise(records, itl),
        timeline,
        {"engine.max_num_seqs": label},
        {"ttft_s p50": (0.1, 0.2)},
    )


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize(
    "labels", [["one"], ["a=1", "a=2", "a=<script>alert(1)</script>"], [f"n={i}" for i in range(12)]]
)
def test_page_is_well_formed_and_needs_nothing_from_outside(labels: list[str]) -> None:
    text = page(
        [run(label) for label in labels],
        title="T & U",
        command="inferencegym simulate",
        context={},
        digests={"workload digest": "abc"},
        version="1",
    )
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert tags.links == []
    assert "script" not in tags.names
    assert not re.search(r"url\(|@import", text)
    for svg in re.findall(r"<svg.*?</svg>", text, re.S):
        ElementTree.fromstring(svg)
    for label in labels:
        assert label.replace("<", "&lt;").replace(">", "&gt;") in text


def test_a_run_in_which_nothing_finished_still_makes_a_page() -> None:
    nothing = run("empty", n=1)
    records = nothing.records.take(np.zeros(0, dtype=np.int64))
    empty = {name: np.zeros(0) for name in nothing.timeline}
    bare = ReportRun("empty", records, ItlHistogram(), summarise(records), empty, {}, None)
    assert "Nothing to show" in page([bare], title="t", command="c", context={}, digests={}, version="1")


def test_the_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "deep" / "report.html"
    write_report(target, [run("x")], title="t", command="c", context={}, digests={}, version="1")
    before = target.read_text()
    monkeypatch.setattr("inferencegym.report.frame.os.replace", _full_disk)
    with pytest.raises(OSError, match="full"):
        write_report(target, [run("y")], title="t", command="c", context={}, digests={}, version="1")
    assert target.read_text() == before
    assert [file.name for file in target.parent.iterdir()] == ["report.html"]


def _full_disk(*_: object) -> None:
    raise OSError("disk is full")


def test_curves_rise_from_nothing_to_all() -> None:
    for x, y in (value_curve(np.random.default_rng(0).exponential(1, 999)), gap_curve(run("g").itl)):
        assert (np.diff(x) >= 0).all()
        assert (np.diff(y) >= 0).all()
        assert y[-1] == 1.0
