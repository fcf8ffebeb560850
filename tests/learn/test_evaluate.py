"""Evaluation: the same results whatever the number of workers, grades and baselines from the anchors, and clear refusals."""

from __future__ import annotations

import json
from multiprocessing import active_children

import numpy as np
import pytest

from inferencegym.decision.paging import NOTHING
from inferencegym.envs import catalogue
from inferencegym.envs.actors import actor, actor_names
from inferencegym.envs.episode import Episode
from inferencegym.envs.grade import replay
from inferencegym.ground.errors import ConfigError, UnknownNameError
from inferencegym.learn.evaluate import Interrupted, evaluate
from inferencegym.learn.page import page
from inferencegym.learn.statistics import interquartile_mean


class Mine:
    """A policy of one's own, given as it is."""

    name, surface = "mine", "paging"

    def start(self, seed):
        pass

    def act(self, observation, mask):
        return 8 if mask[8] else NOTHING


def test_results_are_those_of_single_episodes_in_the_order_asked_for(short_task):
    seen = []
    found = evaluate(["random", "lru"], [short_task], scenarios=[2, 0, 5], progress=lambda *said: seen.append(said))
    assert [(one.policy, one.scenario) for one in found.episodes] == [
        ("random", 2),
        ("random", 0),
        ("random", 5),
        ("lru", 2),
        ("lru", 0),
        ("lru", 5),
    ]
    assert [done for done, _, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert {of for _, of, _ in seen} == {6}
    again = evaluate(["lru"], [short_task], scenarios=[5])
    assert again.episodes[0] == found.episodes[-1]
    assert found.policies("short") == ("random", "lru")


def test_more_workers_change_nothing(short_task, tmp_path):
    one = evaluate(["random", "lru", "fixed:admit_free"], [short_task], scenarios=4, record_to=tmp_path / "one")
    two = evaluate(
        ["random", "lru", "fixed:admit_free"], [short_task], scenarios=4, workers=2, record_to=tmp_path / "two"
    )
    assert one == two
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert len(names) == 12
    for name in names[:3]:
        assert replay(Episode.load(tmp_path / "two" / name), catalogue.task(short_task)).genuine


def test_grades_and_improvement_come_from_the_anchors(anchored):
    found = evaluate(["lru", Mine()], [anchored], scenarios=6)
    row = next(row for row in found.table() if row.policy == "lru")
    assert row.graded
    grades = [min(1.0, max(0.0, (one.value - 0.1) / 0.5)) for one in found.of("short", "lru")]
    assert [one.grade for one in found.of("short", "lru")] == pytest.approx(grades)
    assert row.score.value == pytest.approx(interquartile_mean(grades))
    assert row.score.low <= row.score.value <= row.score.high
    assert row.improvement.value == np.mean([one.value > 0.2 for one in found.of("short", "lru")])
    assert row.difference.value == pytest.approx(
        interquartile_mean([one.value - 0.2 for one in found.of("short", "lru")])
    )
    assert sum(row.parts.values()) == pytest.approx(row.value)


def test_a_best_static_that_is_played_is_the_baseline(anchored):
    assert "best-static" in actor_names(catalogue.task(anchored))
    found = evaluate(["best-static", "lru"], [anchored], scenarios=3)
    assert found.baseline["short"] == tuple(one.value for one in found.of("short", "best-static"))
    by_name = {row.policy: row for row in found.table()}
    assert by_name["best-static"].improvement is None
    assert by_name["lru"].improvement is not None


def test_scenarios_beyond_the_anchors_have_no_baseline_unless_it_is_played(anchored):
    found = evaluate(["lru"], [anchored], scenarios=[4, 5, 6])
    assert found.baseline == {}
    assert found.table()[0].improvement is None
    assert found.episodes[2].grade is not None, "the mean scale serves"


def test_without_anchors_values_are_shown(short_task):
    found = evaluate(["lru", "do-nothing"], [short_task], scenarios=3)
    assert all(one.grade is None for one in found.episodes)
    assert not found.table()[0].graded
    assert found.table()[0].policy == "lru", "best first"


def test_every_policy_plays_the_tasks_of_its_surface(short_task):
    found = evaluate(["aimd", "lru", "random"], [short_task, "bursty_workload"], scenarios=1)
    assert found.policies("short") == ("lru", "random")
    assert found.policies("bursty_workload") == ("aimd", "random")
    assert [row.task for row in found.table()][-1] == "bursty_workload", (
        "no row over all tasks where some have no grades"
    )


def test_a_row_over_all_tasks_resamples_within_each(anchored, tmp_path, monkeypatch):
    other = tmp_path / "other.toml"
    other.write_text(
        (catalogue.FOLDER / "easy.toml")
        .read_text()
        .replace('"easy"', '"other"')
        .replace("horizon_ticks = 2000", "horizon_ticks = 420")
    )
    stored = json.loads((tmp_path / "short.json").read_text())
    stored |= {"task": "other", "digest": catalogue.task(other).digest}
    (tmp_path / "other.json").write_text(json.dumps(stored))
    found = evaluate(["lru"], [anchored, other], scenarios=4)
    last = found.table()[-1]
    assert (last.task, last.episodes) == ("all 2 tasks", 8)
    assert last.improvement is not None


def test_all_means_every_quick_policy(short_task):
    found = evaluate(["all"], [short_task], scenarios=1)
    assert {"random", "do-nothing", "lru"} <= set(found.policies("short"))
    assert "clairvoyant" not in found.policies("short")


def test_the_planner_can_be_asked_by_name(short_task):
    found = evaluate(["clairvoyant", "random"], [short_task], scenarios=2)
    by_name = {row.policy: row.value for row in found.table()}
    assert by_name["clairvoyant"] >= by_name["random"]


@pytest.mark.parametrize(
    ("policies", "tasks", "more", "problem"),
    [
        (["lruu"], ["easy"], {}, UnknownNameError), (["lru"], ["easyy"], {}, UnknownNameError), (["aimd"], ["easy"], {}, UnknownNameError),
        (["lru"], ["easy", "easy"], {}, ConfigError), ([], ["easy"], {}, ConfigError), (["lru"], ["easy"], {"scenarios": 0}, ConfigError),
        (["lru"], ["easy"], {"split": "tests"}, UnknownNameError), (["lru"], ["easy"], {"workers": 0}, ConfigError),
        (["best-static"], ["short"], {}, ConfigError), ([Mine()], ["bursty_workload"], {}, ConfigError),
    ],
)  # fmt: skip
def test_mistakes_are_refused_before_anything_is_played(short_task, policies, tasks, more, problem):
    tasks = [short_task if name == "short" else name for name in tasks]
    with pytest.raises(problem):
        evaluate(policies, tasks, progress=lambda *_: pytest.fail("played"), **more)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_carries_what_is_done_and_names_the_rest(anchored, workers):
    def interrupt(done, all_, result):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        evaluate(["lru", "random", "do-nothing"], [anchored], scenarios=3, workers=workers, progress=interrupt)
    assert isinstance(caught.value, Interrupted)
    assert not active_children(), "workers outlived it"
    found = caught.value.evaluation
    whole = evaluate(["lru", "random", "do-nothing"], [anchored], scenarios=3)
    assert len(found.episodes) == 4
    assert all(one in whole.episodes for one in found.episodes)
    left = {(one.policy, one.scenario) for one in whole.episodes} - {
        (one.policy, one.scenario) for one in found.episodes
    }
    assert {(one.policy, one.scenario) for one in found.unplayed} == left
    assert ">episodes</th>" in page(found, command="x")
    assert all("of 3 episodes" in line and line.endswith(": interrupted") for line in found.missing())


def test_best_static_that_was_interrupted_is_replaced_by_what_is_stored(anchored):
    def interrupt(done, all_, result):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        evaluate(["lru", "best-static"], [anchored], scenarios=3, progress=interrupt)
    assert caught.value.evaluation.baseline == {"short": (0.2, 0.2, 0.2)}


def test_results_are_plain_data_and_a_page(anchored):
    found = evaluate(["lru", "random"], [anchored], scenarios=2)
    data = json.loads(json.dumps(found.as_json()))
    assert data["digests"]["short"] == catalogue.task(anchored).digest
    assert len(data["episodes"]) == 4
    assert {row["policy"] for row in data["table"]} == {"lru", "random"}
    shown = page(found, command="inferencegym evaluate --policy '<b>'")
    assert "&lt;b&gt;" in shown
    assert "http" not in shown, "nothing comes from outside"
    for word in ("lru", "random", "short", "grade", "best static"):
        assert word in shown


def test_actors_are_found_by_any_name():
    easy = catalogue.task("easy")
    assert actor("fixed:admit_vip", easy).name == "fixed:admit_vip"
    assert hasattr(actor("clairvoyant", easy), "decide")
