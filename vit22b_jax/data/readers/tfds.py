"""TFDS sets of images: find or prepare them, read encoded records.

Files are read without TensorFlow (seconds to import, and ten times slower on
small records): `array_record` ones at random, `tfrecord` ones in order. Images
stay encoded here: `decode` decodes them like any other file.
"""

import functools
import itertools
import re
import shlex
import socket
import struct
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Int32

from vit22b_jax import errors
from vit22b_jax.data import cache, encoded, files


class TfdsRecords(encoded.Records):
  """The records of one split; picklable (files open on first use).

  `place` is the folder of the prepared version; without a `label_key` every
  label is 0.
  """

  def __init__(
    self, place: str, info, split: str, image_key: str, label_key: str = ''
  ):
    self.place, self._split = place, split
    self._image_key, self._label_key = image_key, label_key
    self._length = info.splits[split].num_examples
    kinds = [kind.value for kind in info.available_file_formats()]
    self.random_access = 'array_record' in kinds

  def __len__(self) -> int:
    return self._length

  def __getstate__(self) -> dict[str, Any]:
    return {k: v for k, v in self.__dict__.items() if k != '_source'}

  @functools.cached_property
  def _source(self):
    import tensorflow_datasets as tfds

    return _open(self.place).as_data_source(
      self._split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )

  def read(self, index: int) -> tuple[bytes, encoded.Label]:
    return self._parse(self._source[index])

  def name(self, index: int) -> str:
    return f'{self.place} {self._split}[{index}]'

  def labels(self) -> Int32[np.ndarray, ' N']:
    """Returns every label; read from the records once, then cached."""
    name = epath.Path(self.place).parent.name
    path = cache.folder(
      f'{name}-{self._split}-labels', self.place, self.identity()
    )
    found = cache.read(path)
    if found is None:
      logging.info('reading every label of %s %s', name, self._split)
      labels = np.array([read()[1] for read in self.readers()])
      found = {'labels': labels}, {}
      cache.write(path, *found)
    return found[0]['labels']

  def labeled(self) -> bool:
    return next(self.readers())()[1] != -1

  def readers(self) -> Iterator[encoded.Read]:
    """Yields what reads each record, in order; callable from any thread.

    Raises:
      UserError: the files hold fewer records than they should.
    """
    if self.random_access:
      yield from super().readers()
      return
    paths = _open(self.place).info.splits[self._split].filepaths
    found = itertools.chain.from_iterable(map(_tfrecord, paths))
    count = 0
    for record in itertools.islice(found, len(self)):
      yield functools.partial(self._parse, record)
      count += 1
    if count < len(self):
      raise errors.UserError(
        f'{self.place} holds {count} records of {self._split}, expected '
        f'{len(self)}: the files are incomplete; copy or prepare them again.'
      )

  def _parse(self, record: bytes) -> tuple[bytes, encoded.Label]:
    from tensorflow_datasets.proto import tf_example_pb2

    features = tf_example_pb2.Example.FromString(record).features.feature
    label = 0
    if self._label_key:
      label = features[self._label_key].int64_list.value[0]
    return features[self._image_key].bytes_list.value[0], np.int32(label)

  def identity(self) -> list[Any]:
    """Returns name, size, times and some content of the files."""
    return [
      [path.name, *files.stat(str(path)), files.sample(str(path))]
      for path in sorted(epath.Path(self.place).iterdir())
    ]

  def listing(self) -> list[Any]:
    """Returns name and version of the set, the split and its length."""
    place = epath.Path(self.place)
    return [[place.parent.name, place.name, self._split, len(self)]]


def find(
  name: str, data_dir: str
) -> tuple[dict[str, TfdsRecords], tuple[str, ...], tuple[int | None, ...]]:
  """Opens a set for classification; prepares it when there is none.

  Returns:
    Records of the splits that exist, the class names, and the images' shape
    [H, W, C] with None for what varies.

  Raises:
    UserError: unknown, neither prepared nor downloadable, or not a set for
      image classification.
  """
  import tensorflow_datasets as tfds

  place, info = _prepared(name, data_dir)
  keys = info.supervised_keys or ('image', 'label')
  features = [dict(info.features.items()).get(key) for key in keys]
  kinds = (tfds.features.Image, tfds.features.ClassLabel)
  if len(keys) != 2 or not all(map(isinstance, features, kinds)):
    raise errors.UserError(
      f'the TFDS set {name!r} is not a set for image classification: expected '
      f'an image and a class label, found {", ".join(info.features)}.'
    )
  found = {}
  for split, names in encoded.SPLIT_NAMES.items():
    there = [name for name in names if name in info.splits]
    if there:
      found[split] = TfdsRecords(place, info, there[0], *keys)
  if 'train' not in found:
    raise errors.UserError(
      f'the TFDS set {name!r} has no train split, only '
      f'{", ".join(info.splits)}; choose another data.name.'
    )
  image, label = features
  return found, tuple(label.names), image.shape


