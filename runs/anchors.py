"""Anchors of all tasks: what random, do-nothing, every rule, the best setting that never changes and the planners reach on test scenarios.

Writes src/inferencegym/envs/anchors/<task>.json. The best setting is searched on validation scenarios, the clairvoyant's library of settings made
on training scenarios; test scenarios are only played. Whatever is already in a file with the task's digest is kept, so a broken run goes on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from inferencegym import __version__
from inferencegym.envs.catalogue import task, task_names
from inferencegym.envs.splits import scenario
from inferencegym.ground.errors import InferenceGymError
from inferencegym.policies.catalogue import policy, policy_names

FOLDER = Path(__file__).resolve().parent.parent / "src" / "inferencegym" / "envs" / "anchors"
#: Planners that are not an end of the scale, and on how many scenarios they are played.
FEW = {"model-predictive": 10}
PLANNERS = {"knobs": ("model-predictive", "clairvoyant"), "paging": ("clairvoyant",)}


def made(name: str, surface: str, settings: dict[str, Any]) -> Any:
    """The policy or planner of that name."""
    if name == "best-static":
        return policy(settings["best_static"], surface)
    if name in PLANNERS[surface]:
        if surface == "paging":
            from inferencegym.envs.paging_planner import Clairvoyant as Pager

            return Pager()
        from inferencegym.envs.serve_planner import Clairvoyant, ModelPredictive

        kind = Clairvoyant if name == "clairvoyant" else ModelPredictive
        return kind(np.array(settings["library"]))
    return policy(name, surface)


def play(job: tuple[str, str, int, dict[str, Any]]) -> tuple[str, str, int, dict[str, Any]]:
    """One episode: (task, policy, test index) -> its outcome."""
    name, who, index, settings = job
    of = task(name)
    actor = made(who, of.surface.name, settings)
    batch = of.batch(1)
    batch.start(0, scenario("test", index))
    actor.start(index)
    total, began = 0.0, time.process_time()
    decides = hasattr(actor, "decide")
    for _ in range(of.steps):
        action = actor.decide(batch) if decides else actor.act(batch.observations[0].copy(), batch.masks[0].copy())
        batch.actions[0] = of.surface.dense(action)
        batch.step()
        total += float(batch.rewards[0])
        if batch.terminated[0] or batch.truncated[0]:
            break
    outcome = batch.outcome(0)
    return name, who, index, {
        "value": outcome.value, "return": total, "parts": outcome.parts, "facts": outcome.facts,
        "cpu_s": round(time.process_time() - began, 3),
    }  # fmt: skip


def searched(name: str) -> dict[str, Any]:
    """The best setting that never changes, and the planners' library."""
    of = task(name)
    if of.surface.name == "paging":
        text = best_single_action(name)
        return {"best_static": text, "best_static_action": {"action": int(text.removeprefix("fixed:"))}}
    from inferencegym.envs.serve_planner import library, search_static

    best, value = search_static(of, [scenario("validation", i) for i in range(8)])
    text = ",".join(f"{k}={v}" for k, v in best.given().items())
    return {
        "best_static": f"fixed:{text}",
        "best_static_action": best.given(),
        "best_static_on_validation": value,
        "library": library(of, [scenario("train", 0)]).tolist(),
    }


def best_single_action(name: str) -> str:
    """Of the 18 actions, the one that does best when taken for ever, on validation scenarios."""
    of = task(name)
    best, most = "fixed:17", -1.0
    for number in range(18):
        values = []
        for index in range(4):
            actor = policy(f"fixed:{number}", "paging")
            batch = of.batch(1)
            batch.start(0, scenario("validation", index))
            actor.start(0)
            for _ in range(of.steps):
                batch.actions[0] = actor.act(batch.observations[0], batch.masks[0])
                batch.step()
                if batch.terminated[0] or batch.truncated[0]:
                    break
            values.append(batch.outcome(0).value)
        if np.mean(values) > most:
            best, most = f"fixed:{number}", float(np.mean(values))
    return best


def load(name: str) -> dict[str, Any]:
    """What is stored for the task as it is now."""
    path = FOLDER / f"{name}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return found if found.get("digest") == task(name).digest else {}


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
            who = [*policy_names(surface), "best-static", *PLANNERS[surface]]
            jobs = [
                (name, one, index, settings)
                for index in range(options.seeds)
                for one in reversed(who)
                if index < FEW.get(one, options.seeds)
            ]
            episodes: dict[str, dict[int, dict[str, Any]]] = {one: {} for one in who}
            for _, one, index, result in pool.imap_unordered(play, jobs):
                episodes[one][index] = result
                done = sum(map(len, episodes.values()))
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
