"""A decision tree as a policy: a few comparisons of observation columns, then a setting or an order of preference; and the same as text to read.

A value on a threshold belongs above it. Thresholds are stored encoded, as the observation is, and printed in the columns' own units.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from inferencegym.decision.columns import Column, Float32s, Masks
from inferencegym.decision.encodings import show_lever
from inferencegym.decision.knobs import GRID, LEVERS, OFFSETS
from inferencegym.decision.paging import NAMES
from inferencegym.decision.surface import Action
from inferencegym.policies.heads import Head
from inferencegym.policies.simple import surface_of

Ints = npt.NDArray[np.int64]
_INDENT = "    "
#: The one way that trees write actions on each surface, so that each can be read.
ONE_HEAD = {"paging": "actions", "knobs": "multidiscrete"}
#: The score of what a leaf does not list: on paging it is taken only when nothing on the list is allowed.
UNLISTED = -1.0


class Branches:
    """Where every comparison leads. Branch 0 is the first; `children[b]` = (below, at or above): a branch, or ~leaf."""

    def __init__(self, columns: Ints, thresholds: Float32s, children: Ints) -> None:
        """`columns`: int64[b]; `thresholds`: float32[b], encoded; `children`: int64[b, 2]. ValueError if they make no tree."""
        self.columns, self.thresholds, self.children = columns, thresholds, children
        n = len(columns)
        parents = np.arange(n)[:, None]
        inner, leaves = np.sort(children[children >= 0]), np.sort(~children[children < 0])
        if (
            not np.array_equal(inner, np.arange(1, n))
            or not np.array_equal(leaves, np.arange(n + 1 if n else 0))
            or bool(((children >= 0) & (children <= parents)).any())
        ):
            raise ValueError(
                "its branches make no tree: each must lead to later branches or leaves, and each of these be reached once"
            )
        self.leaves = n + 1
        self._walk = list(zip(columns.tolist(), thresholds.tolist(), *children.T.tolist(), strict=True)) if n else []

    def leaf(self, observation: Float32s) -> int:
        """Number of the leaf that an observation, float32[k], falls into."""
        at = 0 if self._walk else -1
        while at >= 0:
            column, threshold, below, above = self._walk[at]
            at = above if observation.item(column) >= threshold else below
        return ~at

    def leaf_of(self, observations: Float32s) -> Ints:
        """int64[n] of float32[n, k]: the same for many."""
        found = np.zeros(len(observations), np.int64)
        at = np.full(len(observations), 0 if self._walk else -1)
        rows = np.arange(len(observations))
        while len(rows):
            done = at < 0
            found[rows[done]] = ~at[done]
            rows, at = rows[~done], at[~done]
            above = observations[rows, self.columns[at]] >= self.thresholds[at] if len(rows) else np.zeros(0, np.bool_)
            at = self.children[at, above.astype(np.int64)]
        return found


class TreePolicy:
    """Plays the best choice of the leaf that an observation falls into, among those that the mask allows. It remembers nothing."""

    def __init__(self, surface: str, head: Head, branches: Branches, values: Float32s, *, name: str = "tree") -> None:
        """`values`: float32[leaves, m], a score for each choice."""
        if head.name != ONE_HEAD[surface]:
            raise ValueError(f"its actions are '{head.name}'; a tree's on '{surface}' are '{ONE_HEAD[surface]}'")
        self.surface, self.name, self.head, self.branches, self.values = surface, name, head, branches, values

    def start(self, seed: int) -> None:
        """Nothing is left to chance."""
        del seed

    def scores_of(self, observations: Float32s) -> Float32s:
        """float32[n, m] for n observations, float32[n, k]."""
        return self.values[self.branches.leaf_of(observations)]

    def act(self, observation: Float32s, mask: Masks) -> Action:
        """The best legal action."""
        return self.head.choose(self.values[self.branches.leaf(observation)], observation, mask)

    def text(self, remarks: Sequence[str] = ()) -> str:
        """The whole policy as nested questions in natural units. `remarks`: one for each leaf, such as how often it is reached."""
        heading, leaves = self._said()
        surface = surface_of(self.surface).columns
        # Each branch's threshold where its column stands, so that all are decoded at once.
        wide = np.zeros((len(self.branches.columns), len(surface)), np.float32)
        wide[np.arange(len(wide)), self.branches.columns] = self.branches.thresholds
        natural = surface.decode(wide)
        lines = [heading] if heading else []

        def said(at: int, pad: str) -> None:
            lines.append(pad + leaves[~at] + (f"  # {remarks[~at]}" if remarks else ""))

        def walk(at: int, pad: str, word: str) -> None:
            column = int(self.branches.columns[at])
            first, second = self.branches.children[at].tolist()
            sign = "<"
            if first >= 0 > second:
                # What can be said in a line comes first, so that the rest need not stand further in.
                first, second, sign = second, first, ">="
            amount = _amount(surface[column], float(natural[at, column]))
            lines.append(f"{pad}{word} {surface[column].name} {sign} {amount}:")
            if first < 0:
                said(first, pad + _INDENT)
            else:
                walk(first, pad + _INDENT, "if")
            if second >= 0:
                walk(second, pad, "elif")
            else:
                lines.append(f"{pad}else:")
                said(second, pad + _INDENT)

        if self.branches.leaves > 1:
            walk(0, "", "if")
        else:
            said(-1, "")
        return "\n".join(lines) + "\n"

    def settings(self) -> list[dict[str, str]]:
        """Of a tree on knobs: each leaf's setting, as a person reads it."""
        found = []
        for values in self.values:
            parts = [values[start:end] for start, end in pairwise(OFFSETS)]
            found.append(
                {
                    name: show_lever(name, GRID[name][int(part.argmax())])
                    for name, part in zip(LEVERS, parts, strict=True)
                }
            )
        return found

    def preferences(self) -> list[list[str]]:
        """Of a tree on paging: each leaf's actions, the most wanted first; the first that is allowed is taken."""
        return [
            [NAMES[i] for i in np.argsort(-values, kind="stable").tolist() if values[i] > UNLISTED]
            for values in self.values
        ]

    def _said(self) -> tuple[str, list[str]]:
        """What holds everywhere, and a line for each leaf."""
        if self.surface == "paging":
            return "# Of each list, the first action that is allowed.", [" > ".join(one) for one in self.preferences()]
        settings = self.settings()
        always = [name for name in LEVERS if len({one[name] for one in settings}) == 1]
        heading = "# Always: " + ", ".join(f"{name} = {settings[0][name]}" for name in always) if always else ""
        leaves = [", ".join(f"{n} = {v}" for n, v in one.items() if n not in always) for one in settings]
        return heading, [leaf or "as always" for leaf in leaves]


def _amount(column: Column, value: float) -> str:
    """A number of a column with its unit, to as many digits as thresholds are chosen with."""
    number = np.format_float_positional(float(f"{value:.4g}"), trim="-")
    plain = column.unit in ("share", "index", "0 or 1")
    return number if plain else f"{number} {column.unit}"
