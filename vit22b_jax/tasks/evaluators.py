"""Measures trained weights on the parts of a data set: names and values.

evaluator = ClassificationEvaluator(config, mesh, data, names, logits)
evaluator.validate(variables)            # loss top1 top5 auroc, of val
result = evaluator.test(variables, run)  # the content of eval.json
evaluator.summary(result)                # in words
"""

import abc
import io
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Shaped, UInt8
from ml_collections import ConfigDict

from vit22b_jax.data import catalog, pipeline, splits
from vit22b_jax.report import scores
from vit22b_jax.runtime import sharding
from vit22b_jax.runtime import workdir as workdir_lib
from vit22b_jax.tasks import attention
from vit22b_jax.training import losses, metrics

_LOOKED = 4  # errors, and right images, with attention maps
_SAMPLES = 48  # images kept with their predictions, drawn at random
_PICTURE_BYTES = 16_000_000  # of errors' images kept, the worst ones

# {'image': [B, H, W, 3] in [0, 255], 'mask': [B]}
Batches = Iterator[dict[str, Shaped[Array, 'B ...']]]


class Evaluator(abc.ABC):
  """Evaluates one task.

  Variables are the models', as the task's `variables` gives them.

  Attributes:
    batch_size: images of a batch, over all processes.
    poll: called between batches; may raise to leave the evaluation.
    best_metrics: the first that a row of metrics.jsonl has ranks checkpoints.
    best_mode: 'max' or 'min'.
    note: what has to be said with the values of `validate`.
    missing: why nothing can be measured; '' where something can.
    min_images: validation images from which on they rank checkpoints.
  """

  best_metrics: tuple[str, ...]
  best_mode: str
  note: str = ''
  missing: str = ''
  min_images: int = 1

  def __init__(
    self,
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    data: catalog.Dataset | None,
    batch_size: int,
  ):
    self.data, self._mesh, self.batch_size = data, mesh, batch_size
    self._workers = config.data.workers
    self.poll: Callable[[], None] = lambda: None

  def prepare(self) -> None:  # noqa: B027 (most need nothing)
    """Gets what evaluations need, or raises UserError, before any training."""

  @property
  def last_part(self) -> str:
    """Returns the part for the end: 'test', or 'val' where there is none."""
    return 'val' if self.data.test is None else 'test'

  def batches(self, split: splits.Split) -> Batches:
    """Yields each image of a split once, on the devices; padding at the end."""
    placement = sharding.batch_sharding(self._mesh)
    batches = pipeline.eval_batches(
      split,
      batch_size=self.batch_size,
      workers=self._workers,
      rows=pipeline.local_rows(placement, self.batch_size),
    )
    for batch in batches:
      placed = pipeline.place(batch, placement)
      self.poll()
      yield placed

  @abc.abstractmethod
  def validate(self, variables: dict[str, Any]) -> dict[str, float]:
    """Measures the validation part."""

  @abc.abstractmethod
  def test(
    self, variables: dict[str, Any], run: workdir_lib.Workdir
  ) -> dict[str, Any]:
    """Returns the content of eval.json: of the `last_part`, its `split`.

    Other files of the result go into the run's folder.
    """

  @staticmethod
  @abc.abstractmethod
  def summary(result: dict[str, Any]) -> str:
    """Returns the content of eval.json in words."""


