"""The gateway's queue in front of N seats and the engine with the same order and max_num_seqs = N take requests in the same order, plan by plan.

Requests come in groups, the groups a thousand seconds apart, and within a group so close that all of it waits when the first step ends: from then on
only the order decides. Each plan of the engine is compared with a step of a loop that gives every seat a token a step.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from inferencegym.engine.asked import NO_DEADLINE_S as ENGINE_NO_DEADLINE_S
from inferencegym.engine.deployment import Deployment
from inferencegym.engine.engine import Engine
from inferencegym.engine.profile import load_profile
from inferencegym.engine.settings import EngineSettings
from inferencegym.ground.rng import stream
from inferencegym.runtime.orders.ranked import NO_DEADLINE_S
from inferencegym.runtime.ports import Ask
from inferencegym.runtime.queues import make_queue
from inferencegym.runtime.settings import QueueSettings
from inferencegym.workload import Workload
from tests.runtime.asks import ask

GROUP_S = 1000.0
SLO_TTFT_S = (1.0, 30.0, NO_DEADLINE_S)
ORDERS = {
    "fcfs": (QueueSettings(), {}),
    "priority": (QueueSettings(order="priority"), {}),
    "aging": (QueueSettings(order="aging", aging_s=2.03e-5), {"aging_s": 2.03e-5}),
    # The engine knows of the prompt only: no predicted answer, no aging.
    "sjf": (QueueSettings(order="sjf", sjf_tokens_per_s=0.0), {}),
    "edf": (QueueSettings(order="edf"), {}),
    "vtc": (QueueSettings(order="vtc"), {}),
}


def random_workload(seed: int) -> Workload:
    """Three groups of requests, microseconds apart, some at the same time; tenants are numbered as they first appear."""
    draw = stream(seed, "queue-order")
    rows = 3 * 40
    arrival_s = np.repeat(np.arange(3) * GROUP_S, 40) + np.tile(np.cumsum(draw.integers(0, 5, 40)), 3) * 1e-6
    tenant = draw.integers(0, 5, rows)
    _, first, inverse = np.unique(tenant, return_index=True, return_inverse=True)
    number = np.argsort(np.argsort(first))
    return Workload.of(
        arrival_s=arrival_s, prompt_tokens=draw.integers(1, 60, rows), output_tokens=draw.integers(1, 30, rows),
        priority=draw.integers(0, 4, rows), tenant=number[inverse], tenant_names=tuple("abcde"),
        slo_class=draw.integers(0, 3, rows), slo_class_names=("fast", "slow", "free"),
    )  # fmt: skip


def engines_plans(workload: Workload, order: str, seats: int, more: dict[str, float]) -> list[list[frozenset[int]]]:
    """For each group, the rows that each plan took into the engine."""
    deployment, settings = Deployment(), EngineSettings(order=order, max_num_seqs=seats, **more)
    machine = deployment.machine(settings, load_profile(deployment.gpu_facts.name))
    records = Engine(workload, machine, settings, slo_ttft_s=SLO_TTFT_S).run().sorted_by_row()
    plans: dict[int, dict[float, set[int]]] = defaultdict(lambda: defaultdict(set))
    for row, at_s in enumerate(records.scheduled_s.tolist()):
        plans[int(at_s // GROUP_S)][at_s].add(row)
    return [[frozenset(rows) for _, rows in sorted(plans[group].items())] for group in sorted(plans)]


def queues_plans(workload: Workload, settings: QueueSettings, seats: int) -> list[list[frozenset[int]]]:
    """The same by the gateway's queue."""
    queue, plans = make_queue(settings), []
    asks = [
        ask(
            row, arrival_s=workload.arrival_s[row], prompt_tokens=int(workload.prompt_tokens[row]), priority=int(workload.priority[row]),
            tenant=workload.tenant_names[workload.tenant[row]], slo_ttft_s=SLO_TTFT_S[workload.slo_class[row]],
        )
        for row in range(len(workload))
    ]  # fmt: skip
    row_of = {one: row for row, one in enumerate(asks)}
    for group in range(3):
        coming = [one for one in asks if one.arrival_s // GROUP_S == group]
        # The first step sees only those that come at the very first instant.
        early = [one for one in coming if one.arrival_s == coming[0].arrival_s]
        left: dict[Ask, int] = {}
        taken: list[frozenset[int]] = []
        for one in early:
            queue.push(one, one.arrival_s)
        while len(queue) or left:
            now = {queue.pop(group * GROUP_S) for _ in range(min(seats - len(left), len(queue)))}
            if now:
                taken.append(frozenset(row_of[one] for one in now))
            left |= {one: int(workload.output_tokens[row_of[one]]) for one in now}
            if len(taken) == 1 and early:
                # The rest comes while the first step runs.
                for one in coming[len(early) :]:
                    queue.push(one, one.arrival_s)
                early = []
            for one in list(left):
                queue.charge(one, 1)
                left[one] -= 1
                if not left[one]:
                    del left[one]
        plans.append(taken)
    return plans


@pytest.mark.parametrize("seats", [1, 4])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("order", sorted(ORDERS))
def test_queue_and_engine_take_the_same_requests_at_the_same_plan(order, seed, seats):
    workload = random_workload(seed)
    settings, more = ORDERS[order]
    assert queues_plans(workload, settings, seats) == engines_plans(workload, order, seats, more)


def test_requests_without_a_deadline_stand_at_the_same_place():
    assert NO_DEADLINE_S == ENGINE_NO_DEADLINE_S
