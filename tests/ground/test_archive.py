"""Archives of arrays: they come back to the bit, appear whole or not at all, and what is broken is one InputError."""

from __future__ import annotations

import numpy as np
import pytest

from inferencegym.ground import archive
from inferencegym.ground.archive import read_archive, write_archive
from inferencegym.ground.errors import InputError

ARRAYS = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.array([1 << 60, -1]), "empty": np.zeros((0, 3))}


def test_what_is_written_comes_back(tmp_path):
    path = tmp_path / "deep" / "x.npz"
    write_archive(path, {"one": 1, "two": [0.1, None]}, ARRAYS)
    notes, arrays = read_archive(path, most_bytes=10_000)
    assert notes == {"one": 1, "two": [0.1, None]}
    assert set(arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)
    assert [entry.name for entry in path.parent.iterdir()] == ["x.npz"]


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    write_archive(path, {"version": 1}, ARRAYS)

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(archive.np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        write_archive(path, {"version": 2}, ARRAYS)
    monkeypatch.undo()
    assert read_archive(path, most_bytes=10_000)[0] == {"version": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.npz"]


def test_what_is_broken_is_one_error(tmp_path):
    path = tmp_path / "x.npz"
    write_archive(path, {}, ARRAYS)
    whole = path.read_bytes()
    with pytest.raises(InputError, match="larger than 0 MiB"):
        read_archive(path, most_bytes=100)
    for bad in (b"", whole[:-1], whole[:100], b"PK" + whole[:50], whole.replace(b"notes", b"other")):
        path.write_bytes(bad)
        with pytest.raises(InputError, match=r"x\.npz: is broken or something else"):
            read_archive(path, most_bytes=10_000)
    with pytest.raises(InputError, match="there is no such file"):
        read_archive(tmp_path / "none.npz", most_bytes=1)
    np.savez(path, notes=np.array([{}], object))
    with pytest.raises(InputError, match="broken"):
        read_archive(path, most_bytes=10_000)
