"""Trees as policies: they act as their text reads, one by one as many at once, and no broken tree is loaded."""

from __future__ import annotations

import numpy as np
import pytest

from inferencegym.decision.encodings import show_lever
from inferencegym.decision.knobs import GRID, LEVERS, OFFSETS
from inferencegym.decision.paging import NAMES, NOTHING, NUMBER
from inferencegym.ground.errors import ConfigError
from inferencegym.policies import trained
from inferencegym.policies.heads import find_head
from inferencegym.policies.simple import surface_of
from inferencegym.policies.trained import Notes
from inferencegym.policies.tree import ONE_HEAD, UNLISTED, Branches, TreePolicy
from inferencegym.testing.policies import check_policy


def notes(surface):
    return Notes("tree", surface, ONE_HEAD[surface], "easy", "d", "none", 0, "c", 0)


def random_arrays(surface, leaves, seed):
    """A tree of random shape whose thresholds are round numbers in the columns' own units."""
    rng = np.random.default_rng(seed)
    columns = surface_of(surface).columns
    children, open_places = [], []
    asked = rng.integers(len(columns), size=leaves - 1)
    for at in range(leaves - 1):
        if open_places:
            parent, side = open_places.pop(int(rng.integers(len(open_places))))
            children[parent][side] = at
        children.append([0, 0])
        open_places += [(at, 0), (at, 1)]
    for leaf, (parent, side) in enumerate(open_places):
        children[parent][side] = ~leaf
    natural = np.zeros((leaves - 1, len(columns)))
    for at, column in enumerate(asked):
        encoded = np.zeros(len(columns), np.float32)
        encoded[column] = rng.uniform(0.1, 0.9)
        natural[at, column] = float(f"{columns.decode(encoded)[column]:.2g}")
    thresholds = columns.encode(natural)[np.arange(leaves - 1), asked]
    values = np.full((leaves, sum(find_head(surface, ONE_HEAD[surface]).sizes)), UNLISTED, np.float32)
    for row in values:
        if surface == "paging":
            listed = rng.permutation(len(NAMES))[: rng.integers(1, 6)]
            row[listed] = np.arange(len(listed), 0, -1)
            row[NOTHING] = max(row[NOTHING], 0.0)
        else:
            row[[offset + rng.integers(len(grid)) for offset, grid in zip(OFFSETS, GRID.values(), strict=False)]] = 1.0
    return {
        "columns": asked,
        "thresholds": thresholds,
        "children": np.array(children, np.int64).reshape(-1, 2),
        "values": values,
    }


def situations(surface, n, seed):
    rng = np.random.default_rng(seed)
    kind = surface_of(surface)
    masks = (rng.random((n, kind.mask_size)) < 0.7).astype(np.int8)
    if surface == "paging":
        masks[:, NOTHING] = 1
    else:
        masks[:] = 1
    low, high = kind.columns.low, kind.columns.high
    return (low + (high - low) * rng.random((n, len(kind.columns)))).astype(np.float32), masks


def read(text, seen):
    """What a person would find who follows the text with natural values, by name: the words of a leaf."""
    lines = text.splitlines()
    always = {}
    if lines[0].startswith("# Always: "):
        always = dict(part.split(" = ") for part in lines[0].removeprefix("# Always: ").split(", "))
    lines = [line for line in lines if not line.startswith("#")]
    depth, at, answered = 0, 0, False
    while True:
        line = lines[at]
        inside = len(line) - len(line.lstrip())
        word = line.split()[0].rstrip(":")
        if inside != depth or (answered and word in ("elif", "else")):
            at += 1
        elif word in ("if", "elif", "else"):
            held = True
            if word != "else":
                _, column, sign, number, *_ = line.rstrip(":").split()
                held = seen[column] < float(number) if sign == "<" else seen[column] >= float(number)
            depth += 4 if held else 0
            at += 1
        else:
            said = line.split("  #")[0].strip()
            return always, said


