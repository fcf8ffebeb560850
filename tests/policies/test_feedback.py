"""The feedback rule is `slo-feedback` by default, action for action; can hold any setting for ever; and does what each parameter says."""

import numpy as np
import pytest

from inferencegym.decision.knobs import COLUMNS, LEVERS, OFFSETS, Knobs, KnobsSurface, check_levers
from inferencegym.envs import catalogue
from inferencegym.envs.splits import scenario
from inferencegym.ground.archive import read_archive, write_archive
from inferencegym.ground.errors import ConfigError, UnknownNameError
from inferencegym.policies import trained
from inferencegym.policies.feedback import (
    DEFAULTS,
    HIGHS,
    LOWS,
    NAMES,
    PARAMETERS,
    SCALES,
    FeedbackKnobs,
    decide,
    fresh_memory,
    holding,
    parameters_of,
)
from inferencegym.policies.serving import SloFeedback

MASK = np.ones(OFFSETS[-1], np.int8)
CALM = {"slo_compliance_rate": 1.0, "kv_cache_occupancy": 0.2, "kv_budget_fraction": 0.5, "request_arrival_rate": 10.0}


def _seen(**given):
    values = np.zeros(len(COLUMNS))
    for name, value in (CALM | given).items():
        values[COLUMNS.index(name)] = value
    return COLUMNS.encode(values)


def _told(windows, **parameters):
    """The commands of a rule, window by window."""
    policy = FeedbackKnobs(parameters_of(parameters))
    policy.start(0)
    return [policy.act(_seen(**given), MASK) for given in windows]


def _shares(windows, **parameters):
    return [one.kv_budget_fraction for one in _told(windows, **parameters)]


@pytest.mark.parametrize("name", ["static_workload", "bursty_workload", "adversarial_multitenant"])
def test_by_default_it_is_slo_feedback(name):
    task = catalogue.task(name)
    batch = task.batch(1)
    batch.start(0, scenario("train", 5))
    one, other = SloFeedback(), FeedbackKnobs()
    taken = set()
    for step in range(60):
        command = one.act(batch.observations[0], batch.masks[0])
        assert other.act(batch.observations[0], batch.masks[0]) == command, step
        taken.add(command)
        batch.actions[0] = command.levers()
        batch.step()
    assert len(taken) >= 3


def test_by_default_it_is_slo_feedback_whatever_is_seen():
    chance = np.random.default_rng(4)
    one, other = SloFeedback(), FeedbackKnobs()
    tiers, shares = set(), set()
    for part in range(40):
        # Some stretches are full of trouble, some of calm.
        trouble, fullness = chance.random(2)
        for _ in range(50):
            observation = chance.random(len(COLUMNS)).astype(np.float32)
            observation[COLUMNS.index("slo_compliance_rate")] = 0.5 if chance.random() < trouble else 1.0
            observation[COLUMNS.index("kv_cache_occupancy")] *= fullness
            observation[COLUMNS.index("preemptions")] = 0.5 * (chance.random() < 0.05)
            command = one.act(observation, MASK)
            assert other.act(observation, MASK) == command, part
            tiers.add(command.quantization_tier)
            shares.add(command.kv_budget_fraction)
    assert len(tiers) == 3
    assert shares == set(SloFeedback.LADDER)


def test_one_set_of_parameters_holds_a_setting_for_ever():
    chance = np.random.default_rng(2)
    for setting in (
        Knobs(16, 0.2, 3, "FP16", False, True),
        Knobs(256, 0.7, 2, "INT4", True, False),
        Knobs(512, 1.0, 8, "INT8", False, False),
    ):
        policy = FeedbackKnobs(holding(setting.levers()))
        for _ in range(200):
            assert policy.act(chance.random(len(COLUMNS)).astype(np.float32), MASK) == setting


