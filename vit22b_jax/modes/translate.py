"""`--mode=translate`: images as PNGs of the same names, and a page of pairs.

    done = translate.run(task, variables, 'photos', 'b2a', 'runs/x/translated')
    done.files, done.unreadable, done.page

A generator that takes other sizes than its training's (a ResNet, a ViTUnet with
`resample='space'`) sees an image in the size that it has, cut down to the next
that divides as it must, or scaled down where memory would not last; what it
made is brought to the size of the original.
"""

import base64
import collections
import dataclasses
import hashlib
import io
import json
import math
import os
import uuid
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from vit22b_jax import errors
from vit22b_jax.data import decode
from vit22b_jax.fid import image_sources
from vit22b_jax.models import generators, vitunet_spatial
from vit22b_jax.modes import inputs
from vit22b_jax.report import samples, templates
from vit22b_jax.runtime import workdir
from vit22b_jax.tasks import cyclegan

PAGE = 'index.html'
FILES = 'files.json'  # names of the PNGs that a call has made
_PAGE_PAIRS = 200  # on the page; all are in the folder
_PAGE_PIXELS = 256  # longest side there
_LONGEST_NAME = 200  # bytes; file systems take 255
_MEMORY = 2**30  # bytes of the largest array that a generator may make

Pixels = UInt8[np.ndarray, 'H W 3']
Size = tuple[int, int]  # height and width


@dataclasses.dataclass(frozen=True)
class Done:
  """The result of `run`.

  Attributes:
    files: the PNGs, below the output folder, in the order of their inputs.
    unreadable: inputs that could not be read.
    notes: a line for each input that was scaled down or did not fit.
    page: the HTML page.
  """

  files: list[str]
  unreadable: list[str]
  notes: list[str]
  page: epath.Path


@dataclasses.dataclass(frozen=True)
class _Pair:
  """An image of the page, before and after, as data URLs."""

  name: str
  before: str
  after: str


def run(
  task: cyclegan.CycleGAN,
  variables: dict[str, Any],
  given: epath.PathLike,
  direction: str,
  out_folder: epath.PathLike,
  max_size: int = 0,
) -> Done:
  """Translates every readable image of a folder, or one file.

  The PNGs that an earlier call made there are deleted, unless made anew: what
  is in the folder is what the page shows.

  Args:
    task: the run's task; needs no data.
    variables: the generators' parameters.
    given: a folder, searched through in sorted order, or an image file;
      `out_folder` may lie in it, and is left aside.
    direction: 'a2b' or 'b2a'.
    out_folder: made if missing.
    max_size: longest side in pixels that the generator sees; 0 for as many as
      about a GiB of memory bears.

  Raises:
    UserError: the run is of another task, the direction or the folder doesn't
      exist, it holds no readable image, or results can't be written.
  """
  if not isinstance(task, cyclegan.CycleGAN):
    raise errors.UserError(
      f'--mode=translate needs the --workdir of an image translation, and this '
      f'one is of a {task.config.task}: use --mode=predict with it.'
    )
  errors.validate_choice('--direction', direction, image_sources.DIRECTIONS)
  source, target = (
    path if workdir.is_remote(path) else path.resolve()
    for path in map(epath.Path, (given, out_folder))
  )
  folder, inputs_ = inputs.find(source, leave_out=target)
  names = output_names(inputs_)
  earlier, unreadable, notes = _earlier(target), [], []
  if names:  # said before they are made: a call may be cut off
    _write_names(target, earlier | set(names.values()))
  found = _decoded(inputs.read(folder, inputs_, unreadable), unreadable)
  files, pairs = {}, {}
  translate = _Translator(task, variables, direction, max_size, notes)
  for name, before, after in translate(found):
    files[name] = names[name]
    _write(target / names[name], samples.png(after))
    if len(pairs) < _PAGE_PAIRS:
      pairs[name] = _Pair(_visible(name), _thumbnail(before), _thumbnail(after))
  if not files:
    raise inputs.no_image(given, [*unreadable, *notes])
  # Batches are of images of one size; the page is in the order of the names.
  shown = [pairs[name] for name in names if name in pairs]
  page = _page(task.names, direction, shown, len(files), unreadable)
  _write(target / PAGE, page.encode())
  for name in earlier - set(files.values()):
    (target / name).unlink(missing_ok=True)
  _write_names(target, set(files.values()))
  made = [files[name] for name in names if name in files]
  return Done(made, unreadable, notes, target / PAGE)


# --- Names -----------------------------------------------------------------


def output_names(names: list[str]) -> dict[str, str]:
  """Returns a PNG's name for each input, all different on any disk.

  >>> output_names(['a.jpg', 'x.jpg', 'x.png'])
  {'a.jpg': 'a.png', 'x.jpg': 'x.jpg.png', 'x.png': 'x.png.png'}
  """
  made = {name: _shortened(os.path.splitext(name)[0], name) for name in names}
  while True:
    counts = collections.Counter(png.casefold() for png in made.values())
    whole = {name: _shortened(name, name) for name in names}
    twice = [
      name
      for name, png in made.items()
      if counts[png.casefold()] > 1 and png != whole[name]
    ]
    if not twice:
      return made
    made |= {name: whole[name] for name in twice}


def _shortened(stem: str, name: str) -> str:
  """Returns STEM.png, with a digest of the name where it would be too long."""
  folder, last = os.path.split(stem)
  raw = os.fsencode(last)
  if len(raw) > _LONGEST_NAME:
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:12]
    last = f'{raw[:_LONGEST_NAME].decode(errors="ignore")}_{digest}'
  return os.path.join(folder, f'{last}.png')


