"""The tuned rule is `sieve` by default, action for action; rows decide as one does; and its file keeps every number or is refused."""

import numpy as np
import pytest

from inferencegym.envs import catalogue
from inferencegym.envs.splits import scenario
from inferencegym.ground.archive import read_archive, write_archive
from inferencegym.ground.errors import ConfigError, UnknownNameError
from inferencegym.policies import trained
from inferencegym.policies.memory import Sieve
from inferencegym.policies.tuned import (
    DEFAULTS,
    HIGHS,
    LOWS,
    NAMES,
    SCALES,
    TunedSieve,
    decide,
    fresh_memory,
    parameters_of,
)


@pytest.mark.parametrize("name", ["easy", "medium", "hard"])
def test_by_default_it_is_sieve(name):
    task = catalogue.task(name)
    batch = task.batch(1)
    taken = set()
    for index in (7, 8):
        batch.start(0, scenario("train", index))
        sieve, tuned = Sieve(), TunedSieve()
        sieve.start(0)
        tuned.start(0)
        for step in range(task.steps):
            action = sieve.act(batch.observations[0], batch.masks[0])
            assert tuned.act(batch.observations[0], batch.masks[0]) == action, (index, step)
            taken.add(action)
            batch.actions[0] = action
            batch.step()
            if batch.terminated[0]:
                break
    assert len(taken) >= 5


def test_rows_with_parameters_of_their_own_decide_as_each_alone():
    chance = np.random.default_rng(3)
    n = 64
    drawn = np.clip(DEFAULTS + SCALES * chance.standard_normal((n, len(NAMES))), LOWS, HIGHS)
    policies = [TunedSieve(one) for one in drawn]
    memory = fresh_memory(drawn)
    actions = np.zeros(n, np.int64)
    seen: set[int] = set()
    for _ in range(60):
        observations = chance.random((n, 20)).astype(np.float32)
        observations[:, 0] = 1 - 0.15 * chance.random(n)
        masks = (chance.random((n, 18)) < 0.7).astype(np.int8)
        masks[:, 17] = 1
        decide(drawn, memory, observations, masks, actions)
        assert actions.tolist() == [one.act(observations[i], masks[i]) for i, one in enumerate(policies)]
        assert masks[np.arange(n), actions].all()
        seen |= set(actions.tolist())
    assert len(seen) > 12


def test_parameters_are_checked_by_name():
    assert parameters_of({"danger": 0.05})[NAMES.index("danger")] == 0.05
    with pytest.raises(UnknownNameError, match="dangr"):
        parameters_of({"dangr": 0.05})
    for wrong in (2.0, float("nan")):
        with pytest.raises(ConfigError, match="danger"):
            parameters_of({"danger": wrong})


def _notes():
    return trained.Notes(kind="rule", surface="paging", head="actions", task="medium", task_digest="", algorithm="cma", seed=0, config_digest="", steps=1)  # fmt: skip


def test_its_file_keeps_every_number(tmp_path):
    parameters = parameters_of({"danger": 0.0123, "patience": 2.5})
    path = trained.save(tmp_path / "own.npz", _notes(), {"names": np.array(NAMES), "parameters": parameters})
    policy = trained.load(path, "paging")
    assert isinstance(policy, TunedSieve)
    assert policy.parameters.tolist() == parameters.tolist()
    assert policy.name == "own"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a: a | {"names": np.array(("other", *NAMES[1:]))},
        lambda a: a | {"parameters": a["parameters"].astype(np.float32)},
        lambda a: a | {"parameters": np.full(len(NAMES), np.nan)},
        lambda a: {"names": a["names"]},
    ],
)
def test_a_file_of_another_rule_is_refused(tmp_path, spoil):
    path = trained.save(tmp_path / "own.npz", _notes(), {"names": np.array(NAMES), "parameters": DEFAULTS})
    told, arrays = read_archive(path, most_bytes=10**6)
    write_archive(path, told, spoil(arrays))
    with pytest.raises(ConfigError, match="own"):
        trained.load(path)
