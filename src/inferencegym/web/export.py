"""A finished run as a file: JSON, Parquet (a row for each sample and policy) or one HTML page to read and print. For the process at the Desk.

The numbers of a result are those of `evaluate`, with every digit; those of samples are float32, as they were drawn.
"""

from __future__ import annotations

import html
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

import inferencegym
from inferencegym.report.chart import Axis, Line, chart, legend, name
from inferencegym.report.frame import framed, section, table
from inferencegym.web import frames

Table = npt.NDArray[np.float32]
#: Points of a line on the page.
_MOST_POINTS = 400
_GROUPS = {
    "score": "Score", "queues": "Queues", "memory": "Memory", "latency": "Latency", "load": "Load", "knobs": "Knobs", "actions": "Actions",
}  # fmt: skip


def made(kind: str, told: bytes, streamed: Sequence[bytes]) -> bytes:
    """The file. `kind`: json, parquet or html; `told`: the run as JSON; `streamed`: its frames."""
    run: dict[str, Any] = msgspec.json.decode(told)
    samples = _samples(run, streamed)
    makers: dict[str, Callable[[dict[str, Any], list[Table]], bytes]] = {
        "json": _json,
        "parquet": _parquet,
        "html": _html,
    }
    return makers[kind](run, samples)


def _samples(run: dict[str, Any], streamed: Sequence[bytes]) -> list[Table]:
    """Of each policy, float32[columns, samples]."""
    width = len(run["columns"])
    pieces: list[list[Table]] = [[np.empty((width, 0), np.float32)] for _ in run["policies"]]
    for frame in streamed:
        for header, payload in frames.read(frame):
            if header["type"] == "samples":
                pieces[header["policy"]].append(np.frombuffer(payload, "<f4").reshape(width, header["rows"]))
    return [np.concatenate(found, axis=1) for found in pieces]


def _head(run: dict[str, Any]) -> dict[str, Any]:
    kept = (
        "id",
        "spec",
        "link",
        "task_digest",
        "command",
        "sample_name",
        "sample_s",
        "decisions_per_sample",
        "columns",
    )
    return {"version": inferencegym.__version__} | {key: run[key] for key in kept}


def _json(run: dict[str, Any], samples: list[Table]) -> bytes:
    names = [column["name"] for column in run["columns"]]
    policies = []
    for part, found in zip(run["policies"], samples, strict=True):
        columns = {key: msgspec.Raw(_numbers(values)) for key, values in zip(names, found, strict=True)}
        policies.append(
            {key: part[key] for key in ("name", "slot", "state", "message", "result")} | {"samples": columns}
        )
    return msgspec.json.encode(_head(run) | {"policies": policies})


def _numbers(values: Table) -> bytes:
    """A JSON array in as few digits as tell float32 numbers apart; null where there is none."""
    known = np.isfinite(values)
    if known.all() and (values == np.floor(values)).all() and (np.abs(values) < 2**24).all():
        return msgspec.json.encode(values.astype(np.int64).tolist())
    # NumPy writes the shortest text that gives the number again.
    texts = np.where(known, values.astype("U"), "null").tolist()
    return f"[{','.join(texts)}]".encode()


def _parquet(run: dict[str, Any], samples: list[Table]) -> bytes:
    columns: dict[str, Any] = {
        "policy": pa.array([part["name"] for part, found in zip(run["policies"], samples, strict=True) for _ in range(found.shape[1])]).dictionary_encode(),
        "sample": pa.array(np.concatenate([np.arange(found.shape[1], dtype=np.int32) for found in samples])),
    }  # fmt: skip
    for i, column in enumerate(run["columns"]):
        columns[column["name"]] = pa.array(np.concatenate([found[i] for found in samples]), from_pandas=True)
    results = [{key: part[key] for key in ("name", "state", "message", "result")} for part in run["policies"]]
    notes = {b"inferencegym.run": msgspec.json.encode(_head(run) | {"policies": results})}
    out = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata(notes), out, compression="zstd")
    return out.getvalue()


# --- the page ---------------------------------------------------------------------------------------------------------


