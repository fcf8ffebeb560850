"""An episode on record: task, scenario, actions, rewards, observations and what came of it, in one Parquet or NPZ file that can be replayed.

Row t of the file is what was seen before action t, the action, and its reward; the last row is the end, with neither. A file is read as a
stranger's: nothing is executed, and nothing is read before its size is known to be bounded.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.lib.format as npy
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

import inferencegym
from inferencegym.decision.columns import Float32s, Floats
from inferencegym.envs.batch import Task
from inferencegym.envs.splits import scenario as scenario_number
from inferencegym.ground.errors import ConfigError, InputError
from inferencegym.workload.files import whole_file

FORMAT = 1
#: Steps, observation columns and bytes of file that a record may have; the longest task here has 20,000 steps.
MOST_STEPS, MOST_COLUMNS, MOST_BYTES, MOST_NOTES = 200_000, 128, 256 * 1024 * 1024, 64 * 1024
_KEY = b"inferencegym.episode"
_BATCH = 4096
#: What the readers raise over bytes that are not what they seem.
_BROKEN = (
    zipfile.BadZipFile, zlib.error, pa.ArrowException, OSError, EOFError, ValueError, KeyError, TypeError, IndexError, OverflowError,
    RecursionError, RuntimeError, SyntaxError, MemoryError,
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Episode:
    """What was done and what was claimed to follow."""

    task: str
    digest: str
    split: str
    scenario: int
    """Index within the split."""
    actions: npt.NDArray[Any]
    """int64[t] (paging) or float64[t, 6] (knobs; NaN leaves a knob as it is)."""
    rewards: Floats
    """float64[t]."""
    observations: Float32s
    """float32[t + 1, k]: the first is `reset`'s."""
    terminated: bool
    truncated: bool
    value: float
    """The outcome's value."""
    parts: dict[str, float] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)
    policy: str = ""
    version: str = inferencegym.__version__
    """Of the package that recorded it."""

    def __post_init__(self) -> None:
        steps = len(self.actions)
        if self.rewards.shape != (steps,) or self.observations.ndim != 2 or len(self.observations) != steps + 1:
            raise InputError(
                f"{steps} actions, {len(self.rewards)} rewards, {len(self.observations)} observations do not belong together"
                " (rewards: as many as actions; observations: one more)"
            )

    @property
    def total_reward(self) -> float:
        """The return."""
        return float(self.rewards.sum())

    def save(self, path: Path | str) -> Path:
        """Write `.parquet` or `.npz`, as the name says; the file is there whole or not at all."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".npz":
            notes = np.frombuffer(self._notes().encode(), np.uint8)
            whole_file(target, lambda file: np.savez_compressed(file, notes=notes, actions=self.actions, rewards=self.rewards, observations=self.observations))  # fmt: skip
        elif target.suffix == ".parquet":
            table = self._table().replace_schema_metadata({_KEY: self._notes().encode()})
            whole_file(target, lambda file: pq.write_table(table, file, compression="zstd"))
        else:
            raise ConfigError("file", f"'{target.name}'", allowed="a name that ends in .parquet or .npz")
        return target

    @staticmethod
    def load(path: Path | str) -> Episode:
        """Read a file that `save` wrote; InputError for anything else."""
        source = Path(path)
        if not source.is_file():
            raise InputError("there is no such file", file=source)
        if source.stat().st_size > MOST_BYTES:
            raise InputError(f"is larger than {MOST_BYTES // 2**20} MiB; no episode is", file=source)
        try:
            if source.suffix == ".npz":
                return _read_npz(source)
            if source.suffix == ".parquet":
                return _read_parquet(source)
        except _BROKEN as error:
            if isinstance(error, InputError):
                raise error.in_file(source) if error.file is None else error from error
            raise InputError(f"is not an episode of InferenceGym: {error}", file=source) from error
        raise InputError("is not an episode; known: .parquet, .npz", file=source)

    def _notes(self) -> str:
        notes = {
            "format": FORMAT, "task": self.task, "digest": self.digest, "split": self.split, "scenario": self.scenario, "terminated": self.terminated,
            "truncated": self.truncated, "value": self.value, "parts": self.parts, "facts": self.facts, "policy": self.policy, "version": self.version,
            "action_shape": list(self.actions.shape[1:]),
        }  # fmt: skip
        return json.dumps(notes, sort_keys=True)

    def _table(self) -> pa.Table:
        columns: dict[str, pa.Array] = {}
        actions = self.actions.reshape(len(self.actions), -1)
        for i in range(actions.shape[1]):
            columns[f"action_{i}"] = pa.array([*actions[:, i].tolist(), None], pa.from_numpy_dtype(self.actions.dtype))
        columns["reward"] = pa.array([*self.rewards.tolist(), None], pa.float64())
        for i in range(self.observations.shape[1]):
            columns[f"observation_{i}"] = pa.array(self.observations[:, i])
        return pa.table(columns)


def record(
    task: Task, actor: Any, *, split: str, scenario: int, seed: int | None = None, name: str | None = None
) -> Episode:
    """Let an actor play a whole episode. An actor is a policy (`act(observation, mask)`) or a planner (`decide(batch)`, a batch of one row).

    `scenario`: index within the split; `seed`: of the actor's chance, default the scenario; `name`: of the actor in the record.
    """
    playing = Playing(task, actor, split=split, scenario=scenario, seed=seed, name=name)
    while not playing.step():
        pass
    return playing.episode()


class Playing:
    """An episode under way: an actor at a batch of one row, step by step, and the record it will leave. Arguments as `record`'s."""

    def __init__(
        self, task: Task, actor: Any, *, split: str, scenario: int, seed: int | None = None, name: str | None = None
    ) -> None:
        self.task, self.actor, self.split, self.scenario = task, actor, split, scenario
        self.name = name or actor.name
        self.batch = batch = task.batch(1)
        batch.start(0, scenario_number(split, scenario))
        actor.start(scenario if seed is None else seed)
        self._planner = getattr(actor, "decide", None)
        self.steps = 0
        """Steps taken."""
        self.over = False
        self.actions = np.zeros((task.steps, *batch.actions.shape[1:]), batch.actions.dtype)
        """Dense; those of the first `steps` rows were taken."""
        self.rewards = np.zeros(task.steps)
        self._observations = np.zeros((task.steps + 1, batch.observations.shape[1]), np.float32)
        self._observations[0] = batch.observations[0]

    def step(self) -> bool:
        """One action, and what follows; whether the episode is over now."""
        batch, t = self.batch, self.steps
        action = (
            self._planner(batch)
            if self._planner
            else self.actor.act(batch.observations[0].copy(), batch.masks[0].copy())
        )
        self.actions[t] = batch.actions[0] = self.task.surface.dense(action)
        batch.step()
        self.rewards[t] = batch.rewards[0]
        self.steps = t = t + 1
        self._observations[t] = batch.observations[0]
        self.over = bool(batch.terminated[0] or batch.truncated[0])
        return self.over

    def episode(self) -> Episode:
        """The record, once it is over."""
        batch, t = self.batch, self.steps
        outcome = batch.outcome(0)
        return Episode(
            task=self.task.name, digest=self.task.digest, split=self.split, scenario=self.scenario, actions=self.actions[:t], rewards=self.rewards[:t],
            observations=self._observations[: t + 1], terminated=bool(batch.terminated[0]), truncated=bool(batch.truncated[0]), value=outcome.value,
            parts=dict(outcome.parts), facts=dict(outcome.facts), policy=self.name,
        )  # fmt: skip


