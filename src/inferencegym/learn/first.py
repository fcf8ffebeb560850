"""Where learning on knobs begins: the best setting that never changes, as the anchors have it, or searched for on validation scenarios."""

from __future__ import annotations

from typing import Any

import numpy as np

from inferencegym.decision.columns import Floats
from inferencegym.decision.knobs import Knobs
from inferencegym.envs.actors import BEST_STATIC, actor
from inferencegym.envs.grade import load_anchors
from inferencegym.envs.serve_planner import search_static
from inferencegym.envs.splits import scenario
from inferencegym.ground.errors import ConfigError

_SEARCHED = 8
"""Validation scenarios that a setting is searched on."""


def first_setting(task: Any, start: str = BEST_STATIC) -> Floats:
    """float64[6]: the levers of `start`. `best-static`: as the anchors have it, or searched (half a minute) on validation scenarios."""
    if start == BEST_STATIC and load_anchors(task) is None:
        return search_static(task, [scenario("validation", i) for i in range(_SEARCHED)])[0].levers()
    chosen = actor(start, task)
    if not hasattr(chosen, "action") or not isinstance(chosen.action, Knobs):
        raise ConfigError("start", f"'{start}'", allowed="best-static, or fixed:batch_cap=...")
    given = chosen.action.levers()
    return np.where(np.isnan(given), task.start.levers(), given)
