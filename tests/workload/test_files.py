"""Our own format: what is written is what is read, and a write that fails leaves nothing behind."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferencegym.ground.errors import ConfigError, InputError
from inferencegym.workload import Workload, read, write
from inferencegym.workload.files import whole_file
from tests.workload.strategies import workloads


@given(w=workloads(), ending=st.sampled_from([".parquet", ".jsonl"]))
def test_a_workload_comes_back_as_it_was_written(w, ending, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / f"w{ending}"
    write(w, path)
    if len(w) == 0 and ending == ".jsonl":
        with pytest.raises(InputError, match="arrival_s"):
            read(path)
        return
    back = read(path)
    assert back.digest() == w.digest()
    assert (back.name, back.attribution, back.prefix_block_tokens) == (w.name, w.attribution, w.prefix_block_tokens)
    assert back.source.endswith(w.source)


def test_columns_that_say_nothing_are_left_out(tmp_path):
    import pyarrow.parquet as pq

    path = write(Workload.of(arrival_s=[0.0], prompt_tokens=[1], output_tokens=[1]), tmp_path / "w.parquet")
    assert pq.read_schema(path).names == ["arrival_s", "prompt_tokens", "output_tokens"]


def test_an_unknown_ending_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(ConfigError, match=r"\.parquet or \.jsonl"):
        write(Workload.of(arrival_s=[0.0], prompt_tokens=[1], output_tokens=[1]), tmp_path / "w.csv")
    assert os.listdir(tmp_path) == []


def test_a_write_that_breaks_leaves_the_old_file_and_no_other(tmp_path):
    target = tmp_path / "w.parquet"
    target.write_text("old")

    def breaks(file):
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        whole_file(target, breaks)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["w.parquet"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        write(Workload.of(arrival_s=[0.0], prompt_tokens=[1], output_tokens=[1]), tmp_path / "none" / "w.parquet")


def test_a_later_version_is_refused_by_name(tmp_path):
    path = tmp_path / "w.jsonl"
    path.write_text(
        '{"format": "inferencegym.workload", "version": "99"}\n'
        '{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1}\n'
    )
    with pytest.raises(InputError, match="version 99"):
        read(path)
