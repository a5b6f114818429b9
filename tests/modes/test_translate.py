"""Folders of images: names, sizes, the page, and what can't be read.

The generator inverts colours: which image became which can be seen.
"""

import json
import os
import types

import jax
import numpy as np
import pytest
from PIL import Image

from configs import common
from vit22b_jax import errors
from vit22b_jax.models import generators
from vit22b_jax.modes import translate
from vit22b_jax.runtime import workdir
from vit22b_jax.tasks import cyclegan


class Task(cyclegan.CycleGAN):
  """A translation that was told what its networks do."""

  def __init__(self, generator):
    words = 'resnet,tiny' if generator == 'resnet' else 'tiny'
    config = common.finish(common.translation(), words)
    model = generators.build(dict(config.model), config.data.image_size)
    self.config = config
    self.networks = types.SimpleNamespace(generator=model)
    self.names = ['day', 'night']
    self.evaluator = types.SimpleNamespace(batch_size=3)
    self.batches = []

  def translate(self, variables, images, direction):
    assert images.dtype == np.uint8
    self.batches.append((images.shape, direction))
    return 255 - images


def save(path, size, seed=0, **kwargs):
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
  Image.fromarray(pixels).save(path, **kwargs)
  return pixels


def opened(path):
  return np.asarray(Image.open(path))


@pytest.fixture
def out(tmp_path):
  return tmp_path / 'translated_a2b'


@pytest.fixture
def run(tmp_path):
  def translated(task, given, direction='a2b', **kwargs):
    folder = workdir.Workdir(tmp_path)
    return translate.run(task, {}, given, direction, folder, **kwargs)

  return translated


def test_every_image_becomes_a_png_of_its_name_and_size(tmp_path, run, out):
  source, target = tmp_path / 'in', out
  sizes = {'a.png': (24, 32), 'b/c.png': (16, 8), 'd.webp': (24, 32)}
  saved = {
    name: save(source / name, size, i, lossless=True)
    for i, (name, size) in enumerate(sizes.items())
  }
  task = Task('resnet')
  done = run(task, source)
  assert done.files == ['a.png', 'b/c.png', 'd.png']
  assert done.notes == []
  for name, png in zip(saved, done.files, strict=True):
    np.testing.assert_array_equal(opened(target / png), 255 - saved[name])
  # Images of a size go together.
  assert task.batches == [((2, 24, 32, 3), 'a2b'), ((1, 16, 8, 3), 'a2b')]


def test_sizes_that_do_not_divide_lose_no_pixel(tmp_path, run, out):
  odd = save(tmp_path / 'in/odd.png', (31, 17))
  other = save(tmp_path / 'in/other.png', (30, 20), 1)
  dot = save(tmp_path / 'in/dot.png', (1, 1), 2)
  task = Task('resnet')
  done = run(task, tmp_path / 'in')
  shapes = [shape for shape, _ in task.batches]
  assert sorted(shapes) == [(1, 8, 8, 3), (2, 32, 20, 3)] and not done.notes
  for name, pixels in (('odd', odd), ('other', other), ('dot', dot)):
    np.testing.assert_array_equal(opened(out / f'{name}.png'), 255 - pixels)


def test_transparency_is_kept(tmp_path, run, out):
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (16, 24, 4), np.uint8)
  rgba, opacity = Image.fromarray(pixels.copy()), pixels[..., 3].copy()
  (tmp_path / 'in').mkdir()
  rgba.save(tmp_path / 'in/a.png')
  rgba.save(tmp_path / 'in/b.webp', lossless=True, exact=True)
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned clockwise
  rgba.save(tmp_path / 'in/c.png', exif=exif)
  Image.fromarray(pixels[..., 0]).save(tmp_path / 'in/d.png', transparency=7)
  pixels[..., 3] = 255
  Image.fromarray(pixels).save(tmp_path / 'in/opaque.png')
  done = run(Task('resnet'), tmp_path / 'in')
  np.testing.assert_array_equal(opened(out / 'a.png')[..., 3], opacity)
  np.testing.assert_array_equal(opened(out / 'b.png')[..., 3], opacity)
  turned = np.rot90(opacity, -1)
  np.testing.assert_array_equal(opened(out / 'c.png')[..., 3], turned)
  gray = np.where(pixels[..., 0] == 7, 0, 255)
  np.testing.assert_array_equal(opened(out / 'd.png')[..., 3], gray)
  assert opened(out / 'opaque.png').shape == (16, 24, 3)
  # The generator, which inverts, saw the image over white.
  clear = opacity == 0
  assert clear.any() and not opened(out / 'a.png')[clear, :3].any()
  assert len(done.files) == 5 and not done.notes


