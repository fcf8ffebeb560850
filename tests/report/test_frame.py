"""The frame of a page: what made it stands at its head, all text is escaped, and a file is whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from inferencegym.report.frame import MANY, facts, framed, section, table, write_whole
from inferencegym.report.style import paper_css, tokens
from tests.report.reading import read, words

NASTY = "<script>alert('&')</script>"


def test_command_version_and_digests_stand_at_the_head_escaped() -> None:
    text = framed(NASTY, "<p>body</p>", command=f"verb {NASTY}", digests={"task digest": "abc"}, version="1.2", context={"empty": "", "who": NASTY})  # fmt: skip
    page = read(text)
    assert text.startswith("<!doctype html>\n<html lang=\"en\">")  # fmt: skip
    assert not list(page.iter("script"))
    (head,) = page.iter("header")
    for said in (f"verb {NASTY}", "task digest", "abc", "inferencegym 1.2", "who"):
        assert said in words(head)
    assert "empty" not in words(head)
    assert [words(one) for one in page.iter("title")] == [NASTY]


def test_a_table_has_a_caption_scopes_and_a_place_to_scroll_in() -> None:
    drawn = read(table("Runs & figures.", ["figure", "<b>a</b>"], [["TTFT", "1"], ["ITL", "2"]], words=(1,), marked=(1,)))  # fmt: skip
    (around,) = drawn
    assert (around.get("class"), around.get("role"), around.get("tabindex")) == ("scroll", "region", "0")
    assert around.get("aria-label") == "Runs & figures."
    assert [words(one) for one in drawn.iter("caption")] == ["Runs & figures."]
    assert [one.get("scope") for one in drawn.iter("th")] == ["col", "col", "row", "row"]
    assert [one.get("class") for one in drawn.iter("td")] == ["words", "words"]
    assert [one.get("class") for one in drawn.iter("tr")] == [None, None, "marked"]


def test_a_row_that_does_not_fit_its_heads_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="row 0"):
        table("t", ["a", "b"], [["1"]])


def test_a_table_of_many_columns_is_known_as_such_for_print() -> None:
    heads = ["x"] * (MANY + 1)
    assert '<table class="many">' in table("t", heads, [heads])
    assert '<table class="many">' not in table("t", heads[1:], [heads[1:]])
    assert ".many{" in paper_css()


def test_empty_parts_leave_no_trace() -> None:
    assert section("title", "") == ""
    assert facts({"a": ""}) == ""


def test_dark_is_for_screens_alone() -> None:
    blocks = tokens().strip().split("\n")
    assert len(blocks) == 3
    assert blocks[0].startswith(":root{color-scheme:light;")
    assert all(block.startswith("@media screen") for block in blocks[1:])
    assert "url(" not in paper_css()
    assert "@import" not in paper_css()
    assert paper_css().count("{") == paper_css().count("}")


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "deep" / "page.html"
    write_whole(target, "first")

    def full(*_: object) -> None:
        raise OSError("disk is full")

    monkeypatch.setattr("inferencegym.report.frame.os.replace", full)
    with pytest.raises(OSError, match="full"):
        write_whole(target, "second")
    assert target.read_text() == "first"
    assert [file.name for file in target.parent.iterdir()] == ["page.html"]
