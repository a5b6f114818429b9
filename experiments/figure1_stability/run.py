"""Figure 1: which switch makes training explode, and which cures it.

python -m experiments.figure1_stability.run --scale=cpu --jobs=2
"""

import pathlib

from experiments import runner
from experiments.figure1_stability import cells, measure


def render(
  results: pathlib.Path, folder: pathlib.Path, scale: str, rows: runner.Rows
) -> None:
  pass


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
