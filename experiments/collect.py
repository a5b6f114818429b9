"""Keeps the result files of a run: workdir -> folder of experiments/.

    python -m experiments.collect runs/NAME experiments/NAME

Copies what the run wrote, without its checkpoints, and draws the plots. Where
this machine keeps data sets and runs (`data.dir`, the command line) is left
out: it is no part of a result, and '' means the place that the reader's machine
has.
"""

import json
import pathlib
import shutil
import sys

from vit22b_jax import report

CONFIG, VERSIONS = 'config.json', 'versions.json'
FILES = (
  'classes.json',
  'eval.json',
  'metrics.jsonl',
  'diagnostics.csv',
  'events.jsonl',
  'plan.json',
)


def collect(workdir: pathlib.Path, folder: pathlib.Path) -> None:
  """Copies a run's files and draws its plots; FILES lists the files."""
  config, versions = (
    json.loads((workdir / name).read_text()) for name in (CONFIG, VERSIONS)
  )
  folder.mkdir(parents=True, exist_ok=True)
  for name in FILES:
    (folder / name).unlink(missing_ok=True)  # of an earlier run
    if (workdir / name).exists():
      shutil.copyfile(workdir / name, folder / name)
  config['data']['dir'] = ''
  versions.pop('command', None)
  text = json.dumps(config, indent=2, sort_keys=True)
  (folder / CONFIG).write_text(f'{text}\n')
  (folder / VERSIONS).write_text(f'{json.dumps(versions, indent=2)}\n')
  report.plots(workdir, folder)


if __name__ == '__main__':
  collect(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
