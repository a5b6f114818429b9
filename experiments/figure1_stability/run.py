"""Figure 1: which switch makes training explode, and which cures it.

python -m experiments.figure1_stability.run --scale=cpu --jobs=2
"""

import pathlib
from typing import Any

from experiments import documents, images, runner
from experiments.figure1_stability import cells, measure, plots, tables
from vit22b_jax.runtime import runs

SIZE = 'S'  # that of the search


def measured(
  cell: runner.Cell, workdir: pathlib.Path, results: pathlib.Path
) -> dict[str, Any]:
  """Returns a run's numbers, how its images are stored, its accuracy."""
  run = runs.read(workdir)
  data = run.config['data']
  steps, top1 = run.metric('val/top1')
  accuracy = {
    'top1': run.evaluation.get('top1'),
    'val_top1': [list(map(int, steps)), list(map(float, top1))],
  }
  return {
    'images': images.stored_as(data['name'], data['dir']),
    **measure.measure(workdir),
    **(accuracy if cell.facts['stage'] == 'recovery' else {}),
  }


def render(
  results: pathlib.Path, folder: pathlib.Path, scale: str, rows: runner.Rows
) -> None:
  """Writes results.md, rates.png and a picture of each watched stage."""
  source = runner.results_file(results, scale)
  rates = plots.rates(rows, SIZE) if scale != 'real' else None
  shown = [
    documents.save(picture, folder, name, words, source)
    for name, words, picture in (
      ('rates', 'Rates at which runs exploded', rates),
      ('large', 'B: logit and gradient by step', plots.curves(rows, 'large')),
      ('long', '3,000 steps: the same', plots.curves(rows, 'long')),
      (
        'recovery',
        'Runs that go on: logit and gradient by step',
        plots.curves(rows, 'recovery'),
      ),
    )
    if picture is not None
  ]
  if scale == 'real':
    jpeg = runner.read(runner.results_file(results, 'cpu'))
    parts = tables.lossless(rows, jpeg)
  else:
    parts = tables.sections(rows, SIZE)
  documents.write(folder, source, [*shown, *parts])


EXPERIMENT = runner.Experiment(
  name='figure1_stability',
  question='What explodes when ViT-22B trains from scratch, where first, and '
  'which change cures it?',
  cells=cells.cells,
  measure=measured,
  render=render,
  scales=('cpu', 'real', 'full'),
)

if __name__ == '__main__':
  runner.main(EXPERIMENT)
