"""Readers: each format in a few rows written here, the real files where they lie beside, and files that are wrong."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencegym.ground.errors import ConfigError, InferenceGymError, InputError, UnknownNameError
from inferencegym.workload import Workload, read
from inferencegym.workload.describe import describe
from inferencegym.workload.find import VARIABLE
from inferencegym.workload.prefixes import endless_cache

BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,GPT-4,1087,230,1317,API log
60,ChatGPT,0,0,0,Conversation log
"""
AZURE_2023 = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319569,3180,8
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:01.017335+00:00,2399,6
"""
MOONCAKE = """{"timestamp": 0, "input_length": 1100, "output_length": 52, "hash_ids": [46, 47, 48]}
{"timestamp": 27482, "input_length": 600, "output_length": 26, "hash_ids": [46, 49]}
"""


def put(tmp_path, name: str, text: str | bytes):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_burstgpt(tmp_path):
    w = read(put(tmp_path, "b.csv", BURSTGPT))
    assert w.arrival_s.tolist() == [5, 45, 60]
    assert [w.kind_names[code] for code in w.kind] == [
        "Conversation log ChatGPT",
        "API log GPT-4",
        "Conversation log ChatGPT",
    ]
    served, left_out = w.servable()
    assert (len(served), left_out) == (2, 1)
    assert "KDD 2025" in w.attribution


def test_burstgpt_with_sessions(tmp_path):
    text = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    text += (
        "1,s1,2,ChatGPT,5,6,11,Conversation log\n2,,2,ChatGPT,5,6,11,API log\n3,s1,2,ChatGPT,5,6,11,Conversation log\n"
    )
    w = read(put(tmp_path, "b.csv", text))
    assert w.session_id[0] == w.session_id[2] >= 0
    assert w.session_id[1] == -1


@pytest.mark.parametrize(("text", "second_s"), [(AZURE_2023, 0.051997), (AZURE_2024, 1.007405)])
def test_azure(tmp_path, text, second_s):
    w = read(put(tmp_path, "a.csv", text))
    assert w.arrival_s.tolist() == pytest.approx([0.0, second_s], abs=2e-6)


def test_azure_with_other_zones_and_few_digits(tmp_path):
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 02:00:00+02:00,1,1\n2024-05-10 00:00:01.5+00:00,1,1\n"
    assert read(put(tmp_path, "a.csv", text)).arrival_s.tolist() == [0.0, 1.5]


def test_mooncake(tmp_path):
    w = read(put(tmp_path, "m.jsonl", MOONCAKE))
    assert w.arrival_s.tolist() == [0.0, 27.482]
    assert w.prefix_block_tokens == 512
    assert w.prefix_of(1).tolist() == [46, 49]
    assert endless_cache(w).hit_tokens.tolist() == [0, 512]
    assert len(read(put(tmp_path, "m.jsonl", MOONCAKE), prefixes=False).prefix_ids) == 0


def test_any_table_by_the_names_of_its_columns(tmp_path):
    path = put(tmp_path, "any.csv", "when,in,out,who\n1500,10,20,a\n2750,30,40,b\n")
    w = read(path, columns={"arrival_s": "when:ms", "prompt_tokens": "in", "output_tokens": "out", "tenant": "who"})
    assert w.arrival_s.tolist() == [0.0, 1.25]
    assert w.tenant_names == ("a", "b")
    dated = put(
        tmp_path,
        "dated.jsonl",
        '{"t": "2024-01-01T00:00:00Z", "i": 1, "o": 2}\n{"t": "2024-01-01T00:01:00Z", "i": 3, "o": 4}\n',
    )
    w = read(dated, columns={"arrival_s": "t:date", "prompt_tokens": "i", "output_tokens": "o"})
    assert w.arrival_s.tolist() == [0.0, 60.0]
    table = pa.table({"t": [0.0, 1.0], "i": [1, 2], "o": [1.0, 2.0]})
    pq.write_table(table, tmp_path / "p.parquet")
    assert (
        len(read(tmp_path / "p.parquet", columns={"arrival_s": "t", "prompt_tokens": "i", "output_tokens": "o"})) == 2
    )


@pytest.mark.parametrize(
    "columns",
    [
        {"arrival_s": "when"},
        {"arrival_s": "when:weeks", "prompt_tokens": "in", "output_tokens": "out"},
        {"arrival_s": "when", "prompt_tokens": "in", "output_tokens": "out", "mood": "in"},
    ],
)
def test_a_mapping_that_cannot_work_says_what_can(tmp_path, columns):
    with pytest.raises(ConfigError, match="allowed"):
        read(put(tmp_path, "any.csv", "when,in,out\n1,10,20\n"), columns=columns)


def test_an_error_in_a_mapped_column_names_the_files_column(tmp_path):
    path = put(tmp_path, "any.csv", "when,in,out\n1,10,20\n2,0,20\n")
    with pytest.raises(InputError) as told:
        read(path, columns={"arrival_s": "when", "prompt_tokens": "in", "output_tokens": "out"})
    assert (told.value.file, told.value.row, told.value.column) == (str(path), 2, "in")


def test_rag_chunks_become_prefix_blocks(tmp_path):
    pq.write_table(pa.table({"chunk_id": [1, 2, 3], "tokens": [20, 30, 14]}), tmp_path / "rag_chunks.parquet")
    rows = {
        "arrival_s": [0.0, 1.0, 2.0], "prompt_tokens": [64, 64, 50], "output_tokens": [1, 1, 1],
        "session_id": [0, 0, 1],
        "n_passages": [1, 1, 1], "hash_ids": [[1, 2, 3], [1, 3, 2], [1, 2]],
    }  # fmt: skip
    pq.write_table(pa.table(rows), tmp_path / "rag.parquet")
    w = read(tmp_path / "rag.parquet")
    first, second, third = (w.prefix_of(row).tolist() for row in range(3))
    assert [len(ids) for ids in (first, second, third)] == [4, 4, 3]
    # Block 1 lies in chunk 1, which both have; block 2 ends in chunk 2 of the one and chunk 3 of the other.
    assert first[0] == second[0]
    assert set(first[1:]).isdisjoint(second[1:])
    assert third == first[:3]


def test_coding_sessions_start_apart_and_wait(tmp_path):
    rows = {
        "session_id": [1, 1, 1, 2, 2], "agent": [0, 1, 0, 0, 0], "kind": ["main", "sub", "main", "main", "main"],
        "arrival_s": [0.0, 5.0, 9.0, 0.0, 3.0], "prompt_tokens": [128] * 5, "output_tokens": [1] * 5,
        "think_s": [0.0, 1.0, 2.0, 0.0, float("nan")], "hash_ids": [[1, 2], [1, 3], [1, 2], [1, 2], [1, 2]],
    }  # fmt: skip
    pq.write_table(pa.table(rows), tmp_path / "weka.parquet", row_group_size=2)
    w = read(tmp_path / "weka.parquet", session_every_s=1000.0, seed=1)
    one = np.flatnonzero(w.session_id == 1)
    two = np.flatnonzero(w.session_id == 2)
    assert [w.after[row] for row in one] == [-1, one[0], one[0]]
    assert w.think_s[one].tolist() == [0.0, 1.0, 2.0]
    assert w.think_s[two[1]] == 3.0  # not known: the whole gap
    ids = [w.prefix_of(row).tolist() for row in (*one, *two)]
    assert ids[0] == ids[2] != ids[1]
    assert ids[0][0] == ids[1][0]
    assert set(ids[0]).isdisjoint(ids[3]), "the same numbers in two sessions mean different things"
    open_loop = read(tmp_path / "weka.parquet", closed_loop=False)
    assert (open_loop.after == -1).all()
    assert len(read(tmp_path / "weka.parquet", sessions=1, prefixes=False)) == 3


def test_a_name_is_looked_up_and_a_description_is_not_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    put(tmp_path, "mine.csv", BURSTGPT)
    assert len(read("mine")) == 3
    with pytest.raises(UnknownNameError, match="Did you mean 'mine'"):
        read("mime")
    put(tmp_path, "fit.json", "{}")
    for description in ("azure-conversation", tmp_path / "fit.json"):
        with pytest.raises(InputError, match="generate"):
            read(description)
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(UnknownNameError, match=VARIABLE):
        read("mine")


# --- files that are wrong ---------------------------------------------------------------------------------------------

WRONG = {
    "empty.csv": (b"", None, None),
    "header_only_half.csv": (b"TIMESTAMP,ContextTokens\n2023-11-16 18:17:03,1\n", None, None),
    "short_row.csv": (AZURE_2023.encode() + b"2023-11-16 18:17:05,1", 3, None),
    "not_a_date.csv": (AZURE_2023.encode() + b"yesterday,1,1\n", 3, "TIMESTAMP"),
    "backwards.csv": (AZURE_2023.encode() + b"2023-11-16 18:17:00,1,1\n", 3, "TIMESTAMP"),
    "words.csv": (b"Timestamp,Request tokens,Response tokens\n1,2,3\n2,many,3\n", 2, "Request tokens"),
    "nothing.csv": (b"Timestamp,Request tokens,Response tokens\n1,2,3\n2,,3\n", 2, "Request tokens"),
    "nan.csv": (b"Timestamp,Request tokens,Response tokens\n1,2,3\nnan,1,3\n", 2, "Timestamp"),
    "negative.csv": (b"Timestamp,Request tokens,Response tokens\n1,2,3\n2,-1,3\n", 2, "Request tokens"),
    "huge.csv": (
        b"Timestamp,Request tokens,Response tokens\n1,2,3\n2,99999999999999999999999,3\n",
        2,
        "Request tokens",
    ),
    "late.csv": (b"Timestamp,Request tokens,Response tokens\n1,2,3\n1e30,1,3\n", 2, "Timestamp"),
    "half.csv": (b"Timestamp,Request tokens,Response tokens\n1,2,3\n2,1.5,3\n", 2, "Request tokens"),
    "bytes.csv": (b"Timestamp,Request tokens,Response tokens\n1,2,3\n2,\xff\xfe,3\n", 2, "Request tokens"),
    "unsorted.csv": (b"Timestamp,Request tokens,Response tokens\n1,2,3\n0,1,3\n", 2, "Timestamp"),
    "cut.jsonl": (MOONCAKE.encode()[:-20], 2, None),
    "list.jsonl": (b"[1, 2]\n", 1, None),
    "text.jsonl": (MOONCAKE.encode().replace(b'"input_length": 600', b'"input_length": "600"'), 2, "input_length"),
    "null.jsonl": (MOONCAKE.encode().replace(b'"input_length": 600', b'"input_length": null'), 2, "input_length"),
    "missing.jsonl": (MOONCAKE.encode().replace(b'"input_length": 600, ', b""), 2, "input_length"),
    "ids.jsonl": (MOONCAKE.encode().replace(b"[46, 49]", b'[46, "x"]'), 2, "hash_ids"),
    "many_ids.jsonl": (MOONCAKE.encode().replace(b"[46, 49]", b"[46, 49, 50, 51]"), 2, "hash_ids"),
    "not.parquet": (b"PAR1 is how it starts, but not how it goes on", None, None),
    "tail.txt": (b"1 2 3", None, None),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_gives_one_error_that_names_the_place(tmp_path, name):
    content, row, column = WRONG[name]
    path = put(tmp_path, name, content)
    with pytest.raises(InputError) as told:
        read(path)
    assert (told.value.file, told.value.row, told.value.column) == (str(path), row, column)
    assert "\n" not in str(told.value)


def test_sorting_on_request(tmp_path):
    w = read(put(tmp_path, "unsorted.csv", WRONG["unsorted.csv"][0]), sort=True)
    assert w.arrival_s.tolist() == [0, 1]
    assert len(read(put(tmp_path, "backwards.csv", WRONG["backwards.csv"][0]), sort=True)) == 3


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "none.csv")


def sound_or_refused(path) -> None:
    """What a reader may do with any bytes: a checked workload, or one error of ours that names the file."""
    refusal: InferenceGymError | None = None
    try:
        w = read(path, pool="p")
    except InferenceGymError as error:
        refusal = error
    if refusal is None:
        assert isinstance(w, Workload)
        assert np.isfinite(w.arrival_s).all()
        return
    assert "\n" not in str(refusal)
    # A pool that the file does not have is a wrong argument, not a wrong file.
    wrong_argument = isinstance(refusal, ConfigError) and refusal.field in ("pool", "start_s")
    assert wrong_argument or path.name in str(refusal)


STARTS = {".csv": [BURSTGPT, AZURE_2023, AZURE_2024], ".jsonl": [MOONCAKE]}


@given(data=st.data())
def test_no_bytes_break_a_text_reader(data, tmp_path_factory):
    ending = data.draw(st.sampled_from(sorted(STARTS)))
    content = bytearray(data.draw(st.sampled_from(STARTS[ending])).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        piece = data.draw(
            st.sampled_from(
                [b"", b",", b"\n", b"nan", b"-", b"1e999", b'"', b"\xff", b"[", b"null", b"9" * 30, b"\x00", b"x"]
            )
        )
        content[at : at + data.draw(st.integers(0, 12))] = piece
    path = tmp_path_factory.mktemp("fuzz") / f"f{ending}"
    path.write_bytes(bytes(content))
    sound_or_refused(path)


VALUES = st.one_of(
    st.integers(-5, 10**12),
    st.floats(),
    st.none(),
    st.text(max_size=3),
    st.booleans(),
    st.lists(st.integers(-1, 9), max_size=3),
)


@given(
    fields=st.lists(st.sampled_from(["timestamp", "input_length", "output_length", "hash_ids", "other"]), unique=True),
    rows=st.integers(0, 4),
    data=st.data(),
)
def test_no_values_break_the_json_reader(fields, rows, data, tmp_path_factory):
    lines = [json.dumps({name: data.draw(VALUES) for name in fields}) for _ in range(rows)]
    path = tmp_path_factory.mktemp("fuzz") / "f.jsonl"
    path.write_text("\n".join(lines))
    sound_or_refused(path)


COLUMNS_OF_ANY_TYPE = st.one_of(
    st.lists(st.one_of(st.none(), st.integers(-5, 10**12)), min_size=3, max_size=3),
    st.lists(st.one_of(st.none(), st.floats()), min_size=3, max_size=3),
    st.lists(st.one_of(st.none(), st.text(max_size=3)), min_size=3, max_size=3),
    st.lists(
        st.one_of(st.none(), st.lists(st.one_of(st.none(), st.integers(-1, 9)), max_size=3)), min_size=3, max_size=3
    ),
    st.lists(st.booleans(), min_size=3, max_size=3),
)


@given(data=st.data(), cut=st.integers(0, 200))
def test_no_parquet_file_breaks_its_readers(data, cut, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    wanted = data.draw(
        st.sampled_from(
            [
                ["arrival_s", "prompt_tokens", "output_tokens", "kind", "session_id", "tenant", "hash_ids"],
                ["session_id", "agent", "kind", "arrival_s", "prompt_tokens", "output_tokens", "think_s", "hash_ids"],
                ["arrival_s", "prompt_tokens", "output_tokens", "n_passages", "session_id", "hash_ids"],
                ["model", "client_id", "window_start_s", "rate_rps", "dist", "shape"],
            ]
        )
    )
    named = st.just(["p", "p", "p"])
    table = pa.table({name: data.draw(COLUMNS_OF_ANY_TYPE if name != "model" else named) for name in wanted})
    path = folder / "f.parquet"
    pq.write_table(table.replace_schema_metadata({"block_tokens": "16"}), path)
    if cut % 4 == 0:
        path.write_bytes(path.read_bytes()[: -1 - cut])
    sound_or_refused(path)


# --- the real files ---------------------------------------------------------------------------------------------------


@pytest.mark.needs_shared
@pytest.mark.parametrize(
    ("name", "requests", "hit_rate_tokens", "idc_60s"),
    [
        ("azure_code_2023", 8068, None, 148.7),
        ("azure_conv_2023", 16495, None, 13.15),
        ("mooncake_conversation", 9408, 0.3615, 2.84),
        ("mooncake_arxiv_head1000", 1000, 0.3907, None),
        ("ragpulse", 5900, 0.3151, 1.73),
        ("servegen_r1_day", 947077, None, 213.1),
    ],
)
def test_the_real_traces_have_the_figures_their_readme_gives(shared_data, name, requests, hit_rate_tokens, idc_60s):
    found = describe(read(shared_data / "traces" / f"{name}.parquet"))
    assert found["requests"] == requests
    if hit_rate_tokens is not None:
        # RAGPulse loses what a chunk shares beyond its last full block of 16.
        assert found["prefixes"]["hit_rate_tokens"] == pytest.approx(hit_rate_tokens, abs=0.0015)
    if idc_60s is not None:
        # The readme counts the last, incomplete minute too.
        assert found["arrivals"]["idc_60s"] == pytest.approx(idc_60s, rel=0.04)


@pytest.mark.needs_shared
def test_coding_sessions_find_exactly_the_blocks_that_the_source_counted(shared_data):
    path = shared_data / "traces" / "weka_agentic_coding.parquet"
    w = read(path, sessions=30)
    source = pq.read_table(path, columns=["session_id", "hit_blocks_inf"])
    chosen = np.isin(source["session_id"].to_numpy(), np.unique(w.session_id))
    assert endless_cache(w).hit_blocks.sum() == source["hit_blocks_inf"].to_numpy()[chosen].sum()


@pytest.mark.needs_shared
def test_a_pool_of_clients_is_drawn_anew_with_its_rates_and_lengths(shared_data):
    day = read(shared_data / "traces" / "servegen_r1_day.parquet")
    drawn = read(shared_data / "traces" / "servegen_client_rates.parquet", pool="deepseek-r1", seed=4)
    assert len(drawn) == pytest.approx(len(day), rel=0.002)
    for name in ("prompt_tokens", "output_tokens"):
        quantiles = [np.quantile(getattr(w, name), (0.25, 0.5, 0.75, 0.95)) for w in (drawn, day)]
        np.testing.assert_allclose(*quantiles, rtol=0.12)
    hour = read(
        shared_data / "traces" / "servegen_client_rates.parquet", pool="m-large", start_s=3600, duration_s=60, seed=4
    )
    assert 30 < hour.duration_s < 60
    with pytest.raises(ConfigError, match="deepseek-r1"):
        read(shared_data / "traces" / "servegen_client_rates.parquet")
