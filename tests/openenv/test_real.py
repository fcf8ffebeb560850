"""Real mode against a scripted endpoint: what is measured, what the knobs do, what the caps hold, and what happens when requests fail."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

pytest.importorskip("openenv.core", reason="the extra 'openenv' is not installed")

from inferencegym.decision.knobs import GRID, LEVERS, OFFSETS, Knobs
from inferencegym.envs.openenv import tasks
from inferencegym.envs.openenv.app import make_app
from inferencegym.envs.openenv.models import ServeAction, ServeObservation
from inferencegym.envs.openenv.real import RealSettings, Request, text_of
from inferencegym.envs.openenv.real_plant import UNOBSERVED, RealPlant, submit
from inferencegym.envs.openenv.real_task import RealBatch, RealServeEnvironment, RealTask
from inferencegym.ground.errors import ConfigError
from tests.openenv.scripted import Script, ScriptedServer

START = Knobs(64, 1.0, 0, "FP16", False, False)


@pytest.fixture
def endpoint():
    server = ScriptedServer()
    yield server
    server.stop()


def asked(row, *, priority=0, tokens=4, prompt=8, ttft=5.0, tpot=5.0):
    return Request(row, text_of(prompt, 0, row), prompt, tokens, priority, ttft, tpot, 1.0)


def settings(endpoint, **more):
    return RealSettings(**({"model": "m", "base_url": endpoint.url, "prices": {"m": (1.0, 10.0)}} | more))


def windows(plant, *dues, length_s=0.4):
    """Play windows one after the other, then close."""
    try:
        return [submit(plant.window(due, length_s)).result(30) for due in dues]
    finally:
        submit(plant.close()).result(30)


def test_ttft_and_itl_are_those_of_the_script(endpoint):
    endpoint.script = lambda body, number: Script(first_s=0.15, gap_s=0.05)
    plant = RealPlant(settings(endpoint), START)
    request = asked(0, tokens=6)
    (window,) = windows(plant, [(0.0, request)], length_s=1.2)
    assert window.finished == [request]
    assert request.emitted == 6
    # Not earlier than scripted, up to timer grain; the upper bounds leave room for a busy machine.
    assert 0.15 <= request.ttft_s < 0.15 + 0.5
    assert sum(window.gaps_s) == pytest.approx(0.25, abs=0.1)
    assert len(window.gaps_s) == 5
    seen = plant.snapshot()
    assert seen.p50_ttft_ms == pytest.approx(1e3 * request.ttft_s)
    assert 25 < seen.p50_itl_ms < 100
    assert seen.throughput_tps == pytest.approx(6 / window.length_s)
    assert seen.goodput_rps == pytest.approx(1 / window.length_s)


def test_waiting_in_our_queue_counts_into_ttft_and_shows_in_the_next_window(endpoint):
    endpoint.script = lambda body, number: Script(first_s=0.25, gap_s=0.0)
    plant = RealPlant(settings(endpoint), replace(START, batch_cap=1))
    both = [asked(0), asked(1)]
    first, second = windows(plant, [(0.0, one) for one in both], [], length_s=0.35)
    assert [request.row for request in first.finished] == [0]
    assert [request.row for request in second.finished] == [1]
    assert both[1].ttft_s > both[0].ttft_s + 0.2
    assert first.most_running == second.most_running == 1


@pytest.mark.parametrize("cap", [1, 3])
def test_the_batch_cap_is_the_most_that_runs_at_once(endpoint, cap):
    endpoint.script = lambda body, number: Script(first_s=0.05, gap_s=0.0)
    plant = RealPlant(settings(endpoint), START)
    assert plant.apply(Knobs(batch_cap=cap)).accepted == {"batch_cap": cap}
    (window,) = windows(plant, [(0.0, asked(i)) for i in range(6)], length_s=1.5)
    assert len(window.finished) == 6
    assert endpoint.most_running == window.most_running == cap


def test_priority_routing_sends_the_urgent_class_first(endpoint):
    endpoint.script = lambda body, number: Script(first_s=0.02, tokens=1)
    texts = {}
    for routing, order in ((False, [0, 1, 2, 3, 4]), (True, [0, 2, 4, 1, 3])):
        endpoint.bodies.clear()
        plant = RealPlant(settings(endpoint), replace(START, batch_cap=1, priority_routing=routing))
        requests = [asked(i, priority=i % 2) for i in range(5)]
        texts = {request.text: request.row for request in requests}
        windows(plant, [(0.0, request) for request in requests], length_s=1.0)
        # The first runs before the others have come.
        assert [texts[body["messages"][0]["content"]] for body in endpoint.bodies] == order


def test_the_kv_budget_limits_the_tokens_in_flight_but_one_request_always_runs(endpoint):
    endpoint.script = lambda body, number: Script(first_s=0.05)
    # 20 tokens a request; 100 of KV: five at once with all of it, two with 0.4, one with 0.1 although it is too large.
    for fraction, most in ((1.0, 5), (0.4, 2), (0.1, 1)):
        endpoint.most_running = 0
        plant = RealPlant(settings(endpoint, kv_tokens=100), replace(START, kv_budget_fraction=fraction))
        (window,) = windows(plant, [(0.0, asked(i, prompt=10, tokens=10)) for i in range(8)], length_s=1.5)
        assert len(window.finished) == 8
        assert window.most_running == most


def test_tiers_choose_the_model_and_what_cannot_be_turned_is_refused(endpoint):
    plant = RealPlant(settings(endpoint, variants={"INT8": "m-q8"}), START)
    applied = plant.apply(Knobs(quantization_tier="INT8", speculation_depth=3, prefill_decode_split=True, batch_cap=7))
    assert dict(applied.accepted) == {"quantization_tier": "INT8", "batch_cap": 7}
    assert set(applied.refused) == {"speculation_depth", "prefill_decode_split"}
    assert "INT4" in plant.apply(Knobs(quantization_tier="INT4")).refused["quantization_tier"]
    assert plant.levers.quantization_tier == "INT8"
    assert not plant.apply(Knobs(prefill_decode_split=False, speculation_depth=0)).refused
    windows(plant, [(0.0, asked(0))])
    assert [body["model"] for body in endpoint.bodies] == ["m-q8"]


def test_a_draft_length_travels_where_the_backend_takes_one(endpoint):
    plant = RealPlant(settings(endpoint, draft_field="speculative.n_max"), START)
    assert plant.apply(Knobs(speculation_depth=5)).accepted == {"speculation_depth": 5}
    windows(plant, [(0.0, asked(0))])
    assert endpoint.bodies[0]["speculative.n_max"] == 5


def test_failures_are_counted_with_their_reasons_and_the_window_still_ends(endpoint):
    scripts = {
        0: Script(status=503),
        1: Script(break_after=2),
        2: Script(first_s=30.0),
        3: Script(tokens=0),
        4: Script(),
    }
    endpoint.script = lambda body, number: scripts[number]
    plant = RealPlant(settings(endpoint, timeout_s=0.3), replace(START, batch_cap=1))
    requests = [asked(i) for i in range(5)]
    begin = time.monotonic()
    (window,) = windows(plant, [(0.0, request) for request in requests], length_s=1.5)
    assert time.monotonic() - begin < 15
    assert [request.row for request in window.failed] == [0, 1, 2, 3]
    assert [request.row for request in window.finished] == [4]
    told = [request.problem for request in window.failed]
    assert "503" in told[0]
    assert "Context size" in told[1]
    assert "0.3 s" in told[2]
    assert "empty" in told[3]
    # Of three first tokens that count as missed (0, 2, 3) and two that came (1 and 4).
    assert plant.snapshot().slo_compliance_rate == pytest.approx(2 / 5)


def test_an_endpoint_that_is_not_there_fails_requests_not_the_window():
    plant = RealPlant(RealSettings(model="m", base_url="http://127.0.0.1:9/v1"), START)
    (window,) = windows(plant, [(0.0, asked(0))])
    assert len(window.failed) == 1
    assert window.finished == []


def test_cost_is_the_endpoints_own_count_times_the_price(endpoint):
    plant = RealPlant(settings(endpoint), START)
    requests = [asked(i, prompt=10, tokens=5) for i in range(2)]
    (window,) = windows(plant, [(0.0, request) for request in requests])
    assert plant.cost_usd(window.finished) == pytest.approx(2 * (10 * 1.0 + 5 * 10.0) / 1e6)
    assert plant.snapshot().estimated_cost_per_1k == pytest.approx(1e3 * 2 * 60e-6 / 10)
    endpoint.script = lambda body, number: Script(usage=False)
    plant = RealPlant(settings(endpoint), START)
    (window,) = windows(plant, [(0.0, asked(0))])
    assert plant.cost_usd(window.finished) is None
    assert plant.cost_usd([]) == 0.0


def test_a_tasks_requests_are_its_own_thinned_to_the_caps(endpoint):
    simulated = tasks.find("llmserve", "adversarial_multitenant")
    own = settings(endpoint, max_requests_per_step=5, max_prompt_tokens=200, max_completion_tokens=16, window_s=0.5)
    due = RealTask(simulated, own).requests(0)
    counts = [len(window) for window in due]
    assert len(due) == simulated.steps
    assert max(counts) == 5
    assert min(counts) < 3  # the tide of the task is still there
    workload = simulated.workload(0)
    for w, window in enumerate(due):
        for offset, request in window:
            assert 0 <= offset <= 0.5
            assert workload.arrival_s[request.row] // simulated.file.window_s == w
            assert len(request.text.split()) <= 200 - 48
            assert request.most_tokens == min(16, workload.output_tokens[request.row])
            assert request.priority == workload.priority[request.row]
    assert len({request.text for window in due for _, request in window}) == sum(counts)
    again = RealTask(simulated, own).requests(0)
    assert [r.text for w in again for _, r in w] == [r.text for w in due for _, r in w]


def played(environment, steps, **action):
    environment.reset(seed=0, task_id="bursty_workload")
    return [environment.step(ServeAction(**action)) for _ in range(steps)]


@pytest.fixture
def environment(endpoint):
    kind = type(
        "Real", (RealServeEnvironment,), {"settings": settings(endpoint, window_s=0.15, max_completion_tokens=4)}
    )
    made = kind()
    yield made
    made.close()


def test_an_episode_has_the_simulated_ones_columns_terms_and_says_what_it_cannot_know(environment):
    seen = played(environment, 6, batch_cap=2, speculation_depth=2, kv_budget_fraction=0.5)
    last = seen[-1]
    ServeObservation.model_validate(last.model_dump())
    assert last.metadata["mode"] == "real"
    assert set(last.metadata["refused"]) == {"speculation_depth"}
    assert set(UNOBSERVED) <= set(last.metadata["unobserved"])
    for name in UNOBSERVED:
        assert getattr(last, name) == 0.0
    assert last.batch_cap == pytest.approx(2, rel=1e-5)
    assert last.kv_budget_fraction == pytest.approx(0.5)
    assert sum(one.metadata["requests"]["finished"] for one in seen) > 5
    assert sum(last.reward_terms.values()) == pytest.approx(last.reward)
    assert last.reward_terms["cost"] > 0
    assert any(one.reward_terms["slo"] > 0 for one in seen)
    at = OFFSETS[LEVERS.index("speculation_depth")]
    assert last.action_mask[at : at + len(GRID["speculation_depth"])] == [1] + [0] * 8
    assert "bursty_workload" in environment.render_web({})


def test_the_end_has_a_value_but_never_a_grade(environment, monkeypatch):
    monkeypatch.setattr(RealTask, "__init__", _short(RealTask.__init__))
    *_, last = played(environment, 3)
    assert (last.done, last.truncated) == (True, True)
    told = last.metadata["grade"]
    assert told["graded"] is False
    assert "simulated" in told["why_not_graded"]
    assert told["value"] == pytest.approx(sum(told["parts"].values()))
    assert told["facts"]["failed"] == 0
    assert told["facts"]["finished"] + told["facts"]["given_up_at_the_end"] == told["facts"]["arrived"]
    assert told["digest"] != tasks.find("llmserve", "bursty_workload").digest
    assert "over" in environment.step(ServeAction()).metadata["message"]


def test_an_episode_played_again_finds_no_prompt_of_its_own_in_a_cache(environment, endpoint):
    for _ in range(2):
        played(environment, 3)
    texts = [body["messages"][0]["content"] for body in endpoint.bodies]
    assert len(texts) > 4
    assert len({text.split()[0] for text in texts}) == 2
    rests = [text.split(maxsplit=1)[1] for text in texts]
    assert len(set(texts)) == len(texts) > len(set(rests))


def _short(inner):
    def init(self, task, settings):
        inner(self, task, settings)
        self.steps = 3

    return init


def test_a_waiting_step_holds_up_nobody_else(endpoint):
    """Ten sessions step at once on one event loop: together they take about as long as one."""
    task = RealTask(
        tasks.find("llmserve", "bursty_workload"), settings(endpoint, window_s=0.5, max_completion_tokens=2)
    )
    batches = [RealBatch(task) for _ in range(10)]
    for i, batch in enumerate(batches):
        batch.start(0, i)

    async def together():
        begin = time.monotonic()
        await asyncio.gather(*(batch.step_async() for batch in batches))
        return time.monotonic() - begin

    took_s = asyncio.run(together())
    for batch in batches:
        batch.close()
    assert 0.5 <= took_s < 3.0  # one after the other: 5 s


def test_closing_a_session_during_a_step_is_an_error_for_that_step_only(environment):
    environment.reset(seed=0)

    async def cut():
        step = asyncio.create_task(environment.step_async(ServeAction()))
        await asyncio.sleep(0.05)
        environment.close()
        await step

    with pytest.raises(RuntimeError, match="closed"):
        asyncio.run(cut())


def test_without_a_key_a_hosted_endpoint_is_one_clear_error(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LLMSERVE_MODE", "real")
    with pytest.raises(ConfigError, match=r"OPENAI_API_KEY.*api\.openai\.com.*a key, or"):
        make_app("llmserve")
    with pytest.raises(ConfigError, match="no real mode of pagedkv"):
        make_app("pagedkv")


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("LLMSERVE_REAL_MAX_PROMPT_TOKENS", "0", "1..131072"),
        ("LLMSERVE_REAL_MAX_REQUESTS_PER_STEP", "many", "no number"),
        ("LLMSERVE_REAL_VARIANTS", "FP8=x", "FP16, INT8, INT4"),
        ("LLMSERVE_REAL_PRICES", "[1]", "US"),
        ("LLMSERVE_REAL_PROVIDER", "acme", "openai, compatible"),
        ("OPENAI_BASE_URL", "nowhere", "no address"),
    ],
)
def test_wrong_settings_name_the_variable_and_what_is_allowed(variable, value, said):
    good = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "LLMSERVE_REAL_MODEL": "m"}
    RealSettings.from_environment(good)
    with pytest.raises(ConfigError, match=said) as error:
        RealSettings.from_environment(good | {variable: value})
    assert variable in str(error.value)


def test_the_key_is_nowhere_to_be_seen():
    own = RealSettings(model="m", base_url="http://me:secret@127.0.0.1/v1", api_key="sk-secret")
    assert "secret" not in repr(own.told())
    assert "sk-secret" not in repr(own)


def test_the_server_plays_real_episodes_over_http(endpoint, monkeypatch, http):
    from tests.openenv.conftest import Limits, Running

    for name, value in {
        "LLMSERVE_MODE": "real", "OPENAI_BASE_URL": endpoint.url, "LLMSERVE_REAL_MODEL": "m", "LLMSERVE_REAL_WINDOW_S": "0.2",
        "LLMSERVE_REAL_MAX_REQUESTS_PER_STEP": "3", "OPENAI_API_KEY": "sk-mine",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    server = Running("llmserve", Limits(sessions=4))
    try:
        about = http.get(f"{server.url}/runtime").json()
        assert (about["mode"], about["real"]["model"]) == ("real", "m")
        assert about["real"]["caps"]["max_requests_per_step"] == 3
        assert "sk-mine" not in str(about)
        session = http.post(f"{server.url}/reset", json={"seed": 1}).json()["session_id"]
        told = [
            http.post(f"{server.url}/step", json={"session_id": session, "action": {"batch_cap": 4}}).json()
            for _ in range(3)
        ]
        assert all(one["metadata"]["mode"] == "real" for one in told)
        assert 0 < sum(one["metadata"]["requests"]["arrived"] for one in told) <= 9
        assert all(body["stream"] for body in endpoint.bodies)
        assert endpoint.keys[0] == "Bearer sk-mine"
        # Without a session: a fresh environment for one call, on the endpoint as well.
        alone = http.post(f"{server.url}/step", json={"action": {"batch_cap": 4}}).json()
        assert (alone["metadata"]["mode"], alone["session_id"]) == ("real", None)
    finally:
        server.stop()
