"""Work that is shared out comes back whole and the same from everywhere; sweeps are the trainings that one would have made alone."""

from __future__ import annotations

import json
import math
import os
import signal
import sys

import pytest

from inferencegym.ground.errors import ConfigError, MissingExtraError, UnknownNameError
from inferencegym.learn.config import defaults
from inferencegym.learn.distributed import share_out
from inferencegym.learn.evaluate import evaluate
from inferencegym.learn.processes import interrupts_wait
from inferencegym.learn.sweep import as_json, grid, points, sweep, values_of
from inferencegym.learn.train import train
from inferencegym.learn.workers import Workers, at_most


@pytest.fixture
def tiny(short_task):
    """Settings of a small training that needs NumPy alone."""
    return defaults(short_task, "q-table").with_(steps=1600, rows=4, validate_every=800, validation_scenarios=2)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_comes_back_with_its_place(workers):
    assert dict(share_out(math.sqrt, [0, 1, 4, 9], workers=workers)) == {0: 0, 1: 1, 2: 2, 3: 3}
    assert dict(share_out(math.sqrt, [], workers=workers)) == {}


def test_an_interrupt_while_processes_are_started_comes_afterwards():
    before, came = signal.signal(signal.SIGINT, signal.default_int_handler), []
    try:
        with pytest.raises(KeyboardInterrupt), interrupts_wait():  # noqa: PT012 (the block is what is tested)
            os.kill(os.getpid(), signal.SIGINT)
            came.append("the end of the block")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert came == ["the end of the block"]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_jobs_that_must_stay_are_done_in_this_process():
    here = []
    assert list(share_out(here.append, ["a", "b"], workers=2, here=(0, 1))) == [(0, None), (1, None)]
    assert here == ["a", "b"]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_error_is_the_one_that_was_raised(workers):
    with pytest.raises(ConfigError, match="'broken'; allowed: NAME=A,B"):
        dict(share_out(values_of, ["a=1", "broken", "b=2"], workers=workers))
    with pytest.raises(ConfigError, match="workers: 0; allowed: 1 or more"):
        dict(share_out(math.sqrt, [1], workers=0))


def test_without_ray_one_is_told_what_to_install(monkeypatch, short_task, tiny, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'inferencegym\[ray\]'"):
        evaluate(["lru"], [short_task], scenarios=1, ray="local")
    with pytest.raises(MissingExtraError, match=r"pip install 'inferencegym\[ray\]'"):
        sweep(grid(tiny, tmp_path), ray="local")
    monkeypatch.delitem(sys.modules, "inferencegym.learn.rllib", raising=False)
    monkeypatch.setitem(sys.modules, "ray.rllib.algorithms.ppo", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'inferencegym\[ray\]'"):
        __import__("inferencegym.learn.rllib")


def test_a_grid_has_a_training_for_each_point_and_seed(tiny, tmp_path):
    runs = grid(tiny.with_(seed=3), tmp_path, seeds=2, changes={"discount": [0.9, 0.95], "rows": [2, 4]})
    assert len(runs) == 8
    assert len({run.folder for run in runs}) == 8
    assert runs[0].folder.name == "discount=0.9-rows=2-seed=3"
    assert [run.config.seed for run in runs[:2]] == [3, 4]
    assert (runs[-1].config.settings.discount, runs[-1].config.rows) == (0.95, 4)


def test_a_grid_refuses_what_it_cannot_change(tiny, tmp_path):
    for name in ("task", "seed", "nothing"):
        with pytest.raises(UnknownNameError, match="setting to sweep"):
            grid(tiny, tmp_path, changes={name: [1, 2]})
    with pytest.raises(ConfigError, match="each once"):
        grid(tiny, tmp_path, changes={"discount": [0.9, 0.9]})
    with pytest.raises(ConfigError, match="discount"):
        grid(tiny, tmp_path, changes={"discount": [1.5]})
    with pytest.raises(ConfigError, match="seeds"):
        grid(tiny, tmp_path, seeds=0)


def test_values_are_numbers_lists_or_words():
    assert values_of("discount=0.9,1") == ("discount", [0.9, 1])
    assert values_of("hidden=[64,64],[32]") == ("hidden", [(64, 64), (32,)])
    assert values_of("normalise=true,false") == ("normalise", [True, False])
    assert values_of("start=best-static, fixed:x") == ("start", ["best-static", "fixed:x"])
    for text in ("discount", "=1", "discount="):
        with pytest.raises(ConfigError, match="NAME=A,B"):
            values_of(text)


def test_a_sweep_is_the_trainings_one_by_one_for_any_number_of_workers(tiny, tmp_path):
    told = []
    changes = {"discount": [0.9, 0.99]}
    runs = grid(tiny, tmp_path / "two", seeds=2, changes=changes)
    results = sweep(runs, workers=2, progress=lambda done, all_, run, result: told.append((done, all_, run.folder.name)))  # fmt: skip
    assert [done for done, _, _ in told] == [1, 2, 3, 4]
    assert {name for _, _, name in told} == {run.folder.name for run in runs}
    sweep(grid(tiny, tmp_path / "one", seeds=2, changes=changes))
    for run, result in zip(runs, results, strict=True):
        alone = train(run.config, tmp_path / "alone" / run.folder.name)
        assert (result.best, result.config, result.policy) == (alone.best, run.config, run.folder / "policy.npz")
        for name in ("policy.npz", "curve.csv", "config.toml"):
            said = alone.policy.with_name(name).read_bytes()
            assert (run.folder / name).read_bytes() == said
            assert (tmp_path / "one" / run.folder.name / name).read_bytes() == said
    found = points(runs, results)
    assert sorted(point.changed["discount"] for point in found) == [0.9, 0.99]
    assert all(point.seeds == 2 and point.low <= point.mean <= point.high for point in found)
    assert found[0].mean >= found[1].mean
    assert len(json.loads(json.dumps(as_json(runs, results)))["runs"]) == 4


def test_a_sweep_that_was_interrupted_goes_on(tiny, tmp_path):
    runs = grid(tiny, tmp_path / "cut", seeds=2)
    train(runs[0].config, runs[0].folder, stop=lambda progress: True)
    with pytest.raises(ConfigError, match="holds a training"):
        sweep(runs)
    results = sweep(runs, resume=True)
    assert [result.ended for result in results] == ["all steps", "all steps"]
    whole = train(runs[0].config, tmp_path / "whole")
    assert (runs[0].folder / "curve.csv").read_bytes() == whole.policy.with_name("curve.csv").read_bytes()


def test_trainings_side_by_side_share_the_processors():
    with at_most(1):
        assert Workers(print, ()).workers == 1
        assert Workers(print, (), workers=3).workers == 3
