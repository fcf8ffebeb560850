"""The script of teachers, fine-tuning and old news: its settings are those that trainings take, and what it writes follows from what was played."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest

RUNS = Path(__file__).resolve().parent.parent.parent / "runs"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(RUNS))
    try:
        yield importlib.import_module("finetuning")
    finally:
        sys.path.remove(str(RUNS))


def test_every_training_has_settings_and_stands_after_what_it_begins_with(script, tmp_path):
    seen = set()
    for one in script.TRAININGS:
        made = script.config(one, tmp_path, quick=False)
        assert made.steps == one.steps
        assert not one.after or one.after in seen
        assert script.config(one, tmp_path, quick=True).steps == 1
        seen.add(one.name)


def test_a_rule_is_trained_once_and_its_page_tells_old_news(script, tmp_path, monkeypatch):
    pytest.importorskip("cma")
    (medium,) = (one for one in script.TRAININGS if one.task == "medium")
    monkeypatch.setattr(script, "TRAININGS", (replace(medium, task="easy", name="old-news"),))
    monkeypatch.setattr(script, "QUICK_SCENARIOS", 2)
    monkeypatch.setattr(sys, "argv", ["finetuning.py", "--quick", "--out", str(tmp_path)])
    script.main()
    page = (tmp_path / "finetuning.md").read_text()
    assert "| news, decisions old | 0 | 1 | 2 | 3 |" in page
    assert "| old-news: `cma`: delay 0 to 3 |" in page
    policy = (tmp_path / "old-news" / "policy.npz").read_bytes()
    script.main()
    assert (tmp_path / "old-news" / "policy.npz").read_bytes() == policy
    assert (tmp_path / "finetuning.md").read_text() == page
