"""A page for every task: what it is, how hard it is, a picture, and what every policy reaches, with intervals.

Writes docs/environments/tasks/*.md from the tasks' files, the stored anchors and docs/environments/llmserve-measured.json; plays nothing.
Tasks on real traces need INFERENCEGYM_TRACE_DIR, since their digest is of the trace.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from inferencegym.envs.catalogue import task, task_names
from inferencegym.envs.serve_task import ServeTask
from inferencegym.learn.statistics import bootstrap, probability_of_improvement

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "environments" / "tasks"
FOLDER = ROOT / "src" / "inferencegym" / "envs" / "anchors"


def rows(data: dict[str, Any]) -> list[tuple[float, str]]:
    """One line for each policy, the best last."""
    values = {who: np.array(row) for who, row in data["values"].items()}
    low, high = values["random"], values["clairvoyant"]
    at = {who: np.arange(len(low)) for who in values}
    for who, part in data.get("partial", {}).items():
        values[who], at[who] = np.array(part["values"]), np.array(part["scenarios"], dtype=np.int64)
    lines = []
    for who, row in values.items():
        mean = bootstrap([row], lambda strata: float(np.mean(strata[0])))
        grade = (row - low[at[who]]) / (high[at[who]] - low[at[who]])
        graded = bootstrap([grade], lambda strata: float(np.mean(strata[0])))
        cells = [
            f"{mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f})",
            f"{100 * graded.value:.1f} ({100 * graded.low:.1f} to {100 * graded.high:.1f})",
        ]
        if who == "best-static":
            cells.append("")
        else:
            better = probability_of_improvement([row], [values["best-static"][at[who]]])
            cells.append(f"{better.value:.2f}")
        cells.append(str(len(row)))
        lines.append((mean.value, f"| {who} | " + " | ".join(cells) + " |"))
    return sorted(lines)


def anchors(name: str) -> list[str]:
    """A task's anchors as a section."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        return ["## Anchors", "", "Not computed: run `runs/anchors.sh`.", ""]
    data = json.loads(path.read_text())
    action = ", ".join(f"{knob} {value}" for knob, value in data["best_static"].items())
    return [
        "## Anchors",
        "",
        "Grade x 100: 0 is the random policy, 100 the clairvoyant planner on the same scenario. Means over test scenarios with 95 % bootstrap intervals. `beats static`: the probability "
        "that an episode of the policy is worth more than one of `best-static`, which was searched on validation scenarios:",
        f"{action}.",
        "",
        "| policy | value | grade x 100 | beats static | scenarios |",
        "|---|---|---|---|---|",
        *[line for _, line in rows(data)],
        "",
    ]


def serving(of: ServeTask) -> list[str]:
    """What an LLMServe task is, from its file."""
    file = of.file
    lines = [
        "## Contract",
        "",
        "| class | first token within | mean time per output token within | weight |",
        "|---|---|---|---|",
    ]
    lines += [f"| {c.name} | {1000 * c.ttft_s:g} ms | {1000 * c.tpot_s:g} ms | {c.weight:g} |" for c in file.classes]
    p = file.prices
    lines += [
        "",
        f"Served {p.served:g}, within objectives {p.in_slo:g} more; quality loss FP16/INT8/INT4 {'/'.join(f'{x:g}' for x in p.quality_loss)} of an answer; "
        f"a wholly lent KV pool {p.lent_kv:g}; a preemption {p.preemption:g} of a request. {file.windows} windows of {file.window_s:g} s.",
        "",
        "Deployment: " + ", ".join(f"{k} {v}" for k, v in file.deployment.items()) + ".",
        "",
    ]
    measured = PAGES.parent / "llmserve-measured.json"
    found = json.loads(measured.read_text()).get(of.name) if measured.exists() else None
    if found:
        x = found["loads"]
        lines += [
            "## Load",
            "",
            f"Mean {x['mean_rps']:.1f} requests/s, {x['load']:.2f} of capacity ({x['capacity_rps']:.1f} requests/s); {x['quiet_load']:.2f} in quiet windows ({x['quiet_share']:.0%} of them), "
            f"{x['busy_load']:.2f} in busy ones. How it was measured: [measured](../llmserve-measured.md).",
            "",
        ]
    return lines


def main() -> None:
    PAGES.mkdir(exist_ok=True, parents=True)
    index = ["# Tasks", "", "| task | environment | best rule | best static | clairvoyant |", "|---|---|---|---|---|"]
    for name in task_names():
        of = task(name)
        text = [
            f"# {name}",
            "",
            of.description,
            "",
            f"Digest `{of.digest[:12]}`; at most {of.steps} steps an episode.",
            "",
        ]
        if isinstance(of, ServeTask):
            text += serving(of)
        else:
            text += ["Physics, score and load: [PagedKV](../pagedkv.md).", ""]
        if (PAGES.parent / f"{name}.svg").exists():
            text += ["## An episode", "", f"![An episode of {name}](../{name}.svg)", ""]
        text += anchors(name)
        (PAGES / f"{name}.md").write_text("\n".join(text))
        index.append(summary(name, of.family))
    (PAGES / "README.md").write_text(
        "\n".join(index)
        + "\n\nMean grade x 100 over test scenarios; made by `runs/task_pages.py` from what `runs/anchors.sh` stored.\n"
    )


def summary(name: str, family: str) -> str:
    """A task's line in the index."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        return f"| [{name}]({name}.md) | {family} | not computed | | |"
    values = {who: np.array(row) for who, row in json.loads(path.read_text())["values"].items()}
    low, high = values["random"], values["clairvoyant"]
    grades = {who: float(np.mean((row - low) / (high - low))) * 100 for who, row in values.items()}
    rules = {who: x for who, x in grades.items() if who not in ("random", "do-nothing", "best-static", "clairvoyant")}
    best = max(rules, key=lambda who: rules[who])
    return f"| [{name}]({name}.md) | {family} | {best} {rules[best]:.1f} | {grades['best-static']:.1f} | 100 |"


if __name__ == "__main__":
    main()
