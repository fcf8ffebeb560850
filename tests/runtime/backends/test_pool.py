"""The pool and its breakers: shares, affinity, what counts as a fault, and how a backend comes back."""

from __future__ import annotations

import asyncio
import math
from collections import Counter

import pytest

from inferencegym.ground.errors import ConfigError, UnknownNameError
from inferencegym.runtime.backends.breaker import Breaker
from inferencegym.runtime.backends.pool import BALANCE, Pool, Traits
from inferencegym.runtime.ports import Ask, BackendError, Load


class Fake:
    """A backend that does nothing but be there."""

    def __init__(self, name: str, models: tuple[str, ...] = ("m",)):
        self.name, self.models = name, models
        self.well, self.start_failures, self.starts, self.stops = True, 0, 0, 0
        self.said = Load()

    async def start(self):
        self.starts += 1
        if self.starts <= self.start_failures:
            raise BackendError(f"{self.name} does not start")

    async def stop(self):
        self.stops += 1

    async def healthy(self):
        return self.well

    def load(self):
        return self.said


def ask(session: str = "", model: str = "m", prompt_tokens: int = 10, max_tokens: int | None = 100) -> Ask:
    return Ask(
        id="1", endpoint="chat", model=model, body=b"{}", fields=None, prompt_tokens=prompt_tokens, max_tokens=max_tokens,
        stream=True, arrival_s=0.0, session=session,
    )  # fmt: skip


def run(main):
    return asyncio.run(asyncio.wait_for(main(), 20))


FAULT = BackendError("dead")


def test_round_robin_shares_by_weight_without_bursts():
    async def main():
        pool = Pool([Fake("a"), Fake("b"), Fake("c")], traits={"a": Traits(weight=2.0)})
        names = []
        for _ in range(400):
            backend = pool.pick(ask())
            names.append(backend.name)
            pool.report(backend, None)
        assert Counter(names) == {"a": 200, "b": 100, "c": 100}
        assert all(Counter(names[i : i + 4])["a"] == 2 for i in range(0, 400, 4))
        assert all(member.in_flight == 0 for member in pool.members)

    run(main)


def test_the_least_loaded_is_the_one_with_the_fewest_for_its_weight():
    async def main():
        pool = Pool([Fake("a"), Fake("b")], "least_loaded", {"a": Traits(weight=3.0)})
        for _ in range(40):
            pool.pick(ask())
        assert {member.backend.name: member.in_flight for member in pool.members} == {"a": 30, "b": 10}
        # Others use b too, and b says so.
        pool.members[1].backend.said = Load(running=20.0, waiting=30.0)
        assert {pool.pick(ask()).name for _ in range(20)} == {"a"}

    run(main)


def test_a_session_keeps_its_backend_and_few_move_when_one_goes():
    async def main():
        pool = Pool([Fake(name) for name in "abcd"], "prefix")

        def homes() -> dict[str, str]:
            found = {}
            for i in range(400):
                backend = pool.pick(ask(f"s{i}"))
                pool.report(backend, None)
                found[f"s{i}"] = backend.name
            return found

        before = homes()
        assert homes() == before
        assert all(50 <= share <= 150 for share in Counter(before.values()).values())
        pool.members[0].healthy = False
        after = homes()
        assert {s for s in before if before[s] != after[s]} == {s for s in before if before[s] == "a"}
        assert len({after[s] for s in before if before[s] == "a"}) == 3  # spread over all that are left

    run(main)


def test_no_backend_gets_more_than_its_bounded_share_of_one_hot_session():
    async def main():
        pool = Pool([Fake(name) for name in "abcd"], "prefix")
        for sent in range(1, 200):
            pool.pick(ask("hot"))
            assert max(member.in_flight for member in pool.members) <= math.ceil(BALANCE * sent / 4)

    run(main)


def test_only_backends_that_know_the_model_have_room_and_are_well_are_asked():
    async def main():
        a, b, c = Fake("a"), Fake("b", ("m", "n")), Fake("c")
        pool = Pool([a, b, c])
        assert pool.models() == ("m", "n")
        assert pool.pick(ask(model="n")) is b
        assert pool.pick(ask(model="n"), among=[a, c]) is None
        assert pool.pick(ask(), among=[c]) is c
        for member in pool.members:
            member.healthy = False
        assert pool.pick(ask()) is None
        assert not pool.ready()

    run(main)


def test_the_variant_is_preferred_and_a_missing_one_is_refused():
    async def main():
        a, b = Fake("a"), Fake("b")
        pool = Pool([a, b], traits={"a": Traits(variant="FP16"), "b": Traits(variant="INT8")})
        assert pool.variants() == ("FP16", "INT8")
        assert pool.set_variant("INT8") == ""
        assert {pool.pick(ask()).name for _ in range(4)} == {"b"}
        assert "there are: FP16, INT8" in pool.set_variant("INT4")
        assert pool.variant == "INT8"
        pool.member(b).healthy = False  # better another format than none
        assert pool.pick(ask()) is a
        assert pool.set_variant("") == ""

    run(main)


