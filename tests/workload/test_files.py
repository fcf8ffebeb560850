"""Our own format: what is written is what is read, and a write that fails leaves nothing behind."""

from __future__ import annotations

import errno
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


def test_a_full_disk_and_a_folder_in_the_way_are_told_in_one_line(tmp_path):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match=r"w\.parquet: cannot be written: No space left"):
        whole_file(tmp_path / "w.parquet", full)
    (tmp_path / "w.jsonl").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write(Workload.of(arrival_s=[0.0], prompt_tokens=[1], output_tokens=[1]), tmp_path / "w.jsonl")
    assert os.listdir(tmp_path) == ["w.jsonl"]


@pytest.mark.parametrize("ending", [".parquet", ".jsonl"])
def test_writing_twice_gives_the_same_bytes(tmp_path, ending):
    w = Workload.of(
        arrival_s=[0.0, 0.5], prompt_tokens=[1, 2], output_tokens=[1, 2], kind=[0, 1], kind_names=("a", "b")
    )
    first, second = write(w, tmp_path / f"1{ending}"), write(w, tmp_path / f"2{ending}")
    assert first.read_bytes() == second.read_bytes()


def test_a_file_without_its_last_rows_is_not_taken_for_whole(tmp_path):
    w = Workload.of(arrival_s=[0.0, 1.0, 2.0], prompt_tokens=[1, 2, 3], output_tokens=[1, 2, 3])
    path = write(w, tmp_path / "w.jsonl")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match="3 rows and holds 2"):
        read(path)


def test_a_row_may_be_written_by_hand(tmp_path):
    path = tmp_path / "w.jsonl"
    path.write_text(
        '{"format": "inferencegym.workload", "version": "1"}\n'
        '{"arrival_s": 0.5, "prompt_tokens": 4, "output_tokens": 2, "tenant": "acme"}\n'
    )
    w = read(path)
    assert (w.arrival_s.tolist(), w.tenant_names) == ([0.5], ("acme",))


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
