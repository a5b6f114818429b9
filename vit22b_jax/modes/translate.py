"""`--mode=translate`: images as PNGs of the same names, and a page of pairs.

    done = translate.run(task, variables, 'photos', 'b2a', workdir)
    done.files, done.notes, done.page

A generator that takes other sizes than its training's (a ResNet, a ViTUnet with
`resample='space'`) sees an image in the size that it has, with a mirrored
border up to the next that divides as it must, or scaled down where memory would
not last; what it made is brought to the size of the original. Transparency is
kept: a generator sees it over white, and the PNG has it as the original had.
"""

import collections
import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from vit22b_jax.data import decode
from vit22b_jax.data.readers import walk
from vit22b_jax.models import generators, vitunet, vitunet_spatial
from vit22b_jax.modes import inputs
from vit22b_jax.report import page as page_lib
from vit22b_jax.report import samples
from vit22b_jax.runtime import workdir as workdir_lib
from vit22b_jax.tasks import cyclegan

PAGE = 'index.html'
FILES = 'files.json'  # names of the PNGs that a call has made
_PAGE_PAIRS = 200  # on the page; all are in the folder
_PAGE_PIXELS = 256  # longest side there
_LONGEST_NAME = 200  # bytes; file systems take 255
_MEMORY = 2**30  # bytes of the largest array that a generator may make
_WAITING = 64  # images that wait for others of their size

Pixels = UInt8[np.ndarray, 'H W 3']
Opacity = UInt8[np.ndarray, 'H W'] | None
Translation = UInt8[np.ndarray, 'H W 3'] | UInt8[np.ndarray, 'H W 4']
Size = tuple[int, int]  # height and width
Translate = Callable[
  [UInt8[np.ndarray, 'B H W 3']], UInt8[np.ndarray, 'B H W 3']
]


class _Waiting(NamedTuple):
  """An image, and the size that it is brought to before it gets a border."""

  name: str
  image: Pixels
  opacity: Opacity
  inner: Size


class Done(NamedTuple):
  """The result of `run`."""

  files: list[str]  # PNGs, below the output folder, in the order of the inputs
  notes: list[str]  # what was scaled down, left out or removed
  page: epath.Path


def run(
  task: cyclegan.CycleGAN,
  variables: dict[str, Any],
  given: epath.PathLike,
  direction: str,
  workdir: workdir_lib.Workdir,
  max_size: int = 0,
) -> Done:
  """Translates every readable image of a folder, or one file.

  PNGs of an earlier call that aren't made anew are deleted there, so that the
  folder holds what one call made.

  Args:
    task: needs no data.
    variables: the generators' parameters.
    given: a folder, searched through in sorted order, or an image file; the
      results may lie in it, and are left aside.
    direction: 'a2b' or 'b2a'.
    workdir: gets the results in its folder translated_DIRECTION.
    max_size: longest side in pixels that the generator sees; 0 for as many as
      about a GiB of memory bears.

  Raises:
    UserError: there is no such folder, it holds no readable image, or results
      can't be written.
  """
  target = workdir.path / f'translated_{direction}'
  folder, names = inputs.find(given, leave_out=target)
  pngs, earlier = output_names(names), _earlier(target)
  if names:  # said before they are made: a call may be cut off
    listed = sorted(earlier | set(pngs.values()))
    workdir.write_json(f'{target.name}/{FILES}', listed)
  notes, pairs, made = [], {}, set()
  images = inputs.decoded(folder, names, _decoded, notes)
  translate = functools.partial(task.translate, variables, direction=direction)
  translated = _translations(task, translate, images, max_size, notes)
  for name, before, after in translated:
    made.add(name)
    workdir.write_bytes(f'{target.name}/{pngs[name]}', samples.png(after))
    if len(pairs) < _PAGE_PAIRS:
      pairs[name] = _thumbnail(before), _thumbnail(after)
  if not made:
    raise inputs.no_image(given, notes)
  # Batches are of images of one size; results are in the order of the names.
  files = [pngs[name] for name in names if name in made]
  if stale := earlier.difference(files):
    for name in stale:
      (target / name).unlink(missing_ok=True)
    notes.append(f'{len(stale)} images of an earlier call were removed.')
  workdir.write_json(f'{target.name}/{FILES}', sorted(files))
  page = _page(
    domains=task.names if direction == 'a2b' else task.names[::-1],
    direction=direction,
    pairs=[(name, *pairs[name]) for name in names if name in pairs],
    total=len(files),
    notes=notes,
  )
  workdir.write_bytes(f'{target.name}/{PAGE}', page)
  return Done(files, notes, target / PAGE)


def _page(**fields: Any) -> bytes:
  """Returns index.html, whose template says what its fields are."""
  template = page_lib.environment().get_template('pairs.html')
  return template.render(**fields).encode(errors='backslashreplace')


# --- Names -----------------------------------------------------------------


def output_names(names: list[str]) -> dict[str, str]:
  """Returns a PNG's name for each input, all different on any disk.

  >>> output_names(['a.jpg', 'x.jpg', 'x.png'])
  {'a.jpg': 'a.png', 'x.jpg': 'x.jpg.png', 'x.png': 'x.png.png'}
  """
  stems = {name: os.path.splitext(name)[0] for name in names}
  while True:
    counts = collections.Counter(stem.casefold() for stem in stems.values())
    twice = {
      name
      for name, stem in stems.items()
      if counts[stem.casefold()] > 1 and stem != name
    }
    if not twice:
      return {name: f'{_shortened(stem)}.png' for name, stem in stems.items()}
    stems |= {name: name for name in twice}


