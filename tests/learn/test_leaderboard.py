"""The leaderboard's entries: true ones pass, and what was tampered with is refused with the reason."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import pytest

from inferencegym.envs.catalogue import task
from inferencegym.envs.episode import Episode, record
from inferencegym.envs.grade import load_anchors
from inferencegym.ground.errors import InferenceGymError, InputError
from inferencegym.learn.config import defaults
from inferencegym.learn.leaderboard import (
    Entry,
    check,
    claim_of,
    entries,
    fresh,
    grade_of,
    read_entry,
    sample,
    write_entry,
)
from inferencegym.learn.train import train
from inferencegym.policies import trained
from inferencegym.policies.catalogue import policy

OWN = Path(__file__).resolve().parent.parent.parent / "leaderboard"
MANY = 10


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny training's policy on `easy`, entered truly."""
    of = task("easy")
    config = defaults("easy", "q-table").with_(steps=3000, rows=2, validation_scenarios=1, validate_every=3000)
    file = train(config, tmp_path_factory.mktemp("training")).policy
    player = trained.load(file)
    values = [record(of, player, split="test", scenario=index).value for index in range(MANY)]
    return of, file.read_bytes(), values


@pytest.fixture
def entered(made, tmp_path):
    of, data, values = made
    folder = tmp_path / "easy" / "mine"
    folder.mkdir(parents=True)
    (folder / "policy.npz").write_bytes(data)
    entry = Entry(
        name="mine", task="easy", digest=of.digest, authors="a test", plays="policy.npz", training="a little", claim=claim_of(values, load_anchors(of)),
        sha256=hashlib.sha256(data).hexdigest(),
    )  # fmt: skip
    write_entry(folder, entry)
    return folder, entry


def change(folder, entry, **given):
    write_entry(folder, msgspec.structs.replace(entry, **given))


def test_a_true_entry_passes_and_reads_as_it_was_written(entered):
    folder, entry = entered
    found = check(folder)
    assert found.replayed == tuple(range(MANY))
    assert found.grade.value == pytest.approx(entry.claim.mean_grade)
    assert found.ranked is False
    assert read_entry(folder).claim.values == entry.claim.values
    assert list(entries(folder.parent.parent)) == ["easy/mine"]


def test_a_claim_that_its_values_do_not_bear_out_is_refused(entered):
    folder, entry = entered
    change(folder, entry, claim=msgspec.structs.replace(entry.claim, mean_grade=entry.claim.mean_grade + 0.01))
    with pytest.raises(InputError, match=r"claims mean_grade = 0\.\d+; its values come to 0\.\d+"):
        check(folder, [0])


def test_a_value_that_the_policy_does_not_reach_is_refused_by_scenario(entered):
    folder, entry = entered
    values = [value + 0.05 * (index == 3) for index, value in enumerate(entry.claim.values)]
    change(folder, entry, claim=claim_of(values, load_anchors(task("easy"))))
    assert check(folder, [0, 1]).replayed == (0, 1)
    with pytest.raises(InputError, match=r"test scenario 3: value \d\.\d+ is claimed, \d\.\d+ came out"):
        check(folder, [2, 3])


def test_an_exchanged_policy_is_refused_by_its_sum_and_with_the_sum_by_its_play(entered):
    folder, entry = entered
    notes, arrays = trained.read(folder / "policy.npz")
    trained.save(folder / "policy.npz", notes, arrays | {"values": -arrays["values"]})
    with pytest.raises(InputError, match="not the policy that was entered"):
        check(folder, [0])
    change(folder, entry, sha256=hashlib.sha256((folder / "policy.npz").read_bytes()).hexdigest())
    with pytest.raises(InputError, match="came out"):
        check(folder, [0, 1, 2])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"digest": "0" * 64}, "play it again"),
        ({"plays": "../mine/policy.npz"}, "not a file of the entry's own folder"),
        ({"plays": "os:system"}, "plays 'os:system'; known:"),
        ({"plays": "file:policy.npz"}, "'file:policy.npz', which is not there"),
        ({"plays": "other.npz"}, "'other.npz', which is not there"),
        ({"plays": "episodes"}, "record of scenario 0 is missing"),
        ({"name": "yours"}, "it is called 'yours', its folder 'mine'"),
        ({"task": "hard"}, "it is of task 'hard', but lies in 'easy'"),
        ({"name": "../mine"}, "name"),
    ],
)
def test_entries_that_point_elsewhere_are_refused(entered, given, said):
    folder, entry = entered
    change(folder, entry, **given)
    with pytest.raises(InputError, match=said):
        check(folder, [0])


def test_too_few_values_or_none_that_are_finite_are_refused(entered):
    folder, entry = entered
    for values in (entry.claim.values[:3], (*entry.claim.values[:-1], float("nan"))):
        change(folder, entry, claim=msgspec.structs.replace(entry.claim, values=values))
        with pytest.raises(InferenceGymError, match=r"claims \d+ values|TOML|toml|valid"):
            check(folder, [0])


def test_records_are_replayed_and_forged_ones_refused(tmp_path):
    of, anchors = task("easy"), load_anchors(task("easy"))
    folder = tmp_path / "easy" / "logged"
    played = [record(of, policy("lru", "paging"), split="test", scenario=index) for index in range(MANY)]
    for index, episode in enumerate(played):
        episode.save(folder / "episodes" / f"{index}.parquet")
    entry = Entry(
        name="logged", task="easy", digest=of.digest, authors="a test", plays="episodes", training="none",
        claim=claim_of([one.value for one in played], anchors),
    )  # fmt: skip
    write_entry(folder, entry)
    assert check(folder, [1, 4]).replayed == (1, 4)
    with pytest.raises(InputError, match="only a policy can"):
        fresh(folder, 2, seed=1)
    other = folder / "episodes" / "4.parquet"
    (folder / "episodes" / "1.parquet").rename(other)
    played[1].save(folder / "episodes" / "1.parquet")
    with pytest.raises(InputError, match="test scenario 1; it stands for easy, test scenario 4"):
        check(folder, [4])
    forged = {name: getattr(played[4], name) for name in Episode.__slots__} | {
        "rewards": np.zeros(len(played[4].rewards))
    }
    Episode(**forged).save(other)
    with pytest.raises(InputError, match=r"is refused: step \d+: reward 0.0 was claimed"):
        check(folder, [4])


def test_a_claim_above_what_fresh_scenarios_show_is_refused(entered):
    folder, entry = entered
    assert fresh(folder, 6, seed=1).value > 0
    claim = claim_of([0.99] * MANY, load_anchors(task("easy")))
    change(folder, entry, claim=claim)
    with pytest.raises(InputError, match="in no table"):
        fresh(folder, 6, seed=1)


def test_a_sample_is_drawn_by_the_seed_and_within_what_is_claimed(entered):
    _, entry = entered
    drawn = {sample(entry, 3, seed) for seed in range(20)}
    assert len(drawn) > 10
    assert all(len(set(one)) == 3 and max(one) < MANY for one in drawn)
    assert sample(entry, 99, 0) == tuple(range(MANY))


def test_every_entry_here_is_what_it_claims_on_a_sample():
    found = {
        key: path
        for key, path in entries(OWN).items()
        if key.split("/")[0] in ("easy", "medium", "static_workload", "bursty_workload")
    }
    assert {"easy/best-static", "medium/sieve", "static_workload/best-static"} <= set(found)
    for path in found.values():
        entry = read_entry(path)
        done = check(path, sample(entry, 1, seed=3))
        assert done.grade == grade_of(entry.claim.values, load_anchors(task(entry.task)))
