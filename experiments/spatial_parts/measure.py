"""Measures a variant's translations for its row, as Table 2 does."""

import pathlib
from typing import Any

from experiments import summary
from experiments.runner import Cell
from experiments.spatial_parts import variants
from experiments.table2_translation import measure as table2


def measure(
  cell: Cell, workdir: pathlib.Path, results: pathlib.Path
) -> dict[str, Any]:
  """Distances under both presets, blockiness, and what training took."""
  name = cell.name if cell.name in variants.VARIANTS else 'space'
  with variants.chosen(name):
    measured = table2.measure(cell, workdir, results)
  return {'minutes': summary.minutes(workdir), **measured}
