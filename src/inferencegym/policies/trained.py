"""A trained policy in one small file: `.npz` with its numbers and a note in JSON of what it was trained on, by which settings.

`save` writes one, `load` reads one as a stranger's: nothing is executed, sizes are bounded, and what was made for other columns, other
actions or another meaning of them is refused. A shipped policy lies in `weights/TASK.npz` and is called `learned`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inferencegym.decision.knobs import GRID, LEVERS, QUANTIZATION_TIERS
from inferencegym.decision.paging import NAMES
from inferencegym.ground.archive import BROKEN, Array, read_archive, write_archive
from inferencegym.ground.errors import ConfigError, InputError, UnknownNameError
from inferencegym.policies import feedback
from inferencegym.policies.feedback import FeedbackKnobs
from inferencegym.policies.heads import HEADS, Head, find_head
from inferencegym.policies.linear import FEATURES, Frame, LinearKnobs
from inferencegym.policies.network import ACTIVATIONS, NetworkPolicy
from inferencegym.policies.simple import surface_of
from inferencegym.policies.table import Cells, TablePolicy
from inferencegym.policies.tree import Branches, TreePolicy
from inferencegym.policies.tuned import NAMES as PARAMETERS
from inferencegym.policies.tuned import TunedSieve, parameters_of

FORMAT = 1
SUFFIX = ".npz"
WEIGHTS = Path(__file__).parent / "weights"
KINDS = ("network", "table", "tree", "rule", "linear", "feedback")
_MOST_BYTES, _MOST_LAYERS = 32 * 1024 * 1024, 8
_WRITTEN_BY = "a file that `inferencegym train` wrote"
#: Those that score every choice; and all that a file may hold.
Trained = NetworkPolicy | TablePolicy | TreePolicy
Loaded = Trained | TunedSieve | LinearKnobs | FeedbackKnobs


@dataclass(frozen=True, slots=True)
class Notes:
    """What a file says of the policy in it."""

    kind: str
    """network, table, tree, rule, linear or feedback."""
    surface: str
    head: str
    """How scores become actions: see `policies.heads`."""
    task: str
    """What it was trained on."""
    task_digest: str
    algorithm: str
    seed: int
    config_digest: str
    """sha256 of the training's settings."""
    steps: int
    """Environment steps up to here."""
    activation: str = ""
    """Of a network: tanh or relu."""
    validation: float | None = None
    """Mean value on the training's validation scenarios."""
    head_version: int = 1
    surface_version: str = ""
    version: str = ""
    """Of the package that wrote it."""
    more: dict[str, Any] = field(default_factory=dict)


@lru_cache(maxsize=4)
def surface_version(name: str) -> str:
    """16 hexadecimal digits of what a surface's numbers mean: columns, ranges, scales, actions. Another meaning, another version."""
    columns = [(c.name, c.unit, c.low, c.high, c.log) for c in surface_of(name).columns]
    actions: Any = NAMES if name == "paging" else [LEVERS, list(GRID.values()), QUANTIZATION_TIERS]
    return hashlib.sha256(json.dumps([columns, actions]).encode()).hexdigest()[:16]


def save(path: Path | str, notes: Notes, arrays: dict[str, Array]) -> Path:
    """Write a policy, whole or not at all. `arrays`: see `load`."""
    target = Path(path)
    if target.suffix != SUFFIX:
        raise ConfigError("policy", f"'{target.name}'", allowed=f"a name that ends in {SUFFIX}")
    told = {"format": FORMAT, **asdict(notes)}
    told |= {"head_version": find_head(notes.surface, notes.head).version, "surface_version": surface_version(notes.surface)}  # fmt: skip
    write_archive(target, told, arrays)
    return target


def load(path: Path | str, surface: str | None = None, *, name: str | None = None) -> Loaded:
    """The policy in a file; ConfigError if it is none, or not for this surface as it is now. `name`: what to call it; unset: the file's name.

    Arrays of a network: `mean`, `scale` (float32[k]), `w0`, `b0`, `w1`, `b1`, ... (float32[inputs, outputs] and float32[outputs]).
    Of a table: `columns` (int64[c]), `edges` (float32[c, e]), `values` (float32[cells, m]).
    Of a tree: `columns` (int64[b]), `thresholds` (float32[b]), `children` (int64[b, 2]), `values` (float32[b + 1, m]).
    Of a rule: `names` (text[p]), `parameters` (float64[p]), see `policies.tuned`.
    Of a feedback rule: the same, see `policies.feedback`.
    Of a linear rule: `names` (text[f]), `mean`, `scale` (float64[f]), `base` (float64[6]), `weights` (float64[4, f + 1]), see `policies.linear`.
    """
    source = Path(path)
    notes, arrays = read(source)
    if surface is not None and notes.surface != surface:
        raise ConfigError("policy", f"'{source}' acts on '{notes.surface}'", allowed=f"a policy of surface '{surface}'")
    try:
        return policy_of(notes, arrays, name=name or source.stem)
    except UnknownNameError as error:
        raise _none(source, str(error)) from error
    except BROKEN as error:
        if isinstance(error, ConfigError):
            raise ConfigError("policy", f"'{source}': {error}") from error
        raise _none(source, str(error)) from error


