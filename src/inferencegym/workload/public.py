"""Readers of published traces: BurstGPT, Azure, Mooncake, RAGPulse, and Parquet files in the common schema of
`docs/workloads.md`.

Times become seconds from the start of the file, lengths are tokens. Each takes a table and gives a workload.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from inferencegym.ground.errors import InputError
from inferencegym.workload.mapped import sessions, tell_columns
from inferencegym.workload.options import ReadOptions
from inferencegym.workload.prefixes import chained, offsets_of
from inferencegym.workload.table import Table, read_parquet
from inferencegym.workload.workload import Floats, Ints, Workload

MOONCAKE_BLOCK_TOKENS = 512
#: RAGPulse has chunks of any length; its prefixes are named at this size, which divides into every engine's blocks.
RAGPULSE_BLOCK_TOKENS = 16
#: Seconds between excerpts that have no common clock.
EXCERPT_PAUSE_S = 60.0

CREDITS = {
    "azure": "Azure LLM inference trace 2023/2024, Azure Public Dataset, Microsoft, CC BY 4.0 "
    "(Patel et al., Splitwise, ISCA 2024; Stojkovic et al., DynamoLLM, HPCA 2025)",
    "burstgpt": "BurstGPT, CC BY 4.0 (Wang et al., KDD 2025, doi 10.1145/3711896.3737413)",
    "mooncake": "Mooncake traces, Moonshot AI and Tsinghua University, Apache-2.0 (Qin et al., FAST 2025)",
    "ragpulse": "RAGPulse, (c) 2025 zhengchao wang, MIT (Wang et al., arXiv 2511.12979)",
    "servegen": "ServeGen, Alibaba, Apache-2.0 (arXiv 2505.09999)",
    "weka": "Agentic coding traces of kv-cache-tester, (c) 2024 Callan Fox (research at WEKA), Apache-2.0",
}


def burstgpt(table: Table, options: ReadOptions) -> Workload:
    """Rows with response 0 (and nearly always request 0) failed; the kind is log and model; sessions where the file
    has them.
    """
    names = {"arrival_s": "Timestamp", "prompt_tokens": "Request tokens", "output_tokens": "Response tokens"}
    columns: dict[str, Any] = {
        "arrival_s": table.floats("Timestamp"),
        "prompt_tokens": table.ints("Request tokens", "prompt_tokens"),
        "output_tokens": table.ints("Response tokens", "output_tokens"),
    }
    parts = [table.codes(name) for name in ("Log Type", "Model") if name in table]
    if parts:
        columns["kind"], columns["kind_names"] = _joined(parts)
    session = next((name for name in ("Session ID", "session_id", "Session") if name in table), None)
    if session is not None:
        columns["session_id"] = sessions(table, session)
    return tell_columns(
        table, names, lambda: Workload.of(**columns, sort=options.sort, attribution=CREDITS["burstgpt"])
    )


def azure(table: Table, options: ReadOptions) -> Workload:
    """Dates with or without a zone; time starts at the first row."""
    names = {"arrival_s": "TIMESTAMP", "prompt_tokens": "ContextTokens", "output_tokens": "GeneratedTokens"}
    stamp_s = table.seconds("TIMESTAMP")
    columns: dict[str, Any] = {
        "arrival_s": np.round(stamp_s - (stamp_s.min() if options.sort else stamp_s[0]), 6)
        if len(stamp_s)
        else stamp_s,
        "prompt_tokens": table.ints("ContextTokens", "prompt_tokens"),
        "output_tokens": table.ints("GeneratedTokens", "output_tokens"),
    }
    _forward(columns["arrival_s"], table, "TIMESTAMP", options)
    return tell_columns(table, names, lambda: Workload.of(**columns, sort=options.sort, attribution=CREDITS["azure"]))


def mooncake(table: Table, options: ReadOptions) -> Workload:
    """Milliseconds; ids name whole prefixes of 512-token blocks, the last of which may be partial."""
    names = {
        "arrival_s": "timestamp",
        "prompt_tokens": "input_length",
        "output_tokens": "output_length",
        "prefix_ids": "hash_ids",
    }
    columns: dict[str, Any] = {
        "arrival_s": table.floats("timestamp") / 1000.0,
        "prompt_tokens": table.ints("input_length", "prompt_tokens"),
        "output_tokens": table.ints("output_length", "output_tokens"),
    }
    if "hash_ids" in table and options.prefixes:
        columns["prefix_offsets"], columns["prefix_ids"] = table.lists("hash_ids")
        columns["prefix_block_tokens"] = MOONCAKE_BLOCK_TOKENS
    return tell_columns(
        table, names, lambda: Workload.of(**columns, sort=options.sort, attribution=CREDITS["mooncake"])
    )


def trace(table: Table, options: ReadOptions) -> Workload:
    """The common schema. `hash_ids` must name whole prefixes; the file's metadata says how many tokens a block has."""
    columns: dict[str, Any] = {
        "arrival_s": _one_clock(table),
        "prompt_tokens": table.ints("prompt_tokens"),
        "output_tokens": table.ints("output_tokens"),
    }
    kinds = [table.codes(name) for name in ("kind", "model") if name in table]
    if kinds:
        columns["kind"], columns["kind_names"] = _joined(kinds)
    if "tenant" in table:
        columns["tenant"], columns["tenant_names"] = table.codes("tenant")
    if "session_id" in table:
        columns["session_id"] = table.ints("session_id")
    if "hash_ids" in table and options.prefixes:
        columns["prefix_offsets"], columns["prefix_ids"] = table.lists("hash_ids")
        columns["prefix_block_tokens"] = _block_tokens(table)
    credit = credit_of(table)
    return tell_columns(
        table, {"prefix_ids": "hash_ids"}, lambda: Workload.of(**columns, sort=options.sort, attribution=credit)
    )


