"""Reference weights under their PyTorch names -> our parameter trees.

Every map but the sum of `parallel_block`'s two output biases is a permutation
of entries, so that it converts gradients as well as weights.
"""

import functools
import json
import pathlib

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vit22b_jax.models import vit

# Files of the released classifiers -> our blocks.
RELEASED = {'released_vit': 'released_vit', 'released_vit22b': 'released'}
GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
Tree = dict[str, dict | np.ndarray]


@functools.cache
def load(name: str) -> tuple[dict[str, np.ndarray], dict]:
  """Arrays and config of a golden file."""
  with np.load(GOLDEN / f'{name}.npz') as file:
    arrays = {key: file[key] for key in file.files}
  return arrays, json.loads(str(arrays.pop('config')))


def section(arrays: dict[str, np.ndarray], prefix: str) -> dict:
  """Entries under `prefix/`, without it."""
  start = f'{prefix}/'
  return {k[len(start) :]: a for k, a in arrays.items() if k.startswith(start)}


def images(arrays: dict[str, np.ndarray]) -> np.ndarray:
  """NCHW -> NHWC."""
  return arrays['image'].transpose(0, 2, 3, 1)


def _in(rows: Array, parts: int, heads: int) -> Array:
  """Linear weight [parts * N * K, D] -> [D, N, parts * K]."""
  d = rows.shape[1]
  grouped = rows.reshape(parts, heads, -1, d).transpose(3, 1, 0, 2)
  return grouped.reshape(d, heads, -1)


def _out(p: dict, name: str, heads: int) -> Tree:
  """Linear weight [D, N * K] -> [N, K, D], and its bias."""
  columns = p[f'{name}.weight']
  kernel = columns.T.reshape(heads, -1, columns.shape[0])
  return {'kernel': kernel, 'bias': p[f'{name}.bias']}


def _norm(p: dict, name: str) -> Tree:
  return {'scale': p[f'{name}.weight'], 'bias': p[f'{name}.bias']}


def linear(p: dict, name: str) -> Tree:
  """Linear weight [O, I] -> [I, O], and its bias."""
  return {'kernel': p[f'{name}.weight'].T, 'bias': p[f'{name}.bias']}


def vit_block(p: dict, name: str, heads: int) -> Tree:
  """A block of the paper authors' ViT."""
  attn, mlp = f'{name}.0.fn', f'{name}.1.fn'
  return {
    'attn_in_norm': _norm(p, f'{attn}.norm'),
    'qkv': {'kernel': _in(p[f'{attn}.fn.to_qkv.weight'], 3, heads)},
    'attn_out': _out(p, f'{attn}.fn.to_out', heads),
    'mlp_in_norm': _norm(p, f'{mlp}.norm'),
    'mlp_in': linear(p, f'{mlp}.fn.net.0'),
    'mlp_out': linear(p, f'{mlp}.fn.net.2'),
  }


def vit22b_block(p: dict, name: str, heads: int) -> Tree:
  """A block of the paper authors' ViT-22B."""
  fn = f'{name}.fn'
  qkv = _in(p[f'{fn}.to_qkv.weight'], 3, heads)
  mlp = _in(p[f'{fn}.parallel.0.weight'], 1, heads)
  return {
    'in_proj': {
      'kernel': jnp.concatenate([qkv, mlp], axis=2),
      'bias': p[f'{fn}.parallel.0.bias'].reshape(heads, -1),
    },
    'attn_out': _out(p, f'{fn}.to_out', heads),
    'mlp_out': _out(p, f'{fn}.parallel.2', heads),
  }


def _released(p: dict, config: dict) -> Tree:
  """The paper authors' ViT or ViT-22B."""
  tree = {
    'patch_embedding': linear(p, 'patch_to_embedding'),
    'positions': {'pos_embedding': p['pos_embedding'][0]},
    'cls': p['cls_token'][0, 0],
    'head': {'hidden': linear(p, 'mlp_head.0')},
  }
  if 'mlp_head.1.weight' in p:
    block, blocks, logits = vit22b_block, 'transformer22B', 'mlp_head.3'
    tree['head']['batch_norm'] = _norm(p, 'mlp_head.1')
  else:
    block, blocks, logits = vit_block, 'transformer', 'mlp_head.2'
  tree['head']['logits'] = linear(p, logits)
  for i in range(config['depth']):
    name = f'{blocks}.layers.{i}'
    tree[f'block_{i:02d}'] = block(p, name, config['heads'])
  return tree


def _released_stats(p: dict) -> Tree:
  """Running statistics of the released ViT-22B's head, if it has them."""
  if 'mlp_head.1.running_mean' not in p:
    return {}
  mean, var = (p[f'mlp_head.1.running_{name}'] for name in ('mean', 'var'))
  return {'head': {'batch_norm': {'mean': mean, 'var': var}}}


def released_model(name: str, **fields) -> vit.ViT:
  """Our model of a released classifier's size."""
  _, config = load(name)
  return vit.build(
    RELEASED[name],
    'Ti',
    num_classes=config['num_classes'],
    **sizes(config),
    **fields,
  )


def sizes(config: dict) -> dict[str, int]:
  """Returns the sizes of a released model, by the names of our fields."""
  names = {'width': 'dim', 'num_heads': 'heads'}
  fields = ('patch_size', 'width', 'depth', 'num_heads', 'mlp_dim')
  return {field: config[names.get(field, field)] for field in fields}


def released_variables(name: str, prefix: str) -> Tree:
  """Reference arrays under `prefix/` as variables of our model."""
  arrays, config = load(name)
  arrays = section(arrays, prefix)
  return {
    'params': _released(arrays, config),
    'batch_stats': _released_stats(arrays),
  }


def parallel_block(p: dict, config: dict, norm_bias: bool) -> Tree:
  """A ViT-22B block; its `in_proj` rows are [mlp, q, k, v]."""
  heads, units = config['num_heads'], config['mlp_dim']
  rows = p['in_proj.weight']
  mlp, qkv = _in(rows[:units], 1, heads), _in(rows[units:], 3, heads)
  tree = {
    'in_proj': {
      'kernel': np.concatenate([qkv, mlp], axis=2),
      'bias': p['mlp_bias'].reshape(heads, -1),
    }
  }
  for name in ('in_norm', 'q_norm', 'k_norm'):
    tree[name] = _norm(p, name)
    if not norm_bias:
      assert not tree[name].pop('bias').any()
  attn, mlp = (_out(p, f'{name}_out_proj', heads) for name in ('attn', 'mlp'))
  if 'mlp_norm.weight' in p:
    tree['mlp_norm'] = _norm(p, 'mlp_norm')
    return tree | {'attn_out': attn, 'mlp_out': mlp}
  kernel = np.concatenate([attn['kernel'], mlp['kernel']], axis=1)
  bias = attn['bias'] + mlp['bias']
  return tree | {'out_proj': {'kernel': kernel, 'bias': bias}}
