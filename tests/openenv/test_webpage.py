"""OpenEnv's page with our tab: the hook builds it, a rule plays on in the shared episode, and a browser shows what was played."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys

import pytest

pytest.importorskip("openenv.core", reason="the extra 'openenv' is not installed")

from openenv.cli._validation import validate_running_environment
from openenv.core.env_server.web_interface import WebInterfaceManager

from inferencegym.envs.openenv import webpage
from inferencegym.envs.openenv.app import make_app
from inferencegym.envs.openenv.environment import ENVIRONMENTS
from inferencegym.envs.openenv.models import PagingAction, PagingObservation, ServeAction, ServeObservation
from inferencegym.policies.catalogue import policy_names
from tests.openenv.browser import CHROMIUM, Page
from tests.starting import free_port, until_healthy

MODELS = {"llmserve": (ServeAction, ServeObservation), "pagedkv": (PagingAction, PagingObservation)}


def player(family):
    return webpage.Player(WebInterfaceManager(ENVIRONMENTS[family], *MODELS[family]))


def asked(coroutine):
    return asyncio.run(coroutine)


async def drawings(playing):
    return [drawing async for drawing in playing]


def decision(html):
    return int(re.search(r"decision (\d+) of", html)[1])


class Command:
    """`inferencegym env` in a process of its own, as users start it: Gradio leaves things behind that only the end of a process removes."""

    def __init__(self, family: str, log):
        port = free_port()
        self.family, self.url = family, f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "inferencegym", "env", family, "--port", str(port), "--web"], stdout=log, stderr=log
        )
        until_healthy(self._process, self.url, 90)

    def stop(self):
        self._process.terminate()
        assert self._process.wait(20) in (0, -15)


@pytest.fixture(scope="module", params=["llmserve", "pagedkv"])
def web(request, tmp_path_factory):
    """A server with its page on."""
    with (tmp_path_factory.mktemp("server") / "log").open("w") as log:
        running = Command(request.param, log)
        yield running
        running.stop()


@pytest.mark.parametrize("family", MODELS)
def test_every_rule_plays_on(family):
    page = player(family)
    task = {"llmserve": "static_workload", "pagedkv": "hard"}[family]
    for rule in policy_names({"llmserve": "knobs", "pagedkv": "paging"}[family]):
        assert "decision 0 of" in asked(page.begin(task, "test", 4))
        shown = asked(drawings(page.play(rule, 3)))
        assert decision(shown[-1]) == 3, rule
        assert page.environment.state.step_count == 3
        assert page.environment.state.seed == 4


def test_it_draws_as_it_goes_and_stops_at_the_end():
    page = player("llmserve")
    asked(page.begin("static_workload", "validation", 0))
    shown = asked(drawings(page.play("slo-feedback", 20)))
    assert [decision(html) for html in shown][:3] == [2, 4, 6]
    shown = asked(drawings(page.play("slo-feedback", 200)))
    assert decision(shown[-1]) == 60
    assert "over, grade 0." in shown[-1]
    again = asked(drawings(page.play("slo-feedback", 5)))
    assert decision(again[-1]) == 60


def test_what_it_plays_is_what_the_rule_plays_alone():
    from inferencegym.envs.openenv.baseline import InProcess, play
    from inferencegym.policies.catalogue import policy

    page = player("llmserve")
    asked(page.begin("bursty_workload", "validation", 2))
    for clicks in (1, 7, 200):
        asked(drawings(page.play("aimd", clicks)))
    alone = play(InProcess("llmserve"), policy("aimd", "knobs"), "bursty_workload", 2)
    assert page.environment.state.total_reward == pytest.approx(alone["total_reward"], abs=1e-12)


def test_a_click_has_a_bound_and_nonsense_is_told():
    page = player("pagedkv")
    assert webpage._START in asked(drawings(page.play("lru", 5)))
    asked(page.begin("hard", "validation", 0))
    shown = asked(drawings(page.play("do-nothing", 10**9)))
    assert decision(shown[-1]) <= webpage.MOST["pagedkv"]
    assert "there is no rule" in asked(drawings(page.play("os:system", 5)))[-1]
    told = asked(page.begin("<b>nothing</b>", "validation", 0))
    assert "&lt;b&gt;nothing" in told
    assert "hard" in told
    assert "train" in asked(page.begin("hard", "nowhere", 0))


def test_without_a_seed_comes_the_next_scenario():
    page = player("pagedkv")
    asked(page.begin("easy", "validation", None))
    first = page.environment.state.seed
    asked(page.begin("easy", "validation", None))
    assert page.environment.state.seed == first + 1


def test_the_page_answers_and_says_what_it_is(web, http):
    assert http.get(f"{web.url}/", follow_redirects=True).status_code == 200
    assert http.get(f"{web.url}/demo", follow_redirects=True).url.path == "/web/"
    about = http.get(f"{web.url}/web/metadata").json()
    assert about["description"] == ENVIRONMENTS[web.family].description
    action = {"llmserve": {"batch_cap": 64}, "pagedkv": {"action_id": 17}}[web.family]
    begun = http.post(f"{web.url}/web/reset", json={"seed": 5})
    stepped = http.post(f"{web.url}/web/step", json={"action": action})
    assert begun.status_code == stepped.status_code == 200
    assert http.get(f"{web.url}/web/state").json()["seed"] == 5


def test_the_page_refuses_what_is_wrong(web, http):
    http.post(f"{web.url}/web/reset", json={"seed": 2})
    wrong = {"llmserve": {"batch_cap": 9999}, "pagedkv": {"action_id": 18}}[web.family]
    assert http.post(f"{web.url}/web/step", json={"action": wrong}).status_code == 422
    assert http.post(f"{web.url}/web/reset", json={"task_id": "no such task"}).status_code == 400
    state = http.get(f"{web.url}/web/state").json()
    assert (state["seed"], state["step_count"]) == (2, 0)


@pytest.mark.parametrize(("wanted", "told"), [(None, False), ("True", True)])
def test_nobody_is_told_that_the_page_is_used(wanted, told, monkeypatch):
    """Gradio's reports are off unless the person who starts the server wants them."""
    from gradio.analytics import analytics_enabled

    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", wanted or "")
    if wanted is None:
        monkeypatch.delenv("GRADIO_ANALYTICS_ENABLED")
    make_app("pagedkv")
    assert analytics_enabled() == told


