"""Trained policies from files: they act as they score, under every mask and encoding; quick; and no wrong file passes for a right one."""

from __future__ import annotations

import json
import pickle
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from inferencegym.decision.encodings import find_encoding
from inferencegym.decision.knobs import GRID, OFFSETS, Knobs, KnobsSurface
from inferencegym.decision.paging import NOTHING
from inferencegym.envs import actors, catalogue
from inferencegym.envs.episode import record
from inferencegym.ground.errors import ConfigError, InferenceGymError, UnknownNameError
from inferencegym.policies import trained
from inferencegym.policies.catalogue import policy
from inferencegym.policies.heads import HEADS, find_head
from inferencegym.policies.network import NetworkPolicy
from inferencegym.policies.simple import surface_of
from inferencegym.policies.table import Cells
from inferencegym.policies.trained import Notes, build, load, read, save
from inferencegym.testing.policies import check_policy

KINDS = [(surface, head, kind) for surface, heads in HEADS.items() for head in heads for kind in ("network", "table")]


def notes(surface="paging", head="actions", kind="network", **given):
    return Notes(
        kind=kind, surface=surface, head=head, task="easy", task_digest="d", algorithm="none", seed=3, config_digest="c", steps=7,
        activation="tanh" if kind == "network" else "", **given,
    )  # fmt: skip


def arrays(surface, head, kind, seed=0, hidden=(16, 8)):
    rng = np.random.default_rng(seed)
    inputs, outputs = len(surface_of(surface).columns), sum(find_head(surface, head).sizes)
    if kind == "table":
        edges = np.array([[0.2, 0.5, np.inf], [0.3, 0.4, 0.9]], np.float32)
        return {
            "columns": np.array([0, 3]), "edges": edges, "values": rng.normal(size=(12, outputs)).astype(np.float32),
        }  # fmt: skip
    found = {"mean": rng.random(inputs).astype(np.float32), "scale": (1 + rng.random(inputs)).astype(np.float32)}
    widths = (inputs, *hidden, outputs)
    for i in range(len(widths) - 1):
        found[f"w{i}"] = rng.normal(size=widths[i : i + 2]).astype(np.float32)
        found[f"b{i}"] = rng.normal(size=widths[i + 1]).astype(np.float32)
    return found


def written(folder, surface="paging", head="actions", kind="network", **given):
    return save(
        folder / f"{surface}-{head}-{kind}.npz", notes(surface, head, kind, **given), arrays(surface, head, kind)
    )


def situations(surface, n, seed=0):
    itself = surface_of(surface)
    rng = np.random.default_rng(seed)
    low, high = itself.columns.low, itself.columns.high
    observations = (low + rng.random((n, len(low))) * (high - low)).astype(np.float32)
    masks = (rng.random((n, itself.mask_size)) < 0.6).astype(np.int8)
    masks[:, [NOTHING] if surface == "paging" else list(OFFSETS[:-1])] = 1
    return observations, masks


@pytest.mark.parametrize(("surface", "head", "kind"), KINDS)
def test_it_keeps_a_policys_promises(tmp_path, surface, head, kind):
    path = written(tmp_path, surface, head, kind)
    check_policy(lambda: load(path, surface))


@pytest.mark.parametrize(("surface", "head", "kind"), KINDS)
def test_rows_and_single_acts_are_the_same_and_legal(tmp_path, surface, head, kind):
    made = load(written(tmp_path, surface, head, kind))
    observations, masks = situations(surface, 200)
    itself = surface_of(surface)
    rows = made.head.rows(made.scores_of(observations), observations, masks)
    for observation, mask, row in zip(observations, masks, rows, strict=True):
        action = made.act(observation, mask)
        np.testing.assert_array_equal(action.levers() if surface == "knobs" else action, row)
        if head != "preset":  # A random mask may forbid every preset.
            assert itself.legal(action, mask)


def test_scores_are_the_matrix_products_in_double_precision(tmp_path):
    given = arrays("paging", "actions", "network")
    made = load(written(tmp_path))
    observations, _ = situations("paging", 50)
    x = (observations.astype(np.float64) - given["mean"]) * given["scale"]
    for i in range(3):
        x = x @ given[f"w{i}"].astype(np.float64) + given[f"b{i}"]
        x = np.tanh(x) if i < 2 else x
    np.testing.assert_allclose(made.scores_of(observations), x, atol=1e-5)
    for observation, expected in zip(observations, x, strict=True):
        np.testing.assert_allclose(made.scores(observation), expected, atol=1e-5)


