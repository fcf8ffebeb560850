"""Entries of the leaderboard: what an entry claims, and the checks that a machine makes of it by playing or replaying it.

An entry is a folder with `entry.toml` and, unless it plays something that comes with the package, a policy's file or the records of its
episodes. It is read as a stranger's: nothing in it is executed, and it names no file outside its folder. Grades: 0 is random,
1 the planner that knows the future, not held to that range.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct

from inferencegym.envs import catalogue
from inferencegym.envs.actors import BEST_STATIC, LEARNED, PLANNERS, actor
from inferencegym.envs.batch import Task
from inferencegym.envs.episode import Episode, record
from inferencegym.envs.grade import Anchors, load_anchors, replay
from inferencegym.ground.errors import ConfigError, InputError
from inferencegym.ground.rng import stream
from inferencegym.learn.statistics import Estimate, bootstrap
from inferencegym.policies import trained
from inferencegym.policies.catalogue import policy_names

FILE, EPISODES, SPLIT = "entry.toml", "episodes", "test"
#: Scenarios that an entry needs to be ranked, and to be listed at all.
RANKED, LISTED = 50, 10
#: How far a value may differ from what is claimed (another machine rounds otherwise), and a mean grade from what the values come to.
VALUE_TOLERANCE, GRADE_TOLERANCE = 1e-6, 5e-4
#: Where scenarios begin that nobody has seen: far beyond those of any table.
_FRESH_FROM, _FRESH_MANY = 1_000_000, 1_000_000_000
_MOST_BYTES = 1024 * 1024
_Text = Annotated[str, Meta(min_length=1, max_length=2000)]
_Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]


class Claim(Struct, frozen=True, forbid_unknown_fields=True):
    """What the entry says it reaches on the first test scenarios 0, 1, 2, ..."""

    mean_grade: float
    low: float
    high: float
    """95 % bootstrap interval of the mean over scenarios."""
    values: tuple[float, ...]
    """The value of the episode on each scenario, in order."""


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """One entry's file."""

    name: _Name
    """As its folder is called."""
    task: _Name | Annotated[str, Meta(pattern=r"^[a-z0-9_]{1,40}$")]
    digest: str
    """Of the task that was played."""
    authors: _Text
    plays: _Text
    """`NAME.npz`, a policy's file in the folder; `episodes`, a folder of records; or the name of what comes with the package."""
    training: _Text
    """What it was made with and from, in a sentence or two."""
    claim: Claim
    sha256: str = ""
    """Of the policy's file, or of the shipped weights that `learned` plays."""
    link: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """What came of checking an entry."""

    entry: Entry
    replayed: tuple[int, ...]
    """Scenarios that were played or replayed."""
    grade: Estimate
    """Mean grade over all claimed scenarios, computed from the values."""

    @property
    def ranked(self) -> bool:
        """Whether it has enough scenarios to be ranked."""
        return len(self.entry.claim.values) >= RANKED


def read_entry(folder: Path | str) -> Entry:
    """The entry in a folder; InputError says what is wrong with its file."""
    file = Path(folder) / FILE
    if not file.is_file() or file.stat().st_size > _MOST_BYTES:
        raise InputError(f"there is no such file, or it is larger than {_MOST_BYTES // 1024} KiB", file=file)
    try:
        entry = msgspec.toml.decode(file.read_bytes(), type=Entry)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(str(error), file=file) from error
    if entry.name != Path(folder).resolve().name:
        raise InputError(f"it is called '{entry.name}', its folder '{Path(folder).resolve().name}'", file=file)
    if entry.task != Path(folder).resolve().parent.name:
        raise InputError(f"it is of task '{entry.task}', but lies in '{Path(folder).resolve().parent.name}'", file=file)
    return entry


def grade_of(values: Sequence[float], anchors: Anchors) -> Estimate:
    """Mean grade of the values of test scenarios 0, 1, 2, ..., not held to 0..1 (as on the tasks' pages), with its interval."""
    grades = [anchors.grade(value, SPLIT, index).unclipped for index, value in enumerate(values)]
    return bootstrap([grades], lambda strata: float(np.mean(strata[0])))