class ClassificationEvaluator(Evaluator):
  """Measures a classifier; every image counts once.

  Args:
    mesh: over which batches are split.
    data: the data set; None to predict alone.
    names: of the classes.
    logits: (variables, images uint8 [B, H, W, 3]) -> float32 [B, C]; with
      `capture=True` also what `ViT` captures.
  """

  best_metrics = 'val/map', 'val/top1'
  best_mode = 'max'

  def __init__(
    self,
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    data: catalog.Dataset | None,
    names: list[str],
    logits: Callable[..., Any],
  ):
    batch_size = config.eval.batch_size or config.batch_size
    super().__init__(config, mesh, data, batch_size)
    sharding.validate_batch_size(batch_size, mesh, 'eval.batch_size')
    self._names, kind = names, config.loss.kind

    def step(variables, batch):
      found, labels = logits(variables, batch['image']), batch['label']
      values = losses.cross_entropy(found, labels, kind=kind)
      single = labels.ndim == 1
      return {
        'losses': values,
        'ranks': metrics.ranks(found, labels) if single else values,
        'probabilities': losses.probabilities(found, kind),
        'labels': labels,
        'indices': batch['index'],
        'mask': batch['mask'],
      }

    whole = sharding.replicated(mesh)
    self._step = jax.jit(step, out_shardings=whole)
    self._probabilities = jax.jit(
      lambda v, images: losses.probabilities(logits(v, images), kind),
      out_shardings=whole,
    )

    def maps(variables, images):
      inside = logits(variables, images, capture=True)[1]
      class_token = config.model.pool == 'cls'
      return attention.maps(inside['attn_map'], class_token=class_token)

    self._maps = jax.jit(maps, out_shardings=whole)

  def predict(
    self, variables: dict[str, Any], images: UInt8[Array, 'B H W 3']
  ) -> Float[Array, 'B C']:
    """Computes the classes' probabilities for raw uint8 images."""
    with sharding.mesh_context(self._mesh):
      return self._probabilities(variables, images)

  def evaluate(
    self, variables: dict[str, Any], split: splits.Split
  ) -> scores.Predictions:
    """Computes loss and scores over every image of a split, once."""
    kept = []
    for batch in self.batches(split):
      with sharding.mesh_context(self._mesh):
        found = jax.device_get(self._step(variables, batch))
      mask = found.pop('mask') > 0
      kept.append({name: array[mask] for name, array in found.items()})
    whole = {k: np.concatenate([part[k] for part in kept]) for k in kept[0]}
    indices = whole.pop('indices')
    values = metrics.scores(**whole)
    return scores.Predictions(
      values, whole['probabilities'], whole['labels'], indices
    )

  def validate(self, variables: dict[str, Any]) -> dict[str, float]:
    """Returns the `values` of the validation part but for two of them."""
    found = self.evaluate(variables, self.data.val).values
    aside = ('num_examples', 'average_precision')
    return {k: v for k, v in found.items() if k not in aside}

  def test(
    self, variables: dict[str, Any], run: workdir_lib.Workdir
  ) -> dict[str, Any]:
    """Evaluates the `last_part`; writes predictions.npz and attention.npz.

    Returns:
      `split` and the `values` of `scores.Predictions`.
    """
    split = getattr(self.data, self.last_part)
    found = self.evaluate(variables, split)
    run.write_bytes(workdir_lib.PREDICTIONS, self._archive(split, found))
    looked = self._look(variables, split, found)
    run.write_bytes(workdir_lib.ATTENTION, looked)
    return {'split': self.last_part, **found.values}

  def _archive(self, split: splits.Split, found: scores.Predictions) -> bytes:
    """Makes predictions.npz, as vit22b_jax/README.md describes it.

    Where images may be of several classes, it has `targets` uint8 [N, C] in
    place of `labels` and `confusion` (true class by predicted class).
    """
    if found.multi_label:
      true = {'targets': found.labels.astype(np.uint8)}
    else:
      confusion = np.zeros((len(self._names),) * 2, np.int64)
      np.add.at(confusion, (found.labels, found.probabilities.argmax(1)), 1)
      true = {'labels': found.labels, 'confusion': confusion}
    first = split[int(found.indices[0])]['image']
    rows = _pictured(found, _PICTURE_BYTES // first.nbytes)
    places = found.indices[rows].tolist()
    return _npz(
      images=np.stack([split[place]['image'] for place in places]),
      image_rows=rows,
      **true,
      probabilities=found.probabilities,
      indices=found.indices,
      class_names=np.array(self._names),
    )

  def _look(
    self,
    variables: dict[str, Any],
    split: splits.Split,
    found: scores.Predictions,
  ) -> bytes:
    """Makes attention.npz, as vit22b_jax/README.md describes it."""
    order = found.worst_first()
    rows = list(dict.fromkeys([*order[:_LOOKED], *order[-_LOOKED:]]))
    images = [split[int(place)]['image'] for place in found.indices[rows]]
    # One at a time: attention of a batch may not fit into memory.
    ways = sharding.batch_ways(self._mesh)
    seen = []
    for image in images:
      self.poll()
      with sharding.mesh_context(self._mesh):
        copies = np.repeat(image[None], ways, axis=0)
        seen.append(jax.device_get(self._maps(variables, copies)))
    return _npz(
      images=np.stack(images),
      indices=found.indices[rows],
      **found.names(rows, self._names),
      **{key: np.stack([one[key][0] for one in seen]) for key in seen[0]},
    )

  @staticmethod
  def summary(result: dict[str, Any]) -> str:
    """Returns the content of eval.json in words."""
    which = ', averaged' if result['weights'] == 'ema' else ''
    shown = {'top1': 'top-1', 'top5': 'top-5', 'auroc': 'AUROC', 'map': 'mAP'}
    shown['loss'] = 'loss'
    values = (f'{v} {result[k]:.4f}' for k, v in shown.items() if k in result)
    return (
      f'Result on the {result["split"]} part ({result["num_examples"]} images; '
      f'weights of step {result["step"]}{which}):\n  {", ".join(values)}'
    )


def _pictured(found: scores.Predictions, most: int) -> Int[np.ndarray, 'M']:
  """Returns rows of a random sample and of the `most` confident errors."""
  count, wrong = len(found.right), (~found.right).sum()
  sample = np.random.default_rng(0).permutation(count)[:_SAMPLES]
  return np.union1d(sample, found.worst_first()[: min(most, wrong)])


def _npz(**arrays: np.ndarray) -> bytes:
  out = io.BytesIO()
  np.savez_compressed(out, **arrays)
  return out.getvalue()