def read(path: Path | str) -> tuple[Notes, dict[str, Array]]:
    """A file's notes and arrays, as they stand in it; ConfigError for what is no policy of this format."""
    source = Path(path)
    if not source.is_file():
        raise ConfigError("policy", f"there is no file '{source}'", allowed=_WRITTEN_BY)
    try:
        told, arrays = read_archive(source, most_bytes=_MOST_BYTES)
        if told.pop("format", None) != FORMAT:
            raise ValueError(f"it is not written in format {FORMAT}")
        notes = Notes(**told)
        _check_kinds(notes)
    except BROKEN as error:
        raise _none(source, error.problem if isinstance(error, InputError) else str(error)) from error
    return notes, arrays


def policy_of(notes: Notes, arrays: dict[str, Array], *, name: str = "trained") -> Loaded:
    """The policy that notes and arrays describe. ConfigError: made for another meaning of surface or head; ValueError: they do not fit together."""
    if notes.kind not in _RULES:
        return build(notes, arrays, name=name)
    _head_of(notes)
    return _RULES[notes.kind](notes, arrays, name)


def build(notes: Notes, arrays: dict[str, Array], *, name: str = "trained") -> Trained:
    """The same, for those that score every choice: all but rules."""
    head = _head_of(notes)
    width = len(surface_of(notes.surface).columns)
    if notes.kind == "table":
        return _table(notes, arrays, head, width, name)
    if notes.kind == "tree":
        return _tree(notes, arrays, head, width, name)
    if notes.kind in _RULES:
        raise ValueError("a rule has no scores")
    return _network(notes, arrays, head, width, name)


def _head_of(notes: Notes) -> Head:
    """The head that notes ask for, if it and the surface mean today what they meant then."""
    head = find_head(notes.surface, notes.head)
    now = surface_version(notes.surface)
    if notes.surface_version and notes.surface_version != now:
        problem = f"it was trained for version {notes.surface_version} of surface '{notes.surface}', which is now {now}"
        raise ConfigError("surface", problem, allowed="train it again, or use inferencegym " + notes.version)
    if notes.surface_version and notes.head_version != head.version:
        problem = (
            f"it was trained for version {notes.head_version} of '{head.name}' actions, which are now at {head.version}"
        )
        raise ConfigError("head", problem, allowed="train it again, or use inferencegym " + notes.version)
    return head


def shipped(task: str) -> Path:
    """Where the policy that comes with the package for a task lies, if there is one."""
    return WEIGHTS / f"{task}{SUFFIX}"


def _network(notes: Notes, arrays: dict[str, Array], head: Head, width: int, name: str) -> NetworkPolicy:
    depth = sum(key.startswith("w") for key in arrays)
    if not 1 <= depth <= _MOST_LAYERS:
        raise ValueError(f"{depth} layers, where 1 to {_MOST_LAYERS} are allowed")
    layers, inputs = [], width
    for i in range(depth):
        outputs = sum(head.sizes) if i == depth - 1 else arrays[f"b{i}"].size
        layers.append((_floats(arrays, f"w{i}", (inputs, outputs)), _floats(arrays, f"b{i}", (outputs,))))
        inputs = outputs
    mean, scale = _floats(arrays, "mean", (width,)), _floats(arrays, "scale", (width,))
    return NetworkPolicy(notes.surface, head, mean, scale, layers, notes.activation, name=name)


def _table(notes: Notes, arrays: dict[str, Array], head: Head, width: int, name: str) -> TablePolicy:
    columns, edges = arrays["columns"], arrays["edges"]
    if columns.dtype.kind != "i" or columns.ndim != 1 or not ((columns >= 0) & (columns < width)).all():
        raise ValueError(f"columns must be whole numbers below {width}")
    if edges.dtype != np.float32 or edges.ndim != 2 or len(edges) != len(columns) or np.isnan(edges).any():
        raise ValueError("edges must be float32, a row for each column")
    cells = Cells(columns.astype(np.int64), edges)
    return TablePolicy(notes.surface, head, cells, _floats(arrays, "values", (cells.size, sum(head.sizes))), name=name)


