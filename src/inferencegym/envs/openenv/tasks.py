"""Which tasks an OpenEnv server offers, in which order, and what it says of them: splits, indices, difficulty, whether a trace is needed.

OpenEnv numbers tasks within a split; index i is the scenario i // n of the task i % n, of the n tasks that need no trace.
"""

from __future__ import annotations

import tomllib
from functools import lru_cache
from typing import Any

from inferencegym.decision.paging import action_table
from inferencegym.envs import catalogue
from inferencegym.envs.batch import Outcome, Task
from inferencegym.envs.grade import load_anchors
from inferencegym.envs.splits import SPLITS
from inferencegym.envs.splits import scenario as scenario_number
from inferencegym.ground.errors import ConfigError, UnknownNameError

#: Task that `reset` begins when none is named.
DEFAULTS = {"llmserve": "static_workload", "pagedkv": "easy"}
#: Scenarios of each task that the task API lists; `reset(seed=...)` takes any other as well.
SCENARIOS_LISTED = 50
_DIFFICULTY = {
    "static_workload": "easy", "bursty_workload": "medium", "adversarial_multitenant": "hard", "easy": "easy", "medium": "medium", "hard": "hard",
}  # fmt: skip


@lru_cache(maxsize=8)
def offered(family: str) -> tuple[str, ...]:
    """Tasks that can be played anywhere: those that need no trace."""
    return tuple(name for name in catalogue.task_names(family) if not needs_trace(name))


@lru_cache(maxsize=64)
def needs_trace(name: str) -> bool:
    """Whether a task replays a real trace, which does not come with the package."""
    data = tomllib.loads((catalogue.FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    return bool(data.get("traffic", {}).get("source") == "trace")


def ladder(family: str) -> tuple[str, ...]:
    """The three tasks from easy to hard, which the baseline plays."""
    return tuple(name for name in offered(family) if name in _DIFFICULTY)


def find(family: str, name: str) -> Task:
    """A shipped task of the family, by name; never a file, since names come over the network."""
    names = catalogue.task_names(family)
    if name not in names:
        raise UnknownNameError(f"{family} task", name, names)
    return catalogue.task(name)


def numbered(family: str, split: str, index: int) -> tuple[str, int]:
    """(task, scenario) of the task API's index; IndexError if there is none, as the API wants it."""
    if split not in SPLITS:
        raise UnknownNameError("split", split, tuple(SPLITS))
    names = offered(family)
    if not 0 <= index < len(names) * SCENARIOS_LISTED:
        raise IndexError(f"index {index} is out of range; allowed: 0..{len(names) * SCENARIOS_LISTED - 1}")
    return names[index % len(names)], index // len(names)


def spec(family: str, split: str, index: int) -> dict[str, Any]:
    """A task of the task API."""
    name, scenario = numbered(family, split, index)
    return {"id": f"{split}/{name}/{scenario}", "index": index, "split": split, "task_id": name, "seed": scenario}


def described(family: str) -> list[dict[str, Any]]:
    """All tasks of a family, for people: what they are, how long, what their reward is made of."""
    found = []
    for name in catalogue.task_names(family):
        task = catalogue.task(name)
        found.append(
            {
                "id": name, "task_id": name, "name": name, "difficulty": _DIFFICULTY.get(name, "trace"), "description": task.description,
                "steps": task.steps, "reward_terms": list(task.reward_terms), "reward_range": [-1.0, 1.0],
                # The digest of a task on a trace needs the trace, which may not be here.
                "digest": None if needs_trace(name) else task.digest,
                "needs_trace": needs_trace(name), "default": name == DEFAULTS[family],
            }
        )  # fmt: skip
    return found


def judged(task: Task, outcome: Outcome, split: str, scenario: int) -> dict[str, Any]:
    """An outcome with its grade: 0 is the random policy, 1 the planner that knows the future. `graded` is false where the task has no anchors.

    Then `score` is the outcome's own value, held to 0..1; `value` is always the number itself.
    """
    answer: dict[str, Any] = {
        "task_id": task.name,
        "split": split,
        "seed": scenario,
        "digest": task.digest,
        "value": outcome.value,
    }
    try:
        anchors = load_anchors(task)
    except ConfigError as error:
        anchors = None
        answer["why_not_graded"] = str(error)
    if anchors is None:
        answer |= {"score": min(1.0, max(0.0, outcome.value)), "graded": False}
    else:
        grade = anchors.grade(outcome.value, split, scenario)
        answer |= {
            "score": grade.grade,
            "graded": True,
            "unclipped": grade.unclipped,
            "floor": grade.floor,
            "ceiling": grade.ceiling,
        }
    return answer | {"parts": dict(outcome.parts), "facts": dict(outcome.facts)}


def scenario_of(split: str, seed: int) -> int:
    """The scenario number of a split's seed; ConfigError names what is out of range."""
    return scenario_number(split, seed)


def instructions(family: str) -> str:
    """What an agent has to know of the actions, in Markdown."""
    if family == "pagedkv":
        return action_table()
    return "Send the knobs to change as JSON; knobs left out stay as they are. Ranges: GET /schema."