def ragpulse(table: Table, options: ReadOptions) -> Workload:
    """Prompts are rows of content chunks; a block's name is made of all chunks up to the one it ends in."""
    prompt = table.ints("prompt_tokens")
    columns: dict[str, Any] = {
        "arrival_s": table.floats("arrival_s"),
        "prompt_tokens": prompt,
        "output_tokens": table.ints("output_tokens"),
        "session_id": table.ints("session_id"),
    }
    if options.prefixes:
        offsets, chunks = table.lists("hash_ids")
        columns["prefix_offsets"], columns["prefix_ids"] = chunk_prefixes(
            offsets, chunks, _chunk_tokens(table, offsets, chunks), prompt, RAGPULSE_BLOCK_TOKENS
        )
        columns["prefix_block_tokens"] = RAGPULSE_BLOCK_TOKENS
    return tell_columns(table, {}, lambda: Workload.of(**columns, sort=options.sort, attribution=CREDITS["ragpulse"]))


def chunk_prefixes(
    offsets: Ints, chunks: Ints, tokens: Ints, prompt_tokens: Ints, block_tokens: int
) -> tuple[Ints, Ints]:
    """Fixed blocks over chunks of any length: only full blocks, and none beyond the chunks or the prompt.

    offsets : int64[n + 1]; chunks, tokens : int64[m], ids of chunks and their lengths

        chunks   |---a---|----b----|--c--|      block 2 ends in b: its name is made of a, b and where it ends
        blocks   |1111|2222|3333|4444|
    """
    ends = np.concatenate([[0], np.cumsum(tokens)])
    covered = np.minimum(ends[offsets[1:]] - ends[offsets[:-1]], prompt_tokens)
    blocks = covered // block_tokens
    block_offsets = offsets_of(blocks)
    row = np.repeat(np.arange(len(blocks)), blocks)
    place = np.arange(len(row)) - block_offsets[:-1][row]
    # The chunk that holds the block's last token.
    last_token = ends[offsets[:-1]][row] + (place + 1) * block_tokens - 1
    chunk = np.searchsorted(ends, last_token, side="right") - 1
    names = chained(offsets, chunks, np.zeros(len(blocks), np.int64))[chunk]
    # The same chunks so far and the same block are the same tokens.
    pairs = np.stack([names, place], axis=1).ravel()
    ids = chained(np.arange(len(names) + 1) * 2, pairs, np.zeros(len(names), np.int64))[1::2]
    return block_offsets, ids