def _episode(notes_text: bytes, actions: npt.NDArray[Any], rewards: Floats, observations: Float32s) -> Episode:
    if len(notes_text) > MOST_NOTES:
        raise InputError(f"its notes are longer than {MOST_NOTES} bytes")
    notes = json.loads(notes_text)
    if not isinstance(notes, dict) or notes.get("format") != FORMAT:
        raise InputError(f"is not written in format {FORMAT} of this package's episodes")
    kinds: dict[str, type | tuple[type, ...]] = {
        "task": str, "digest": str, "split": str, "scenario": int, "terminated": bool, "truncated": bool, "value": (int, float), "parts": dict,
        "facts": dict, "policy": str, "version": str,
    }  # fmt: skip
    for name, kind in kinds.items():
        if not isinstance(notes.get(name), kind):
            raise InputError(f"its note '{name}' is missing or of the wrong kind")
    given = {name: notes[name] for name in kinds}
    for name in ("parts", "facts"):
        given[name] = {str(key): float(value) for key, value in given[name].items()}
    return Episode(
        actions=actions, rewards=rewards, observations=observations, **(given | {"value": float(given["value"])})
    )


def _read_npz(path: Path) -> Episode:
    found: dict[str, npt.NDArray[Any]] = {}
    wanted = {"notes": "u1", "actions": "i8f8", "rewards": "f8", "observations": "f4"}
    with zipfile.ZipFile(path) as archive:
        names = [info.filename for info in archive.infolist()]
        if sorted(names) != sorted(f"{name}.npy" for name in wanted):
            raise InputError(f"holds {', '.join(names[:6])}; an episode holds {', '.join(wanted)}")
        for name, kinds in wanted.items():
            with archive.open(f"{name}.npy") as file:
                # The header first: it says how much memory the array would take.
                version = npy.read_magic(file)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, _, dtype = read(file)
            if dtype.str[1:] not in kinds or dtype.hasobject:
                raise InputError(f"'{name}' is of type {dtype}")
            most = MOST_NOTES if name == "notes" else MOST_STEPS + 1
            if not shape or shape[0] > most or math.prod(shape[1:]) > MOST_COLUMNS:
                raise InputError(f"'{name}' of shape {shape} is too large; at most {most} rows of {MOST_COLUMNS}")
            with archive.open(f"{name}.npy") as file:
                found[name] = npy.read_array(cast(Any, file), allow_pickle=False)
    return _episode(found["notes"].tobytes(), found["actions"], found["rewards"], found["observations"])


