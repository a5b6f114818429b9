"""Figures 4 and 5: what each generator of Table 2 makes of the same images.

python -m experiments.figure5_samples.run --scale=cpu
"""

import pathlib

import numpy as np
from jaxtyping import UInt8
from matplotlib import figure

from experiments import documents, runner
from experiments.table2_translation import measure, tables
from experiments.table2_translation import run as table2
from vit22b_jax.report import samples


def render(
  results: pathlib.Path, folder: pathlib.Path, scale: str, rows: runner.Rows
) -> None:
  """Writes a picture for each data set, and results.md."""
  source = runner.results_file(results, scale)
  parts = []
  for data in dict.fromkeys(row['data'] for row in rows.values()):
    name = data.removeprefix('cycle_gan/')
    chosen = [row for row in rows.values() if row['data'] == data]
    words = f'{name}: real images and their translations'
    drawn = picture(results, chosen)
    parts.append(documents.save(drawn, folder, name, words, source))
  documents.write(folder, source, parts)


def picture(results: pathlib.Path, rows: list[runner.Row]) -> figure.Figure:
  """Draws real images in the first row, then each generator's translations."""
  drawn = figure.Figure(
    figsize=(10, 0.9 * (len(rows) + 1)), layout='constrained'
  )
  panels = drawn.subplots(len(rows) + 1, 2, squeeze=False)
  for column, (direction, title) in enumerate(tables.DIRECTIONS.items()):
    grids = [
      samples.read(results / measure.SAMPLES / f'{row["name"]}_{direction}.png')
      for row in rows
    ]
    shown = [strip(grids[0], 0), *(strip(grid, 1) for grid in grids)]
    names = ['real', *(row['generator'] for row in rows)]
    for place, (pixels, name) in enumerate(zip(shown, names, strict=True)):
      panel = panels[place, column]
      panel.imshow(pixels, interpolation='nearest')
      panel.set_xticks([])
      panel.set_yticks([])
      panel.spines[:].set_visible(False)
      if column == 0:
        panel.set_ylabel(name, rotation=0, ha='right', va='center', fontsize=9)
    panels[0, column].set_title(title, loc='left', fontsize=11)
  return drawn


def strip(
  grid: UInt8[np.ndarray, 'h w 3'], row: int
) -> UInt8[np.ndarray, 'side w 3']:
  """Returns a row of a grid: 0 real, 1 translated, 2 translated back."""
  side = (len(grid) - (samples.ROWS - 1) * samples.GAP) // samples.ROWS
  start = row * (side + samples.GAP)
  return grid[start : start + side]


EXPERIMENT = runner.Experiment(
  name='figure5_samples',
  question='What do the translations of each generator look like?',
  cells=table2.EXPERIMENT.cells,
  measure=table2.EXPERIMENT.measure,
  render=render,
  runs_of=table2.EXPERIMENT.name,
  scales=table2.EXPERIMENT.scales,
)

if __name__ == '__main__':
  runner.main(EXPERIMENT)