def test_a_server_with_its_page_passes_all_six_url_checks(web):
    report = validate_running_environment(web.url)
    assert [criterion["passed"] for criterion in report["criteria"]] == [True] * 6


def test_the_pages_episode_is_nobody_elses(web, http):
    mine = http.post(f"{web.url}/reset", json={"seed": 1}).json()["session_id"]
    http.post(f"{web.url}/web/reset", json={"seed": 6})
    assert http.get(f"{web.url}/state", params={"session_id": mine}).json()["seed"] == 1
    assert http.get(f"{web.url}/web/state").json()["seed"] == 6


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_shows_the_episode(web, http, tmp_path):
    page = Page(f"{web.url}/web/", tmp_path)
    try:
        page.click("Begin")
        page.wait("!!document.querySelector('.ig-view svg')")
        page.click("Play on")
        steps = webpage.SUGGESTED[web.family]
        page.wait(f"document.querySelector('.ig-view').innerText.includes('decision {steps} of')")
        state = http.get(f"{web.url}/web/state").json()
        assert state["step_count"] == steps
        assert f"return {state['total_reward']:+.3f}" in page.js("document.querySelector('.ig-view').innerText")
        wide, room = page.js("[document.querySelector('.ig-view').getBoundingClientRect().width, innerWidth]")
        assert 600 < wide < room
        page.click("Step by step")
        page.click("Reset")
        page.wait("!!document.querySelector('.oe-visual .ig-view')")
        card = "document.querySelector('.oe-visual').closest('.oe-card').getBoundingClientRect()"
        view = "document.querySelector('.oe-visual .ig-view').getBoundingClientRect()"
        assert page.js(f"{view}.right <= {card}.right && {view}.width > 300"), "the drawing hangs over its card"
        assert http.get(f"{web.url}/web/state").json()["step_count"] == 0
        assert page.errors == []
    finally:
        page.close()
