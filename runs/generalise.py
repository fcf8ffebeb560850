"""How far learned policies carry: on other tasks, on a GPU and a trace they were not trained on, and with observations that are 1 to 3 decisions old.

Writes docs/results/generalisation.{json,md}. Policies are the shipped ones, or with --folder the best on validation of each task's trainings
(FOLDER/TASK-SEED/, as runs/train_all.sh leaves them). Nobody learns anything here: 20 test scenarios each, chosen before.

On another GPU or trace there are no anchors, so policies are held against the best static setting of the task they know, and against doing nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

import inferencegym
from inferencegym.envs.actors import BEST_STATIC, actor
from inferencegym.envs.batch import Task
from inferencegym.envs.catalogue import task, task_names
from inferencegym.envs.grade import load_anchors
from inferencegym.ground.errors import InferenceGymError
from inferencegym.learn.delay import Delayed
from inferencegym.learn.results import best_rule, references
from inferencegym.learn.statistics import iqm, paired_difference
from inferencegym.learn.transfer import on_gpu, under_trace, values_on
from inferencegym.policies import trained

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
NAME = "generalisation"
DELAYS = (1, 2, 3)
GPUS = ("h100", "h200", "a100-80g", "l40s")
FITS = ("azure-conversation", "burstgpt")
NOTHING = "do-nothing"


@dataclass(frozen=True, slots=True)
class Job:
    """Who plays what."""

    policy: str
    """A file, best-static, or do-nothing."""
    home: str
    """The task that the policy was trained, or searched, on."""
    where: str
    """The task that is played: a name, NAME@gpu=GPU, or NAME@fit=FIT."""
    delay: int = 0
    """How old observations are, in decisions: windows on knobs; on paging a tick has several."""
    tell_age: bool = True


def place(where: str) -> Task:
    """The task of a job's `where`."""
    name, _, variant = where.partition("@")
    found: Any = task(name)
    kind, _, value = variant.partition("=")
    return found if not variant else on_gpu(found, value) if kind == "gpu" else under_trace(found, value)


def play(job: Job, scenarios: int) -> list[float]:
    """Values of a job on test scenarios 0, 1, 2, ..."""
    player = actor(job.policy, task(job.home))
    if job.delay:
        player = Delayed(player, job.delay, tell_age=job.tell_age)
    return values_on(place(job.where), player, range(scenarios))


def policies(folder: Path | None) -> dict[str, str]:
    """Task -> file of the policy: the shipped one, or the best on validation in a folder of trainings."""
    found = {}
    for name in task_names():
        files = [trained.shipped(name)] if folder is None else sorted(folder.glob(f"{name}-*/policy.npz"))
        files = [path for path in files if path.is_file() and (folder is None or path.parent.name.removeprefix(f"{name}-").isdigit())]  # fmt: skip
        try:
            digest = task(name).digest
        except InferenceGymError as error:
            print(f"{name}: skipped: {error}", file=sys.stderr)
            continue
        judged = [(trained.read(path)[0], path) for path in files]
        of_now = [(notes.validation or -np.inf, str(path)) for notes, path in judged if notes.task_digest == digest]
        if of_now:
            found[name] = max(of_now)[1]
        elif files:
            print(f"{name}: its policies were trained on another version of the task; left out", file=sys.stderr)
    return found


def jobs_of(name: str, policy: str, tasks: Sequence[str]) -> Iterator[Job]:
    """All that one policy is put through; its references with it."""
    home = task(name)
    for other in tasks:
        yield Job(policy, name, other)
    for delay in DELAYS:
        yield Job(policy, name, name, delay)
        if home.surface.name == "knobs":
            yield Job(policy, name, name, delay, tell_age=False)
    for where in variants(name):
        for who in (policy, BEST_STATIC, NOTHING):
            yield Job(who, name, where)


