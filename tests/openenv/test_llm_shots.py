"""What a language model is told: objectives from the task's own file, examples from training scenarios only and always the same, all of it readable back."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("openenv.core", reason="the extra 'openenv' is not installed")

from inferencegym.decision.knobs import LEVERS, OFFSETS, KnobsSurface
from inferencegym.decision.paging import PagingSurface
from inferencegym.envs import catalogue
from inferencegym.envs.openenv import llm_shots
from inferencegym.envs.openenv.llm_prompt import answer, situation, system_prompt
from inferencegym.envs.openenv.llm_shots import decisions, drawn, examples, guide_of
from inferencegym.ground.errors import ConfigError

KNOBS, PAGING = KnobsSurface(), PagingSurface()


def test_the_objectives_are_those_of_the_tasks_file():
    said = system_prompt(KNOBS, catalogue.task("bursty_workload"))
    assert "class vip (weight 3) must have their first token within 300 ms" in said
    assert "+0.8 x share finished in time" in said
    assert "-0.2 in INT4" in said
    medium = system_prompt(PAGING, catalogue.task("medium"))
    assert "Free requests must be admitted within 100 ticks, VIP within 50." in medium
    assert "admitted within" not in system_prompt(PAGING, catalogue.task("easy"))
    for surface, whole in ((KNOBS, said), (PAGING, medium)):
        assert all(f"- {c.name}, {c.unit}: {c.what}" in whole for c in surface.columns)


def test_a_situation_names_every_column_and_what_the_mask_leaves():
    mask = np.ones(KNOBS.mask_size, np.int8)
    mask[OFFSETS[LEVERS.index("prefill_decode_split")] + 1] = 0
    lines = situation(KNOBS, np.zeros(len(KNOBS.columns), np.float32), mask).splitlines()
    assert [line.partition(":")[0] for line in lines[:-1]] == list(KNOBS.columns.names)
    assert lines[-1] == "prefill_decode_split may now only be: false"
    few = np.zeros(18, np.int8)
    few[[8, 17]] = 1
    assert situation(PAGING, np.zeros(20, np.float32), few).endswith("possible now: 8 admit_free, 17 nothing")


def test_an_answer_says_what_the_action_leaves_alone_as_it_stands():
    natural = np.zeros(len(KNOBS.columns))
    stands = {
        "batch_cap": 64,
        "kv_budget_fraction": 0.7,
        "speculation_depth": 2,
        "quantization_tier": 1,
        "priority_routing": 1,
    }
    for name, value in stands.items():
        natural[KNOBS.columns.index(name)] = value
    said = answer(KNOBS, {"batch_cap": 128}, KNOBS.columns.encode(natural))
    assert json.loads(said) == {
        "batch_cap": 128, "kv_budget_fraction": 0.7, "speculation_depth": 2, "quantization_tier": "INT8", "prefill_decode_split": False,
        "priority_routing": True,
    }  # fmt: skip
    assert KNOBS.parse(said).given() == json.loads(said)
    assert PAGING.parse(answer(PAGING, 9, np.zeros(20, np.float32))) == 9


@pytest.mark.parametrize("name", ["bursty_workload", "easy"])
def test_examples_are_the_same_every_time_differ_among_themselves_and_can_be_read(name):
    task = catalogue.task(name)
    assert guide_of(task) == "learned"
    found = examples(task, 4)
    assert found == examples(task, 4)
    assert len({said for _, said in found}) == 4
    for _, said in found:
        task.surface.parse(said)
    assert found[:2] == examples(task, 2)
    assert examples(task, 0) == []


def test_examples_come_from_training_scenarios_alone(monkeypatch):
    asked = []
    real = llm_shots.record
    monkeypatch.setattr(llm_shots, "record", lambda *a, **how: asked.append((how["split"], how["scenario"])) or real(*a, **how))  # fmt: skip
    found = decisions(catalogue.task("easy"), "lru")
    assert asked == [("train", 0), ("train", 1)]
    assert len(found) > 100
    masks = [one.mask[int(one.action)] for one in found]
    assert min(masks) == 1


def test_a_draw_takes_each_kind_of_action_in_turn_and_nothing_twice():
    task = catalogue.task("easy")
    found = decisions(task, "lru", [0])
    kinds = {int(one.action) for one in found}
    chosen = drawn(found, len(kinds))
    assert {int(one.action) for one in chosen} == kinds
    more = drawn(found, 50)
    assert len({id(one) for one in more}) == 50
    assert len(drawn(found[:3], 50)) == 3


def test_a_planner_can_be_the_guide():
    found = decisions(catalogue.task("easy"), "clairvoyant", [0])
    assert len(found) > 100


def test_what_cannot_be_shown_is_said(short_task_without_anchors):
    with pytest.raises(ConfigError, match="guide: no trained policy and no best static"):
        examples(short_task_without_anchors, 2)
    with pytest.raises(ConfigError, match=r"shots: 65 is out of range; allowed: 0\.\.64"):
        examples(short_task_without_anchors, 65)


@pytest.fixture
def short_task_without_anchors(tmp_path):
    text = (catalogue.FOLDER / "easy.toml").read_text()
    path = tmp_path / "short.toml"
    path.write_text(text.replace('"easy"', '"short"').replace("horizon_ticks = 2000", "horizon_ticks = 200"))
    return catalogue.task(path)
