"""Anchors of all tasks: what random, do-nothing, every rule, the best setting that never changes and the planners reach on test scenarios.

Writes src/inferencegym/envs/anchors/<task>.json. The best setting is searched on validation scenarios, the clairvoyant's library of settings made
on training scenarios; test scenarios are only played. What a file with the task's digest already holds is kept, so a broken run goes on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from inferencegym import __version__
from inferencegym.envs.actors import BEST_STATIC, PLANNERS, actor
from inferencegym.envs.batch import Task
from inferencegym.envs.catalogue import task, task_names
from inferencegym.envs.episode import record
from inferencegym.envs.splits import scenario
from inferencegym.ground.errors import InferenceGymError
from inferencegym.policies.catalogue import policy, policy_names

FOLDER = Path(__file__).resolve().parent.parent / "src" / "inferencegym" / "envs" / "anchors"
#: Planners that are not an end of the scale, and on how many scenarios they are played.
FEW = {"model-predictive": 10}


def made(name: str, of: Task, settings: dict[str, Any]) -> Any:
    """The policy or planner of that name, with what has just been searched (`actor` would read what is stored)."""
    surface = of.surface.name
    if name == BEST_STATIC:
        return policy(settings["best_static"], surface)
    if name not in PLANNERS[surface]:
        return actor(name, of)
    module, kind = PLANNERS[surface][name]
    planner = getattr(import_module(module), kind)
    return planner(np.array(settings["library"])) if "library" in settings else planner()


def play(job: tuple[str, str, int, dict[str, Any]]) -> tuple[str, str, int, dict[str, Any]]:
    """One episode: (task, policy, test index) -> its outcome."""
    name, who, index, settings = job
    of, began = task(name), time.process_time()
    episode = record(of, made(who, of, settings), split="test", scenario=index, name=who)
    return name, who, index, {
        "value": episode.value, "return": episode.total_reward, "parts": episode.parts, "cpu_s": round(time.process_time() - began, 3),
    }  # fmt: skip


def searched(name: str) -> dict[str, Any]:
    """The best setting that never changes, and the planners' library."""
    of: Any = task(name)
    if of.surface.name == "paging":
        number = best_single_action(of)
        return {"best_static": f"fixed:{number}", "best_static_action": {"action": number}}
    from inferencegym.envs.serve_planner import library, search_static

    best, value = search_static(of, [scenario("validation", i) for i in range(8)])
    text = ",".join(f"{k}={v}" for k, v in best.given().items())
    return {
        "best_static": f"fixed:{text}",
        "best_static_action": best.given(),
        "best_static_on_validation": value,
        "library": library(of, [scenario("train", 0)]).tolist(),
    }


def best_single_action(of: Task) -> int:
    """Of all actions, the one that does best when taken for ever, on validation scenarios; of equals the first."""
    chosen = range(of.surface.mask_size)
    means = [
        np.mean([record(of, policy(f"fixed:{one}", "paging"), split="validation", scenario=i).value for i in range(4)])
        for one in chosen
    ]
    return int(np.argmax(means))


def load(name: str) -> dict[str, Any]:
    """What is stored for the task as it is now."""
    path = FOLDER / f"{name}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return found if found.get("digest") == task(name).digest else {}


def played_before(name: str, settings: dict[str, Any], who: list[str]) -> dict[str, dict[int, dict[str, Any]]]:
    """The episodes that are in the file. It holds means of parts and CPU time: every episode gets those, so that means stay what they are."""
    data = load(name)
    found: dict[str, dict[int, dict[str, Any]]] = {one: {} for one in who}
    if data.get("settings") != settings or not data.get("scenarios"):
        return found
    for one in who:
        few = data["partial"].get(one)
        if few:
            found[one] = {i: {"value": value} for i, value in zip(few["scenarios"], few["values"], strict=True)}
        elif one in data["values"]:
            known = {"parts": data["parts"][one], "cpu_s": data["cpu_s_per_episode"][one]}
            rows = zip(data["scenarios"], data["values"][one], data["returns"][one], strict=True)
            found[one] = {i: {"value": value, "return": total, **known} for i, value, total in rows}
    return found


