"""The leaderboard: enter what comes with the package, check entries by playing or replaying them, draw fresh scenarios, write the tables.

    runs/leaderboard.py check                         every entry, on every scenario that it claims
    runs/leaderboard.py check --sample 2 --seed 7     two scenarios of each, drawn by a seed: what CI does
    runs/leaderboard.py check hard/learned            one entry
    runs/leaderboard.py fresh hard/learned --seed 7   on test scenarios that are in no table
    runs/leaderboard.py table                         leaderboard/README.md, the blocks in README.md and docs/leaderboard.md, the dashboard's copy

Grades are x 100 in tables; 0 is the random policy's, 1 in entries is the planner's that knows the future, and more is possible.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from inferencegym.envs.actors import BEST_STATIC, LEARNED
from inferencegym.envs.batch import Task
from inferencegym.envs.catalogue import task, task_names
from inferencegym.envs.grade import ANCHORS, load_anchors
from inferencegym.ground.errors import InferenceGymError, InputError
from inferencegym.learn import leaderboard
from inferencegym.learn.evaluate import evaluate
from inferencegym.learn.leaderboard import RANKED, Entry, check, claim_of, entries, fresh, read_entry, write_entry
from inferencegym.learn.results import best_rule, references
from inferencegym.policies import trained

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "leaderboard"
BLOCKS = (ROOT / "README.md", ROOT / "docs" / "leaderboard.md")
#: What an installed package knows of it: the Leaderboard page of the dashboard.
PACKAGED = ROOT / "src" / "inferencegym" / "web" / "leaderboard.json"
BEGIN, END = "<!-- leaderboard: made by runs/leaderboard.py -->", "<!-- end of leaderboard -->"
MADE_BY = "InferenceGym"
PLANNER = "model-predictive"


# --- enter ------------------------------------------------------------------------------------------------------------


def own_entries(of: Task) -> list[Entry]:
    """What comes with the package on a task: values as the anchors hold them; the learned policy is played."""
    anchors = load_anchors(of)
    assert anchors is not None, f"{of.name} has no anchors: runs/anchors.sh"
    rule = best_rule(references(anchors, anchors.scenarios))
    said = {
        BEST_STATIC: f"{anchors.settings['best_static']}: the best setting that never changes, searched on validation scenarios (runs/anchors.sh).",
        rule: "A rule of inferencegym.policies; nothing was fitted.",
    }
    found = [entry(of, who, anchors.values[who], text) for who, text in said.items()]
    few = json.loads((ANCHORS / f"{of.name}.json").read_text())["partial"].get(PLANNER)
    if few and few["scenarios"] == list(range(len(few["scenarios"]))):
        found.append(entry(of, PLANNER, few["values"], "Searches on copies of the simulated deployment, with a forecast in place of the future. Nothing was trained."))  # fmt: skip
    path = trained.shipped(of.name)
    if path.is_file():
        notes, _ = trained.read(path)
        sha = hashlib.sha256(path.read_bytes()).hexdigest()
        values, seeds = learned_values(of, sha)
        text = f"{notes.algorithm}, seed {notes.seed}, {notes.steps:,} decisions on training scenarios, chosen on validation scenarios"
        text += f" from {seeds} seeds (runs/train_all.sh)." if seeds else f"; settings {notes.config_digest[:12]}."
        found.append(entry(of, LEARNED, values, text, sha))
    return found


def entry(of: Task, who: str, values: Any, training: str, sha: str = "") -> Entry:
    """One of our own."""
    anchors = load_anchors(of)
    assert anchors is not None
    return Entry(
        name=who, task=of.name, digest=of.digest, authors=MADE_BY, plays=who, training=training, claim=claim_of(values, anchors), sha256=sha
    )  # fmt: skip


def learned_values(of: Task, sha: str) -> tuple[list[float], int]:
    """Values of the shipped policy, and of how many seeds it was chosen: as docs/results/learned.json holds them for that very file; else played, and 0."""
    path = ROOT / "docs" / "results" / "learned.json"
    known = json.loads(path.read_text())["tasks"].get(of.name, {}) if path.is_file() else {}
    trainings = known.get("trainings", {})
    for one in trainings.values():
        if one["sha256"] == sha and known["digest"] == of.digest and len(one["values"]) >= RANKED:
            return one["values"], len(trainings)
    return [one.value for one in evaluate([LEARNED], [of.name], scenarios=RANKED).episodes], 0


def enter(folder: Path) -> None:
    """Write our own entries anew; those of others stay, and so do ours of tasks that cannot be played here."""
    for name in task_names():
        try:
            of = task(name)
            ours = own_entries(of)
        except InferenceGymError as error:
            print(f"{name}: skipped: {error}", file=sys.stderr)
            continue
        for key, path in entries(folder).items():
            if not key.startswith(f"{name}/") or path.name in {one.name for one in ours}:
                continue
            found = read_entry(path)
            # What has a file of its own was entered by hand.
            if found.authors == MADE_BY and found.plays == found.name:
                (path / leaderboard.FILE).unlink()
                path.rmdir()
        for one in ours:
            write_entry(folder / name / one.name, one)
        print(f"{name}: " + ", ".join(f"{one.name} {100 * one.claim.mean_grade:.1f}" for one in ours), flush=True)


# --- check ------------------------------------------------------------------------------------------------------------


def check_all(folder: Path, only: list[str], many: int | None, seed: int, *, planners: bool) -> int:
    """Check entries; returns how many were refused."""
    refused = 0
    for key, path in chosen(folder, only).items():
        try:
            one = read_entry(path)
            if not playable(one):
                print(f"{key}: not checked: its real trace is not here (INFERENCEGYM_TRACE_DIR)")
                continue
            done = check(path, None if many is None else leaderboard.sample(one, many, seed), planners=planners)
        except InferenceGymError as error:
            refused += 1
            print(f"{key}: REFUSED: {error}")
            continue
        how = (
            f"{len(done.replayed)} scenarios played"
            if done.replayed
            else "claim follows from its values; a planner, not played (--planners plays it)"
        )
        print(f"{key}: fine: {done.grade}; {how}", flush=True)
    return refused


def playable(one: Entry) -> bool:
    """Whether the task's traffic is here; real traces may not be."""
    if one.task not in task_names():
        return True
    try:
        task(one.task).digest  # noqa: B018 - reads the trace
    except InferenceGymError:
        return False
    return True


