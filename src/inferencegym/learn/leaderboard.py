"""The leaderboard: entries that a machine can check. What an entry claims is recomputed from what it claims it scored, and that is played or replayed.

An entry is a folder with `entry.toml`, and either a policy that can be played here (a file of trained numbers beside it, or a name that the
package knows) or the records of its episodes. Nothing of an entry is ever executed: policies are numbers, records are actions. See leaderboard/README.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import Struct

import inferencegym
from inferencegym.envs import catalogue
from inferencegym.envs.actors import PLANNERS, actor
from inferencegym.envs.batch import Task
from inferencegym.envs.episode import Episode, record
from inferencegym.envs.grade import Anchors, load_anchors, replay
from inferencegym.ground.errors import ConfigError, InferenceGymError, InputError
from inferencegym.learn.statistics import Estimate, bootstrap
from inferencegym.policies.catalogue import trained_file

FILE, RECORDS = "entry.toml", "episodes"
SPLIT = "test"
#: An entry is ranked if it has played at least these, in this order: 0, 1, 2, ...; one with fewer is shown without a rank.
RANKED, LEAST = 50, 10
#: Largest difference in value between machines that passes as rounding; and of figures that are claimed with four digits.
TOLERANCE, CLAIM_TOLERANCE = 1e-6, 6e-5
_MOST_BYTES = 16 * 1024 * 1024
_KNOWS_THE_FUTURE = ("clairvoyant",)


class Claim(Struct, frozen=True, forbid_unknown_fields=True):
    """What an entry says it reached, on test scenarios 0, 1, 2, ..., as many as there are values."""

    mean_grade: float
    """Mean of the grades, 0..1."""
    low: float
    """95 % bootstrap interval of the same, as `learn.statistics.bootstrap` gives it."""
    high: float
    values: tuple[float, ...]
    """Value of each episode."""


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """The file `entry.toml`."""

    format: Literal[1]
    name: str
    authors: str
    task: str
    task_digest: str
    policy: str
    """A name that the package knows (sieve, best-static, learned, fixed:...), `file:NAME.npz` beside the entry, or `records`."""
    training: str
    """What it was trained or tuned on, by what, for how long; for a language model: which one, asked how."""
    claim: Claim
    package: str = ""
    """Version that the claim was made with."""
    link: str = ""


@dataclass(frozen=True, slots=True)
class Listed:
    """An entry whose claim adds up."""

    entry: Entry
    folder: Path

    @property
    def scenarios(self) -> int:
        """Episodes played."""
        return len(self.entry.claim.values)

    @property
    def ranked(self) -> bool:
        """Whether it played enough to be ranked."""
        return self.scenarios >= RANKED

    @property
    def kind(self) -> str:
        """How it can be checked: policy (any scenario can be played) or records (only what was played can be replayed)."""
        return "records" if self.entry.policy == "records" else "policy"


def read(folder: Path | str) -> Listed:
    """An entry, after everything that can be said without playing: fields, task, policy, and a claim that adds up. InputError says what is wrong."""
    path = Path(folder) / FILE
    if not path.is_file():
        raise InputError("there is no such file; an entry is a folder with one", file=path)
    if path.stat().st_size > 256 * 1024:
        raise InputError("is larger than 256 KiB; no entry is", file=path)
    try:
        entry = msgspec.toml.decode(path.read_bytes(), type=Entry)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"is not an entry: {error}", file=path) from error
    task, anchors = _task(entry, path)
    _policy_path(entry, path)
    _check_claim(entry.claim, anchors, path)
    _size(path)
    del task
    return Listed(entry, Path(folder))


def check(listed: Listed, scenarios: Sequence[int] | None = None) -> int:
    """Play or replay an entry's scenarios (unset: all that it claims); InputError at the first that did not come out as claimed. How many were checked."""
    entry, path = listed.entry, listed.folder / FILE
    chosen = range(listed.scenarios) if scenarios is None else [i for i in scenarios if i < listed.scenarios]
    task, _ = _task(entry, path)
    player = None if listed.kind == "records" else _player(listed, task)
    for index in chosen:
        came = (
            _replayed(listed, task, index)
            if player is None
            else record(task, player, split=SPLIT, scenario=index).value
        )
        claimed = entry.claim.values[index]
        if not abs(came - claimed) <= TOLERANCE:
            raise InputError(f"scenario {index}: value {claimed:.9g} was claimed, {came:.9g} came out", file=path)
    return len(chosen)


