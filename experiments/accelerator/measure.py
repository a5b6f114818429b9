"""Measures one thing on this machine's accelerator.

    python -m experiments.accelerator.measure parity '{"steps": 20}' OUT.json

`run` calls it in a process for each row, so that memory peaks are a row's own
and a failure costs one row. What a single measurement needs is imported in it.
"""

import inspect
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from vit22b_jax.runtime import host

_WARMUP = 3


def golden() -> dict[str, Any]:
  """Compares logits at the highest precision with the reference files.

  Returns:
    max|a - b| / max|b| by file; on CPUs the tests ask for 1e-5.
  """
  import jax
  import numpy as np

  from tests.helpers import golden_params

  found = {}
  for name in golden_params.RELEASED:
    arrays, _ = golden_params.load(name)
    model = golden_params.released_model(name, precision='highest')
    variables = golden_params.released_variables(name, 'param')
    logits = jax.jit(model.apply)(variables, golden_params.images(arrays))
    expected = arrays['logits_eval']
    error = np.abs(np.asarray(logits) - expected).max()
    found[name] = float(error / np.abs(expected).max())
  return {'relative_error': found}


def parity(steps: int, dtypes: list[str], **sizes: Any) -> dict[str, Any]:
  """Trains the same steps on the accelerator and on the CPU.

  Args:
    steps: how many.
    dtypes: of the accelerator; the CPU computes in float32, highest precision.
    **sizes: see `_program`.

  Returns:
    The losses of both, and the largest relative difference, by dtype.
  """
  import jax
  import numpy as np

  from experiments.throughput import ours
  from vit22b_jax.runtime import sharding

  def losses(device, dtype):
    mesh = sharding.make_mesh(devices=[device])
    step, _ = ours.stepper(_program(dtype=dtype, mesh=mesh, **sizes))
    return [step() for _ in range(steps)]

  theirs = losses(jax.devices('cpu')[0], 'float32')
  found = {dtype: losses(jax.devices()[0], dtype) for dtype in dtypes}
  worst = {
    dtype: float(np.max(np.abs(np.divide(mine, theirs) - 1)))
    for dtype, mine in found.items()
  }
  return {'losses': found, 'cpu_losses': theirs, 'relative_error': worst}


def throughput(repeats: int, **sizes: Any) -> dict[str, Any]:
  """Times training steps, and reads memory planned and used.

  Returns:
    `milliseconds` of a step (the median), `images_per_second`, `mfu` (model
    FLOPs utilization in [0, 1]), `peak_bytes` (None where the device doesn't
    tell), and `planned_bytes` by the compiled program.
  """
  import jax

  from experiments.throughput import ours
  from vit22b_jax.runtime import flops, sharding

  task, batch = program = _program(**sizes)
  with sharding.mesh_context(task.mesh):
    lowered = task.train_step.lower(task.abstract_state, batch)
  stats = lowered.compile().memory_analysis()
  planned = sum(
    getattr(stats, f'{kind}_size_in_bytes')
    for kind in ('argument', 'temp', 'output')
  )
  step, parameters = ours.stepper(program)
  found = _rates(step, task.config.batch_size, repeats)
  device = jax.devices()[0]
  rate = task.flops_per_image * found['images_per_second']
  return found | {
    'mfu': flops.mfu(rate, device, task.mesh.size),
    'peak_bytes': (device.memory_stats() or {}).get('peak_bytes_in_use'),
    'planned_bytes': planned - stats.alias_size_in_bytes,
    'parameters': parameters,
  }


def inception(batch_size: int, repeats: int) -> dict[str, Any]:
  """Times Inception's features at tap 2048, resizing included."""
  from experiments.throughput import ours_inception

  step, _ = ours_inception.training_step(2048, batch_size)
  return _rates(step, batch_size, repeats)


def peer(
  block: str,
  variant: str,
  batch_size: int,
  repeats: int,
  **sizes: Any,
) -> dict[str, Any]:
  """Times timm's ViT, or its ParallelScalingBlock, in PyTorch.

  With `torch.compile` and bfloat16 autocast, on the GPU if PyTorch has one.
  """
  import torch

  from experiments.throughput import peers

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  step, parameters = peers.training_step(
    block,
    variant,
    batch_size,
    threads=torch.get_num_threads(),
    compiled=True,
    num_classes=1000,
    device=device,
    dtype=torch.bfloat16,
    **sizes,
  )
  found = _rates(step, batch_size, repeats)
  peak = torch.cuda.max_memory_allocated() if device == 'cuda' else None
  return found | {
    'peak_bytes': peak,
    'parameters': parameters,
    'torch': torch.__version__,
  }


def _program(
  *,
  batch_size: int,
  image_size: int,
  patch: int,
  dtype: str,
  depth: int | None,
  block: str = '',
  variant: str = 'S',
  mesh: Any = None,
) -> Any:
  """Returns a task with a batch: a classifier, without a block a CycleGAN.

  Of 1,000 classes and without augmentation; float32 at the highest precision.
  """
  from configs import common
  from experiments.throughput import ours

  config = common.classification() if block else common.translation()
  config.batch_size = batch_size
  config.duration = '1000 steps'
  config.data.image_size = config.data.load_size = image_size
  config.model.variant = variant
  config.model.patch_size = patch
  config.model.depth = depth
  config.model.dtype = dtype
  config.model.precision = 'highest' if dtype == 'float32' else 'default'
  if not block:
    return ours.translation(config, mesh=mesh)
  config.data.augment = 'none'
  config.model.block = block
  return ours.classifier(config, num_classes=1000, mesh=mesh)


def _rates(
  step: Callable[[], float], batch_size: int, repeats: int
) -> dict[str, float]:
  seconds = []
  for _ in range(_WARMUP + repeats):
    start = time.perf_counter()
    step()
    seconds.append(time.perf_counter() - start)
  median = statistics.median(seconds[_WARMUP:])
  return {
    'milliseconds': 1e3 * median,
    'images_per_second': batch_size / median,
    'first_step_seconds': seconds[0],
  }


def main(kind: str, arguments: str, output: str) -> None:
  """Measures, and writes the row as JSON."""
  if named := os.environ.get('JAX_PLATFORMS'):
    os.environ['JAX_PLATFORMS'] = f'{named},cpu'  # which parity needs as well
  host.prepare()  # before jax
  kinds = dict(inspect.getmembers(sys.modules[__name__], inspect.isfunction))
  found = kinds[kind](**json.loads(arguments))
  pathlib.Path(output).write_text(json.dumps(found))


if __name__ == '__main__':
  main(*sys.argv[1:])