def credit_of(table: Table) -> str:
    """Whom to credit, told by the file's own metadata."""
    origin, licence = table.metadata.get("origin", ""), table.metadata.get("licence", "")
    for name, credit in CREDITS.items():
        if name in origin.lower().replace("kv-cache-tester", "weka"):
            return credit
    return f"{origin} ({licence})" if licence else origin


def _joined(parts: list[tuple[Ints, tuple[str, ...]]]) -> tuple[Ints, tuple[str, ...]]:
    """Several columns of names as one: 'api GPT-4'. Only pairs that occur are listed."""
    codes, names = parts[0]
    for other_codes, other_names in parts[1:]:
        pair = codes * len(other_names) + other_codes
        used, codes = np.unique(pair, return_inverse=True)
        names = tuple(f"{names[i // len(other_names)]} {other_names[i % len(other_names)]}" for i in used.tolist())
    return codes, names


def _one_clock(table: Table) -> Floats:
    """`arrival_s`; excerpts with clocks of their own (column `window`) one after another."""
    arrival_s = table.floats("arrival_s")
    if "window" not in table:
        return arrival_s
    window = table.ints("window")
    shift_s = 0.0
    moved = np.empty_like(arrival_s)
    for one in np.unique(window):
        here = window == one
        moved[here] = arrival_s[here] + shift_s
        shift_s = float(moved[here].max()) + EXCERPT_PAUSE_S
    return moved


def _block_tokens(table: Table) -> int:
    said = table.metadata.get("block_tokens", "")
    if not (said.isascii() and said.isdigit() and len(said) < 10 and int(said) > 0):
        raise InputError(
            "is not in the file's metadata: how many tokens a block of hash_ids has",
            file=table.file,
            column="block_tokens",
        )
    return int(said)


def _chunk_tokens(table: Table, offsets: Ints, chunks: Ints) -> Ints:
    """Length of each chunk, from the file that lists them."""
    beside = table.file.with_name(table.file.stem + "_chunks.parquet")
    if not beside.is_file():
        raise InputError(
            f"needs {beside.name} beside it for the lengths of its chunks; or read it with prefixes=False",
            file=table.file,
        )
    listed = read_parquet(beside)
    ids, tokens = listed.ints("chunk_id"), listed.ints("tokens")
    order = np.argsort(ids)
    place = np.minimum(np.searchsorted(ids[order], chunks), max(len(ids) - 1, 0))
    unknown = ids[order][place] != chunks if len(ids) else np.ones(len(chunks), np.bool_)
    if unknown.any():
        at = int(np.argmax(unknown))
        row = int(np.searchsorted(offsets, at, side="right"))
        raise InputError(f"chunk {chunks[at]} is not in {beside.name}", file=table.file, row=row, column="hash_ids")
    found: Ints = tokens[order][place]
    return found


def _forward(arrival_s: Floats, table: Table, column: str, options: ReadOptions) -> None:
    """A first row that is not the earliest would show up as a negative time; say what is wrong instead."""
    early = arrival_s < 0
    if early.any() and not options.sort:
        row = int(np.argmax(np.diff(arrival_s) < 0)) + 2
        raise InputError(
            "time runs backwards (ask for sort=True, --sort, to have rows sorted)",
            file=table.file,
            row=row,
            column=column,
        )
