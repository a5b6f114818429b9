"""Public weights of timm, Hugging Face and Google, read into a model.

    params = pretrained.load_pretrained('vit_s16.npz', model, params, 224)

Every file is turned into arrays under timm's names first. Only safetensors and
`.npz` without pickled objects are read: neither can run code.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from absl import logging
from etils import epath
from flax import traverse_util

from vit22b_jax import errors
from vit22b_jax.data import files
from vit22b_jax.models import embeddings, stacking, vit
from vit22b_jax.runtime import formats
from vit22b_jax.weights import timm

Arrays = dict[str, np.ndarray]
_DTYPES = {  # of weights; other tensors are counters and the like
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'BF16': jnp.bfloat16,
}
_ZERO = 1e-6  # largest entry of a tensor that counts as zero
_HALF = 0.01  # a sine in half precision is closer than this
# Others' names -> timm's, one replacement after the other.
_HUGGING_FACE = (
  (r'^vit\.', ''),
  (r'^embeddings\.cls_token', 'cls_token'),
  (r'^embeddings\.position_embeddings', 'pos_embed'),
  (r'^embeddings\.patch_embeddings\.projection', 'patch_embed.proj'),
  (r'^encoder\.layer\.', 'blocks.'),
  (r'\.layernorm_before\.', '.norm1.'),
  (r'\.layernorm_after\.', '.norm2.'),
  (r'\.attention\.attention\.query\.', '.attn.qkv.'),
  (r'\.attention\.output\.dense\.', '.attn.proj.'),
  (r'\.intermediate\.dense\.', '.mlp.fc1.'),
  (r'\.output\.dense\.', '.mlp.fc2.'),
  (r'^layernorm\.', 'norm.'),
  (r'^classifier\.', 'head.'),
)
_GOOGLE = (
  (r'^cls$', 'cls_token'),
  (r'^Transformer/posembed_input/pos_embedding$', 'pos_embed'),
  (r'^embedding/', 'patch_embed.proj/'),
  (r'^Transformer/encoderblock_', 'blocks/'),
  (r'/LayerNorm_0/', '/norm1/'),
  (r'/LayerNorm_2/', '/norm2/'),
  (r'/MultiHeadDotProductAttention_1/query/', '/attn.qkv/'),
  (r'/MultiHeadDotProductAttention_1/out/', '/attn.proj/'),
  (r'/MlpBlock_3/Dense_0/', '/mlp.fc1/'),
  (r'/MlpBlock_3/Dense_1/', '/mlp.fc2/'),
  (r'^Transformer/encoder_norm/', 'norm/'),
  (r'/(kernel|scale)$', '/weight'),
  (r'/', '.'),
)


def read(path: epath.PathLike) -> Arrays:
  """Reads a file of weights as arrays under timm's names.

  Args:
    path: `.safetensors` (timm's or Hugging Face's names) or `.npz` (Google's
      ViT and AugReg checkpoints); `gs://` works.

  Raises:
    UserError: when there is no such file, or none that can be read safely.
  """
  path = epath.Path(path)
  if not files.is_file(path):
    raise errors.UserError(f'No file of weights at {path}.')
  if path.suffix not in ('.safetensors', '.npz'):
    raise errors.UserError(
      f'{path} is not a .safetensors or .npz file, and other formats may run '
      'code when they are opened: convert it, or download its safetensors.'
    )
  npz = path.suffix == '.npz'
  arrays = formats.read_npz(path) if npz else _read_safetensors(path)
  try:
    if npz:
      arrays = dict(_from_google(arrays))
    elif any('attention.attention.query' in name for name in arrays):
      arrays = dict(_from_hugging_face(arrays))
  except errors.UserError:
    raise
  except (ValueError, IndexError) as error:
    raise errors.UserError(
      f'{path} has arrays of other shapes than a ViT: {error}'
    ) from error
  for name, array in arrays.items():
    if array.dtype.kind not in 'fViu':  # V: bfloat16
      raise errors.UserError(
        f'{path}: {name} holds {array.dtype}, not numbers of weights.'
      )
  return arrays


def _read_safetensors(path: epath.Path) -> Arrays:
  try:
    tensors = safetensors.deserialize(path.read_bytes())
  except safetensors.SafetensorError as error:
    raise errors.UserError(
      f'{path} is damaged or no safetensors file: {error}'
    ) from error
  # safetensors.numpy.load has no bfloat16.
  return {
    name: np.frombuffer(tensor['data'], _DTYPES[tensor['dtype']]).reshape(
      tensor['shape']
    )
    for name, tensor in tensors
    if tensor['dtype'] in _DTYPES
  }


def _from_hugging_face(arrays: Arrays) -> Iterator[tuple[str, np.ndarray]]:
  """Renames those of transformers' `ViTForImageClassification`, `ViTModel`."""
  for name, array in arrays.items():
    # A pooler is not on the way to a classifier's logits.
    if re.search(r'(^|\.)pooler\.|\.attention\.attention\.(key|value)\.', name):
      continue
    if '.attention.attention.query.' in name:
      array = np.concatenate(_with_keys_and_values(arrays, name))
    yield _rename(name, _HUGGING_FACE), array


