"""What every order of the queue promises, and what each promises of its own, on random crowds."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencegym.ground.errors import UnknownNameError
from inferencegym.runtime.orders.aging import Aging
from inferencegym.runtime.orders.ranked import NO_DEADLINE_S, by_deadline, by_priority, by_work
from inferencegym.runtime.ports import Ask, Queue
from inferencegym.runtime.queues import ORDERS, change_queue, make_queue
from inferencegym.runtime.settings import QueueSettings, ServiceClass
from tests.runtime.asks import ask, crowds

every_order = pytest.mark.parametrize("order", sorted(ORDERS))
#: What a run does at each step: 0 push the next, 1 pop, 2 remove one of those that wait, 3 charge one that was popped.
steps = st.lists(st.tuples(st.sampled_from([0, 0, 0, 1, 1, 2, 3]), st.integers(0, 10_000)), max_size=120)


def queue(order: str, **more: object) -> Queue:
    return make_queue(QueueSettings(order=order, **more))


def run(line: Queue, crowd: list[Ask], plan: list[tuple[int, int]]) -> list[Ask]:
    """Drive a queue by a plan, checking it against a set that knows only who waits; returns the pops in order."""
    coming, waits, popped, now_s = list(crowd), [], [], 0.0
    for what, which in plan:
        if what == 0 and coming:
            one = coming.pop(0)
            now_s = max(now_s, one.arrival_s)
            line.push(one, now_s)
            waits.append(one)
        elif what == 1:
            now_s += 0.125
            if waits:
                one = line.pop(now_s)
                waits.remove(one)
                popped.append(one)
            else:
                with pytest.raises(IndexError):
                    line.pop(now_s)
        elif what == 2 and waits:
            one = waits.pop(which % len(waits))
            assert line.remove(one)
            assert not line.remove(one)
        elif what == 3 and popped:
            line.charge(popped[which % len(popped)], 1 + which % 500)
        assert len(line) == len(waits)
        assert line.waiting() == waits
    return popped


@every_order
@given(crowd=crowds(), plan=steps)
def test_nobody_is_lost_doubled_or_refused_and_the_same_run_gives_the_same_order(order, crowd, plan):
    first = run(queue(order), crowd, plan)
    assert first == run(queue(order), crowd, plan)


@every_order
@given(crowd=crowds())
def test_work_conserving_and_first_come_first_served_among_equals(order, crowd):
    line = queue(order)
    for one in crowd:
        one.priority, one.prompt_tokens, one.predicted_tokens, one.tenant, one.slo_ttft_s = 0, 10, 5.0, "a", 1.0
        line.push(one, one.arrival_s)
    assert [line.pop(1e6) for _ in crowd] == crowd
    with pytest.raises(IndexError):
        line.pop(1e6)


@every_order
@pytest.mark.parametrize("then", sorted(ORDERS))
@given(crowd=crowds(), plan=steps)
def test_the_order_changes_while_requests_wait_and_keeps_everybody(order, then, crowd, plan):
    old = queue(order)
    run(old, crowd, plan)
    waited = old.waiting()
    new = change_queue(old, queue(then), 100.0)
    assert new.waiting() == waited
    fresh = queue(then)
    for one in waited:
        fresh.push(one, 100.0)
    popped = [new.pop(100.0) for _ in waited]
    assert sorted(map(id, popped)) == sorted(map(id, waited))
    if order != then:
        assert popped == [fresh.pop(100.0) for _ in waited]


@every_order
def test_ten_thousand_that_leave_at_once_leave_nothing_behind(order):
    line = queue(order, aging_levels=3)
    crowd = [
        ask(n, arrival_s=n * 1e-3, tenant=f"t{n % 50}", priority=n % 7, prompt_tokens=1 + n % 13) for n in range(10_000)
    ]
    for one in crowd:
        line.push(one, one.arrival_s)
    for one in crowd:
        line.remove(one)
    line.push(crowd[0], 10.0)
    assert len(line) == 1
    assert held(line) < 1_000


def held(thing: object, seen: set[int] | None = None) -> int:
    """Asks and entries that a queue still refers to, heaps and lines included."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, str | int | float | Ask | type(None)):
        return 0
    seen.add(id(thing))
    count = 0
    if isinstance(thing, dict | list | set | tuple):
        count += len(thing)
        members = [*thing.keys(), *thing.values()] if isinstance(thing, dict) else list(thing)
    else:
        names = itertools.chain(
            getattr(thing, "__dict__", {}), *(getattr(k, "__slots__", ()) for k in type(thing).__mro__)
        )
        members = [getattr(thing, name) for name in names if hasattr(thing, name)]
    return count + sum(held(member, seen) for member in members if not callable(member))


