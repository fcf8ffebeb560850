"""Policies of all tasks: trained with several seeds, chosen on validation, installed in the package, and played on test scenarios.

A training lies in OUT/TASK-SEED, as `inferencegym train` leaves it. What is there is kept: trainings that are done, and episodes of a policy
that were played before (OUT/TASK-SEED/test.json, by the policy's checksum). Test scenarios are played once all is chosen, and choose nothing.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import learned_page

from inferencegym import __version__
from inferencegym.envs.batch import Task
from inferencegym.envs.catalogue import task, task_names
from inferencegym.envs.grade import load_anchors
from inferencegym.ground.errors import InferenceGymError
from inferencegym.learn.config import defaults
from inferencegym.learn.curve import CURVE
from inferencegym.learn.evaluate import evaluate
from inferencegym.learn.results import Standing, standing
from inferencegym.learn.settings import ALGORITHMS
from inferencegym.learn.train import POLICY, SUMMARY
from inferencegym.policies.trained import Notes, load, read, shipped

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
JSON = "learned.json"
#: The algorithm for each surface: the first that this version has.
BEST = {"knobs": ("forks",), "paging": ("cma", "maskable-ppo")}
PLAYED, TIMED = "test.json", "cold.json"
_DIGITS = 9


def algorithm(of: Task, asked: str | None = None) -> str:
    """What a task is trained with."""
    return asked or next(name for name in BEST[of.surface.name] if name in ALGORITHMS)


# --- training ---------------------------------------------------------------------------------------------------------


def trained(folder: Path, of: Task) -> Notes | None:
    """The notes of a training that is done, of the task as it is now."""
    if not (folder / SUMMARY).is_file() or not (folder / POLICY).is_file():
        return None
    notes, _ = read(folder / POLICY)
    return notes if notes.task == of.name and notes.task_digest == of.digest else None


def train(of: Task, seed: int, folder: Path, minutes: float, algo: str, config: Path | None = None) -> None:
    """One training in a process of its own, timed from its start to the file of the policy."""
    command = [sys.executable, "-m", "inferencegym", "train", "--minutes", f"{minutes:g}", "--quiet", "--json", str(folder.with_suffix(".out"))]  # fmt: skip
    resumed = (folder / "checkpoint.npz").is_file()
    if resumed:
        command += ["--resume", "--out", str(folder)]
    else:
        how = ["--algo", algo] if config is None else ["--config", str(config)]
        command += ["--task", of.name, *how, "--seed", str(seed), "--out", str(folder)]
    began = time.monotonic()
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    spent = {"cold_wall_s": round(time.monotonic() - began, 1), "resumed": resumed}
    (folder / TIMED).write_text(json.dumps(spent) + "\n")
    folder.with_suffix(".out").unlink()


def train_all(
    names: list[str], seeds: range, out: Path, minutes: float, algo: str | None = None, config: Path | None = None
) -> None:
    """Whatever is not done; seed by seed, so that an early end has something of every task."""
    for seed in seeds:
        for name in names:
            of, folder = task(name), out / f"{name}-{seed}"
            found = trained(folder, of)
            if found is None:
                began = time.monotonic()
                print(f"{folder.name}: {config or algorithm(of, algo)}, {minutes:g} minutes at most", flush=True)
                train(of, seed, folder, minutes, algorithm(of, algo), config)
                said = json.loads((folder / SUMMARY).read_text())
                print(f"  validation {said['best']:.4f}, best static {said['best_static']:.4f}, {time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
            elif (
                config is None and found.config_digest != defaults(name, found.algorithm).with_(seed=found.seed).digest
            ):
                print(f"{folder.name}: kept, though its settings are not today's defaults (delete the folder to train it again)")  # fmt: skip


# --- results ----------------------------------------------------------------------------------------------------------


def played(folder: Path, of: Task, scenarios: int, workers: int) -> dict[str, list[Any]]:
    """Values and crashes of a training's policy, test scenario by test scenario; what was played before is kept."""
    sha = hashlib.sha256((folder / POLICY).read_bytes()).hexdigest()
    kept = folder / PLAYED
    known = json.loads(kept.read_text()) if kept.is_file() else {}
    same = known.get("sha256") == sha and known.get("digest") == of.digest
    if not same or len(known["values"]) < scenarios:
        policy = load(folder / POLICY, of.surface.name)
        found = evaluate([policy], [of.name], scenarios=scenarios, workers=workers).episodes
        known = {
            "sha256": sha, "digest": of.digest, "values": [round(one.value, _DIGITS) for one in found], "crashed": [one.crashed for one in found],
        }  # fmt: skip
        kept.write_text(json.dumps(known) + "\n")
    return {"values": known["values"][:scenarios], "crashed": known["crashed"][:scenarios]}


