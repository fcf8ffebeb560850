"""Integrated gradients sum to what they explain, agree with a plain sum over the path, and are told in pages and JSON for networks alone."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest

from inferencegym.decision.encodings import find_encoding
from inferencegym.decision.knobs import LEVERS
from inferencegym.envs import catalogue
from inferencegym.envs.actors import actor
from inferencegym.envs.splits import scenario
from inferencegym.learn.decisions import play
from inferencegym.learn.explain import explain
from inferencegym.learn.explain_page import sections
from inferencegym.learn.gradients import TOLERANCE, attributions, chosen_scores, contrast, integrated
from inferencegym.policies.heads import find_head
from inferencegym.policies.network import NetworkPolicy
from inferencegym.policies.simple import surface_of
from inferencegym.policies.trained import load, shipped


def network(surface, head, activation, *, hidden=(32, 32), seed=0, gain=1.0):
    """A network of random weights, with units that saturate or switch between the observations."""
    chance = np.random.default_rng(seed)
    found = find_head(surface, head)
    sizes = [len(surface_of(surface).columns), *hidden, sum(found.sizes)]
    layers = [
        ((gain * chance.normal(size=(a, b)) / np.sqrt(a)).astype(np.float32), (0.3 * chance.normal(size=b)).astype(np.float32))
        for a, b in pairwise(sizes)
    ]  # fmt: skip
    mean, scale = chance.random(sizes[0]).astype(np.float32), (1 + 4 * chance.random(sizes[0])).astype(np.float32)
    return NetworkPolicy(surface, found, mean, scale, layers, activation)


def situations(surface, n, seed=1):
    return np.random.default_rng(seed).random((n, len(surface_of(surface).columns))).astype(np.float32)


def score(policy, x, weights):
    """The weighted scores, float64[n], reckoned anew."""
    for i, (matrix, bias) in enumerate(policy.layers):
        x = x @ matrix.astype(np.float64) + bias
        if i < len(policy.layers) - 1:
            x = np.maximum(x, 0.0) if policy.activation == "relu" else np.tanh(x)
    return (x * weights).sum(axis=1)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("hidden", [(), (24,), (32, 32), (16, 16, 16)])
def test_attributions_sum_to_the_difference_of_the_score_from_the_mean_observation(activation, hidden):
    policy = network("paging", "actions", activation, hidden=hidden, gain=2.0)
    seen = situations("paging", 60)
    x = seen.astype(np.float64)
    baseline = x.mean(axis=0)
    weights = contrast(policy, chosen_scores(policy, seen, np.ones((60, 18), np.int8))[:, 0])
    found, told = integrated(policy, x, baseline, weights)
    expected = score(policy, x, weights) - score(policy, baseline[None], weights)
    np.testing.assert_allclose(told, expected, atol=1e-12)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found.sum(axis=1), expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_each_column_gets_what_a_fine_sum_of_difference_quotients_gives_it(activation):
    policy = network("paging", "actions", activation, hidden=(12, 12), gain=2.0)
    x = situations("paging", 3).astype(np.float64)
    baseline = np.full(x.shape[1], 0.5)
    weights = contrast(policy, np.array([0, 7, 17]))
    found, _ = integrated(policy, x, baseline, weights)
    places = (np.arange(4000) + 0.5) / 4000
    for row in range(3):
        path = baseline + places[:, None] * (x[row] - baseline)
        for column in (0, 5, x.shape[1] - 1):
            step = np.zeros(x.shape[1])
            step[column] = 1e-6
            there = np.repeat(weights[row : row + 1], len(path), axis=0)
            slope = (score(policy, path + step, there) - score(policy, path - step, there)) / 2e-6
            assert found[row, column] == pytest.approx((x[row] - baseline)[column] * slope.mean(), abs=2e-3)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_a_path_of_no_length_gives_nothing(activation):
    policy = network("paging", "actions", activation)
    x = situations("paging", 2).astype(np.float64)
    x[1] = x[0]
    found, told = integrated(policy, x, x[0], contrast(policy, np.array([3, 3])))
    assert not found.any()
    np.testing.assert_allclose(told, 0.0, atol=1e-12)


@pytest.mark.parametrize(("surface", "head"), [("paging", "actions"), ("knobs", "multidiscrete"), ("knobs", "preset")])
def test_the_chosen_scores_are_those_of_the_action_that_is_taken(surface, head):
    policy = network(surface, head, "tanh")
    width = 18 if surface == "paging" else 36
    seen = situations(surface, 40)
    masks = np.ones((40, width), np.int8)
    masks[:, 1] = 0
    chosen = chosen_scores(policy, seen, masks)
    assert chosen.shape == (40, len(policy.head.sizes))
    if surface == "paging":
        taken = chosen[:, 0]
    else:
        indices = chosen - np.cumsum([0, *policy.head.sizes[:-1]])
        taken = find_encoding(head).levers(indices if head == "multidiscrete" else indices[:, 0], seen)
    assert np.array_equal(taken, policy.head.rows(policy.scores_of(seen), seen, masks))


def test_a_column_that_alone_decides_has_all_of_it():
    policy = network("knobs", "multidiscrete", "tanh")
    columns = surface_of("knobs").columns
    at = columns.index("request_arrival_rate")
    first = policy.layers[0][0]
    first[np.arange(len(columns)) != at] = 0.0
    seen = situations("knobs", 50)
    found = attributions(policy, seen, np.ones((50, 36), np.int8))
    assert [one.column for one in found.columns] == ["request_arrival_rate"]
    assert found.columns[0].share == pytest.approx(1.0)
    assert set(found.columns[0].by_knob) <= set(LEVERS)
    assert found.residual < TOLERANCE


def test_a_network_that_never_moves_has_no_attributions():
    policy = network("knobs", "multidiscrete", "tanh")
    policy.layers[-1][0][:] = 0.0
    found = attributions(policy, situations("knobs", 20), np.ones((20, 36), np.int8))
    assert found.columns == ()
    assert found.residual == 0.0


def test_a_shipped_network_is_explained_to_the_sum():
    policy = load(shipped("bursty_workload"))
    task = catalogue.task("bursty_workload")
    seen = play(task, policy, [scenario("test", i) for i in range(2)])
    found = attributions(policy, seen.observations, seen.masks)
    assert found.decisions == len(seen) == 240
    assert found.residual < 10 * TOLERANCE
    assert sum(one.share for one in found.columns) == pytest.approx(1.0)
    shares = [one.share for one in found.columns]
    assert shares == sorted(shares, reverse=True)


def test_pages_and_json_tell_them_for_networks_and_say_what_stands_in_for_them_elsewhere(short_task):
    task = catalogue.task(short_task)
    told = explain(task, network("paging", "actions", "tanh", seed=3, gain=3.0), scenarios=2, name="net")
    plain = json.loads(json.dumps(told.as_json()))
    assert plain["attributions"]["residual"] < 1e-6
    assert plain["attributions"]["columns"][0]["by_knob"]["action"] > 0.0
    page = "".join(sections(told))
    assert "integrated gradients" in page
    assert f"{told.attributions.columns[0].share:.1%}" in page
    other = explain(task, actor("lru", task), scenarios=2, name="lru")
    assert other.as_json()["attributions"] is None
    assert "no gradients" in "".join(sections(other))
