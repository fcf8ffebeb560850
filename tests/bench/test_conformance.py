"""The conformance suite: our gateway passes all of it, and servers that misbehave in one way fail the check that is about it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from typer.testing import CliRunner

pytest.importorskip("aiohttp", reason="the extra 'serve' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

import aiohttp
from aiohttp import web

from inferencegym.bench.client import TargetError
from inferencegym.bench.conformance.check import Check, Result
from inferencegym.bench.conformance.exposition import read_samples
from inferencegym.bench.conformance.marked import MarkedUpstream
from inferencegym.bench.conformance.show import as_json, conforms, counts, page
from inferencegym.bench.conformance.suite import CHECKS, chosen, run
from inferencegym.bench.conformance.talk import Asked, events_of
from inferencegym.bench.conformance.upstream import Act
from inferencegym.cli.main import app
from inferencegym.ground.errors import ConfigError, InputError
from inferencegym.runtime.app import Reply
from inferencegym.runtime.settings import Key, ServerSettings, Settings
from tests.runtime.fakes import HANG, FakeBackend, Served, until, words
from tests.starting import free_port, until_healthy


def tried(url, *names, **more):
    """Verdict and note of each check, by its name."""
    upstream = more.pop("upstream", None)
    results = asyncio.run(run(Asked(url, **more), names=names, upstream_port=upstream))
    return {one.check.id: (one.verdict, one.note) for one in results}


def failed(told):
    return {name: note for name, (verdict, note) in told.items() if verdict == "fail"}


# --- servers that are wrong in one way -------------------------------------------------------------------------------------


class Wrong(MarkedUpstream):
    """A server on its own, wrong where it is told to be."""

    def __init__(self, change=None, **acts):
        super().__init__()
        self.change, self.acts = change, acts

    def act_for(self, seen):
        act = super().act_for(seen)
        if act.kind == "status":
            return self.acts.get("refused", act)
        return self.acts.get("stream" if seen.body.get("stream") else "whole", act)

    def about(self, seen, kind):
        told = super().about(seen, kind)
        return told | (self.change or {})


def against(wrong, *names):
    async def main():
        async with wrong as server:
            return await run(Asked(server.url, limit_s=10), names=names)

    return {one.check.id: one.verdict for one in asyncio.run(main())}


def test_a_decent_server_passes():
    told = against(Wrong(), "api", "refusals")
    assert {name for name, verdict in told.items() if verdict != "pass"} == {"wrong-method"}


@pytest.mark.parametrize(
    ("wrong", "check"),
    [
        (Wrong({"object": "chat"}), "chat"),
        (Wrong({"id": None}), "stream"),
        (Wrong(stream=Act("no_done")), "stream"),
        (Wrong(stream=Act("end_mid", at=2)), "stream"),
        (Wrong(stream=Act("die_mid", at=2)), "stream"),
        (Wrong(stream=Act("error_event", at=2)), "stream"),
        (Wrong(stream=Act("garbage_event", at=2)), "stream"),
        (Wrong(whole=Act(tokens=30)), "max-tokens"),
        (Wrong(whole=Act("garbage_body")), "usage"),
        (Wrong(whole=Act("die")), "unknown-fields"),
        (Wrong(refused=Act("ok")), "unknown-model"),
        (Wrong(refused=Act("ok")), "stop"),
        (Wrong(refused=Act("ok")), "n"),
        (Wrong(refused=Act("ok")), "logprobs"),
        (Wrong(refused=Act("ok")), "missing-field"),
        (Wrong(refused=Act("status", status=400, body=b'{"error":"no"}')), "missing-field"),
        (Wrong(refused=Act("status", status=400, body=b"no")), "stream-refused"),
        (Wrong(refused=Act("status", status=500, body=b"")), "boolean-integer"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(wrong, check):
    assert against(wrong, check) == {check: "fail"}


def test_a_server_that_sends_usage_unasked_is_found():
    class Told(Wrong):
        def about(self, seen, kind):
            return super().about(seen, kind) | {
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            }

    assert against(Told(), "stream-no-usage", "stream-usage") == {"stream-no-usage": "fail", "stream-usage": "fail"}


# --- gateways --------------------------------------------------------------------------------------------------------------


@contextmanager
def serving(folder, *flags, port=None):
    """`inferencegym serve` with four seats and eight places to wait: (process, URL)."""
    port = port or free_port()
    limits = ("--set", "dispatch.max_concurrency=4", "--set", "queue.max_requests=8")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "inferencegym", "serve", "--port", str(port), *limits, *flags], stderr=log
        )
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)
    assert "Traceback" not in (folder / "log").read_text()


@pytest.mark.slow
def test_our_gateway_passes_with_the_suite_behind_it(tmp_path):
    behind, port = free_port(), free_port()
    results = {}
    asked = threading.Thread(
        target=lambda: results.update(tried(f"http://127.0.0.1:{port}", upstream=behind, burst=24))
    )
    asked.start()
    until(lambda: listens(behind))
    with serving(tmp_path, "--url", f"http://127.0.0.1:{behind}", port=port):
        asked.join(120)
        assert not asked.is_alive()
    assert failed(results) == {}
    assert {name for name, (verdict, _) in results.items() if verdict == "skipped"} == {
        "wrong-key", "drain-stream", "drain-refuses", "drain-ready", "drain-alive", "drain-ends",
    }  # fmt: skip


def listens(port):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def test_a_gateway_that_asks_for_keys_is_asked_with_one():
    secret = "sk-conformance-0123456789"
    settings = Settings(
        server=ServerSettings(port=0, log="error"), keys=(Key("suite", hashlib.sha256(secret.encode()).hexdigest()),)
    )
    with Served(FakeBackend(lambda ask: words(4)), settings=settings) as server:
        assert tried(server.url, "wrong-key", "chat", key=secret) == {"wrong-key": ("pass", ""), "chat": ("pass", "")}
        with pytest.raises(TargetError, match="does not answer as an OpenAI-compatible server does"):
            tried(server.url, "chat")


def test_a_gateway_that_works_on_for_nobody_is_found():
    with Served(
        FakeBackend(lambda ask: [HANG], fields=None), settings=Settings(server=ServerSettings(port=0, log="error"))
    ) as server:
        told = tried(server.url, "leave-whole", "chat", limit_s=2)
        assert told["leave-whole"][0] == "pass", told
        assert told["chat"] == ("fail", "no end within 2 s")
    with Served(
        FakeBackend(lambda ask: words(4)), settings=Settings(server=ServerSettings(port=0, log="error"))
    ) as server:
        server.app._pages["/metrics"] = {"GET": stuck}
        verdict, note = tried(server.url, "leave-stream")["leave-stream"]
        assert (verdict, "somebody else keeps it busy" in note) == ("skipped", True)


async def stuck(call):
    return Reply(b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 1\n")


class Sloppy:
    """A gateway as some are: it works on for clients that have left, loses Retry-After, calls a broken stream a good one, and takes a fault of one for a fault of all."""

    def __init__(self, upstream):
        self.upstream = upstream
        self.broken = 0

    async def __aenter__(self):
        served = web.Application()
        served.router.add_route("*", "/{path:.*}", self.forward)
        self.session = aiohttp.ClientSession()
        self.runner = web.AppRunner(served, handler_cancellation=False)
        await self.runner.setup()
        self.port = free_port()
        await web.TCPSite(self.runner, "127.0.0.1", self.port).start()
        return f"http://127.0.0.1:{self.port}"

    async def __aexit__(self, *error):
        await self.session.close()
        await self.runner.cleanup()

    async def forward(self, request):
        if self.broken >= 3 and request.method == "POST":
            return web.Response(status=503, text="broken")
        url, body = f"http://127.0.0.1:{self.upstream}{request.path}", await request.read()
        got = b""
        try:
            async with self.session.request(
                request.method, url, data=body, headers={"content-type": "application/json"}
            ) as answer:
                async for part in answer.content.iter_any():
                    got += part
        except aiohttp.ClientError:
            if not got:
                return web.Response(status=200, text="{}")
            got += b"data: [DONE]\n\n"
        self.broken += answer.status >= 400
        return web.Response(status=answer.status, body=got, headers={"content-type": answer.headers["content-type"]})


@pytest.mark.slow
def test_a_sloppy_gateway_is_found_out():
    behind = free_port()
    names = (
        "stream-incremental", "leave-stream-upstream", "leave-early-upstream", "leave-whole-upstream", "dies-mid", "ends-mid", "garbage", "dies-before",
        "dies-before-stream", "pass-429", "breaker-400", "recovers",
    )  # fmt: skip

    async def main():
        async with Sloppy(behind) as url:
            return await run(Asked(url, model=MarkedUpstream.MODEL, limit_s=3), names=names, upstream_port=behind)

    told = {one.check.id: (one.verdict, one.note) for one in asyncio.run(main())}
    assert set(failed(told)) == set(names), told


# --- as a whole ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_our_gateway_passes_the_whole_suite_on_the_mock(tmp_path):
    with serving(tmp_path) as (process, url):
        until_healthy(process, url, 120)
        done = CliRunner().invoke(
            app,
            [
                "conformance",
                url,
                "--pid",
                str(process.pid),
                "--burst",
                "32",
                "--json",
                "--report",
                str(tmp_path / "c.html"),
            ],
        )
        assert process.wait(20) == 0
    told = json.loads(done.output)
    verdicts = {one["id"]: one["verdict"] for one in told["checks"]}
    assert [one for one in told["checks"] if one["verdict"] == "fail"] == []
    skipped = {one["id"] for one in told["checks"] if one["verdict"] == "skipped" and one["group"] != "upstream"}
    assert skipped == {"wrong-key"}
    assert verdicts["drain-stream"] == verdicts["leave-queue"] == "pass"
    assert done.exit_code == 0
    assert ">Conforms</strong>" in (tmp_path / "c.html").read_text()


def test_every_check_has_its_own_name_and_says_something():
    names = [check.id for check in CHECKS]
    assert len(names) == len(set(names)) == 70
    assert all(check.level in ("must", "should") and len(check.sentence) > 10 for check in CHECKS)
    assert len(CliRunner().invoke(app, ["conformance", "--list"]).output.splitlines()) >= len(names)
    assert [check.id for check in chosen(("drain", "chat"))] == ["chat", *[c.id for c in CHECKS if c.group == "drain"]]
    with pytest.raises(ConfigError, match="no check or group 'chta'"):
        chosen(("chta",))


def test_the_exit_code_is_that_of_the_musts(monkeypatch):
    async def nothing(probe):
        raise AssertionError

    must, should = (Check(level, "api", level, "It does <b>so</b>", nothing) for level in ("must", "should"))
    good, bad = (
        [Result(must, "pass", "", 0.1), Result(should, "fail", "<i>4</i>; expected: 5", 0.1)],
        [Result(must, "fail", "", 0.1)],
    )
    assert (conforms(good), conforms(good, strict=True), conforms(bad)) == (True, False, False)
    assert counts(good) == "1 pass, 1 fail (0 must, 1 should), 0 skipped"
    assert as_json(good, {})["conforms"] is True
    shown = page(good, {"server": "<here>"}, "a & b")
    assert "<i>4" not in shown
    assert "&lt;i&gt;4&lt;/i&gt;" in shown
    assert "<here>" not in shown


def test_nobody_there_is_one_clear_error():
    done = CliRunner().invoke(app, ["conformance", f"http://127.0.0.1:{free_port()}"])
    assert isinstance(done.exception, TargetError)
    assert CliRunner().invoke(app, ["conformance"]).exception.args


# --- how it reads ----------------------------------------------------------------------------------------------------------


def test_events_are_joined_and_comments_left_out():
    assert events_of(b": hello\n\ndata: a\n\nevent: x\ndata:b\ndata: c\r\n\r\ndata: cut off") == ["a", "b\nc"]


def test_samples_are_summed_over_their_labels():
    page = '# HELP a b\n# TYPE a gauge\na{x="1",y="\\"}"} 2\na{x="2"} 3.5 1700000000\nb_bucket{le="+Inf"} +Inf\n'
    assert read_samples(page) == {"a": 5.5, "b_bucket": float("inf")}


@pytest.mark.parametrize("wrong", ["a\n", "a{x=1} 2\n", "a 2 x\n", "a two\n", "a 1\na 2\n", "# TYPE a thing\n", "# TYPE a gauge\n# TYPE a gauge\n", "1a 2\n", "a 1"])  # fmt: skip
def test_what_prometheus_would_refuse_is_refused(wrong):
    with pytest.raises(InputError):
        read_samples(wrong)
