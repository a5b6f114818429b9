"""Figure 2: top-1, top-5 and AUROC of ViT and ViT-22B from scratch.

python -m experiments.figure2_classification.run --scale=cpu
"""

import math
import pathlib
from typing import Any

from experiments import documents, runner
from experiments.figure2_classification import cells, plots, tables
from vit22b_jax.runtime import runs

_KEPT = ('split', 'num_examples', 'top1', 'top5', 'auroc', 'loss')


def measure(
  cell: runner.Cell, workdir: pathlib.Path, results: pathlib.Path
) -> dict[str, Any]:
  """Returns the final evaluation, and the last training loss.

  None stands for what isn't finite, and for all of a run that stopped early.
  """
  del cell, results
  run = runs.read(workdir)
  _, losses = run.metric('train/loss')
  return {
    **{key: _known(run.evaluation.get(key)) for key in _KEPT},
    'last_train_loss': _known(losses[-1]) if len(losses) else None,
    'explosions': sum(e['kind'] != 'transient' for e in run.events),
    'parameters': run.versions['parameters'],
  }


def _known(value: Any) -> Any:
  is_number = isinstance(value, float)
  return None if is_number and not math.isfinite(value) else value


def render(
  results: pathlib.Path, folder: pathlib.Path, scale: str, rows: runner.Rows
) -> None:
  """Writes results.md and accuracy.png."""
  source = runner.results_file(results, scale)
  words = 'Top-1, top-5 and AUROC of every run, by size and block'
  picture = plots.accuracy(rows)
  shown = documents.save(picture, folder, 'accuracy', words, source)
  documents.write(folder, source, [shown, *tables.sections(rows)])


EXPERIMENT = runner.Experiment(
  name='figure2_classification',
  question='Does the ViT-22B block classify better than the ViT block of the '
  'same size, trained from scratch?',
  cells=cells.cells,
  measure=measure,
  render=render,
)

if __name__ == '__main__':
  runner.main(EXPERIMENT)
