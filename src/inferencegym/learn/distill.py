"""A trained policy as a decision tree of a few leaves that an engineer can read and deploy: fitted to what the policy does where the tree leads.

Rounds of DAgger (Ross et al. 2011): the tree plays, the policy says what it would have done there, and the next tree is fitted to all that was
said so far. Decisions count by what they matter (VIPER, Bastani et al. 2018), where the policy's scores tell. The best tree on validation
scenarios is found, and then the smallest that is nearly as good: within one standard error (Breiman et al. 1984), or within 3 % of what the
policy gains over the best configuration that never changes. No test scenario is ever seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import inferencegym
from inferencegym.decision.columns import Columns, Float32s
from inferencegym.decision.encodings import nearest
from inferencegym.decision.knobs import OFFSETS
from inferencegym.decision.paging import NOTHING
from inferencegym.envs.batch import Task
from inferencegym.envs.splits import scenario
from inferencegym.ground.archive import Array
from inferencegym.ground.errors import ConfigError
from inferencegym.ground.rng import stream
from inferencegym.learn.cart import Floats, Ints, Question, bins_of, grow, nodes_of
from inferencegym.learn.decisions import Decisions, play, settled
from inferencegym.learn.validate import SPLIT, best_static, values_of
from inferencegym.policies.heads import find_head
from inferencegym.policies.trained import Notes, build, save
from inferencegym.policies.tree import ONE_HEAD, UNLISTED, TreePolicy

LEAVES = 20
#: Columns that tell where in an episode one is, which a deployment has no word for.
HIDDEN = ("episode_fraction",)
_CUTS, _FEW = 40, 12
_MOST_ROWS = 40_000
_MOST_WEIGHT = 20.0
_SMALLER = (2, 3, 4, 6, 8, 12)
_GIVEN_UP = 0.03


@dataclass(frozen=True, slots=True, eq=False)
class Tried:
    """A tree that was fitted."""

    round: int
    weighted: bool
    """Whether decisions counted by what they matter."""
    leaves: int
    values: tuple[float, ...]
    """On the validation scenarios."""
    arrays: dict[str, Array]

    @property
    def mean(self) -> float:
        """Mean value on validation scenarios."""
        return float(np.mean(self.values))


@dataclass(frozen=True, slots=True, eq=False)
class Distilled:
    """A tree, and how it was found."""

    tree: TreePolicy
    arrays: dict[str, Array]
    """As `policies.trained.save` takes them."""
    shares: tuple[float, ...]
    """How often each leaf is reached, of the last round's decisions."""
    agreement: float
    """Share of the tree's own decisions, on validation scenarios, that are the policy's too."""
    validation: float
    """Mean value on validation scenarios."""
    teacher: float
    """The policy's, on the same."""
    static: float | None
    """The best static configuration's, on the same; None where it was never searched."""
    tried: tuple[Tried, ...]
    """Every tree that was fitted."""

    def text(self) -> str:
        """The tree to read, with how often each leaf is reached."""
        return self.tree.text([f"{share:.1%}" for share in self.shares])


def distil(
    task: Task,
    policy: Any,
    *,
    leaves: int = LEAVES,
    rounds: int = 3,
    episodes: int = 16,
    validation: int = 16,
    seed: int = 0,
) -> Distilled:
    """The best tree of at most so many leaves. `episodes`: training scenarios played each round; `validation`: scenarios that choose."""
    if leaves < 1 or rounds < 1 or episodes < 1 or validation < 1:
        raise ConfigError("distil", "leaves, rounds, episodes and validation scenarios", allowed="1 or more of each")
    chance = stream(seed, "distil")
    held = [scenario(SPLIT, i) for i in range(validation)]
    teacher = float(play(task, policy, held).values.mean())
    static = best_static(task, range(validation))
    tolerated = 0.0 if static is None else _GIVEN_UP * max(0.0, teacher - static)
    gathered: list[Decisions] = []
    tried: list[Tried] = []
    player = None

    def attempt(number: int, weighted: bool, most: int) -> Tried:
        arrays = fit(task, Decisions.joined(gathered), policy if weighted else None, leaves=most)
        tree = _built(task, arrays)
        one = Tried(number, weighted, tree.branches.leaves, tuple(values_of(tree, task, range(validation))), arrays)
        tried.append(one)
        return one

    for number in range(rounds):
        scenarios = [scenario("train", number * episodes + i) for i in range(episodes)]
        gathered.append(_some(play(task, policy, scenarios, player=player), chance))
        now = [
            attempt(number, weighted, leaves) for weighted in ((False, True) if _comparable(policy, task) else (False,))
        ]
        player = _built(task, max(now, key=lambda one: one.mean).arrays)
    best = max(tried, key=lambda one: one.mean)
    for most in _SMALLER:
        if most < leaves:
            attempt(rounds - 1, best.weighted, most)
    chosen = min((one for one in tried if _as_good(one, best, tolerated)), key=lambda one: (one.leaves, -one.mean))
    value, arrays = chosen.mean, chosen.arrays
    tree = _built(task, arrays)
    own = play(task, policy, held, player=tree)
    shares = np.bincount(tree.branches.leaf_of(own.observations), minlength=tree.branches.leaves) / len(own)
    acted = settled(
        task, tree.head.rows(tree.scores_of(own.observations), own.observations, own.masks), own.observations
    )
    same = acted == own.choices if own.choices.ndim == 1 else (acted == own.choices).all(axis=1)
    return Distilled(tree, arrays, tuple(shares.tolist()), float(same.mean()), value, teacher, static, tuple(tried))