def _shortened(stem: str) -> str:
  """Returns a path with a digest in the place of a name's end, if too long."""
  folder, last = os.path.split(stem)
  raw = os.fsencode(last)
  if len(raw) > _LONGEST_NAME:
    digest = hashlib.sha256(os.fsencode(stem)).hexdigest()[:12]
    last = f'{raw[:_LONGEST_NAME].decode(errors="ignore")}_{digest}'
  return os.path.join(folder, last)


def _earlier(target: epath.Path) -> set[str]:
  """Returns the PNGs of earlier calls that are still there."""
  try:
    listed = json.loads((target / FILES).read_text())
    listed = {name for name in listed if isinstance(name, str)}
  except (OSError, ValueError, TypeError, RecursionError):
    return set()
  there = walk.Walk([target]).images(target)
  return listed.intersection(os.fspath(x.relative_to(target)) for x in there)


# --- Images ----------------------------------------------------------------


def _translations(
  task: cyclegan.CycleGAN,
  translate: Translate,
  images: Iterator[tuple[str, tuple[Pixels, Opacity]]],
  max_size: int,
  notes: list[str],
) -> Iterator[tuple[str, Pixels, Translation]]:
  """Yields name, original and translation, by batches of one size.

  `notes` gets a line for each image that is scaled down or does not fit, one
  for all where the generator takes one size alone.
  """
  model, waiting = task.networks.generator, collections.defaultdict(list)
  shrunk = 0
  for name, (image, opacity) in images:
    height, width, _ = image.shape
    inner, size = _seen_size(model, height, width, max_size)
    if inner[0] < height or inner[1] < width:
      shrunk += 1
      if not _is_fixed(model):
        notes.append(
          f'{name}: {width} x {height} pixels were translated at {inner[1]} x '
          f'{inner[0]} and scaled up again (see --max_size).'
        )
    waiting[size].append(_Waiting(name, image, opacity, inner))
    most = min(task.evaluator.batch_size, _MEMORY // _bytes(model, *size))
    full = len(waiting[size]) >= max(most, 1)
    if full or sum(map(len, waiting.values())) >= _WAITING:
      yield from _translated(translate, size, waiting.pop(size), notes)
  for size, batch in waiting.items():
    yield from _translated(translate, size, batch, notes)
  if shrunk and _is_fixed(model):
    height, width = model.image_size
    notes.append(
      f'{shrunk} larger images were translated at {width} x {height}, all that '
      'this generator takes, and brought to their size again.'
    )


def _translated(
  translate: Translate,
  size: Size,
  batch: list[_Waiting],
  notes: list[str],
) -> Iterator[tuple[str, Pixels, Translation]]:
  """Yields name, original and translation of images seen in one size."""
  images = np.stack(
    [_bordered(_resized(x.image, x.inner), size) for x in batch]
  )
  # Few different batch sizes, since each is a program of its own.
  spare = (1 << (len(batch) - 1).bit_length()) - len(batch)
  try:
    made = np.asarray(translate(np.pad(images, ((0, spare), *((0, 0),) * 3))))
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    notes.extend(
      f'{x.name}: {size[1]} x {size[0]} pixels are too many for the memory '
      'here; left out. Give a smaller --max_size.'
      for x in batch
    )
    return
  for (name, before, opacity, inner), after in zip(batch, made, strict=False):
    after = _resized(after[: inner[0], : inner[1]], before.shape[:2])
    yield (
      name,
      before,
      after if opacity is None else np.dstack([after, opacity]),
    )


def _decoded(content: bytes) -> tuple[Pixels, Opacity]:
  return decode.resized(content), decode.alpha(content)


def _seen_size(
  model: Any, height: int, width: int, max_size: int
) -> tuple[Size, Size]:
  """Returns the size that an image is brought to, and that with its border.

  Its own, where the generator takes others than its training's, and sees no
  more than it may; else one that needs no border.
  """
  size = generators.fitting_size(model, height, width, larger=True)
  fits = max(size) <= max_size if max_size else _bytes(model, *size) <= _MEMORY
  if fits and not _is_fixed(model):
    return (height, width), size
  scale = min(1, (max_size or math.inf) / max(height, width))
  if not max_size:
    power = 1 / 4 if _is_spatial(model) else 1 / 2
    scale = min(1, (_MEMORY / _bytes(model, height, width)) ** power)
  inner = max(1, int(height * scale)), max(1, int(width * scale))
  size = generators.fitting_size(model, *inner)
  return size, size


def _bytes(model: Any, height: int, width: int) -> float:
  """Returns about how large the generator's largest array is."""
  if _is_spatial(model):  # attention of all tokens to all
    return 4 * model.num_heads * (height * width / model.patch_size**2) ** 2
  return 4 * 64 * height * width


def _is_fixed(model: Any) -> bool:
  return isinstance(model, vitunet.ViTUnet)


def _is_spatial(model: Any) -> bool:
  return isinstance(model, vitunet_spatial.SpatialViTUnet)


def _resized(image: Pixels, size: Size) -> Pixels:
  if image.shape[:2] == size:
    return image
  resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)
  return np.asarray(resized)


def _bordered(image: Pixels, size: Size) -> Pixels:
  """Returns the image with its mirror image below and on the right."""
  spare = (now - before for now, before in zip(size, image.shape, strict=False))
  return np.pad(image, [*((0, n) for n in spare), (0, 0)], 'symmetric')


def _thumbnail(image: Translation) -> str:
  """Returns a data URL of the image, shrunk to what the page shows."""
  rgb = decode.to_rgb(Image.fromarray(image))
  return samples.data_url(np.asarray(rgb), _PAGE_PIXELS, 'jpeg', quality=88)
