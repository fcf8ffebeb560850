"""Who can play a task: every policy of its surface, the best setting that never changes, and the planners that need the simulator itself.

An actor has `start(seed)` and either `act(observation, mask)` or, a planner, `decide(batch)` with the running batch of one row.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from inferencegym.envs.batch import Task
from inferencegym.envs.grade import load_anchors
from inferencegym.ground.errors import ConfigError, MissingExtraError, UnknownNameError
from inferencegym.policies import trained
from inferencegym.policies.catalogue import policy, policy_names

BEST_STATIC = "best-static"
#: The policy that was trained for the task and comes with the package.
LEARNED = "learned"
#: How the name of a language model begins; `envs/openenv/llm_actor.py` says what may follow.
LANGUAGE_MODEL = "llm:"
#: Planners of each surface: name -> where the class is.
PLANNERS = {
    "knobs": {
        "model-predictive": ("inferencegym.envs.serve_planner", "ModelPredictive"),
        "clairvoyant": ("inferencegym.envs.serve_planner", "Clairvoyant"),
        "far-sighted": ("inferencegym.envs.serve_planner", "FarSighted"),
    },
    "paging": {"clairvoyant": ("inferencegym.envs.paging_planner", "Clairvoyant")},
}


def actor_names(task: Task) -> tuple[str, ...]:
    """All that can play the task by name, the planners last."""
    surface = task.surface.name
    searched = (BEST_STATIC,) if load_anchors(task) else ()
    learned = (LEARNED,) if trained.shipped(task.name).is_file() else ()
    return (*policy_names(surface), *searched, *learned, *PLANNERS[surface])


def quick_names(task: Task) -> tuple[str, ...]:
    """Those that play an episode in about a second: all but the planners."""
    return tuple(name for name in actor_names(task) if name not in PLANNERS[task.surface.name])


def actor(name: str, task: Task) -> Any:
    """A policy by any name of `policies.catalogue.policy`, `best-static`, `learned`, `llm:MODEL,...`, or a planner."""
    surface = task.surface.name
    if name.startswith(LANGUAGE_MODEL):
        return _language_model(name, task)
    if name == LEARNED:
        return _learned(task)
    if name != BEST_STATIC and name not in PLANNERS[surface]:
        return _named(name, task)
    anchors = load_anchors(task)
    if name == BEST_STATIC:
        if anchors is None:
            raise ConfigError(BEST_STATIC, f"was not searched for '{task.name}'", allowed="search it: runs/anchors.sh")
        found = policy(anchors.settings["best_static"], surface)
        found.name = BEST_STATIC
        return found
    module, kind = PLANNERS[surface][name]
    planner = getattr(import_module(module), kind)
    library = None if anchors is None else anchors.settings.get("library")
    return planner() if library is None else planner(np.array(library))


def _named(name: str, task: Task) -> Any:
    try:
        return policy(name, task.surface.name)
    except UnknownNameError as error:
        known = (*actor_names(task), "fixed:ACTION", "PATH.npz", f"{LANGUAGE_MODEL}MODEL", "module:Class")
        raise UnknownNameError(error.kind, name, known) from error


def _language_model(name: str, task: Task) -> Any:
    try:
        module = import_module("inferencegym.envs.openenv.llm_actor")
    except ModuleNotFoundError as error:
        raise MissingExtraError("openenv", f"the policy '{name}'") from error
    return module.language_model(name, task)


def _learned(task: Task) -> trained.Loaded:
    path = trained.shipped(task.name)
    if not path.is_file():
        raise ConfigError(
            LEARNED, f"no policy for '{task.name}' comes with the package",
            allowed=f"train one: inferencegym train --task {task.name}; then give its file, such as runs/mine/policy.npz",
        )  # fmt: skip
    return trained.load(path, task.surface.name, name=LEARNED)
