"""Which workloads there are, and the figures of one: what the desk does for the Workloads page, never the server itself.

Files are looked at before they are read: of a large one a part is read, and the answer says which. Sizes are bytes, times seconds, lengths tokens.
"""

from __future__ import annotations

import shlex
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pyarrow.parquet as pq

from inferencegym.envs.catalogue import task, task_names
from inferencegym.envs.serve_task import ServeTask
from inferencegym.envs.splits import scenario
from inferencegym.ground.errors import ConfigError, InferenceGymError, InputError
from inferencegym.web.traffic import figures
from inferencegym.web.workloads import Asked
from inferencegym.workload.catalogue import ORIGINALS
from inferencegym.workload.files import FORMAT
from inferencegym.workload.find import VARIABLE, found_traces
from inferencegym.workload.generate import mean_rate_rps
from inferencegym.workload.named import DURATION_S, load
from inferencegym.workload.read import detect
from inferencegym.workload.shipped import is_description, load_named, names
from inferencegym.workload.workload import Workload

#: What is read of a text file, and of a Parquet file's values; what is drawn of a description or a pool.
TEXT_BYTES, VALUES, REQUESTS = 32 << 20, 24_000_000, 500_000
#: Seconds of a pool of clients, hundreds of requests a second: unless told otherwise, and at most.
POOL_S, POOL_MOST_S = 600.0, 3600.0
#: Of sessions without a common clock, which have 68 million prefix ids.
SESSIONS = 20
_CACHED_ANSWERS, _CACHED_BYTES = 64, 8 << 20
_answers: OrderedDict[Any, bytes] = OrderedDict()


@dataclass(frozen=True, slots=True)
class Read:
    """How much of a workload stands behind its figures."""

    whole: bool
    words: str


# --- what there is ----------------------------------------------------------------------------------------------------


def listing() -> list[dict[str, Any]]:
    """Every workload that can be described here, and those that cannot, with the reason. An `id` is the name, or KIND:NAME where the name is taken."""
    found = [*_fits(), *_tasks(), *_traces(), *_originals()]
    taken: set[str] = set()
    for one in found:
        one["id"] = _full(one) if one["name"] in taken else one["name"]
        taken.add(one["name"])
    return found


def _full(one: dict[str, Any]) -> str:
    return f"{one['kind']}:{one['name']}"


def _one(kind: str, name: str, **more: Any) -> dict[str, Any]:
    plain = {"about": "", "source": "", "licence": "", "rate_rps": None, "requests": None, "bytes": None}
    return {"id": "", "kind": kind, "name": name, "takes": [], "available": True, "why_not": None} | plain | more


def _fits() -> list[dict[str, Any]]:
    found = []
    for name in names():
        spec = load_named(name)
        about = "drawn from figures that come with the package"
        found.append(_one("fit", name, about=about, source=spec.source, licence=spec.licence, rate_rps=mean_rate_rps(spec), takes=["seed", "duration_s", "rate_rps"]))  # fmt: skip
    return found


def _tasks() -> list[dict[str, Any]]:
    found = []
    for name in task_names("llmserve"):
        of = _serve_task(name)
        missing = None
        if of.file.traffic.source == "trace" and of.file.traffic.name not in found_traces():
            missing = f"needs the real trace {of.file.traffic.name}: set {VARIABLE} to a folder that holds it, and start the server again"
        found.append(_one("task", name, about=of.description, source=_source_of(of), takes=["seed", "split"], available=missing is None, why_not=missing))  # fmt: skip
    return found


def _source_of(of: ServeTask) -> str:
    traffic = of.file.traffic
    words = {"description": "a description in the task's file", "fit": f"the shipped fit {traffic.name}", "trace": f"windows of the real trace {traffic.name}"}  # fmt: skip
    return f"{words[traffic.source]}; {of.duration_s:g} s an episode"


def _traces() -> list[dict[str, Any]]:
    found = []
    for name, path in found_traces().items():
        size = path.stat().st_size
        try:
            kind = detect(path)
        except InferenceGymError as error:
            why = error.problem if isinstance(error, InputError) else str(error)
            found.append(_one("trace", name, bytes=size, available=False, why_not=f"no list of requests: {why}"))
            continue
        if kind == "servegen":
            found += [_one("trace", f"{name}@{pool}", about=f"clients of the pool {pool}, drawn anew", source=path.name, bytes=size, takes=["seed", "duration_s", "rate_rps"]) for pool in _pools(path)]  # fmt: skip
            continue
        takes = ["seed"] * (kind == "weka") + ["duration_s", "rate_rps"]
        found.append(_one("trace", name, about="a real trace, as it was recorded", source=path.name, bytes=size, requests=_rows(path), takes=takes))  # fmt: skip
    return found