# --- ranks ------------------------------------------------------------------------------------------------------------

RANKS = {"priority": by_priority, "edf": by_deadline, "sjf": by_work(1.0, 2.0, 100.0)}


@pytest.mark.parametrize("order", sorted(RANKS))
@given(crowd=crowds(), plan=steps)
def test_a_pop_is_the_least_rank_of_all_that_wait(order, crowd, plan):
    line, rank = queue(order), RANKS[order]
    waits: list[Ask] = []
    for number, one in enumerate(crowd):
        line.push(one, one.arrival_s)
        waits.append(one)
        if number % 3 == 2:
            least = min(waits, key=lambda a: (rank(a), crowd.index(a)))
            assert line.pop(one.arrival_s) is least
            waits.remove(least)


@given(crowd=crowds(), cap=st.sampled_from([1, 2, 100]), until_s=st.sampled_from([0.0, 3.0, 30.0, 1e4]))
def test_aging_with_a_cap_pops_the_least_level_of_that_moment(crowd, cap, until_s):
    line = Aging(2.0, cap)
    for one in crowd:
        line.push(one, one.arrival_s)
    waits, now_s = list(crowd), crowd[-1].arrival_s
    while waits:
        now_s += until_s / len(crowd)

        def level(a: Ask, now_s: float = now_s) -> tuple[float, float, int]:
            return a.priority - min((now_s - a.arrival_s) / 2.0, cap), a.arrival_s, crowd.index(a)

        popped, least = line.pop(now_s), min(waits, key=level)
        # The queue compares growing levels by arrival + priority * aging_s, which is the same up to rounding.
        assert level(popped)[0] == pytest.approx(level(least)[0], abs=1e-9)
        waits.remove(popped)


@given(crowd=crowds())
def test_under_aging_nobody_waits_for_one_that_came_too_much_later(crowd):
    line = queue("aging", aging_s=2.0)
    for one in crowd:
        line.push(one, one.arrival_s)
    popped = [line.pop(1e6) for _ in crowd]
    for first, later in itertools.combinations(popped, 2):
        # `first` went before `later`: it did not arrive later by more than its better priority is worth.
        assert first.arrival_s - later.arrival_s <= (later.priority - first.priority) * 2.0


@given(crowd=crowds())
def test_sjf_makes_long_jobs_wait_only_so_long(crowd):
    line = queue("sjf", sjf_tokens_per_s=10.0)
    for one in crowd:
        line.push(one, one.arrival_s)
    popped = [line.pop(1e6) for _ in crowd]

    def work(a: Ask) -> float:
        return a.prompt_tokens + 2.0 * a.predicted_tokens

    for first, later in itertools.combinations(popped, 2):
        assert first.arrival_s - later.arrival_s <= (work(later) - work(first)) / 10.0 + 1e-9


def test_no_deadline_comes_after_every_real_one_but_not_after_eternity():
    line = queue("edf")
    free = ask(0, arrival_s=0.0)
    soon = ask(1, arrival_s=5.0, slo_ttft_s=1.0)
    much_later = ask(2, arrival_s=NO_DEADLINE_S, slo_ttft_s=1.0)
    for one in (free, soon, much_later):
        line.push(one, one.arrival_s)
    assert [line.pop(9e3).id for _ in range(3)] == ["r1", "r0", "r2"]


def test_an_unknown_order_names_the_known_ones():
    with pytest.raises(UnknownNameError, match="fcfs"):
        make_queue(SimpleNamespace(order="lifo"))  # type: ignore[arg-type]


def test_weights_of_classes_and_tenants_reach_the_fair_orders():
    settings = QueueSettings(order="vtc", input_cost=1.0)
    line = make_queue(settings, (ServiceClass("usual"), ServiceClass("gold", weight=4.0)), {"big": 2.0})
    for n in range(12):
        line.push(ask(n, tenant="big", prompt_tokens=100), 0.0)
        line.push(ask(100 + n, tenant="small", prompt_tokens=100), 0.0)
        line.push(ask(200 + n, tenant="gilded", slo_class=1, prompt_tokens=100), 0.0)
    popped = [line.pop(0.0).tenant for _ in range(14)]
    assert (popped.count("small"), popped.count("big"), popped.count("gilded")) == (2, 4, 8)
