"""Records -> splits of decoded images, by threads and once: then cached."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Int, UInt8

from vit22b_jax import errors
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
) -> tuple[dict[str, splits.ArraySplit], tuple[str, ...]]:
  """Decodes parts into memory, or finds them in the cache.

  Args:
    name: of the data set, for messages.
    path: of `cache.folder`.
    parts: by name.
    max_corrupt: as in `loader`.
    image_size: side of the records, where images are stored smaller.

  Returns:
    A split for each part, and the names of corrupt images.

  Raises:
    UserError: more than `max_corrupt` images are unreadable, or all of a class;
      or a label is out of range.
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
  arrays, meta = found
  for corrupt in meta['skipped']:
    logging.warning('skipped a corrupt image: %s', corrupt)
  splits.validate_corrupt(meta['skipped'], max_corrupt)
  opened = {}
  for key, part in parts.items():
    labels = None
    if part.names is not None:
      labels = arrays[f'{key}_labels']
      _validate(f'{name} {key}', labels, meta['lost'][key], part.names)
    opened[key] = splits.ArraySplit(arrays[f'{key}_images'], labels, image_size)
  return opened, tuple(meta['skipped'])


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


def _decode_all(
  parts: Mapping[str, Part],
) -> tuple[cache.Arrays, dict[str, Any]]:
  """Returns `PART_images` and `PART_labels`, the `skipped` and the `lost`.

  Lost are, for each part, the classes of which no image could be read.
  """
  arrays, skipped, lost = {}, [], {}
  for key, part in parts.items():
    images = np.empty((len(part), *part.shape, 3), np.uint8)
    labels, readable = [], np.ones(len(part), bool)
    decoded = encoded.apply(part.records, part.decode, part.rows)
    for row, (image, label) in enumerate(decoded):
      labels.append(label)
      if isinstance(image, decode.CorruptImage):
        readable[row] = False
        number = row if part.rows is None else int(part.rows[row])
        skipped.append(f'{part.records.name(number)} ({image})')
      else:
        images[row] = image
    labels = np.array(labels)
    lost[key] = []
    if not readable.all():
      if labels.ndim == 1:
        lost[key] = np.setdiff1d(labels, labels[readable]).tolist()
      images, labels = images[readable], labels[readable]
    arrays |= {f'{key}_images': images, f'{key}_labels': labels}
  return arrays, {'skipped': skipped, 'lost': lost}


def _validate(
  what: str, labels: encoded.Labels, lost: list[int], names: tuple[str, ...]
) -> None:
  """Raises UserError for labels out of range, classes without an image."""
  splits.validate_labels(labels, len(names), lambda i: f'{what}[{i}]')
  if lost:
    classes = ', '.join(names[label] for label in lost[:20])
    raise errors.UserError(
      f'no readable image in {what} of class(es): {classes}.'
    )