def test_the_share_goes_up_for_each_reason_and_down_after_calm():
    rest = {"start": 0.3, "floor": 0.2, "top": 0.6}
    assert _shares([{}] * 6, **rest) == [0.3, 0.2, 0.2, 0.2, 0.2, 0.2]  # the window before the first counts as calm
    assert _shares([{}, {}, {}, {}, {}], **rest | {"calm_windows": 3.0, "down": 0.05}) == [0.3, 0.3, 0.25, 0.25, 0.25]
    assert _shares([{}, {"slo_compliance_rate": 0.9}], **rest, up_missed=0.25) == [0.3, 0.55]
    assert _shares([{}, {"slo_compliance_rate": 0.9}], **rest, missed=0.85) == [0.3, 0.2]
    assert _shares([{}, {"kv_cache_occupancy": 0.8}], **rest) == [0.3, 0.5]
    assert _shares([{}, {"preemptions": 1.0}], **rest) == [0.3, 0.5]
    assert _shares([{}, {"queue_depth": 9.0}], **rest, queued=5.0, up_full=0.1) == [0.3, 0.4]
    jump = [{"kv_cache_occupancy": 0.6}] * 6 + [{"request_arrival_rate": 40.0, "kv_cache_occupancy": 0.6}]
    assert _shares(jump, **rest, up_jump=0.15) == [0.3] * 6 + [0.45]
    assert _shares(jump, **rest, up_jump=0.15, jump=9.0) == [0.3] * 7
    assert _shares([{}, {"slo_compliance_rate": 0.0}, {"slo_compliance_rate": 0.0}], **rest) == [0.3, 0.6, 0.6]


def test_the_share_follows_what_is_in_use():
    used = {"kv_cache_occupancy": 0.6, "kv_budget_fraction": 0.5}
    assert _shares([used], start=0.2, floor=0.2, headroom=1.5, margin=0.04) == [0.49]
    assert _shares([used], start=0.2, floor=0.2, headroom=0.0, margin=0.04) == [0.2]
    assert _shares([used], start=0.2, floor=0.2, top=0.4, headroom=1.5) == [0.4]


def test_busy_is_a_state_of_its_own():
    windows = [{"request_arrival_rate": rate} for rate in (10.0, 90.0, 10.0, 10.0, 10.0, 10.0)]
    found = _told(
        windows, busy_rate=45.0, busy_windows=2.0, busy_floor=0.6, busy_tier=1.0, busy_depth=1.0, depth=3.0, floor=0.2, start=0.2, down=0.9
    )  # fmt: skip
    # The fast average is 10, 50, 30, 20, 15: busy in the second window, and in the one after it.
    assert [one.speculation_depth for one in found] == [3, 1, 1, 3, 3, 3]
    assert [one.quantization_tier for one in found] == ["FP16", "INT8", "INT8", "FP16", "FP16", "FP16"]
    assert [one.kv_budget_fraction for one in found] == [0.2, 0.6, 0.6, 0.2, 0.2, 0.2]


def test_a_long_memory_of_the_rate_is_not_shaken_by_one_window():
    windows = [{"request_arrival_rate": rate} for rate in (10.0, 10.0, 10.0, 30.0, 10.0)]
    for memory, busy in ((0.5, [3, 3, 3, 1, 3]), (0.1, [3] * 5)):
        found = _told(windows, busy_rate=16.0, busy_depth=1.0, depth=3.0, rate_memory=memory)
        assert [one.speculation_depth for one in found] == busy
    # Of the first windows it is the plain mean: (60 + 10 + 10) / 3 is still busy, (60 + 10 + 10 + 10) / 4 no more.
    windows = [{"request_arrival_rate": rate} for rate in (60.0, 10.0, 10.0, 10.0)]
    found = _told(windows, busy_rate=25.0, busy_depth=1.0, depth=3.0, rate_memory=0.02)
    assert [one.speculation_depth for one in found] == [1, 1, 1, 3]


def test_the_tier_is_raised_after_trouble_and_kept():
    missed = {"slo_compliance_rate": 0.5}
    found = _told(
        [missed] * 3 + [{}] * 6, trouble_windows=1.0, trouble_share=0.0, tier_most=1.0, keep_windows=3.0, tier_calm=0.5
    )
    tiers = [one.quantization_tier for one in found]
    assert tiers == ["INT8"] * 3 + ["FP16"] * 6
    never = _told([missed] * 9, tier_most=0.0, trouble_share=0.0)
    assert {one.quantization_tier for one in never} == {"FP16"}


