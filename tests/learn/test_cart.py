"""Regression trees: the best question is the one that brute force finds, known trees are found again, and what has no weight says nothing."""

from __future__ import annotations

import numpy as np
import pytest

from inferencegym.learn.cart import bins_of, grow, nodes_of


def squared_error(targets, weights):
    total = weights.sum(axis=0)
    mean = np.divide((weights * targets).sum(axis=0), total, out=np.zeros(targets.shape[1]), where=total > 0)
    return float((weights * (targets - mean) ** 2).sum())


@pytest.mark.parametrize("seed", range(5))
def test_the_first_question_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    bins = rng.integers(0, 6, size=(80, 4))
    targets = (rng.random((80, 3)) < 0.2 + 0.1 * bins[:, :3]).astype(float)
    weights = rng.random((80, 3))
    (first,) = grow(bins, targets, weights, splits=1, least=5)
    whole = squared_error(targets, weights)
    saved = {}
    for column in range(4):
        for cut in range(1, 6):
            low = bins[:, column] < cut
            if 5 <= low.sum() <= 75:
                parts = squared_error(targets[low], weights[low]) + squared_error(targets[~low], weights[~low])
                saved[column, cut] = whole - parts
    assert saved[first.column, first.cut] == pytest.approx(max(saved.values()))
    assert first.saved == pytest.approx(max(saved.values()))


def test_a_known_tree_is_found_again():
    rng = np.random.default_rng(1)
    values = rng.random((2000, 5)).astype(np.float32)
    edges = [np.linspace(0.1, 0.9, 9).astype(np.float32)] * 5
    leaf = np.where(
        values[:, 2] < edges[2][4],
        np.where(values[:, 0] < edges[0][1], 0, 1),
        np.where(values[:, 4] < edges[4][6], 2, 3),
    )
    targets = np.eye(4)[leaf]
    bins = bins_of(values, edges)
    questions = grow(bins, targets, np.ones_like(targets), splits=10, least=5)
    assert {(one.column, one.cut) for one in questions} == {(2, 5), (0, 2), (4, 7)}
    ends = nodes_of(bins, questions)
    assert all(len(np.unique(leaf[ends == end])) == 1 for end in np.unique(ends))


def test_a_row_without_weight_says_nothing():
    bins = np.repeat([[0], [1]], 20, axis=0)
    targets = np.repeat([[0.0, 1.0], [1.0, 1.0]], 20, axis=0)
    weights = np.ones_like(targets)
    assert len(grow(bins, targets, weights, splits=3, least=1)) == 1
    weights[:, 0] = 0.0
    assert grow(bins, targets, weights, splits=3, least=1) == []
