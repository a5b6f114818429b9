"""How the images of a prepared data set are stored: lossless or as JPEG.

Rows of results tell it, since the CIFAR-10 of earlier ones was re-encoded.
"""

import os
import pathlib

_HEAD = 1 << 16  # bytes of a file that hold its first image
_PNG = b'\x89PNG'
_JPEG = b'\xff\xd8\xff'


def stored_as(name: str, folder: str = '') -> str:
  """Returns 'lossless', 'jpeg' or, where it can't be told, 'unknown'.

  Of the training images of a TFDS set: `data.name` and `data.dir` of a config.
  """
  default = os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  root = pathlib.Path(folder or default).expanduser() / name
  for path in sorted(root.glob('*/*train*-00000-of-*')):
    with path.open('rb') as file:
      head = file.read(_HEAD)
    if _PNG in head:
      return 'lossless'
    if _JPEG in head:
      return 'jpeg'
  return 'unknown'
