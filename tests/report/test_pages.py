"""The pages of all verbs, made by the real commands: self-contained, well-formed, with units, and with what made them at their head."""

from __future__ import annotations

import itertools
import re
from xml.etree.ElementTree import Element

import pytest

from inferencegym.engine.profile import load_profile
from inferencegym.envs import catalogue
from tests.report.conftest import VERBS
from tests.report.reading import read, words


@pytest.fixture(params=VERBS)
def page(request: pytest.FixtureRequest, made: dict[str, tuple[str, str]]) -> Element:
    """The tree of each page."""
    return read(made[request.param][1])


def test_nothing_comes_from_outside_and_nothing_runs(page: Element) -> None:
    for one in page.iter():
        assert one.tag not in ("script", "link", "iframe", "img", "object", "embed")
        assert not {"src", "href", "xlink:href", "onclick", "onload"} & set(one.attrib)
        assert "url(" not in one.get("style", "")
    for style in page.iter("style"):
        assert not re.search(r"url\(|@import", words(style))


@pytest.mark.parametrize("name", VERBS)
def test_the_head_says_command_version_and_digests(made: dict[str, tuple[str, str]], name: str) -> None:
    line, text = made[name]
    (head,) = read(text).iter("header")
    assert [words(one) for one in head.iter("pre")] == [line]
    assert re.search(r"Made with inferencegym \d+\.\d+", words(head))
    entries = dict(zip(map(words, head.iter("dt")), map(words, head.iter("dd")), strict=True))
    digests = {said: value for said, value in entries.items() if "digest" in said}
    assert digests
    assert all(re.fullmatch(r"[0-9a-f]{16,64}", value) for value in digests.values())
    if name == "simulate":
        assert entries["profile digest, h100"] == load_profile("h100").digest
        assert "workload digest" in entries
    elif name in ("evaluate", "explain"):
        task = "easy" if name == "evaluate" else "static_workload"
        assert digests == {f"task digest, {task}": catalogue.task(task).digest}
    else:
        assert list(digests) == ["workload digest"]


def test_every_axis_of_every_chart_has_a_unit(page: Element) -> None:
    pictures = [one for one in page.iter("svg") if one.get("role") == "img"]
    assert pictures
    for picture in pictures:
        named = [words(one) for one in picture.iter("text") if one.get("class") == "label"]
        with_unit = [text for text in named if re.search(r"\S \(.+\)(, log scale)?$", text)]
        lines = [one for one in picture.iter("polyline") if one.get("class") == "line"]
        assert len(with_unit) >= (2 if lines else 1), named
        assert len(picture.get("aria-label", "")) > 20


def test_the_outline_can_be_followed_without_eyes(page: Element) -> None:
    (root,) = page.iter("html")
    assert root.get("lang") == "en"
    ranks = [int(one.tag[1]) for one in page.iter() if re.fullmatch(r"h[1-6]", one.tag)]
    assert ranks[0] == 1
    assert ranks.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(ranks))
    for table in page.iter("table"):
        assert table[0].tag == "caption"
        assert all(one.get("scope") in ("row", "col") for one in table.iter("th"))
    for picture in page.iter("svg"):
        assert picture.get("role") == "img" or picture.get("aria-hidden") == "true"


def test_colours_are_names_that_the_page_defines(page: Element) -> None:
    css = "".join(words(one) for one in page.iter("style"))
    styled = css + "".join(one.get("style", "") for one in page.iter())
    used, defined = set(re.findall(r"var\(--([\w-]+)\)", styled)), set(re.findall(r"--([\w-]+):", css))
    assert used <= defined
    assert {"series-0", "ink", "paper"} <= used
    for one in page.iter():
        for name in ("fill", "stroke"):
            assert one.get(name, "none") == "none", f"<{one.tag} {name}={one.get(name)}> does not follow the theme"


def test_the_same_profile_has_the_same_digest_and_another_has_another() -> None:
    h100 = load_profile("h100")
    assert h100.digest == load_profile("h100").digest
    assert h100.with_factors(hbm_share=0.5).digest != h100.digest
    assert load_profile("a100-80g").digest != h100.digest
