"""Trainings: one seed is one curve, however often it is interrupted; the best on validation is kept; broken checkpoints and settings are named."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sb3_contrib")

from inferencegym.decision.paging import NOTHING
from inferencegym.envs import actors, catalogue
from inferencegym.envs.episode import record
from inferencegym.ground.archive import read_archive, write_archive
from inferencegym.ground.errors import ConfigError, InferenceGymError
from inferencegym.learn import learners
from inferencegym.learn import train as training
from inferencegym.learn.config import defaults
from inferencegym.learn.config import load as load_config
from inferencegym.learn.sb3 import vec_env
from inferencegym.learn.settings import ALGORITHMS
from inferencegym.learn.train import train
from inferencegym.learn.validate import best_static, values_of
from inferencegym.policies.trained import load, read
from tests.envs.toy import ADMIT, ToyTask

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
#: These have tests of their own.
OURS = [name for name in ALGORITHMS if name not in ("forks", "cma", "feedback", "imitate")]
SMALL = {"rows": 4, "validation_scenarios": 2}
PPO = {"rollout_steps": 200, "batch_size": 200, "epochs": 2, "hidden": (8,)}
DQN = {"warmup": 100, "buffer": 3000, "hidden": (8,), "batch_size": 32, "train_every": 8, "target_every": 500}


def small(task, algorithm, updates=6, **given):
    """A training of so many updates, validated after every second one."""
    own = PPO if algorithm in ("ppo", "maskable-ppo") else DQN if "dqn" in algorithm else {}
    size = 800 if own is PPO else 2048 if own is DQN else 8192
    return defaults(task, algorithm).with_(**SMALL, **own, **given, steps=updates * size, validate_every=2 * size)


def after(n):
    return lambda progress: progress.update >= n


def same_files(a, b):
    assert (a / "curve.csv").read_text() == (b / "curve.csv").read_text()
    assert (a / "policy.npz").read_bytes() == (b / "policy.npz").read_bytes()
    left, right = (read_archive(folder / "checkpoint.npz", most_bytes=1 << 30) for folder in (a, b))
    assert str(left[0]) == str(right[0])  # NaN is NaN here
    assert set(left[1]) == set(right[1])
    for name, array in left[1].items():
        np.testing.assert_array_equal(array, right[1][name], err_msg=name)


@pytest.mark.parametrize("algorithm", OURS)
def test_a_training_that_was_interrupted_goes_on_as_if_it_had_not_been(short_task, tmp_path, algorithm):
    config = small(short_task, algorithm)
    whole = train(config, tmp_path / "whole")
    assert (whole.updates, whole.ended) == (6, "all steps")
    half = train(config, tmp_path / "halves", stop=after(3))
    assert (half.updates, half.ended) == (3, "stopped")
    assert half.steps < whole.steps
    rest = train(None, tmp_path / "halves", resume=True)
    assert (rest.updates, rest.steps, rest.best) == (whole.updates, whole.steps, whole.best)
    same_files(tmp_path / "whole", tmp_path / "halves")
    curve = (tmp_path / "whole" / "curve.csv").read_text().splitlines()
    assert len(curve) == 7
    ended = [float(line.split(",")[2]) for line in curve[1:]]
    assert ended[-1] > 0, "episodes ended on the way, so that resets are part of what is repeated"


@pytest.mark.parametrize("algorithm", ["maskable-ppo", "dqn"])
def test_the_same_on_knobs(tmp_path, algorithm, monkeypatch):
    monkeypatch.setattr(learners, "_REPORT_EVERY", 200)
    few = {"rows": 2, "scenarios": 2, "validation_scenarios": 1}
    own = (
        {"rollout_steps": 50, "batch_size": 50}
        if algorithm == "maskable-ppo"
        else {"encoding": "delta", "hidden": (8,)}
    )
    config = defaults("static_workload", algorithm, own.pop("encoding", None)).with_(**few, **own)
    config = config.with_(
        steps=400, validate_every=200, **({} if algorithm == "maskable-ppo" else {"warmup": 100, "buffer": 300})
    )
    train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", stop=after(1))
    train(None, tmp_path / "parts", resume=True)
    same_files(tmp_path / "whole", tmp_path / "parts")


def test_a_killed_training_goes_on_from_its_last_checkpoint(short_task, tmp_path):
    config = small(short_task, "maskable-ppo")
    train(config, tmp_path / "whole")

    def kill(progress):
        if progress.update == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "killed", tell=kill)
    assert len((tmp_path / "killed" / "curve.csv").read_text().splitlines()) == 6, "five updates were told"
    train(None, tmp_path / "killed", resume=True)
    same_files(tmp_path / "whole", tmp_path / "killed")


def test_another_seed_is_another_curve(short_task, tmp_path):
    config = small(short_task, "maskable-ppo", 2)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(config.with_(seed=seed), tmp_path / name)
    same_files(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "curve.csv").read_text() != (tmp_path / "c" / "curve.csv").read_text()


def test_the_best_on_validation_is_kept_and_is_worth_what_is_said(short_task, tmp_path, monkeypatch):
    told = []
    given = iter([0.1, 0.4, 0.3])
    real = training.values_of
    monkeypatch.setattr(training, "values_of", lambda *a, **k: [real(*a, **k)[0] * 0 + next(given)])
    result = train(small(short_task, "maskable-ppo"), tmp_path, tell=told.append)
    assert [one.validation for one in told] == [None, 0.1, None, 0.4, None, 0.3]
    assert [one.best for one in told] == [None, 0.1, 0.1, 0.4, 0.4, 0.4]
    assert (result.best, result.best_steps) == (0.4, told[3].steps)
    notes, _ = read(tmp_path / "policy.npz")
    assert (notes.validation, notes.steps, notes.task, notes.seed) == (0.4, told[3].steps, "short", 0)
    assert notes.config_digest == result.config.digest


def test_validation_plays_what_evaluation_plays(short_task, tmp_path):
    result = train(small(short_task, "maskable-ppo", 2), tmp_path)
    task = catalogue.task(short_task)
    policy = actors.actor(str(result.policy), task)
    played = [record(task, policy, split="validation", scenario=i).value for i in range(2)]
    assert values_of(policy, task, range(2)) == pytest.approx(played, abs=1e-12)
    assert result.best == pytest.approx(np.mean(played), abs=1e-12)


def test_the_bar_is_the_best_static_configuration_on_the_same_scenarios(anchored):
    task = catalogue.task(anchored)
    fixed = actors.actor("fixed:admit_free", task)
    expected = np.mean([record(task, fixed, split="validation", scenario=i).value for i in range(2)])
    assert best_static(task, range(2)) == pytest.approx(expected)


def test_where_nothing_was_searched_there_is_no_bar(short_task, tmp_path):
    assert best_static(catalogue.task(short_task), range(2)) is None
    assert train(small(short_task, "q-table", 2), tmp_path).best_static is None


def test_patience_ends_it(short_task, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "values_of", lambda *a, **k: [0.5])
    result = train(small(short_task, "q-table", 20, patience=3), tmp_path)
    assert (result.ended, result.updates, result.best_steps) == ("patience", 8, 2 * 8192)
    again = train(None, tmp_path, resume=True)
    assert (again.ended, again.updates) == ("patience", 8), "what has ended stays so"


def test_when_time_is_over_there_is_a_policy_and_more_can_follow(short_task, tmp_path):
    config = small(short_task, "maskable-ppo")
    cut = train(config, tmp_path / "cut", minutes=1e-9)
    assert (cut.ended, cut.updates) == ("time", 1)
    assert load(cut.policy, "paging")
    train(None, tmp_path / "cut", resume=True)
    train(config, tmp_path / "whole")
    same_files(tmp_path / "whole", tmp_path / "cut")


def test_more_steps_may_follow_but_no_other_settings(short_task, tmp_path):
    config = small(short_task, "maskable-ppo", 2, anneal=False)
    train(config, tmp_path / "long")
    longer = config.with_(steps=2 * config.steps)
    assert train(longer, tmp_path / "long", resume=True).updates == 4
    train(longer, tmp_path / "whole")
    curve = (tmp_path / "whole" / "curve.csv").read_text()
    assert (tmp_path / "long" / "curve.csv").read_text() == curve
    with pytest.raises(ConfigError, match=r"discount: 0\.5, but the training to resume has 0\.998"):
        train(longer.with_(discount=0.5), tmp_path / "long", resume=True)
    with pytest.raises(ConfigError, match=r"steps: 800, but the training to resume has 3200"):
        train(config.with_(steps=800), tmp_path / "long", resume=True)


def test_a_training_is_not_overwritten(short_task, tmp_path):
    config = small(short_task, "q-table", 2)
    train(config, tmp_path)
    with pytest.raises(ConfigError, match="holds a training; allowed: another folder"):
        train(config, tmp_path)


def test_broken_and_foreign_checkpoints_are_one_clear_error(short_task, tmp_path):
    train(small(short_task, "maskable-ppo", 2), tmp_path / "ppo")
    train(small(short_task, "q-table", 2), tmp_path / "table")
    file = tmp_path / "ppo" / "checkpoint.npz"
    whole = file.read_bytes()
    notes, arrays = read_archive(file, most_bytes=1 << 30)

    def refused(problem, content=None):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ConfigError, match=problem) as caught:
            train(None, tmp_path / "ppo", resume=True)
        assert "\n" not in str(caught.value)

    refused("is broken or something else", whole[: len(whole) // 2])
    refused("is broken or something else", b"")
    flipped = bytearray(whole)
    # Inside an array: a zip's own headers have bytes that say what is said elsewhere too, and nobody reads them.
    flipped[whole.index(arrays["learner.last_obs"].tobytes())] ^= 0xFF
    refused("is broken or something else", bytes(flipped))
    refused("not written in format 1", (tmp_path / "ppo" / "policy.npz").read_bytes())
    changes = (
        (lambda n, a: n["header"].update(task_digest="x"), "the task 'short' has changed since"),
        (
            lambda n, a: n["header"].update(config={"task": short_task, "algorithm": "dqn"}),
            "is not a checkpoint of this training",
        ),
        (lambda n, a: n["header"]["config"].update(rows=3), "is not a checkpoint of this training: .*4 rows were kept"),
        (lambda n, a: a.pop("learner.last_obs"), "is not a checkpoint"),
        (lambda n, a: a.update({"learner.last_obs": a["learner.last_obs"] + 1}), "do not come out as they were"),
        (lambda n, a: a.pop("learner.policy.action_net.weight"), "is not a checkpoint"),
        (lambda n, a: n.pop("learner"), "format"),
    )
    for change, problem in changes:
        told, stored = copy.deepcopy(notes), dict(arrays)
        change(told, stored)
        write_archive(file, told, stored)
        refused(problem)
    file.write_bytes((tmp_path / "table" / "checkpoint.npz").read_bytes())
    assert train(None, tmp_path / "ppo", resume=True).config.algorithm == "q-table", (
        "a whole checkpoint is what it says"
    )
    file.unlink()
    refused("there is no such file")


def test_the_simulators_rows_can_be_put_where_they_stood():
    env, twin = (vec_env(ToyTask(), 5, seed=3, resumable=True) for _ in range(2))
    env.reset()
    rng = np.random.default_rng(0)

    def walk(steps, *envs):
        for _ in range(steps):
            masks = envs[0].action_masks()
            actions = np.where(masks[:, ADMIT] & (rng.random(5) < 0.85), ADMIT, NOTHING)
            found = [one.step(actions) for one in envs]
            for left, right in zip(found[0][:3], found[-1][:3], strict=True):
                np.testing.assert_array_equal(left, right)
        return found[0][0]

    seen = walk(97, env)
    assert len(set(env.rows.lengths.tolist())) > 1, "rows stand at different steps of their episodes"
    np.testing.assert_array_equal(twin.rows.restore(*env.rows.keep()), seen)
    walk(200, env, twin)
    with pytest.raises(ConfigError, match="resumable"):
        vec_env(ToyTask(), 1).rows.keep()


def test_settings_go_to_a_file_and_come_back(short_task, tmp_path):
    for task in (short_task, "bursty_workload"):
        for algorithm in OURS:
            config = defaults(task, algorithm).with_(seed=5)
            again = load_config(config.save(tmp_path / "config.toml"))
            assert again == config
            assert again.digest == config.digest
            assert replace(config, seed=6).digest != config.digest


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('task = "easy"\nstep = 5', "Did you mean 'steps'"),
        ('task = "eazy"', "Did you mean 'easy'"),
        ("steps = 5", "task: is missing"),
        ('task = "easy"\nalgorithm = "sac"', "maskable-ppo"),
        ('task = "easy"\nsteps = 0', "steps: 0"),
        ('task = "easy"\nsteps = true', "steps: True"),
        ('task = "easy"\nencoding = "preset"', "allowed: actions"),
        ('task = "bursty_workload"\nalgorithm = "dqn"\nencoding = "multidiscrete"', "preset, delta"),
        ('task = "bursty_workload"\nalgorithm = "q-table"\nencoding = "delta"', "allowed: preset"),
        ('task = "easy"\nalgorithm = "ppo"\n[settings]\nlearning_rat = 1', "Did you mean 'learning_rate'"),
        ('task = "easy"\nalgorithm = "ppo"\n[settings]\ndiscount = 1.5', "discount: 1.5; allowed: 0..1"),
        ('task = "easy"\nalgorithm = "ppo"\n[settings]\nlearning_rate = nan', "learning_rate: nan"),
        ('task = "easy"\nalgorithm = "ppo"\n[settings]\nhidden = []', "hidden"),
        ('task = "easy"\nalgorithm = "ppo"\n[settings]\nanneal = 1', "true, false"),
        ("task = ", "is not TOML"),
    ],
)
def test_wrong_settings_say_what_is_right(tmp_path, text, problem):
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(InferenceGymError, match=problem):
        load_config(tmp_path / "config.toml")


def test_whole_numbers_pass_for_numbers(tmp_path):
    (tmp_path / "config.toml").write_text(
        'task = "easy"\nalgorithm = "ppo"\n[settings]\ndiscount = 1\nhidden = [32, 16]\n'
    )
    settings = load_config(tmp_path / "config.toml").settings
    assert (settings.discount, settings.hidden) == (1.0, (32, 16))