def check(folder: Path | str, scenarios: Sequence[int] | None = None, *, planners: bool = False) -> Checked:
    """Check an entry; InputError says what is refused and why.

    `scenarios`: those to play or replay (None: all that are claimed); `planners`: play planners too, which takes minutes.
    """
    source = Path(folder)
    entry = read_entry(source)
    task, anchors = _task_of(entry, source)
    grade = _check_claim(entry, anchors, source)
    many = len(entry.claim.values)
    chosen = tuple(range(many)) if scenarios is None else tuple(sorted({i for i in scenarios if i < many}))
    if entry.plays == EPISODES:
        _check_records(entry, task, source, chosen)
        return Checked(entry, chosen, grade)
    player = player_of(entry, task, source)
    if entry.plays in PLANNERS[task.surface.name] and not planners:
        return Checked(entry, (), grade)
    for index in chosen:
        came = record(task, player, split=SPLIT, scenario=index).value
        _compare(entry, index, came, source)
    return Checked(entry, chosen, grade)


def sample(entry: Entry, many: int, seed: int) -> tuple[int, ...]:
    """Some of an entry's scenarios, drawn by a seed that whoever made the entry did not choose."""
    size = len(entry.claim.values)
    drawn = stream(seed, f"leaderboard.{entry.task}.{entry.name}").choice(size, min(many, size), replace=False)
    return tuple(sorted(int(index) for index in drawn))


def fresh(folder: Path | str, many: int, seed: int) -> Estimate:
    """The mean grade on test scenarios that are in no table, drawn by a seed; InputError if what was claimed lies above it.

    On these scenarios a grade's scale has the mean ends, so grades scatter more than on those of the table; their mean does not move.
    """
    source = Path(folder)
    entry = read_entry(source)
    task, anchors = _task_of(entry, source)
    if entry.plays == EPISODES:
        raise InputError("records cannot be played on other scenarios; only a policy can", file=source / FILE)
    player = player_of(entry, task, source)
    rng = stream(seed, f"leaderboard.fresh.{entry.task}")
    grades = []
    for index in (_FRESH_FROM + rng.integers(0, _FRESH_MANY, many)).tolist():
        grades.append(anchors.grade(record(task, player, split=SPLIT, scenario=index).value, SPLIT, index).unclipped)
    found = bootstrap([grades], lambda strata: float(np.mean(strata[0])))
    if entry.claim.low > found.high:
        raise InputError(
            f"{entry.claim.low:.3f} at least is claimed; on {many} test scenarios that are in no table it reaches {found}: it knows the table's",
            file=source / FILE,
        )
    return found


def player_of(entry: Entry, task: Task, folder: Path) -> Any:
    """Who plays an entry: the policy in its file, or something of the package's own. Nobody's code is imported."""
    file, surface = folder / FILE, task.surface.name
    if entry.plays.endswith(trained.SUFFIX):
        if Path(entry.plays).name != entry.plays:
            raise InputError(f"'{entry.plays[:80]}' is not a file of the entry's own folder", file=file)
        _check_sum(entry, folder / entry.plays, file)
        return trained.load(folder / entry.plays, surface, name=entry.name)
    known = (BEST_STATIC, LEARNED, *policy_names(surface), *PLANNERS[surface])
    if entry.plays not in known:
        raise InputError(
            f"plays '{entry.plays[:80]}'; known: NAME{trained.SUFFIX} in the folder, {EPISODES}, {', '.join(known)}", file=file
        )  # fmt: skip
    if entry.plays == LEARNED:
        _check_sum(entry, trained.shipped(task.name), file)
    return actor(entry.plays, task)


def write_entry(folder: Path, entry: Entry) -> Path:
    """Write an entry's file."""
    claim = entry.claim
    own = [
        (name, getattr(entry, name))
        for name in ("name", "task", "digest", "authors", "plays", "sha256", "training", "link")
    ]
    lines = [f"{name} = {json.dumps(text)}" for name, text in own if text]
    lines += [
        "",
        "[claim]",
        f"mean_grade = {claim.mean_grade:.4f}",
        f"low = {claim.low:.4f}",
        f"high = {claim.high:.4f}",
    ]
    lines += [f"values = [{', '.join(repr(round(float(value), 9)) for value in claim.values)}]", ""]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text("\n".join(lines), encoding="utf-8")
    return folder / FILE