def test_a_generator_of_one_size_gets_that_and_the_original_size_returns(
  tmp_path, run, out
):
  for i in range(4):
    save(tmp_path / f'in/{i}.png', (40 + i, 60), i)
  flat = np.full((50, 20, 3), 200, np.uint8)
  Image.fromarray(flat).save(tmp_path / 'in/flat.png')
  task = Task('vitunet')
  done = run(task, tmp_path / 'in')
  # Batches of 3; the rest of 2 needs no padding to a power of 2.
  assert [shape for shape, _ in task.batches] == [
    (4, 32, 32, 3),
    (2, 32, 32, 3),
  ]
  assert done.files == ['0.png', '1.png', '2.png', '3.png', 'flat.png']
  assert opened(out / '3.png').shape == (43, 60, 3)
  np.testing.assert_array_equal(opened(out / 'flat.png'), 255 - flat)
  (note,) = done.notes  # one for all, however many there are
  assert note.startswith('5 larger images were translated at 32 x 32')


def test_few_images_wait_for_others_of_their_size(tmp_path, run, monkeypatch):
  monkeypatch.setattr(translate, '_WAITING', 2)
  for i, height in enumerate((16, 20, 24, 16, 20)):
    save(tmp_path / f'in/{i}.png', (height, 16), i)
  task = Task('resnet')
  done = run(task, tmp_path / 'in')
  assert done.files == [f'{i}.png' for i in range(5)]
  heights = [shape[1] for (shape, _) in task.batches]
  assert heights == [20, 24, 16, 20]  # two of 16 went together


def test_unreadable_files_are_listed_and_not_fatal(tmp_path, run):
  save(tmp_path / 'in/good.jpg', (16, 16))
  (tmp_path / 'in/bad.jpg').write_bytes(b'not an image')
  done = run(Task('resnet'), tmp_path / 'in')
  assert done.files == ['good.png']
  (note,) = done.notes
  assert note.startswith('bad.jpg could not be read (no image, or of a format')
  assert note in done.page.read_text()


def test_two_inputs_never_share_an_output(tmp_path, run, out):
  names = ('x.jpg', 'x.jpg.png', 'x.png', 'y.bmp')
  for i, name in enumerate(names):
    save(tmp_path / 'in' / name, (16, 16), i)
  done = run(Task('resnet'), tmp_path / 'in')
  made = ['x.jpg.png', 'x.jpg.png.png', 'x.png.png', 'y.png']
  assert done.files == made
  for name, png in zip(names[1:3], made[1:3], strict=True):
    before = opened(tmp_path / 'in' / name)
    np.testing.assert_array_equal(opened(out / png), 255 - before)


def test_names_differ_where_capitals_do_not_count():
  found = translate.output_names(['X.jpg', 'x.png', 'a/x.png'])
  assert list(found.values()) == ['X.jpg.png', 'x.png.png', 'a/x.png']


def test_an_over_long_name_is_shortened_and_harms_no_later_call(
  tmp_path, run, out
):
  long = f'{"ä" * 125}.png'
  for name in (long, f'{long[:124]}b.png', 'x.png'):
    save(tmp_path / 'in' / name, (16, 16))
  for _ in range(2):
    done = run(Task('resnet'), tmp_path / 'in')
    assert len(set(done.files)) == 3 and done.files[0] == 'x.png'
    there = {str(p.relative_to(out)) for p in out.rglob('*.png')}
    assert there == set(done.files)
  poisoned = json.dumps(['y' * 300 + '.png', 5, None, 'a\0.png', 'x.png'])
  for text in (poisoned, '{}', 'null', '[[', '[' * 100_000):
    (out / 'files.json').write_text(text)
    run(Task('resnet'), tmp_path / 'in')


def test_names_that_are_not_utf8_keep_their_bytes(tmp_path, run, out):
  name = os.fsdecode(b'caf\xe9\x1b[31m.png')
  save(tmp_path / 'in' / name, (16, 16))
  done = run(Task('resnet'), tmp_path / 'in')
  assert done.files == [name] and (out / name).exists()
  assert r'caf\udce9' in done.page.read_text()


def test_one_file_is_an_input_too(tmp_path, run):
  save(tmp_path / 'in/photo.jpg', (16, 16))
  save(tmp_path / 'in/other.jpg', (16, 16))
  done = run(Task('resnet'), tmp_path / 'in/photo.jpg')
  assert done.files == ['photo.png']


def test_too_large_an_image_is_scaled_and_said(tmp_path, run, out):
  pixels = save(tmp_path / 'in/large.png', (96, 128))
  save(tmp_path / 'in/small.png', (32, 32))
  task = Task('resnet')
  done = run(task, tmp_path / 'in', max_size=64)
  assert [shape for shape, _ in task.batches] == [
    (1, 48, 64, 3),
    (1, 32, 32, 3),
  ]
  assert opened(out / 'large.png').shape == pixels.shape
  (note,) = done.notes
  assert note.startswith(
    'large.png: 128 x 96 pixels were translated at 64 x 48'
  )


