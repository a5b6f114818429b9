"""Records -> splits of decoded images, by threads and once: then cached."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import numpy as np
from absl import logging
from jaxtyping import Int, UInt8

from vit22b_jax.data import cache, decode, encoded, splits

_WORTH_SAYING = 50_000_000  # Bytes of pixels: some seconds.


@dataclasses.dataclass(frozen=True)
class Part:
  """Records that are decoded alike.

  Attributes:
    records: encoded images.
    decode: turns a file's bytes into an image of `shape` or, of a part that is
      read lazily, larger.
    shape: height and width of the images.
    rows: the records which belong to the part, sorted; all by default.
    names: of the classes; None where labels don't matter.
  """

  records: encoded.Records
  decode: Callable[[bytes], UInt8[np.ndarray, 'H W 3']]
  shape: tuple[int, int]
  rows: Int[np.ndarray, ' n'] | None = None
  names: tuple[str, ...] | None = None

  def __len__(self) -> int:
    return len(self.records if self.rows is None else self.rows)

  @property
  def num_bytes(self) -> int:
    """Returns the size of the part in memory."""
    return len(self) * self.shape[0] * self.shape[1] * 3


def in_memory(
  name: str,
  path: pathlib.Path,
  parts: Mapping[str, Part],
  max_corrupt: int,
  image_size: int | None = None,
) -> dict[str, splits.ArraySplit]:
  """Decodes parts into memory, or finds them in the cache.

  Args:
    name: of the data set, for messages.
    path: of `cache.folder`.
    parts: by name.
    max_corrupt: as in `loader`.
    image_size: side of the records, where images are stored smaller.

  Raises:
    UserError: more than `max_corrupt` images are unreadable, or a label is out
      of range.
  """
  found = cache.read(path)
  if found is None:
    if sum(part.num_bytes for part in parts.values()) > _WORTH_SAYING:
      count = sum(map(len, parts.values()))
      logging.info(
        'decoding %d images of %s, to be kept in %s', count, name, path
      )
    found = _decode_all(parts)
    cache.write(path, *found)
  arrays, corrupt = found
  for file in corrupt:
    logging.warning('skipped a corrupt image: %s', file)
  splits.validate_corrupt(corrupt, max_corrupt)
  opened = {}
  for key, part in parts.items():
    labels = None
    if part.names is not None:
      labels, what = arrays[f'{key}_labels'], f'{name} {key}'
      splits.validate_labels(
        labels, len(part.names), lambda i, what=what: f'{what}[{i}]'
      )
    opened[key] = splits.ArraySplit(arrays[f'{key}_images'], labels, image_size)
  return opened


def lazily(
  parts: Mapping[str, Part], max_corrupt: int
) -> dict[str, splits.LazySplit]:
  """Opens parts that are decoded while they are read."""
  unreadable: list[str] = []
  return {
    key: splits.LazySplit(
      part.records,
      part.decode,
      part.shape,
      None if part.names is None else len(part.names),
      unreadable,
      max_corrupt,
      part.rows,
    )
    for key, part in parts.items()
  }


def _decode_all(parts: Mapping[str, Part]) -> tuple[cache.Arrays, list[str]]:
  """Returns `PART_images` and `PART_labels`, and what can't be read."""
  arrays, corrupt = {}, []
  for key, part in parts.items():
    images = np.empty((len(part), *part.shape, 3), np.uint8)
    labels, readable = [], np.ones(len(part), bool)
    decoded = encoded.apply(part.records, part.decode, part.rows)
    for row, (image, label) in enumerate(decoded):
      labels.append(label)
      if isinstance(image, decode.CorruptImage):
        readable[row] = False
        number = row if part.rows is None else int(part.rows[row])
        corrupt.append(f'{part.records.name(number)} ({image})')
      else:
        images[row] = image
    if not readable.all():  # else spare the copy
      images = images[readable]
    arrays |= {
      f'{key}_images': images,
      f'{key}_labels': np.array(labels)[readable],
    }
  return arrays, corrupt
