"""The linear rule is its setting while its weights are 0, moves by them in the way that is written down, and is told from other files."""

import numpy as np
import pytest

from inferencegym.decision.encodings import BoxKnobs
from inferencegym.decision.knobs import COLUMNS, LEVERS, OFFSETS, Knobs, KnobsSurface, check_levers
from inferencegym.ground.archive import read_archive, write_archive
from inferencegym.ground.errors import ConfigError
from inferencegym.policies import trained
from inferencegym.policies.linear import FEATURES, Frame, LinearKnobs, decide, features_of

BASE = Knobs(
    batch_cap=256, kv_budget_fraction=0.7, speculation_depth=2, quantization_tier="INT4", prefill_decode_split=False, priority_routing=True,
)  # fmt: skip
MASK = np.ones(OFFSETS[-1], np.int8)


def _frame(base=BASE):
    return Frame(np.full(len(FEATURES), 0.4), np.full(len(FEATURES), 0.2), base.levers())


def _drawn(n, seed=5):
    chance = np.random.default_rng(seed)
    weights = _frame().resting() + 0.5 * chance.standard_normal((n, 4, len(FEATURES) + 1))
    return weights, chance.random((n, len(COLUMNS))).astype(np.float32)


def test_without_weights_it_is_its_setting():
    _, observations = _drawn(50)
    for kv in (0.1, 0.3, 0.7, 1.0):
        for batch in (1, 16, 256, 512):
            base = Knobs(**BASE.given() | {"kv_budget_fraction": kv, "batch_cap": batch})
            frame = _frame(base)
            policy = LinearKnobs(frame, frame.resting())
            assert all(policy.act(one, MASK) == base for one in observations)


def test_what_is_written_down_is_what_it_does():
    weights, observations = _drawn(300)
    levers = np.zeros((300, 6))
    decide(weights, _frame(), observations, np.tile(MASK, (300, 1)), levers)
    check_levers(levers)
    z = np.clip((features_of(observations) - 0.4) / 0.2, -3, 3)
    x = np.clip(np.einsum("nkf,nf->nk", weights[:, :, :-1], z) + weights[:, :, -1], -1, 1)
    whole = np.concatenate([x, np.tile(BoxKnobs().numbers(BASE.levers()[None])[:, 4:], (300, 1))], axis=1)
    expected = BoxKnobs().levers(whole, observations)
    assert (levers[:, [0, 2, 3, 4, 5]] == expected[:, [0, 2, 3, 4, 5]]).all()
    assert np.abs(levers[:, 1] - expected[:, 1]).max() <= 0.025 + 1e-9
    assert np.allclose(levers[:, 1] * 20, np.round(levers[:, 1] * 20))
    assert all(len(np.unique(levers[:, i])) > 2 for i in range(4))
    surface = KnobsSurface()
    for i in range(0, 300, 7):
        acted = LinearKnobs(_frame(), weights[i]).act(observations[i], MASK)
        assert acted == surface.action(levers[i])


def test_kv_in_use_is_of_the_whole_pool():
    seen = np.zeros((1, len(COLUMNS)), np.float32)
    seen[0, COLUMNS.index("kv_cache_occupancy")] = 0.5
    seen[0, COLUMNS.index("kv_budget_fraction")] = 0.4
    assert features_of(seen)[0, 0] == pytest.approx(0.2)


def test_what_cannot_be_split_is_not():
    frame = _frame(Knobs(**BASE.given() | {"prefill_decode_split": True}))
    policy = LinearKnobs(frame, frame.resting())
    observation = np.zeros(len(COLUMNS), np.float32)
    assert policy.act(observation, MASK).prefill_decode_split
    mask = MASK.copy()
    mask[OFFSETS[LEVERS.index("prefill_decode_split")] + 1] = 0
    action = policy.act(observation, mask)
    assert not action.prefill_decode_split
    assert KnobsSurface().legal(action, mask)


def _saved(tmp_path):
    frame, weights = _frame(), _drawn(1)[0][0]
    notes = trained.Notes(kind="linear", surface="knobs", head="multidiscrete", task="t", task_digest="", algorithm="cma", seed=0, config_digest="", steps=1)  # fmt: skip
    arrays = {"names": np.array(FEATURES), "mean": frame.mean, "scale": frame.scale, "base": frame.base, "weights": weights}  # fmt: skip
    return trained.save(tmp_path / "own.npz", notes, arrays), weights


def test_its_file_keeps_every_number(tmp_path):
    path, weights = _saved(tmp_path)
    policy = trained.load(path, "knobs")
    assert isinstance(policy, LinearKnobs)
    assert policy.weights.tolist() == weights.tolist()
    assert policy.frame.base.tolist() == BASE.levers().tolist()
    assert policy.name == "own"
    table = policy.table().splitlines()
    assert len(table) == 2 + len(FEATURES) + 1
    assert f"{weights[3, 1]:+.2f}" in table[3]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a: a | {"names": np.array(("other", *FEATURES[1:]))},
        lambda a: a | {"scale": 0 * a["scale"]},
        lambda a: a | {"weights": a["weights"][:3]},
        lambda a: a | {"weights": np.full_like(a["weights"], np.nan)},
        lambda a: a | {"base": np.array([600.0, 0.5, 0, 0, 0, 0])},
        lambda a: a | {"mean": a["mean"].astype(np.float32)},
        lambda a: {name: array for name, array in a.items() if name != "base"},
    ],
)
def test_a_file_of_another_rule_is_refused(tmp_path, spoil):
    path, _ = _saved(tmp_path)
    told, arrays = read_archive(path, most_bytes=10**6)
    write_archive(path, told, spoil(arrays))
    with pytest.raises(ConfigError, match="own"):
        trained.load(path)
