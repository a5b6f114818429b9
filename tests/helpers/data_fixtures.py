"""Small data sets made on the spot: image folders, TFDS sets, a remote disk.

Images are colored by their class, with noise that makes each one unique, so a
test can tell where an image came from and a model can learn from them.
"""

import os
import pathlib
import re

import fsspec.implementations.local
import numpy as np
import pytest
from etils.epath import backend, gpath
from PIL import Image

# Images of each folder of `make_domains`; primes, and B larger than A.
DOMAINS = {'trainA': 23, 'trainB': 41, 'testA': 3, 'testB': 5}


def images(
  labels: np.ndarray, size: int = 32, *, seed: int = 0, channels: int = 3
) -> np.ndarray:
  """Noise around a gray level that grows with the class, uint8 [N, S, S, C]."""
  rng = np.random.default_rng(seed)
  noise = rng.integers(0, 40, (len(labels), size, size, channels))
  level = (labels * 200 // max(labels.max(), 1))[:, None, None, None]
  return (level + noise).astype(np.uint8)


def make_folder(
  root: pathlib.Path,
  *,
  classes: tuple[str, ...] = ('bird', 'cat', 'dog'),
  counts: dict[str, int] | None = None,
  size: int = 13,
) -> pathlib.Path:
  """PNG files root/SPLIT/CLASS/000.png; `counts` is images a class by split."""
  for number, (split, count) in enumerate((counts or {'train': 7}).items()):
    labels = np.repeat(np.arange(len(classes)), count)
    pixels = images(labels, size, seed=number)
    for row, (label, image) in enumerate(zip(labels, pixels, strict=True)):
      path = root / split / classes[label] / f'{row % count:03}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(image).save(path)
  return root


def make_domains(
  root: pathlib.Path,
  *,
  counts: dict[str, int] | None = None,
  sizes: tuple[tuple[int, int], ...] = ((13, 13),),
) -> pathlib.Path:
  """PNG files root/DOMAIN/000.png of noise: dark in A, bright in B.

  `counts` is images of each domain folder, which take the sizes (height and
  width) in turn.
  """
  for seed, (name, count) in enumerate((counts or DOMAINS).items()):
    rng = np.random.default_rng(seed)
    (root / name).mkdir(parents=True)
    for row in range(count):
      shape = (*sizes[row % len(sizes)], 3)
      pixels = rng.integers(0, 100, shape) + 150 * name.endswith('B')
      Image.fromarray(pixels.astype(np.uint8)).save(
        root / name / f'{row:03}.png'
      )
  return root


def make_tfds(
  data_dir: pathlib.Path,
  name: str = 'cifar10',
  *,
  version: str = '3.0.2',
  num_classes: int = 10,
  counts: dict[str, int] | None = None,
  shape: tuple[int | None, int | None, int] = (32, 32, 3),
  file_format: str = 'tfrecord',
  labeled: tuple[str, ...] = ('train', 'validation', 'test'),
  config: str | None = None,
) -> pathlib.Path:
  """A prepared TFDS set which the official builder of that name reads.

  Args:
    data_dir: where TFDS looks for sets.
    name: of the set.
    version: the official one, for a set that TFDS knows.
    num_classes: of its label.
    counts: images of each split, classes in turn.
    shape: of its images; None is stored as 32.
    file_format: tfrecord or array_record.
    labeled: splits with labels; others have -1.
    config: of a set that has several, as monet2photo of cycle_gan.
  """
  import tensorflow_datasets as tfds

  image = tfds.features.Image(shape=shape, encoding_format='png')
  features = tfds.features.FeaturesDict(
    {'image': image, 'label': tfds.features.ClassLabel(num_classes=num_classes)}
  )
  data = {}
  for number, (split, n) in enumerate((counts or {'train': 60}).items()):
    labels = np.arange(n) % num_classes
    pixels = images(labels, shape[0] or 32, seed=number, channels=shape[2])
    stored = labels if split in labeled else np.full(n, -1)
    data[split] = [
      (i, {'image': pixels[i], 'label': int(stored[i])}) for i in range(n)
    ]
  builder = tfds.dataset_builders.store_as_tfds_dataset(
    name=name,
    version=version,
    config=config,
    features=features,
    split_datasets=data,
    data_dir=data_dir,
    file_format=file_format,
    disable_shuffling=True,
  )
  return pathlib.Path(builder.data_dir)


def make_remote(monkeypatch: pytest.MonkeyPatch, root: pathlib.Path) -> None:
  """Makes `s3://NAME/...` a stand-in of a remote disk: the folder root/NAME.

  `gs://NAME/...` too. epath's own code for remote file systems runs, only the
  last layer is local; like an object store it can't append to files.
  """

  class Remote(fsspec.implementations.local.LocalFileSystem):
    @classmethod
    def _strip_protocol(cls, path):
      path = re.sub('^(s3|gs)://', f'{root}/', os.fspath(path))
      return super()._strip_protocol(path)

    def glob(self, path, **kwargs):
      found = super().glob(path, **kwargs)
      return [path.removeprefix(f'{root}/') for path in found]

    def _open(self, path, mode='rb', **kwargs):
      assert 'a' not in mode, f'appended to {path}'
      return super()._open(path, mode=mode, **kwargs)

  remote = Remote(skip_instance_cache=True)
  # With TensorFlow installed epath would use its file systems.
  monkeypatch.setattr(gpath, '_is_tf_installed', lambda: False)
  monkeypatch.setattr(backend.fsspec_backend, 'fs', lambda path: remote)
