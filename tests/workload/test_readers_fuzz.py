"""Readers against files that are wrong in ways the plain cases do not reach: one clear error, or a checked workload.

Complements `test_read.py`: our own format, bits that flip, files beside the trace, dates, and rows named as in the
file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencegym.ground.errors import InferenceGymError, InputError
from inferencegym.workload import Workload, read, write
from tests.workload.strategies import workloads


def read_or_refusal(path: Path, **options: Any) -> Workload | str:
    """The workload, checked again from its columns; or what the one error says."""
    try:
        w = read(path, **options)
    except InferenceGymError as error:
        return str(error)
    assert w.with_().digest() == w.digest()
    return w


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(path: Path, **options: Any) -> InputError:
    with pytest.raises(InputError) as told:
        read(path, **options)
    assert told.value.file == str(path)
    assert "\n" not in str(told.value)
    return told.value


# --- our own format ---------------------------------------------------------------------------------------------------


@given(w=workloads(min_size=1, max_size=6), data=st.data())
def test_our_json_lines_with_any_piece_replaced(w: Workload, data: st.DataObject, tmp_path_factory: Any) -> None:
    path = write(w, tmp_path_factory.mktemp("fuzz") / "w.jsonl")
    content = bytearray(path.read_bytes())
    pieces = [b"", b"null", b"-1", b"[]", b"{}", b'"', b"1e400", b"\n", b"9" * 25, b"1.5", b"\xff", b"true", b",", b":"]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        content[at : at + data.draw(st.integers(0, 8))] = data.draw(st.sampled_from(pieces))
    path.write_bytes(content)
    found = read_or_refusal(path)
    assert isinstance(found, Workload) or ("w.jsonl" in found and "\n" not in found)


@given(w=workloads(min_size=1), data=st.data())
def test_our_json_lines_cut_anywhere_are_never_taken_for_whole(
    w: Workload, data: st.DataObject, tmp_path_factory: Any
) -> None:
    path = write(w, tmp_path_factory.mktemp("fuzz") / "w.jsonl")
    content = path.read_bytes()
    # Without its last line break the file is still whole.
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 2))])
    found = read_or_refusal(path)
    assert isinstance(found, str)
    assert "w.jsonl" in found


@given(w=workloads(min_size=1), data=st.data())
def test_our_parquet_with_a_flipped_bit_is_refused_or_says_the_same_requests(
    w: Workload, data: st.DataObject, tmp_path_factory: Any
) -> None:
    path = write(w, tmp_path_factory.mktemp("fuzz") / "w.parquet")
    content = bytearray(path.read_bytes())
    footer = int.from_bytes(content[-8:-4], "little") + 8
    # Pages carry checksums; the footer, which does not, only has to give an error or a checked workload.
    at = data.draw(st.integers(4, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    found = read_or_refusal(path)
    if isinstance(found, str):
        assert "w.parquet" in found
        assert "\n" not in found
    elif at < len(content) - footer:
        assert found.digest() == w.digest()


OURS = {"format": "inferencegym.workload", "version": "1"}
ROW = {"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1}


@pytest.mark.parametrize(
    "changed",
    [
        {"tenant_names": "3"},
        {"tenant_names": "{"},
        {"tenant_names": '["b"]'},
        {"tenant_names": '["a", 1]'},
        {"tenant_names": '["a", ["b"]]'},
        {"prefix_block_tokens": "²"},
        {"prefix_block_tokens": "-4"},
        {"prefix_block_tokens": "9" * 5000},
        {"prefix_block_tokens": "9" * 30},
        {"rows": "2"},
        {"rows": "many"},
    ],
)
def test_metadata_that_does_not_fit_the_rows_is_refused(tmp_path: Path, changed: dict[str, str]) -> None:
    lines = [json.dumps(OURS | changed), json.dumps(ROW | {"tenant": "a"})]
    refusal(put(tmp_path, "w.jsonl", "\n".join(lines)))


@pytest.mark.parametrize(
    ("line", "row", "column"),
    [
        ("{", 2, None),
        ("[1]", 2, None),
        ('{"arrival_s": 1, "prompt_tokens": 1}', 2, "output_tokens"),
        ('{"arrival_s": 1, "prompt_tokens": 0, "output_tokens": 1}', 2, "prompt_tokens"),
        ('{"arrival_s": -1, "prompt_tokens": 1, "output_tokens": 1}', 2, "arrival_s"),
    ],
)
def test_rows_are_counted_without_the_metadata_line_and_blank_lines(
    tmp_path: Path, line: str, row: int, column: str | None
) -> None:
    path = put(tmp_path, "w.jsonl", f"{json.dumps(OURS)}\n{json.dumps(ROW)}\n\n{line}\n")
    found = refusal(path)
    assert (found.row, found.column) == (row, column)


# --- Parquet tables of others -----------------------------------------------------------------------------------------

TRACE = {"arrival_s": [0.0, 1.0], "prompt_tokens": [20, 30], "output_tokens": [1, 2]}


def parquet(folder: Path, columns: dict[str, Any], name: str = "t.parquet", **metadata: str) -> Path:
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), folder / name)
    return folder / name


@pytest.mark.parametrize(
    ("ids", "row"),
    [
        (pa.array([[1], [2**63 + 5]], pa.list_(pa.uint64())), 2),
        (pa.array([[1], [-2]], pa.list_(pa.int64())), 2),
        (pa.array([[], [3, None]], pa.list_(pa.int64())), 2),
        (pa.array([None, [3]], pa.list_(pa.int64())), 1),
        (pa.array([["a"], ["b"]], pa.list_(pa.string())), 1),
        (pa.array([[1], [1, 2, 3]], pa.list_(pa.int64())), 2),
    ],
)
def test_ids_that_are_none_are_named_by_row(tmp_path: Path, ids: pa.Array, row: int) -> None:
    found = refusal(parquet(tmp_path, TRACE | {"hash_ids": ids}, block_tokens="16"))
    assert (found.row, found.column) == (row, "hash_ids")


@pytest.mark.parametrize("said", ["", "0", "²", "-1", "9" * 5000, "9" * 12])
def test_a_block_size_that_is_none_is_refused(tmp_path: Path, said: str) -> None:
    path = parquet(tmp_path, TRACE | {"hash_ids": [[1], [2]]}, block_tokens=said)
    assert "block_tokens" in str(refusal(path))


@pytest.mark.parametrize("column", ["kind", "tenant"])
@pytest.mark.parametrize(
    "values",
    [pa.array([{"a": 1}, {"a": 2}]), pa.array([[1], [2]]), pa.array([1.5, 2.5]), pa.array([True, False])],
    ids=["struct", "list", "float", "bool"],
)
def test_names_of_a_type_that_is_none_are_refused(tmp_path: Path, column: str, values: pa.Array) -> None:
    assert refusal(parquet(tmp_path, TRACE | {column: values})).column == column


def test_names_may_be_numbers_and_dictionaries_with_nulls(tmp_path: Path) -> None:
    kind = pa.array(["x", None]).dictionary_encode()
    w = read(parquet(tmp_path, TRACE | {"kind": kind, "tenant": [7, 8]}))
    assert (w.kind_names, w.tenant_names) == (("x", "none"), ("7", "8"))


def test_a_table_without_rows_is_no_trace(tmp_path: Path) -> None:
    none = {name: pa.array([], pa.float64()) for name in TRACE}
    assert "no rows" in str(refusal(parquet(tmp_path, none)))
    assert "no rows" in str(refusal(put(tmp_path, "a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n")))


SESSIONS = {
    "session_id": [1, 2, 1, 2],
    "agent": [0, 0, 0, 0],
    "kind": ["a"] * 4,
    "arrival_s": [0.0, 0.0, 500.0, 1.0],
    "prompt_tokens": [64] * 4,
    "output_tokens": [1] * 4,
    "think_s": [0.0, 0.0, 1.0, 1.0],
    "hash_ids": [[1]] * 4,
}


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("prompt_tokens", 0, "prompt_tokens"),
        ("think_s", -1.0, "think_s"),
        ("think_s", float("inf"), "think_s"),
        ("arrival_s", -1.0, "arrival_s"),
        ("output_tokens", -1, "output_tokens"),
        ("hash_ids", [1, 2, 3], "hash_ids"),
    ],
)
@pytest.mark.parametrize("row", [2, 3])
def test_coding_sessions_name_the_row_of_the_file_though_rows_are_moved(
    tmp_path: Path, column: str, value: Any, said: str, row: int
) -> None:
    values = list(SESSIONS[column])
    values[row] = value
    found = refusal(parquet(tmp_path, SESSIONS | {column: values}))
    assert (found.row, found.column) == (row + 1, said)


# --- ServeGen's clients: two files ------------------------------------------------------------------------------------

RATES = {
    "model": ["p"],
    "client_id": [1],
    "window_start_s": [0],
    "rate_rps": [0.1],
    "dist": ["Gamma"],
    "shape": [0.5],
}
LENGTHS = {
    "model": ["p", "p"],
    "client_id": [1, 1],
    "window_start_s": [0, 0],
    "field": ["input_tokens", "output_tokens"],
    "q": [[1.0, 2.0, 9.0], [1.0, 3.0, 4.0]],
}


def pool_files(
    folder: Path, rates: dict[str, Any], lengths: dict[str, Any], probabilities: str = "[0, 0.5, 1]"
) -> Path:
    parquet(folder, LENGTHS | lengths, "x_lengths.parquet", probabilities=probabilities)
    return parquet(folder, RATES | rates, "x_rates.parquet")


def test_a_pool_of_two_files_is_read(tmp_path: Path) -> None:
    w = read(pool_files(tmp_path, {}, {}), pool="p")
    assert len(w) == 60
    assert set(w.prompt_tokens.tolist()) <= set(range(1, 10))


@pytest.mark.parametrize(
    ("rates", "lengths", "probabilities"),
    [
        ({}, {"q": [[1.0, 2.0], [1.0, 3.0]]}, "[0, 0.5, 1]"),
        ({}, {"q": [[1.0, None, 2.0], [1.0, 3.0, 4.0]]}, "[0, 0.5, 1]"),
        ({}, {"q": [[1.0, float("nan"), 2.0], [1.0, 3.0, 4.0]]}, "[0, 0.5, 1]"),
        ({}, {"q": [[1.0, 5.0, 2.0], [1.0, 3.0, 4.0]]}, "[0, 0.5, 1]"),
        ({}, {"q": [[-1.0, 5.0, 6.0], [1.0, 3.0, 4.0]]}, "[0, 0.5, 1]"),
        ({}, {"q": [[1.0, 5.0, 1e300], [1.0, 3.0, 4.0]]}, "[0, 0.5, 1]"),
        ({}, {"q": ["a", "b"]}, "[0, 0.5, 1]"),
        ({}, {"q": [1.0, 2.0]}, "[0, 0.5, 1]"),
        ({}, {"field": ["input_tokens", "other"]}, "[0, 0.5, 1]"),
        ({}, {"field": ["other", "output_tokens"]}, "[0, 0.5, 1]"),
        ({}, {"model": ["q", "q"]}, "[0, 0.5, 1]"),
        ({}, {}, "3"),
        ({}, {}, '{"a": 1}'),
        ({}, {}, "[0, 1, 0.5]"),
        ({}, {}, "[["),
        ({"rate_rps": [float("nan")]}, {}, "[0, 0.5, 1]"),
        ({"shape": [0.0]}, {}, "[0, 0.5, 1]"),
        ({"dist": ["Levy"]}, {}, "[0, 0.5, 1]"),
        ({"window_start_s": [-600]}, {}, "[0, 0.5, 1]"),
        ({"client_id": ["x"]}, {}, "[0, 0.5, 1]"),
    ],
)
def test_a_pool_that_is_wrong_in_either_file_is_refused(
    tmp_path: Path, rates: dict[str, Any], lengths: dict[str, Any], probabilities: str
) -> None:
    path = pool_files(tmp_path, rates, lengths, probabilities)
    with pytest.raises(InputError) as told:
        read(path, pool="p")
    assert Path(told.value.file or "").name in ("x_rates.parquet", "x_lengths.parquet")


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stamp",
    [
        "123",
        "2024",
        "9999999-01-01 00:00:00",
        "2024-13-01 00:00:00",
        "NaT",
        "now",
        "2024-05-10 25:00:00",
        "",
    ],
)
def test_what_is_no_date_is_not_taken_for_one(tmp_path: Path, stamp: str) -> None:
    rows = f"2024-05-10 00:00:00,1,1\n{stamp},1,1\n"
    found = refusal(put(tmp_path, "a.csv", f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}"), sort=True)
    assert (found.row, found.column) == (2, "TIMESTAMP")


def test_dates_far_apart_are_beyond_the_clock_and_do_not_wrap(tmp_path: Path) -> None:
    rows = "2024-05-10 00:00:00,1,1\n9999-05-10 00:00:00,1,1\n"
    found = refusal(put(tmp_path, "a.csv", f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}"))
    assert found.row == 2


@pytest.mark.parametrize(
    "header", ["a\rb,c", '"a,b', "x," * 3, "a,a", ",".join("n" * 200_000), "\x00,b", "y" * 200_000]
)
def test_a_first_line_that_is_no_header_is_refused(tmp_path: Path, header: str) -> None:
    refusal(put(tmp_path, "a.csv", f"{header}\n1,2,3\n"))


@pytest.mark.parametrize("number", ["1_000", "0x10", "1,5", "١٢", "--1", "1e", "inf", "∞"])
def test_only_plain_numbers_are_numbers(tmp_path: Path, number: str) -> None:
    path = put(tmp_path, "b.csv", f'Timestamp,Request tokens,Response tokens\n1,2,3\n2,"{number}",3\n')
    found = refusal(path)
    assert (found.row, found.column) == (2, "Request tokens")


def test_an_empty_session_is_no_session_in_a_mapped_table_either(tmp_path: Path) -> None:
    path = put(tmp_path, "any.csv", "t,i,o,s\n1,2,3,a\n2,2,3,\n3,2,3,a\n4,2,3,\n")
    names = {"arrival_s": "t", "prompt_tokens": "i", "output_tokens": "o", "session_id": "s"}
    w = read(path, columns=names)
    assert w.session_id[0] == w.session_id[2] >= 0
    assert w.session_id[1] == w.session_id[3] == -1


@given(
    rows=st.lists(
        st.lists(
            st.sampled_from(["1", "2.5", "-3", "", "x", "nan", "1e9", '"4"', "2024-05-10"]), min_size=4, max_size=4
        )
    ),
    unit=st.sampled_from(["", ":ms", ":date"]),
)
def test_a_mapped_table_of_anything(rows: list[list[str]], unit: str, tmp_path_factory: Any) -> None:
    text = "\n".join(["t,i,o,x", *(",".join(row) for row in rows)])
    path = put(tmp_path_factory.mktemp("fuzz"), "any.csv", text)
    names = {"arrival_s": f"t{unit}", "prompt_tokens": "i", "output_tokens": "o", "session_id": "x", "priority": "i"}
    found = read_or_refusal(path, columns=names)
    assert isinstance(found, Workload) or "any.csv" in found


@given(content=st.binary(max_size=200), ending=st.sampled_from([".csv", ".jsonl", ".parquet"]))
def test_any_bytes_at_all(content: bytes, ending: str, tmp_path_factory: Any) -> None:
    path = put(tmp_path_factory.mktemp("fuzz"), f"f{ending}", content)
    found = read_or_refusal(path)
    assert isinstance(found, str)
    assert path.name in found
    assert np.all([ord(letter) >= 32 for letter in found]), "one line that a terminal can show"
