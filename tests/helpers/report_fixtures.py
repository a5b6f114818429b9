"""Workdirs that look like those of real runs, made from random numbers."""

import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from configs import common
from vit22b_jax import config
from vit22b_jax.config import ConfigDict

CLASSES = [
  *('airplane', 'automobile', 'bird', 'cat', 'deer'),
  *('dog', 'frog', 'horse', 'ship', 'truck'),
]
COLUMNS = (
  *('loss', 'max_logit', 'max_abs_grad', 'grad_norm', 'clipped_grad_norm'),
  *('update_norm', 'param_norm'),
)
STATISTICS = ('attn_logit_max', 'attn_entropy', 'residual_rms', 'grad_norm')


def _config(defaults: ConfigDict, choices: dict[str, Any]) -> dict[str, Any]:
  defaults.update_from_flattened_dict(choices)
  return json.loads(config.to_json(defaults))


CONFIG = _config(
  common.classification(),
  {
    'duration': '20 epochs',
    'model.variant': 'Ti',
    'model.dtype': 'float32',
    'diagnostics.per_layer': True,
  },
)
TRANSLATION = _config(
  common.translation(),
  {
    'duration': '40 epochs',
    'data.name': 'fruit',
    'data.image_size': 64,
    'model.variant': 'Ti',
    'model.patch_size': 8,
    'model.resample': 'space',
    'model.blocks': 9,
    'fid.weights': 'random:0',
  },
)
VERSIONS = {
  'package': '0.1.0',
  'git_commit': '0123abc',
  'jax': '0.10.2',
  'flax': '0.12.8',
  'python': '3.11.7',
  'devices': ['TFRT_CPU_0', 'TFRT_CPU_1'],
  'parameters': 5_407_882,
}
PROBE: dict[str, Any] = {
  'config': CONFIG,
  'advice': 'Tolerates 0.001; model.pre_norm=True would allow 0.004.',
  'switches': {
    '': {'value': None, 'stable_at': 0.001, 'explodes_at': 0.004},
    'model.pre_norm': {'value': True, 'stable_at': 0.004, 'explodes_at': None},
  },
  'trials': {
    f'{rate}': {
      'switch': '',
      'rate': rate,
      'steps': 2,
      'exploded': exploded,
      'moved_first': exploded and 'attn_logit_max/03',
      'layer': exploded and '03',
      'last_loss': 1.0,
      'max_logit': [3.0, 3.0 if exploded is None else 9000.0],
      'max_abs_grad': [0.5, 0.5],
    }
    for rate, exploded in ((0.001, None), (0.004, 2))
  },
}


def make(
  path: pathlib.Path,
  *,
  steps: int = 7_000,
  depth: int = 12,
  explode_at: int | None = None,
  finished: bool = True,
  per_layer: bool = True,
  classes: list[str] = CLASSES,
) -> pathlib.Path:
  """Writes a workdir of `steps` steps, 350 an epoch; returns its path.

  From `explode_at` on, block 3's attention logits, then the largest logit,
  grow without bound until they overflow.
  """
  path.mkdir(parents=True)
  rng = np.random.default_rng(0)
  (path / 'config.json').write_text(json.dumps(CONFIG))
  (path / 'versions.json').write_text(json.dumps(VERSIONS))
  write_lines(path / 'metrics.jsonl', _metrics(rng, steps, len(classes)))
  _diagnostics(rng, path, steps, depth if per_layer else 0, explode_at)
  if explode_at is not None:
    write_lines(path / 'events.jsonl', events(explode_at))
  if finished:
    _evaluation(rng, path, steps, classes)
  return path


def write_lines(path: pathlib.Path, rows: Iterable[dict[str, Any]]) -> None:
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def _metrics(
  rng: np.random.Generator, steps: int, classes: int
) -> Iterator[dict[str, Any]]:
  for step in range(50, steps + 1, 50):
    part = 1 - np.exp(-2.5 * step / steps)
    noise = 1 + 0.04 * rng.standard_normal()
    yield {
      'step': step,
      'epoch': step / 350,
      'train/loss': np.log(classes) * (1 - 0.75 * part) * noise,
      'train/top1': min(0.1 + 0.72 * part * noise, 1.0),
      'train/learning_rate': 5e-4
      * 0.5 ** sum(step > steps * p for p in (0.3, 0.6, 0.9)),
      'perf/images_per_second': 640 * noise,
      'perf/mfu': 0.31,
      'perf/input_wait_fraction': 0.004,
    }
    if step % 350 == 0:
      late = max(part - 0.7, 0)
      yield {
        'step': step,
        'epoch': step / 350,
        'val/loss': np.log(classes) * (1 - 0.6 * part + 1.1 * late) * noise,
        'val/top1': 0.1 + 0.55 * part * noise,
        'val/top5': 0.5 + 0.46 * part,
        'val/auroc': 0.5 + 0.43 * part,
      }