def chosen(folder: Path, only: list[str]) -> dict[str, Path]:
    """The entries that were asked for, or all."""
    found = dict(entries(folder))
    for key in only:
        if key not in found:
            raise InputError(f"there is no entry '{key}'; known: {', '.join(found) or 'none'}")
    return {key: found[key] for key in only} if only else found


# --- table ------------------------------------------------------------------------------------------------------------


def table(folder: Path) -> dict[str, list[Entry]]:
    """Task -> its entries, best first; those with too few scenarios last."""
    found: dict[str, list[Entry]] = {}
    for path in entries(folder).values():
        one = read_entry(path)
        found.setdefault(one.task, []).append(one)
    return {
        name: sorted(found[name], key=lambda one: (len(one.claim.values) < RANKED, -one.claim.mean_grade))
        for name in task_names() if name in found
    }  # fmt: skip


def page(found: dict[str, list[Entry]]) -> str:
    """leaderboard/README.md."""
    lines = [
        "# Leaderboard",
        "",
        "Made by `runs/leaderboard.py table`; do not edit. Mean grade x 100 over test scenarios with its 95 % bootstrap interval: 0 is the random policy's, 100 that of a planner that",
        "knows the future, on the same scenario. Every entry is played or replayed by `runs/leaderboard.py check`. How to enter: [docs/leaderboard.md](../docs/leaderboard.md).",
        "",
    ]
    for name, rows in found.items():
        lines += [
            f"## {name}",
            "",
            "| | entry | grade x 100 | scenarios | plays | by | made how |",
            "|---|---|---|---|---|---|---|",
        ]
        for place, one in enumerate(rows, 1):
            rank = str(place) if len(one.claim.values) >= RANKED else "-"
            who = f"[{one.name}]({one.link})" if one.link.startswith("https://") else one.name
            lines.append(f"| {rank} | {who} | {_figure(one)} | {len(one.claim.values)} | {_kind(one)} | {_plain(one.authors)} | {_plain(one.training)} |")  # fmt: skip
        lines.append("")
    return "\n".join(lines)


