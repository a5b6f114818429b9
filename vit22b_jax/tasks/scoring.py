"""How well a classifier does on a split: every image counts once.

scorer = Scorer(logits_fn, 'softmax', mesh, batch_size=128)
result = scorer.evaluate(variables, data.val)
result.values  # num_examples loss top1 top5 auroc
"""

import dataclasses
import functools
import io
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from vit22b_jax.data import devices, pipeline, splits
from vit22b_jax.runtime import sharding
from vit22b_jax.training import losses, metrics

_SAMPLES = 48  # images kept with their predictions, for the report


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What a model does on a split.

  Attributes:
    values: `num_examples loss top1 top5 auroc`; accuracies in [0, 1].
    probabilities: softmax outputs, float32.
    labels: the true classes, in the same order.
    indices: the images' places in the split; those that can't be read are
      missing.
  """

  values: dict[str, float]
  probabilities: Float[np.ndarray, 'n C']
  labels: Int[np.ndarray, ' n']
  indices: Int[np.ndarray, ' n']


class Scorer:
  """Evaluates one model.

  Args:
    logits: (variables, images uint8 [B, H, W, 3]) -> float32 [B, C].
    kind: of the loss, see `losses.cross_entropy`.
    mesh: over which batches are split.
    batch_size: images of a batch, over all processes.
    workers: processes that decode.
  """

  def __init__(
    self,
    logits: Callable[[Any, Array], Float[Array, 'B C']],
    kind: str,
    mesh: jax.sharding.Mesh,
    *,
    batch_size: int,
    workers: int,
  ):
    self._logits = logits
    self._kind = kind
    self._mesh = mesh
    self._batch_size = batch_size
    self._workers = workers

  @functools.cached_property
  def _step(self):
    """Jitted (variables, batch) -> metric sums, and what the rest is made of.

    The rest: probabilities, labels, indices, mask.
    """

    def apply(variables, batch):
      logits = self._logits(variables, batch['image'])
      values = losses.cross_entropy(logits, batch['label'], kind=self._kind)
      sums = metrics.batch_sums(logits, batch['label'], values, batch['mask'])
      rest = (batch[name] for name in ('label', 'index', 'mask'))
      return sums, jax.nn.softmax(logits), *rest

    return jax.jit(apply, out_shardings=sharding.replicated(self._mesh))

  def evaluate(
    self,
    variables: dict[str, Any],
    split: splits.Split,
    check: Callable[[], None],
  ) -> Evaluation:
    """Loss, top-1, top-5 and AUROC over every image of a split, once.

    Args:
      variables: the model's.
      split: the images.
      check: called between batches; may raise to leave the evaluation.
    """
    placement = sharding.batch_sharding(self._mesh)
    batches = pipeline.eval_batches(
      split,
      batch_size=self._batch_size,
      workers=self._workers,
      rows=devices.local_rows(placement, self._batch_size),
    )
    total, kept = None, []
    for batch in batches:
      check()
      placed = devices.place(batch, placement)
      with sharding.mesh_context(self._mesh):
        sums, *rest = jax.device_get(self._step(variables, placed))
      total = sums if total is None else metrics.merge(total, sums)
      *rest, mask = rest
      kept.append([array[mask > 0] for array in rest])
    probabilities, labels, indices = map(
      np.concatenate, zip(*kept, strict=True)
    )
    values = metrics.means(total)
    values['auroc'] = metrics.auroc(probabilities, labels)
    return Evaluation(values, probabilities, labels, indices)


def predictions(
  split: splits.Split, result: Evaluation, names: list[str]
) -> bytes:
  """predictions.npz: some images with what was predicted, all in a matrix.

  Args:
    split: what was evaluated.
    result: how.
    names: of the classes.

  Returns:
    An npz file of `images` uint8 [M, H, W, 3], their `labels` [M] and
    `probabilities` [M, C]; `confusion` int64 [C, C], true class by predicted
    class, of every image; and `class_names` [C].
  """
  confusion = np.zeros((len(names), len(names)), np.int64)
  np.add.at(confusion, (result.labels, result.probabilities.argmax(axis=1)), 1)
  chosen = np.random.default_rng(0).permutation(len(result.labels))[:_SAMPLES]
  chosen.sort()
  out = io.BytesIO()
  np.savez_compressed(
    out,
    images=np.stack([split[int(result.indices[i])]['image'] for i in chosen]),
    labels=result.labels[chosen],
    probabilities=result.probabilities[chosen],
    confusion=confusion,
    class_names=np.array(names),
  )
  return out.getvalue()
