"""Reference weights of generators and discriminators -> our parameter trees.

Every map is a permutation of entries that can be differentiated: gradients with
respect to the reference's own arrays come out under its own names.
"""

import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from tests.helpers import golden_params

Tree = golden_params.Tree


@functools.cache
def recipe(name: str) -> dict[str, np.ndarray]:
  """Weights that a golden file describes without storing them."""
  _, config = golden_params.load(name)
  weights = {}
  for key, shape in config['shapes'].items():
    text = f'{config["seed"]}/{key}'.encode()
    seed = int.from_bytes(hashlib.sha256(text).digest()[:8], 'little')
    rng = np.random.Generator(np.random.PCG64(seed))
    a = rng.standard_normal(shape).astype(np.float32)
    if name == 'patchgan70':
      a *= 0.02
    elif len(shape) > 1:
      a /= np.sqrt(np.prod(shape[1:]))
    else:
      a = 0.1 * a + key.endswith('weight')
    weights[key] = a.astype(np.float32)
  return weights


def conv(p: dict, name: str) -> Tree:
  """Convolution [O, I, h, w] -> [h, w, I, O]."""
  kernel = p[f'{name}.weight'].transpose(2, 3, 1, 0)
  return {'kernel': kernel, 'bias': p[f'{name}.bias']}


def vitunet(p: dict, config: dict) -> Tree:
  """The paper authors' generator, with either block."""
  parallel = 'peak.layers.0.fn.to_qkv.weight' in p
  block = golden_params.vit22b_block if parallel else golden_params.vit_block
  tree = {
    'patch_embedding': golden_params.linear(p, 'patch_to_embedding'),
    'positions': {'pos_embedding': p['pos_embedding'][0]},
    'to_pixels': golden_params.linear(p, 'to_out'),
  }
  stages = {'middle': 'peak'}
  for i in range(3):
    stages |= {f'{part}_{i}': f'{part}s.{i}' for part in ('encoder', 'decoder')}
  for ours, theirs in stages.items():
    tree[ours] = {
      f'block_{i:02d}': block(p, f'{theirs}.layers.{i}', config['heads'])
      for i in range(config['depth'] // 6)
    }
  residuals = config['depth'] // 3
  tree['cnn'] = {
    'conv_0': conv(p, 'cnn.1'),
    'conv_1': conv(p, 'cnn.5'),
    'conv_2': conv(p, f'cnn.{9 + residuals}'),
    'conv_3': conv(p, f'cnn.{13 + residuals}'),
  }
  for i in range(residuals):
    tree['cnn'][f'residual_{i:02d}'] = {
      'conv_0': conv(p, f'cnn.{8 + i}.block.1'),
      'conv_1': conv(p, f'cnn.{8 + i}.block.5'),
    }
  return tree


def vitunet_noise(config: dict) -> list[str]:
  """Parameters without a gradient: biases before an instance norm."""
  residuals = config['depth'] // 3
  names = ['cnn.1', 'cnn.5', f'cnn.{9 + residuals}']
  for i in range(residuals):
    names += [f'cnn.{8 + i}.block.1', f'cnn.{8 + i}.block.5']
  return [f'{name}.bias' for name in names]


def discriminator(p: dict) -> Tree:
  """Convolutions in the order of the reference's layers."""
  names = [key.removesuffix('.weight') for key in p if key.endswith('weight')]
  return {f'conv_{i}': conv(p, name) for i, name in enumerate(names)}


def resnet_generator(p: dict, config: dict) -> Tree:
  """CycleGAN's generator; transposed convolutions are [I, O, h, w]."""
  count = config['blocks']
  tree = {
    'conv_in': conv(p, '1'),
    'down_0': conv(p, '4'),
    'down_1': conv(p, '7'),
    'conv_out': conv(p, f'{17 + count}'),
  }
  for i in range(count):
    tree[f'residual_{i:02d}'] = {
      f'conv_{j}': conv(p, f'{10 + i}.block.{k}') for j, k in enumerate((1, 5))
    }
  for i in range(2):
    name = f'{10 + count + 3 * i}'
    kernel = p[f'{name}.weight'].transpose(2, 3, 0, 1)
    tree[f'up_{i}'] = {'kernel': kernel, 'bias': p[f'{name}.bias']}
  return tree


def resnet_noise(config: dict) -> list[str]:
  """Parameters without a gradient: biases before an instance norm."""
  count = config['blocks']
  names = ['1', '4', '7', f'{10 + count}', f'{13 + count}']
  for i in range(count):
    names += [f'{10 + i}.block.1', f'{10 + i}.block.5']
  return [f'{name}.bias' for name in names]


def check(arrays: dict, model, convert, weights: dict, noise: list[str]):
  """Compares output and gradient norms as the golden files' README has it.

  Args:
    arrays: `image`, `output` and `grad_norm/NAME`, of the loss sum(output *
      linspace(-1, 1)) over the flattened NCHW output.
    model: ours.
    convert: from `weights` to our tree.
    weights: under the reference's names.
    noise: parameters whose gradient is mathematically zero.
  """

  # Compiled as for a user, whatever the other tests do.
  @functools.partial(
    jax.jit, compiler_options={'xla_backend_optimization_level': 3}
  )
  def norms(weights):
    def loss_fn(weights):
      images = golden_params.images(arrays)
      y = model.apply({'params': convert(weights)}, images)
      y = y.transpose(0, 3, 1, 2)
      ramp = jnp.linspace(-1, 1, y.size)
      return jnp.sum(y.reshape(-1) * ramp), y

    grads, y = jax.grad(loss_fn, has_aux=True)(weights)
    return {k: jnp.linalg.norm(g.reshape(-1)) for k, g in grads.items()}, y

  actual, output = norms(weights)
  expected = arrays['output']
  assert np.abs(output - expected).max() <= 1e-4 * np.abs(expected).max()
  expected = golden_params.section(arrays, 'grad_norm')
  assert actual.keys() == expected.keys()
  largest = max(expected.values())
  for name, norm in expected.items():
    if name in noise:
      assert norm <= 1e-6 * largest, name
      assert actual[name] <= 1e-3 * largest, name
    else:
      assert abs(actual[name] - norm) <= 1e-4 * norm, name
