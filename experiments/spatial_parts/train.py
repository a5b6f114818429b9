"""Trains as main.py does, with one part of the spatial ViTUnet exchanged.

python -m experiments.spatial_parts.train VARIANT --config=... --workdir=...
"""

import sys

from vit22b_jax import cli
from vit22b_jax.runtime import host

if __name__ == '__main__':
  host.prepare()  # before jax, which variants import
  from experiments.spatial_parts import variants

  with variants.chosen(sys.argv.pop(1)):
    cli.main()