def test_the_best_legal_choice_is_taken():
    scores = np.arange(18, dtype=np.float32)
    mask = np.zeros(18, np.int8)
    mask[[3, 11]] = 1
    assert find_head("paging", "actions").choose(scores, np.zeros(20, np.float32), mask) == 11
    scores[:] = -scores
    assert find_head("paging", "actions").choose(scores, np.zeros(20, np.float32), mask) == 3


def test_each_knob_takes_its_best_allowed_value():
    mask = np.ones(36, np.int8)
    scores = np.zeros(36, np.float32)
    best = (4, 9, 2, 1, 1, 0)
    for i, index in enumerate(best):
        scores[OFFSETS[i] + index] = 1.0
    head = find_head("knobs", "multidiscrete")
    assert head.choose(scores, np.zeros(32, np.float32), mask) == Knobs(16, 1.0, 2, "INT8", True, False)
    mask[OFFSETS[4] + 1] = 0
    mask[OFFSETS[0] + 4] = 0
    scores[OFFSETS[0] + 6] = 0.5
    assert head.choose(scores, np.zeros(32, np.float32), mask) == Knobs(64, 1.0, 2, "INT8", False, False)


def test_one_step_of_one_knob_leaves_the_others_alone():
    columns = KnobsSurface.columns
    natural = np.zeros(32)
    for name, value in zip(GRID, (64, 0.5, 3, 0, 0, 1), strict=True):
        natural[columns.index(name)] = value
    observation = columns.encode(natural)
    head = find_head("knobs", "delta")
    scores = np.zeros(13, np.float32)
    scores[4] = 1.0  # kv_budget_fraction up
    assert head.choose(scores, observation, np.ones(36, np.int8)) == Knobs(kv_budget_fraction=0.6)
    assert head.sizes == find_encoding("delta").sizes
    natural[columns.index("kv_budget_fraction")] = 1.0
    scores[1] = 0.5
    assert head.choose(scores, columns.encode(natural), np.ones(36, np.int8)) == Knobs(batch_cap=32)


def test_cells_are_what_their_edges_say():
    cells = Cells(np.array([1, 0]), np.array([[0.5, np.inf], [0.25, 0.75]], np.float32))
    assert (cells.counts, cells.size) == ((2, 3), 6)
    seen = np.array([[0.0, 0.0], [0.25, 0.0], [0.9, 0.0], [0.0, 0.5], [1.0, 1.0]], np.float32)
    assert cells.of(seen).tolist() == [0, 1, 2, 3, 5]
    assert cells.of(seen[4]) == 5


def test_a_network_plays_a_task_by_its_file_name(tmp_path):
    path = written(tmp_path)
    task = catalogue.task("easy")
    by_path, by_prefix = actors.actor(str(path), task), actors.actor(f"file:{path}", task)
    assert (by_path.name, by_path.surface) == (str(path), "paging")
    ours = record(task, by_path, split="validation", scenario=0)
    assert ours.value == record(task, by_prefix, split="validation", scenario=0).value
    assert isinstance(policy(str(path), "paging"), NetworkPolicy)
    twin = pickle.loads(pickle.dumps(by_path))
    assert record(task, twin, split="validation", scenario=0).value == ours.value
    with pytest.raises(ConfigError, match="acts on 'paging'"):
        actors.actor(str(path), catalogue.task("bursty_workload"))


def test_learned_is_the_tasks_shipped_file(tmp_path, monkeypatch):
    monkeypatch.setattr(trained, "WEIGHTS", tmp_path)
    task = catalogue.task("easy")
    assert actors.LEARNED not in actors.actor_names(task)
    with pytest.raises(ConfigError, match="inferencegym train --task easy"):
        actors.actor("learned", task)
    save(tmp_path / "easy.npz", notes(), arrays("paging", "actions", "network"))
    assert actors.actor("learned", task).name == "learned"
    assert actors.LEARNED in actors.quick_names(task)


