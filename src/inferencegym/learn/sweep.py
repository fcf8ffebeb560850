"""Many trainings of one task: several seeds, each point of a grid of settings, or both; on this machine's processors or on a Ray cluster.

Every training is the one that `learn.train` would have made alone, in a folder of its own, bit for bit. A training that is lost with its
worker goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from inferencegym.ground.errors import ConfigError, UnknownNameError
from inferencegym.learn import checkpoint
from inferencegym.learn.config import TrainConfig
from inferencegym.learn.curve import CURVE
from inferencegym.learn.distributed import share_out
from inferencegym.learn.train import CONFIG, POLICY, SUMMARY, Result, train
from inferencegym.learn.workers import at_most

NAME = "sweep.json"
#: What a sweep cannot change: these decide which other settings there are, or are changed by `seeds`.
_FIXED = ("task", "algorithm", "encoding", "seed", "randomise", "settings")
#: What comes back from a worker; its checkpoint stays where it is.
_FILES = (CONFIG, CURVE, POLICY, SUMMARY)


@dataclass(frozen=True, slots=True)
class Run:
    """One training of a sweep."""

    config: TrainConfig
    folder: Path
    changed: dict[str, Any]
    """The grid's settings at this point, by name."""


@dataclass(frozen=True, slots=True)
class Point:
    """One point of the grid, over its seeds."""

    changed: dict[str, Any]
    seeds: int
    mean: float
    """Of the best values on validation scenarios."""
    low: float
    """Of the worst seed."""
    high: float
    best: Path
    """The policy of the best seed."""


@dataclass(frozen=True, slots=True)
class _Job:
    """A training as another process needs it."""

    config: TrainConfig
    folder: str
    minutes: float | None
    processes: int


def grid(base: TrainConfig, out: Path, *, seeds: int = 1, changes: Mapping[str, Sequence[Any]] | None = None) -> list[Run]:  # fmt: skip
    """A training for each point of the grid `changes` (setting -> values) and each of `seeds` seeds from the base's on, in folders of `out`."""
    if seeds < 1:
        raise ConfigError("seeds", f"{seeds}", allowed="1 or more")
    changes = changes or {}
    known = [one.name for part in (base, base.settings) for one in fields(part) if one.name not in _FIXED]
    for name, values in changes.items():
        if name not in known:
            raise UnknownNameError("setting to sweep", name, known)
        if not values or len({str(value) for value in values}) < len(values):
            raise ConfigError(name, f"{list(values)!r}", allowed="one value or more, each once")
    runs = []
    for values in product(*changes.values()):
        changed = dict(zip(changes, values, strict=True))
        for seed in range(base.seed, base.seed + seeds):
            name = "-".join([*(f"{key}={_short(value)}" for key, value in changed.items()), f"seed={seed}"])
            runs.append(Run(base.with_(**changed, seed=seed), out / name, changed))
    return runs


def values_of(text: str) -> tuple[str, list[Any]]:
    """(setting, values) of `NAME=A,B,...`: numbers, true, false, [64,64], or else words."""
    name, equals, rest = text.partition("=")
    if not equals or not name.strip() or not rest.strip():
        raise ConfigError("sweep", f"'{text}'", allowed="NAME=A,B,...")
    try:
        values = json.loads(f"[{rest}]")
    except json.JSONDecodeError:
        values = [word.strip() for word in rest.split(",")]
    return name.strip(), [tuple(value) if isinstance(value, list) else value for value in values]


def sweep(
    runs: Sequence[Run],
    *,
    workers: int = 1,
    ray: str | None = None,
    minutes: float | None = None,
    resume: bool = False,
    progress: Callable[[int, int, Run, Result], None] | None = None,
) -> list[Result]:
    """Train them all; results in the order of `runs`. `workers`, `ray`: where, see `learn.distributed.share_out`.

    `minutes`: of each training, which leaves a checkpoint. `resume`: trainings that have one go on from it; without, it is an error that one is
    there. `progress`: called after each training with (done, all, run, result).
    """
    for run in runs:
        if not resume and (run.folder / checkpoint.NAME).exists():
            raise ConfigError("out", f"'{run.folder}' holds a training", allowed="another folder; or resume the sweep: --resume")  # fmt: skip
    # A task on a cluster asks for one processor; on this machine the trainings share what there is.
    processes = 1 if ray else max(1, len(os.sched_getaffinity(0)) // min(workers, max(len(runs), 1)))
    jobs = [_Job(run.config, str(run.folder.resolve()), minutes, processes) for run in runs]
    done: dict[int, Result] = {}
    with closing(share_out(_train, jobs, workers=workers, ray=ray)) as results:
        for at, (result, files) in results:
            run = runs[at]
            _bring(run.folder, files)
            done[at] = replace(result, policy=run.folder / POLICY)
            if progress is not None:
                progress(len(done), len(runs), run, done[at])
    return [done[at] for at in range(len(runs))]


def points(runs: Sequence[Run], results: Sequence[Result]) -> list[Point]:
    """The grid's points over their seeds, best mean first."""
    of: dict[str, list[int]] = {}
    for at, run in enumerate(runs):
        of.setdefault(json.dumps(run.changed), []).append(at)
    found = []
    for places in of.values():
        values = [results[at].best for at in places]
        best = results[places[int(np.argmax(values))]].policy
        found.append(Point(runs[places[0]].changed, len(values), float(np.mean(values)), min(values), max(values), best))  # fmt: skip
    return sorted(found, key=lambda point: -point.mean)


def as_json(runs: Sequence[Run], results: Sequence[Result]) -> dict[str, Any]:
    """Points and trainings as plain data."""
    return {
        "points": [asdict(point) | {"best": str(point.best)} for point in points(runs, results)],
        "runs": [{"changed": run.changed, **result.as_json()} for run, result in zip(runs, results, strict=True)],
    }


def _train(job: _Job) -> tuple[Result, dict[str, bytes]]:
    """A training, and its small files, for one who does not see this disk."""
    folder = Path(job.folder)
    with at_most(job.processes):
        # A checkpoint is there when the sweep is resumed, or when Ray begins again what was lost with a worker.
        result = train(job.config, folder, resume=(folder / checkpoint.NAME).exists(), minutes=job.minutes)
    return result, {name: (folder / name).read_bytes() for name in _FILES}


def _bring(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write what came back, where it is not there already."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        target = folder / name
        if not target.is_file() or target.read_bytes() != data:
            target.write_bytes(data)


def _short(value: Any) -> str:
    text = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return "".join(letter if letter.isalnum() or letter in "-_.+" else "_" for letter in text)
