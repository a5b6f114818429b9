"""Table 1: the parameters of every size and block, beside the paper's.

python -m experiments.table1_parameters.run
"""

import pathlib
from typing import Any

from experiments import documents, runner
from experiments.table1_parameters import count, tables
from vit22b_jax.runtime import formats


def cells(scale: str, rows: runner.Rows) -> list[runner.Cell]:
  """Returns the one run that counts all; a count has no scale."""
  del scale, rows
  program = ('-m', 'experiments.table1_parameters.count')
  return [runner.Cell('parameters', program=program)]


def measure(
  cell: runner.Cell, workdir: pathlib.Path, results: pathlib.Path
) -> dict[str, Any]:
  """Returns the counts, term by term."""
  del cell, results
  return formats.read_json(workdir / count.COUNTS)


def render(
  results: pathlib.Path, folder: pathlib.Path, scale: str, rows: runner.Rows
) -> None:
  """Writes results.md."""
  source = runner.results_file(results, scale)
  documents.write(folder, source, tables.sections(rows['parameters']))


EXPERIMENT = runner.Experiment(
  name='table1_parameters',
  question='How many parameters do the two blocks have at each size, and where '
  'does a count differ from the paper?',
  cells=cells,
  measure=measure,
  render=render,
  scales=('cpu',),
)

if __name__ == '__main__':
  runner.main(EXPERIMENT)