@pytest.mark.parametrize("surface", ["paging", "knobs"])
@pytest.mark.parametrize("leaves", [1, 2, 7, 20])
def test_a_tree_acts_as_its_text_reads(surface, leaves):
    arrays = random_arrays(surface, leaves, seed=leaves)
    tree = trained.build(notes(surface), arrays)
    text = tree.text()
    observations, masks = situations(surface, 200, seed=5)
    for observation, mask in zip(observations, masks, strict=True):
        always, said = read(text, tree_columns(surface).read(observation))
        action = tree.act(observation, mask)
        if surface == "paging":
            assert action == next(NUMBER[name] for name in said.split(" > ") if mask[NUMBER[name]])
        else:
            told = always | ({} if said == "as always" else dict(part.split(" = ") for part in said.split(", ")))
            levers = surface_of("knobs").dense(action)
            assert told == {name: show_lever(name, value) for name, value in zip(LEVERS, levers.tolist(), strict=True)}


def tree_columns(surface):
    return surface_of(surface).columns


@pytest.mark.parametrize("surface", ["paging", "knobs"])
def test_one_by_one_is_as_many_at_once_and_survives_a_file(surface, tmp_path):
    arrays = random_arrays(surface, 15, seed=3)
    path = trained.save(tmp_path / "tree.npz", notes(surface), arrays)
    tree = trained.load(path, surface)
    assert isinstance(tree, TreePolicy)
    observations, masks = situations(surface, 300, seed=8)
    many = tree.head.rows(tree.scores_of(observations), observations, masks)
    kind = surface_of(surface)
    one = np.stack([kind.dense(tree.act(o, m)) for o, m in zip(observations, masks, strict=True)])
    assert np.array_equal(one, many)
    assert len(np.unique(tree.branches.leaf_of(observations))) > 5


@pytest.mark.parametrize("surface", ["paging", "knobs"])
def test_it_keeps_a_policys_promises(surface):
    arrays = random_arrays(surface, 5, seed=1)
    check_policy(lambda: trained.build(notes(surface), arrays))


def test_a_value_on_the_threshold_belongs_above():
    columns = surface_of("knobs").columns
    natural = np.zeros((1, len(columns)))
    at = columns.index("request_arrival_rate")
    natural[0, at] = 42.0
    encoded = columns.encode(natural)
    branches = Branches(np.array([at]), encoded[0, [at]], np.array([[~0, ~1]]))
    assert branches.leaf(encoded[0]) == 1
    natural[0, at] = 41.9
    assert branches.leaf(columns.encode(natural)[0]) == 0


@pytest.mark.parametrize(
    "children",
    [
        [[0, ~0], [~1, ~2]],  # a branch leads to itself
        [[1, 1], [~0, ~1]],  # a branch reached twice
        [[1, ~0], [~0, ~1]],  # a leaf reached twice
        [[~0, ~1], [0, ~2]],  # back to the first
        [[1, ~0], [~1, ~5]],  # a leaf that is none
        [[2, ~0], [~1, ~2]],  # a branch that is none
    ],
)
def test_what_is_no_tree_is_refused(children, tmp_path):
    arrays = random_arrays("paging", 3, seed=0) | {"children": np.array(children)}
    path = trained.save(tmp_path / "broken.npz", notes("paging"), arrays)
    with pytest.raises(ConfigError, match="not a trained policy"):
        trained.load(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("columns", np.array([0, 99])),
        ("thresholds", np.array([0.1, np.nan], np.float32)),
        ("thresholds", np.array([0.1], np.float32)),
        ("values", np.zeros((2, 18), np.float32)),
        ("children", np.array([1, ~0, ~1, ~2])),
    ],
)
def test_arrays_that_do_not_fit_are_refused(name, value, tmp_path):
    arrays = random_arrays("paging", 3, seed=0) | {name: value}
    path = trained.save(tmp_path / "broken.npz", notes("paging"), arrays)
    with pytest.raises(ConfigError, match="not a trained policy"):
        trained.load(path)
