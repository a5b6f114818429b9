"""Figure 2: top-1, top-5 and AUROC of ViT and ViT-22B from scratch.

python -m experiments.figure2_classification.run --scale=cpu
"""

import math
import pathlib
from typing import Any

import numpy as np

from experiments import documents, images, runner
from experiments.figure2_classification import (
  budget_tables,
  cells,
  plots,
  protocol,
  tables,
)
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
  _, val_top1 = run.metric('val/top1')
  data = run.config['data']
  return {
    'images': images.stored_as(data['name'], data['dir']),
    **{key: _known(run.evaluation.get(key)) for key in _KEPT},
    'val_top1': _known(val_top1[-1]) if len(val_top1) else None,
    'val_top1_best': _known(val_top1.max()) if len(val_top1) else None,
    'auroc_of_batches': _batch_auroc(run),
    'last_train_loss': _known(losses[-1]) if len(losses) else None,
    'explosions': sum(e['kind'] != 'transient' for e in run.events),
    'parameters': run.versions['parameters'],
  }


def _batch_auroc(run: runs.Run) -> float | None:
  """Returns the paper's AUROC of the test part; None without predictions."""
  if 'probabilities' not in run.predictions:
    return None
  order = np.argsort(run.predictions['indices'])
  return protocol.batch_auroc(
    run.predictions['probabilities'][order], run.predictions['labels'][order]
  )


def _known(value: Any) -> Any:
  is_number = isinstance(value, float)
  return None if is_number and not math.isfinite(value) else value


def render(
  results: pathlib.Path, folder: pathlib.Path, scale: str, rows: runner.Rows
) -> None:
  """Writes the tables of a scale and accuracy.png above them."""
  source = runner.results_file(results, scale)
  if scale == 'real':
    words = 'Top-1 of every run of the whole budget, by set and block'
    picture, parts = plots.blocks(rows), budget_tables.sections(rows)
  else:
    words = 'Top-1, top-5 and AUROC of every run, by size and block'
    picture, parts = plots.accuracy(rows), tables.sections(rows)
  shown = documents.save(picture, folder, 'accuracy', words, source)
  documents.write(folder, source, [shown, *parts])


EXPERIMENT = runner.Experiment(
  name='figure2_classification',
  question='Does the ViT-22B block classify better than the ViT block of the '
  'same size, trained from scratch?',
  cells=cells.cells,
  measure=measure,
  render=render,
  scales=('cpu', 'real', 'full'),
)

if __name__ == '__main__':
  runner.main(EXPERIMENT)