def grades(listed: Listed, indices: Sequence[int]) -> list[float]:
    """Grades of an entry's policy on test scenarios of one's choice, such as ones that nobody has seen before; ConfigError for mere records."""
    if listed.kind == "records":
        raise ConfigError(str(listed.folder), "holds records, which cannot play other scenarios", allowed="an entry with a policy")  # fmt: skip
    task, anchors = _task(listed.entry, listed.folder / FILE)
    player = _player(listed, task)
    return [anchors.grade(record(task, player, split=SPLIT, scenario=i).value, SPLIT, i).grade for i in indices]


def claim(values: Sequence[float], anchors: Anchors) -> Claim:
    """The claim that values on test scenarios 0, 1, 2, ... make."""
    estimate = estimate_of(values, anchors)
    rounded = tuple(round(float(value), 9) for value in values)
    return Claim(round(estimate.value, 4), round(estimate.low, 4), round(estimate.high, 4), rounded)


def estimate_of(values: Sequence[float], anchors: Anchors) -> Estimate:
    """Mean grade and its interval."""
    found = [anchors.grade(value, SPLIT, i).grade for i, value in enumerate(values)]
    return bootstrap([found], lambda strata: float(np.mean(strata[0])))


def write(folder: Path, entry: Entry) -> Path:
    """Write `entry.toml`."""
    data = msgspec.to_builtins(entry)
    claimed = data.pop("claim")
    lines = [f"{name} = {_toml(value)}" for name, value in data.items() if value != ""]
    lines += ["", "[claim]", *(f"{name} = {_toml(claimed[name])}" for name in ("mean_grade", "low", "high"))]
    values = claimed["values"]
    rows = [", ".join(_toml(value) for value in values[at : at + 10]) for at in range(0, len(values), 10)]
    lines += ["values = [", *(f"  {row}," for row in rows), "]", ""]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text("\n".join(lines), encoding="utf-8")
    return folder / FILE


def make(
    folder: Path, *, task: str, name: str, authors: str, policy: str, training: str, scenarios: int = RANKED, values: Sequence[float] | None = None
) -> Listed:  # fmt: skip
    """Play a policy on the first test scenarios (or take the values it is known to have), and write the entry. `policy`: as in `Entry`.

    Records are replayed: `folder/episodes/*.parquet`, one for each scenario.
    """
    found = catalogue.task(task)
    anchors = load_anchors(found)
    if anchors is None:
        raise ConfigError(f"anchors of '{task}'", "there are none", allowed="a task with anchors")
    blank = Claim(0.0, 0.0, 0.0, (0.0,) * scenarios)
    entry = Entry(1, name, authors, found.name, found.digest, policy, training, blank, inferencegym.__version__)
    _policy_path(entry, folder / FILE)
    if values is None:
        draft = Listed(entry, folder)
        if draft.kind == "records":
            values = [_replayed(draft, found, i) for i in range(scenarios)]
        else:
            player = _player(draft, found)
            values = [record(found, player, split=SPLIT, scenario=i).value for i in range(scenarios)]
    write(folder, msgspec.structs.replace(entry, claim=claim(values, anchors)))
    return read(folder)


def find(board: Path) -> list[Path]:
    """The folders of all entries."""
    return sorted(path.parent for path in (board / "entries").glob(f"*/{FILE}"))


# --- inside -----------------------------------------------------------------------------------------------------------


