"""Our parameters and timm's names for them, in both directions; export.

    timm.write('out.safetensors', model, params, {'classes': 'a,b'}, 224)

timm's `VisionTransformer` with its `Block` is our `vit`; with its
`ParallelScalingBlock` our `vit22b`. Linear weights are [out, in] there, with
heads inside `out`; ours are grouped by head (see `blocks`). Two things have no
counterpart: norms there have a bias (zero here), and the parallel block's
output has two biases (here their sum). The names are those of timm 1.0,
https://github.com/huggingface/pytorch-image-models.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from etils import epath
from flax import traverse_util

from vit22b_jax import errors
from vit22b_jax.data import files
from vit22b_jax.models import embeddings, stacking, vit

VERSION = '1.0.31'  # the oldest whose ParallelScalingBlock agrees
HEAD = 'head/logits'


class Entry(NamedTuple):
  """One parameter of ours and the tensors that hold it under timm's names."""

  path: str | None  # with slashes; None for a tensor that must be zero
  names: tuple[str, ...]  # timm's
  load: Callable[..., np.ndarray]  # tensors, in that order -> our array
  save: Callable[[np.ndarray], tuple[np.ndarray, ...]]  # and back


def _entry(path, name, load, save) -> Entry:
  return Entry(path, (name,), load, lambda array: (save(array),))


def _same(path: str, name: str) -> Entry:
  return _entry(path, name, np.asarray, np.asarray)


def _linear(path: str, name: str) -> Iterator[Entry]:
  yield _entry(f'{path}/kernel', f'{name}.weight', np.transpose, np.transpose)
  yield _same(f'{path}/bias', f'{name}.bias')


def _norm(path: str, name: str, model: vit.ViT, size: int) -> Iterator[Entry]:
  yield _same(f'{path}/scale', f'{name}.weight')
  if model.norm_bias:
    yield _same(f'{path}/bias', f'{name}.bias')
  elif model.norm == 'layer':
    zeros = np.zeros(size, np.float32)
    yield Entry(None, (f'{name}.bias',), np.asarray, lambda _: (zeros,))


def _by_head(path: str, name: str, order: np.ndarray) -> Entry:
  """Weight [R, D] or bias [R] -> [D, N, U] or [N, U], of rows order [N, U]."""
  undo = np.argsort(order, axis=None)

  def load(rows):
    columns = rows.T
    # Other numbers of rows are a ValueError, which indexing need not notice.
    columns = columns.reshape(*columns.shape[:-1], order.size)
    return columns[..., order]

  def save(array):
    return array.reshape(*array.shape[:-2], -1)[..., undo].T

  return _entry(path, name, load, save)


def _qkv_order(model: vit.ViT) -> np.ndarray:
  """Returns which of the rows [q, k, v] belong to each head, [N, 3K]."""
  heads = model.num_heads
  rows = np.arange(3 * heads * model.head_dim).reshape(3, heads, -1)
  return rows.swapaxes(0, 1).reshape(heads, -1)


def _heads_to_rows(columns: np.ndarray, heads: int) -> np.ndarray:
  """Weight [D, N * K] -> [N, K, D]."""
  return columns.T.reshape(heads, -1, columns.shape[0])


def _rows_to_heads(kernel: np.ndarray) -> np.ndarray:
  return kernel.reshape(-1, kernel.shape[-1]).T


def _qk_norms(path: str, name: str, model: vit.ViT) -> Iterator[Entry]:
  size = model.head_dim
  for which in ('q_norm', 'k_norm') if model.qk_norm else ():
    yield from _norm(f'{path}/{which}', f'{name}.{which}', model, size)


def _sequential(path: str, name: str, model: vit.ViT) -> Iterator[Entry]:
  n, d = model.num_heads, model.width
  yield from _norm(f'{path}/attn_in_norm', f'{name}.norm1', model, d)
  order = _qkv_order(model)
  yield _by_head(f'{path}/qkv/kernel', f'{name}.attn.qkv.weight', order)
  if model.qkv_bias:
    yield _by_head(f'{path}/qkv/bias', f'{name}.attn.qkv.bias', order)
  yield from _qk_norms(path, f'{name}.attn', model)
  yield _entry(
    f'{path}/attn_out/kernel',
    f'{name}.attn.proj.weight',
    lambda columns: _heads_to_rows(columns, n),
    _rows_to_heads,
  )
  yield _same(f'{path}/attn_out/bias', f'{name}.attn.proj.bias')
  yield from _norm(f'{path}/mlp_in_norm', f'{name}.norm2', model, d)
  yield from _linear(f'{path}/mlp_in', f'{name}.mlp.fc1')
  yield from _linear(f'{path}/mlp_out', f'{name}.mlp.fc2')


def _parallel(path: str, name: str, model: vit.ViT) -> Iterator[Entry]:
  n = model.num_heads
  # timm's rows are [mlp, q, k, v], ours of each head [q, k, v, mlp].
  mlp = np.arange(model.mlp_dim).reshape(n, -1)
  order = np.concatenate([mlp.size + _qkv_order(model), mlp], axis=1)

  def split(kernel):
    """Attention's and the MLP's rows as two weights."""
    k = model.head_dim
    return _rows_to_heads(kernel[:, :k]), _rows_to_heads(kernel[:, k:])

  yield from _norm(f'{path}/in_norm', f'{name}.in_norm', model, model.width)
  yield _by_head(f'{path}/in_proj/kernel', f'{name}.in_proj.weight', order)
  if model.qkv_bias:
    yield _by_head(f'{path}/in_proj/bias', f'{name}.in_proj.bias', order)
  else:
    yield _by_head(f'{path}/in_proj/bias', f'{name}.mlp_bias', mlp)
  yield from _qk_norms(path, name, model)
  outputs = [f'{name}.{which}_out_proj' for which in ('attn', 'mlp')]
  yield Entry(
    f'{path}/out_proj/kernel',
    tuple(f'{output}.weight' for output in outputs),
    lambda *parts: np.concatenate([_heads_to_rows(p, n) for p in parts], 1),
    split,
  )
  yield Entry(
    f'{path}/out_proj/bias',
    tuple(f'{output}.bias' for output in outputs),
    lambda attn, mlp: attn + mlp,
    lambda b: (b, np.zeros_like(b)),
  )


