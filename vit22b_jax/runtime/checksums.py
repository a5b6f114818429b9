"""Checksums of arrays, where they lie, and of JSON objects.

sums = checksums.of_arrays(state)    # {"['params']['kernel']": 123, ...}
"""

import json
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped, UInt32


def checksum(x: Shaped[Array, '...']) -> UInt32[Array, '']:
  """Returns a sum over the bits of `x` that any one changed byte changes.

  sum_i (2 i + 1) bits_i mod 2^32, with 64-bit words as two of 32. Odd weights
  make each term a bijection of its word; integer sums are exact in any order,
  so that every sharding gives the same value.
  """
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  bits = jax.lax.bitcast_convert_type(x, f'uint{8 * min(x.dtype.itemsize, 4)}')
  bits = bits.astype(jnp.uint32)
  index = jnp.zeros(bits.shape, jnp.uint32)
  stride = 1
  for axis in reversed(range(bits.ndim)):
    iota = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    index += iota * jnp.uint32(stride % 2**32)
    stride *= bits.shape[axis]
  return jnp.sum((2 * index + 1) * bits, dtype=jnp.uint32)


_checksums = jax.jit(lambda state: jax.tree.map(checksum, state))


def named_leaves(tree: Any) -> dict[str, Any]:
  """Returns a tree's leaves by name, as "['params']['kernel']"."""
  leaves = jax.tree.leaves_with_path(tree)
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def of_arrays(state: Any) -> dict[str, int]:
  """Returns the checksum of each array of a tree, by its name."""
  sums = jax.device_get(_checksums(state))
  return {name: int(x) for name, x in named_leaves(sums).items()}


def of_json(value: dict[str, Any]) -> int:
  """Returns the CRC-32 of a JSON object without its key `checksum`."""
  rest = {key: item for key, item in value.items() if key != 'checksum'}
  return zlib.crc32(json.dumps(rest, sort_keys=True).encode())
