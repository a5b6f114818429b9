"""Names of blocks, and trees with a block an entry or all blocks stacked.

    >>> params = {'block_00': {'bias': np.zeros(3)}}
    >>> params |= {'block_01': {'bias': np.ones(3)}, 'head': np.zeros(2)}
    >>> stacked = stack(params, depth=2)
    >>> sorted(stacked), stacked['blocks']['bias'].shape
    (['blocks', 'head'], (2, 3))
    >>> sorted(unstack(stacked))
    ['block_00', 'block_01', 'head']

Stacked arrays are [depth, ...]. Any tree that holds such entries will do:
weights, averages of them, an optimizer's state; of arrays, or of shapes with
shardings.
"""

import re
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

BLOCKS = 'blocks'
_PREFIX = 'block_'


def block_name(index: int, depth: int) -> str:
  """Names a block's parameters, with as many digits as the last one needs."""
  return f'{_PREFIX}{index:0{max(2, len(str(depth - 1)))}d}'


def layer_names(depth: int) -> list[str]:
  """Names all blocks in order; stacked ones too."""
  return [block_name(i, depth) for i in range(depth)]


def stack(tree: Any, depth: int) -> Any:
  """Stacks `depth` entries `block_NN` into one entry `blocks`."""
  names = layer_names(depth)

  def one(blocks):
    if not _has(*names)(blocks):
      return blocks
    rest = {k: v for k, v in blocks.items() if k not in names}
    parts = (blocks[name] for name in names)
    return {**rest, BLOCKS: jax.tree.map(_stack, *parts)}

  return jax.tree.map(one, tree, is_leaf=_has(*names))


def unstack(tree: Any) -> Any:
  """Splits each entry `blocks` into entries `block_NN`.

  One without arrays, such as a frozen backbone's moments, splits as the others.
  """
  named = zip(paths(tree), jax.tree.leaves(tree), strict=True)
  depth = next((x.shape[0] for k, x in named if f"['{BLOCKS}']" in k), 0)

  def one(blocks):
    if not _has(BLOCKS)(blocks):
      return blocks
    rest = {k: v for k, v in blocks.items() if k != BLOCKS}
    parts = {
      name: jax.tree.map(lambda x, i=i: _part(x, i), blocks[BLOCKS])
      for i, name in enumerate(layer_names(depth))
    }
    return {**rest, **parts}

  return jax.tree.map(one, tree, is_leaf=_has(BLOCKS))


def paths(tree: Any) -> list[str]:
  """Names the leaves as `jax.tree_util.keystr` writes them."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return [jax.tree_util.keystr(path) for path, _ in leaves]


def like(tree: Any, names: Collection[str]) -> Any:
  """Stacks or unstacks a tree, as the one with these `paths` is.

  Args:
    tree: of arrays, or of shapes with shardings.
    names: of the other tree's leaves, which may be more than this one's.
  """
  own = paths(tree)
  if _is_stacked(own) == _is_stacked(names):
    return tree
  if _is_stacked(own):
    return unstack(tree)
  layers = set(re.findall(rf"\['({_PREFIX}\d+)'\]", ' '.join(own)))
  return stack(tree, len(layers))


def _is_stacked(names: Collection[str]) -> bool:
  return any(f"['{BLOCKS}']" in name for name in names)


def _has(*names: str) -> Callable[[Any], bool]:
  return lambda x: isinstance(x, dict) and all(name in x for name in names)


def _stack(*parts: Any) -> Any:
  x = parts[0]
  if isinstance(x, jax.ShapeDtypeStruct):
    return _reshaped(x, (len(parts), *x.shape), lambda spec: (None, *spec))
  return (np if isinstance(x, np.ndarray) else jnp).stack(parts)


def _part(x: Any, index: int) -> Any:
  if isinstance(x, jax.ShapeDtypeStruct):
    return _reshaped(x, x.shape[1:], lambda spec: spec[1:])
  return x[index]


def _reshaped(x, shape, respecify):
  placed = x.sharding
  if isinstance(placed, NamedSharding):
    spec = PartitionSpec(*respecify(tuple(placed.spec)))
    placed = NamedSharding(placed.mesh, spec)
  return jax.ShapeDtypeStruct(shape, x.dtype, sharding=placed)
