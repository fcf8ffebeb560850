"""Explanations say what a policy really does: checked on policies whose reasons are known, and on one that remembers."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from inferencegym.decision.knobs import GRID, LEVERS, OFFSETS, Knobs
from inferencegym.envs import catalogue
from inferencegym.envs.actors import actor
from inferencegym.envs.episode import record
from inferencegym.envs.splits import scenario
from inferencegym.ground.errors import ConfigError
from inferencegym.learn.decisions import choices_of, play
from inferencegym.learn.distill import distil, write
from inferencegym.learn.explain import explain
from inferencegym.learn.explain_page import sections, write_page
from inferencegym.learn.explain_pictures import thinned
from inferencegym.policies import trained
from inferencegym.policies.trained import Notes
from inferencegym.policies.tree import UNLISTED


@pytest.fixture(scope="module")
def swinging(tmp_path_factory):
    """Twenty windows of a rate that swings."""
    path = tmp_path_factory.mktemp("tasks") / "swinging.toml"
    text = (catalogue.FOLDER / "adversarial_multitenant.toml").read_text()
    path.write_text(
        text.replace('name = "adversarial_multitenant"', 'name = "swinging"').replace("windows = 120", "windows = 20")
    )
    return catalogue.task(str(path))


def three_settings(task):
    """A tree of one's own: little KV below 25 requests/s, some below 45, most above."""
    columns = task.surface.columns
    at = columns.index("request_arrival_rate")
    natural = np.zeros((2, len(columns)))
    natural[:, at] = 45.0, 25.0
    settings = [(256, 0.1, 2, 1, 0, 1), (256, 0.3, 2, 1, 0, 1), (256, 0.6, 2, 1, 0, 1)]
    values = np.full((3, OFFSETS[-1]), UNLISTED, np.float32)
    for row, setting in zip(values, settings, strict=True):
        row[[offset + list(GRID[name]).index(x) for offset, name, x in zip(OFFSETS, LEVERS, setting, strict=False)]] = (
            1.0
        )
    arrays = {
        "columns": np.array([at, at]), "thresholds": columns.encode(natural)[:, at], "children": np.array([[1, ~2], [~0, ~1]]), "values": values,
    }  # fmt: skip
    notes = Notes("tree", "knobs", "multidiscrete", task.name, task.digest, "by hand", 0, "", 0)
    return trained.build(notes, arrays, name="three settings")


class Remembers:
    """Half the KV once more than 45 requests/s have ever come; else what is in force."""

    name, surface = "remembers", "knobs"

    def __init__(self, task):
        self.at, self.columns = task.surface.columns.index("request_arrival_rate"), task.surface.columns
        self.alarmed = False

    def start(self, seed):
        self.alarmed = False

    def act(self, observation, mask):
        self.alarmed = self.alarmed or self.columns.decode(observation)[self.at] > 45
        return Knobs(kv_budget_fraction=0.5) if self.alarmed else Knobs()


def test_decisions_are_those_of_the_recorded_episodes(swinging):
    for policy in (three_settings(swinging), actor("aimd", swinging), Remembers(swinging)):
        seen = play(swinging, policy, [scenario("test", i) for i in range(3)])
        assert len(seen) == 60
        for i in range(3):
            episode = record(swinging, policy, split="test", scenario=i)
            own = seen.episodes == i
            assert np.array_equal(seen.observations[own], episode.observations[:-1])
            assert np.array_equal(seen.rewards[own], episode.rewards)
            assert seen.values[i] == episode.value
            given = ~np.isnan(episode.actions)
            assert np.array_equal(seen.choices[own][given], episode.actions[given])
        assert not np.isnan(seen.choices).any()
        again = choices_of(swinging, policy, seen, seen.observations)
        assert np.array_equal(again, seen.choices)


def test_what_it_chooses_and_on_what_its_choices_hang(swinging):
    found = explain(swinging, three_settings(swinging), scenarios=4)
    assert found.constant == {
        "batch_cap": "256", "speculation_depth": "2", "quantization_tier": "INT8", "prefill_decode_split": "off", "priority_routing": "on",
    }  # fmt: skip
    first, *others = found.importance
    assert first.column == "request_arrival_rate"
    assert 0.3 < first.changed < 0.8
    assert first.by_knob == {"kv_budget_fraction": first.changed}
    assert all(one.changed == 0.0 for one in others)
    (arrivals,) = (one for one in found.against if one.load == "request_arrival_rate")
    assert (arrivals.what, arrivals.choices) == ("kv_budget_fraction", ("0.1", "0.3", "0.6"))
    assert sum(arrivals.decisions) == found.decisions == 80
    shares = np.array(arrivals.shares)
    assert shares.sum(axis=0) == pytest.approx(1.0)
    for (low, high), share in zip(arrivals.intervals, shares.T, strict=True):
        if high < 24.9:
            assert share[0] == 1.0
        if low > 45.1:
            assert share[2] == 1.0
    assert arrivals.intervals == tuple(sorted(arrivals.intervals))


