"""Short tasks of one's own: PagedKV easy with 400 ticks, with anchors too, and LLMServe with ten or twelve windows."""

from __future__ import annotations

import json
import re

import pytest

from inferencegym.envs import catalogue, grade
from inferencegym.envs.actors import BEST_STATIC, actor
from inferencegym.learn import first


@pytest.fixture(scope="session")
def short_task(tmp_path_factory):
    text = (catalogue.FOLDER / "easy.toml").read_text()
    path = tmp_path_factory.mktemp("tasks") / "short.toml"
    path.write_text(
        text.replace('name = "easy"', 'name = "short"').replace("horizon_ticks = 2000", "horizon_ticks = 400")
    )
    return str(path)


@pytest.fixture(scope="session")
def calm(tmp_path_factory):
    """Ten windows of little traffic, in which most of the memory can be lent out."""
    text = (catalogue.FOLDER / "static_workload.toml").read_text()
    path = tmp_path_factory.mktemp("tasks") / "calm.toml"
    for old, new in (
        ("static_workload", "calm"),
        ("windows = 60", "windows = 10"),
        ("rate_rps = 30.0", "rate_rps = 6.0"),
    ):
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return str(path)


@pytest.fixture(scope="module")
def brief(request, tmp_path_factory):
    """Twelve windows of the task that the module names in `BRIEF_OF`."""
    text = (catalogue.FOLDER / f"{request.module.BRIEF_OF}.toml").read_text()
    text, windows = re.subn(r"^windows = \d+", "windows = 12", text, flags=re.MULTILINE)
    text, names = re.subn(rf'^name = "{request.module.BRIEF_OF}"', 'name = "brief"', text, count=1)
    assert (windows, names) == (1, 1)
    path = tmp_path_factory.mktemp("tasks") / "brief.toml"
    path.write_text(text)
    return str(path)


@pytest.fixture
def quick(request, monkeypatch):
    """A first setting of that task without the search for it."""
    base = actor(BEST_STATIC, catalogue.task(request.module.BRIEF_OF)).action
    monkeypatch.setattr(first, "search_static", lambda task, scenarios: (base, []))


@pytest.fixture
def anchored(short_task, tmp_path, monkeypatch):
    """The same task, with anchors."""
    scenarios = list(range(6))
    data = {
        "task": "short", "digest": catalogue.task(short_task).digest, "split": "test", "scenarios": scenarios, "version": "0", "made_by": "a test",
        "settings": {"best_static": "fixed:admit_free"},
        "values": {"random": [0.1] * 6, "best-static": [0.2] * 6, "clairvoyant": [0.6] * 6},
    }  # fmt: skip
    (tmp_path / "short.json").write_text(json.dumps(data))
    monkeypatch.setattr(grade, "ANCHORS", tmp_path)
    return short_task
