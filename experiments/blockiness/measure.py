"""Measures how much patches show in translations of trained generators.

    python main.py --config=configs/fruit_vitunet_ti.py --workdir=A
    python main.py --config=configs/fruit_vitunet_ti.py --workdir=B \\
      --config.model.resample=channels
    python -m experiments.blockiness.measure A B

Writes results.json and results.md beside this file: for each run and direction
`blockiness.ratio` and `common` of the translated test part, and those of the
real images on either side.
"""

import json
import pathlib
import sys

import numpy as np

from experiments import documents
from experiments.blockiness import blockiness
from vit22b_jax import api, tasks
from vit22b_jax.fid import image_sources
from vit22b_jax.modes import evaluate
from vit22b_jax.runtime import formats, runs, workdir

HERE = pathlib.Path(__file__).parent


def measure(path: str) -> list[dict]:
  """Returns a row for each direction of a run."""
  config = runs.read_config(path)
  data = tasks.TASKS[config.task].load_data(config)
  task, manager = api.open_run(path, config, data)
  step, variables, _ = evaluate.restore(task, manager, 'last')
  manager.close()
  versions = formats.read_json(pathlib.Path(path) / workdir.VERSIONS)
  patch = config.model.patch_size
  rows = []
  for direction, sides in image_sources.DIRECTIONS.items():
    source, target = (images(getattr(data.test, side)) for side in sides)
    rows.append(
      {
        'resample': config.model.resample,
        'data': config.data.name,
        'image_size': config.data.image_size,
        'patch_size': patch,
        'steps': step,
        'commit': versions['git_commit'],
        'direction': direction,
        **_both('made', made(task, variables, direction), patch),
        **_both('source', source, patch),
        **_both('target', target, patch),
      }
    )
  return rows


def made(task, variables, direction: str) -> np.ndarray:
  """Returns translations of the test part, [B, H, W, 3] in [0, 255]."""
  return np.concatenate(
    [
      np.asarray(batch['image'])[np.asarray(batch['mask']) > 0]
      for batch in task.evaluator.made(variables, direction)
    ]
  )


def images(split) -> np.ndarray:
  """Returns all images of a split, uint8 [B, H, W, 3]."""
  return np.stack([split[i]['image'] for i in range(len(split))])


def _both(name: str, images: np.ndarray, patch: int) -> dict[str, float]:
  return {
    f'{name}_ratio': blockiness.ratio(images, patch),
    f'{name}_common': blockiness.common(images, patch),
  }


def table(rows: list[dict]) -> str:
  """Returns the rows in Markdown."""
  lines = [
    (
      f'{row["data"]}, {row["image_size"]} px, patch {row["patch_size"]}',
      row['resample'],
      f'{row["steps"]:,}',
      row['direction'],
      *(
        f'{row[f"{name}_{kind}"]:.3f}'
        for kind in ('ratio', 'common')
        for name in ('made', 'source', 'target')
      ),
    )
    for row in rows
  ]
  sides = '#of its input', '#of the target'
  columns = (
    *('data', 'resample', '#steps', 'direction'),
    *('#border / inside', *sides, '#shared texture', *sides),
  )
  return f'{documents.table(columns, lines)}\n'


if __name__ == '__main__':
  found = [row for path in sys.argv[1:] for row in measure(path)]
  (HERE / 'results.json').write_text(json.dumps(found, indent=2) + '\n')
  (HERE / 'results.md').write_text(table(found))
  print(table(found), end='')
