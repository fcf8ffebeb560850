"""A training's curve: a row an update, in `curve.csv` and, where TensorBoard is installed, in `tensorboard/`.

Figures that were not measured in an update, or are none yet (NaN), are empty cells, and no points.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CURVE = "curve.csv"
Row = dict[str, float | None]


class Curve:
    """The rows so far, and the files that hold them."""

    def __init__(self, folder: Path, columns: Sequence[str]) -> None:
        self.rows: list[Row] = []
        self._folder, self._columns = folder, columns
        self._board: Any = None

    def open(self) -> None:
        """Write the rows there are: what a killed training wrote after its last checkpoint will be written again."""
        with (self._folder / CURVE).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self._columns)
            writer.writerows(self._cells(row) for row in self.rows)
        if find_spec("tensorboard") and find_spec("torch"):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self._folder / "tensorboard"))

    def add(self, row: Row) -> None:
        """A new row."""
        self.rows.append(row)
        with (self._folder / CURVE).open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(self._cells(row))
        if self._board is not None:
            for name, value in row.items():
                if value is not None and name not in ("update", "steps") and not math.isnan(value):
                    self._board.add_scalar(name, value, int(row["steps"] or 0))

    def close(self) -> None:
        """Nothing more will come."""
        if self._board is not None:
            self._board.close()

    def _cells(self, row: Row) -> list[str]:
        values = (row.get(name) for name in self._columns)
        return ["" if value is None or math.isnan(value) else repr(value) for value in values]