def _originals() -> list[dict[str, Any]]:
    """Traces that tasks need or publishers offer, and that are not here."""
    here, found = found_traces(), []
    for one in map(ORIGINALS.get, ORIGINALS.names()):
        if one.name not in here:
            why = f"is not here; type: inferencegym traces fetch {one.name}"
            found.append(_one("trace", one.name, about=one.about, source=one.attribution, licence=one.licence, available=False, why_not=why))  # fmt: skip
    for name in task_names("llmserve"):
        traffic = _serve_task(name).file.traffic
        if traffic.source == "trace" and traffic.name not in here:
            found.append(_one("trace", traffic.name, about=f"the real trace behind the task {name}", available=False, why_not=f"is not here: set {VARIABLE} to a folder that holds it, and start the server again"))  # fmt: skip
    return found


def _serve_task(name: str) -> ServeTask:
    return cast(ServeTask, task(name))


def _rows(path: Path) -> int | None:
    """Rows of a Parquet file; a text file would have to be read whole to know."""
    if path.suffix != ".parquet":
        return None
    rows: int = pq.read_metadata(path).num_rows
    return rows


def _pools(path: Path) -> list[str]:
    return sorted(pq.read_table(path, columns=["model"]).column("model").unique().to_pylist())


# --- one of them ------------------------------------------------------------------------------------------------------


def described(asked: Asked) -> bytes:
    """The answer of `/api/workloads/{name}` as JSON; the last few are kept, by what was asked and the file's own state."""
    makers: dict[str, Callable[[Asked, str], dict[str, Any]]] = {"fit": _fit, "task": _task, "trace": _trace}
    one = next((one for one in listing() if asked.name in (one["id"], _full(one))), None)
    if one is None:
        raise ConfigError(
            "workload", f"there is none called '{asked.name[:80]}' here", allowed="a name that /api/workloads lists"
        )
    kind, name = one["kind"], one["name"]
    if not one["available"]:
        raise ConfigError("workload", f"{name} {one['why_not']}")
    key = (asked, _state(name))
    if key in _answers:
        _answers.move_to_end(key)
        return _answers[key]
    unused = [field for field in ("seed", "duration_s", "rate_rps", "split") if getattr(asked, field) is not None and field not in one["takes"]]  # fmt: skip
    found: bytes = msgspec.json.encode({"id": one["id"], "kind": kind, "name": name, "about": one["about"], "takes": one["takes"], "unused": unused, "asked": msgspec.structs.asdict(asked)} | makers[kind](asked, name))  # fmt: skip
    _answers[key] = found
    while len(_answers) > _CACHED_ANSWERS or sum(map(len, _answers.values())) > _CACHED_BYTES:
        _answers.popitem(last=False)
    return found


def _state(name: str) -> tuple[int, int] | None:
    """What changes when a trace's file does."""
    path = found_traces().get(name.partition("@")[0])
    return None if path is None else (path.stat().st_mtime_ns, path.stat().st_size)


def _fit(asked: Asked, name: str) -> dict[str, Any]:
    duration_s = asked.duration_s or DURATION_S
    rate_rps = asked.rate_rps or mean_rate_rps(load_named(name))
    _check_size(duration_s, rate_rps)
    w = load(name, seed=asked.seed or 0, duration_s=asked.duration_s, rate_rps=asked.rate_rps)
    return _answer(w, Read(True, f"drawn for {duration_s:g} s"), _command(name, asked))


def _check_size(duration_s: float, rate_rps: float) -> None:
    """ConfigError for more requests than are drawn here."""
    if rate_rps * duration_s > REQUESTS:
        raise ConfigError("duration_s", f"{duration_s:g} s at {rate_rps:.3g} requests/s are about {rate_rps * duration_s:.3g} requests", allowed=f"at most {REQUESTS:,} requests here, which are {REQUESTS / rate_rps:,.0f} s")  # fmt: skip


def _task(asked: Asked, name: str) -> dict[str, Any]:
    split, seed = asked.split or "validation", asked.seed or 0
    w = _serve_task(name).workload(scenario(split, seed))
    told = f"the requests of {split} scenario {seed}, one episode"
    lines = (
        "from inferencegym.envs.catalogue import task",
        "from inferencegym.envs.splits import scenario",
        "from inferencegym.workload.describe import describe",
        f"print(describe(task({name!r}).workload(scenario({split!r}, {seed}))))",
    )
    return _answer(w, Read(True, told), None, python="\n".join(lines))


