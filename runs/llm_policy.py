"""What a small language model is worth as a policy: zero-shot and 4-shot, free and held to a schema, beside policies that ask nobody.

Writes docs/results/llm.{json,md}. Without OPENAI_BASE_URL it starts llama.cpp with SmolLM2-135M (tests/openenv/llama.py, fetched once a
machine); `--model NAME` with OPENAI_BASE_URL plays any other. Values are those of `bursty_workload`; seconds are wall time of a question.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import inferencegym
from inferencegym.envs import catalogue
from inferencegym.envs.openenv.llm_shots import examples, guide_of
from inferencegym.learn.evaluate import Evaluation, evaluate

ROOT = Path(__file__).resolve().parent.parent
TASK, SHOTS = "bursty_workload", 4
SMALL = "smollm2"
ABOUT = {SMALL: "SmolLM2-135M-Instruct (Q4_1) on llama.cpp, one thread"}
RESULTS = ROOT / "docs" / "results"


def arms(model: str, ask_every: int) -> dict[str, str]:
    """What each arm of the comparison is called, and the name that `evaluate` takes."""
    common = f"ask_every={ask_every},timeout_s=600"
    return {
        "zero-shot, free text": f"llm:{model},{common}",
        "zero-shot, schema": f"llm:{model},schema=1,{common}",
        f"{SHOTS}-shot, free text": f"llm:{model},shots={SHOTS},{common}",
        f"{SHOTS}-shot, schema": f"llm:{model},shots={SHOTS},schema=1,{common}",
    }


def copied(shown: list[tuple[str, str]]) -> str:
    """The action of the first example (the guide's commonest), held for ever, as a policy's name: what copying alone is worth."""
    knobs = json.loads(shown[0][1])
    return "fixed:" + ",".join(f"{name}={value}" for name, value in knobs.items())


def measured(model: str, scenarios: int, ask_every: int) -> dict[str, Any]:
    """Play everybody; all that the page says."""
    task = catalogue.task(TASK)
    shown = examples(task, SHOTS)
    players = arms(model, ask_every)
    others = {
        "copy the first example": copied(shown),
        **{name: name for name in ("random", "do-nothing", "slo-feedback", "best-static", "learned")},
    }

    def tell(done: int, of: int, result: Any) -> None:
        asked = "" if result.usage is None else f", {result.usage.report()}"
        print(
            f"{done}/{of} {result.policy} scenario {result.scenario}: {result.value:.3f}{asked}",
            file=sys.stderr,
            flush=True,
        )

    found = evaluate([*others.values(), *players.values()], [TASK], scenarios=scenarios, progress=tell)
    if found.unplayed:
        sys.exit("no page, since episodes are missing: " + "; ".join(found.missing()))
    return {
        "made_by": "runs/llm_policy.py", "version": inferencegym.__version__, "task": TASK, "split": "test", "scenarios": scenarios,
        "windows": task.steps, "ask_every": ask_every, "model": ABOUT.get(model, model), "guide": guide_of(task), "load_average": os.getloadavg()[2],
        "rows": _rows(found, players | others), "examples": [said for _, said in shown],
    }  # fmt: skip


def _rows(found: Evaluation, labels: dict[str, str]) -> list[dict[str, Any]]:
    named = {name: label for label, name in labels.items()}
    return [
        {
            "label": named[row.policy], "policy": row.policy, "score": asdict(row.score), "value": row.value, "asked": row.asked,
            "values": [one.value for one in found.of(TASK, row.policy)],
        }
        for row in found.table()
    ]  # fmt: skip


def _caution(data: dict[str, Any]) -> str:
    """How far the scenarios of one and the same arm lie apart: what a difference between arms must be held against."""
    spreads = [
        (max(row["values"]) - min(row["values"]), row["label"]) for row in data["rows"] if row["asked"] is not None
    ]
    most, label = max(spreads)
    return f"So few scenarios give no interval: the values of one arm ({label}) lie up to {most:.2f} apart, so smaller differences between arms are not established."


def page(data: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# What a small language model is worth as a policy", "",
        f"Made by `{data['made_by']}` with inferencegym {data['version']}; do not edit. `{data['task']}`, the first {data['scenarios']} {data['split']} scenarios of {data['windows']}",
        f"windows, a question every {data['ask_every']} windows (the answer holds in between). Model: {data['model']}. Examples: {len(data['examples'])} decisions of",
        f"`{data['guide']}` on training scenarios. Everybody plays the same scenarios. {_caution(data)}", "",
        "| policy | grade | value | values, scenario by scenario | questions | parse failures | not allowed | tokens in, out | s/question, mean (p95) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in data["rows"]:
        asked = row["asked"]
        cells = ["", "", "", "", ""]
        if asked is not None:
            cells = [
                f"{asked['questions']}", f"{asked['parse_failures']}", f"{asked['illegal']}", f"{asked['prompt_tokens']:,}, {asked['completion_tokens']:,}",
                f"{asked['latency_mean_s']:.1f} ({asked['latency_p95_s']:.1f})",
            ]  # fmt: skip
        label = f"**{row['label']}**" if asked is not None else row["label"]
        first = [
            label,
            f"{row['score']['value']:.3f}",
            f"{row['value']:.3f}",
            " ".join(f"{value:.2f}" for value in row["values"]),
        ]
        lines.append("| " + " | ".join([*first, *cells]) + " |")
    cpu = (
        ""
        if data.get("engine_cpu_s") is None
        else f"; all questions together cost the engine {data['engine_cpu_s']:.0f} s of CPU"
    )
    lines += [
        "", f"Seconds are wall time on a machine with other work on it (load average {data['load_average']:.1f} on {data['cores']} cores){cpu}.",
        "*copy the first example*: the action of the first example, held for ever: what a model gains by copying, without reading the situation.", "",
        "The answers that were shown as examples:", "", "```", *data["examples"], "```", "",
    ]  # fmt: skip
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=SMALL, help="a name that the endpoint knows")
    parser.add_argument("--scenarios", type=int, default=2, help="test scenarios")
    parser.add_argument("--ask-every", type=int, default=12, help="windows between two questions")
    parser.add_argument("--to", type=Path, default=RESULTS, help="folder of the results")
    given = parser.parse_args(arguments)
    before_s = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    own = "OPENAI_BASE_URL" not in os.environ
    with ExitStack() as stack:
        if own:
            sys.path.insert(0, str(ROOT))
            from tests.openenv import llama

            url = stack.enter_context(llama.running(*llama.engine_files(), slots=1))
            os.environ["OPENAI_BASE_URL"] = url
        data = measured(given.model, given.scenarios, given.ask_every)
    data["engine_cpu_s"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before_s if own else None
    data["cores"] = os.cpu_count()
    given.to.mkdir(parents=True, exist_ok=True)
    (given.to / "llm.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    text = page(data)
    (given.to / "llm.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
