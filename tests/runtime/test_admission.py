"""Admission: what is refused, why, with which status and when to come back; and that counts are exact whatever happens to requests."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencegym.runtime.admission import LEAST_RETRY_S, MOST_RETRY_S, Admission
from inferencegym.runtime.errors import ApiError
from inferencegym.runtime.ports import Ask
from inferencegym.runtime.predict import Trust
from inferencegym.runtime.settings import AdmissionSettings, Key, QueueSettings, ServiceClass, Settings
from tests.runtime.asks import ask

HASH = "0" * 64


class House:
    """A gateway of so many seats, first come first served, and a clock that tests move."""

    def __init__(self, settings: Settings, seats: int = 1) -> None:
        self.now_s, self.seats = 100.0, seats
        self.running: list[Ask] = []
        self.line: list[Ask] = []
        self.limits: list[float] = []
        self.admission = Admission(settings, self.clock, self.limits.append)

    def clock(self) -> float:
        return self.now_s

    def in_flight(self) -> int:
        return len(self.running)

    def would_wait(self, one: Ask) -> bool:
        return len(self.running) >= self.seats or bool(self.line)

    def come(self, one: Ask) -> None:
        self.admission.admit(one, self)
        self.line.append(one)
        self.pump()

    def pump(self) -> None:
        while self.line and len(self.running) < self.seats:
            one = self.line.pop(0)
            self.running.append(one)
            self.admission.began(one, len(self.running))

    def end(self, one: Ask, tokens: int, whole: bool = True) -> None:
        in_flight = len(self.running)
        (self.running if one in self.running else self.line).remove(one)
        self.admission.release(one, tokens, in_flight=in_flight, whole=whole)
        self.pump()

    def offer(self, one: Ask) -> ApiError | None:
        try:
            self.come(one)
        except ApiError as error:
            return error
        return None

    def refusal(self, one: Ask) -> ApiError:
        with pytest.raises(ApiError) as caught:
            self.come(one)
        assert caught.value.retry_after_s is None or caught.value.retry_after_s >= LEAST_RETRY_S
        return caught.value


def test_the_queue_is_capped_in_requests_tokens_and_bytes_but_not_what_goes_at_once():
    caps = QueueSettings(max_requests=2, max_prompt_tokens=100, max_bytes=1024)
    house = House(Settings(queue=caps))
    house.come(ask(0, prompt_tokens=5000, body=b"x" * 5000))
    house.come(ask(1, prompt_tokens=60, body=b"x" * 600))
    assert house.refusal(ask(2, prompt_tokens=60)).code == "queue_full"
    error = house.refusal(ask(3, prompt_tokens=1, body=b"x" * 600))
    assert (error.status, error.code, house.admission.refused["bytes"]) == (503, "queue_full", 1)
    house.come(ask(4, prompt_tokens=10))
    assert house.refusal(ask(5, prompt_tokens=10)).message == "The queue is full: 2 requests may wait"
    assert {name: count for name, count in house.admission.refused.items() if count} == {
        "requests": 1,
        "prompt_tokens": 1,
        "bytes": 1,
    }


def test_no_queue_at_all():
    house = House(Settings(queue=QueueSettings(max_requests=0)))
    house.come(first := ask(0))
    assert house.refusal(ask(1)).status == 503
    house.end(first, 1)
    house.come(ask(2))


def test_a_class_has_caps_of_its_own_and_its_refusal_is_429():
    classes = (ServiceClass("usual", max_requests=1), ServiceClass("gold"))
    house = House(Settings(classes=classes))
    house.come(ask(0))
    house.come(ask(1))
    error = house.refusal(ask(2))
    assert (error.status, error.code, error.message) == (429, "slow_down", "Class 'usual' may have 1 requests waiting")
    house.come(ask(3, slo_class=1))


def test_do_not_queue():
    house = House(Settings())
    house.come(ask(0, no_queue=True))
    error = house.refusal(ask(1, no_queue=True))
    assert (error.status, error.code) == (503, "no_free_seat")


def test_rates_hold_for_each_key_and_for_all_and_say_when():
    keys = (Key("slow", HASH, rate_rps=0.5, burst=2), Key("fast", "1" * 64))
    house = House(Settings(keys=keys, admission=AdmissionSettings(rate_rps=10, burst=5)), seats=100)
    house.come(ask(0, tenant="slow"))
    house.come(ask(1, tenant="slow"))
    error = house.refusal(ask(2, tenant="slow"))
    assert (error.status, error.code, error.retry_after_s) == (429, "rate_limit_exceeded", 2.0)
    for n in range(3):
        house.come(ask(n, tenant="fast"))
    assert house.refusal(ask(9, tenant="fast")).retry_after_s == pytest.approx(0.1)
    house.now_s += 2.0
    house.come(ask(10, tenant="slow"))
    # What one bucket refuses, the other has not counted.
    assert house.admission.refused["rate"] == 2


def test_tokens_are_reserved_at_admission_and_settled_at_the_end():
    house = House(Settings(keys=(Key("k", HASH, tokens_per_min=1000),)), seats=100)
    house.come(first := ask(0, tenant="k", prompt_tokens=100, max_tokens=200))
    headers = dict(house.admission.limit_headers(first))
    assert headers[b"x-ratelimit-remaining-tokens"] == b"700"
    assert headers[b"x-ratelimit-limit-tokens"] == b"1000"
    assert headers[b"x-ratelimit-reset-tokens"] == b"18.000s"
    house.end(first, 50)
    assert dict(house.admission.limit_headers(first))[b"x-ratelimit-remaining-tokens"] == b"850"
    house.come(ask(1, tenant="k", prompt_tokens=700, max_tokens=100))
    error = house.refusal(ask(2, tenant="k", prompt_tokens=100, max_tokens=100))
    # Its answer is expected to have the 50 tokens of the last one: 150 are needed, 100 are there.
    assert (error.status, error.retry_after_s) == (429, pytest.approx(50 / (1000 / 60)))
    too_large = house.refusal(ask(3, tenant="k", prompt_tokens=1001))
    assert (too_large.status, too_large.code, too_large.retry_after_s) == (400, "request_too_large", None)


def test_a_request_that_never_had_a_seat_costs_no_tokens():
    house = House(Settings(keys=(Key("k", HASH, tokens_per_min=1000),)))
    house.come(ask(0))
    house.come(waits := ask(1, tenant="k", prompt_tokens=400, max_tokens=100))
    house.end(waits, 0)
    assert dict(house.admission.limit_headers(waits))[b"x-ratelimit-remaining-tokens"] == b"1000"


def test_predicted_wait_refuses_what_would_time_out_and_says_when_to_come():
    house = House(Settings(admission=AdmissionSettings(predicted_wait=True)), seats=2)
    # Two seats, each request takes 4 s: a seat comes free every 2 s.
    for _ in range(40):
        pair = [ask(0), ask(1)]
        for one in pair:
            house.come(one)
        house.now_s += 4.0
        for one in pair:
            house.end(one, 10)
    for n in range(7):
        house.come(ask(n, deadline_s=house.now_s + 60))
    # 5 wait; the next one would be the sixth: about 12 s.
    assert house.admission.predicted_wait_s(ask(8), house) == pytest.approx(12.0 * Trust.LEAST, rel=0.1)
    assert house.admission.retry_after_s(house) == pytest.approx(12.0, rel=0.1)
    error = house.refusal(ask(8, deadline_s=house.now_s + 5))
    assert (error.status, house.admission.refused["predicted_wait"]) == (503, 1)
    assert error.retry_after_s == pytest.approx(8.2, rel=0.2)
    house.come(ask(9, deadline_s=house.now_s + 20))
    house.refusal(ask(10, deadline_s=house.now_s + 60, slo_ttft_s=1.0))


def test_a_backend_that_hangs_makes_the_predicted_wait_grow():
    house = House(Settings(), seats=1)
    for _ in range(20):
        house.come(one := ask(0))
        house.now_s += 1.0
        house.end(one, 10)
    house.come(ask(1))
    usual_s = house.admission.retry_after_s(house)
    for _ in range(30):
        house.now_s += 2.0
        house.admission.retry_after_s(house)
    assert house.admission.retry_after_s(house) > 5 * usual_s


@pytest.mark.parametrize(
    ("order", "ahead"),
    [("fcfs", 5), ("sjf", 5), ("priority", 2), ("edf", 5), ("vtc", 4), ("wfq", 4)],
)
def test_the_wait_counts_those_that_go_before(order, ahead):
    classes = (ServiceClass("bulk", priority=5, ttft_slo_s=9.0), ServiceClass("gold", ttft_slo_s=1.0))
    house = House(Settings(classes=classes, queue=QueueSettings(order=order)))
    house.come(first := ask(0))
    house.now_s += 1.0
    house.end(first, 1)
    house.come(ask(0))
    for n in range(3):
        house.come(ask(n, tenant="many"))
    for n in range(2):
        house.come(ask(n, slo_class=1, tenant="few"))
    one = ask(9, slo_class=1, tenant="few", slo_ttft_s=1.0)
    assert house.admission._ahead(one) == (2 + 3 if order in ("vtc", "wfq") else ahead)


@given(
    plan=st.lists(st.tuples(st.sampled_from(["come", "come", "end", "leave"]), st.integers(0, 50), st.sampled_from([0.0, 0.1, 5.0, -30.0, 1e7])), max_size=80),
    seats=st.integers(1, 4),
)  # fmt: skip
def test_counts_are_exact_and_refusals_bounded_whatever_happens(plan, seats):
    settings = Settings(
        keys=(Key("k", HASH, rate_rps=2, burst=3, tokens_per_min=600),), queue=QueueSettings(max_requests=5, max_prompt_tokens=300),
        admission=AdmissionSettings(predicted_wait=True, adaptive="aimd", rate_rps=100), classes=(ServiceClass("a"), ServiceClass("b", max_requests=2)),
    )  # fmt: skip
    house = House(settings, seats)
    for what, which, tick in plan:
        house.now_s += tick
        if what == "come":
            one = ask(
                which,
                tenant="k" if which % 2 else "other",
                prompt_tokens=1 + which,
                slo_class=which % 2,
                deadline_s=house.now_s + 60,
            )
            error = house.offer(one)
            assert error is None or error.status in (429, 503)
            assert error is None or (error.retry_after_s is not None and 0 < error.retry_after_s <= MOST_RETRY_S)
        elif what == "end" and house.running:
            one = house.running[which % len(house.running)]
            house.admission.first_token(one, len(house.running))
            house.end(one, which)
        elif what == "leave" and house.line:
            house.end(house.line[which % len(house.line)], 0, whole=False)
        admission = house.admission
        assert admission.total.requests == len(house.line) <= 5
        assert admission.total.prompt_tokens == sum(one.prompt_tokens for one in house.line) <= 300
        assert admission.total.bytes == sum(len(one.body) for one in house.line)
        assert [tally.requests for tally in admission.by_class] == [
            sum(one.slo_class == n for one in house.line) for n in (0, 1)
        ]
        assert sum(admission._waiting_of.values()) == len(house.line)
    for one in house.running + house.line:
        house.end(one, 1)
    assert admission_is_empty(house.admission) if plan else True


def admission_is_empty(admission: Admission) -> bool:
    return not (admission._passes or admission._waiting_of or admission.total.requests or admission.total.bytes)


def test_lengths_are_learnt_by_tenant_and_prompt_and_capped_by_the_caller():
    house = House(Settings(), seats=100)
    house.come(first := ask(0, tenant="a", prompt_tokens=100))
    assert first.predicted_tokens == 256.0
    house.end(first, 40)
    for tenant, prompt, cap, expected in (
        ("a", 100, None, 40.0),
        ("a", 100, 10, 10.0),
        ("b", 100, None, 40.0),
        ("a", 5000, None, 40.0),
    ):
        house.come(one := ask(1, tenant=tenant, prompt_tokens=prompt, max_tokens=cap))
        assert one.predicted_tokens == expected
        house.end(one, 999, whole=False)
    house.come(other := ask(2, tenant="b", prompt_tokens=100))
    house.end(other, 80)
    house.come(one := ask(3, tenant="a", prompt_tokens=100))
    assert one.predicted_tokens == 40.0
    house.come(one := ask(4, tenant="c", prompt_tokens=100))
    assert one.predicted_tokens == 60.0


def test_limits_change_live_and_levels_stay():
    house = House(Settings(admission=AdmissionSettings(rate_rps=1, burst=10)), seats=100)
    for n in range(10):
        house.come(ask(n))
    house.admission.change(Settings(admission=AdmissionSettings(rate_rps=2, burst=10)))
    assert house.refusal(ask(11)).retry_after_s == pytest.approx(0.5)
    house.admission.change(Settings())
    house.come(ask(12))
    house.admission.change(Settings(queue=QueueSettings(max_requests=0)))
    house.seats = 11
    assert house.refusal(ask(13)).code == "queue_full"


def test_the_adaptive_limit_is_told_when_it_moves():
    house = House(Settings(admission=AdmissionSettings(adaptive="aimd", latency_slo_s=0.5, max_limit=20)), seats=100)
    assert house.limits == [16.0]
    for n in range(16):
        house.come(ask(n))
    house.now_s += 2.0
    for one in list(house.running):
        house.admission.first_token(one, 16)
    assert house.limits == [16.0, 14.0]
    house.admission.change(Settings())
    assert house.limits[-1] == math.inf
    assert house.admission.limit == math.inf


def test_predictions_that_were_too_short_are_trusted_less():
    trust = Trust()
    assert trust.factor == Trust.LEAST
    for n in range(50_000):
        trust.learn(1.0, 1.0 + n % 100 / 100)
    assert trust.factor == pytest.approx(1.99, abs=0.03)
    # One that left early says nothing; one that left late says that it would have been at least so long.
    before = trust.factor
    trust.learn(1.0, 0.5, at_least=True)
    assert trust.factor == before
    trust.learn(1.0, 9.0, at_least=True)
    assert trust.factor > before
    for noisy in (0.0, 0.01, math.nan):
        before = trust.factor
        trust.learn(noisy, 100.0)
        assert trust.factor == before
