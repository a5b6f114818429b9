"""Figure 1: which switch makes training explode, and which cures it.

python -m experiments.figure1_stability.run --scale=cpu --jobs=2
"""

import pathlib

from experiments import documents, runner
from experiments.figure1_stability import cells, measure, plots, tables

WATCHED = ('large', 'long')


def render(
  results: pathlib.Path, folder: pathlib.Path, scale: str, rows: runner.Rows
) -> None:
  """Writes results.md, rates.png and a picture of each watched stage."""
  source = runner.results_file(results, scale)
  size = 'S'
  pictures = {
    'rates': plots.rates(rows, size),
    **{stage: plots.curves(rows, stage) for stage in WATCHED},
  }
  for name, picture in pictures.items():
    if picture is not None:
      documents.save(picture, folder / f'{name}.png', source)
  documents.write(folder, scale, tables.sections(rows, size))


EXPERIMENT = runner.Experiment(
  name='figure1_stability',
  question='What explodes when ViT-22B trains from scratch, where first, and '
  'which change cures it?',
  cells=cells.cells,
  measure=measure.measure,
  render=render,
)

if __name__ == '__main__':
  runner.main(EXPERIMENT)
