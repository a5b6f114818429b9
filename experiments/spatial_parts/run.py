"""What each part of the spatial ViTUnet does for a translation.

python -m experiments.spatial_parts.run --scale=cpu
"""

import pathlib

from experiments import documents, runner
from experiments.figure5_samples import run as figure5
from experiments.spatial_parts import cells, measure, tables

HERE = pathlib.Path(__file__).parent


def render(
  results: pathlib.Path, folder: pathlib.Path, scale: str, rows: runner.Rows
) -> None:
  """Writes results.md and samples.png."""
  source = runner.results_file(results, scale)
  words = 'Apples and oranges, and what each variant makes of them'
  # Another seed shows other images.
  first = [row for name, row in rows.items() if name in cells.NAMES]
  drawn = figure5.picture(results, first)
  shown = documents.save(drawn, folder, 'samples', words, source)
  words = 'A step with `space` beside one with the ResNet, alternating:'
  speed = (HERE / 'speed.md').read_text().strip()
  documents.write(folder, source, [shown, tables.table(rows), words, speed])


EXPERIMENT = runner.Experiment(
  name='spatial_parts',
  question='Which part of the spatial ViTUnet makes its translations?',
  cells=cells.cells,
  measure=measure.measure,
  render=render,
  scales=('cpu',),
)

if __name__ == '__main__':
  runner.main(EXPERIMENT)
