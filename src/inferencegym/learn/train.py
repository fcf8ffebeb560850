"""A training from settings to a policy file: update by update, judged on validation scenarios, the best kept, and resumable to the bit.

A training's folder holds `config.toml`, `curve.csv` (a row an update), `checkpoint.npz`, `policy.npz` (the best on validation so far),
`summary.json` at the end, and `tensorboard/` where TensorBoard is installed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import inferencegym
from inferencegym.envs import catalogue
from inferencegym.ground.archive import BROKEN, Array
from inferencegym.ground.errors import ConfigError
from inferencegym.learn import checkpoint
from inferencegym.learn.algorithms import make_learner, one_thread
from inferencegym.learn.checkpoint import State
from inferencegym.learn.config import TrainConfig, from_data
from inferencegym.learn.curve import Curve
from inferencegym.learn.curve import Row as CurveRow
from inferencegym.learn.validate import best_static, late_news, values_of, worth
from inferencegym.policies.trained import Notes, policy_of, save

POLICY, SUMMARY, CONFIG = "policy.npz", "summary.json", "config.toml"
_CHECKPOINT_EVERY_S = 60.0
_ACCOUNT = ("update", "steps", "episodes", "episode_return", "episode_value", "episode_steps")
_JUDGED = ("validation", "best")
#: Of a training with delays: mean value on the same scenarios with news 1, 2, ... decisions old.
_DELAYED = "validation_delayed"


@dataclass(frozen=True, slots=True)
class Progress:
    """How a training stands after an update."""

    update: int
    steps: int
    all_steps: int
    episode_value: float
    """Mean of the last hundred training episodes; NaN before the first."""
    validation: float | None
    """Just measured; None if not in this update."""
    best: float | None
    """On validation, so far."""
    best_steps: int
    """When it was found."""
    best_static: float | None
    """The bar, where it is known."""
    left_s: float
    """Of wall time, as far as one can tell."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a training."""

    config: TrainConfig
    policy: Path
    best: float
    """Mean value on the validation scenarios."""
    best_steps: int
    best_static: float | None
    best_delayed: float | None
    """On the same scenarios with old news; None where no delay was trained for."""
    steps: int
    updates: int
    ended: str
    """all steps, patience, time or stopped; the last two can be resumed."""
    wall_s: float
    """Of this session."""
    cpu_s: float
    steps_per_cpu_s: float

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return {
            **asdict(self), "policy": str(self.policy), "config": asdict(self.config), "config_digest": self.config.digest,
            "version": inferencegym.__version__,
        }  # fmt: skip


Tell = Callable[[Progress], None]


def train(
    config: TrainConfig | None,
    out: Path | str,
    *,
    resume: bool = False,
    minutes: float | None = None,
    tell: Tell | None = None,
    stop: Callable[[Progress], bool] | None = None,
) -> Result:
    """Train a policy. One `config` gives one curve and one policy, however often it is interrupted and resumed.

    `resume`: go on from the folder's checkpoint, with its settings (`config` may be None, or the same, or the same with more steps).
    `minutes`: stop after so much wall time; `stop`: stop when it says so. Both leave a checkpoint.
    """
    folder = Path(out)
    file = folder / checkpoint.NAME
    if not resume and file.exists():
        raise ConfigError("out", f"'{folder}' holds a training", allowed="another folder; or resume this one: --resume")
    kept = checkpoint.load(file) if resume else None
    if kept is not None:
        config = _resumed(config, kept[0], file)
    if config is None:
        raise ConfigError("config", "is missing", allowed="settings, or a training to resume")
    with one_thread(config):
        training = _Training(config, folder)
        if kept is not None:
            training.restore(file, *kept)
        return training.run(minutes, tell, stop)


