"""Variants of a task: what is changed is changed, and the rest is not."""

from __future__ import annotations

import pytest

from inferencegym.envs import catalogue
from inferencegym.envs.actors import actor
from inferencegym.envs.splits import scenario
from inferencegym.ground.errors import ConfigError
from inferencegym.learn.transfer import on_gpu, under_trace, values_on


@pytest.fixture(scope="module")
def bursty():
    return catalogue.task("bursty_workload")


def tokens_per_s(task, scenarios=6):
    """Of training scenarios that the variant was not fitted on too."""
    found = [task.workload(scenario("train", i)) for i in range(scenarios)]
    return sum(int(one.prompt_tokens.sum() + one.output_tokens.sum()) for one in found) / (scenarios * task.duration_s)


def test_a_faster_card_keeps_the_traffic_and_makes_a_fixed_setting_worth_more(bursty):
    faster = on_gpu(bursty, "h200")
    assert faster.name == "bursty_workload@h200"
    assert faster.digest != bursty.digest
    assert tokens_per_s(faster, 2) == tokens_per_s(bursty, 2)
    fixed = actor("best-static", bursty)
    assert values_on(faster, fixed, range(2)) > values_on(bursty, fixed, range(2))


def test_a_slower_card_gets_less_traffic_in_the_share_it_is_slower(bursty):
    slower = on_gpu(bursty, "a100-80g")
    # 312 of 989 TFLOP/s; memory bandwidth falls less.
    assert tokens_per_s(slower) / tokens_per_s(bursty) == pytest.approx(312 / 989, rel=0.1)


def test_another_trace_brings_as_many_tokens_in_the_same_classes(bursty):
    other = under_trace(bursty, "azure-conversation")
    assert tokens_per_s(other) == pytest.approx(tokens_per_s(bursty), rel=0.2)
    drawn, had = other.workload(scenario("test", 0)), bursty.workload(scenario("test", 0))
    assert drawn.slo_class_names == had.slo_class_names == ("vip", "free")
    assert (drawn.slo_class == 0).mean() == pytest.approx((had.slo_class == 0).mean(), abs=0.03)
    assert set(drawn.priority[drawn.slo_class == 0]) == set(had.priority[had.slo_class == 0])
    assert drawn.prompt_tokens.mean() > 1.5 * had.prompt_tokens.mean()
    assert int((drawn.prompt_tokens + drawn.output_tokens).max()) <= 8192


def test_a_variant_that_is_none_is_refused(bursty):
    with pytest.raises(ConfigError, match="runs on h100 as it is"):
        on_gpu(bursty, "h100")
