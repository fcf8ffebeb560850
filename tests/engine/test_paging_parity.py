"""The paging kernel against the naive machine: the same scenario and actions give the same state, observation, mask and reward."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import inferencegym.envs
from inferencegym.envs.pagedkv import PagedTask, load
from tests.reference.paging import NaivePaging

TASKS = Path(inferencegym.envs.__file__).parent / "tasks"
#: Chances of (evict, swap, admit, reject, preempt, collect, nothing) for the random players.
MIXES = {
    "any": (4, 4, 2, 2, 4, 1, 1),
    "generous": (2, 1, 20, 0.1, 0.2, 0.2, 1),
    "swapper": (0.5, 6, 12, 0.2, 2, 0.3, 1),
    "shredder": (1, 1, 12, 0.5, 5, 0.2, 1),
    "reckless": (0.2, 0.1, 20, 0, 0, 0, 1),
}
SMALL = dict(gpu_blocks=400, cpu_blocks=500, link_blocks_per_tick=9, transfers=6, free_queue=12, vip_queue=5)


def weights(mix: str) -> np.ndarray:
    evict, swap, admit, reject, preempt, collect, nothing = MIXES[mix]
    return np.array([evict] * 4 + [swap] * 4 + [admit] * 2 + [reject] * 2 + [preempt] * 4 + [collect, nothing], float)


def short(name: str, ticks: int, **rules: int) -> PagedTask:
    task = load(TASKS / f"{name}.toml")
    demand = replace(task.demand, period_ticks=300, calm_ticks=(40, 90), spike_ticks=(40, 90), think_mean_ticks=30)
    users = {
        "chatters": replace(demand.chatters, output_mean=60, output_sd=30),
        "power_users": replace(demand.power_users, output_mean=90, output_sd=40),
    }
    demand = replace(demand, low_rate=2 * demand.low_rate, high_rate=2 * demand.high_rate, **users)
    return PagedTask(name, "short", replace(task.rules, horizon_ticks=ticks, **rules), demand)


def play(task: PagedTask, scenario: int, mix: str, illegal: float) -> NaivePaging:
    batch, chance = task.batch(2), np.random.default_rng(scenario)
    for row in range(2):
        batch.start(row, scenario + row)
    naive = NaivePaging(task.rules, task.traffic(scenario).table)
    batch.actions[1] = 17
    compare(batch, naive)
    ended = False
    while not ended:
        chances = weights(mix) * np.where(batch.masks[0] == 1, 1.0, illegal) + 1e-12
        action = int(chance.choice(18, p=chances / chances.sum()))
        batch.actions[0] = action
        naive.step(action)
        batch.step()
        compare(batch, naive)
        assert batch.rewards[0] == pytest.approx(sum(naive.reward_terms), abs=1e-9)
        assert batch.terms[0].tolist() == pytest.approx(naive.reward_terms, abs=1e-9)
        ended = naive.terminated or naive.truncated
    return naive


def compare(batch, naive: NaivePaging) -> None:
    assert (bool(batch.terminated[0]), bool(batch.truncated[0])) == (naive.terminated, naive.truncated)
    facts = batch.facts(0)
    assert {name: facts[name] for name in naive.facts()} == naive.facts()
    assert batch.observations[0] == pytest.approx(naive.observation(), abs=1e-6)
    assert batch.masks[0].tolist() == naive.mask()
    assert batch.outcome(0).value == pytest.approx(naive.value(), abs=1e-12)
    if not naive.crashed:
        naive.check()
        assert batch.laws(0) == []


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("name", ["easy", "medium", "hard"])
def test_kernel_is_the_naive_machine(name, mix):
    play(short(name, 160), 11, mix, illegal=0.0)


@pytest.mark.parametrize("mix", MIXES)
def test_kernel_is_the_naive_machine_with_illegal_actions(mix):
    naive = play(short("hard", 160), 5, mix, illegal=0.5)
    assert naive.counts["illegal"] > 50


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("scenario", range(4))
def test_kernel_is_the_naive_machine_where_memory_is_tight(mix, scenario):
    play(short("hard", 200, **SMALL), scenario, mix, illegal=0.05)


def test_the_random_players_reach_every_corner():
    """What the tests above compare is worth something only if all of it happens."""
    total: dict[str, float] = {}
    for mix in MIXES:
        for pool in (SMALL, SMALL | {"gpu_blocks": 1500}):
            naive = play(short("hard", 240, garbage_ticks=20, **pool), 40, mix, illegal=0.02)
            for name, count in naive.facts().items():
                total[name] = total.get(name, 0) + count
    for name in (
        "crashed",
        "hits",
        "swapped_out",
        "swapped_in",
        "shredded",
        "preempt_swapped",
        "collected",
        "turned_away",
        "sla_missed",
        "rejected",
        "completed",
    ):
        assert total[name] > 0, f"no {name} in any episode"