def test_notes_come_back_as_they_were(tmp_path):
    path = written(tmp_path, validation=0.5, more={"best_static": 0.25})
    told, stored = read(path)
    assert told == replace(
        notes(validation=0.5, more={"best_static": 0.25}),
        surface_version=trained.surface_version("paging"),
    )
    np.testing.assert_array_equal(stored["w0"], arrays("paging", "actions", "network")["w0"])
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name], "nothing unfinished is left behind"


def test_another_meaning_of_the_surface_is_refused(tmp_path, monkeypatch):
    path = written(tmp_path)
    monkeypatch.setattr(trained, "surface_version", lambda name: "0123456789abcdef")
    with pytest.raises(
        ConfigError, match=r"version .* of surface 'paging', which is now 0123456789abcdef.*train it again"
    ):
        load(path)


def test_another_meaning_of_the_actions_is_refused(tmp_path):
    told = replace(notes("knobs", "preset"), surface_version=trained.surface_version("knobs"), head_version=9)
    with pytest.raises(ConfigError, match="version 9 of 'preset' actions"):
        build(told, arrays("knobs", "preset", "network"))


def test_the_surfaces_versions_differ_and_stand_still():
    assert trained.surface_version("paging") != trained.surface_version("knobs")
    assert len(trained.surface_version("knobs")) == 16


def test_cut_files_are_refused(tmp_path):
    whole = written(tmp_path).read_bytes()
    cut = tmp_path / "cut.npz"
    for size in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:size])
        with pytest.raises(ConfigError, match=r"is not a trained policy of InferenceGym"):
            load(cut)


def test_files_with_a_wrong_byte_are_refused_or_sound(tmp_path):
    whole = bytearray(written(tmp_path).read_bytes())
    bad = tmp_path / "bad.npz"
    refused = 0
    for at in np.linspace(0, len(whole) - 1, 150).astype(int):
        whole[at] ^= 0x5A
        bad.write_bytes(whole)
        whole[at] ^= 0x5A
        try:
            load(bad).act(*(part[0] for part in situations("paging", 1)))
        except ConfigError:
            refused += 1
    assert refused > 100, "a checksum covers all but the archive's own idle bytes"


def altered(path, change):
    """The file with its notes changed."""
    told, stored = read(path)
    data = {"format": 1, **{name: getattr(told, name) for name in told.__slots__}}
    change(data, stored)
    np.savez(path, allow_pickle=False, notes=np.frombuffer(json.dumps(data).encode(), np.uint8), **stored)
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda told, stored: told.update(format=2),
        lambda told, stored: told.update(kind="forest"),
        lambda told, stored: told.update(surface="pages"),
        lambda told, stored: told.update(head="preset"),
        lambda told, stored: told.update(activation="gelu"),
        lambda told, stored: told.update(seed="one"),
        lambda told, stored: told.update(task=5),
        lambda told, stored: told.update(colour="red"),
        lambda told, stored: told.pop("task"),
        lambda told, stored: stored.pop("w1"),
        lambda told, stored: stored.update(w1=stored["w1"].astype(np.float64)),
        lambda told, stored: stored.update(w1=stored["w1"][:, 1:]),
        lambda told, stored: stored.update(mean=stored["mean"] * np.nan),
        lambda told, stored: stored.update(w9=stored["w1"]),
        lambda told, stored: told.update(kind="table"),
    ],
)
def test_notes_and_arrays_that_do_not_belong_together_are_refused(tmp_path, change):
    path = altered(written(tmp_path), change)
    with pytest.raises(ConfigError, match=r"policy: '.*' is not a trained policy"):
        load(path)


def test_what_is_something_else_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no file"):
        policy("nowhere.npz", "paging")
    with pytest.raises(ConfigError, match="there is no file"):
        policy("file:nowhere", "paging")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    with zipfile.ZipFile(tmp_path / "model.npz", "w") as file:
        file.writestr("policy.pth", b"x" * 100)
    np.savez(tmp_path / "pickled.npz", notes=np.array([{}], object))
    for name in ("other", "array", "model", "pickled"):
        with pytest.raises(ConfigError, match="is not a trained policy"):
            load(tmp_path / f"{name}.npz")
    with pytest.raises(ConfigError, match=r"ends in \.npz"):
        save(tmp_path / "x.pt", notes(), {})


def test_heads_belong_to_surfaces():
    with pytest.raises(UnknownNameError, match="actions"):
        find_head("paging", "preset")
    with pytest.raises(InferenceGymError):
        find_head("pages", "actions")