def _diagnostics(
  rng: np.random.Generator,
  path: pathlib.Path,
  steps: int,
  depth: int,
  explode_at: int | None,
) -> None:
  step = np.arange(steps)
  growth = np.ones(steps)
  if explode_at is not None:
    growth = np.exp(np.maximum(step - explode_at, 0) * 0.02)

  def wave(level, slope=0.0, noise=0.1):
    trend = level * (1 + slope * step / steps)
    return trend * np.exp(noise * rng.standard_normal(steps))

  norm = wave(2.0, -0.4, 0.3) * growth
  columns = [
    wave(2.3, -0.7) * growth**0.5,
    wave(3.0, 3.0) * growth,
    wave(0.3, -0.5, 0.4) * growth,
    norm,
    np.minimum(norm, 10.0),
    wave(0.05),
    wave(80.0, 0.4, 0.001),
  ]
  names = ['step', *COLUMNS]
  for statistic, level in zip(STATISTICS, (4.0, 3.5, 1.2, 0.5), strict=True):
    for layer in range(depth):
      names.append(f'{statistic}/{layer:02d}')
      values = wave(level * (1 + 0.08 * layer), 0.5)
      if statistic == 'attn_entropy':
        values = np.minimum(values / growth**0.1, 4.16)
      elif layer >= 3:
        values = values * growth ** (1.5 / (layer - 2))
      columns.append(values)
  with np.errstate(over='ignore'):
    table = np.stack([step, *columns], 1).astype(np.float32)
  file, header = path / 'diagnostics.csv', ','.join(names)
  np.savetxt(file, table, '%.6g', ',', header=header, comments='')


def events(explode_at: int) -> list[dict[str, Any]]:
  return [
    {
      'step': 12,
      'kind': 'transient',
      'layer': None,
      'moved_first': 'max_abs_grad',
      'max_logit': 3.1,
      'max_abs_grad': 41.5,
      'zscore': {'max_logit': 0.4, 'max_abs_grad': 23.1},
      'threshold': {'max_logit': 4000.0, 'max_abs_grad': 4000.0},
      'action': 'record',
    },
    {
      'step': explode_at + 280,
      'kind': 'explosion',
      'layer': '03',
      'moved_first': 'attn_logit_max/03',
      'max_logit': 4312.7,
      'max_abs_grad': 127.1,
      'zscore': {'max_logit': 118.4, 'max_abs_grad': 12.2},
      'threshold': {'max_logit': 4000.0, 'max_abs_grad': 4000.0},
      'action': 'record',
    },
  ]


def _evaluation(
  rng: np.random.Generator,
  path: pathlib.Path,
  steps: int,
  classes: list[str],
) -> None:
  count, images = len(classes), 24
  labels = rng.integers(0, count, images)
  logits = rng.standard_normal((images, count)) * 1.5
  logits[np.arange(images), labels] += 2.0
  exp = np.exp(logits)
  y, x = np.mgrid[:32, :32] / 31.0
  phase = rng.uniform(0, 6, (images, 3))
  waves = np.sin(phase[:, None, None] + 5 * (x + y * y)[None, :, :, None])
  confusion = rng.integers(0, 60, (count, count)) // 2
  confusion += np.diag(np.full(count, 600))
  np.savez(
    path / 'predictions.npz',
    images=(127 * (1 + waves)).astype(np.uint8),
    labels=labels,
    probabilities=(exp / exp.sum(1, keepdims=True)).astype(np.float32),
    confusion=confusion,
    class_names=np.array(classes),
  )
  looked = rng.uniform(0, 0.1, (2, 8, 4, 4)).astype(np.float32)
  np.savez(
    path / 'attention.npz',
    images=(127 * (1 + waves[:8])).astype(np.uint8),
    indices=np.arange(8),
    true=np.array(classes)[labels[:8]],
    predicted=np.array(classes)[logits[:8].argmax(1)],
    last=looked[0],
    rollout=looked[1],
  )
  result = {
    'split': 'test',
    'num_examples': 10_000,
    'loss': 1.1234,
    'top1': 0.6312,
    'top5': 0.9641,
    'auroc': 0.9377,
    'step': steps,
    'weights': 'params',
  }
  (path / 'eval.json').write_text(json.dumps(result))


