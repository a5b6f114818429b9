"""Gets FID-Inception's weights: fetched and verified, from a file, or drawn.

    params, digest = inception_weights.load('')    # the public release
    params, digest = inception_weights.load('PATH.pth', ('64', '2048'))
    params, digest = inception_weights.load('random:0', ('64',))

FIDs are comparable for the public weights alone, those of SHA256; whoever
prints a distance by any others says so.

    >>> load('random:0', ('64',))[1] == SHA256
    False
"""

import hashlib
import http.client
import re
import urllib.request
import uuid
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from flax import traverse_util

from vit22b_jax import errors
from vit22b_jax.data import cache, files
from vit22b_jax.fid import torch_file
from vit22b_jax.models import inception

URL = (
  'https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/'
  'pt_inception-2015-12-05-6726825d.pth'
)
NUM_BYTES = 95_628_359
SHA256 = '6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2'

_EPS = 1e-3  # of every batch norm
_BATCH_NORM = ('weight', 'bias', 'running_mean', 'running_var')
_TIMEOUT = 60  # seconds without a byte

Arrays = dict[str, np.ndarray]


def load(spec: str, taps: tuple[str, ...] = ('2048',)) -> tuple[Any, str]:
  """Loads the weights that some taps need.

  Args:
    spec: '' for the public release (fetched on first use, then cached), a
      PyTorch file with its names, or 'random:SEED'.
    taps: names in inception.TAPS.

  Returns:
    Parameters of `inception.Inception`, as far as the taps need them; and the
    SHA-256 of the file, or of the text 'random:SEED'.

  Raises:
    UserError: they can't be had, or aren't Inception's; the message says what
      to do.
  """
  if spec.startswith('random:'):
    seed = spec.removeprefix('random:')
    if not re.fullmatch('[0-9]+', seed):
      raise errors.UserError(
        f"fid.weights={spec!r}: expected 'random:SEED' with a whole number."
      )
    digest = hashlib.sha256(spec.encode()).hexdigest()
    drawn = {name: draw(seed, name, s) for name, s in shapes(taps).items()}
    return convert(drawn, taps, spec), digest
  path = epath.Path(spec).expanduser() if spec else fetch()
  if not files.is_file(path):
    raise errors.UserError(
      f'fid.weights={spec!r}: no such file; expected a PyTorch file of '
      f"FID-Inception's weights, 'random:SEED', or '' for {URL}"
    )
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  # https://pytorch.org/docs/stable/hub.html#torch.hub.load_state_dict_from_url
  # Digits alone, as in inception-20151205.pth, are a date.
  promised = re.search(r'-(?=\d*[a-f])([0-9a-f]{8,64})\.\w+$', path.name)
  if promised and not digest.startswith(promised[1]):
    raise errors.UserError(
      f'{path} is damaged: its SHA-256 is {digest}, and its name promises '
      f'{promised[1]}... Delete it.\n{how_to_fetch()}'
    )
  return convert(torch_file.read(path), taps, str(path)), digest