def test_memory_bounds_size_and_batch(tmp_path, run, monkeypatch):
  """A GiB of float32 attention: four heads of 8,192 tokens."""
  config = common.finish(common.translation(), 'tiny')
  config.model.resample = 'space'
  config.model.num_heads = 4
  task = Task('resnet')
  task.networks.generator = generators.build(dict(config.model), 32)
  assert task.networks.generator.patch_size == 4
  save(tmp_path / 'in/a.png', (900, 1200))
  save(tmp_path / 'in/b.png', (64, 64))
  done = run(task, tmp_path / 'in')
  (_, height, width, _), _ = task.batches[0]
  assert (height / 4) * (width / 4) <= 8192 < (height / 4 + 8) * (width / 4 + 8)
  assert 1.2 < width / height < 1.5
  assert len(done.notes) == 1 and done.files == ['a.png', 'b.png']


def test_what_exceeds_memory_is_left_out_by_name(tmp_path, run):
  class Full(Task):
    def translate(self, variables, images, direction):
      if images.shape[1] > 32:
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')
      return super().translate(variables, images, direction)

  save(tmp_path / 'in/large.png', (64, 64))
  with pytest.raises(errors.UserError, match=r'large.png: 64 x 64 .*max_size'):
    run(Full('resnet'), tmp_path / 'in')
  save(tmp_path / 'in/small.png', (16, 16))
  done = run(Full('resnet'), tmp_path / 'in')
  assert done.files == ['small.png']
  assert done.notes[0].startswith('large.png: 64 x 64 pixels are too many')


def test_results_within_the_input_folder_are_not_translated_again(
  tmp_path, run
):
  save(tmp_path / 'x.png', (16, 16))
  link = tmp_path.with_name(f'{tmp_path.name}_link')
  link.symlink_to(tmp_path)
  for given in (tmp_path, tmp_path, link, tmp_path / 'translated_a2b/..'):
    assert run(Task('resnet'), given).files == ['x.png']
  save(tmp_path / 'sub/y.png', (16, 16))
  assert run(Task('resnet'), tmp_path).files == ['sub/y.png', 'x.png']
  made = tmp_path / 'translated_a2b'
  for given in (made, made / 'sub'):
    with pytest.raises(errors.UserError, match='no readable image'):
      run(Task('resnet'), given)
  assert (made / 'sub/y.png').exists()


def test_a_folder_holds_what_the_last_call_made(tmp_path, run, out):
  source, target = tmp_path / 'in', out
  for name in ('a.png', 'b/c.png', 'd.png'):
    save(source / name, (16, 16))
  run(Task('resnet'), source)
  save(target / 'mine.png', (8, 8))
  save(tmp_path / 'other.png', (8, 8))
  names = json.loads((target / 'files.json').read_text())
  assert names == ['a.png', 'b/c.png', 'd.png']
  outside = [*names, '../other.png', str(tmp_path / 'other.png')]
  (target / 'files.json').write_text(json.dumps(outside))
  (source / 'a.png').unlink()
  (source / 'd.png').write_bytes(b'no image any more')
  save(source / 'e.png', (16, 16))
  done = run(Task('resnet'), source)
  assert done.files == ['b/c.png', 'e.png']
  assert done.notes[-1] == '2 images of an earlier call were removed.'
  there = {str(p.relative_to(target)) for p in target.rglob('*.png')}
  assert there == {*done.files, 'mine.png'}  # what others put there stays
  text = done.page.read_text()
  assert 'e.png before' in text and 'a.png' not in text
  assert (tmp_path / 'other.png').exists()
  # A call that finds nothing leaves everything.
  (tmp_path / 'empty').mkdir()
  with pytest.raises(errors.UserError, match=r'no readable image\.$'):
    run(Task('resnet'), tmp_path / 'empty')
  assert opened(target / 'e.png').shape == (16, 16, 3)
  assert done.page.read_text() == text


def test_the_page_needs_nothing_but_itself(tmp_path, run):
  save(tmp_path / 'in/<b>.png', (600, 300))
  page = run(Task('resnet'), tmp_path / 'in', 'b2a').page
  text = page.read_text()
  assert 'night to day' in text
  assert text.count('src="data:image/jpeg;base64,') == 2
  assert 'http://' not in text.replace('http-equiv', '')
  assert 'https://' not in text
  assert '<b>' not in text
  assert len(text) < 60_000  # pictures are shrunk


def test_what_can_not_be_translated_is_refused(tmp_path, run):
  task = Task('resnet')
  with pytest.raises(errors.UserError, match='not a folder'):
    run(task, tmp_path / 'missing')
  (tmp_path / 'bad.png').write_bytes(b'')
  with pytest.raises(
    errors.UserError, match=r'image:\n  bad.png could not be read \(empty\)'
  ):
    run(task, tmp_path)
  save(tmp_path / 'x.png', (16, 16))
  (tmp_path / 'translated_b2a').write_text('')
  with pytest.raises(errors.UserError, match='Could not write'):
    run(task, tmp_path, 'b2a')