def claim_of(values: Sequence[float], anchors: Anchors) -> Claim:
    """What may be claimed of values on the first test scenarios."""
    values = [round(float(value), 9) for value in values]
    grade = grade_of(values, anchors)
    return Claim(mean_grade=grade.value, low=grade.low, high=grade.high, values=tuple(values))


def _task_of(entry: Entry, folder: Path) -> tuple[Task, Anchors]:
    file = folder / FILE
    if entry.task not in catalogue.task_names():
        raise InputError(f"the task '{entry.task}' is none of {', '.join(catalogue.task_names())}", file=file)
    task = catalogue.task(entry.task)
    if entry.digest != task.digest:
        raise InputError(
            f"it was made on '{entry.task}' with digest {entry.digest[:12]}, which is now {task.digest[:12]}: play it again", file=file
        )  # fmt: skip
    anchors = load_anchors(task)
    if anchors is None:
        raise ConfigError(f"anchors of '{entry.task}'", "there are none", allowed="make them: runs/anchors.sh")
    return task, anchors


def _check_claim(entry: Entry, anchors: Anchors, folder: Path) -> Estimate:
    """The claimed mean and interval must follow from the claimed values."""
    values, file = entry.claim.values, folder / FILE
    if not LISTED <= len(values) <= len(anchors.scenarios) or not np.isfinite(values).all():
        raise InputError(f"claims {len(values)} values; a finite one for each of the test scenarios 0, 1, 2, ..., at least {LISTED}, at most {len(anchors.scenarios)}", file=file)  # fmt: skip
    grade = grade_of(values, anchors)
    for name, claimed, came in (("mean_grade", entry.claim.mean_grade, grade.value), ("low", entry.claim.low, grade.low), ("high", entry.claim.high, grade.high)):  # fmt: skip
        if not abs(claimed - came) <= GRADE_TOLERANCE:
            raise InputError(f"claims {name} = {claimed:.4f}; its values come to {came:.4f}", file=file)
    return grade


def _check_sum(entry: Entry, path: Path, file: Path) -> None:
    if not path.is_file():
        raise InputError(f"plays '{path.name}', which is not there", file=file)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != entry.sha256:
        raise InputError(f"its sha256 is {entry.sha256[:12] or 'missing'}, that of '{path.name}' is {found[:12]}: not the policy that was entered", file=file)  # fmt: skip


def _check_records(entry: Entry, task: Task, folder: Path, scenarios: Sequence[int]) -> None:
    for index in range(len(entry.claim.values)):
        if not (folder / EPISODES / f"{index}.parquet").is_file():
            raise InputError(f"the record of scenario {index} is missing", file=folder / EPISODES / f"{index}.parquet")
    for index in scenarios:
        path = folder / EPISODES / f"{index}.parquet"
        episode = Episode.load(path)
        if (episode.task, episode.split, episode.scenario) != (entry.task, SPLIT, index):
            raise InputError(f"is of {episode.task[:40]}, {episode.split[:20]} scenario {episode.scenario}; it stands for {entry.task}, {SPLIT} scenario {index}", file=path)  # fmt: skip
        found = replay(episode, task)
        if not found.genuine or found.outcome is None:
            raise InputError(f"is refused: {found.problem}", file=path)
        _compare(entry, index, found.outcome.value, folder)


def _compare(entry: Entry, index: int, came: float, folder: Path) -> None:
    claimed = entry.claim.values[index]
    if not abs(claimed - came) <= VALUE_TOLERANCE:
        raise InputError(f"test scenario {index}: value {claimed:.6f} is claimed, {came:.6f} came out", file=folder / FILE)  # fmt: skip


def entries(folder: Path) -> Mapping[str, Path]:
    """TASK/NAME -> folder, of all that lie in a leaderboard's folder."""
    return {f"{path.parent.parent.name}/{path.parent.name}": path.parent for path in sorted(folder.glob(f"*/*/{FILE}"))}
