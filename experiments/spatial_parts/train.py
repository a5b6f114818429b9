"""Trains as main.py does, with one part of the spatial ViTUnet exchanged.

python -m experiments.spatial_parts.train VARIANT --config=... --workdir=...
"""

import sys

from experiments.spatial_parts import variants
from vit22b_jax import cli

if __name__ == '__main__':
  with variants.chosen(sys.argv.pop(1)):
    cli.main()
