"""Tabular Q-learning: what it learns is what dynamic programming says, cells are as documented, and it never needs torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from inferencegym.envs.episode import record
from inferencegym.learn.config import TrainConfig
from inferencegym.learn.qtable import CUTS, TableLearner, _learn, cells_of, cut_table
from inferencegym.learn.settings import Tabular
from inferencegym.policies.simple import Random, surface_of
from inferencegym.policies.trained import Notes, build
from tests.envs.toy import ToyTask


def config(**given):
    settings = Tabular(**given.pop("settings", {}))
    return TrainConfig(task="toy", algorithm="q-table", settings=settings, **{"rows": 8, "steps": 40_000} | given)


@pytest.mark.parametrize("surface", CUTS)
def test_cells_are_cut_where_the_table_says(surface):
    columns, cells = surface_of(surface).columns, cells_of(surface)
    assert cells.size == {"paging": 7 * 4 * 3 * 3 * 2 * 2 * 2, "knobs": 8 * 4 * 3 * 3 * 2}[surface]
    for i, (name, values) in enumerate(CUTS[surface].items()):
        at = columns.index(name)
        for j, value in enumerate(values):
            natural = np.zeros(len(columns))
            natural[at] = value * 1.02
            above = cells.of(columns.encode(natural))
            natural[at] = value * 0.98
            below = cells.of(columns.encode(natural))
            stride = int(np.prod(cells.counts[i + 1 :]))
            assert (above - below, below // stride % cells.counts[i]) == (stride, j), f"{name} at {value}"


@pytest.mark.parametrize("surface", CUTS)
def test_the_tables_in_the_docs_are_those_of_the_code(surface):
    assert cut_table(surface) in (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text()


def test_the_kernel_learns_the_mean_of_what_it_is_told():
    values, visits = np.zeros((2, 2)), np.zeros((2, 2), np.int64)
    rng = np.random.default_rng(0)
    for _ in range(4000):
        cells, actions = rng.integers(0, 2, 4), rng.integers(0, 2, 4)
        targets = 3.0 * cells - actions + rng.normal(0, 0.1, 4)
        _learn(values, visits, cells, actions, targets, 0.5, 0.001)
    np.testing.assert_allclose(values, [[0, -1], [3, 2]], atol=0.03)
    assert visits.sum() == 16_000


def test_rows_in_one_cell_do_not_overshoot():
    values, visits = np.zeros((1, 1)), np.zeros((1, 1), np.int64)
    _learn(values, visits, np.zeros(50, np.int64), np.zeros(50, np.int64), np.ones(50), 0.5, 0.02)
    assert 0.99 < values[0, 0] <= 1.0


def test_it_learns_the_toy_far_better_than_chance():
    learner = TableLearner(config(), ToyTask())
    figures = {}
    while learner.steps < 40_000:
        figures = learner.update()
    assert figures["exploration_rate"] == pytest.approx(0.05)
    assert figures["episodes"] > 900
    notes = Notes("table", "paging", "actions", "toy", "", "q-table", 0, "", learner.steps)
    learned = build(notes, learner.arrays())
    ours = [record(ToyTask(), learned, split="test", scenario=i).value for i in range(20)]
    chance = [record(ToyTask(), Random("paging"), split="test", scenario=i).value for i in range(20)]
    assert np.mean(ours) > np.mean(chance) + 0.3


def test_one_seed_one_table():
    def table(seed):
        learner = TableLearner(config(seed=seed), ToyTask())
        learner.update()
        return learner.values

    np.testing.assert_array_equal(table(0), table(0))
    assert (table(0) != table(1)).any()


def test_what_was_never_tried_is_not_chosen():
    learner = TableLearner(config(), ToyTask())
    learner.values[3] = -1.0
    learner.values[3, 4], learner.visits[3, [4, 5]] = -0.5, 7
    found = learner.arrays()["values"]
    assert found[3].argmax() == 4
    assert found[3, 5] == -1.0
    assert found[3, 0] < -1.0, "untried"
    assert (found[4] == 0).all(), "a cell that was never seen is as it began"


def test_torch_is_not_needed(tmp_path):
    code = (
        "import sys\nfrom inferencegym.learn.config import defaults\nfrom inferencegym.learn.train import train\n"
        f"train(defaults('easy', 'q-table').with_(steps=100, validation_scenarios=1, rows=2), {str(tmp_path / 'out')!r}, minutes=1e-9)\n"
        "print('torch' in sys.modules, 'stable_baselines3' in sys.modules)\n"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False", "False"]