def test_split_pools_take_prompts_and_answers_apart():
    async def main():
        a, b = Fake("a"), Fake("b")
        assert "no backends of both pools" in Pool([a, b]).set_split(True)
        pool = Pool([a, b], traits={"a": Traits(pool="prefill"), "b": Traits(pool="decode")})
        assert pool.set_split(True) == ""
        assert {pool.pick(ask(prompt_tokens=900, max_tokens=10)) for _ in range(3)} == {a}
        assert {pool.pick(ask(prompt_tokens=9, max_tokens=100)) for _ in range(3)} == {b}

    run(main)


def test_faults_in_a_row_close_a_backend_off_and_one_probe_brings_it_back():
    async def main():
        a = Fake("a")
        pool = Pool([a])
        changes = []
        pool.on_change.append(lambda: changes.append(pool.members[0].breaker.state))
        breaker = pool.members[0].breaker
        breaker.open_s = 0.05
        for _ in range(breaker.faults_to_open):
            pool.pick(ask())
            pool.report(a, FAULT)
        assert pool.pick(ask()) is None
        assert changes == ["open"]
        back = asyncio.Event()
        pool.on_change.append(back.set)
        await asyncio.wait_for(back.wait(), 5)  # told when a probe may go
        assert pool.pick(ask()) is a
        assert pool.pick(ask()) is None  # one probe at a time
        pool.release(a)  # its client left: the next one is the probe
        assert changes == ["open", "open", "open"]
        assert pool.pick(ask()) is a
        pool.report(a, None)
        assert changes == ["open", "open", "open", "closed"]
        assert pool.pick(ask()) is a

    run(main)


@pytest.mark.parametrize(
    "error", [BackendError("bad", status=400, fault=False), BackendError("slow down", status=429, fault=False), None]
)
def test_what_is_no_fault_never_opens_a_breaker(error):
    breaker = Breaker()
    for i in range(100):
        breaker.take(i)
        assert not breaker.report(error, i)
    # and it breaks a row of faults
    for _ in range(10):
        for _ in range(breaker.faults_to_open - 1):
            breaker.report(FAULT, 0.0)
        breaker.report(error, 0.0)
    assert breaker.state == "closed"


def test_a_failing_probe_opens_for_twice_as_long_up_to_a_bound():
    breaker, now_s, times = Breaker(), 0.0, []
    for _ in range(breaker.faults_to_open):
        breaker.report(FAULT, now_s)
    for _ in range(10):
        times.append(breaker.until_s - now_s)
        assert not breaker.can_take(breaker.until_s - 1e-6)
        now_s = breaker.until_s
        assert breaker.can_take(now_s)
        breaker.take(now_s)
        assert not breaker.can_take(now_s)
        breaker.report(FAULT, now_s)
    assert times == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0, 60.0]


def test_a_probe_whose_client_left_or_of_which_nothing_is_heard_makes_way_for_another():
    breaker = Breaker()
    for _ in range(breaker.faults_to_open):
        breaker.report(FAULT, 0.0)
    now_s = breaker.until_s
    breaker.take(now_s)
    breaker.release()
    assert breaker.can_take(now_s)
    breaker.take(now_s)
    assert not breaker.can_take(now_s + breaker.probe_s - 1)
    assert breaker.can_take(now_s + breaker.probe_s)


def test_late_answers_to_old_requests_do_not_close_an_open_breaker():
    breaker = Breaker()
    for _ in range(breaker.faults_to_open):
        breaker.report(FAULT, 0.0)
    breaker.report(None, 0.1)
    assert breaker.state == "open"
    until_s = breaker.until_s
    breaker.report(FAULT, 1.0)
    assert breaker.until_s == until_s


def test_health_checks_take_a_backend_out_after_two_bad_ones_and_back_after_one_good():
    async def main():
        a, b = Fake("a"), Fake("b")
        pool = Pool([a, b], traits={name: Traits(health_interval_s=0.01) for name in "ab"})
        changed = asyncio.Event()
        pool.on_change.append(changed.set)
        await pool.start()
        a.well = False
        await asyncio.wait_for(changed.wait(), 5)
        assert {pool.pick(ask()).name for _ in range(4)} == {"b"}
        assert pool.member(a).problem == "its health check fails"
        changed.clear()
        a.well = True
        await asyncio.wait_for(changed.wait(), 5)
        assert {pool.pick(ask()).name for _ in range(4)} == {"a", "b"}
        await pool.stop()
        assert (a.stops, b.stops) == (1, 1)

    run(main)


def test_one_that_does_not_start_is_tried_again_while_others_serve():
    async def main():
        a, b = Fake("a"), Fake("b")
        a.start_failures = 2
        pool = Pool([a, b], traits={name: Traits(health_interval_s=0.01) for name in "ab"})
        await pool.start()
        assert pool.member(a).problem == "a does not start"
        assert pool.pick(ask()) is b
        back = asyncio.Event()
        pool.on_change.append(back.set)
        await asyncio.wait_for(back.wait(), 5)
        assert {pool.pick(ask()).name for _ in range(4)} == {"a", "b"}
        await pool.stop()

    run(main)


def test_if_none_starts_the_first_reason_is_told():
    async def main():
        a = Fake("a")
        a.start_failures = 1
        with pytest.raises(BackendError, match="a does not start"):
            await Pool([a]).start()
        assert a.stops == 1

    run(main)


def test_a_pool_says_what_it_needs():
    with pytest.raises(ConfigError, match="one or more"):
        Pool([])
    with pytest.raises(UnknownNameError, match="least_loaded"):
        Pool([Fake("a")], "leastloaded")