def _tree(notes: Notes, arrays: dict[str, Array], head: Head, width: int, name: str) -> TreePolicy:
    columns, children = arrays["columns"], arrays["children"]
    if columns.dtype.kind != "i" or columns.ndim != 1 or not ((columns >= 0) & (columns < width)).all():
        raise ValueError(f"columns must be whole numbers below {width}")
    if children.dtype.kind != "i" or children.shape != (len(columns), 2):
        raise ValueError("children must be whole numbers, two for each branch")
    branches = Branches(
        columns.astype(np.int64), _floats(arrays, "thresholds", columns.shape), children.astype(np.int64)
    )
    values = _floats(arrays, "values", (branches.leaves, sum(head.sizes)))
    return TreePolicy(notes.surface, head, branches, values, name=name)


def _rule(notes: Notes, arrays: dict[str, Array], name: str) -> TunedSieve:
    if notes.surface != "paging":
        raise ValueError(f"its rule is one of surface 'paging', not '{notes.surface}'")
    return TunedSieve(parameters_of(_named(arrays, PARAMETERS)), name=name)


def _feedback(notes: Notes, arrays: dict[str, Array], name: str) -> FeedbackKnobs:
    if notes.surface != "knobs":
        raise ValueError(f"a feedback rule is one of surface 'knobs', not '{notes.surface}'")
    return FeedbackKnobs(feedback.parameters_of(_named(arrays, feedback.NAMES)), name=name)


def _named(arrays: dict[str, Array], known: tuple[str, ...]) -> dict[str, float]:
    """A rule's parameters: all that it has, and no others."""
    names, values = arrays["names"], arrays["parameters"]
    if names.dtype.kind != "U" or values.dtype != np.float64 or names.shape != values.shape or values.ndim != 1:
        raise ValueError("parameters must be float64, each with a name")
    if sorted(names.tolist()) != sorted(known):
        raise ValueError(f"its rule has other parameters than today's: {', '.join(known)}")
    return dict(zip(names.tolist(), values.tolist(), strict=True))


def _linear(notes: Notes, arrays: dict[str, Array], name: str) -> LinearKnobs:
    if notes.surface != "knobs":
        raise ValueError(f"a linear rule is one of surface 'knobs', not '{notes.surface}'")
    if arrays["names"].dtype.kind != "U" or tuple(arrays["names"].tolist()) != FEATURES:
        raise ValueError(f"it looks at other figures than today's: {', '.join(FEATURES)}")
    for one in ("mean", "scale", "base", "weights"):
        if arrays[one].dtype != np.float64:
            raise ValueError(f"{one} is {arrays[one].dtype}, where float64 belongs")
    return LinearKnobs(Frame(arrays["mean"], arrays["scale"], arrays["base"]), arrays["weights"], name=name)


#: Kinds that decide without scores, and how each is made.
_RULES: dict[str, Callable[[Notes, dict[str, Array], str], Loaded]] = {
    "rule": _rule,
    "linear": _linear,
    "feedback": _feedback,
}


def _floats(arrays: dict[str, Array], name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    found = arrays[name]
    if found.dtype != np.float32 or found.shape != shape:
        raise ValueError(f"{name} is {found.dtype} of shape {found.shape}, where float32 of shape {shape} belongs")
    if not np.isfinite(found).all():
        raise ValueError(f"{name} holds a number that is none")
    return found


def _check_kinds(notes: Notes) -> None:
    texts = ("kind", "surface", "head", "task", "task_digest", "algorithm", "config_digest", "activation", "surface_version", "version")  # fmt: skip
    for name in texts:
        if not isinstance(getattr(notes, name), str):
            raise TypeError(f"its note '{name}' is no text")
    for name in ("seed", "steps", "head_version"):
        if not isinstance(getattr(notes, name), int):
            raise TypeError(f"its note '{name}' is no whole number")
    for what, given, known in (("kind", notes.kind, KINDS), ("surface", notes.surface, tuple(HEADS))):
        if given not in known:
            raise ValueError(f"{what} '{given[:40]}' is not known")
    if notes.kind == "network" and notes.activation not in ACTIVATIONS:
        raise ValueError(f"activation '{notes.activation[:40]}' is not known")


def _none(source: Path, why: str) -> ConfigError:
    return ConfigError("policy", f"'{source}' is not a trained policy of InferenceGym: {why}", allowed=_WRITTEN_BY)
