"""How the images of a prepared data set are stored: lossless or as JPEG.

Rows of results tell it, since the CIFAR-10 of earlier ones was re-encoded.
"""

import os
import pathlib

_HEAD = 1 << 16  # bytes of a file that hold its first image
_PNG = b'\x89PNG'
_JPEG = b'\xff\xd8\xff'


def stored_as(name: str, folder: str = '') -> str:
  """Says how the training images of a TFDS set are stored.

  Args:
    name: of the set, as `data.name` has it.
    folder: where prepared sets lie, as `data.dir` has it; '' is TFDS' own.

  Returns:
    'lossless', 'jpeg' or, where it can't be told, 'unknown'.
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