def test_shuffling_reaches_what_a_memory_hangs_on(swinging):
    found = explain(swinging, Remembers(swinging), scenarios=3)
    changed = {one.column: one.changed for one in found.importance}
    assert changed["request_arrival_rate"] > 0.0
    assert sum(value > 0.0 for value in changed.values()) == 1


def test_the_timeline_is_two_episodes_of_one_scenario(swinging):
    policy = three_settings(swinging)
    found = explain(swinging, policy, scenarios=2, shown=1).timeline
    own = record(swinging, policy, split="test", scenario=1)
    other = record(swinging, actor("do-nothing", swinging), split="test", scenario=1)
    assert (found.scenario, found.other, found.length) == (1, "do-nothing", 5.0)
    assert (found.value, found.other_value) == (own.value, other.value)
    assert found.ahead[-1] == pytest.approx(own.total_reward - other.total_reward)
    assert found.choices[0] == own.actions.tolist()
    assert found.objectives == {"vip": 200.0, "free": 400.0, "mega": 6000.0}
    arrivals = found.seen["request_arrival_rate"]
    assert arrivals[0] == pytest.approx(arrivals[1])


def test_a_planner_is_not_explained():
    task = catalogue.task("easy")
    with pytest.raises(ConfigError, match="not a planner"):
        explain(task, actor("clairvoyant", task), scenarios=1)


@pytest.mark.parametrize("surface", ["knobs", "paging"])
def test_the_page_is_whole_and_needs_nothing_from_outside(surface, swinging, short_task, tmp_path):
    task = swinging if surface == "knobs" else catalogue.task(short_task)
    policy = three_settings(swinging) if surface == "knobs" else actor("lru", task)
    found = explain(task, policy, scenarios=2, name="<b>mine</b>")
    write_page(tmp_path / "page.html", found, command="inferencegym explain <x>")
    text = (tmp_path / "page.html").read_text()
    assert "<b>mine" not in text
    assert "&lt;b&gt;mine" in text
    assert "http" not in text
    assert "nan" not in text
    for part in sections(found):
        for start in range(part.count("<svg")):
            svg = "<svg" + part.split("<svg")[start + 1].split("</svg>")[0] + "</svg>"
            ElementTree.fromstring(svg)
    assert (
        "kv_budget_fraction against queue_depth" if surface == "knobs" else "action against free_queue_pressure"
    ) in text


def test_long_series_are_thinned_to_means():
    points = thinned(list(range(6000)))
    assert len(points) == 600
    assert points[0] == (5.0, 4.5)


def test_a_tree_of_three_leaves_is_distilled_from_one(swinging, tmp_path):
    policy = three_settings(swinging)
    found = distil(swinging, policy, rounds=2, episodes=6, validation=3)
    assert found.tree.branches.leaves <= 20
    assert found.agreement > 0.9
    assert found.validation == pytest.approx(found.teacher, abs=0.01)
    assert sum(found.shares) == pytest.approx(1.0)
    assert {swinging.surface.columns.names[i] for i in found.tree.branches.columns} >= {"request_arrival_rate"}
    path = write(tmp_path / "tree.npz", swinging, found, source="three settings")
    again = trained.load(path, "knobs")
    assert again.text() == found.tree.text()
    assert record(swinging, again, split="validation", scenario=0).value == pytest.approx(found_value(found, 0))
    one_more = distil(swinging, policy, rounds=2, episodes=6, validation=3)
    assert one_more.text() == found.text()


def found_value(found, index):
    """Of the chosen tree on a validation scenario."""
    (chosen,) = (one for one in found.tried if one.arrays is found.arrays)
    return chosen.values[index]


def test_a_rule_on_paging_becomes_lists_of_preferences(short_task):
    task = catalogue.task(short_task)
    found = distil(task, actor("lru", task), leaves=6, rounds=2, episodes=2, validation=2)
    assert found.tree.branches.leaves <= 6
    assert all(one[-1] == "nothing" for one in found.tree.preferences())
    assert found.agreement > 0.5


def test_leaves_are_at_least_one(swinging):
    with pytest.raises(ConfigError, match="1 or more"):
        distil(swinging, three_settings(swinging), leaves=0)
    found = distil(swinging, three_settings(swinging), leaves=1, rounds=1, episodes=2, validation=1)
    assert found.tree.branches.leaves == 1