def find_unlabeled(name: str, data_dir: str) -> dict[str, TfdsRecords]:
  """Opens every split of a set under TFDS's name of it, with labels of 0.

  Raises:
    UserError: unknown, neither prepared nor downloadable, or without an image.
  """
  import tensorflow_datasets as tfds

  place, info = _prepared(name, data_dir)
  for key, feature in info.features.items():
    if isinstance(feature, tfds.features.Image):
      return {s: TfdsRecords(place, info, s, key) for s in info.splits}
  raise errors.UserError(
    f'the TFDS set {name!r} has no image, only {", ".join(info.features)}.'
  )


def _open(folder: str):
  import tensorflow_datasets as tfds

  return tfds.builder_from_directory(folder)


def _tfrecord(path: epath.Path) -> Iterator[bytes]:
  """Yields the records of a file: length (uint64), CRC (4 bytes), data, CRC.

  https://www.tensorflow.org/tutorials/load_data/tfrecord; the checksums aren't
  compared, a damaged image shows when it is decoded. A missing or truncated
  file has fewer records.
  """
  if not path.exists():
    return
  with path.open('rb') as file:
    while len(header := file.read(12)) == 12:
      (length,) = struct.unpack('<Q', header[:8])
      record = file.read(length + 4)
      if len(record) < length + 4:
        return
      yield record[:-4]


def _prepared(name: str, data_dir: str) -> tuple[str, Any]:
  """Finds a set's folder and info; prepares it (downloading) if missing."""
  import tensorflow_datasets as tfds

  root = epath.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
  base = re.split('[:/]', name)[0]
  known = tfds.list_builders(with_community_datasets=False)
  if base not in known and not (root / base).exists():
    suggestion = errors.did_you_mean(name, [*known, 'digits', 'fruit'])
    raise errors.UserError(
      f'unknown data.name {name!r}: expected a TFDS set of images, '
      "'folder:PATH', 'digits' or, for translation, 'fruit'."
      f'{suggestion if name not in ("digits", "fruit") else ""}'
    )
  try:
    builder = tfds.builder(name, data_dir=root)
    if not builder.is_prepared():
      logging.info('%s is not prepared in %s', name, builder.data_dir)
      builder = tfds.builder(name, data_dir=root, file_format='array_record')
      by_hand = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
      if not by_hand and not urllib.request.getproxies():
        # Fails at once without a network; TFDS would retry for minutes.
        socket.getaddrinfo('storage.googleapis.com', 443)
      builder.download_and_prepare()
    place = str(builder.data_dir)
    # The folder itself knows of formats that were added to it later.
    return place, _open(place).info
  except Exception as error:  # Download errors come in every kind.
    raise errors.UserError(_how_to_prepare(name, data_dir, error)) from error


def _how_to_prepare(name: str, data_dir: str, error: Exception) -> str:
  reason = str(error).strip().split('\n')[0][:300]
  if 'tensorflow' in str(error) and isinstance(error, ModuleNotFoundError):
    return (
      f'the TFDS set {name!r} is not prepared, and preparing it needs '
      'TensorFlow: pip install tensorflow (the extra [tensorflow] of this '
      'package). A prepared set is read without it.'
    )
  place = data_dir or 'a folder here'
  code = (
    'import tensorflow_datasets as tfds; tfds.builder('
    f'"{name}", data_dir="DIR", file_format="array_record")'
    '.download_and_prepare()'
  )
  return (
    f'the TFDS set {name!r} is not prepared in '
    f'{data_dir or "TFDS_DATA_DIR or ~/tensorflow_datasets"} and could not be '
    f'prepared here ({type(error).__name__}: {reason}).\n'
    'Prepare it on a machine with a network:\n'
    '  pip install tensorflow-datasets tensorflow importlib_resources\n'
    f'  python -c {shlex.quote(code)}\n'
    f'copy what is in DIR to {place} and pass '
    f'--config.data.dir={shlex.quote(place)}. Files that must be downloaded '
    'by hand belong in DIR/downloads/manual.'
  )