def _earlier(target: epath.Path) -> set[str]:
  """Returns the PNGs that earlier calls made, none outside of the folder."""
  try:
    names = json.loads((target / FILES).read_text())
  except (OSError, ValueError, RecursionError):
    return set()
  names = names if isinstance(names, list) else []
  return {n for n in names if isinstance(n, str) and _is_made_here(n)}


def _is_made_here(name: str) -> bool:
  path = epath.Path(name)
  inside = not path.is_absolute() and '..' not in path.parts
  short = all(len(os.fsencode(part)) < 256 for part in path.parts)
  return name.endswith('.png') and inside and short and '\0' not in name


def _write_names(target: epath.Path, names: set[str]) -> None:
  _write(target / FILES, (json.dumps(sorted(names), indent=0) + '\n').encode())


def _write(path: epath.Path, content: bytes) -> None:
  """Writes a whole file beside its place, then moves it there."""
  new = path if workdir.is_remote(path) else path.with_name(f'.{uuid.uuid4()}')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    new.write_bytes(content)
    if new != path:
      new.replace(path)
  except OSError as error:
    raise errors.UserError(
      f'Could not write {path}: {error.strerror or error}. What was made '
      'before stays.'
    ) from error


# --- Images ----------------------------------------------------------------


def _decoded(
  contents: Iterator[tuple[str, bytes]], unreadable: list[str]
) -> Iterator[tuple[str, Pixels]]:
  """Yields names and images in their own sizes."""
  for name, content in contents:
    try:
      image = decode.resized(content)
    except decode.CorruptImage:
      unreadable.append(name)
      continue
    yield name, image


@dataclasses.dataclass
class _Translator:
  """Translates images in batches of one size.

  Attributes:
    task: the run's task.
    variables: the generators' parameters.
    direction: 'a2b' or 'b2a'.
    max_size: see `run`.
    notes: gets a line for each image that is scaled down or does not fit.
  """

  task: cyclegan.CycleGAN
  variables: dict[str, Any]
  direction: str
  max_size: int
  notes: list[str]

  def __call__(
    self, images: Iterator[tuple[str, Pixels]]
  ) -> Iterator[tuple[str, Pixels, Pixels]]:
    """Yields name, original and translation of each image."""
    waiting = collections.defaultdict(list)
    for name, image in images:
      size = self._size(name, *image.shape[:2])
      waiting[size].append((name, image))
      fitting = int(_MEMORY / self._bytes(*size))
      if len(waiting[size]) >= min(
        self.task.evaluator.batch_size, fitting or 1
      ):
        yield from self._translate(size, waiting.pop(size))
    for size, batch in waiting.items():
      yield from self._translate(size, batch)

  def _translate(
    self, size: Size, batch: list[tuple[str, Pixels]]
  ) -> Iterator[tuple[str, Pixels, Pixels]]:
    images = np.stack([_resized(image, size) for _, image in batch])
    # Few different batch sizes, since each is a program of its own.
    rows = 1 << (len(batch) - 1).bit_length()
    images = np.pad(images, ((0, rows - len(batch)), *((0, 0),) * 3))
    try:
      made = self.task.translate(self.variables, images, self.direction)
      made = np.asarray(made)
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      for name, _ in batch:
        self.notes.append(
          f'{name}: {size[1]} x {size[0]} pixels are too many for the memory '
          'here; left out. Give a smaller --max_size.'
        )
      return
    for (name, before), after in zip(batch, made, strict=False):
      yield name, before, _resized(after, before.shape[:2])

  def _size(self, name: str, height: int, width: int) -> Size:
    """Returns the size in which the generator sees an image."""
    model = self.task.networks.generator
    scale = min(1, (self.max_size or math.inf) / max(height, width))
    if not self.max_size:
      ratio = _MEMORY / self._bytes(height, width)
      scale = min(1, ratio ** (1 / 4 if _is_spatial(model) else 1 / 2))
    inner = max(1, int(height * scale)), max(1, int(width * scale))
    size = generators.fitting_size(model, *inner)
    if scale < 1 and size != generators.fitting_size(model, height, width):
      self.notes.append(
        f'{name}: {width} x {height} pixels were translated at {size[1]} x '
        f'{size[0]} and scaled up again (see --max_size).'
      )
    return size

  def _bytes(self, height: int, width: int) -> float:
    """Returns about how large the generator's largest array is."""
    model = self.task.networks.generator
    if _is_spatial(model):  # attention of all tokens to all
      tokens = height * width / model.patch_size**2
      return 4 * model.num_heads * tokens**2
    return 4 * 64 * height * width


def _is_spatial(model: Any) -> bool:
  return isinstance(model, vitunet_spatial.SpatialViTUnet)


def _resized(image: Pixels, size: Size) -> Pixels:
  if image.shape[:2] == size:
    return image
  resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)
  return np.asarray(resized)


# --- Page ------------------------------------------------------------------


def _thumbnail(image: Pixels) -> str:
  """Returns a data URL of the image, shrunk to what the page shows."""
  small = Image.fromarray(image)
  small.thumbnail((_PAGE_PIXELS, _PAGE_PIXELS), Image.Resampling.BICUBIC)
  out = io.BytesIO()
  small.save(out, 'JPEG', quality=88)
  return f'data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}'


def _visible(name: str) -> str:
  """Replaces bytes of a name that aren't UTF-8 by a sign that can be seen."""
  return os.fsencode(name).decode(errors='replace')


def _page(
  domains: list[str],
  direction: str,
  pairs: list[_Pair],
  total: int,
  unreadable: list[str],
) -> str:
  source, target = domains if direction == 'a2b' else domains[::-1]
  return (
    templates.environment()
    .get_template('pairs.html')
    .render(
      source=_visible(source),
      target=_visible(target),
      direction=direction,
      pairs=pairs,
      total=total,
      unreadable=[_visible(name) for name in unreadable],
    )
  )