def _trace(asked: Asked, name: str) -> dict[str, Any]:
    file, _, pool = name.partition("@")
    path = found_traces()[file]
    # A fit of the same name would be drawn instead; a path is always read.
    file = str(path) if is_description(file) else file
    size: dict[str, Any] = {"duration_s": asked.duration_s, "rate_rps": asked.rate_rps, "seed": asked.seed or 0}
    if pool:
        return _pool(asked, file, pool, size)
    if detect(path) == "weka":
        w = load(file, sessions=SESSIONS, **size)
        rows = pq.read_metadata(path).num_rows
        told = f"the first {SESSIONS} sessions were read, {len(w):,} of {rows:,} requests: reading all prefix ids takes more than a gigabyte"
        read = Read(len(w) == rows, told)
        return _answer(w, read, _command(file, asked, "--sessions", str(SESSIONS)))
    if path.suffix != ".parquet" and path.stat().st_size > TEXT_BYTES:
        return _text_part(asked, path, size)
    if path.suffix == ".parquet" and _values(path) > VALUES:
        return _parquet_part(path, size)
    return _answer(load(file, **size), Read(True, "the whole file was read"), _command(file, asked))


def _pool(asked: Asked, file: str, pool: str, size: dict[str, Any]) -> dict[str, Any]:
    duration_s = asked.duration_s or POOL_S
    if duration_s > POOL_MOST_S:
        raise ConfigError("duration_s", f"{duration_s:g} s", allowed=f"at most {POOL_MOST_S:g} s of a pool here")
    _check_size(duration_s, asked.rate_rps or 0.0)
    w = load(file, pool=pool, **(size | {"duration_s": duration_s}))
    told = Read(False, f"the pool's first {duration_s:g} s were drawn")
    return _answer(w, told, _command(file, msgspec.structs.replace(asked, duration_s=duration_s), "--pool", pool))


def _text_part(asked: Asked, path: Path, size: dict[str, Any]) -> dict[str, Any]:
    """Whole lines from a large text file's beginning."""
    whole = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(TEXT_BYTES)
    lines = head.count(b"\n")
    if not lines:
        raise InputError(f"its first {TEXT_BYTES >> 20} MiB hold no whole line", file=path)
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / path.name
        part.write_bytes(head[: head.rindex(b"\n") + 1])
        w = load(str(part), **size)
    told = Read(False, f"the first {lines:,} lines were read, {TEXT_BYTES >> 20} of {whole >> 20} MiB")
    cut = f"head -n {lines} {shlex.quote(path.name)} > part{path.suffix} && "
    return _answer(w, told, cut + _command(f"part{path.suffix}", asked))


def _parquet_part(path: Path, size: dict[str, Any]) -> dict[str, Any]:
    """As many row groups from a large table's beginning as hold few enough values."""
    with pq.ParquetFile(path) as file:
        groups, taken = 0, 0
        while groups < file.metadata.num_row_groups and (taken := taken + _group_values(file, groups)) <= VALUES:
            groups += 1
        if not groups:
            raise ConfigError("workload", f"{path.name}: its first row group alone holds {taken:,} values", allowed=f"row groups of at most {VALUES:,} values: write it again with smaller ones")  # fmt: skip
        table, rows = file.read_row_groups(list(range(groups))), file.metadata.num_rows
    meta = dict(table.schema.metadata or {})
    if meta.get(b"format") == FORMAT.encode():
        meta[b"rows"] = str(table.num_rows).encode()
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / path.name
        pq.write_table(table.replace_schema_metadata(meta), part)
        w = load(str(part), **size)
    return _answer(w, Read(False, f"the first {table.num_rows:,} of {rows:,} rows were read: it is large"), None)


def _values(path: Path) -> int:
    """Values in all columns of a Parquet file; a list counts as many as it holds."""
    with pq.ParquetFile(path) as file:
        return sum(_group_values(file, group) for group in range(file.metadata.num_row_groups))


def _group_values(file: pq.ParquetFile, group: int) -> int:
    held = file.metadata.row_group(group)
    return sum(held.column(i).num_values for i in range(held.num_columns))


def _command(name: str, asked: Asked, *more: str) -> str:
    """The line that prints the same figures."""
    line = ["inferencegym", "traces", "describe", name, *more]
    for option, value in (("--seed", asked.seed), ("--duration", asked.duration_s), ("--rate", asked.rate_rps)):
        if value is not None:
            line += [option, f"{value:.17g}" if float(f"{value:g}") != value else f"{value:g}"]
    return shlex.join([*line, "--json"])


def _answer(w: Workload, read: Read, command: str | None, python: str | None = None) -> dict[str, Any]:
    assert np.isfinite(w.duration_s)
    return {"read": asdict(read), "command": command, "python": python} | figures(w)
