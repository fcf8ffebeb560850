"""`llm:MODEL,...` as a policy's name: the grammar, an evaluation beside other policies with its questions counted, and errors before anything is played."""

from __future__ import annotations

import html
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

pytest.importorskip("openenv.core", reason="the extra 'openenv' is not installed")

from inferencegym.cli.evaluate import chosen_policies, chosen_price
from inferencegym.cli.main import app
from inferencegym.envs import catalogue
from inferencegym.envs.actors import actor
from inferencegym.envs.openenv import llm, llm_actor
from inferencegym.envs.openenv.llm_actor import parsed
from inferencegym.envs.openenv.llm_usage import EndpointError, Price
from inferencegym.ground.errors import ConfigError, UnknownNameError
from inferencegym.learn.evaluate import EpisodeResult, Evaluation, evaluate
from inferencegym.learn.page import page
from tests.openenv.scripted import Script, ScriptedServer
from tests.starting import free_port


@pytest.fixture(scope="module")
def endpoint():
    server = ScriptedServer()
    yield server
    server.stop()


@pytest.fixture
def here(endpoint, monkeypatch):
    """The scripted endpoint, found through the environment."""
    endpoint.bodies.clear()
    endpoint.script = lambda body, number: Script(text="hm" if number % 5 == 4 else '{"action": 8}', tokens=5)
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    return endpoint


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "short.toml"
    text = (catalogue.FOLDER / "easy.toml").read_text()
    path.write_text(text.replace('"easy"', '"short"').replace("horizon_ticks = 2000", "horizon_ticks = 200"))
    return str(path)