def shapes(taps: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of PyTorch's tensors that these taps need, by name."""
  found = {}
  for path, (*size, inputs, features) in _kernels(taps).items():
    if path == 'fc':
      found |= {'fc.weight': (features, inputs), 'fc.bias': (features,)}
      continue
    found[f'{path}.conv.weight'] = (features, inputs, *size)
    found |= {f'{path}.bn.{name}': (features,) for name in _BATCH_NORM}
  return found


def convert(arrays: Arrays, taps: tuple[str, ...], source: str) -> Any:
  """Converts PyTorch's tensors to our parameters, with batch norms folded.

  relu((w * x - mean) s + b), s = scale / sqrt(var + eps), is
  relu((w s) * x + (b - mean s)); computed in float64.

  Arrays that the taps don't need are left aside; messages name the `source`.

  Raises:
    UserError: a tensor is missing or has another shape.
  """
  for name, shape in shapes(taps).items():
    got = arrays[name].shape if name in arrays else 'nothing'
    if got != shape:
      raise errors.UserError(
        f'{source} are not the weights of FID-Inception: expected {name} '
        f'with shape {list(shape)}, found {got}. They are at {URL}'
      )
  layers = {path: _fold(arrays, path) for path in _kernels(taps)}
  return traverse_util.unflatten_dict(layers, sep='.')


def _fold(arrays: Mapping[str, np.ndarray], path: str) -> Arrays:
  """Returns kernel and bias of a layer, float32."""
  if path == 'fc':
    kernel, bias = arrays['fc.weight'].T, arrays['fc.bias']
  else:
    scale, shift, mean, var = (
      arrays[f'{path}.bn.{name}'].astype(np.float64) for name in _BATCH_NORM
    )
    scale /= np.sqrt(var + _EPS)
    kernel = arrays[f'{path}.conv.weight'].transpose(2, 3, 1, 0) * scale
    bias = shift - mean * scale
  return {
    'kernel': np.ascontiguousarray(kernel, np.float32),
    'bias': bias.astype(np.float32),
  }


def _kernels(taps: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
  """Returns each kernel's shape, [h, w, C, F] or [C, F], by dotted path."""
  size = inception.SIZE
  images = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
  model = inception.Inception(taps)
  tree = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  leaves = traverse_util.flatten_dict(tree, sep='.')
  return {
    path.removesuffix('.kernel'): leaf.shape
    for path, leaf in leaves.items()
    if path.endswith('.kernel')
  }


def draw(seed: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Draws a tensor that anyone can draw again from numpy alone.

  Normal numbers of the generator PCG64 seeded with the first 8 bytes (little
  endian) of SHA-256('SEED/NAME'), scaled by sqrt(2 / fan_in) for kernels,
  1 + tanh / 4 for variances and batch-norm scales, a tenth for the rest.
  """
  digest = hashlib.sha256(f'{seed}/{name}'.encode()).digest()
  bits = np.random.PCG64(int.from_bytes(digest[:8], 'little'))
  a = np.random.Generator(bits).standard_normal(shape).astype(np.float32)
  if len(shape) >= 2:
    return a * np.float32(np.sqrt(2 / np.prod(shape[1:])))
  if name.endswith(('running_var', 'bn.weight')):
    return 1 + np.float32(0.25) * np.tanh(a)
  return np.float32(0.1) * a


def cached_path() -> epath.Path:
  """Returns where the public weights belong."""
  return epath.Path(cache.root()) / URL.rpartition('/')[2]


def fetch() -> epath.Path:
  """Returns the public weights in the cache, fetched if they aren't there."""
  path = cached_path()
  if path.is_file() and path.stat().length == NUM_BYTES:
    return path  # `load` looks at the hash
  logging.warning('fetching %s (%.0f MB) to %s', URL, NUM_BYTES / 1e6, path)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with urllib.request.urlopen(URL, timeout=_TIMEOUT) as response:
      data = response.read()
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256:
      raise errors.UserError(
        f'what came from {URL} is not the release: {len(data):,} bytes with '
        f'SHA-256 {digest}.\n{how_to_fetch()}'
      )
    temporary = path.with_name(f'{path.name}.{uuid.uuid4().hex}.part')
    try:
      temporary.write_bytes(data)
      temporary.replace(path)  # whole or not at all
    finally:
      temporary.unlink(missing_ok=True)
    return path
  except (OSError, http.client.HTTPException) as error:  # No network, disk full
    raise errors.UserError(
      "FID needs Inception's weights, which could not be fetched "
      f'({error}).\n{how_to_fetch()}'
    ) from error


def how_to_fetch() -> str:
  """Says what to get by hand, and where to put it."""
  return (
    f'Fetch on a machine with a network:\n  {URL}\n'
    f'  {NUM_BYTES:,} bytes, SHA-256 {SHA256}\n'
    f'and put it at\n  {cached_path()}\n'
    "or give its path as fid.weights. (fid.weights='random:0' draws weights: "
    'the distances then are uncalibrated, for comparing runs alone.)'
  )