class _Training:
    def __init__(self, config: TrainConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.task = catalogue.task(config.task)
        self.learner = make_learner(config, self.task)
        self.late = late_news(self.task, config.randomise)
        self.curve = Curve(folder, (*_ACCOUNT, *self.learner.figures, *_JUDGED, *((_DELAYED,) if self.late else ())))
        self.best: tuple[Notes, dict[str, Array]] | None = None
        self.worse = 0
        """Validations since the best."""
        self.bar: float | None = None
        self.indices = range(config.validation_scenarios)

    def run(self, minutes: float | None, tell: Tell | None, stop: Callable[[Progress], bool] | None) -> Result:
        begun, cpu, first = time.monotonic(), time.process_time(), self.learner.steps
        deadline = math.inf if minutes is None else begun + 60.0 * minutes
        if not self.curve.rows:
            self.bar = best_static(self.task, self.indices)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config.save(self.folder / CONFIG)
        self.curve.open()
        if self.best is not None:
            save(self.folder / POLICY, *self.best)
        saved, ended = time.monotonic(), ""
        while not (ended := ended or self._over()):
            row = self._update()
            self.curve.add(row)
            now = time.monotonic()
            done = max(self.learner.steps - first, 1)
            left = min((now - begun) / done * max(self.config.steps - self.learner.steps, 0), deadline - now)
            progress = self._progress(row, max(left, 0.0))
            if tell is not None:
                tell(progress)
            if now >= deadline:
                ended = "time"
            elif stop is not None and stop(progress):
                ended = "stopped"
            if ended or row["validation"] is not None or now - saved > _CHECKPOINT_EVERY_S:
                self._checkpoint()
                saved = time.monotonic()
        self.curve.close()
        best = self._last_look(ended)
        spent, took = time.process_time() - cpu, self.learner.steps - first
        result = Result(
            config=self.config, policy=self.folder / POLICY, best=_value(best), best_steps=best.steps, best_static=self.bar,
            best_delayed=best.more.get(_DELAYED), steps=self.learner.steps, updates=len(self.curve.rows), ended=ended, wall_s=time.monotonic() - begun, cpu_s=spent,
            steps_per_cpu_s=took / max(spent, 1e-9),
        )  # fmt: skip
        (self.folder / SUMMARY).write_text(json.dumps(result.as_json(), indent=1) + "\n", encoding="utf-8")
        return result

    def _over(self) -> str:
        if self.learner.steps >= self.config.steps:
            return "all steps"
        return "patience" if 0 < self.config.patience <= self.worse else ""

    def _update(self) -> CurveRow:
        before = self.learner.steps
        figures = self.learner.update()
        now, every = self.learner.steps, self.config.validate_every
        value = late = None
        if before // every < now // every or now >= self.config.steps:
            notes, arrays = self._candidate()
            value, late = _value(notes), notes.more.get(_DELAYED)
            if self.best is None or _worth(notes) > _worth(self.best[0]):
                self.best, self.worse = (notes, arrays), 0
                save(self.folder / POLICY, notes, arrays)
            else:
                self.worse += 1
        best = None if self.best is None else _value(self.best[0])
        return {
            "update": len(self.curve.rows) + 1,
            "steps": now,
            **figures,
            "validation": value,
            "best": best,
            _DELAYED: late,
        }

    def _candidate(self) -> tuple[Notes, dict[str, Array]]:
        """The policy as it stands, with what it is worth."""
        arrays, config, learner = self.learner.arrays(), self.config, self.learner
        notes = Notes(
            kind=learner.kind, surface=self.task.surface.name, head=config.encoding, task=self.task.name, task_digest=self.task.digest,
            algorithm=config.algorithm, seed=config.seed, config_digest=config.digest, steps=learner.steps, activation=learner.activation,
            version=inferencegym.__version__,
            more={"best_static": self.bar, "validation_scenarios": config.validation_scenarios},
        )  # fmt: skip
        policy = policy_of(notes, arrays)
        value = float(np.mean(values_of(policy, self.task, self.indices)))
        if self.late is not None:
            notes.more[_DELAYED] = float(np.mean(values_of(policy, self.late, self.indices)))
        return replace(notes, validation=value), arrays

    def _last_look(self, ended: str) -> Notes:
        """The best policy's notes. A training that was cut short between two validations may have a better one in hand; the curve does not know it."""
        if ended in ("time", "stopped") and (not self.curve.rows or self.curve.rows[-1]["validation"] is None):
            notes, arrays = self._candidate()
            if self.best is None or _worth(notes) > _worth(self.best[0]):
                save(self.folder / POLICY, notes, arrays)
                return notes
        assert self.best is not None, "the last step of a training is validated"
        return self.best[0]

    def _progress(self, row: CurveRow, left_s: float) -> Progress:
        value = row["episode_value"]
        return Progress(
            update=len(self.curve.rows), steps=self.learner.steps, all_steps=self.config.steps, episode_value=math.nan if value is None else value,
            validation=row["validation"], best=row["best"], best_steps=0 if self.best is None else self.best[0].steps, best_static=self.bar,
            left_s=left_s,
        )  # fmt: skip

    def _checkpoint(self) -> None:
        header = {
            "config": asdict(self.config), "task_digest": self.task.digest, "version": inferencegym.__version__, "curve": self.curve.rows, "worse": self.worse,
            "bar": self.bar, "best": None if self.best is None else asdict(self.best[0]),
        }  # fmt: skip
        best = {} if self.best is None else self.best[1]
        checkpoint.save(self.folder / checkpoint.NAME, header, self.learner.keep(), best)

    def restore(self, file: Path, header: dict[str, Any], state: State, best: dict[str, Array]) -> None:
        """Stand where a checkpoint stands."""
        if header.get("task_digest") != self.task.digest:
            raise checkpoint.foreign(file, f"the task '{self.task.name}' has changed since")
        try:
            self.learner.restore(state)
            self.curve.rows, self.worse, self.bar = list(header["curve"]), int(header["worse"]), header["bar"]
            if header["best"] is not None:
                notes = Notes(**header["best"])
                policy_of(notes, best)
                self.best = notes, best
        except BROKEN as error:
            raise checkpoint.foreign(file, str(error).split("\n")[0]) from error


def _resumed(config: TrainConfig | None, header: dict[str, Any], file: Path) -> TrainConfig:
    """The checkpoint's settings; ConfigError if others were asked for."""
    try:
        kept = from_data(header["config"])
    except BROKEN as error:
        raise checkpoint.foreign(file, str(error)) from error
    if config is None or config == kept:
        return kept
    if replace(config, steps=kept.steps) == kept and config.steps > kept.steps:
        return config
    asked, had = asdict(config), asdict(kept)
    asked |= asked.pop("settings")
    had |= had.pop("settings")
    name = next(name for name in asked if asked[name] != had.get(name))
    raise ConfigError(name, f"{asked[name]!r}, but the training to resume has {had.get(name)!r}", allowed="the same settings, or more steps")  # fmt: skip


def _value(notes: Notes) -> float:
    assert notes.validation is not None, "candidates are validated"
    return notes.validation


def _worth(notes: Notes) -> float:
    return worth(_value(notes), notes.more.get(_DELAYED))
