"""A language model at the wheel against a scripted endpoint: every task of both families to its end, failures counted, and answers held to a schema."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("openenv.core", reason="the extra 'openenv' is not installed")

from inferencegym.decision.knobs import GRID, LEVERS, OFFSETS, KnobsSurface
from inferencegym.envs.openenv import baseline, tasks
from inferencegym.envs.openenv.llm import LanguageModel, action_schema
from inferencegym.envs.openenv.llm_usage import EndpointError, Price, Usage
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
    # The second question says what was wrong with the first answer.
    first, second = (body["messages"] for body in endpoint.bodies[-2:])
    assert second[: len(first)] == first
    assert [(one["role"], one["content"]) for one in second[len(first) :]] == [
        ("assistant", "well, well"),
        ("user", "That could not be read: answer: holds no JSON object with knobs; allowed: "
         '{"batch_cap": 64, "kv_budget_fraction": 0.9, ...}. Answer with the JSON alone.'),
    ]  # fmt: skip


def test_tokens_and_seconds_are_those_of_the_endpoint_and_of_the_clock(endpoint):
    endpoint.script = lambda body, number: Script(text=GOOD["llmserve"], tokens=7)
    ticks = iter([0.0, 1.0, 10.0, 13.0])
    actor = LanguageModel("knobs", model="m", base_url=endpoint.url, clock=lambda: next(ticks))
    surface = KnobsSurface()
    for _ in range(2):
        actor.act(np.zeros(len(surface.columns), np.float32), np.ones(surface.mask_size, np.int8))
    told = sum(len(one["content"].split()) for body in endpoint.bodies[-2:] for one in body["messages"])
    assert actor.usage.report(Price(2.0, 8.0)) == {
        "questions": 2, "parse_failures": 0, "illegal": 0, "retries": 0, "prompt_tokens": told, "completion_tokens": 14, "unmetered": 0,
        "latency_mean_s": 2.0, "latency_p95_s": pytest.approx(2.9), "cost_usd": pytest.approx((2.0 * told + 8.0 * 14) / 1e6),
    }  # fmt: skip
    actor.start(1)
    assert actor.usage.report() == Usage().report()


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_endpoint_is_asked_again_and_that_is_counted(endpoint, status):
    endpoint.bodies.clear()
    endpoint.script = lambda body, number: Script(text=GOOD["llmserve"], status=status if number == 0 else 200)
    actor = LanguageModel("knobs", model="m", base_url=endpoint.url)
    surface = KnobsSurface()
    action = actor.act(np.zeros(len(surface.columns), np.float32), np.ones(surface.mask_size, np.int8))
    assert action.batch_cap == 128
    assert (actor.usage.questions, actor.usage.retries, len(endpoint.bodies)) == (1, 1, 2)


def test_an_endpoint_that_stays_busy_is_an_error_that_names_it(endpoint):
    endpoint.script = lambda body, number: Script(status=503)
    actor = LanguageModel("knobs", model="m", base_url=endpoint.url, retries=0)
    surface = KnobsSurface()
    with pytest.raises(EndpointError, match=f"the model 'm' at {endpoint.url}/ did not answer: .*503"):
        actor.act(np.zeros(len(surface.columns), np.float32), np.ones(surface.mask_size, np.int8))


def test_answers_that_the_mask_does_not_allow_are_counted_and_do_nothing(endpoint):
    endpoint.script = lambda body, number: Script(text='{"action": 8}')
    actor = LanguageModel("paging", model="m", base_url=endpoint.url, ask_every=1)
    mask = np.zeros(18, np.int8)
    mask[[3, 17]] = 1
    assert actor.act(np.zeros(20, np.float32), mask) == 17
    assert (actor.usage.illegal, actor.usage.parse_failures) == (1, 0)


def test_history_tells_the_last_decisions_with_the_means_of_what_followed(endpoint):
    surface = KnobsSurface()
    names = surface.columns.names
    endpoint.bodies.clear()
    endpoint.script = lambda body, number: Script(text=json.dumps({"batch_cap": 32 + number}))
    actor = LanguageModel("knobs", model="m", base_url=endpoint.url, ask_every=2, history=2)
    mask = np.ones(surface.mask_size, np.int8)
    for compliance in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 0.5):
        natural = np.zeros(len(names))
        natural[names.index("slo_compliance_rate")] = compliance
        actor.act(surface.columns.encode(natural), mask)
    told = [body["messages"][-1]["content"].splitlines() for body in endpoint.bodies]
    assert told[0][0] == "queue_depth: 0"
    assert told[1][0] == told[3][0] == "Your last decisions, and what came of each:"
    # The first decision held while 0.2 and 0.4 were seen; the newest comes last, and no more than two are told.
    lines = [line for line in told[3] if "->" in line]
    assert [line[: line.index(",")] for line in lines] == ['{"batch_cap": 33', '{"batch_cap": 34']
    assert ["slo_compliance_rate 0.7," in lines[0], "slo_compliance_rate 0.75," in lines[1]] == [True, True]
    assert "slo_compliance_rate 0.3," in next(line for line in told[1] if "->" in line)
    actor.start(0)
    actor.act(surface.columns.encode(np.zeros(len(names))), mask)
    assert "->" not in endpoint.bodies[-1]["messages"][-1]["content"]


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
