"""The script that measures a model: who plays, what the page says of each, and that no engine is started where an endpoint is named."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("openenv.core", reason="the extra 'openenv' is not installed")

from inferencegym.decision.knobs import KnobsSurface
from tests.openenv.scripted import Script, ScriptedServer

RUNS = Path(__file__).resolve().parent.parent.parent / "runs"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(RUNS))
    try:
        yield importlib.import_module("llm_policy")
    finally:
        sys.path.remove(str(RUNS))


def test_the_page_has_every_arm_beside_those_that_ask_nobody(script, tmp_path, monkeypatch):
    server = ScriptedServer(
        lambda body, number: Script(text='{"batch_cap": 256}' if "response_format" in body else "hm")
    )
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    try:
        script.main(["--model", "m", "--scenarios", "1", "--ask-every", "60", "--to", str(tmp_path)])
    finally:
        server.stop()
    data = json.loads((tmp_path / "llm.json").read_text())
    rows = {row["label"]: row for row in data["rows"]}
    asked = {label: row["asked"]["questions"] for label, row in rows.items() if row["asked"]}
    # 120 windows, a question every 60; free text is never readable here, so each is asked twice.
    assert asked == {"zero-shot, free text": 4, "zero-shot, schema": 2, "4-shot, free text": 4, "4-shot, schema": 2}
    assert rows["zero-shot, free text"]["values"] == rows["do-nothing"]["values"]
    assert {"random", "best-static", "learned", "copy the first example"} < set(rows)
    assert data["engine_cpu_s"] is None
    for said in data["examples"]:
        KnobsSurface().parse(said)
    page = (tmp_path / "llm.md").read_text()
    assert all(f"| {label} |" in page or f"| **{label}** |" in page for label in rows)
