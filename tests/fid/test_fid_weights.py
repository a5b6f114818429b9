"""Weights: PyTorch's formats without PyTorch, fetching, drawing, folding."""

import hashlib
import http.server
import importlib.util
import io
import os
import pickle
import threading
import zipfile

import numpy as np
import pytest

from tests.helpers import golden_params
from vit22b_jax import errors
from vit22b_jax.fid import extractor, inception_weights, torch_file

GOLDEN = golden_params.GOLDEN
FORMATS = ('zip', 'legacy')
FLOAT = np.arange(24, dtype=np.float32).reshape(4, 6)
# What torch saved in both formats, storages shared and of every kind.
EXPECTED = {
  'float': FLOAT,
  'view': FLOAT[1:3, ::2],
  'transposed': FLOAT.T,
  'double': np.array([[1.5, -2.0]]),
  'half': np.array([0.5, 3], np.float16),
  'bfloat16': np.array([1, -2.5], torch_file._DTYPES['BFloat16Storage']),
  'long': np.array(7),
  'int': np.array([-3, 4], np.int32),
  'byte': np.array([0, 255], np.uint8),
  'bool': np.array([True, False]),
  'empty': np.zeros((0, 3), np.float32),
  'parameter': np.array([1, 2], np.float32),
  'bn.weight': np.ones(2, np.float32),
  'bn.bias': np.zeros(2, np.float32),
  'bn.running_mean': np.full(2, 0.25, np.float32),
  'bn.running_var': np.ones(2, np.float32),
  'bn.num_batches_tracked': np.array(0),
}


@pytest.mark.parametrize('kind', FORMATS)
def test_reads_what_torch_writes(kind):
  found = torch_file.read(GOLDEN / f'torch_{kind}.pt')
  assert list(found) == list(EXPECTED)
  for name, array in EXPECTED.items():
    assert found[name].dtype == array.dtype, name
    np.testing.assert_array_equal(found[name], array, err_msg=name)


class Touch:
  """A pickle that makes a file when it is loaded by pickle itself."""

  def __init__(self, path):
    self._path = path

  def __reduce__(self):
    return os.mkdir, (str(self._path),)


def as_zip(pickled):
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as archive:
    archive.writestr('archive/data.pkl', pickled)
  return out.getvalue()


def as_legacy(pickled):
  parts = torch_file._LEGACY_MAGIC, 1001, {'little_endian': True}
  return b''.join(map(pickle.dumps, parts)) + pickled + pickle.dumps([])


@pytest.mark.parametrize('wrap', [as_zip, as_legacy])
def test_runs_nothing_that_a_file_asks_for(wrap, tmp_path):
  trap = tmp_path / 'trap'
  pickled = pickle.dumps({'weight': Touch(trap)})
  pickle.loads(pickled)
  trap.rmdir()  # so it would have worked
  (tmp_path / 'evil.pt').write_bytes(wrap(pickled))
  with pytest.raises(errors.UserError, match=r'mkdir.*only tensors are read'):
    torch_file.read(tmp_path / 'evil.pt')
  assert not trap.exists()


