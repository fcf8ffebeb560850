"""Imitation: lessons are the teacher's own choices where the learner leads; one seed is one policy; a network that was taught can be taken over."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sb3_contrib")

from inferencegym.decision.encodings import in_force, nearest
from inferencegym.decision.knobs import GRID, LEVERS, OFFSETS
from inferencegym.decision.paging import NOTHING, NUMBER
from inferencegym.envs import catalogue
from inferencegym.envs.actors import actor
from inferencegym.envs.splits import scenario
from inferencegym.ground.errors import ConfigError, UnknownNameError
from inferencegym.ground.rng import stream
from inferencegym.learn.config import defaults, from_data
from inferencegym.learn.forklearner import ForkLearner
from inferencegym.learn.imitate import ImitationLearner
from inferencegym.learn.learners import PPOLearner
from inferencegym.learn.lessons import School, labels_of
from inferencegym.learn.train import train
from inferencegym.policies.trained import load, read

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
SMALL = {"episodes": 2, "labels": 400, "hidden": (16,), "validation_scenarios": 2, "validate_every": 1, "scenarios": 50}
CUT = "fixed:batch_cap=64,kv_budget_fraction=1,speculation_depth=0,quantization_tier=FP16,prefill_decode_split=off,priority_routing=off"


def small(task, **given):
    return defaults(task, "imitate").with_(**(SMALL | given))


def learner(config):
    return ImitationLearner(config, catalogue.task(config.task), workers=1)


class Counter:
    """Admits at every third decision that it sees, whatever it sees: a rule of nothing but memory."""

    name, surface = "counter", "paging"

    def start(self, seed):
        del seed
        self.seen = 0

    def act(self, observation, mask):
        self.seen += 1
        return NUMBER["admit_free"] if self.seen % 3 == 0 and mask[NUMBER["admit_free"]] else NOTHING


def test_a_teacher_with_a_memory_sees_the_whole_episode_while_the_learner_drives(short_task):
    task = catalogue.task(short_task)
    arrays = learner(small(short_task)).arrays()
    found = School(task, Counter(), labels=task.steps).lesson(arrays, scenario("train", 1), stream(0, "test"))
    assert len(found.labels) == found.steps, "every decision is asked about"
    admitted = found.labels[:, 0] == NUMBER["admit_free"]
    thirds = np.arange(1, found.steps + 1) % 3 == 0
    np.testing.assert_array_equal(admitted, thirds & (found.masks[:, NUMBER["admit_free"]] == 1))


def test_lessons_are_thinned_and_the_same_for_the_same_chance(short_task):
    task = catalogue.task(short_task)
    school = School(task, actor("sieve", task), labels=40)
    one = school.lesson(None, scenario("train", 1), stream(0, "test"))
    two = school.lesson(None, scenario("train", 1), stream(0, "test"))
    assert 15 < len(one.labels) < 90
    assert one.steps == task.steps
    np.testing.assert_array_equal(one.labels, two.labels)
    np.testing.assert_array_equal(one.observations, two.observations)


def test_a_planner_is_asked_at_the_lessons_and_its_setting_stands_between_them(calm):
    task = catalogue.task(calm)
    asked = []

    class Planner:
        name, surface = "planner", "knobs"

        def start(self, seed):
            del seed

        def decide(self, batch):
            asked.append(int(batch.windows_done[0]))
            return {"kv_budget_fraction": 0.3 if len(asked) % 2 else 0.5}

    found = School(task, Planner(), labels=4).lesson(None, scenario("train", 0), stream(3, "test"))
    assert asked[0] == 0, "whoever drives needs a first setting"
    assert len(asked) - len(found.labels) in (0, 1)
    assert 1 <= len(found.labels) < task.steps
    held = in_force(found.observations)[:, LEVERS.index("kv_budget_fraction")]
    assert set(np.round(held[1:], 3).tolist()) <= {0.3, 0.5}
    kv = found.labels[:, LEVERS.index("kv_budget_fraction")]
    assert set(kv.tolist()) <= {GRID["kv_budget_fraction"].index(0.3), GRID["kv_budget_fraction"].index(0.5)}


def test_labels_are_the_nearest_choices_that_the_mask_allows(calm):
    task = catalogue.task(calm)
    batch = task.batch(1)
    batch.start(0, 0)
    seen, mask = batch.observations[0], batch.masks[0].copy()
    asked = np.array([100.0, np.nan, 3.0, 1.0, 1.0, np.nan])
    found = labels_of(task, asked, seen, mask)
    now = nearest(in_force(seen[None]))[0]
    assert found[0] == GRID["batch_cap"].index(128.0)
    assert found[1] == now[1], "what is to be left stays as it is"
    assert found[2] == GRID["speculation_depth"].index(3.0)
    assert found[5] == now[5]
    split = LEVERS.index("prefill_decode_split")
    mask[OFFSETS[split] + 1] = 0
    assert labels_of(task, asked, seen, mask)[split] == 0
    mask[OFFSETS[split] + 1] = 1
    assert labels_of(task, asked, seen, mask)[split] == 1


def test_an_action_that_is_not_allowed_is_learned_as_what_it_does(short_task):
    task = catalogue.task(short_task)
    mask = np.zeros(18, np.int8)
    mask[NOTHING] = 1
    assert labels_of(task, NUMBER["admit_free"], np.zeros(20, np.float32), mask).tolist() == [NOTHING]


def test_a_fixed_teacher_is_learned_on_knobs(calm, tmp_path):
    config = small(calm, teacher=CUT, steps=80, labels=10, episodes=4, epochs=60, learning_rate=1e-2, batch_size=16)
    result = train(config, tmp_path / "run")
    policy = load(result.policy, "knobs")
    task = catalogue.task(calm)
    batch = task.batch(1)
    batch.start(0, scenario("validation", 5))
    chosen = policy.head.rows(policy.scores_of(batch.observations), batch.observations, batch.masks)[0]
    wanted = actor(CUT, task).action.levers()
    np.testing.assert_array_equal(chosen, wanted)


def test_a_rule_on_paging_is_learned_better_than_chance_and_the_agreement_is_told(short_task):
    made = learner(small(short_task, teacher="sieve", epochs=30, beta=0.0))
    first, second = made.update(), made.update()
    assert np.isnan(first["agreement"])
    assert first["teacher_share"] == 1.0
    assert second["teacher_share"] == 0.0
    assert second["agreement"] > 0.5
    assert second["lessons"] > first["lessons"]


def test_a_training_that_was_interrupted_goes_on_as_if_it_had_not_been(short_task, tmp_path):
    config = small(short_task, teacher="sieve", epochs=3, beta=0.5)
    config = replace(config, steps=3 * 2 * catalogue.task(short_task).steps)
    whole = train(config, tmp_path / "whole")
    assert whole.updates == 3
    half = train(config, tmp_path / "halves", stop=lambda progress: progress.update >= 2)
    assert half.updates == 2
    train(None, tmp_path / "halves", resume=True)
    for name in ("curve.csv", "policy.npz"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "halves" / name).read_bytes()


def test_the_number_of_processes_changes_nothing(short_task):
    config = small(short_task, teacher="sieve", epochs=2)
    task = catalogue.task(short_task)
    alone, many = ImitationLearner(config, task, workers=1), ImitationLearner(config, task, workers=2)
    assert alone.update()["loss"] == many.update()["loss"]
    for name, array in alone.arrays().items():
        np.testing.assert_array_equal(array, many.arrays()[name])


def test_wrong_settings_are_named(short_task, calm):
    with pytest.raises(UnknownNameError, match="nobody"):
        learner(small(short_task, teacher="nobody"))
    with pytest.raises(ConfigError, match="beta"):
        small(short_task, beta=1.5)
    with pytest.raises(ConfigError, match="encoding"):
        learner(replace(small(calm), encoding="preset"))


# --- taking over -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught(calm, tmp_path_factory):
    """A network on knobs, taught for a moment."""
    folder = tmp_path_factory.mktemp("taught")
    return train(small(calm, teacher="slo-feedback", steps=20, labels=10), folder / "run").policy


def test_forks_and_ppo_begin_with_a_network_that_was_taught(calm, taught):
    task = catalogue.task(calm)
    _, given = read(taught)
    for config, kind in (
        (defaults(calm, "forks").with_(start=f"file:{taught}", hidden=(16,)), ForkLearner),
        (defaults(calm, "maskable-ppo").with_(start=f"file:{taught}", hidden=(16,), rollout_steps=20, rows=2), PPOLearner),
    ):  # fmt: skip
        begun = kind(config, task).arrays()
        assert set(begun) == set(given)
        sure = config.settings.confidence if kind is ForkLearner else 1.0
        for name, array in given.items():
            factor = np.float32(sure if name in ("w1", "b1") else 1.0)
            np.testing.assert_array_equal(begun[name], array * factor, err_msg=name)


def test_what_was_taken_over_keeps_its_scale_while_it_learns(calm, taught):
    config = defaults(calm, "maskable-ppo").with_(start=str(taught), hidden=(16,), rollout_steps=20, batch_size=40, rows=2, steps=400)  # fmt: skip
    made = PPOLearner(config, catalogue.task(calm))
    before = made.arrays()
    made.update()
    after = made.arrays()
    np.testing.assert_array_equal(before["mean"], after["mean"])
    np.testing.assert_array_equal(before["scale"], after["scale"])
    assert not np.array_equal(before["w0"], after["w0"])


def test_a_foreign_network_is_one_clear_error(calm, short_task, taught, tmp_path):
    task = catalogue.task(calm)
    for given in ({"hidden": (64, 64)}, {"hidden": (16,), "encoding": "delta"}):
        with pytest.raises(ConfigError, match=r"start.*hidden \[16\].*allowed.*a network on 'knobs'"):
            PPOLearner(defaults(calm, "ppo").with_(start=str(taught), **given), task)
    with pytest.raises(ConfigError, match=r"start.*knobs.*allowed.*a network on 'paging'"):
        PPOLearner(
            defaults(short_task, "ppo").with_(start=str(taught), hidden=(16,), rows=2), catalogue.task(short_task)
        )
    with pytest.raises(ConfigError, match=r"start.*'best-static'.*random, or file"):
        PPOLearner(defaults(calm, "ppo").with_(start="best-static"), task)
    with pytest.raises(ConfigError, match="there is no file"):
        ForkLearner(defaults(calm, "forks").with_(start=f"file:{tmp_path / 'none.npz'}"), task)


def test_settings_are_read_back(calm, tmp_path):
    config = small(calm, teacher="model-predictive")
    assert from_data({"task": calm, "algorithm": "imitate", "settings": {"teacher": "model-predictive"}}).settings.teacher == "model-predictive"  # fmt: skip
    from inferencegym.learn.config import load as load_config

    assert load_config(config.save(tmp_path / "c.toml")) == config
