"""Measures a translation for its row: distances by preset, and patches."""

import pathlib
import shutil
from typing import Any

import jax

from configs import common
from experiments.blockiness import blockiness
from experiments.blockiness import measure as images
from experiments.runner import Cell
from vit22b_jax import api, tasks
from vit22b_jax.fid import image_sources
from vit22b_jax.modes import evaluate
from vit22b_jax.runtime import runs
from vit22b_jax.runtime import workdir as workdir_lib

SAMPLES = 'samples'  # folder of CELL_DIRECTION.png beside the results
# Of patches of 32 px in an image of 256, the grid that all generators share.
_GRID = 8


def measure(
  cell: Cell, workdir: pathlib.Path, results: pathlib.Path
) -> dict[str, Any]:
  """Distances under the run's preset and the default one, and blockiness."""
  run = runs.read(workdir)
  for direction, grids in run.samples.items():
    (results / SAMPLES).mkdir(exist_ok=True)
    target = results / SAMPLES / f'{cell.name}_{direction}.png'
    shutil.copyfile(grids[max(grids)], target)
  return {
    'paper': run.evaluation,
    **_of_weights(workdir),
  }


def _of_weights(workdir: pathlib.Path) -> dict[str, Any]:
  """Measures the last checkpoint's generators again."""
  config = runs.read_config(str(workdir))
  weights = config.fid.weights
  with config.unlocked():
    config.fid.update(common.translation().fid)
    config.fid.weights = weights
  data = tasks.TASKS[config.task].load_data(config)
  task, manager = api.open_run(str(workdir), config, data)
  _, variables, _ = evaluate.restore(task, manager, 'last')
  manager.close()
  files = workdir_lib.Workdir(workdir)
  return {
    'generator_parameters': sum(
      leaf.size for leaf in jax.tree.leaves(variables['gen_ab'])
    ),
    'default': task.evaluator.test(variables, files),
    'patches': {
      direction: _patches(task, variables, data, direction)
      for direction in image_sources.DIRECTIONS
    },
  }


def _patches(task, variables, data, direction: str) -> dict[str, float]:
  """Blockiness of translations, and of the real images of their domain."""
  _, target = image_sources.DIRECTIONS[direction]
  made = images.made(task, variables, direction)
  real = images.images(getattr(data.test, target))
  patch = made.shape[1] // _GRID
  return {
    'ratio': blockiness.ratio(made, patch),
    'ratio_real': blockiness.ratio(real, patch),
    'common': blockiness.common(made, patch),
    'common_real': blockiness.common(real, patch),
  }
