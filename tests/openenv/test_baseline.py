"""The baseline runner: log lines that validators read, the same result in process and over HTTP, and a language model end to end on a scripted endpoint."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("openenv.core", reason="the extra 'openenv' is not installed")

from inferencegym.envs.openenv import baseline
from inferencegym.envs.openenv.llm import LanguageModel
from inferencegym.envs.openenv.llm_usage import EndpointError
from inferencegym.ground.errors import ConfigError

STEP = re.compile(r"^\[STEP\] step=(\d+) action=(\{.*\}) reward=(-?\d\.\d{4}) done=(true|false) error=null$")
END = re.compile(r"^\[END\] success=(true|false) steps=(\d+) score=(\d\.\d{4}) rewards=(.*)$")


class Scripted(BaseHTTPRequestHandler):
    """Answers chat completions: nonsense to every fifth question, else a good setting."""

    asked = 0
    prompts: list[str] = []  # noqa: RUF012

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        kind = type(self)
        kind.asked += 1
        kind.prompts.append(body["messages"][0]["content"])
        good = (
            '{"action": 9}'
            if "paged KV" in kind.prompts[-1]
            else 'I choose {"batch_cap": 128, "kv_budget_fraction": 1.0}.'
        )
        text = "no idea" if kind.asked % 5 == 0 else good
        answer = json.dumps(
            {
                "id": "x", "object": "chat.completion", "created": 0, "model": body["model"],
                "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            }
        ).encode()  # fmt: skip
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint():
    Scripted.asked, Scripted.prompts = 0, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_log_has_a_start_an_end_and_every_step(capsys, tmp_path):
    out = tmp_path / "result.json"
    assert baseline.main(["--task-id", "static_workload", "--seed", "3", "--output", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"[START] task=static_workload env=llmserve model={baseline.RULES['llmserve']}"
    steps = [STEP.match(line) for line in lines[1:-1]]
    assert all(steps)
    assert [int(step[1]) for step in steps] == list(range(1, 61))
    assert [step[4] for step in steps] == ["false"] * 59 + ["true"]
    end = END.match(lines[-1])
    result = json.loads(out.read_text())["baseline"]["static_workload"]
    assert (end[1], int(end[2])) == ("true", 60)
    assert float(end[3]) == pytest.approx(result["grader"]["score"], abs=1e-4)
    assert sum(float(reward) for reward in end[4].split(",")) == pytest.approx(result["total_reward"], abs=0.01)


@pytest.mark.parametrize(("family", "task"), [("llmserve", "bursty_workload"), ("pagedkv", "easy")])
def test_over_http_it_is_the_same_episode(family, task, serve_server, paging_server, tmp_path, capsys):
    server = serve_server if family == "llmserve" else paging_server
    common = ["--family", family, "--task-id", task]
    assert baseline.main([*common, "--output", str(tmp_path / "here.json")]) == 0
    here = capsys.readouterr().out
    assert (
        baseline.main([*common, "--runtime", "http", "--env-url", server.url, "--output", str(tmp_path / "there.json")])
        == 0
    )
    assert capsys.readouterr().out == here
    assert json.loads((tmp_path / "here.json").read_text()) == json.loads((tmp_path / "there.json").read_text())


def test_an_environment_that_cannot_start_still_has_its_start_and_end(capsys):
    arguments = ["--runtime", "http", "--env-url", "http://127.0.0.1:9", "--task-id", "static_workload"]
    assert baseline.main(arguments) == 0
    told = capsys.readouterr()
    assert [line.split()[0] for line in told.out.splitlines()] == ["[START]", "[END]"]
    assert "success=false steps=0 score=0.0000" in told.out
    assert "127.0.0.1:9" in told.err
    assert baseline.main([*arguments, "--strict"]) == 1


def test_a_language_model_plays_all_serving_tasks_and_its_failures_are_counted(endpoint):
    actor = LanguageModel("knobs", model="scripted", base_url=endpoint)
    for name in baseline.tasks.ladder("llmserve"):
        Scripted.asked = 0
        result = baseline.play(baseline.InProcess("llmserve"), actor, name, 0)
        assert result["steps"] == {"static_workload": 60}.get(name, 120)
        assert result["questions"] == Scripted.asked
        assert result["parse_failures"] == Scripted.asked // 5
        assert 0.0 <= result["grader"]["score"] <= 1.0
    assert "p99_ttft_ms" in Scripted.prompts[0]
    assert "batch_cap" in Scripted.prompts[0]


def test_a_language_model_plays_a_paging_task_to_the_end(endpoint):
    actor = LanguageModel("paging", model="scripted", base_url=endpoint, ask_every=200)
    result = baseline.play(baseline.InProcess("pagedkv"), actor, "easy", 0)
    assert result["steps"] == 4000
    assert result["questions"] == Scripted.asked


def test_the_suite_with_a_model_is_what_the_route_answers(endpoint, monkeypatch, serve_server, http):
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint)
    monkeypatch.setenv("OPENAI_MODEL", "scripted")
    told = http.get(f"{serve_server.url}/baseline", params={"use_openai": "true", "task_id": "static_workload"}).json()
    assert (told["mode"], told["model"]) == ("openai", "scripted")
    assert told["baseline"]["static_workload"]["steps"] == 60


def test_no_key_and_no_endpoint_are_clear_errors(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "API_BASE_URL", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        LanguageModel("knobs")
    actor = LanguageModel("knobs", base_url="http://127.0.0.1:9/v1")
    actor._client = actor._client.with_options(max_retries=0)
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:9"):
        baseline.play(baseline.InProcess("llmserve"), actor, "static_workload", 0)
