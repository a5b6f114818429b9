"""Measures a variant's translations for its row, as Table 2 does."""

import pathlib
from typing import Any

from experiments.runner import Cell
from experiments.spatial_parts import cells, variants
from experiments.table2_translation import measure as table2


def measure(
  cell: Cell, workdir: pathlib.Path, results: pathlib.Path
) -> dict[str, Any]:
  """Returns distances under both presets, and blockiness."""
  with variants.chosen(cells.variant(cell)):
    return table2.measure(cell, workdir, results)