def _from_google(arrays: Arrays) -> Iterator[tuple[str, np.ndarray]]:
  """github.com/google-research/vision_transformer: kernels are [in, out]."""
  for name, array in arrays.items():
    if re.search('Attention_1/(key|value)/', name):
      continue
    if '/query/' in name:
      array = np.stack(_with_keys_and_values(arrays, name))  # [3, (D,) N, K]
      if name.endswith('kernel'):
        array = np.moveaxis(array, 1, -1).reshape(-1, array.shape[1])
      else:
        array = array.ravel()
    elif name == 'embedding/kernel':
      array = array.transpose(3, 2, 0, 1)
    elif name.endswith('kernel'):
      array = array.reshape(-1, array.shape[-1]).T
    yield _rename(name, _GOOGLE), array


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
  for pattern, replacement in rules:
    name = re.sub(pattern, replacement, name)
  return name


def _with_keys_and_values(arrays: Arrays, query: str) -> list[np.ndarray]:
  names = [query.replace('query', part) for part in ('query', 'key', 'value')]
  missing = [name for name in names if name not in arrays]
  if missing:
    raise errors.UserError(f'The file of weights lacks {", ".join(missing)}.')
  return [arrays[name] for name in names]


def load_pretrained(
  path: epath.PathLike,
  model: vit.ViT,
  params: Mapping[str, Any],
  image_size: int,
) -> dict[str, Any]:
  """Reads a model's parameters from a file of public weights.

  What the file has no use for stays as it is in `params`: the head, when the
  number of classes differs, the head is an MLP or the pool is 'map' (then the
  pool too). Learned positions are resampled to `image_size`; those of a class
  token are dropped when the model has none. Where the model's positions are
  fixed, the file's must be the same function of theirs.

  Args:
    path: see `read`.
    model: of the block `vit` or `vit22b`.
    params: its unboxed, new parameters.
    image_size: side of its images in pixels.

  Returns:
    A new tree like `params`; what was loaded is float32 numpy arrays.

  Raises:
    UserError: when the file lacks a parameter, has one that the model lacks, or
      one of another shape.
  """
  timm.validate(model)
  flat = traverse_util.flatten_dict(stacking.unstack(params), sep='/')
  arrays = {k: np.asarray(a, np.float32) for k, a in read(path).items()}
  fresh_head = _fit(arrays, model, flat, image_size, path)
  for entry in timm.entries(model):
    missing = [name for name in entry.names if name not in arrays]
    is_head = (entry.path or '').startswith(timm.HEAD)
    if missing and (entry.path is None or (is_head and fresh_head)):
      continue
    if missing:
      raise errors.UserError(
        f'{path} lacks {missing[0]}, which the model needs: is model.block, '
        'model.variant or model.pool another than the file was made with?'
      )
    _set(flat, entry, [arrays.pop(name) for name in entry.names], path)
  if arrays:
    raise errors.UserError(
      f'{path} has {len(arrays)} tensors that the model has no use for, such '
      f'as {min(arrays)}: is model.block or model.variant another than the '
      'file was made with?'
    )
  tree = traverse_util.unflatten_dict(flat, sep='/')
  return stacking.stack(tree, model.depth) if model.scan_layers else tree


_OTHERS = {
  'reg_token': 'register tokens, which no model here has',
  'fc_norm.weight': 'a norm behind the pool (fc_norm), where the models here '
  'have theirs before it',
  'norm_pre.weight': 'a norm before the first block (norm_pre), which no model '
  'here has',
  'attn_pool.latent': "timm's attention pool, which differs from model.pool="
  "'map'",
  'head_dist.weight': 'a distillation token, which no model here has',
  'blocks.0.ls1.gamma': 'layer scale (ls1.gamma), which no block here has',
  'blocks.0.mlp.fc1_g.weight': 'gated MLPs (SwiGLU), which no block here has',
}


