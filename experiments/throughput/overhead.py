"""Measures what a run costs beside its arithmetic.

    python -m experiments.throughput.overhead [TFDS_DIR]

Each figure alternates with its peer in one process, 7 repeats after a warm-up,
medians; the start, of whole processes, is timed where TFDS_DIR has CIFAR-10.
Writes overhead.json and overhead.md as `training_step` writes its files.
"""

import argparse
import contextlib
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from vit22b_jax.runtime import host

host.prepare()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from configs import common  # noqa: E402
from experiments.throughput import training_step  # noqa: E402
from vit22b_jax import train  # noqa: E402
from vit22b_jax.data import catalog, splits  # noqa: E402
from vit22b_jax.modes import setup  # noqa: E402
from vit22b_jax.runtime import preemption, sharding, workdir  # noqa: E402
from vit22b_jax.tasks import classification  # noqa: E402
from vit22b_jax.training import gradients  # noqa: E402

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
REPEATS = 7
# (variant, patch size, steps between two looks at the clock): some 5 s, over
# which the neighbors of a shared machine average out.
MODELS = (('S', 4, 4), ('Ti', 4, 8), ('Ti', 16, 100))


class Plain(classification.Classification):
  """Takes the same step without diagnostics, detector and skipping."""

  def step(self, state, batch):
    """Computes loss, gradient, update; the loss is all that is returned."""
    grads, loss, batch_stats, *_ = gradients.of_batch(
      self.loss,
      state.params,
      state.batch_stats,
      self._parts(state, batch),
      self.config.optim.accumulate,
      state.loss_scale,
      self.param_shardings,
    )
    updates, opt_state = self.tx.update(grads, state.opt_state, state.params)
    state = state.replace(
      step=state.step + 1,
      params=jax.tree.map(jnp.add, state.params, updates),
      batch_stats=batch_stats,
      opt_state=opt_state,
    )
    return state, jnp.stack([loss])


def make_task(kind, variant: str, patch: int) -> classification.Classification:
  """Returns a ViT-22B classifier on random images of 32 px, batch 64."""
  config = common.classification()
  config.batch_size = 64
  config.duration = '1000000 steps'
  config.data.augment = 'none'
  config.model.variant = variant
  config.model.patch_size = patch
  config.log.tensorboard = False
  for section in (config.checkpoint, config.eval):
    section.every = '1000000 steps'
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (640, 32, 32, 3), np.uint8)
  split = splits.ArraySplit(images, rng.integers(0, 10, 640, np.int32))
  names = tuple('0123456789')
  return kind(
    config,
    sharding.make_mesh(),
    names,
    catalog.Dataset(split, split, split, names),
  )


def stepper(task, steps: int) -> Callable[[], None]:
  """Runs `steps` steps of a task on batches as they come, and waits."""
  state, batches = task.init_state(), task.train_batches()

  def run():
    nonlocal state
    for _ in range(steps):
      with sharding.mesh_context(task.mesh):
        state, scalars = task.train_step(state, next(batches))
    jax.block_until_ready(scalars)

  return run


def looper(task, steps: int, folder: str, watcher, stack):
  """Returns what runs `steps` steps of a task in the training loop, and waits.

  Each call goes on where the last one ended. Checkpoints are not written.
  """
  config = task.config
  run = setup.open_run_of(task, workdir.Workdir(folder), watcher, stack)
  run.manager.save = lambda *_, **__: False
  state, done = task.init_state(), 0

  def loop():
    nonlocal state, done
    done += steps
    task.total_steps = done
    # No validation at what looks like the end.
    run.manager.scores[done] = 0.0, 0.0
    with config.unlocked():
      config.duration = f'{done} steps'
    state = train.fit(run, state)

  return loop


def compare(name: str, ours, peer_name: str, peer, steps: int) -> dict:
  """Alternates the two; milliseconds a step, and the ratio peer over ours."""
  times = {ours: [], peer: []}
  for repeat in range(REPEATS + 1):
    for run in (ours, peer):
      start = time.perf_counter()
      run()
      if repeat:  # the first one compiles
        times[run].append((time.perf_counter() - start) * 1000 / steps)
  medians = [statistics.median(times[run]) for run in (ours, peer)]
  ratios = [b / a for a, b in zip(times[ours], times[peer], strict=True)]
  row = {
    'name': name,
    'ours_ms': round(medians[0], 2),
    'peer': peer_name,
    'peer_ms': round(medians[1], 2),
    'ratio': round(statistics.median(ratios), 4),
  }
  print(row, flush=True)
  return row


def diagnostics_rows() -> list[dict]:
  """Times the step of a run beside one without diagnostics."""
  rows = []
  for variant, patch, steps in MODELS:
    task = make_task(classification.Classification, variant, patch)
    full = stepper(task, steps)
    plain = stepper(make_task(Plain, variant, patch), steps)
    name = f'diagnostics every step, ViT-22B-{variant}/{patch}'
    rows.append(compare(name, full, 'the step without them', plain, steps))
  return rows


def loop_rows() -> list[dict]:
  """Times a step in the training loop beside the same jitted step alone."""
  rows = []
  for variant, patch, steps in MODELS:
    with (
      tempfile.TemporaryDirectory() as folder,
      preemption.Watcher() as watcher,
      contextlib.ExitStack() as stack,
    ):
      task = make_task(classification.Classification, variant, patch)
      rows.append(
        compare(
          f'training loop, ViT-22B-{variant}/{patch}',
          looper(task, steps, folder, watcher, stack),
          'the bare jitted step',
          stepper(task, steps),
          steps,
        )
      )
  return rows


def start_rows(data_dir: str) -> list[dict]:
  """Measures seconds from the command to its first step, cold and warm."""
  with tempfile.TemporaryDirectory() as folder:
    environment = {**os.environ, 'VIT22B_JAX_CACHE': folder}
    environment.pop('JAX_COMPILATION_CACHE_DIR', None)
    seconds = []
    for i in range(2):
      command = [
        sys.executable,
        'main.py',
        '--config=configs/cifar10_vit22b_s.py',
        '--config.batch_size=64',
        f'--config.data.dir={data_dir}',
        '--config.duration=1 step',
        f'--workdir={folder}/{i}',
      ]
      start = time.perf_counter()
      process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
      )
      for line in process.stdout:
        if line.startswith('First step done'):
          seconds.append(time.perf_counter() - start)
          break
      process.kill()
      process.wait()
  row = {
    'name': 'command to first step, ViT-22B-S/4, second start',
    'ours_ms': round(seconds[1] * 1000),
    'peer': 'first start, nothing cached',
    'peer_ms': round(seconds[0] * 1000),
    'ratio': round(seconds[0] / seconds[1], 2),
  }
  print(row, flush=True)
  return [row]


def main() -> None:
  flags = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  flags.add_argument('data_dir', nargs='?', help='folder of TFDS sets')
  arguments = flags.parse_args()
  facts = training_step.environment(argparse.Namespace(repeats=REPEATS))
  parts = [loop_rows, diagnostics_rows]
  if arguments.data_dir:
    parts.append(lambda: start_rows(arguments.data_dir))
  for part in parts:  # minutes of measuring: keep what there is
    training_step.write(HERE, 'overhead', part(), facts)


if __name__ == '__main__':
  main()
