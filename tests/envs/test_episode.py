"""Records of episodes: what is saved comes back to the bit, and files from strangers are refused before they cost anything."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inferencegym.decision.knobs import Knobs
from inferencegym.envs import episode as records
from inferencegym.envs.catalogue import task
from inferencegym.envs.episode import Episode, record
from inferencegym.ground.errors import ConfigError, InputError
from inferencegym.policies.simple import DoNothing, Fixed, Random
from tests.envs.toy import STEPS, ToyTask


def toy(scenario=3, split="train", actor=None):
    return record(ToyTask(), actor or Random("paging"), split=split, scenario=scenario)


def same(a, b):
    for name in ("actions", "rewards", "observations"):
        one, two = getattr(a, name), getattr(b, name)
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)
    for name in (
        "task",
        "digest",
        "split",
        "scenario",
        "terminated",
        "truncated",
        "value",
        "parts",
        "facts",
        "policy",
        "version",
    ):
        assert getattr(a, name) == getattr(b, name)


@pytest.mark.parametrize("kind", ["parquet", "npz"])
def test_a_file_gives_the_episode_back(tmp_path, kind):
    episode = toy()
    same(episode, Episode.load(episode.save(tmp_path / f"deep/er/one.{kind}")))


@pytest.mark.parametrize("kind", ["parquet", "npz"])
def test_knobs_that_were_left_alone_come_back_as_such(tmp_path, kind):
    episode = record(task("bursty_workload"), Fixed("knobs", Knobs(batch_cap=64)), split="validation", scenario=0)
    assert np.isnan(episode.actions[:, 1:]).all()
    same(episode, Episode.load(episode.save(tmp_path / f"one.{kind}")))


def test_a_record_holds_the_whole_episode():
    episode = toy(actor=DoNothing("paging"))
    assert (len(episode.actions), episode.truncated, episode.terminated) == (STEPS, True, False)
    assert episode.total_reward == pytest.approx(episode.rewards.sum())
    assert episode.policy == "do-nothing"
    np.testing.assert_array_equal(toy().actions, toy().actions)
    assert (toy(scenario=3).actions[:20] != toy(scenario=4).actions[:20]).any()


def test_parts_that_do_not_belong_together_are_no_episode():
    episode = toy()
    with pytest.raises(InputError, match="belong together"):
        replace(episode, rewards=episode.rewards[:-1])
    with pytest.raises(InputError, match="belong together"):
        replace(episode, observations=episode.observations[1:])


def test_only_known_kinds_of_file(tmp_path):
    with pytest.raises(ConfigError, match=r"\.parquet or \.npz"):
        toy().save(tmp_path / "one.pickle")
    with pytest.raises(InputError, match="no such file"):
        Episode.load(tmp_path / "none.npz")
    (tmp_path / "one.txt").write_text("hello")
    with pytest.raises(InputError, match=r"known: \.parquet"):
        Episode.load(tmp_path / "one.txt")


@pytest.mark.parametrize("kind", ["parquet", "npz"])
@pytest.mark.parametrize("cut", [0, 10, 0.5, 0.95])
def test_torn_files_are_refused(tmp_path, kind, cut):
    path = toy().save(tmp_path / f"one.{kind}")
    data = path.read_bytes()
    path.write_bytes(data[: cut if isinstance(cut, int) else int(len(data) * cut)])
    with pytest.raises(InputError) as error:
        Episode.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("kind", ["parquet", "npz"])
def test_flipped_bytes_are_refused_or_give_an_episode_but_nothing_else(tmp_path, kind):
    path = toy().save(tmp_path / f"one.{kind}")
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), 3):
            broken[at] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(broken))
        with contextlib.suppress(InputError):
            assert isinstance(Episode.load(path), Episode)


def test_a_file_with_code_in_it_is_not_run(tmp_path):
    path = tmp_path / "one.npz"
    np.savez(
        path,
        notes=np.zeros(1, np.uint8),
        actions=np.array([print], object),
        rewards=np.zeros(1),
        observations=np.zeros((2, 20), np.float32),
    )
    with pytest.raises(InputError, match="type object"):
        Episode.load(path)


def test_an_array_that_only_claims_to_be_huge_is_refused_before_it_is_made(tmp_path):
    episode, path = toy(), tmp_path / "one.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**14,)})
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (
            ("notes", npy(np.frombuffer(b"{}", np.uint8))),
            ("actions", npy(episode.actions)),
            ("rewards", header.getvalue()),
            ("observations", npy(episode.observations)),
        ):
            archive.writestr(f"{name}.npy", data)
    with pytest.raises(InputError, match="too large"):
        Episode.load(path)


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["parquet", "npz"])
def test_too_many_steps_are_refused(tmp_path, monkeypatch, kind):
    path = toy().save(tmp_path / f"one.{kind}")
    monkeypatch.setattr(records, "MOST_STEPS", 10)
    with pytest.raises(InputError, match=r"1[01]"):
        Episode.load(path)


def test_too_large_a_file_is_not_opened(tmp_path, monkeypatch):
    path = toy().save(tmp_path / "one.parquet")
    monkeypatch.setattr(records, "MOST_BYTES", 100)
    with pytest.raises(InputError, match="larger"):
        Episode.load(path)


def test_other_tables_are_no_episodes(tmp_path):
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match="not an episode"):
        Episode.load(tmp_path / "other.parquet")
    table = toy()._table()
    pq.write_table(table, tmp_path / "bare.parquet")
    with pytest.raises(InputError, match="not an episode"):
        Episode.load(tmp_path / "bare.parquet")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(InputError, match="an episode holds"):
        Episode.load(tmp_path / "other.npz")


@pytest.mark.parametrize(
    "change",
    [{"format": 99}, {"value": "high"}, {"scenario": "3"}, {"parts": [1]}, {"facts": {"a": "b"}}, {"task": None}],
)
def test_wrong_notes_are_refused(tmp_path, change):
    episode = toy()
    notes = json.loads(episode._notes()) | change
    table = episode._table().replace_schema_metadata({b"inferencegym.episode": json.dumps(notes).encode()})
    pq.write_table(table, tmp_path / "one.parquet")
    with pytest.raises(InputError):
        Episode.load(tmp_path / "one.parquet")


def test_columns_of_other_types_and_holes_are_refused(tmp_path):
    episode = toy()
    meta = {b"inferencegym.episode": episode._notes().encode()}
    table = episode._table()
    texts = table.set_column(0, "action_0", pa.array(["x"] * table.num_rows)).replace_schema_metadata(meta)
    pq.write_table(texts, tmp_path / "texts.parquet")
    with pytest.raises(InputError, match="other types"):
        Episode.load(tmp_path / "texts.parquet")
    rewards = table.column("reward").to_pylist()
    rewards[5] = None
    holes = table.set_column(table.schema.get_field_index("reward"), "reward", pa.array(rewards, pa.float64()))
    pq.write_table(holes.replace_schema_metadata(meta), tmp_path / "holes.parquet")
    with pytest.raises(InputError, match="empty cell"):
        Episode.load(tmp_path / "holes.parquet")