@pytest.mark.parametrize('kind', FORMATS)
def test_damage_is_one_clear_error(kind, tmp_path):
  whole = (GOLDEN / f'torch_{kind}.pt').read_bytes()
  path = tmp_path / 'damaged.pt'
  for size in (0, 1, 40, len(whole) // 2, len(whole) - 3):
    path.write_bytes(whole[:size])
    with pytest.raises(errors.UserError, match=r'damaged\.pt'):
      torch_file.read(path)


def test_a_view_stays_within_its_storage(tmp_path):
  # FLOAT's shape (4, 6), as pickle writes it, made (5, 6).
  whole = (GOLDEN / 'torch_legacy.pt').read_bytes()
  assert b'K\x04K\x06\x86' in whole
  path = tmp_path / 'wide.pt'
  path.write_bytes(whole.replace(b'K\x04K\x06\x86', b'K\x05K\x06\x86', 1))
  with pytest.raises(errors.UserError, match='only 24 numbers'):
    torch_file.read(path)


def test_a_huge_view_of_few_numbers_is_refused(tmp_path):
  """Strides of 0 would make it valid, and a copy of it fill the memory."""
  whole = (GOLDEN / 'torch_legacy.pt').read_bytes()
  strides = b'K\x06K\x01\x86'  # of FLOAT
  place = whole.index(b'K\x04K\x06\x86')
  assert whole[place:].find(strides) < 20
  huge = b'\x8a\x05' + (10**10).to_bytes(5, 'little')
  head, tail = whole[:place], whole[place + 5 :]
  tail = tail.replace(strides, b'K\x00K\x00\x86', 1)
  path = tmp_path / 'huge.pt'
  path.write_bytes(head + huge + b'K\x06\x86' + tail)
  with pytest.raises(errors.UserError, match=r'60000000000|10000000000, 6\]'):
    torch_file.read(path)


@pytest.mark.parametrize('content', [[1], {'step': 3}, {'model': {}}])
def test_other_contents_are_refused(content, tmp_path):
  path = tmp_path / 'other.pt'
  path.write_bytes(as_zip(pickle.dumps(content)))
  with pytest.raises(errors.UserError, match='else than a state_dict'):
    torch_file.read(path)


def test_no_such_file_and_no_such_seed(tmp_path):
  os.mkfifo(tmp_path / 'pipe.pth')  # to open it waits for ever
  for name in ('missing.pth', str(tmp_path / 'pipe.pth')):
    with pytest.raises(errors.UserError, match=r"no such file.*'random:SEED'"):
      inception_weights.load(name)
  with pytest.raises(errors.UserError, match='whole number'):
    inception_weights.load('random:x')
  with pytest.raises(errors.UserError, match='whole number'):
    inception_weights.load('random:²')  # a digit, and no number


def test_drawn_weights_are_the_recipe_of_the_golden_files():
  _, config = golden_params.load('inception_fid')
  shapes = inception_weights.shapes(('logits',))
  listed = {
    name: tuple(shape)
    for name, shape in config['shapes'].items()
    if not name.endswith('num_batches_tracked')
  }
  assert shapes == listed
  # Two numbers of the recipe, worked out step by step.
  digest = hashlib.sha256(b'1/Conv2d_1a_3x3.bn.running_var').digest()
  seed = int.from_bytes(digest[:8], 'little')
  a = np.random.Generator(np.random.PCG64(seed)).standard_normal(32)
  found = inception_weights.draw('1', 'Conv2d_1a_3x3.bn.running_var', (32,))
  np.testing.assert_allclose(found, 1 + 0.25 * np.tanh(a), rtol=1e-6)


def test_batch_norm_is_folded():
  arrays = {
    name: inception_weights.draw('3', name, shape)
    for name, shape in inception_weights.shapes(('64',)).items()
  }
  params = inception_weights.convert(arrays, ('64',), 'drawn')
  assert sorted(params) == ['Conv2d_1a_3x3', 'Conv2d_2a_3x3', 'Conv2d_2b_3x3']
  x = np.random.default_rng(0).standard_normal((3, 3, 3))  # one window, HWC
  p = {k.split('.', 1)[1]: v for k, v in arrays.items() if '_1a_' in k}
  y = np.einsum('hwc,fchw->f', x, p['conv.weight'])
  y = (y - p['bn.running_mean']) / np.sqrt(p['bn.running_var'] + 1e-3)
  y = y * p['bn.weight'] + p['bn.bias']
  ours = params['Conv2d_1a_3x3']
  folded = np.einsum('hwc,hwcf->f', x, ours['kernel']) + ours['bias']
  np.testing.assert_allclose(folded, y, rtol=1e-5, atol=1e-6)


def test_weights_of_something_else_are_refused():
  arrays = {
    n: np.zeros(s) for n, s in inception_weights.shapes(('64',)).items()
  }
  missing = dict(arrays)
  del missing['Conv2d_2a_3x3.bn.bias']
  with pytest.raises(errors.UserError, match=r'2a_3x3\.bn\.bias.*nothing'):
    inception_weights.convert(missing, ('64',), 'x.pth')
  wrong = arrays | {'Conv2d_2a_3x3.conv.weight': np.zeros((32, 32, 5, 5))}
  with pytest.raises(errors.UserError, match=r'\[32, 32, 3, 3\].*5, 5'):
    inception_weights.convert(wrong, ('64',), 'x.pth')


# --- The public release ------------------------------------------------------


@pytest.fixture
def release(monkeypatch, tmp_path):
  """A web server with a release of a few bytes, and an empty cache."""
  served = {'content': b'weights', 'requests': 0}

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      served['requests'] += 1
      self.send_response(200)
      self.end_headers()
      self.wfile.write(served['content'])

    def log_message(self, *_):
      pass

  server = http.server.HTTPServer(('127.0.0.1', 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  for name in list(os.environ):
    if name.lower().endswith('_proxy'):
      monkeypatch.delenv(name)
  monkeypatch.setenv('VIT22B_JAX_CACHE', str(tmp_path / 'cache'))
  url = f'http://127.0.0.1:{server.server_port}/release/weights.pth'
  monkeypatch.setattr(inception_weights, 'URL', url)
  monkeypatch.setattr(inception_weights, 'NUM_BYTES', 7)
  monkeypatch.setattr(
    inception_weights, 'SHA256', hashlib.sha256(b'weights').hexdigest()
  )
  yield served
  server.shutdown()
  server.server_close()


def test_fetches_once_and_whole(release, tmp_path):
  path = inception_weights.fetch()
  assert path == inception_weights.fetch() == inception_weights.cached_path()
  # Whoever shares the cache may read it, as the umask says.
  umask = os.umask(0)
  os.umask(umask)
  assert os.stat(path).st_mode & 0o777 == 0o666 & ~umask
  assert path.read_bytes() == b'weights'
  assert release['requests'] == 1
  assert [p.name for p in (tmp_path / 'cache').iterdir()] == ['weights.pth']


@pytest.mark.parametrize('content', [b'weighty', b'weight', b''])
def test_what_is_not_the_release_is_not_kept(release, content, tmp_path):
  release['content'] = content
  with pytest.raises(errors.UserError, match=r'is not the release.*SHA-256'):
    inception_weights.fetch()
  assert list((tmp_path / 'cache').iterdir()) == []


def test_a_cut_off_cache_is_fetched_again(release):
  inception_weights.cached_path().parent.mkdir(parents=True)
  inception_weights.cached_path().write_bytes(b'weig')
  assert inception_weights.fetch().read_bytes() == b'weights'


def test_no_network_says_what_to_fetch_and_where_to_put_it(
  release, monkeypatch, tmp_path
):
  monkeypatch.setattr(
    inception_weights, 'URL', 'http://127.0.0.1:9/weights.pth'
  )
  with pytest.raises(errors.UserError) as caught:
    inception_weights.load('')
  for part in (
    inception_weights.URL,
    '7 bytes',
    inception_weights.SHA256,
    inception_weights.cached_path(),
  ):
    assert str(part) in str(caught.value)
  assert str(inception_weights.cached_path()).startswith(str(tmp_path))


def test_a_name_promises_its_hash(tmp_path):
  path = tmp_path / 'pt_inception-2015-12-05-6726825d.pth'
  path.write_bytes((GOLDEN / 'torch_zip.pt').read_bytes())
  with pytest.raises(errors.UserError, match=r'damaged.*promises.*6726825d'):
    inception_weights.load(str(path))


def test_the_public_hash_is_what_calibrates(monkeypatch, tmp_path):
  path = tmp_path / 'any-20151205.pt'  # a date, which promises nothing
  path.write_bytes(b'x')
  arrays = {
    name: inception_weights.draw('0', name, shape)
    for name, shape in inception_weights.shapes(('64',)).items()
  }
  monkeypatch.setattr(torch_file, 'read', lambda _: arrays)
  settings = extractor.Settings(str(path), 64)
  assert not extractor.Extractor(settings).facts['calibrated']
  digest = hashlib.sha256(b'x').hexdigest()
  monkeypatch.setattr(inception_weights, 'SHA256', digest)
  facts = extractor.Extractor(settings).facts
  assert (facts['weights_sha256'], facts['calibrated']) == (digest, True)


def test_the_real_release_is_as_published():
  assert inception_weights.URL.endswith('-6726825d.pth')
  assert inception_weights.SHA256.startswith('6726825d')
  assert (len(inception_weights.SHA256), inception_weights.NUM_BYTES) == (
    64,
    95_628_359,
  )


@pytest.mark.slow
@pytest.mark.parametrize('kind', FORMATS)
def test_reads_files_of_the_torch_at_hand(kind, tmp_path):
  if importlib.util.find_spec('torch') is None:
    pytest.skip('torch is in the extra `peers`')
  import torch

  torch.manual_seed(0)
  model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 5, (3, 7)), torch.nn.BatchNorm2d(5).double()
  )
  path = tmp_path / 'model.pt'
  torch.save(
    model.state_dict(), path, _use_new_zipfile_serialization=kind == 'zip'
  )
  found = torch_file.read(path)
  assert list(found) == list(model.state_dict())
  for name, tensor in model.state_dict().items():
    np.testing.assert_array_equal(found[name], tensor.numpy())
    assert found[name].dtype == tensor.numpy().dtype