def validate(model: vit.ViT) -> None:
  """Raises UserError naming the first field without a counterpart in timm."""
  wanted = {
    'pre_norm': True,
    'mlp_norm': False,
    'sum_norm': False,
    'norm_scale': True,
    'softmax_scale': 'head',
    'final_norm': True,
  }
  if model.form == 'parallel':
    wanted['fused_output'] = True
  for field, value in wanted.items():
    actual = getattr(model, field)
    if actual != value:
      raise errors.UserError(
        f'model.{field}={actual!r}: timm has no such block, so weights can be '
        f"neither read nor written under its names. The blocks 'vit' and "
        f"'vit22b' have {field}={value!r}."
      )


def entries(model: vit.ViT) -> Iterator[Entry]:
  """Yields the parameters that timm has a name for, in timm's order."""
  p, width = model.patch_size, model.width
  if model.pool == 'cls':
    yield _entry(
      'cls', 'cls_token', np.ravel, lambda token: token.reshape(1, 1, width)
    )
  if model.pos_embedding == 'learned':
    yield _entry(
      'positions/pos_embedding',
      'pos_embed',
      lambda x: x.reshape(-1, width),
      lambda x: x[None],
    )
  yield _entry(
    'patch_embedding/kernel',
    'patch_embed.proj.weight',
    lambda w: w.transpose(2, 3, 1, 0).reshape(-1, width),
    lambda kernel: kernel.reshape(p, p, -1, width).transpose(3, 2, 0, 1),
  )
  yield _same('patch_embedding/bias', 'patch_embed.proj.bias')
  block = _sequential if model.form == 'sequential' else _parallel
  for i in range(model.depth):
    yield from block(stacking.block_name(i, model.depth), f'blocks.{i}', model)
  yield from _norm('final_norm', 'norm', model, width)
  if model.head == 'linear' and model.pool != 'map':
    yield from _linear(HEAD, 'head')


def arguments(model: vit.ViT, image_size: int) -> dict[str, Any]:
  """Returns the arguments of timm's `VisionTransformer` but `block_fn`.

  For the `vit` or the `vit22b` block's model of square images in pixels.
  """
  return {
    'img_size': image_size,
    'patch_size': model.patch_size,
    'num_classes': model.num_classes,
    'embed_dim': model.width,
    'depth': model.depth,
    'num_heads': model.num_heads,
    'mlp_ratio': model.mlp_dim / model.width,
    'qkv_bias': model.qkv_bias,
    'qk_norm': model.qk_norm,
    'class_token': model.pool == 'cls',
    'global_pool': 'token' if model.pool == 'cls' else 'avg',
    'final_norm': True,
    'fc_norm': False,
  }


def norm_layer(model: vit.ViT) -> dict[str, Any]:
  """Returns the name in `timm.layers` of a model's norm, and its eps.

  timm's own default is a LayerNorm with an eps of 1e-6, as the presets have it.
  """
  name = {'layer': 'LayerNorm', 'rms': 'RmsNorm'}[model.norm]
  return {'norm_layer': name, 'eps': model.eps}


def write(
  path: epath.PathLike,
  model: vit.ViT,
  params: Mapping[str, Any],
  metadata: Mapping[str, str],
  image_size: int,
) -> None:
  """Writes parameters as safetensors under timm's names.

  timm's counterpart is `VisionTransformer(**arguments(model, image_size))`
  with, for `vit22b`, `block_fn=ParallelScalingBlock` of VERSION or newer
  (1.0.19 computes other logits).

  Args:
    path: file to write; `gs://` works.
    model: the `vit` or the `vit22b` block's model.
    params: its (unboxed) parameters.
    metadata: strings stored in the file's header.
    image_size: side of its images in pixels, which fixed positions follow from;
      they are written as if they had been learned.

  Raises:
    UserError: when timm has no counterpart.
  """
  validate(model)
  if model.head != 'linear' or model.pool == 'map':
    raise errors.UserError(
      f'model.head={model.head!r} with model.pool={model.pool!r}: only a '
      "linear head on the pool 'cls' or 'mean' has names in timm."
    )
  flat = traverse_util.flatten_dict(stacking.unstack(params), sep='/')
  arrays = {}
  for entry in entries(model):
    array = np.asarray(flat[entry.path]) if entry.path else np.empty(0)
    for name, tensor in zip(entry.names, entry.save(array), strict=True):
      arrays[name] = np.ascontiguousarray(tensor, np.float32)
  if model.pos_embedding == 'sincos':
    side, extra = image_size // model.patch_size, int(model.pool == 'cls')
    fixed = embeddings.fixed_positions(side, side, model.width, extra)
    arrays['pos_embed'] = fixed[None]
  header = {'format': 'pt', **metadata}
  content = safetensors.numpy.save(arrays, header)
  files.write_whole(epath.Path(path), content)