def _fit(
  arrays: Arrays,
  model: vit.ViT,
  flat: Mapping[str, Any],
  image_size: int,
  path: epath.PathLike,
) -> bool:
  """Leaves in `arrays` what the model has; tells whether its head stays new."""
  for name, reason in _OTHERS.items():
    if name in arrays:
      raise errors.UserError(
        f'{path} can not be used: its model has {reason}. Choose a plain ViT, '
        'such as vit_small_patch16_224 of timm or google/vit-base-patch16-224.'
      )
  if 'pos_embed' in arrays:
    _fit_positions(arrays, model, image_size, path)
  if model.pool != 'cls' and arrays.pop('cls_token', None) is not None:
    logging.warning(
      '%s has a class token, which model.pool=%r leaves out: outputs are other '
      "than those of the file's own model. model.pool='cls' keeps them.",
      path,
      model.pool,
    )
  bias = arrays.get('head.bias')
  has_head = model.head == 'linear' and model.pool != 'map'
  ours = flat[f'{timm.HEAD}/bias'].shape if has_head else None
  fresh_head = bias is None or bias.shape != ours
  for name in list(arrays) if fresh_head else ():
    if name.startswith(('head.', 'pre_logits.')):
      del arrays[name]
  return fresh_head


def _set(
  flat: dict[str, Any],
  entry: timm.Entry,
  arrays: list[np.ndarray],
  path: epath.PathLike,
) -> None:
  """Puts one parameter into a flat tree, or checks that it is zero."""
  names = ' and '.join(entry.names)
  if entry.path is None:
    if np.abs(arrays[0]).max() > _ZERO:
      raise errors.UserError(
        f'{names} in {path} is not zero, and the model has no such bias: set '
        'model.norm_bias=True.'
      )
    return
  expected = flat[entry.path].shape
  try:
    array = entry.load(*arrays)
  except (ValueError, IndexError):
    array = None
  if array is None or array.shape != expected:
    shapes = ' and '.join(str(list(a.shape)) for a in arrays)
    raise errors.UserError(
      f'{names} in {path} has the shape {shapes}, which does not fit '
      f'{entry.path} {list(expected)}: check model.variant and '
      'model.patch_size.'
    )
  flat[entry.path] = np.ascontiguousarray(array)


def _fit_positions(
  arrays: Arrays, model: vit.ViT, image_size: int, path: epath.PathLike
) -> None:
  """Makes `pos_embed` what the model has, in place."""
  positions = arrays.pop('pos_embed')
  if not positions.ndim or not positions.size:
    raise errors.UserError(
      f'{path}: pos_embed has the shape {list(positions.shape)}.'
    )
  positions = positions.reshape(-1, positions.shape[-1])
  has_token = 'cls_token' in arrays
  extra = int(has_token)
  old = math.isqrt(max(0, len(positions) - extra))
  if old**2 + extra != len(positions):
    extra, old = 0, math.isqrt(len(positions))
  if not old or old**2 + extra != len(positions):
    beside = ' and at most one of a class token' if has_token else ''
    raise errors.UserError(
      f'{path} has {len(positions)} positions (pos_embed), which are none of a '
      f'square grid{beside}: it is of a model of rectangular images, or has '
      'tokens that no model here has.'
    )
  if has_token and not extra:  # timm's no_embed_class: the token has none
    positions = np.concatenate([np.zeros_like(positions[:1]), positions])
    extra = 1
  if model.pos_embedding == 'sincos':
    fixed = embeddings.fixed_positions(old, old, model.width, extra)
    same = positions.shape == fixed.shape  # else other tensors say so
    if same and not np.allclose(positions, fixed, atol=_HALF):
      raise errors.UserError(
        f'pos_embed in {path} is not the table of sines and cosines that the '
        "model adds: set model.pos_embedding='learned'."
      )
    return
  new = image_size // model.patch_size
  positions = embeddings.resample_positions(positions, (old, old), (new, new))
  arrays['pos_embed'] = np.asarray(
    positions if model.pool == 'cls' else positions[extra:]
  )