def variants(name: str) -> tuple[str, ...]:
    """Where else a task of LLMServe is played: two other GPUs, one other trace. Paging tasks have neither."""
    found: Any = task(name)
    if found.surface.name != "knobs":
        return ()
    its_gpu = found.file.deployment["gpu"]
    # The nearest faster and the nearest slower card: far ones are drowned or idle whatever one does.
    chosen = {"h100": ("h200", "a100-80g"), "l40s": ("a100-80g", "h100")}.get(its_gpu, tuple(g for g in GPUS if g != its_gpu)[:2])  # fmt: skip
    known = repr(found.file.traffic)
    fit = next(fit for fit in FITS if fit not in known and fit.replace("-", "_") not in found.name)
    return (*(f"{name}@gpu={gpu}" for gpu in chosen), f"{name}@fit={fit}")


def measured(jobs: Sequence[Job], scenarios: int, workers: int) -> dict[Job, list[float]]:
    """Values of every job; the same for any number of workers."""
    begun, found = time.monotonic(), {}
    for done, (job, values) in enumerate(_played(jobs, scenarios, workers), 1):
        found[job] = values
        if done % 20 == 0:
            print(f"{done}/{len(jobs)}, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return found


def _played(jobs: Sequence[Job], scenarios: int, workers: int) -> Iterator[tuple[Job, list[float]]]:
    if workers == 1:
        yield from ((job, play(job, scenarios)) for job in jobs)
        return
    # Fresh processes: a forked one would inherit locks of threads that are not there.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = [(job, pool.submit(play, job, scenarios)) for job in jobs]
        yield from ((job, future.result()) for job, future in waiting)


def origin(policy: str) -> dict[str, Any]:
    """Which policy it was: checksum, algorithm and seed of its file."""
    notes, _ = trained.read(policy)
    digest = hashlib.sha256(Path(policy).read_bytes()).hexdigest()
    return {"policy": digest[:16], "algorithm": notes.algorithm, "seed": notes.seed}


def figures(found: dict[Job, list[float]], scenarios: int) -> list[dict[str, Any]]:
    """A row for each job of a policy: values, and the difference from what it is held against."""
    rows = []
    for job, values in found.items():
        if job.policy in (BEST_STATIC, NOTHING):
            continue
        row: dict[str, Any] = {**asdict(job), **origin(job.policy), "digest": place(job.where).digest, "home_digest": task(job.home).digest, "values": [round(x, 9) for x in values], "value": asdict(iqm([values]))}  # fmt: skip
        if "@" in job.where:
            static, nothing = (found[Job(who, job.home, job.where)] for who in (BEST_STATIC, NOTHING))
            row |= {"nothing": asdict(iqm([nothing])), "over_nothing": asdict(paired_difference([values], [nothing]))}
        else:
            anchors = load_anchors(task(job.where))
            assert anchors is not None, "every shipped task has anchors"
            static = list(anchors.values[BEST_STATIC][:scenarios])
            row["grade"] = float(np.mean([anchors.grade(x, "test", i).grade for i, x in enumerate(values)]))
            row["static_grade"] = float(np.mean([anchors.grade(x, "test", i).grade for i, x in enumerate(static)]))
            theirs = references(anchors, range(scenarios))
            row["rule"] = best_rule(theirs)
            row["rule_grade"] = float(
                np.mean([anchors.grade(float(x), "test", i).grade for i, x in enumerate(theirs[row["rule"]])])
            )
            row["over_rule"] = asdict(paired_difference([values], [theirs[row["rule"]]]))
        row |= {"static": asdict(iqm([static])), "over_static": asdict(paired_difference([values], [static]))}
        if job.where == job.home and job.delay:
            row["over_itself"] = asdict(paired_difference([values], [found[Job(job.policy, job.home, job.home)]]))
        rows.append(row)
    return rows


def kept(path: Path, again: set[str], scenarios: int) -> list[dict[str, Any]]:
    """What an earlier call found for policies that are not played again, on as many scenarios and the task as it is now."""
    data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": [], "scenarios": scenarios}
    if data["scenarios"] != scenarios:
        return []
    digests = {name: _digest(name) for name in {row["home"] for row in data["rows"]} - again}
    return [row for row in data["rows"] if digests.get(row["home"]) == row["home_digest"]]


def _digest(name: str) -> str:
    """Of the task as it is now; empty where its trace is not here, or there is no such task."""
    try:
        return task(name).digest
    except InferenceGymError:
        return ""


# --- the page ---------------------------------------------------------------------------------------------------------


def page(rows: list[dict[str, Any]], scenarios: int) -> str:
    """The tables that a person reads."""
    lines = [
        "# How far the policies carry", "",
        f"Made by `runs/generalise.py` on {scenarios} test scenarios; no policy was trained for what it is put through here. Values scenario by scenario: [{NAME}.json]({NAME}.json).", "",
    ]  # fmt: skip
    for surface, title in (("knobs", "LLMServe"), ("paging", "PagedKV")):
        here = [row for row in rows if task(row["home"]).surface.name == surface]
        if here:
            lines += _other_tasks(here, title) + _delays(here, surface) + _variants(here)
    return "\n".join(lines)


def _other_tasks(rows: list[dict[str, Any]], title: str) -> list[str]:
    played = [row for row in rows if "@" not in row["where"] and not row["delay"]]
    tasks = [name for name in task_names() if any(row["where"] == name for row in played)]
    at = {(row["home"], row["where"]): row for row in played}
    homes = [name for name in task_names() if any(home == name for home, _ in at)]
    lines = [
        f"## {title}: every policy on every task", "",
        "Mean grade x 100 (0: random, 100: clairvoyant). Rows: what a policy was trained on; columns: what it plays; its own task in bold; `+`: better than the best static",
        "configuration of the task it plays, `-`: worse (95 % interval of the paired difference), else neither.", "",
        "| trained on | " + " | ".join(tasks) + " |", "|---" * (len(tasks) + 1) + "|",
        _reference_row("best static of the task", tasks, {row["where"]: f"{100 * row['static_grade']:.0f}" for row in played}),
        _reference_row("best rule on the task", tasks, {row["where"]: f"{100 * row['rule_grade']:.0f} {row['rule']}" for row in played}),
    ]  # fmt: skip
    for home in homes:
        lines.append(f"| {home} | " + " | ".join(_grade_cell(at.get((home, name)), home == name) for name in tasks) + " |")  # fmt: skip
    return [*lines, ""]


def _reference_row(title: str, tasks: Sequence[str], cells: dict[str, str]) -> str:
    return f"| *{title}* | " + " | ".join(f"*{cells[name]}*" for name in tasks) + " |"


def _grade_cell(row: dict[str, Any] | None, own: bool) -> str:
    if row is None:
        return ""
    text = f"{100 * row['grade']:.0f}{_sign(row['over_static'])}"
    return f"**{text}**" if own else text


def _sign(difference: dict[str, float]) -> str:
    return "+" if difference["low"] > 0 else "-" if difference["high"] < 0 else ""


def _delays(rows: list[dict[str, Any]], surface: str) -> list[str]:
    knobs = surface == "knobs"
    unit = "windows" if knobs else "decisions"
    homes = [name for name in task_names() if any(row["home"] == name for row in rows)]
    lines = [
        f"### With observations that are {DELAYS[0]} to {DELAYS[-1]} {unit} old{_in_ticks(homes)}", "",
        "Mean grade x 100 on its own task; `+` and `-` against best static as above. The whole observation is old"
        + (", the knobs then in force with it, but for the clock; `told`: the column `snapshot_age_s` says so, `not told`: it reads 0, as in training." if knobs else "; the mask is not: the plant refuses what cannot be done now."), "",
    ]  # fmt: skip
    ways = [(delay, told) for delay in (0, *DELAYS) for told in ((True, False) if knobs and delay else (True,))]
    heads = ["fresh" if not delay else f"{delay} {unit if delay > 1 else unit[:-1]}" + ((", told" if told else ", not told") if knobs else "") for delay, told in ways]  # fmt: skip
    lines += ["| task | best static | " + " | ".join(heads) + " |", "|---" * (len(ways) + 2) + "|"]
    for home in homes:
        at = {(row["delay"], row["tell_age"]): row for row in rows if row["home"] == row["where"] == home}
        lines.append(f"| {home} | {100 * at[0, True]['static_grade']:.0f} | " + " | ".join(_grade_cell(at.get(way), False) for way in ways) + " |")  # fmt: skip
    return [*lines, ""]


def _in_ticks(homes: Sequence[str]) -> str:
    """How many decisions a tick has, on tasks that have ticks."""
    counts = {str(rules.decisions_per_tick) for name in homes if (rules := getattr(task(name), "rules", None))}
    return f" ({' or '.join(sorted(counts))} are a tick)" if counts else ""


def _variants(rows: list[dict[str, Any]]) -> list[str]:
    played = [row for row in rows if "@" in row["where"]]
    if not played:
        return []
    lines = [
        "### On a GPU and a trace it was not trained on", "",
        "Interquartile mean of the value, 95 % intervals. The same deployment on another card, with traffic thinned in the share that the card is slower; and the same deployment under a fit of another public trace, brought to as many",
        "tokens a second. `best static` is the task's own, searched on the GPU and the traffic that the policy was trained on: what an operator would have kept.", "",
        "| task | where | learned | best static | do-nothing | above best static | above do-nothing |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in played:
        name, _, variant = row["where"].partition("@")
        lines.append(f"| {name} | {variant.replace('=', ' ')} | {_wide(row['value'])} | {row['static']['value']:.3f} | {row['nothing']['value']:.3f} | {_wide(row['over_static'], '+')} | {_wide(row['over_nothing'], '+')} |")  # fmt: skip
    return [*lines, ""]


def _wide(one: dict[str, float], sign: str = "") -> str:
    return f"{one['value']:{sign}.3f} ({one['low']:{sign}.3f} to {one['high']:{sign}.3f})"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, help="trainings, FOLDER/TASK-SEED/policy.npz; default: the shipped policies"
    )
    parser.add_argument("--tasks", default="all", help="whose policies: comma-separated names, or all")
    parser.add_argument("--scenarios", type=int, default=20, help="test scenarios (at most 50, which have anchors)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--to", type=Path, default=RESULTS, help="folder of the results")
    given = parser.parse_args(arguments)
    files = policies(given.folder)
    wanted = list(files) if given.tasks == "all" else given.tasks.split(",")
    files = {name: files[name] for name in wanted if name in files}
    if not files:
        sys.exit("no policies: train some (runs/train_all.sh), or give their --folder")
    jobs: dict[Job, None] = {}
    for name, policy in files.items():
        tasks = []
        for other in task_names(task(name).family):
            try:
                tasks.append(task(other).digest and other)
            except InferenceGymError as error:
                print(f"{other}: skipped: {error}", file=sys.stderr)
        jobs |= dict.fromkeys(jobs_of(name, policy, tasks))
    rows = kept(given.to / f"{NAME}.json", set(files), given.scenarios)
    rows += figures(measured(list(jobs), given.scenarios, given.workers), given.scenarios)
    rows.sort(key=lambda row: task_names().index(row["home"]))
    given.to.mkdir(parents=True, exist_ok=True)
    data = {"made_by": "runs/generalise.py", "version": inferencegym.__version__, "split": "test", "scenarios": given.scenarios, "rows": rows}  # fmt: skip
    (given.to / f"{NAME}.json").write_text(json.dumps(data, separators=(",", ":")).replace('{"policy"', '\n{"policy"') + "\n", encoding="utf-8")  # fmt: skip
    text = page(rows, given.scenarios)
    (given.to / f"{NAME}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
