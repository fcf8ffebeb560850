"""A language model at the wheel against a scripted endpoint: every task of both families to its end, failures counted, and answers held to a schema."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("openenv.core", reason="the extra 'openenv' is not installed")

from inferencegym.decision.knobs import GRID, LEVERS, OFFSETS, KnobsSurface
from inferencegym.envs.openenv import baseline, tasks
from inferencegym.envs.openenv.llm import LanguageModel, action_schema
from tests.openenv.scripted import Script, ScriptedServer

SURFACE = {"llmserve": "knobs", "pagedkv": "paging"}
EVERY = {"llmserve": 5, "pagedkv": 500}
GOOD = {"llmserve": '{"batch_cap": 128, "kv_budget_fraction": 1.0}', "pagedkv": '{"action": 9}'}


@pytest.fixture(scope="module")
def endpoint():
    server = ScriptedServer()
    yield server
    server.stop()


@pytest.mark.parametrize("family", list(SURFACE))
def test_every_task_is_played_to_its_end_and_failures_are_counted(family, endpoint):
    endpoint.script = lambda body, number: Script(text="I am not sure." if number % 4 == 3 else GOOD[family])
    actor = LanguageModel(SURFACE[family], model="m", base_url=endpoint.url, ask_every=EVERY[family])
    names = tasks.offered(family)
    assert set(tasks.ladder(family)) <= set(names)
    for name in names:
        endpoint.bodies.clear()
        result = baseline.play(baseline.InProcess(family), actor, name, 0)
        assert result["questions"] == len(endpoint.bodies)
        assert result["parse_failures"] == len(endpoint.bodies) // 4
        # A question that failed was asked once more.
        asked = -(-result["steps"] // EVERY[family])
        assert asked <= result["questions"] <= asked + result["parse_failures"]
        assert result["steps"] <= tasks.find(family, name).steps
        assert 0.0 <= result["grader"]["score"] <= 1.0


def test_two_unreadable_answers_change_nothing(endpoint):
    endpoint.script = lambda body, number: Script(text="well, well")
    actor = LanguageModel("knobs", model="m", base_url=endpoint.url)
    surface = KnobsSurface()
    action = actor.act(np.zeros(len(surface.columns), np.float32), np.ones(surface.mask_size, np.int8))
    assert action.given() == {}
    assert (actor.questions, actor.parse_failures) == (2, 2)


def test_the_schema_holds_what_the_mask_allows_and_travels_only_when_asked_for(endpoint):
    endpoint.script = lambda body, number: Script(text=GOOD["llmserve"])
    surface = KnobsSurface()
    mask = np.ones(surface.mask_size, np.int8)
    at = OFFSETS[LEVERS.index("prefill_decode_split")]
    mask[at + 1] = 0
    seen = np.zeros(len(surface.columns), np.float32)
    endpoint.bodies.clear()
    LanguageModel("knobs", model="m", base_url=endpoint.url).act(seen, mask)
    LanguageModel("knobs", model="m", base_url=endpoint.url, schema=True).act(seen, mask)
    without, given = endpoint.bodies
    assert "response_format" not in without
    schema = given["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["prefill_decode_split"]["enum"] == [False]
    assert schema["properties"]["batch_cap"]["enum"] == [int(v) for v in GRID["batch_cap"]]
    assert schema["required"] == list(LEVERS)
    # Whatever fits the schema can be read and is legal.
    for pick in (0, -1):
        answer = {name: field["enum"][pick] for name, field in schema["properties"].items()}
        assert surface.legal(surface.parse(json.dumps(answer)), mask)
    paging = np.zeros(18, np.int8)
    paging[[3, 17]] = 1
    assert action_schema("paging", paging)["properties"]["action"]["enum"] == [3, 17]


def test_the_command_line_passes_schema_and_cadence_on(endpoint, tmp_path, capsys):
    endpoint.script = lambda body, number: Script(text=GOOD["llmserve"])
    endpoint.bodies.clear()
    out = tmp_path / "llm.json"
    arguments = ["--mode", "openai", "--base-url", endpoint.url, "--model", "m", "--task-id", "static_workload"]
    assert baseline.main([*arguments, "--json-schema", "--ask-every", "20", "--output", str(out)]) == 0
    assert len(endpoint.bodies) == 3
    assert all("response_format" in body for body in endpoint.bodies)
    result = json.loads(out.read_text())["baseline"]["static_workload"]
    assert (result["steps"], result["questions"], result["parse_failures"]) == (60, 3, 0)
    assert capsys.readouterr().out.startswith("[START] task=static_workload")
