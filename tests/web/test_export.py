"""Exports hold what was streamed and what evaluate says, and can be read by others."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow.parquet as pq
import pytest

from inferencegym.learn.evaluate import evaluate
from inferencegym.report.chart import HEIGHT, Axis, Line, chart
from inferencegym.web import export

SHORT = {"horizon_ticks": 300}


@pytest.fixture(scope="module")
def paging(arena):
    return arena.played("hard", ["lru", "random"], seed=6, overrides=SHORT)


@pytest.fixture(scope="module")
def knobs(arena):
    return arena.played("static_workload", ["aimd"], split="test")


def exported(arena, run, kind):
    answer = arena.client.get(f"/runs/{run['id']}/export.{kind}")
    assert answer.status_code == 200, answer.text
    assert f".{kind}" in answer.headers["content-disposition"]
    return answer.content


def streamed(arena, run, policy, name):
    """A column of a policy, as the stream has it."""
    at = [column["name"] for column in run["columns"]].index(name)
    found = [
        np.frombuffer(payload, "<f4").reshape(len(run["columns"]), -1)[at]
        for header, payload in arena.frames(run["id"])
        if header["type"] == "samples" and header["policy"] == policy
    ]
    return np.concatenate(found)


def test_json_gives_evaluates_numbers_and_the_streams_samples(arena, knobs):
    found = json.loads(exported(arena, knobs, "json"))
    (theirs,) = evaluate(["aimd"], ["static_workload"], split="test", scenarios=1).episodes
    (policy,) = found["policies"]
    assert (policy["result"]["value"], policy["result"]["grade"]) == (theirs.value, theirs.grade)
    assert found["task_digest"] == theirs.digest
    assert found["spec"] == knobs["spec"]
    for name in ("p99_ttft_ms", "batch_cap", "score_so_far"):
        told = np.array([np.nan if x is None else x for x in policy["samples"][name]], np.float32)
        assert np.array_equal(told, streamed(arena, knobs, 0, name), equal_nan=True)


def test_parquet_has_a_row_for_each_sample_and_policy(arena, paging):
    table = pq.read_table(io.BytesIO(exported(arena, paging, "parquet")))
    assert table.num_rows == 600
    notes = json.loads(table.schema.metadata[b"inferencegym.run"])
    assert [one["result"]["value"] for one in notes["policies"]] == [
        one["result"]["value"] for one in paging["policies"]
    ]
    rows = table.to_pylist()
    second = [row for row in rows if row["policy"] == "random"]
    assert [row["sample"] for row in second] == list(range(300))
    assert [row["gpu_used"] for row in second] == streamed(arena, paging, 1, "gpu_used").tolist()


class Strict(HTMLParser):
    """What stands open, and what would be fetched or run."""

    def __init__(self):
        super().__init__()
        self.open, self.foreign, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "br", "link", "line", "rect", "path", "circle", "polyline"):
            self.open.append(tag)
        if tag in ("script", "link", "img", "iframe") or any(
            key in ("src", "href") and not value.startswith("#") for key, value in attributes
        ):
            self.foreign.append(tag)

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize("which", ["paging", "knobs"])
def test_the_page_stands_alone_and_says_what_made_it(arena, which, request):
    run = request.getfixturevalue(which)
    page = Strict()
    page.feed(exported(arena, run, "html").decode())
    text = " ".join(page.text)
    assert (page.open, page.foreign) == ([], [])
    assert run["task_digest"] in text
    assert (
        run["command"] is None
        or "inferencegym evaluate --task static_workload --policy aimd --split test --seeds 1" in text
    )
    if which == "paging":
        assert run["link"] in text
        assert "horizon_ticks = 300" in text
    for policy in run["policies"]:
        assert f"{policy['result']['value']:.4f}" in text


def test_peaks_survive_thinning():
    values = np.zeros(10_000, np.float32)
    values[7777] = 9.0
    values[3] = np.nan
    x, y = export._thinned(values)
    assert len(x) <= 400
    assert (x[y == 9.0] == [7777.0]).all()
    assert y.max() == 9.0


def test_a_loss_is_drawn_below_zero():
    axis = Axis("reward", "sum")
    drawn = chart(
        [Line("random", 0, np.arange(3.0), np.array([0.0, -20.0, -40.0]))], title="t", x=Axis("time", "ticks"), y=axis
    )
    (points,) = re.findall(r'points="([^"]+)"', drawn)
    heights = [float(point.split(",")[1]) for point in points.split()]
    assert heights[0] < heights[1] < heights[2] <= HEIGHT


def test_a_run_that_is_not_over_cannot_be_exported_yet(own_arena):
    arena = own_arena()
    run = arena.start("hard", ["clairvoyant"])
    answer = arena.client.get(f"/runs/{run['id']}/export.json")
    assert answer.status_code == 409
    assert "still being played" in answer.json()["error"]["message"]
