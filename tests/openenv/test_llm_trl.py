"""The TRL recipe without TRL: its samples are moments of training episodes, and its rewards are what the environment gives, in this process and over HTTP."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openenv.core", reason="the extra 'openenv' is not installed")

from inferencegym.decision.knobs import KnobsSurface
from inferencegym.envs import catalogue
from inferencegym.envs.actors import actor
from inferencegym.envs.episode import record
from inferencegym.envs.openenv.client import EpisodeClient
from inferencegym.ground.errors import ConfigError

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
SURFACE = KnobsSurface()
TASK = "static_workload"


@pytest.fixture(scope="module")
def recipe():
    sys.path.insert(0, str(EXAMPLES))
    try:
        yield importlib.import_module("trl_grpo")
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def rows(recipe):
    return recipe.samples(TASK, 10, guide="slo-feedback")


def columns(rows):
    table = [one.row() for one in rows]
    return {name: [row[name] for row in table] for name in ("task", "split", "scenario", "before")}


def test_the_recipe_loads_neither_torch_nor_trl(recipe):
    assert not {"trl", "datasets", "transformers"} & set(sys.modules)


def test_samples_are_moments_of_the_guides_training_episodes(recipe, rows):
    assert [one.scenario for one in rows] == [0] * 8 + [1] * 2
    assert {one.split for one in rows} == {"train"}
    assert rows == recipe.samples(TASK, 10, guide="slo-feedback")
    task = catalogue.task(TASK)
    episode = record(task, actor("slo-feedback", task), split="train", scenario=0)
    for one in rows[:8]:
        at = len(one.before)
        assert at + recipe.HOLD <= task.steps
        taken = np.array([knobs.levers() for knobs in one.before]).reshape(-1, 6)
        assert np.array_equal(taken, episode.actions[:at], equal_nan=True)
        seen = SURFACE.columns.read(episode.observations[at])
        assert f"queue_depth: {seen['queue_depth']:.4g}\n" in one.prompt[1]["content"]
        assert [turn["role"] for turn in one.prompt] == ["system", "user"]
        json.dumps(one.row())


def test_the_reward_is_the_mean_of_the_windows_after_the_answer(recipe, rows):
    one = rows[3]
    action = {"batch_cap": 1, "quantization_tier": "FP16"}
    reward = recipe.reward_function(lambda: recipe.opened(None))
    found = reward(completions=[json.dumps(action)], **columns([one]))
    task = catalogue.task(TASK)
    batch = task.batch(1)
    batch.start(0, one.scenario)
    earned = []
    for knobs in [*one.before, *[SURFACE.action(SURFACE.dense(action))] * recipe.HOLD]:
        batch.actions[0] = knobs.levers()
        batch.step()
        earned.append(float(batch.rewards[0]))
    assert found == [pytest.approx(np.mean(earned[-recipe.HOLD :]))]


def test_answers_are_told_apart_and_what_cannot_be_read_is_the_worst(recipe, rows):
    one = rows[5]
    reward = recipe.reward_function(lambda: recipe.opened(None))
    texts = [one.guide, '{"batch_cap": 1, "kv_budget_fraction": 0.1}', "no idea"]
    good, bad, none = reward(
        completions=[[{"role": "assistant", "content": text}] for text in texts], **columns([one] * 3)
    )
    assert none == recipe.UNREADABLE == -1.0
    assert -1 < bad < good <= 1
    assert reward(completions=[one.guide], **columns([one])) == [good]


def test_over_http_the_rewards_are_the_same(recipe, rows, serve_server):
    here = recipe.reward_function(lambda: recipe.opened(None))
    session = recipe.opened(serve_server.url)
    assert isinstance(session, EpisodeClient)
    there = recipe.reward_function(lambda: session)
    few = [rows[0], rows[9]]
    texts = [one.guide for one in few]
    assert there(completions=texts, **columns(few)) == pytest.approx(here(completions=texts, **columns(few)))
    session.close()


def test_a_task_without_knobs_is_refused(recipe):
    with pytest.raises(ConfigError, match="task: 'easy' has no knobs; allowed: static_workload"):
        recipe.samples("easy", 1)
