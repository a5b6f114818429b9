"""Measures one thing on this machine's accelerator.

    python -m experiments.accelerator.measure parity '{"steps": 20}' OUT.json

`run` calls it in a process for each row, so that memory peaks are a row's own
and a failure costs one row. What a single measurement needs is imported in it.
"""

import inspect
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from vit22b_jax.runtime import host

_WARMUP = 3
_RELEASED = {'released_vit': 'released_vit', 'released_vit22b': 'released'}


def golden() -> dict[str, Any]:
  """Compares logits at the highest precision with the reference files.

  Returns:
    max|a - b| / max|b| by file; on CPUs the tests ask for 1e-5.
  """
  import jax
  import numpy as np

  from tests.helpers import golden_params
  from vit22b_jax.models import vit

  found = {}
  for name, block in _RELEASED.items():
    arrays, config = golden_params.load(name)
    params = golden_params.section(arrays, 'param')
    model = vit.build(
      block,
      'Ti',
      num_classes=config['num_classes'],
      patch_size=config['patch_size'],
      width=config['dim'],
      depth=config['depth'],
      num_heads=config['heads'],
      mlp_dim=config['mlp_dim'],
      precision='highest',
    )
    variables = {
      'params': getattr(golden_params, name)(params, config),
      'batch_stats': golden_params.released_stats(params),
    }
    logits = jax.jit(model.apply)(variables, golden_params.images(arrays))
    expected = arrays['logits_eval']
    error = np.abs(np.asarray(logits) - expected).max()
    found[name] = float(error / np.abs(expected).max())
  return {'relative_error': found}


def parity(
  block: str,
  dtype: str,
  variant: str,
  image_size: int,
  steps: int,
  depth: int | None,
) -> dict[str, Any]:
  """Trains the same steps on the accelerator and on the CPU.

  Args:
    block: a row of the table of blocks.
    dtype: of the accelerator; the CPU computes in float32, highest precision.
    variant: size of the model.
    image_size: in pixels, patches of a quarter of it.
    steps: how many.
    depth: blocks, in place of the variant's.

  Returns:
    The losses of both, and the largest relative difference.
  """
  from experiments.throughput import ours

  def losses(device, dtype):
    config = _classifier(block, variant, 16, image_size, image_size // 4)
    config.model.depth = depth
    config.model.dtype = dtype
    config.model.precision = 'highest' if dtype == 'float32' else 'default'
    step, _ = ours.stepper(ours.classifier(config, mesh=_mesh(device)))
    return [step() for _ in range(steps)]

  return _compare(losses, dtype)


def translation_parity(
  dtype: str, image_size: int, patch: int, steps: int, depth: int
) -> dict[str, Any]:
  """Trains the same CycleGAN steps on the accelerator and on the CPU."""
  from configs import common
  from experiments.throughput import ours

  def losses(device, dtype):
    config = common.translation()
    config.duration = '1000 steps'
    config.data.image_size = config.data.load_size = image_size
    config.model.patch_size = patch
    config.model.depth = depth
    config.model.dtype = dtype
    config.model.precision = 'highest' if dtype == 'float32' else 'default'
    step, _ = ours.stepper(ours.translation(config, mesh=_mesh(device)))
    return [step() for _ in range(steps)]

  return _compare(losses, dtype)


def _compare(
  losses: Callable[[Any, str], list[float]], dtype: str
) -> dict[str, Any]:
  import jax

  theirs = losses(jax.devices('cpu')[0], 'float32')
  found = losses(jax.devices()[0], dtype)
  worst = max(abs(a - b) / abs(b) for a, b in zip(found, theirs, strict=True))
  return {'losses': found, 'cpu_losses': theirs, 'relative_error': worst}


def throughput(
  block: str,
  variant: str,
  batch_size: int,
  image_size: int,
  patch: int,
  dtype: str,
  repeats: int,
  depth: int | None,
) -> dict[str, Any]:
  """Times training steps of a classifier, and reads its memory.

  Returns:
    `milliseconds` of a step (the median), `images_per_second`, `mfu` (model
    FLOPs utilization in [0, 1]), `peak_bytes` (None where the device doesn't
    tell), and `planned_bytes` by the compiled program.
  """
  import jax

  from experiments.throughput import ours
  from vit22b_jax.runtime import flops

  config = _classifier(block, variant, batch_size, image_size, patch)
  config.model.dtype = dtype
  config.model.depth = depth
  program = ours.classifier(config, num_classes=1000)
  found = _timed(program, repeats)
  rate = program[0].flops_per_image * found['images_per_second']
  mfu = flops.mfu(rate, jax.devices()[0], program[0].mesh.size)
  return found | {'mfu': mfu}


def translation_throughput(
  batch_size: int,
  image_size: int,
  patch: int,
  dtype: str,
  repeats: int,
  depth: int,
) -> dict[str, Any]:
  """Times CycleGAN steps of two ViTUnet-S; see `throughput`."""
  from configs import common
  from experiments.throughput import ours

  config = common.translation()
  config.batch_size = batch_size
  config.duration = '1000 steps'
  config.data.image_size = config.data.load_size = image_size
  config.model.patch_size = patch
  config.model.depth = depth
  config.model.dtype = dtype
  return _timed(ours.translation(config), repeats)


def inception(batch_size: int, repeats: int) -> dict[str, Any]:
  """Times Inception's features at tap 2048, resizing included."""
  from experiments.throughput import ours_inception

  step, _ = ours_inception.training_step(2048, batch_size)
  return _rates(step, batch_size, repeats)


def peer(
  block: str,
  variant: str,
  batch_size: int,
  image_size: int,
  patch: int,
  repeats: int,
  depth: int | None,
) -> dict[str, Any]:
  """Times timm's ViT, or its ParallelScalingBlock, in PyTorch.

  With `torch.compile` and bfloat16 autocast, on the GPU if PyTorch has one.
  """
  import torch

  from experiments.throughput import peers

  models = peers.timm_vit()
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  width = {'Ti': 192, 'S': 384, 'B': 768, 'L': 1024}[variant]
  model = models.VisionTransformer(
    img_size=image_size,
    patch_size=patch,
    embed_dim=width,
    depth=depth or (24 if variant == 'L' else 12),
    num_heads=width // 64,
    block_fn=models.ParallelScalingBlock if block == 'vit22b' else models.Block,
  )
  model = torch.compile(model.to(device).train())
  optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, fused=True)
  images = torch.randn(batch_size, 3, image_size, image_size, device=device)
  labels = torch.randint(0, 1000, (batch_size,), device=device)

  def step() -> float:
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device, torch.bfloat16):
      loss = torch.nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    optimizer.step()
    return loss.item()

  found = _rates(step, batch_size, repeats)
  peak = torch.cuda.max_memory_allocated() if device == 'cuda' else None
  return found | {'peak_bytes': peak, 'torch': torch.__version__}


