"""A workload by whatever name a person gives it: a description is drawn, a file is read; both can be shortened and brought to a rate.

The command line and the dashboard load through this, so that both describe the same requests. Times are seconds, rates requests per second.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from inferencegym.ground.errors import ConfigError
from inferencegym.workload.generate import generate
from inferencegym.workload.read import read
from inferencegym.workload.shipped import is_description
from inferencegym.workload.workload import Workload

#: What is drawn of a description unless told otherwise.
DURATION_S = 3600.0


def load(
    what: str, *, seed: int = 0, duration_s: float | None = None, rate_rps: float | None = None, **reading: Any
) -> Workload:
    """The requests that a shipped description, a description's file, a trace's name or its file stands for.

    duration_s : of a description how much to draw (unset: an hour), of a trace how much from its start (unset: all)
    rate_rps : mean rate to bring it to; the pattern of arrivals stays
    reading : what `read` takes besides; for a pool of clients `duration_s` is part of it
    """
    if duration_s is not None and not (np.isfinite(duration_s) and duration_s > 0):
        raise ConfigError("duration_s", f"{duration_s:g} s", allowed="more than 0")
    if rate_rps is not None and not (np.isfinite(rate_rps) and rate_rps > 0):
        raise ConfigError("rate_rps", f"{rate_rps:g} requests per second", allowed="more than 0")
    if is_description(what):
        return generate(what, seed=seed, duration_s=duration_s or DURATION_S, rate_rps=rate_rps)
    if reading.get("pool") is not None:
        found = read(what, seed=seed, duration_s=duration_s, **reading)
    else:
        found = read(what, seed=seed, **reading)
        found = found if duration_s is None else found.window(0.0, duration_s)
    if rate_rps is None:
        return found
    if not found.rate_rps > 0:
        raise ConfigError(
            "rate_rps", f"'{found.name}' has no rate to change: its requests all come at once or there are none"
        )
    return found.scale_rate(rate_rps / found.rate_rps)
