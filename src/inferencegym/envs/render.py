"""An episode to look at: a block of text, or strip charts of every observation column, drawn with NumPy alone.

Charts run from the beginning of the episode on the left to now on the right; each column fills its range from bottom to top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inferencegym.decision.columns import Float32s, Masks
from inferencegym.decision.knobs import LEVERS
from inferencegym.envs.batch import Task
from inferencegym.envs.glyphs import write

Image = npt.NDArray[np.uint8]

COLUMNS, PANEL_WIDTH, PANEL_HEIGHT, HEAD = 4, 216, 60, 44
PAPER, INK, SOFT, FILL, WARN = (250, 250, 248), (30, 34, 40), (140, 146, 152), (0, 114, 178), (213, 94, 0)
BAR = 24


@dataclass(frozen=True, slots=True)
class View:
    """An episode at one moment."""

    task: Task
    split: str
    scenario: int
    step: int
    total_reward: float
    action: Any
    """Dense; None before the first step."""
    reward: float
    terms: dict[str, float]
    observations: Float32s
    """float32[t, k]: those so far; the last one is now."""
    mask: Masks
    over: str
    """Empty while it lasts."""


def text(view: View) -> str:
    """A block of text: where the episode stands, what was done, every column in natural units with a bar."""
    columns = view.task.surface.columns
    now = view.observations[-1]
    lines = [
        f"{view.task.name}, {view.split} scenario {view.scenario}: step {view.step} of {view.task.steps}"
        + (f", {view.over}" if view.over else ""),
        f"last action: {show_action(view.task, view.action)}",
        f"reward {view.reward:+.4f} = " + " ".join(f"{name} {value:+.4f}" for name, value in view.terms.items()),
        f"return {view.total_reward:+.4f}",
        "",
    ]
    width = max(len(name) for name in columns.names)
    for column, value, encoded in zip(columns, columns.decode(now).tolist(), now.tolist(), strict=True):
        filled = round(abs(encoded) * BAR)
        lines.append(f"{column.name:<{width}} {'#' * filled:<{BAR}} {value:>10.4g} {column.unit}")
    return "\n".join(lines) + "\n"


def show_action(task: Task, action: Any) -> str:
    """An action in words."""
    if action is None:
        return "none yet"
    if task.surface.name == "knobs":
        return ", ".join(f"{name} {value:g}" for name, value in zip(LEVERS, np.asarray(action).tolist(), strict=True))
    return f"{int(action)}, {_name_of(int(action))}"


def _name_of(number: int) -> str:
    from inferencegym.decision.paging import NAMES

    return NAMES[number]


def picture(view: View) -> Image:
    """uint8[height, width, 3]: one strip chart a column, and the progress of the episode."""
    columns = view.task.surface.columns
    rows = -(-len(columns) // COLUMNS)
    image = np.empty((HEAD + rows * PANEL_HEIGHT + 8, COLUMNS * PANEL_WIDTH + 8, 3), np.uint8)
    image[:] = PAPER
    head = f"{view.task.name}  {view.split} {view.scenario}  step {view.step}/{view.task.steps}  return {view.total_reward:.3f}  {view.over}"
    write(image, 8, 6, head, INK)
    write(image, 8, 20, f"action: {show_action(view.task, view.action)}"[:106], SOFT)
    done = round((image.shape[1] - 16) * min(view.step / view.task.steps, 1.0))
    image[35:38, 8 : image.shape[1] - 8] = (225, 225, 222)
    image[35:38, 8 : 8 + done] = WARN if view.over == "crashed" else FILL
    natural = columns.decode(view.observations[-1])
    for i, column in enumerate(columns):
        top, left = HEAD + (i // COLUMNS) * PANEL_HEIGHT, 8 + (i % COLUMNS) * PANEL_WIDTH
        write(image, left, top, column.name[:25], INK)
        _strip(
            image[top + 14 : top + PANEL_HEIGHT - 6, left : left + PANEL_WIDTH - 62],
            view.observations[:, i],
            signed=column.low < 0,
        )
        write(image, left + PANEL_WIDTH - 58, top + 30, _short(float(natural[i])), SOFT)
    return image


def _strip(panel: Image, values: npt.NDArray[np.float32], *, signed: bool) -> None:
    """Fill a panel (changed in place) with a column's course; the horizontal axis stretches until it is full, then squeezes."""
    height, width = panel.shape[:2]
    panel[:] = (238, 238, 235)
    if len(values) > width:
        # The largest of each stretch, so that a short peak is not lost.
        edges = np.linspace(0, len(values), width + 1).astype(np.int64)
        values = np.maximum.reduceat(values, edges[:-1])
    shown = values * 0.5 + 0.5 if signed else values
    tall = np.round(np.clip(shown, 0.0, 1.0) * height).astype(np.int64)
    levels = height - np.arange(height)[:, None]
    filled = levels <= tall[None, :]
    panel[:, : len(values)][filled] = (150, 196, 226)
    line = np.abs(levels - np.maximum(tall, 1)[None, :]) < 1
    panel[:, : len(values)][line] = FILL
    if signed:
        panel[height // 2] = SOFT


def _short(value: float) -> str:
    """A number in at most seven letters."""
    for size, letter in ((1e9, "g"), (1e6, "m"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}".replace("e-0", "e-")
