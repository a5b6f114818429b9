"""Readers of a run's files: each damage is one message with file and place."""

import io
import json
import os
import pathlib
import zipfile

import numpy as np
import pytest

from tests.helpers import report_fixtures
from vit22b_jax import errors, report
from vit22b_jax.runtime import formats, runs, workdir

SIDE = (
  'versions.json',
  'classes.json',
  'metrics.jsonl',
  'diagnostics.csv',
  'events.jsonl',
  'eval.json',
  'predictions.npz',
  'attention.npz',
)
VALUES = (
  *('null', '1', '-1', '1.5', '1e999', 'true', '"x"', '""', '[]', '{}'),
  *('[1]', '["x"]', '{"step": 1}', 'NaN', '1' * 400, '[' * 9_999),
  *('"\\ud800"', '{"a": {"b": [[]]}}'),
)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run of each task with all of its files."""
  folder = tmp_path_factory.mktemp('runs')
  run = report_fixtures.make(
    folder / 'classifier', steps=60, depth=2, explode_at=30
  )
  (run / 'classes.json').write_text(json.dumps(report_fixtures.CLASSES))
  other = report_fixtures.make_translation(
    folder / 'translation', steps=50, every=50, pixels=4, images=1
  )
  return [run, other]


@pytest.fixture
def run(whole, tmp_path):
  return copy(whole[0], tmp_path / 'run')


def copy(source, target):
  for path in source.rglob('*'):
    if path.is_file():
      place = target / path.relative_to(source)
      place.parent.mkdir(parents=True, exist_ok=True)
      place.write_bytes(path.read_bytes())
  return target


def damaged(rng: np.random.Generator, content: bytes) -> bytes:
  """Returns the content with one fault of the kinds that occur."""
  kind = rng.integers(6)
  place = int(rng.integers(len(content) + 1))
  if kind == 0:
    return content[:place]
  if kind == 1:  # flipped bits
    found = bytearray(content or b'x')
    found[place % len(found)] ^= 1 << rng.integers(8)
    return bytes(found)
  if kind == 2:  # bytes put in
    return content[:place] + rng.bytes(4) + content[place:]
  if kind == 3:  # a line lost
    lines = content.split(b'\n')
    lines.pop(rng.integers(len(lines)))
    return b'\n'.join(lines)
  value = VALUES[rng.integers(len(VALUES))].encode()
  if kind == 4:
    return value + b'\n'
  # A value of another type in place of one.
  ends = [i for i, c in enumerate(content) if c in b',}']
  if not ends:
    return value
  end = ends[rng.integers(len(ends))]
  start = max(content.rfind(c, 0, end) for c in (b':', b',', b'['))
  return content[: start + 1] + value + content[end:]


@pytest.mark.parametrize('seed', range(20))
def test_damage_ends_in_one_message_and_never_ends_the_report(
  whole, tmp_path, seed
):
  rng = np.random.default_rng(seed)
  for number in range(15):
    source = whole[rng.integers(2)]
    path = copy(source, tmp_path / str(number))
    files = [n for n in (*SIDE, 'config.json') if (path / n).exists()]
    name = files[rng.integers(len(files))]
    (path / name).write_bytes(damaged(rng, (path / name).read_bytes()))
    try:
      runs.read(path)
      error = None
    except errors.UserError as found:
      error = str(found)
      assert str(path) in error and '\n' not in error
    try:
      page = report.write(path).read_text()
    except errors.UserError:
      assert name == 'config.json'
      continue
    assert bool(error) == ('could not be read' in page)


@pytest.mark.parametrize(
  'name, content, message',
  [
    ('metrics.jsonl', '{"step": 1}\n[1]\n', r'line 2: \[1\], expected an obj'),
    (
      'metrics.jsonl',
      '{"step": "x"}\n',
      "line 1: 'step' is 'x', expected a wh",
    ),
    ('metrics.jsonl', '{"step": 1, "a": []}\n', r"'a' is \[\], expected a num"),
    ('events.jsonl', '{"step": 1}\n', "line 1: 'kind' is missing"),
    ('diagnostics.csv', 'step,a\n1,2,3\n', 'line 2: 3 fields, expected 2'),
    ('diagnostics.csv', 'step,a\n1,x\n', "line 2: could not convert .*'x'"),
    (
      'diagnostics.csv',
      'step,a\n1.5,1\n',
      'line 2: step 1.5, expected a',
    ),
    (
      'diagnostics.csv',
      'a,step\n1,1\n',
      "expected the names .*'step'",
    ),
    (
      'eval.json',
      '{"split": "test", "step": 1, "weights": "ema", "num_examples": 2,'
      ' "top1": -3}',
      "'top1' is -3, expected a part",
    ),
    ('eval.json', '[]', r'\[\], expected an object'),
    ('eval.json', '{"split": "test"}', "'step' is missing"),
    (
      'versions.json',
      '{"parameters": -1}',
      "'parameters' is -1, expected",
    ),
    ('versions.json', '{"devices": "x"}', "'devices' is 'x', expected a list"),
    ('classes.json', '{"a": 1}', 'expected a list of texts'),
    ('classes.json', '[1]', 'expected a list of texts'),
    ('predictions.npz', 'PK', 'not a zip file'),
    ('config.json', '[', 'Expecting value'),
  ],
)
def test_messages_name_the_place(run, name, content, message):
  (run / name).write_text(content)
  with pytest.raises(errors.UserError, match=f'{name} is damaged .*{message}'):
    runs.read(run)


def test_config_json_of_other_values(run):
  config = json.loads((run / 'config.json').read_text())
  for key, value, message in (
    ('task', 1, 'task=1 is not one of'),
    ('batch_size', 'many', "batch_size='many' must be a whole number"),
    ('duration', 'soon', "duration 'soon'"),
    ('data', [], 'there is no key data'),
    ('model', {'block': 1}, 'the key model.attention is missing'),
    ('seed', [], r'seed=\(\) must be'),
  ):
    (run / 'config.json').write_text(json.dumps(config | {key: value}))
    with pytest.raises(errors.UserError, match=message):
      report.write(run)


def npz(**arrays) -> bytes:
  out = io.BytesIO()
  np.savez(out, **arrays)
  return out.getvalue()


def test_arrays_of_other_shapes_and_kinds(run):
  content = dict(np.load(run / 'predictions.npz'))
  for name, array, message in (
    ('labels', np.array(['x']), 'expected a kind of'),
    ('labels', np.zeros((24, 2), int), r"of shape \(24, 2\), expected 'N'"),
    ('labels', np.zeros(3, int), 'probabilities'),
    ('labels', np.full(24, 10), "'labels' has values outside 0 to 9"),
    ('labels', np.full(24, -1), "'labels' has values outside 0 to 9"),
    ('images', np.zeros((24, 4, 4, 1), np.uint8), "expected 'M H W 3'"),
    ('confusion', np.zeros((10, 9), int), "expected 'C C'"),
    ('confusion', np.array([{}]), 'Object arrays'),
  ):
    changed = npz(**content | {name: array})
    (run / 'predictions.npz').write_bytes(changed)
    with pytest.raises(
      errors.UserError, match=rf'predictions\.npz .*{message}'
    ):
      runs.read(run)


@pytest.mark.parametrize('length', [10**9, 10**15])
def test_a_header_of_many_numbers_is_not_believed(run, length):
  header = io.BytesIO()
  about = {'descr': '<f4', 'fortran_order': False, 'shape': (length, 10)}
  np.lib.format.write_array_header_1_0(header, about)
  with zipfile.ZipFile(run / 'predictions.npz', 'w') as archive:
    archive.writestr('probabilities.npy', header.getvalue())
  with pytest.raises(errors.UserError, match=r'got 0|Unable to allocate'):
    runs.read(run)


@pytest.mark.parametrize('make', [os.mkdir, os.mkfifo])
def test_a_folder_or_a_pipe_in_place_of_a_file(run, make):
  (run / 'eval.json').unlink()
  make(run / 'eval.json')
  with pytest.raises(errors.UserError, match='could not be read: no regular'):
    runs.read(run)


def test_resuming_on_a_damaged_table_names_the_line(run):
  text = (run / 'metrics.jsonl').read_text().split('\n')
  (run / 'metrics.jsonl').write_text('\n'.join([text[0], '{', '']))
  with pytest.raises(errors.UserError, match=r'metrics\.jsonl .*line 2'):
    workdir.Workdir(run).truncate(10)


def test_names_that_are_no_text_are_written_escaped(tmp_path):
  names = [b'caf\xe9'.decode('utf-8', 'surrogateescape'), 'dog']
  path = report_fixtures.make(tmp_path / 'run', steps=60, classes=names)
  (path / 'classes.json').write_text(json.dumps(names))
  assert runs.read(path).names == [r'caf\udce9', 'dog']
  assert r'caf\udce9' in report.write(path).read_text()
  folder = pathlib.Path(str(tmp_path / 'caf') + '\udce9')
  copy(path, folder)
  html = report.compare([path, folder], tmp_path / 'comparison.html')
  assert r'caf\udce9' in html.read_text()


def test_json_has_no_numbers_that_are_not_finite():
  content = {'a': [float('nan'), {'b': float('-inf')}], 'c': 1.0}
  assert formats.strict(content) == {'a': ['nan', {'b': '-inf'}], 'c': 1.0}