def block(found: dict[str, list[Entry]]) -> str:
    """The short table for README.md and the docs."""
    lines = [BEGIN, "", "| task | first | | second | | best static |", "|---|---|---|---|---|---|"]
    for name, rows in found.items():
        ranked = [one for one in rows if len(one.claim.values) >= RANKED]
        cells: list[str] = []
        for one in ranked[:2]:
            cells += [one.name, _figure(one)]
        static = next((_figure(one).split()[0] for one in ranked if one.name == BEST_STATIC), "")
        lines.append(f"| {name} | " + " | ".join([*cells, *[""] * (4 - len(cells)), static]) + " |")
    return "\n".join([*lines, "", END])


def packaged(found: dict[str, list[Entry]]) -> str:
    """The same for programs, as JSON: grades as they are, and x 100 as the tables show them. An entry that is not ranked has no place."""
    tasks = []
    for name, rows in found.items():
        of = task(name)
        told = [
            {
                "place": place if len(one.claim.values) >= RANKED else None, "name": one.name, "mean": one.claim.mean_grade, "low": one.claim.low,
                "high": one.claim.high, "x100": _rounded(one), "scenarios": len(one.claim.values), "plays": one.plays, "kind": _kind(one), "authors": one.authors,
                "training": one.training, "sha256": one.sha256, "link": one.link, "digest": one.digest, "file": f"leaderboard/{name}/{one.name}/{leaderboard.FILE}",
            }
            for place, one in enumerate(rows, 1)
        ]  # fmt: skip
        tasks.append({"name": name, "family": of.family, "description": of.description, "entries": told})
    head = {"made_by": "runs/leaderboard.py table", "split": leaderboard.SPLIT, "ranked_from_scenarios": RANKED, "listed_from_scenarios": leaderboard.LISTED}  # fmt: skip
    return json.dumps(head | {"tasks": tasks}, indent=1, ensure_ascii=False) + "\n"


def put(file: Path, text: str) -> bool:
    """Replace a file's block; False if it has none."""
    whole = file.read_text(encoding="utf-8") if file.is_file() else ""
    if BEGIN not in whole or END not in whole:
        return False
    before, rest = whole.split(BEGIN, 1)
    file.write_text(before + text + rest.split(END, 1)[1], encoding="utf-8")
    return True


def _figure(one: Entry) -> str:
    mean, low, high = _rounded(one)
    return f"{mean:.1f} ({low:.1f} to {high:.1f})"


def _rounded(one: Entry) -> list[float]:
    """Mean, low and high x 100, as every table shows them."""
    # Adding 0 takes the sign off a zero.
    return [round(100 * x, 1) + 0.0 for x in (one.claim.mean_grade, one.claim.low, one.claim.high)]


def _kind(one: Entry) -> str:
    return (
        "records"
        if one.plays == leaderboard.EPISODES
        else "a policy's file"
        if one.plays.endswith(trained.SUFFIX)
        else "built in"
    )


def _plain(text: str) -> str:
    """A stranger's words in a Markdown table: no cell, link, code or tag of their own."""
    return "".join(" " if letter in "|\n\r<>[]`\\" else letter for letter in text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("enter", "check", "fresh", "table"))
    parser.add_argument("entries", nargs="*", help="TASK/NAME; default: all")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--sample", type=int, default=None, help="scenarios of each entry to play; default: all that it claims")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="what a sample, or fresh scenarios, are drawn by")
    parser.add_argument("--planners", action="store_true", help="play planners too: half a minute an episode")
    options = parser.parse_args()
    try:
        if options.what == "enter":
            enter(options.folder)
        elif options.what == "check":
            refused = check_all(options.folder, options.entries, options.sample, options.seed, planners=options.planners)  # fmt: skip
            return 1 if refused else 0
        elif options.what == "fresh":
            for key, path in chosen(options.folder, options.entries).items():
                print(f"{key}: {fresh(path, options.sample or RANKED, options.seed)}", flush=True)
        else:
            found = table(options.folder)
            (options.folder / "README.md").write_text(page(found), encoding="utf-8")
            PACKAGED.write_text(packaged(found), encoding="utf-8")
            for file in BLOCKS:
                if not put(file, block(found)):
                    print(f"{file}: has no block for the table ({BEGIN} ... {END})", file=sys.stderr)
    except InferenceGymError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
