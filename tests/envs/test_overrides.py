"""Tasks with other numbers: what may differ, what is refused, and that nothing else changes."""

from __future__ import annotations

import pytest

from inferencegym.envs import catalogue
from inferencegym.envs.actors import actor
from inferencegym.envs.episode import Playing, record
from inferencegym.envs.grade import load_anchors
from inferencegym.envs.overrides import overridable, overridden
from inferencegym.envs.splits import scenario
from inferencegym.ground.errors import ConfigError

HARD, BURSTY = catalogue.task("hard"), catalogue.task("bursty_workload")


def test_a_tasks_own_values_are_the_task_itself():
    for task in (HARD, BURSTY):
        assert overridden(task, {}) is task
        assert overridden(task, {one.name: one.default for one in overridable(task)}) is task


def test_another_task_has_another_name_and_digest_and_no_anchors():
    for task, given in ((HARD, {"gpu_blocks": 5000}), (BURSTY, {"windows": 60})):
        other = overridden(task, given)
        assert other.name != task.name
        assert other.digest != task.digest
        assert overridden(task, given).digest == other.digest
        assert load_anchors(task) is not None
        assert load_anchors(other) is None


@pytest.mark.parametrize(
    ("task", "given", "field", "allowed"),
    [
        (HARD, {"gpu_blocks": 499}, "gpu_blocks", "500..100000"),
        (HARD, {"gpu_blocks": 700.5}, "gpu_blocks", "500..100000"),
        (HARD, {"gpu_blocks": True}, "gpu_blocks", "500..100000"),
        (HARD, {"horizon_ticks": float("nan")}, "horizon_ticks", "1..20000"),
        (HARD, {"block_tokens": 17}, "block_tokens", "8, 16, 32, 64"),
        (HARD, {"gpu": "h100"}, "gpu", "gpu_blocks, cpu_blocks, block_tokens, rate, horizon_ticks"),
        (BURSTY, {"gpu": "abacus"}, "gpu", "h100"),
        (BURSTY, {"rate": "many"}, "rate", "0.1..4"),
        (BURSTY, {"gpu": "rtx-4090"}, "gpu", "a deployment that fits its GPUs"),
    ],
)
def test_what_does_not_fit_is_refused_at_its_field(task, given, field, allowed):
    with pytest.raises(ConfigError) as error:
        overridden(task, given)
    assert error.value.field == field
    assert allowed in error.value.allowed


def test_numbers_may_come_as_a_links_text():
    assert (
        overridden(HARD, {"gpu_blocks": "5000", "rate": "0.5"}).digest
        == overridden(HARD, {"gpu_blocks": 5000, "rate": 0.5}).digest
    )
    assert overridden(HARD, {"block_tokens": "16"}) is HARD


@pytest.mark.parametrize("tokens", [8, 32, 64])
def test_a_block_of_other_size_keeps_the_laws_and_the_links_bytes(tokens):
    task = overridden(HARD, {"block_tokens": tokens, "horizon_ticks": 1500})
    link = HARD.rules.link_blocks_per_tick * 16
    assert abs(task.rules.link_blocks_per_tick * tokens - link) <= tokens
    playing = Playing(task, actor("sieve", HARD), split="train", scenario=7)
    while not playing.step():
        assert playing.batch.laws(0) == []
    assert playing.batch.facts(0)["completed"] > 100


def test_larger_blocks_waste_more_of_the_pool():
    used = {}
    for tokens in (8, 64):
        task = overridden(HARD, {"block_tokens": tokens, "horizon_ticks": 600, "gpu_blocks": 80_000 // tokens})
        batch = task.batch(1)
        batch.start(0, 3)
        for _ in range(300):
            batch.actions[0] = 8 if batch.masks[0, 8] else 9 if batch.masks[0, 9] else 17
            batch.step()
        used[tokens] = batch.facts(0)["gpu_used"] * tokens
    assert used[64] > used[8] > 0


@pytest.mark.parametrize("task", [HARD, BURSTY], ids=["hard", "bursty"])
def test_more_arrivals_are_more_requests(task):
    name = "arrived" if task is HARD else "requests"
    horizon = {"horizon_ticks": 2000} if task is HARD else {"windows": 20}
    facts = [
        record(overridden(task, horizon | {"rate": rate}), actor("do-nothing", task), split="train", scenario=1).facts[
            name
        ]
        for rate in (0.5, 1.0, 2.0)
    ]
    assert 1.3 < facts[1] / facts[0] < 2.7
    assert 1.3 < facts[2] / facts[1] < 2.7


def test_a_larger_gpu_serves_the_same_requests_better():
    slow = record(BURSTY, actor("do-nothing", BURSTY), split="validation", scenario=0)
    large = overridden(BURSTY, {"gpu": "h200", "tensor_parallel": 2})
    fast = record(large, actor("do-nothing", large), split="validation", scenario=0)
    assert fast.facts["requests"] == slow.facts["requests"]
    assert fast.value > slow.value


def test_a_shorter_episode_is_the_beginning_of_the_same_traffic():
    short = overridden(BURSTY, {"windows": 30})
    number = scenario("train", 4)
    few, all_ = short.workload(number), BURSTY.workload(number)
    assert 0 < len(few) < len(all_)
    assert (few.arrival_s == all_.arrival_s[: len(few)]).all()
