"""Runs the SLURM script of experiments/scaling with a false `srun`."""

import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
  ('code', 'restarts', 'again'),
  [(143, 0, 1), (134, 1, 1), (137, 0, 1), (1, 2, 1), (134, 20, 0)]
  + [(code, 0, 0) for code in (0, 2, 3)],
)
def test_the_slurm_recipe_requeues_what_resumes(
  code, restarts, again, tmp_path
):
  text = (ROOT / 'experiments/scaling/README.md').read_text()
  recipe = text.split('#!/bin/bash\n')[1].split('```')[0]
  for name, body in {'srun': f'exit {code}', 'scontrol': 'echo "$@"'}.items():
    (tmp_path / name).write_text(f'#!/bin/sh\n{body}\n')
    (tmp_path / name).chmod(0o755)
  done = subprocess.run(
    ['bash', '-c', recipe],
    env={
      'PATH': f'{tmp_path}:{os.environ["PATH"]}',
      'SLURM_JOB_ID': '77',
      'SLURM_RESTART_COUNT': f'{restarts}',
    },
    capture_output=True,
    text=True,
  )
  assert done.stdout == 'requeue 77\n' * again
  assert done.returncode == code