def _task(entry: Entry, path: Path) -> tuple[Task, Anchors]:
    if entry.task not in catalogue.task_names():
        raise InputError(f"task '{entry.task[:60]}' is not one of the package's: {', '.join(catalogue.task_names())}", file=path)  # fmt: skip
    task = catalogue.task(entry.task)
    if entry.task_digest != task.digest:
        raise InputError(
            f"was made for digest {entry.task_digest[:12]} of '{task.name}', which is now {task.digest[:12]}: its episodes are others", file=path
        )  # fmt: skip
    anchors = load_anchors(task)
    if anchors is None:
        raise InputError(f"task '{task.name}' has no anchors, so no grades", file=path)
    return task, anchors


def _policy_path(entry: Entry, path: Path) -> Path | None:
    """The file of the entry's policy, which lies beside it; None for a name or for records. InputError for what must not be run."""
    if entry.policy == "records":
        return None
    if entry.policy in _KNOWS_THE_FUTURE:
        raise InputError(f"policy '{entry.policy}' knows the future; it is the scale's upper end, not an entry", file=path)  # fmt: skip
    if (name := trained_file(entry.policy)) is not None:
        if Path(name).name != name:
            raise InputError(f"policy '{entry.policy[:80]}' does not lie beside the entry; say file:NAME.npz", file=path)  # fmt: skip
        return path.parent / name
    if ":" in entry.policy and not entry.policy.startswith("fixed:"):
        raise InputError(f"policy '{entry.policy[:80]}' is code, which is not run; hand in a .npz file, or records", file=path)  # fmt: skip
    return None


def _player(listed: Listed, task: Task) -> Any:
    path = listed.folder / FILE
    file = _policy_path(listed.entry, path)
    try:
        return actor(listed.entry.policy if file is None else f"file:{file}", task)
    except InferenceGymError as error:
        raise InputError(f"policy '{listed.entry.policy[:80]}' cannot be played: {error}", file=path) from error


def _check_claim(claimed: Claim, anchors: Anchors, path: Path) -> None:
    n = len(claimed.values)
    if not LEAST <= n <= 1000:
        raise InputError(f"claims {n} values; {LEAST} to 1000, {RANKED} to be ranked", file=path)
    if not all(math.isfinite(value) for value in (*claimed.values, claimed.mean_grade, claimed.low, claimed.high)):
        raise InputError("claims a number that is none", file=path)
    found = estimate_of(claimed.values, anchors)
    told = {"mean_grade": (claimed.mean_grade, found.value), "low": (claimed.low, found.low), "high": (claimed.high, found.high)}  # fmt: skip
    for name, (said, is_) in told.items():
        if not abs(said - is_) <= CLAIM_TOLERANCE:
            raise InputError(f"claims {name} {said:.4f}; its own values make it {is_:.4f}", file=path)


def _size(path: Path) -> None:
    total = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
    if total > _MOST_BYTES:
        raise InputError(f"the entry takes {total / 2**20:.0f} MiB; at most {_MOST_BYTES // 2**20}", file=path)


def _replayed(listed: Listed, task: Task, index: int) -> float:
    """The value of the entry's record of a scenario, after it has been replayed; the record must be of that scenario and genuine."""
    path = listed.folder / RECORDS / f"{index}.parquet"
    episode = Episode.load(path)
    if (episode.split, episode.scenario) != (SPLIT, index):
        raise InputError(f"is of scenario {episode.scenario} of '{episode.split[:20]}', not {index} of {SPLIT}", file=path)  # fmt: skip
    report = replay(episode, task)
    if not report.genuine or report.outcome is None:
        raise InputError(f"is refused: {report.problem}", file=path)
    return report.outcome.value


def _toml(value: Any) -> str:
    # A JSON string is a TOML string, and so is a number.
    return msgspec.json.encode(value).decode()


PLANNED = tuple(dict.fromkeys(name for names in PLANNERS.values() for name in names if name not in _KNOWS_THE_FUTURE))
"""Planners that may be entries: they simulate a future of their own making, never the scenario's."""