def _classifier(
  block: str, variant: str, batch_size: int, image_size: int, patch: int
) -> Any:
  """Returns the config of a classifier without augmentation."""
  from configs import common

  config = common.classification()
  config.batch_size = batch_size
  config.duration = '1000 steps'
  config.data.image_size = image_size
  config.data.augment = 'none'
  config.model.block = block
  config.model.variant = variant
  config.model.patch_size = patch
  return config


def _mesh(device: Any) -> Any:
  from vit22b_jax.runtime import sharding

  return sharding.make_mesh(devices=[device])


def _timed(program: Any, repeats: int) -> dict[str, Any]:
  """Times a task's steps, and reads memory planned and used."""
  import jax

  from experiments.throughput import ours
  from vit22b_jax.runtime import sharding

  task, batch = program
  with sharding.mesh_context(task.mesh):
    lowered = task.train_step.lower(task.abstract_state, batch)
  stats = lowered.compile().memory_analysis()
  planned = sum(
    getattr(stats, f'{kind}_size_in_bytes')
    for kind in ('argument', 'temp', 'output')
  )
  step, parameters = ours.stepper(program)
  found = _rates(step, task.config.batch_size, repeats)
  used = jax.devices()[0].memory_stats() or {}
  return found | {
    'peak_bytes': used.get('peak_bytes_in_use'),
    'planned_bytes': planned - stats.alias_size_in_bytes,
    'parameters': parameters,
  }


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
  host.prepare()  # before jax
  kinds = dict(inspect.getmembers(sys.modules[__name__], inspect.isfunction))
  found = kinds[kind](**json.loads(arguments))
  pathlib.Path(output).write_text(json.dumps(found))


if __name__ == '__main__':
  main(*sys.argv[1:])