def test_seats_are_cut_and_given_back():
    missed = {"slo_compliance_rate": 0.5}
    found = _told([missed, missed, {}, {}], seats=100.0, seats_cut=0.5, seats_back=30.0)
    assert [one.batch_cap for one in found] == [50, 25, 55, 85]
    waiting = _told([missed | {"queue_depth": 20.0}], seats=100.0, seats_cut=0.5, queued=10.0)
    assert waiting[0].batch_cap == 100


def test_rows_with_parameters_of_their_own_decide_as_each_alone():
    chance = np.random.default_rng(3)
    n = 64
    drawn = np.clip(DEFAULTS + SCALES * chance.standard_normal((n, len(NAMES))), LOWS, HIGHS)
    policies = [FeedbackKnobs(one) for one in drawn]
    memory, levers = fresh_memory(n), np.zeros((n, len(LEVERS)))
    surface, seen = KnobsSurface(), set()
    for _ in range(40):
        observations = chance.random((n, len(COLUMNS))).astype(np.float32)
        masks = np.tile(MASK, (n, 1))
        decide(drawn, memory, observations, masks, levers)
        check_levers(levers)
        acted = [policy.act(observations[i], masks[i]) for i, policy in enumerate(policies)]
        assert [surface.action(levers[i].copy()) for i in range(n)] == acted
        seen |= set(acted)
    assert len(seen) > 200


def test_what_cannot_be_split_is_not_and_an_episode_is_begun_anew():
    policy = FeedbackKnobs(parameters_of({"split": 1.0, "start": 0.8}))
    mask = MASK.copy()
    mask[OFFSETS[LEVERS.index("prefill_decode_split")] + 1] = 0
    first = policy.act(_seen(), mask)
    assert not first.prefill_decode_split
    assert KnobsSurface().legal(first, mask)
    assert policy.act(_seen(), MASK).prefill_decode_split
    for _ in range(20):
        policy.act(_seen(), MASK)
    policy.start(1)
    assert policy.act(_seen(), mask) == first


def test_what_cannot_be_is_refused():
    with pytest.raises(UnknownNameError, match="headroom"):
        parameters_of({"hedroom": 1.0})
    with pytest.raises(ConfigError, match=r"0.1..1"):
        parameters_of({"floor": 0.0})
    with pytest.raises(ConfigError, match="shape"):
        FeedbackKnobs(DEFAULTS[:-1])


def _saved(tmp_path):
    notes = trained.Notes(kind="feedback", surface="knobs", head="multidiscrete", task="t", task_digest="", algorithm="feedback", seed=0, config_digest="", steps=1)  # fmt: skip
    parameters = parameters_of({"headroom": 1.234, "floor": 0.15})
    return trained.save(tmp_path / "own.npz", notes, {"names": np.array(NAMES), "parameters": parameters}), parameters


def test_its_file_keeps_every_number_and_prints_as_a_table(tmp_path):
    path, parameters = _saved(tmp_path)
    policy = trained.load(path, "knobs")
    assert isinstance(policy, FeedbackKnobs)
    assert policy.parameters.tolist() == parameters.tolist()
    assert policy.name == "own"
    table = policy.table().splitlines()
    assert len(table) == 2 + len(PARAMETERS)
    assert any(line.startswith("| headroom | 1.234 | 0 |") for line in table)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a: a | {"names": np.array(("other", *NAMES[1:]))},
        lambda a: a | {"parameters": a["parameters"][:-1]},
        lambda a: a | {"parameters": np.full_like(a["parameters"], np.nan)},
        lambda a: a | {"parameters": np.full_like(a["parameters"], 1e6)},
        lambda a: a | {"parameters": a["parameters"].astype(np.float32)},
        lambda a: {"names": a["names"]},
    ],
)
def test_a_file_of_another_rule_is_refused(tmp_path, spoil):
    path, _ = _saved(tmp_path)
    told, arrays = read_archive(path, most_bytes=10**6)
    write_archive(path, told, spoil(arrays))
    with pytest.raises(ConfigError, match="own"):
        trained.load(path)