def make_translation(
  path: pathlib.Path,
  *,
  steps: int = 4_000,
  every: int = 200,
  pixels: int = 64,
  images: int = 4,
  finished: bool = True,
  weights: str = 'random:0',
  names: tuple[str, str] = ('apple', 'orange'),
) -> pathlib.Path:
  """Writes a translation's workdir; returns its path.

  Its samples, one grid every `every` steps, are discs that slowly turn into the
  color of the other domain.
  """
  path.mkdir(parents=True)
  rng = np.random.default_rng(0)
  chosen = TRANSLATION | {'fid': TRANSLATION['fid'] | {'weights': weights}}
  (path / 'config.json').write_text(json.dumps(chosen))
  (path / 'versions.json').write_text(json.dumps(VERSIONS))
  (path / 'classes.json').write_text(json.dumps(names))
  write_lines(path / 'metrics.jsonl', _translation_metrics(rng, steps))
  _diagnostics(rng, path, steps, 0, None)
  (path / 'samples').mkdir()
  for step in range(0, steps + 1, every):
    for direction in ('a2b', 'b2a'):
      grid = discs(step / steps, pixels, images, direction)
      name = f'samples/{direction}_{step:08d}.png'
      Image.fromarray(grid).save(path / name)
  if finished:
    result = _distances(steps, weights)
    (path / 'eval.json').write_text(json.dumps(result))
  return path


def discs(part: float, pixels: int, images: int, direction: str) -> np.ndarray:
  """A grid of samples at a part of the training: uint8 [h, w, 3]."""
  colors = np.array([[200, 30, 40], [240, 150, 30]], float)
  if direction == 'b2a':
    colors = colors[::-1]
  rng = np.random.default_rng(1)
  y, x = np.mgrid[:pixels, :pixels][..., None] / pixels
  grid = np.full((3, pixels + 2, images, pixels + 2, 3), 255.0)
  for image in range(images):
    center, radius = rng.uniform(0.4, 0.6, 2), rng.uniform(0.2, 0.35)
    away = np.hypot(y - center[0], x - center[1])
    shade = 1 - 0.5 * away / radius
    ground = rng.uniform(60, 200, 3)
    for row, share in enumerate((0.0, part, 0.3 - 0.2 * part)):
      color = colors[0] + share * (colors[1] - colors[0])
      drawn = np.where(away < radius, color * shade, ground)
      grain = 60 * (1 - part) * rng.standard_normal(drawn.shape)
      drawn = drawn + grain * (row > 0)
      grid[row, :pixels, image, :pixels] = np.clip(drawn, 0, 254)
  flat = grid.reshape(3 * (pixels + 2), images * (pixels + 2), 3)
  return flat[:-2, :-2].astype(np.uint8)


def _translation_metrics(
  rng: np.random.Generator, steps: int
) -> Iterator[dict[str, Any]]:
  for step in range(50, steps + 1, 50):
    fall = np.exp(-3 * step / steps)

    def near(level, falls=0.0, fall=fall):
      return level * (1 + falls * fall) * (1 + 0.08 * rng.standard_normal())

    yield {
      'step': step,
      'epoch': step / 100,
      'train/loss': near(4.0, 3.0),
      'train/gan_a2b': near(0.45),
      'train/gan_b2a': near(0.38),
      'train/cycle_a': near(0.06, 6.0),
      'train/cycle_b': near(0.05, 5.0),
      'train/idt_a': near(0.05, 5.0),
      'train/idt_b': near(0.04, 5.0),
      'train/disc_a': near(0.18),
      'train/disc_b': near(0.21),
      'train/learning_rate': 2e-4 * min(1, 2 - 2 * step / steps),
      'perf/images_per_second': near(7.5),
      'perf/mfu': 0.2,
    }
    if step % 400 == 0:
      there, back = near(40.0, 6.0), near(30.0, 5.0)
      values = {'fid': (there + back) / 2, 'fid_a2b': there, 'fid_b2a': back}
      values |= {k.replace('fid', 'kid'): v / 2_000 for k, v in values.items()}
      named = {f'val/{k}': v for k, v in values.items()}
      yield {'step': step, 'epoch': step / 100, **named}


def _distances(steps: int, weights: str) -> dict[str, Any]:
  result: dict[str, Any] = {'split': 'test', 'num_a': 64, 'num_b': 60}
  for prefix, scale in (('', 1.0), ('identity_', 4.0), ('untrained_', 9.0)):
    for direction, fid in (('a2b', 41.234), ('b2a', 31.457)):
      result |= {
        f'{prefix}fid_{direction}': fid * scale,
        f'{prefix}kid_{direction}': fid * scale / 2_000,
        f'{prefix}kid_stderr_{direction}': 0.0013,
      }
    mean = scale * (41.234 + 31.457) / 2
    result |= {f'{prefix}fid': mean, f'{prefix}kid': mean / 2_000}
  return result | {
    'tap': 2048,
    'resize': 'clean',
    'quantize': 'round',
    'weights_sha256': hashlib.sha256(weights.encode()).hexdigest(),
    'calibrated': not weights,
    'step': steps,
    'weights': 'params',
    'checkpoint': 'best',
  }
