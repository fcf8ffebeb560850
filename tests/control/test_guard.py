"""Each rule of the guard by a case made for it, and for any answer whatever: what reaches the plant is within the limits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencegym.control.asking import AtOnce, InTime
from inferencegym.control.guard import FALLBACK, FOUND, NOBODY, POLICY, Guard, Rules, outside
from inferencegym.control.limits import OPEN, Limits, found, hold
from inferencegym.control.loop import Loop
from inferencegym.decision.knobs import COLUMNS, GRID, LEVERS, OFFSETS, Applied, Knobs
from inferencegym.decision.snapshot import Snapshot
from inferencegym.decision.turn import in_force
from inferencegym.ground.errors import ConfigError
from inferencegym.policies.simple import Fixed

WELL = Snapshot(0, 1, 0.2, batch_cap=64.0)
ILL = replace(WELL, slo_compliance_rate=0.1)


def guard(**rules: object) -> Guard:
    return Guard(Rules(**rules), window_s=5.0, fallback="slo-feedback")  # type: ignore[arg-type]


def drivers(watch: Guard, *seen: Snapshot | None) -> list[str]:
    return [watch.look(one, "it is away").driver for one in seen]


def test_a_knob_is_held_to_its_range_and_to_its_change_in_one_window():
    limits = Limits({"batch_cap": (8, 200)}, batch_factor=2.0, steps={"kv_budget_fraction": 0.25})
    now = in_force(replace(WELL, kv_budget_fraction=0.75))
    command, held = hold(Knobs(batch_cap=500, kv_budget_fraction=0.1, priority_routing=True), now, limits)
    assert command == Knobs(batch_cap=128, kv_budget_fraction=0.5, priority_routing=True)
    assert held["batch_cap"] == "batch_cap 500 held to 128: at most a factor of 2 a window"
    assert set(held) == {"batch_cap", "kv_budget_fraction"}
    assert hold(Knobs(batch_cap=500), in_force(replace(WELL, batch_cap=150.0)), limits)[0].batch_cap == 200
    # From far outside its range a knob comes back at once.
    assert hold(Knobs(batch_cap=9), in_force(replace(WELL, batch_cap=5000.0)), limits)[0].batch_cap == 9
    unknown = in_force(replace(WELL, batch_cap=math.nan))
    assert hold(Knobs(batch_cap=500), unknown, limits)[0].batch_cap == 200


@pytest.mark.parametrize(
    "wrong",
    [
        {"ranges": {"batch": (1, 2)}}, {"ranges": {"batch_cap": (0, 9)}}, {"ranges": {"batch_cap": (9, 8)}},
        {"ranges": {"batch_cap": (1.5, 8)}}, {"batch_factor": 1.0}, {"steps": {"batch_cap": 3}}, {"steps": {"kv_budget_fraction": 0.0}},
    ],
)  # fmt: skip
def test_limits_that_are_none_are_refused(wrong):
    with pytest.raises(ConfigError):
        Limits(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"slo_below": 0.96},
        {"calm_slo": 1.5},
        {"slow_share": 0.0},
        {"stale_windows": 0},
        {"strikes": 0},
        {"ttft_most_ms": 0.0},
    ],
)
def test_rules_that_are_none_are_refused(wrong):
    with pytest.raises(ConfigError):
        Rules(**wrong)


def test_missed_objectives_end_the_policys_turn_and_calm_gives_it_back():
    watch = guard(slo_windows=3, calm_windows=2)
    assert drivers(watch, ILL, ILL, WELL, ILL, ILL) == [POLICY] * 5, "three in a row, not three"
    look = watch.look(ILL)
    assert (look.driver, watch.trips) == (FALLBACK, 1)
    assert look.reasons == ("SLO 10% is below 80% for 3 windows: the fallback slo-feedback takes over",)
    between = replace(WELL, slo_compliance_rate=0.9)  # neither bad nor calm
    assert drivers(watch, between, WELL, between, WELL, WELL) == [FALLBACK] * 4 + [POLICY]
    assert drivers(watch, between, ILL, ILL) == [POLICY] * 3, "the count begins anew"


def test_a_policy_that_does_harm_again_waits_longer_each_time():
    watch = guard(slo_windows=1, calm_windows=1)
    waits = []
    for _ in range(7):
        watch.look(ILL)
        waits.append(next(n for n in range(1, 100) if watch.look(WELL).driver == POLICY))
    assert waits == [1, 2, 4, 8, 16, 16, 16]


def test_a_share_that_is_not_known_is_neither_bad_nor_calm():
    unknown = replace(WELL, slo_compliance_rate=math.nan)
    watch = guard(slo_windows=1, calm_windows=1)
    assert drivers(watch, unknown, ILL, unknown, WELL) == [POLICY, FALLBACK, FALLBACK, POLICY]


def test_where_a_gateway_has_no_objectives_the_guards_own_does():
    late = replace(WELL, p99_ttft_ms=900.0)
    watch = guard(ttft_most_ms=500.0, slo_windows=2, calm_windows=1)
    assert drivers(guard(slo_windows=2), late, late) == [POLICY, POLICY]
    watch.look(late)
    look = watch.look(late)
    assert look.driver == FALLBACK
    assert look.reasons[0] == "p99 TTFT 900 ms is above 500 for 2 windows: the fallback slo-feedback takes over"
    assert drivers(watch, late, WELL) == [FALLBACK, POLICY], "a window without any first token is calm"


def test_without_a_fallback_nothing_is_ended():
    watch = Guard(Rules(slo_windows=1, strikes=1), window_s=5.0)
    assert drivers(watch, ILL, ILL) == [POLICY, POLICY]
    assert watch.answered("raised ValueError: no")[0] == NOBODY
    assert drivers(watch, WELL) == [POLICY]


def test_without_snapshots_nothing_is_sent_and_after_three_windows_the_policy_has_to_earn_its_turn():
    watch = guard(stale_windows=3, calm_windows=2)
    assert drivers(watch, None, None, None, WELL) == [NOBODY, NOBODY, NOBODY, POLICY]
    look = [watch.look(None, "refused") for _ in range(4)][-1]
    assert look.driver == NOBODY
    assert "4 windows without a snapshot: the fallback slo-feedback takes over" in look.reasons
    back = watch.look(WELL)
    assert back.driver == FALLBACK
    assert back.reasons[0] == "a snapshot again after 4 windows without"
    assert drivers(watch, WELL) == [POLICY]


def test_old_figures_bring_the_settings_found():
    watch = guard(stale_windows=3)
    assert watch.look(replace(WELL, snapshot_age_s=15.0)).driver == POLICY
    look = watch.look(replace(WELL, snapshot_age_s=15.1))
    assert (look.driver, watch.driver) == (FOUND, FALLBACK)
    assert "15.1 s old" in look.reasons[0]
    assert watch.look(replace(WELL, snapshot_age_s=math.nan)).driver == FOUND


def test_what_lies_outside_the_surfaces_range_is_told_with_how_far():
    odd = replace(WELL, request_arrival_rate=1500.0, queue_depth=-2.0)
    assert outside(odd) == {"queue_depth": 2.0, "request_arrival_rate": 500.0}
    assert outside(WELL) == {}, "not known is not outside"
    assert guard().look(odd).reasons == ("outside the range that policies know: queue_depth by 2, request_arrival_rate by 500",)  # fmt: skip


def test_bad_answers_are_stood_in_for_and_the_third_in_a_row_ends_the_turn():
    watch = guard(strikes=3, calm_windows=1)
    assert [watch.answered(problem)[0] for problem in ("raised", "", "raised", "raised")] == [FALLBACK, POLICY, FALLBACK, FALLBACK]  # fmt: skip
    assert drivers(watch, ILL) == [POLICY]
    assert "3 bad answers in a row" in watch.answered("was slow")[1][1]
    assert drivers(watch, ILL) == [FALLBACK]


def test_a_refused_knob_is_left_alone_masked_and_tried_again_later():
    watch = guard(refused_windows=2)
    wanted = Knobs(batch_cap=64, speculation_depth=2, quantization_tier="INT8")
    watch.look(WELL)
    refusal = Applied({"batch_cap": 64}, {"speculation_depth": "no drafts", "quantization_tier": "no INT8"})
    assert watch.refused(refusal, wanted, WELL) == ("speculation_depth refused: no drafts", "quantization_tier refused: no INT8")  # fmt: skip
    command, reasons = watch.hold(wanted, WELL)
    assert command == Knobs(batch_cap=64)
    assert reasons == ("speculation_depth is left alone, it was refused: no drafts", "quantization_tier is left alone, it was refused: no INT8")  # fmt: skip
    drafts, tier = (LEVERS.index(name) for name in ("speculation_depth", "quantization_tier"))
    assert watch.mask()[OFFSETS[drafts] : OFFSETS[drafts + 1]].tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert watch.mask()[OFFSETS[tier] : OFFSETS[tier + 1]].tolist() == [1, 0, 1], "another tier may be there"
    assert watch.hold(Knobs(quantization_tier="FP16", speculation_depth=0), WELL)[1] == (), "what stands is no loss"
    watch.look(WELL)
    assert watch.hold(wanted, WELL)[0] == Knobs(batch_cap=64)
    watch.look(WELL)
    assert watch.hold(wanted, WELL)[0] == wanted
    assert watch.mask().all()


def test_a_plant_without_tiers_keeps_a_mask_with_a_choice():
    watch = guard()
    watch.refused(Applied({}, {"quantization_tier": "no variants"}), Knobs(quantization_tier="FP16"), WELL)
    tier = LEVERS.index("quantization_tier")
    assert watch.mask()[OFFSETS[tier] : OFFSETS[tier + 1]].tolist() == [1, 0, 0]
    assert watch.hold(Knobs(quantization_tier="FP16"), WELL) == (Knobs(), ())


def test_settings_found_that_no_command_can_say_are_told():
    command, notes = found(in_force(replace(WELL, batch_cap=1000.0, kv_budget_fraction=math.nan)))
    assert command == Knobs(512, None, 0, "FP16", False, False)
    assert "1000" in notes[0]
    assert "kv_budget_fraction is not known" in notes[1]


# --- whatever a policy answers -------------------------------------------------------------------------------------------


class Says:
    """A policy that gives one answer, or raises it."""

    name, surface = "says", "knobs"

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def start(self, seed: int) -> None:
        """Nothing is remembered."""

    def act(self, observation: object, mask: object) -> object:
        """The answer."""
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Bench:
    """A plant that shows what it is told to, takes everything, and remembers it."""

    def __init__(self, seen: Snapshot) -> None:
        self.seen, self.got = seen, Knobs()

    def snapshot(self) -> Snapshot:
        """As told."""
        return self.seen

    def apply(self, command: Knobs) -> Applied:
        """Take it."""
        self.got = command
        return Applied(command.given())


numbers = st.floats() | st.integers(-5, 1000) | st.booleans()
values = numbers | st.none() | st.text(max_size=5) | st.sampled_from(["FP16", "INT4"])
legal = st.tuples(*(st.sampled_from(grid) for grid in GRID.values()))
answers = (
    legal.map(lambda x: Knobs.of(np.array(x)))
    | legal.map(np.array)
    | st.lists(numbers, max_size=8).map(lambda x: np.array(x, dtype=object) if len(x) % 2 else np.array(x, dtype=float))
    | st.dictionaries(st.sampled_from(LEVERS) | st.text(max_size=3), values)
    | values
    | st.builds(RuntimeError, st.text(max_size=5))
)


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    ranges = {}
    for name in draw(st.sets(st.sampled_from(LEVERS))):
        low, high = sorted((draw(st.sampled_from(GRID[name])), draw(st.sampled_from(GRID[name]))))
        ranges[name] = (low, high)
    steps = {name: draw(st.floats(1.0, 8.0)) for name in draw(st.sets(st.sampled_from(LEVERS[2:])))}
    return Limits(ranges, draw(st.sampled_from([2.0, 2.5, 4.0, math.inf])), steps | {"kv_budget_fraction": draw(st.floats(0.01, 1.0))})  # fmt: skip


@given(answers, legal, limits(), st.sampled_from(["", "found", "says"]), st.floats(0.0, 1.0), answers)
def test_whatever_a_policy_answers_the_command_is_within_the_limits(answer, now, limit, fallback, slo, other):
    seen = replace(WELL, **dict(zip(LEVERS, now, strict=True)), slo_compliance_rate=slo)
    plant = Bench(seen)
    watch = Guard(Rules(limit, slo_windows=1), window_s=5.0, fallback=fallback)
    loop = Loop(plant, Says(answer), watch, ask=AtOnce(), clock=lambda: 0.0, fallback=Says(other) if fallback == "says" else None)  # fmt: skip
    loop.start()
    for _ in range(2):
        window = loop.turn()
        assert window.command == plant.got or not window.command.given()
        for name, value in plant.got.given().items():
            i = LEVERS.index(name)
            lever = plant.got.levers()[i]
            low, high = limit.ranges.get(name, (GRID[name][0], GRID[name][-1]))
            assert low <= lever <= high, (name, value)
            if not low <= now[i] <= high:
                continue  # the way back into the range is not held up
            if name == "batch_cap":
                assert now[i] / limit.batch_factor - 1e-9 <= lever <= now[i] * limit.batch_factor + 1e-9
            elif name in limit.steps:
                assert abs(lever - now[i]) <= limit.steps[name] + 1e-9
        assert np.isfinite(window.observation).all()


@given(legal)
def test_open_limits_hold_nothing(wanted):
    command = Knobs.of(np.array(wanted))
    assert hold(command, in_force(WELL), OPEN) == (command, {})


def test_a_policy_that_never_answers_stops_nobody():
    import threading

    release = threading.Event()

    class Hangs(Fixed):
        def act(self, observation, mask):
            release.wait(20)
            return super().act(observation, mask)

    ask = InTime(0.05)
    policy = Hangs("knobs", Knobs(batch_cap=9))
    seen, mask = COLUMNS.encode(WELL.values()), guard().mask()
    assert "did not answer within 0.05 s" in ask(policy, seen, mask, 0).problem
    assert "has not answered for" in ask(policy, seen, mask, 0).problem
    release.set()
    late = InTime(10.0)
    assert late(policy, seen, mask, 0).command == Knobs(batch_cap=9)
    # The late answer to the first question is not taken for one to the next.
    policy.action = Knobs(batch_cap=10)
    answered = ask(policy, seen, mask, None)
    while answered.command is None:
        assert "has not answered" in answered.problem or "within" in answered.problem
        answered = ask(policy, seen, mask, None)
    assert answered.command == Knobs(batch_cap=10)
