"""Every policy in the catalogue keeps the promises of `check_policy`, and names, fixed actions and own classes are found or refused clearly."""

from __future__ import annotations

import numpy as np
import pytest

from inferencegym.decision.knobs import GRID, OFFSETS, Knobs, KnobsSurface
from inferencegym.decision.paging import NOTHING, NUMBER
from inferencegym.ground.errors import ConfigError, UnknownNameError
from inferencegym.policies.catalogue import policy, policy_names
from inferencegym.policies.simple import Random
from inferencegym.testing.policies import PolicyError, check_policy

ALL = [(name, surface) for surface in ("paging", "knobs") for name in policy_names(surface)]


@pytest.mark.parametrize(
    ("name", "surface"), [*ALL, ("fixed:admit_free", "paging"), ("fixed:batch_cap=64,quantization_tier=INT8", "knobs")]
)
def test_it_keeps_its_promises(name, surface):
    made = policy(name, surface)
    assert (made.name, made.surface) == (name, surface)
    check_policy(lambda: policy(name, surface))


def test_random_reaches_every_legal_action_evenly():
    mask = np.zeros(18, np.int8)
    mask[[2, 8, 17]] = 1
    chance = Random("paging")
    chance.start(0)
    drawn = np.bincount([chance.act(np.zeros(20, np.float32), mask) for _ in range(3000)], minlength=18)
    assert set(np.flatnonzero(drawn)) == {2, 8, 17}
    assert (abs(drawn[[2, 8, 17]] - 1000) < 120).all()


def test_random_knobs_come_from_the_grid_and_obey_the_mask():
    mask = np.ones(36, np.int8)
    mask[OFFSETS[4] + 1] = 0
    mask[OFFSETS[0] : OFFSETS[0] + 9] = 0
    chance = Random("knobs")
    chance.start(3)
    levers = np.array([chance.act(np.zeros(32, np.float32), mask).levers() for _ in range(500)])
    assert set(levers[:, 0]) == {512.0}
    assert set(levers[:, 4]) == {0.0}
    assert set(levers[:, 1]) == set(GRID["kv_budget_fraction"])
    assert set(levers[:, 3]) == {0.0, 1.0, 2.0}


def test_fixed_actions_are_read_as_they_are_written():
    nothing = np.ones(18, np.int8)
    assert policy("fixed:8", "paging").act(np.zeros(20, np.float32), nothing) == 8
    assert (
        policy("fixed:evict_oldest_vip", "paging").act(np.zeros(20, np.float32), nothing) == NUMBER["evict_oldest_vip"]
    )
    nothing[8] = 0
    assert policy("fixed:8", "paging").act(np.zeros(20, np.float32), nothing) == NOTHING
    knobs = policy("fixed: batch_cap=64, kv_budget_fraction=0.5, quantization_tier=INT4, priority_routing=on", "knobs")
    assert knobs.act(np.zeros(32, np.float32), np.ones(36, np.int8)) == Knobs(64, 0.5, None, "INT4", None, True)


@pytest.mark.parametrize("text", ["fixed:18", "fixed:fly", "fixed:1.5"])
def test_wrong_fixed_numbers_are_refused(text):
    with pytest.raises(ConfigError):
        policy(text, "paging")


@pytest.mark.parametrize(
    "text",
    ["fixed:batch_cap", "fixed:batch_cap=0", "fixed:speed=3", "fixed:quantization_tier=INT3", "fixed:batch_cap=many"],
)
def test_wrong_fixed_knobs_are_refused(text):
    with pytest.raises(ConfigError):
        policy(text, "knobs")


def test_unknown_names_list_what_there_is():
    with pytest.raises(UnknownNameError, match="lru"):
        policy("lruu", "paging")
    with pytest.raises(UnknownNameError, match="paging"):
        policy_names("pages")
    with pytest.raises(ConfigError, match="module:Class"):
        policy("nowhere.at_all:Policy", "paging")


class Own:
    """A user's policy."""

    name, surface = "own", "paging"

    def start(self, seed):
        self.seed = seed

    def act(self, observation, mask):
        return int(np.flatnonzero(mask)[0])


def test_a_class_of_ones_own_is_made_and_checked(monkeypatch, tmp_path):
    (tmp_path / "mine_for_test.py").write_text(
        "class Own:\n    name, surface = 'own', 'paging'\n    def start(self, seed): pass\n    def act(self, observation, mask): return 17\n"
        "class Half:\n    name, surface = 'half', 'paging'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert policy("mine_for_test:Own", "paging").act(None, None) == 17
    with pytest.raises(ConfigError, match="acts on 'paging'"):
        policy("mine_for_test:Own", "knobs")
    with pytest.raises(ConfigError, match="has no start, act"):
        policy("mine_for_test:Half", "paging")


class Illegal(Own):
    def act(self, observation, mask):
        return 0


class Meddler(Own):
    def act(self, observation, mask):
        mask[:] = 1
        return 17


class Unseeded(Own):
    def act(self, observation, mask):
        return int(np.random.choice(np.flatnonzero(mask)))  # noqa: NPY002


class Forgetless(Own):
    seen = 0

    def start(self, seed):
        pass

    def act(self, observation, mask):
        self.seen += 1
        legal = np.flatnonzero(mask)
        return int(legal[self.seen % len(legal)])


class Unpicklable(Own):
    def start(self, seed):
        self.calls = {"n": 0}

    def __reduce__(self):
        return (type(self).fresh, ())

    @classmethod
    def fresh(cls):
        made = cls()
        made.start(0)
        return made

    def act(self, observation, mask):
        self.calls["n"] += 1
        return NOTHING if self.calls["n"] < 25 else int(np.flatnonzero(mask)[0])


class Blind(Own):
    surface = "knobs"

    def act(self, observation, mask):
        return Knobs(prefill_decode_split=True)


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (Illegal, "mask forbids"), (Meddler, "changes what it is shown"), (Unseeded, "same seed act differently"), (Forgetless, "does not forget"),
        (Unpicklable, "goes on differently"), (Blind, "mask forbids"), (object, "has no name"),
    ],
)  # fmt: skip
def test_broken_promises_are_found(broken, problem):
    with pytest.raises(PolicyError, match=problem):
        check_policy(broken)


def test_a_sound_policy_of_ones_own_passes():
    check_policy(Own)
    assert KnobsSurface.name == "knobs"
