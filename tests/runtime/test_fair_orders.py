"""The bounds that vtc and wfq publish, measured on an engine with seats that gives a token a step to whoever has one."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencegym.runtime.orders.ranked import Fcfs
from inferencegym.runtime.orders.tenants import Price
from inferencegym.runtime.orders.vtc import Vtc
from inferencegym.runtime.orders.wfq import Wfq
from inferencegym.runtime.ports import Ask, Queue
from tests.runtime.asks import ask

IN, OUT = 1.0, 2.0
LONGEST_PROMPT, LONGEST_ANSWER = 60, 40

workloads = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10_000),
        "seats": st.integers(1, 6),
        "shares": st.sampled_from([{}, {"a": 2.0}, {"a": 0.5, "b": 4.0}]),
        "quantum": st.sampled_from([1, 50, 2000]),
        "steps": st.integers(1, 400),
        "backlog": st.sampled_from([0.2, 1.0, 3.0]),
    }
)


def play(
    line: Queue, seed: int, seats: int, steps: int, backlog: float
) -> tuple[list[dict[str, float]], list[set[str]]]:
    """Service had by each tenant, and who had requests waiting all through, after each step.

    Tenant a and b always have more coming; c comes and goes. A prompt is paid when it gets its seat, an answer token as it comes.
    """
    chance = random.Random(seed)
    service: dict[str, float] = defaultdict(float)
    seated: list[list[object]] = []
    history: list[dict[str, float]] = []
    waiting: list[set[str]] = []
    count = 0
    for step in range(steps):
        now_s = float(step)
        for tenant, odds in (("a", backlog), ("b", 1.0), ("c", 0.1 if step % 50 < 25 else 0.0)):
            while chance.random() < odds / (1 + odds):
                count += 1
                if len(line) >= 400:
                    continue
                line.push(
                    ask(count, arrival_s=now_s, tenant=tenant, prompt_tokens=chance.randint(1, LONGEST_PROMPT)), now_s
                )
        before = {one.tenant for one in line.waiting()}
        while len(seated) < seats and len(line):
            one = line.pop(now_s)
            service[one.tenant] += IN * one.prompt_tokens
            seated.append([one, chance.randint(1, LONGEST_ANSWER)])
        assert len(seated) == seats or not len(line), "a seat is free while somebody waits"
        for pair in list(seated):
            one = pair[0]
            assert isinstance(one, Ask)
            line.charge(one, 1)
            service[one.tenant] += OUT
            pair[1] -= 1  # type: ignore[operator]
            if not pair[1]:
                seated.remove(pair)
        history.append(dict(service))
        # A tenant counts as backlogged in this step if it had requests waiting before the seats were given and after.
        waiting.append(before & {one.tenant for one in line.waiting()})
    return history, waiting


def worst_gap(history: list[dict[str, float]], waiting: list[set[str]], share: Callable[[str], float]) -> float:
    """Largest difference of service over share, over all stretches in which a and b both had requests waiting."""
    worst, low, high = 0.0, 0.0, 0.0
    for had, who in zip(history, waiting, strict=True):
        gap = had.get("a", 0.0) / share("a") - had.get("b", 0.0) / share("b")
        if {"a", "b"} <= who:
            low, high = min(low, gap), max(high, gap)
            worst = max(worst, high - low)
        else:
            low = high = gap
    return worst


@given(case=workloads)
def test_vtc_keeps_the_published_service_bound(case):
    price = Price(IN, OUT, case["shares"])
    history, waiting = play(Vtc(price), case["seed"], case["seats"], case["steps"], case["backlog"])
    least = min(price.share("a"), price.share("b"))
    bound = 2 * max(IN * LONGEST_PROMPT, OUT * case["seats"] * (LONGEST_PROMPT + LONGEST_ANSWER)) / least
    assert worst_gap(history, waiting, price.share) <= bound


@given(case=workloads)
def test_wfq_keeps_its_bound(case):
    price = Price(IN, OUT, case["shares"])
    line = Wfq(price, case["quantum"])
    history, waiting = play(line, case["seed"], case["seats"], case["steps"], case["backlog"])
    least = min(price.share("a"), price.share("b"))
    bound = case["quantum"] + 2 * (IN * LONGEST_PROMPT + OUT * case["seats"] * LONGEST_ANSWER) / least
    assert worst_gap(history, waiting, price.share) <= bound


def test_a_fair_order_is_fair_where_fcfs_is_not():
    """The same crowd, in which a asks three times as much as b: fcfs gives a three times as much, the fair orders the same."""

    def ratio(line: Queue) -> float:
        history, _ = play(line, seed=1, seats=2, steps=600, backlog=3.0)
        return history[-1]["a"] / history[-1]["b"]

    assert ratio(Fcfs()) > 2
    assert ratio(Vtc(Price(IN, OUT))) == pytest.approx(1.0, abs=0.1)
    assert ratio(Wfq(Price(IN, OUT), 100)) == pytest.approx(1.0, abs=0.1)
    assert ratio(Wfq(Price(IN, OUT, {"a": 2.0}), 100)) == pytest.approx(2.0, abs=0.2)
    assert ratio(Vtc(Price(IN, OUT, {"a": 0.5}))) == pytest.approx(0.5, abs=0.1)


def drr_by_walking(quantum: float, prompts: dict[str, list[int]]) -> list[str]:
    """Deficit round robin as it is written in the paper: walk the ring, add a quantum, send while it lasts."""
    sent: list[str] = []
    deficits = dict.fromkeys(prompts, 0.0)
    lines = {tenant: list(line) for tenant, line in prompts.items()}
    while any(lines.values()):
        for tenant, line in lines.items():
            if not line:
                continue
            deficits[tenant] += quantum
            while line and deficits[tenant] >= line[0]:
                deficits[tenant] -= line.pop(0)
                sent.append(tenant)
            if not line:
                deficits[tenant] = 0.0
    return sent


@given(
    quantum=st.sampled_from([1, 7, 50, 1000]),
    prompts=st.dictionaries(
        st.sampled_from("abcde"), st.lists(st.integers(1, 60), min_size=1, max_size=12), min_size=1
    ),
)
def test_wfq_without_answers_is_deficit_round_robin_to_the_request(quantum, prompts):
    line = Wfq(Price(1.0, 0.0), quantum)
    for tenant, lengths in prompts.items():
        for length in lengths:
            line.push(ask(tenant=tenant, prompt_tokens=length), 0.0)
    assert [line.pop(0.0).tenant for _ in range(len(line))] == drr_by_walking(quantum, prompts)


def test_credit_is_not_saved_up_and_debt_is_not_forgotten():
    for line in (Vtc(Price(IN, OUT)), Wfq(Price(IN, OUT), 100)):
        for n in range(40):
            line.push(ask(n, tenant="busy", prompt_tokens=50), 0.0)
        for _ in range(30):
            line.pop(0.0)
        for n in range(40):
            line.push(ask(n, tenant="late", prompt_tokens=50), 0.0)
        share = [line.pop(0.0).tenant for _ in range(16)]
        # The newcomer does not get the thirty requests that it never asked for.
        assert 5 <= share.count("busy") <= 10
    line = Vtc(Price(IN, OUT))
    line.push(first := ask(0, tenant="greedy"), 0.0)
    line.push(ask(1, tenant="meek"), 0.0)
    line.pop(0.0)
    line.charge(first, 5000)
    for n in range(9):
        line.push(ask(n, tenant="greedy"), 0.0)
        line.push(ask(n, tenant="meek"), 0.0)
    assert [line.pop(0.0).tenant for _ in range(10)] == ["meek"] * 10


def test_tenants_that_come_once_are_forgotten_and_those_in_debt_are_not():
    for line in (Vtc(Price(IN, OUT)), Wfq(Price(IN, OUT), 100)):
        line.push(debtor := ask(0, tenant="debtor"), 0.0)
        line.push(ask(0, tenant="steady", prompt_tokens=1), 0.0)
        assert line.pop(0.0) is debtor
        line.charge(debtor, 10**6)
        for n in range(30_000):
            line.push(ask(n, tenant=f"t{n}", prompt_tokens=1), 0.0)
            line.pop(0.0)
        assert len(line._lines.by_name) < 30_000
        assert "debtor" in line._lines.by_name
