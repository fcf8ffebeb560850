"""Plays the PagedKV environment's easiest task with the planner that knows the future, and prints grade and return as JSON."""

from __future__ import annotations

import json

from inferencegym.envs import catalogue
from inferencegym.envs.actors import actor
from inferencegym.envs.episode import record
from inferencegym.envs.grade import grade


def main() -> None:
    """One episode of validation scenario 7."""
    task = catalogue.task("easy")
    episode = record(task, actor("clairvoyant", task), split="validation", scenario=7)
    print(json.dumps({"grade": grade(episode).grade, "return": episode.total_reward, "steps": len(episode.actions)}))


if __name__ == "__main__":
    main()