def write(path: Path | str, task: Task, found: Distilled, *, source: str, seed: int = 0) -> Path:
    """Save the tree as a trained policy. `source`: the name or file of what it was distilled from."""
    notes = Notes(
        kind="tree", surface=task.surface.name, head=ONE_HEAD[task.surface.name], task=task.name, task_digest=task.digest, algorithm="distilled",
        seed=seed, config_digest="", steps=0, validation=found.validation, version=inferencegym.__version__,
        more={"distilled_from": source, "agreement": found.agreement, "shares": list(found.shares), "teacher_validation": found.teacher},
    )  # fmt: skip
    return save(path, notes, found.arrays)


def fit(task: Task, seen: Decisions, policy: Any = None, *, leaves: int = LEAVES) -> dict[str, Array]:
    """The arrays of a tree fitted to decisions. `policy`: whose scores say what each decision matters; None: all alike."""
    columns = task.surface.columns
    edges = thresholds(columns, seen.observations)
    bins = bins_of(seen.observations, edges)
    targets, weights = _lessons(task, seen, policy)
    played = targets.any(axis=0)
    least = max(5, len(seen) // 1000)
    # Branches whose leaves decide alike are folded, so more may be grown than are kept.
    questions = grow(bins, targets[:, played], weights[:, played], splits=4 * leaves, least=least)
    for splits in range(len(questions), -1, -1):
        arrays = _tree(task, questions[:splits], bins, edges, targets, weights, seen)
        if len(arrays["values"]) <= leaves:
            return arrays
    raise AssertionError("a tree without questions has one leaf")


def thresholds(columns: Columns, observations: Float32s) -> list[Float32s]:
    """For each column, where it may be cut: encoded, ascending, and round in natural units, between values that occur."""
    natural = columns.decode(observations)
    found = []
    for i, name in enumerate(columns.names):
        values = np.unique(natural[:, i])
        if name in HIDDEN or len(values) < 2:
            cuts = np.zeros(0)
        elif len(values) <= _FEW:
            cuts = _round((values[1:] + values[:-1]) / 2, 3)
        else:
            cuts = _round(np.quantile(natural[:, i], np.arange(1, _CUTS) / _CUTS), 2)
        cuts = np.unique(cuts[(cuts > values[0]) & (cuts <= values[-1])])
        wide = np.zeros((len(cuts), len(columns)))
        wide[:, i] = cuts
        found.append(np.unique(columns.encode(wide)[:, i]))
    return found


def _round(values: Floats, digits: int) -> Floats:
    """To so many significant digits."""
    return np.array([float(f"{value:.{digits}g}") for value in values.tolist()])


def _lessons(task: Task, seen: Decisions, policy: Any) -> tuple[Floats, Floats]:
    """(targets, weights), float64[n, m]: 1 for what was chosen; 0 weight for what was not allowed."""
    n = len(seen)
    targets = np.zeros(seen.masks.shape)
    if task.surface.name == "paging":
        targets[np.arange(n), seen.choices] = 1.0
    else:
        index = nearest(seen.choices) + np.array(OFFSETS[:-1])
        targets[np.arange(n)[:, None], index] = 1.0
    weights = (seen.masks == 1).astype(np.float64)
    if policy is not None:
        weights = weights * _stakes(task, seen, policy, targets)
    return targets, weights


def _stakes(task: Task, seen: Decisions, policy: Any, targets: Floats) -> Floats:
    """float64[n, m]: by the policy's own scores, what it would lose by its usual mix of choices instead of the one it made; 1 on average."""
    scores = policy.scores_of(seen.observations).astype(np.float64)
    spans = [(0, scores.shape[1])] if task.surface.name == "paging" else list(pairwise(OFFSETS))
    stakes: Floats = np.ones_like(scores)
    for start, end in spans:
        legal = seen.masks[:, start:end] == 1
        usual = targets[:, start:end].mean(axis=0) * legal
        mix = (usual * np.where(legal, scores[:, start:end], 0.0)).sum(axis=1) / np.maximum(usual.sum(axis=1), 1e-12)
        own = np.where(targets[:, start:end] == 1.0, scores[:, start:end], -np.inf).max(axis=1)
        lost = np.maximum(own - mix, 0.0)
        stakes[:, start:end] = np.minimum(lost / max(float(lost.mean()), 1e-12), _MOST_WEIGHT)[:, None]
    return stakes


def _tree(
    task: Task,
    questions: list[Question],
    bins: Ints,
    edges: list[Float32s],
    targets: Floats,
    weights: Floats,
    seen: Decisions,
) -> dict[str, Array]:
    """The arrays of a tree, with branches folded whose leaves decide alike."""
    ends = nodes_of(bins, questions)
    asked = {one.node: one for one in questions}
    decide = _preferences if task.surface.name == "paging" else _setting
    branches: list[tuple[int, float, list[Any]]] = []
    values: list[Float32s] = []

    def made(node: int) -> Any:
        """A leaf's values, or (question, below, above)."""
        if node not in asked:
            here = ends == node
            return decide(targets[here], weights[here])
        one = asked[node]
        below, above = made(one.below), made(one.above)
        leaves = isinstance(below, np.ndarray) and isinstance(above, np.ndarray)
        return below if leaves and np.array_equal(below, above) else (one, below, above)

    def numbered(part: Any) -> int:
        if isinstance(part, np.ndarray):
            values.append(part)
            return ~(len(values) - 1)
        one, below, above = part
        at = len(branches)
        children: list[Any] = []
        branches.append((one.column, float(edges[one.column][one.cut - 1]), children))
        children += [numbered(below), numbered(above)]
        return at

    numbered(made(0))
    return {
        "columns": np.array([b[0] for b in branches], np.int64),
        "thresholds": np.array([b[1] for b in branches], np.float32),
        "children": np.array([b[2] for b in branches], np.int64).reshape(-1, 2),
        "values": np.stack(values).astype(np.float32),
    }


def _setting(targets: Floats, weights: Floats) -> Float32s:
    """float32[36]: 1 for the setting, of those that were chosen, that agrees best with all of them."""
    share = (targets * weights).sum(axis=0) / np.maximum(weights.sum(axis=0), 1e-12)
    settings = np.unique(targets, axis=0)
    chosen = settings[int((settings * share).sum(axis=1).argmax())]
    return np.where(chosen == 1.0, 1.0, UNLISTED).astype(np.float32)


def _preferences(targets: Floats, weights: Floats) -> Float32s:
    """float32[18]: an order of actions, so that the first which is allowed is most often the one that was chosen."""
    m = targets.shape[1]
    values = np.full(m, UNLISTED, np.float32)
    left = np.ones(len(targets), np.bool_)
    for rank in range(m):
        legal = weights[left].sum(axis=0)
        chosen = (weights[left] * targets[left]).sum(axis=0)
        if chosen.sum() <= 0.0:
            break
        # One row in doubt is added, or an action that was allowed once would lead the list.
        action = int((chosen / (legal + 1.0)).argmax())
        values[action] = m - rank
        left &= weights[:, action] <= 0.0
        if action == NOTHING:
            break
    # Every list ends with what is always allowed.
    values[NOTHING] = max(values[NOTHING], 0.0)
    return values


def _as_good(one: Tried, best: Tried, tolerated: float) -> bool:
    """Whether a tree falls behind the best by no more than is tolerated, or than the standard error of their difference, scenario by scenario."""
    lost = np.array(best.values) - np.array(one.values)
    return bool(lost.mean() <= max(tolerated, lost.std() / np.sqrt(len(lost))))


def _some(decisions: Decisions, chance: np.random.Generator) -> Decisions:
    """Not more than can be fitted quickly, drawn evenly."""
    if len(decisions) <= _MOST_ROWS:
        return decisions
    return decisions.take(np.sort(chance.choice(len(decisions), _MOST_ROWS, replace=False)))


def _comparable(policy: Any, task: Task) -> bool:
    """Whether a policy's scores are one for each of the tree's choices."""
    head = getattr(policy, "head", None)
    return head is not None and hasattr(policy, "scores_of") and head.name == ONE_HEAD[task.surface.name]


def _built(task: Task, arrays: dict[str, npt.NDArray[Any]]) -> TreePolicy:
    surface = task.surface.name
    head = find_head(surface, ONE_HEAD[surface])
    notes = Notes("tree", surface, head.name, task.name, task.digest, "distilled", 0, "", 0)
    tree = build(notes, arrays, name="tree")
    assert isinstance(tree, TreePolicy), "notes of a tree make a tree"
    return tree