def curve(folder: Path) -> list[tuple[int, float]]:
    """(steps, value on validation) at each look."""
    with (folder / CURVE).open(newline="") as file:
        return [(int(float(row["steps"])), round(float(row["validation"]), 5)) for row in csv.DictReader(file) if row["validation"]]  # fmt: skip


def told(folder: Path, notes: Notes) -> dict[str, Any]:
    """A training, for the record."""
    said = json.loads((folder / SUMMARY).read_text())
    timed = json.loads((folder / TIMED).read_text()) if (folder / TIMED).is_file() else {}
    return {
        "algorithm": notes.algorithm, "seed": notes.seed, "config_digest": notes.config_digest, "version": notes.version, "validation": said["best"],
        "validation_best_static": said["best_static"], "steps": said["steps"], "best_steps": said["best_steps"], "ended": said["ended"],
        "wall_s": round(said["wall_s"], 1), "sha256": hashlib.sha256((folder / POLICY).read_bytes()).hexdigest(), "curve": curve(folder),
    } | timed  # fmt: skip


def said_of(found: Standing) -> str:
    """A task's result in a line."""
    closed = "" if found.closed is None else f", closes {found.closed} of the gap"
    return f"{found.seeds} seeds, {found.learned}, best static {found.best_static}, {found.rule} {found.best_rule}{closed}: {found.verdict}"


def report(
    names: list[str], seeds: range, out: Path, scenarios: int, workers: int, *, install: bool, results: Path = RESULTS
) -> None:
    """Install the best on validation of each task, and write what all of them are worth."""
    file = results / JSON
    whole = json.loads(file.read_text()) if file.is_file() else {"tasks": {}}
    for name in names:
        of = task(name)
        folders = {seed: out / f"{name}-{seed}" for seed in seeds}
        notes = {seed: found for seed, folder in folders.items() if (found := trained(folder, of)) is not None}
        if not notes:
            continue
        trainings = {seed: told(folders[seed], notes[seed]) for seed in notes}
        chosen = max(trainings, key=lambda seed: trainings[seed]["validation"])
        if install:
            shipped(name).parent.mkdir(exist_ok=True)
            shutil.copyfile(folders[chosen] / POLICY, shipped(name))
        values = {seed: played(folders[seed], of, scenarios, workers) for seed in notes}
        anchors = load_anchors(of)
        assert anchors is not None, f"{name} has no anchors: runs/anchors.sh"
        indices = range(scenarios)
        whole_task = standing([one["values"] for one in values.values()], anchors, indices)
        whole["tasks"][name] = {
            "digest": of.digest, "family": of.family, "chosen_seed": chosen, "standing": whole_task.as_json(),
            "chosen": standing([values[chosen]["values"]], anchors, indices).as_json(),
            "trainings": {str(seed): trainings[seed] | {"values": values[seed]["values"], "crashes": sum(values[seed]["crashed"])} for seed in notes},
        }  # fmt: skip
        print(f"{name}: {said_of(whole_task)}", flush=True)
    tasks = {name: whole["tasks"][name] for name in task_names() if name in whole["tasks"]}
    result = {"version": __version__, "made_by": "runs/train_all.sh", "split": "test", "scenarios": scenarios, "installed": install, "tasks": tasks}  # fmt: skip
    results.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result).replace('"trainings"', '\n "trainings"').replace('}, "', '},\n "') + "\n")
    learned_page.write(result, results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", default="all", help="comma-separated names, or all")
    parser.add_argument("--seeds", type=int, default=5, help="trainings a task")
    parser.add_argument("--minutes", type=float, default=8.0, help="of learning, each training at most")
    parser.add_argument("--scenarios", type=int, default=50, help="test scenarios")
    parser.add_argument(
        "--algo", choices=tuple(ALGORITHMS), help="for all tasks; default: forks for knobs, cma for paging"
    )
    parser.add_argument("--config", type=Path, help="settings for all tasks, in place of an algorithm's defaults")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "train_all", help="folder of the trainings")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that play test scenarios")
    parser.add_argument("--only-report", action="store_true", help="train nothing: choose, install and report what is there")  # fmt: skip
    parser.add_argument("--no-install", action="store_true", help="leave the package's weights as they are")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of learned.json, .md and .svg")
    options = parser.parse_args()
    asked = list(task_names()) if options.tasks == "all" else options.tasks.split(",")
    names = []
    for name in asked:
        try:
            task(name).digest  # noqa: B018 - of a trace that is not there
            names.append(name)
        except InferenceGymError as error:
            print(f"{name}: skipped: {error}", file=sys.stderr)
    seeds = range(options.seeds)
    if not options.only_report:
        train_all(names, seeds, options.out, options.minutes, options.algo, options.config)
    report(names, seeds, options.out, options.scenarios, options.workers, install=not options.no_install, results=options.results)  # fmt: skip


if __name__ == "__main__":
    main()