def store(name: str, settings: dict[str, Any], episodes: dict[str, dict[int, dict[str, Any]]]) -> None:
    """Write a task's file: only scenarios that every policy has played."""
    few = {who: dict(sorted(played.items())) for who, played in episodes.items() if who in FEW}
    episodes = {who: played for who, played in episodes.items() if who not in FEW}
    done = sorted(set.intersection(*(set(played) for played in episodes.values())))
    FOLDER.mkdir(exist_ok=True)

    def listed(key: str) -> dict[str, list[float]]:
        return {who: [round(played[i][key], 9) for i in done] for who, played in episodes.items()}

    text = json.dumps(
        {
            "task": name,
            "digest": task(name).digest,
            "version": __version__,
            "made_by": "runs/anchors.sh",
            "split": "test",
            "scenarios": done,
            "best_static": settings["best_static_action"],
            "settings": settings,
            "values": listed("value"),
            "returns": listed("return"),
            "partial": {who: {"scenarios": list(played), "values": [r["value"] for r in played.values()]} for who, played in few.items()},
            "parts": {
                who: {part: float(np.mean([played[i]["parts"][part] for i in done])) for part in played[done[0]]["parts"]}
                for who, played in episodes.items()
            } if done else {},
            "cpu_s_per_episode": {who: float(np.mean([played[i]["cpu_s"] for i in done])) for who, played in episodes.items()} if done else {},
        }
    )  # fmt: skip
    path = FOLDER / f"{name}.json"
    path.with_suffix(".part").write_text(text.replace('], "', '],\n "') + "\n")
    path.with_suffix(".part").replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", default="all", help="comma-separated names, or all")
    parser.add_argument("--seeds", type=int, default=50, help="test scenarios")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--again",
        action="store_true",
        help="play everything again (after a policy has changed); what was searched is kept",
    )
    options = parser.parse_args()
    names = task_names() if options.tasks == "all" else tuple(options.tasks.split(","))
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.workers) as pool:
        for name in names:
            try:
                digest = task(name).digest
            except InferenceGymError as error:
                print(f"{name}: skipped: {error}", file=sys.stderr)
                continue
            began = time.monotonic()
            settings = load(name).get("settings") or pool.apply(searched, (name,))
            print(f"{name} {digest[:12]} {settings['best_static']} ({time.monotonic() - began:.0f} s)", flush=True)
            surface = task(name).surface.name
            who = [*policy_names(surface), BEST_STATIC, *PLANNERS[surface]]
            episodes = played_before(name, {} if options.again else settings, who)
            jobs = [
                (name, one, index, settings)
                for index in range(options.seeds)
                for one in reversed(who)
                if index < FEW.get(one, options.seeds) and index not in episodes[one]
            ]
            for done, (_, one, index, result) in enumerate(pool.imap_unordered(play, jobs), 1):
                episodes[one][index] = result
                if done % 50 == 0:
                    print(f"  {done}/{len(jobs)} episodes, {time.monotonic() - began:.0f} s", flush=True)
                    if all(episodes.values()):
                        store(name, settings, episodes)
            store(name, settings, episodes)
            print(table(name), flush=True)


def table(name: str) -> str:
    """Means and grades, as text."""
    values = load(name)["values"]
    low, high = np.array(values["random"]), np.array(values["clairvoyant"])
    lines = [f"{name}: {len(low)} test scenarios"]
    for who, row in sorted(values.items(), key=lambda item: np.mean(item[1])):
        grade = (np.array(row) - low) / (high - low)
        lines.append(
            f"  {who:18} value {np.mean(row):7.4f} +- {np.std(row) / np.sqrt(len(row)):.4f}   grade {np.mean(grade):6.3f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
