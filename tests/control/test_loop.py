"""The loop itself, in time that stands still: windows and deadlines, handing over, commands that are lost, what is given back, what is written down."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from inferencegym.control.asking import AtOnce
from inferencegym.control.guard import Guard, Rules
from inferencegym.control.limits import OPEN
from inferencegym.control.loop import Loop
from inferencegym.control.record import Recording, read
from inferencegym.decision.encodings import AT
from inferencegym.decision.knobs import COLUMNS, LEVERS, Applied, Knobs
from inferencegym.decision.snapshot import NAMES, Snapshot
from inferencegym.ground.errors import ConfigError, OfflineError
from inferencegym.policies.simple import DoNothing, Fixed

START = Snapshot(0, 1, 0.2, batch_cap=64.0)


class Tank:
    """A plant that does as it is told, at once, but for the knobs it refuses; it can be away, and deaf."""

    def __init__(self, start: Snapshot = START, refuses: tuple[str, ...] = ()) -> None:
        self.seen, self.refuses = start, refuses
        self.away = self.deaf = self.locked = False
        self.told: list[str] = []

    def snapshot(self) -> Snapshot:
        if self.locked:
            raise ConfigError("key", "is not accepted")
        if self.away:
            raise OfflineError("it cannot be reached")
        return self.seen

    def apply(self, command: Knobs) -> Applied:
        if self.deaf:
            raise OfflineError("it cannot be reached")
        refused = {name: "it cannot" for name in command.given() if name in self.refuses}
        levers = command.levers()
        turned = {name: levers[LEVERS.index(name)] for name in command.given() if name not in refused}
        self.seen = replace(self.seen, **turned)
        return Applied({name: command.given()[name] for name in turned}, refused)

    def tell(self, policy: str, guard: str) -> None:
        self.told.append(policy)


def loop_of(plant, policy, fallback=None, *, name="", rules=None, **more):
    guard = Guard(rules or Rules(OPEN, slo_windows=1, calm_windows=1), window_s=5.0, fallback=name or (fallback.name if fallback else ""))  # fmt: skip
    loop = Loop(plant, policy, guard, ask=AtOnce(), clock=more.pop("clock", lambda: 0.0), fallback=fallback, tell=plant.tell, **more)  # fmt: skip
    loop.start()
    return loop


def fixed(name="policy", **knobs):
    return Fixed("knobs", Knobs(**knobs), name)


def standing(plant):
    return plant.seen.values()[AT].tolist()


def test_windows_begin_on_time_and_those_missed_are_left_out():
    now, waits = [100.0], []
    slow = {2: 12.0}

    class Slow(Tank):
        def snapshot(self):
            return self.seen

        def apply(self, command):
            now[0] += slow.get(len(waits), 1.0)
            return super().apply(command)

    def wait(seconds):
        waits.append(seconds)
        now[0] += seconds
        return len(waits) == 5

    begun = []
    loop = loop_of(Slow(), fixed(batch_cap=64), clock=lambda: now[0])
    summary = loop.run(wait, windows=99, on_window=lambda one: begun.append(one.at_s))
    assert begun == [100, 105, 110, 122, 127]
    assert waits == [4, 4, 0, 4, 4]
    assert (summary.windows, summary.longest_s) == (5, 12)


def test_a_new_one_at_the_wheel_begins_at_the_settings_found():
    plant = Tank()
    loop = loop_of(plant, fixed(batch_cap=8, speculation_depth=3), fixed("safe", priority_routing=True))
    loop.turn()
    assert standing(plant) == [8, 1, 3, 0, 0, 0]
    plant.seen = replace(plant.seen, slo_compliance_rate=0.1)
    assert loop.turn().driver == "fallback"
    assert standing(plant) == [64, 1, 0, 0, 0, 1], "what the policy had turned is where it was found"
    plant.seen = replace(plant.seen, slo_compliance_rate=1.0)
    assert loop.turn().driver == "policy"
    assert standing(plant) == [8, 1, 3, 0, 0, 0]
    assert plant.told == ["policy", "safe (for policy)", "policy"]


def test_a_long_way_home_is_gone_in_steps_and_a_policy_that_moves_one_knob_keeps_the_others():
    plant = Tank(replace(START, batch_cap=512.0))
    loop = loop_of(plant, DoNothing("knobs"), fixed("safe", batch_cap=8), rules=Rules(slo_windows=1, calm_windows=3))
    plant.seen = replace(plant.seen, slo_compliance_rate=0.1)
    for expected in (128, 32, 8):
        loop.turn()
        assert standing(plant)[0] == expected
    plant.seen = replace(plant.seen, slo_compliance_rate=1.0)
    drivers = []
    caps = []
    for _ in range(6):
        drivers.append(loop.turn().driver)
        caps.append(standing(plant)[0])
    assert drivers == ["fallback", "fallback", "policy", "policy", "policy", "policy"]
    assert caps == [8, 8, 32, 128, 512, 512]


@pytest.mark.parametrize("refuses", [(), ("speculation_depth",)])
def test_what_was_found_is_given_back(refuses):
    plant = Tank(refuses=refuses)
    before = standing(plant)
    loop = loop_of(plant, fixed(batch_cap=8, speculation_depth=3, quantization_tier="INT8"))
    loop.turn()
    assert standing(plant) != before
    summary = loop.give_back()
    assert summary.given_back
    assert standing(plant) == before, "a knob that nobody could turn is where it was"


def test_what_cannot_be_given_back_is_said():
    plant = Tank(replace(START, batch_cap=1000.0))
    loop = loop_of(plant, fixed(batch_cap=8))
    loop.turn()
    assert loop.give_back().note == "given back, but batch_cap stands at 512, not 1000"
    assert loop.summary.given_back is False

    released = []
    plant = Tank(replace(START, batch_cap=1000.0))
    loop = loop_of(plant, fixed(batch_cap=8), release=lambda: released.append(1) or setattr(plant, "seen", replace(plant.seen, batch_cap=1000.0)))  # fmt: skip
    loop.turn()
    assert loop.give_back().given_back
    assert released == [1]

    plant.deaf = True
    assert "could not be put back: it cannot be reached" in loop.give_back().note
    assert loop.give_back(keep=True).note == "the last settings stay in force"


def test_a_command_that_is_lost_is_counted_and_a_dry_run_sends_none():
    plant = Tank()
    loop = loop_of(plant, fixed(batch_cap=8))
    plant.deaf = True
    window = loop.turn()
    assert window.reasons == ("the command did not arrive: it cannot be reached",)
    assert loop.summary.lost == 1
    plant.deaf = False
    dry = loop_of(plant, fixed(batch_cap=8), dry_run=True)
    window = dry.turn()
    assert (window.command, window.applied) == (Knobs(batch_cap=8), Applied())
    assert standing(plant) == START.values()[AT].tolist()
    assert dry.give_back().note == "nothing was changed"


def test_a_key_that_is_no_longer_accepted_ends_it():
    plant = Tank()
    loop = loop_of(plant, fixed(batch_cap=8))
    plant.locked = True
    with pytest.raises(ConfigError, match="key"):
        loop.turn()


def test_a_fallback_that_fails_leaves_the_settings_found():
    class Broken(Fixed):
        def act(self, observation, mask):
            raise ZeroDivisionError("no")

    plant = Tank()
    loop = loop_of(plant, Broken("knobs", Knobs(), "policy"), Broken("knobs", Knobs(), "safe"))
    window = loop.turn()
    assert window.driver == "found"
    assert window.reasons == ("the policy raised ZeroDivisionError: no: the fallback safe stands in", "the fallback raised ZeroDivisionError: no: the settings found at the start")  # fmt: skip
    assert window.command == loop.summary.found
    alone = loop_of(plant, Broken("knobs", Knobs(), "policy"))
    window = alone.turn()
    assert (window.driver, window.command) == ("nobody", Knobs())


def test_policies_of_another_surface_are_refused():
    with pytest.raises(ConfigError, match="acts on 'paging'"):
        loop_of(Tank(), DoNothing("paging"))


def test_a_session_is_written_line_by_line_and_read_again(tmp_path):
    path = tmp_path / "kept" / "control.jsonl"
    plant = Tank(replace(START, request_arrival_rate=2000.0), refuses=("quantization_tier",))
    loop = loop_of(plant, fixed(batch_cap=8, quantization_tier="INT4"))
    with Recording(path, policy="policy") as recording:
        first = loop.turn()
        recording.write(first)
        assert len(read(path)[1]) == 1, "it is there at once"
        plant.away = True
        recording.write(loop.turn())
    with path.open("ab") as file:
        file.write(b'{"window": 2, "cut o')
    about, windows = read(path)
    assert about == {"format": 1, "policy": "policy"}
    assert [window["driver"] for window in windows] == ["policy", "nobody"]
    told = windows[0]
    assert list(told["snapshot"]) == list(NAMES)
    assert told["snapshot"]["p99_ttft_ms"] is None
    assert math.isnan(first.snapshot.p99_ttft_ms)
    assert np.array_equal(np.array(told["observation"], np.float32), COLUMNS.encode(first.snapshot.values()))
    assert told["action"] == told["command"] == {"batch_cap": 8, "quantization_tier": "INT4"}
    assert told["applied"] == {"accepted": {"batch_cap": 8}, "refused": {"quantization_tier": "it cannot"}}
    assert told["outside"] == {"request_arrival_rate": 1000.0}
    assert windows[1]["snapshot"] is None