def _html(run: dict[str, Any], samples: list[Table]) -> bytes:
    spec = run["spec"]
    overrides = ", ".join(f"{key} = {value}" for key, value in spec["overrides"].items())
    context = {
        "Scenario": f"{spec['split']} {spec['seed']}",
        "Overrides": overrides or "none: the task as it ships",
        "Run": run["id"],
    }
    body = section("Results", _results(run)) + section("What the value is made of", _parts(run))
    names = [part["name"] for part in run["policies"]]
    for group, title in _GROUPS.items():
        drawn = [
            _chart(run, i, column, names, samples)
            for i, column in enumerate(run["columns"])
            if column["group"] == group and group != "actions"
        ]
        if drawn:
            body += section(title, f'{legend(names)}<div class="charts">{"".join(drawn)}</div>')
    body += section("Actions", _actions(run, samples))
    # Where evaluate has no line for it, the dashboard's link is what restores the run.
    command = run["command"] or f"inferencegym env   # then open /dashboard/arena?{run['link']}"
    title = f"{', '.join(names)} on {spec['task']}"
    page = framed(
        title,
        body,
        command=command,
        digests={"Task": run["task_digest"]},
        version=inferencegym.__version__,
        context=context,
    )
    return page.encode()


def _results(run: dict[str, Any]) -> str:
    heads = ["Policy", "State", "Value", "Grade", "Total reward (sum)", f"Length ({run['sample_name']}s)"]
    rows = []
    for i, part in enumerate(run["policies"]):
        found = part["result"]
        state = part["state"]
        if state == "crashed":
            state += f" at {run['sample_name']} {found['last_sample'] + 1:,}"
        figures = ["–"] * 4
        if found:
            grade = "–" if found["grade"] is None else f"{found['grade']:.4f}"
            figures = [f"{found['value']:.4f}", grade, f"{found['total_reward']:.2f}", f"{found['last_sample'] + 1:,}"]
        rows.append([name(i, part["name"]), html.escape(f"{state} {part['message']}".strip()), *figures])
    said = "Grade: 0 is the random policy, 1 the planner that knows the future. Tasks with overrides have none."
    return table("What each policy came to", heads, rows, words=(0, 1)) + f"<p>{said}</p>"


def _parts(run: dict[str, Any]) -> str:
    ended = [(i, part) for i, part in enumerate(run["policies"]) if part["result"]]
    heads = list(dict.fromkeys(key for _, part in ended for key in part["result"]["parts"]))
    rows = [[name(i, part["name"]), *(_figure(part["result"]["parts"].get(key)) for key in heads)] for i, part in ended]
    return table("Parts of the value; they add up to it", ["Policy", *map(html.escape, heads)], rows, words=(0,))


def _chart(run: dict[str, Any], at: int, column: dict[str, Any], names: list[str], samples: list[Table]) -> str:
    lines = []
    for i, found in enumerate(samples):
        x, y = _thinned(found[at])
        lines.append(Line(names[i], i, x, y))
    unit = column["unit"] or (
        "code: " + ", ".join(f"{key} {said}" for key, said in column["codes"].items()) if column["codes"] else "1"
    )
    title = column["label"] + (
        "" if column["objective"] is None else f"; objective {column['objective']:g} {column['unit']}"
    )
    return chart(lines, title=title, x=Axis("Time", f"{run['sample_name']}s"), y=Axis(column["label"], unit))


def _thinned(values: Table) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The least and the largest value of each stretch, so that no peak is lost; where there are few, all."""
    where = np.flatnonzero(np.isfinite(values))
    known = values[where]
    if len(known) > _MOST_POINTS:
        kept = []
        for stretch in np.array_split(np.arange(len(known)), _MOST_POINTS // 2):
            kept += sorted({int(stretch[known[stretch].argmin()]), int(stretch[known[stretch].argmax()])})
        where, known = where[kept], known[kept]
    return where.astype(np.float64), known.astype(np.float64)


def _actions(run: dict[str, Any], samples: list[Table]) -> str:
    """How often each action was taken, of tasks whose actions have names."""
    chosen = [i for i, column in enumerate(run["columns"]) if column["group"] == "actions"]
    if not chosen:
        return ""
    codes = run["columns"][chosen[0]]["codes"]
    counts = []
    for found in samples:
        taken = found[chosen]
        counts.append(np.bincount(taken[np.isfinite(taken)].astype(np.int64), minlength=len(codes)))
    rows = [[html.escape(said), *(f"{int(count[int(key)]):,}" for count in counts)] for key, said in codes.items()]
    heads = ["Action", *(name(i, part["name"]) for i, part in enumerate(run["policies"]))]
    return table("Decisions by action", heads, rows, words=(0,))


def _figure(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.4f}"
