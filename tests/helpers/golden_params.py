"""Reference weights under their PyTorch names -> our parameter trees.

Every map but the sum of `parallel_block`'s two output biases is a permutation
of entries, so that it converts gradients as well as weights.
"""

import functools
import json
import pathlib

import numpy as np

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


def _in(rows: np.ndarray, parts: int, heads: int) -> np.ndarray:
  """Linear weight [parts * N * K, D] -> [D, N, parts * K]."""
  d = rows.shape[1]
  grouped = rows.reshape(parts, heads, -1, d).transpose(3, 1, 0, 2)
  return grouped.reshape(d, heads, -1)


def _out(columns: np.ndarray, heads: int) -> np.ndarray:
  """Linear weight [D, N * K] -> [N, K, D]."""
  return columns.T.reshape(heads, -1, columns.shape[0])


def _linear(p: dict, name: str) -> Tree:
  return {'kernel': p[f'{name}.weight'].T, 'bias': p[f'{name}.bias']}


def _norm(p: dict, name: str) -> Tree:
  return {'scale': p[f'{name}.weight'], 'bias': p[f'{name}.bias']}


def _released_embeddings(p: dict) -> Tree:
  return {
    'patch_embedding': _linear(p, 'patch_to_embedding'),
    'positions': {'pos_embedding': p['pos_embedding'][0]},
    'cls': p['cls_token'][0, 0],
  }


def released_vit(p: dict, config: dict) -> Tree:
  """The paper authors' ViT."""
  heads = config['heads']
  tree = _released_embeddings(p)
  for i in range(config['depth']):
    attn, mlp = (f'transformer.layers.{i}.{j}.fn' for j in (0, 1))
    tree[f'block_{i:02d}'] = {
      'attn_in_norm': _norm(p, f'{attn}.norm'),
      'qkv': {'kernel': _in(p[f'{attn}.fn.to_qkv.weight'], 3, heads)},
      'attn_out': {
        'kernel': _out(p[f'{attn}.fn.to_out.weight'], heads),
        'bias': p[f'{attn}.fn.to_out.bias'],
      },
      'mlp_in_norm': _norm(p, f'{mlp}.norm'),
      'mlp_in': _linear(p, f'{mlp}.fn.net.0'),
      'mlp_out': _linear(p, f'{mlp}.fn.net.2'),
    }
  tree['head'] = {
    'hidden': _linear(p, 'mlp_head.0'),
    'logits': _linear(p, 'mlp_head.2'),
  }
  return tree


def released_vit22b(p: dict, config: dict) -> Tree:
  """The paper authors' ViT-22B."""
  heads = config['heads']
  tree = _released_embeddings(p)
  for i in range(config['depth']):
    fn = f'transformer22B.layers.{i}.fn'
    qkv = _in(p[f'{fn}.to_qkv.weight'], 3, heads)
    mlp = _in(p[f'{fn}.parallel.0.weight'], 1, heads)
    tree[f'block_{i:02d}'] = {
      'in_proj': {
        'kernel': np.concatenate([qkv, mlp], axis=2),
        'bias': p[f'{fn}.parallel.0.bias'].reshape(heads, -1),
      },
      'attn_out': {
        'kernel': _out(p[f'{fn}.to_out.weight'], heads),
        'bias': p[f'{fn}.to_out.bias'],
      },
      'mlp_out': {
        'kernel': _out(p[f'{fn}.parallel.2.weight'], heads),
        'bias': p[f'{fn}.parallel.2.bias'],
      },
    }
  tree['head'] = {
    'hidden': _linear(p, 'mlp_head.0'),
    'batch_norm': _norm(p, 'mlp_head.1'),
    'logits': _linear(p, 'mlp_head.3'),
  }
  return tree


def released_stats(p: dict) -> Tree:
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
  convert = released_vit if name == 'released_vit' else released_vit22b
  return {
    'params': convert(arrays, config),
    'batch_stats': released_stats(arrays),
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
  attn = _out(p['attn_out_proj.weight'], heads)
  mlp = _out(p['mlp_out_proj.weight'], heads)
  biases = [p[f'{name}_out_proj.bias'] for name in ('attn', 'mlp')]
  if 'mlp_norm.weight' in p:
    tree['mlp_norm'] = _norm(p, 'mlp_norm')
    tree['attn_out'] = {'kernel': attn, 'bias': biases[0]}
    tree['mlp_out'] = {'kernel': mlp, 'bias': biases[1]}
  else:
    kernel = np.concatenate([attn, mlp], axis=1)
    tree['out_proj'] = {'kernel': kernel, 'bias': sum(biases)}
  return tree