@contextmanager
def serving(handler):
    """The base URL of a server that is not an endpoint."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_grammar():
    assert parsed("llm:qwen/q:8b") == ("qwen/q:8b", {})
    assert parsed("llm:m,shots=4,schema=1,ask_every=10,history=2,guide=lru,timeout_s=2.5") == (
        "m", {"shots": 4, "schema": True, "ask_every": 10, "history": 2, "guide": "lru", "timeout_s": 2.5},
    )  # fmt: skip
    with pytest.raises(UnknownNameError, match=r"Unknown option of llm 'shot'; known: shots, .* Did you mean 'shots'"):
        parsed("llm:m,shot=4")
    with pytest.raises(ConfigError, match="llm: schema: 'yes' cannot be read; allowed: 0 or 1"):
        parsed("llm:m,schema=yes")
    with pytest.raises(ConfigError, match="names no model"):
        parsed("llm:")
    with pytest.raises(ConfigError, match="llm: timeout_s: 0"):
        parsed("llm:m,timeout_s=0")


def test_in_a_list_of_policies_it_keeps_its_commas():
    assert chosen_policies("lru,llm:a/b:8b,shots=4,schema=1,random,llm:c,fixed:admit_free") == [
        "lru", "llm:a/b:8b,shots=4,schema=1", "random", "llm:c", "fixed:admit_free",
    ]  # fmt: skip


def test_it_is_evaluated_beside_others_in_this_process_whatever_the_workers(here, short):
    name = "llm:m,shots=2,guide=lru,ask_every=40"
    found = evaluate(["lru", name, "random"], [short], scenarios=2, workers=2, price=Price(1.0, 3.0))
    assert [one.policy for one in found.episodes] == ["lru"] * 2 + [name] * 2 + ["random"] * 2
    assert {one.usage is None for one in found.episodes if one.policy != name} == {True}
    usages = [one.usage for one in found.of("short", name)]
    assert sum(one.questions for one in usages) == len(here.bodies) > 0
    asked = next(row.asked for row in found.table() if row.policy == name)
    assert asked["questions"] == len(here.bodies)
    assert asked["parse_failures"] == len(here.bodies) // 5
    assert asked["completion_tokens"] == 5 * len(here.bodies)
    assert asked["cost_usd"] == pytest.approx((asked["prompt_tokens"] + 3.0 * asked["completion_tokens"]) / 1e6)
    assert asked["latency_mean_s"] > 0
    # Objectives, two examples of two turns each, the question.
    assert [one["role"] for one in here.bodies[0]["messages"]] == ["system"] + ["user", "assistant"] * 2 + ["user"]
    alone = evaluate([name], [short], scenarios=2)
    assert [one.value for one in alone.episodes] == [one.value for one in found.of("short", name)]
    json.dumps(found.as_json())
    shown = page(found, command="x")
    assert "s/question (p95)" in shown
    assert "parse failures" in shown
    assert "s/question" not in page(evaluate(["lru"], [short], scenarios=1), command="x")


def test_the_command_line_shows_and_stores_what_was_asked(here, short, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    arguments = [
        "evaluate",
        "--policy",
        "do-nothing,llm:m,ask_every=100",
        "--task",
        short,
        "--seeds",
        "1",
        "--json",
        str(tmp_path / "out.json"),
    ]
    result = CliRunner().invoke(app, [*arguments, "--price-in", "0.5", "--price-out", "2"])
    assert result.exit_code == 0, result.output
    for word in ("questions to language models", "parse failures", "tokens in, out", "s/question (p95)", "US$"):
        assert word in result.output
    data = json.loads((tmp_path / "out.json").read_text())
    assert data["price"] == {"prompt_usd": 0.5, "completion_usd": 2.0}
    rows = {row["policy"]: row["asked"] for row in data["table"]}
    assert rows["do-nothing"] is None
    assert rows["llm:m,ask_every=100"]["questions"] == len(here.bodies)


def test_half_a_price_is_an_error():
    assert chosen_price(None, None) is None
    with pytest.raises(ConfigError, match="--price-out: is not given"):
        chosen_price(1.0, None)
    with pytest.raises(ConfigError, match="price-in: -1 is no price"):
        chosen_price(-1.0, 0.0)


def test_nobody_there_is_one_error_before_anything_is_played(short, monkeypatch):
    url = f"http://127.0.0.1:{free_port()}/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    played = []
    with pytest.raises(EndpointError, match=rf"nothing answers at {url}/ \(.*\); start the model's server there, or set OPENAI_BASE_URL"):  # fmt: skip
        evaluate(["lru", "llm:m,shots=4"], [short], scenarios=2, progress=lambda *said: played.append(said))
    assert played == []
    result = CliRunner().invoke(app, ["evaluate", "--policy", "llm:m", "--task", short, "--seeds", "1"])
    assert isinstance(result.exception, EndpointError)


def test_neither_key_nor_endpoint_is_said(short, monkeypatch):
    for name in ("OPENAI_BASE_URL", "API_BASE_URL", "OPENAI_API_KEY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY: is not set"):
        actor("llm:m", catalogue.task(short))


def test_a_key_that_is_refused_is_said(short, monkeypatch):
    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(401)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *said):
            pass

    with serving(Refusing) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        with pytest.raises(EndpointError, match=r"refuses the key \(401\); set OPENAI_API_KEY"):
            actor("llm:m", catalogue.task(short))


def test_without_the_extra_the_error_says_what_to_install(short):
    code = (
        "import sys\n"
        "sys.modules['openai'] = None\n"
        "from inferencegym.learn.evaluate import evaluate\n"
        f"evaluate(['lru', 'llm:m'], [{short!r}], scenarios=1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, timeout=120)
    assert done.returncode == 1
    assert (
        "MissingExtraError: the policy 'llm:m' needs the extra 'openenv'; type: pip install 'inferencegym[openenv]'"
        in done.stderr
    )


def test_an_endpoint_that_dies_costs_what_was_not_done_and_nothing_else(here, short, tmp_path, monkeypatch):
    monkeypatch.setattr(llm_actor, "LanguageModel", partial(llm.LanguageModel, retries=0))
    # A question every 100 of an episode's 400 decisions: the endpoint dies in the third episode of five.
    here.script = lambda body, number: Script(text='{"action": 8}', status=200 if number < 10 else 503)
    name = "llm:m,ask_every=100"
    alone = evaluate([name, "lru"], [short], scenarios=2)
    assert len(here.bodies) == 8
    here.bodies.clear()
    told = []
    found = evaluate([name, "lru"], [short], scenarios=5, progress=lambda *said: told.append(said))
    assert [one.scenario for one in found.of("short", name)] == [0, 1]
    assert [one.value for one in found.of("short", name)] == [one.value for one in alone.of("short", name)]
    assert [one.scenario for one in found.of("short", "lru")] == [0, 1, 2, 3, 4]
    assert [(one.policy, one.scenario) for one in found.unplayed] == [(name, 2), (name, 3), (name, 4)]
    # The question that failed, and then none: an endpoint that is gone is not waited for again.
    assert len(here.bodies) == 11
    assert [done for done, _, _ in told] == list(range(1, 8))
    (line,) = found.missing()
    assert line.startswith(f"short: {name}: 3 of 5 episodes: the model 'm' at {here.url}/ did not answer: ")
    assert f"No result of {html.escape(line)}" in page(found, command="x")
    assert next(row.episodes for row in found.table() if row.policy == name) == 2

    here.bodies.clear()
    out = tmp_path / "out.json"
    arguments = ["evaluate", "--policy", f"{name},lru", "--task", short, "--seeds", "5", "--json", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert "3 of 5 episodes" in result.stderr
    assert "lru" in result.stdout
    data = json.loads(out.read_text())
    assert len(data["episodes"]) == 7
    assert [one["scenario"] for one in data["unplayed"]] == [2, 3, 4]


def test_what_is_missing_is_held_against_best_static_on_the_scenarios_that_are_there():
    def episode(policy, scenario, value):
        return EpisodeResult("t", "d", policy, "test", scenario, value, None, None, 0.0, 1, False, {}, {})

    played = (episode("llm:m", 1, 0.5), episode("llm:m", 3, 0.7))
    found = Evaluation("test", (0, 1, 2, 3), played, {"t": (9.0, 0.4, 9.0, 0.6)})
    (row,) = found.table()
    assert row.difference.value == pytest.approx(0.1)


def test_an_endpoint_that_dies_before_anything_is_done_is_an_error(here, short, monkeypatch):
    monkeypatch.setattr(llm_actor, "LanguageModel", partial(llm.LanguageModel, retries=0))
    here.script = lambda body, number: Script(status=503)
    with pytest.raises(EndpointError, match=r"the model 'm' at .* did not answer"):
        evaluate(["llm:m"], [short], scenarios=3)
    assert len(here.bodies) == 1


def test_an_address_that_is_a_web_page_is_said(short, monkeypatch):
    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.send_header("content-length", "4")
            self.end_headers()
            self.wfile.write(b"<p/>")

        do_POST = do_GET

        def log_message(self, *said):
            pass

    with serving(Page) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        with pytest.raises(EndpointError, match=r"not as OpenAI's API does; set OPENAI_BASE_URL to the address that ends in /v1"):  # fmt: skip
            evaluate(["llm:m"], [short], scenarios=1)
