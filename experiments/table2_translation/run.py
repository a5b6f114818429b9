"""Table 2: FID and KID of ViTUnets on two translations, and their patches.

python -m experiments.table2_translation.run --scale=cpu
"""

import pathlib

from experiments import documents, runner
from experiments.table2_translation import cells, measure, plots, tables


def render(
  results: pathlib.Path, folder: pathlib.Path, scale: str, rows: runner.Rows
) -> None:
  """Writes results.md and fid.png."""
  source = runner.results_file(results, scale)
  words = "FID of every generator, the paper's preset"
  picture = plots.distances(rows, 'paper')
  shown = documents.save(picture, folder, 'fid', words, source)
  documents.write(folder, source, [shown, *tables.sections(rows)])


EXPERIMENT = runner.Experiment(
  name='table2_translation',
  question='Which block carries image translation better, and do the patches '
  'show?',
  cells=cells.cells,
  measure=measure.measure,
  render=render,
  scales=('cpu', 'real', 'full'),
)

if __name__ == '__main__':
  runner.main(EXPERIMENT)
