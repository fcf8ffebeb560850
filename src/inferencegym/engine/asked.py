"""A workload as the kernels read it: whole picoseconds, links from a request to those that wait for it, prefix ids. Checked once, here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inferencegym.engine.memory import ASKED, NONE, ROW, Floats, Ints, Ints32, Structured
from inferencegym.engine.settings import EngineSettings
from inferencegym.ground.errors import ConfigError, InputError
from inferencegym.ground.units import array_to_ps
from inferencegym.workload import Workload


@dataclass(frozen=True, slots=True)
class Question:
    """What kernels read: `asked` holds the addresses of the other arrays, which live as long as this does."""

    asked: Structured  # ASKED[1]
    rows: Structured  # ROW[n]
    open_rows: Ints32
    key_ids: Ints
    accept: Floats  # float64[kinds, drafts]


NO_DEADLINE_S = 3600.0  # order=edf: requests without a TTFT objective come after those with one


def ask(
    workload: Workload, block_size: int, settings: EngineSettings, slo_ttft_s: Sequence[float] | None = None
) -> Question:
    """The kernels' view of a workload.

    slo_ttft_s : float64[classes], TTFT objective of each SLO class, for order=edf
    """
    if len(workload) and int(workload.output_tokens.min()) < 1:
        row = int(np.argmin(workload.output_tokens))
        raise InputError(
            "0 output tokens cannot be served (the source says the request failed); leave such rows out with workload.servable()",
            row=row + 1,
            column="output_tokens",
        )
    _check_blocks(workload, block_size)
    waits = workload.after >= 0
    classes = max(len(workload.slo_class_names), int(workload.slo_class.max(initial=0)) + 1)
    if slo_ttft_s is not None and len(slo_ttft_s) < classes:
        raise ConfigError(
            "slo_ttft_s", f"{len(slo_ttft_s)} objectives for {classes} classes", allowed=f"{classes} numbers"
        )
    deadlines_s = np.full(classes, NO_DEADLINE_S) if slo_ttft_s is None else np.asarray(slo_ttft_s, dtype=np.float64)
    kinds = max(len(workload.kind_names), int(workload.kind.max(initial=0)) + 1, 1)
    rows = np.zeros(len(workload), ROW)
    rows["arrival_ps"] = array_to_ps(workload.arrival_s, field="arrival_s")
    rows["think_ps"] = array_to_ps(np.where(waits, workload.think_s, 0.0), field="think_s")
    rows["slo_ttft_ps"] = array_to_ps(deadlines_s, field="slo_ttft_s")[workload.slo_class]
    rows["key_offset"] = workload.prefix_offsets[:-1]
    rows["prompt"] = workload.prompt_tokens
    rows["target"] = workload.output_tokens
    rows["budget"] = workload.output_budget_tokens
    rows["tenant"] = workload.tenant
    rows["key_tokens"] = _covered_tokens(workload)
    rows["child"], rows["sibling"] = _followers(workload.after)
    rows["priority"] = workload.priority
    rows["kind"] = workload.kind
    open_rows = np.flatnonzero(~waits).astype(np.int32)
    key_ids = np.ascontiguousarray(workload.prefix_ids, dtype=np.int64)
    names = [*workload.kind_names, *[""] * kinds][:kinds]
    accept = np.array([settings.cumulative_acceptance(name) for name in names])
    asked = np.zeros(1, ASKED)
    for name, array in (("rows", rows), ("open_rows", open_rows), ("key_ids", key_ids), ("accept", accept)):
        asked[f"{name}_at"] = array.ctypes.data
    asked["key_block"] = workload.prefix_block_tokens
    parts, rest = divmod(workload.prefix_block_tokens, block_size)
    asked["key_shift"] = parts.bit_length() - 1 if rest == 0 and parts and parts & (parts - 1) == 0 else -1
    asked["drafts"] = accept.shape[1]
    return Question(asked, rows, open_rows, key_ids, accept)


def _check_blocks(workload: Workload, block_size: int) -> None:
    size = workload.prefix_block_tokens
    if size and size % block_size and block_size % size:
        raise ConfigError(
            "deployment.block_size",
            f"{block_size} tokens do not divide the workload's prefix blocks of {size} tokens, nor the other way round",
            allowed=f"a divisor or a multiple of {size}",
        )


def _followers(after: Ints32) -> tuple[Ints32, Ints32]:
    """First row that waits for each row, and the next one that waits for the same, in row order."""
    child = np.full(len(after), NONE, np.int32)
    sibling = np.full(len(after), NONE, np.int32)
    for row in np.flatnonzero(after >= 0)[::-1].tolist():
        sibling[row] = child[after[row]]
        child[after[row]] = row
    return child, sibling


def _covered_tokens(workload: Workload) -> Ints32:
    """Tokens that a row's ids cover. A last id may stand for a part of a block: it ends where the prompt does."""
    size = workload.prefix_block_tokens
    if size == 0:
        return np.zeros(len(workload), np.int32)
    ids = np.diff(workload.prefix_offsets)
    prompt = workload.prompt_tokens
    prompt_only = ids == -(-prompt // size)
    covered = np.where(prompt_only, np.minimum(ids * size, prompt), ids * size)
    covered_int: Ints32 = covered.astype(np.int32)
    return covered_int