def _read_parquet(path: Path) -> Episode:
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        notes = (schema.metadata or {}).get(_KEY)
        if notes is None:
            raise InputError("is a table, but not an episode of InferenceGym")
        actions = [name for name in schema.names if name.startswith("action_")]
        seen = [name for name in schema.names if name.startswith("observation_")]
        if not actions or not seen or len(schema.names) > MOST_COLUMNS or file.metadata.num_rows > MOST_STEPS + 1:
            raise InputError(
                f"{file.metadata.num_rows} rows of {len(schema.names)} columns are not an episode; at most {MOST_STEPS} steps"
            )
        if sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)) > MOST_BYTES:
            raise InputError(f"would take more than {MOST_BYTES // 2**20} MiB of memory; no episode does")
        kind = schema.field(actions[0]).type
        right = dict.fromkeys(actions, kind) | {"reward": pa.float64()} | dict.fromkeys(seen, pa.float32())
        if kind not in (pa.int64(), pa.float64()) or any(schema.field(name).type != one for name, one in right.items()):
            raise InputError("its columns are of other types than an episode's")
        pieces, rows = [], 0
        # In pieces: what a file says of its size is only a claim.
        for piece in file.iter_batches(_BATCH, columns=[*actions, "reward", *seen]):
            rows += piece.num_rows
            if rows > MOST_STEPS + 1:
                raise InputError(f"has more than {MOST_STEPS} steps")
            pieces.append(piece)
    table = pa.Table.from_batches(pieces) if pieces else None
    if table is None or table.num_rows == 0:
        raise InputError("is empty")
    observations = np.stack([_numbers(table, name) for name in seen], axis=1)
    table = table.slice(0, table.num_rows - 1)
    columns = [_numbers(table, name) for name in actions]
    scalar = json.loads(notes[:MOST_NOTES]).get("action_shape") == []
    return _episode(notes, columns[0] if scalar else np.stack(columns, axis=1), _numbers(table, "reward"), observations)


def _numbers(table: pa.Table, name: str) -> npt.NDArray[Any]:
    column = table.column(name)
    if column.null_count:
        raise InputError("has an empty cell before its last row", column=name)
    numbers: npt.NDArray[Any] = column.to_numpy()
    return numbers
