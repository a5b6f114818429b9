"""Checkpoints: exact, verified, put aside when damaged, best kept."""

import errno
import gc
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit22b_jax import errors
from vit22b_jax.runtime import checkpoint, checksums, sharding

# Orbax leaves coroutines of a read that failed behind; they complain when they
# are collected, which must not be in another test.
pytestmark = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)


@pytest.fixture(autouse=True)
def collect():
  yield
  gc.collect()


def _state(seed=0):
  keys = jax.random.split(jax.random.key(seed), 3)
  return {
    'step': jnp.asarray(seed, jnp.int32),
    'params': {
      'kernel': jax.random.normal(keys[0], (16, 24)),
      'bias': jax.random.normal(keys[1], (7,), jnp.bfloat16),
    },
    'flag': jnp.asarray(True),
    'ema': None,
  }


def _abstract(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )


def _equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def _save(manager, step):
  manager.save(step, _state(step), meta={})
  manager.wait()


def test_round_trip_with_meta(tmp_path):
  manager = checkpoint.Manager(tmp_path, scores={})
  manager.save(3, _state(), meta={'x': [1, 2.5]})
  manager.close()

  manager = checkpoint.Manager(tmp_path, scores={})
  found = manager.restore(_abstract(_state()))
  assert found.step == 3 and found.meta['x'] == [1, 2.5]
  _equal(found.state, _state())
  manager.close()


def test_state_may_be_donated_while_it_is_written(tmp_path):
  step = jax.jit(
    lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0
  )
  state = {'x': jnp.arange(3_000_000.0)}
  manager = checkpoint.Manager(tmp_path, scores={})
  manager.save(1, state, meta={})
  for _ in range(3):
    state = step(state)
  manager.wait()
  found = manager.restore(_abstract(state))
  np.testing.assert_array_equal(found.state['x'], np.arange(3_000_000.0))
  manager.close()


def _refuse(meta):
  raise errors.UserError('not mine')


def _largest_file(folder: pathlib.Path) -> pathlib.Path:
  files = [f for f in folder.rglob('*') if f.is_file()]
  return max(files, key=lambda f: f.stat().st_size)


def _damage(folder: pathlib.Path, how: str) -> None:
  if how == 'remove_part':
    shutil.rmtree(folder / 'meta')
    return
  file = _largest_file(folder / 'state')
  content = bytearray(file.read_bytes())
  if how == 'truncate':
    file.write_bytes(content[: len(content) // 2])
  elif how == 'flip':
    content[len(content) // 2] ^= 0x40
    file.write_bytes(content)
  else:
    file.unlink()


@pytest.mark.parametrize(
  'damage', ['truncate', 'flip', 'remove', 'remove_part']
)
def test_damaged_newest_is_put_aside_and_the_one_before_used(
  tmp_path, damage, caplog
):
  manager = checkpoint.Manager(tmp_path, scores={}, keep=3)
  for step in (1, 2):
    _save(manager, step)
  manager.close()
  _damage(tmp_path / 'checkpoints' / '2', damage)

  manager = checkpoint.Manager(tmp_path, scores={}, keep=3)
  found = manager.restore(_abstract(_state()))
  assert found.step == 1
  _equal(found.state, _state(1))
  assert str(tmp_path / 'checkpoints' / '2') in caplog.text
  assert (tmp_path / 'checkpoints_damaged' / '2').exists()
  _save(manager, 2)  # the step is free again
  assert manager.restore(_abstract(_state())).step == 2
  manager.close()


@pytest.mark.parametrize('read_only', [True, False])
@pytest.mark.parametrize('damage', ['flip', 'remove_part'])
def test_damaged_best_gives_way_to_the_newest(
  tmp_path, damage, read_only, caplog
):
  scores = {1: 0.9, 2: 0.1, 3: 0.2}
  manager = checkpoint.Manager(tmp_path, scores=scores, keep=2, keep_best=1)
  for step in scores:
    _save(manager, step)
  manager.close()
  best = tmp_path / 'checkpoints' / '1'
  _damage(best, damage)

  manager = checkpoint.Manager(
    tmp_path, scores=scores, keep=2, keep_best=1, read_only=read_only
  )
  assert manager.best_step() == 1
  found = manager.restore(_abstract(_state()), step=1)
  assert found.step == 3
  _equal(found.state, _state(3))
  assert f'{best} is damaged' in caplog.text
  assert 'Checkpoint 3 is used instead' in caplog.text
  assert best.exists() == read_only
  assert manager.best_step() == (1 if read_only else 3)
  manager.close()


def _rewrite_meta(step_folder, change):
  """Changes a checkpoint's JSON object, with a checksum that fits."""
  file = step_folder / 'meta' / 'metadata'
  meta = json.loads(file.read_text())
  change(meta)
  meta['checksum'] = checksums.of_json(meta)
  file.write_text(json.dumps(meta))


def test_a_checkpoint_under_another_number_is_not_believed(tmp_path, caplog):
  manager = checkpoint.Manager(tmp_path, scores={}, keep=3)
  for step in (1, 2):
    _save(manager, step)
  manager.close()
  folder = tmp_path / 'checkpoints'
  (folder / '2').rename(folder / '99')
  manager = checkpoint.Manager(tmp_path, scores={}, keep=3)
  assert manager.restore(_abstract(_state())).step == 1
  assert 'it is checkpoint 2 under another number' in caplog.text
  _save(manager, 2)
  assert manager.restore(_abstract(_state())).step == 2
  manager.close()


def test_a_checkpoint_of_a_version_that_named_no_step_is_restored(tmp_path):
  manager = checkpoint.Manager(tmp_path, scores={})
  _save(manager, 1)
  _rewrite_meta(tmp_path / 'checkpoints' / '1', lambda meta: meta.pop('step'))
  assert manager.restore(_abstract(_state())).step == 1
  manager.close()


def test_what_is_not_saved_is_told(tmp_path):
  manager = checkpoint.Manager(tmp_path, scores={})
  _save(manager, 5)
  with pytest.raises(errors.UserError, match='later checkpoint 5'):
    _save(manager, 3)
  manager.save(5, _state(), meta={'again': True})
  manager.wait()
  assert 'again' not in manager.restore(_abstract(_state())).meta
  manager.close()


def _fuzz():
  """Ways to damage a checkpoint: (file, what it holds then)."""
  files = (
    '_CHECKPOINT_METADATA',
    'meta/metadata',
    'state/_METADATA',
    'state/manifest.ocdbt',
    'state/array_metadatas/process_0',
  )
  contents = (None, b'', b'[]', b'null', b'{}', b'{"format": 1}', b'\xff\0')
  return [(file, content) for file in files for content in contents]


def test_no_damage_of_any_file_is_more_than_a_warning(tmp_path):
  """The checkpoint is restored whole, or the one before it."""
  manager = checkpoint.Manager(tmp_path / 'whole', scores={}, keep=3)
  for step in (1, 2):
    _save(manager, step)
  manager.close()
  used = []
  for i, (file, content) in enumerate(_fuzz()):
    shutil.copytree(tmp_path / 'whole', tmp_path / str(i))
    path = tmp_path / str(i) / 'checkpoints' / '2' / file
    assert path.exists(), file
    path.unlink() if content is None else path.write_bytes(content)
    manager = checkpoint.Manager(tmp_path / str(i), scores={}, keep=3)
    found = manager.restore(_abstract(_state()))
    _equal(found.state, _state(found.step))
    _save(manager, 3)
    manager.close()
    used.append(found.step)
  assert used.count(1) > len(used) / 3  # else nothing was damaged


def test_a_damaged_time_of_another_checkpoint_is_not_read(tmp_path):
  manager = checkpoint.Manager(tmp_path, scores={}, keep=3)
  for step in (1, 2):
    _save(manager, step)
  manager.close()
  _damage(tmp_path / 'checkpoints' / '2', 'remove_part')
  (tmp_path / 'checkpoints' / '1' / '_CHECKPOINT_METADATA').write_text('[]')
  manager = checkpoint.Manager(tmp_path, scores={}, keep=3)
  assert manager.restore(_abstract(_state())).step == 1
  _save(manager, 2)
  manager.close()


@pytest.mark.parametrize('missing', ['checksums', 'shapes', 'format'])
def test_a_json_object_without_its_checksums_is_damaged(
  tmp_path, missing, caplog
):
  manager = checkpoint.Manager(tmp_path, scores={}, keep=3)
  for step in (1, 2, 3):
    _save(manager, step)
  folder = tmp_path / 'checkpoints'
  _rewrite_meta(folder / '3', lambda meta: meta.pop(missing))
  _rewrite_meta(folder / '2', lambda meta: meta['checksums'].popitem())
  assert manager.restore(_abstract(_state())).step == 1
  assert caplog.text.count('its JSON object has no') == 2
  manager.close()


@pytest.mark.parametrize('kind', ['file', 'loop', 'dangling'])
def test_checkpoints_that_are_no_folder_are_refused(tmp_path, kind):
  folder = tmp_path / 'checkpoints'
  if kind == 'file':
    folder.write_text('')
  else:
    folder.symlink_to(folder if kind == 'loop' else tmp_path / 'nowhere')
  with pytest.raises(errors.UserError, match='should be the folder of check'):
    checkpoint.Manager(tmp_path, scores={})


@pytest.mark.parametrize(
  ('error', 'message'),
  [
    (OSError(errno.ENOSPC, 'No space left on device'), 'Make room'),
    (OSError(errno.EROFS, 'Read-only file system'), 'Make it writable'),
    (OSError(errno.EIO, 'Input/output error'), r'error\. The checkpoints'),
    (ValueError("RESOURCE_EXHAUSTED: ... os_error_code='28'"), 'Make room'),
  ],
)
def test_errors_of_the_disk_say_what_they_are(
  tmp_path, monkeypatch, error, message
):
  manager = checkpoint.Manager(tmp_path, scores={})

  def wait():
    raise error

  with monkeypatch.context() as patch:
    patch.setattr(manager._manager, 'wait_until_finished', wait)
    with pytest.raises(errors.UserError, match=message):
      manager.wait()
  manager.close()


@pytest.mark.parametrize(
  'error',
  [
    OSError(errno.EIO, 'Input/output error'),
    ValueError("UNKNOWN: Error reading from open file: [os_error_code='5']"),
    MemoryError(),
    ValueError('UNAVAILABLE: connection reset'),
    jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory'),
  ],
)
def test_what_may_pass_damages_no_checkpoint(tmp_path, monkeypatch, error):
  manager = checkpoint.Manager(tmp_path, scores={}, keep=3)
  for step in (1, 2):
    _save(manager, step)

  def read(*_):
    raise error

  with monkeypatch.context() as patch:
    patch.setattr(manager, '_read', read)
    with pytest.raises(errors.UserError, match='nothing was moved: try again'):
      manager.restore(_abstract(_state()))
  assert not (tmp_path / 'checkpoints_damaged').exists()
  assert manager.restore(_abstract(_state())).step == 2
  manager.close()


def test_no_usable_checkpoint_is_an_error(tmp_path):
  manager = checkpoint.Manager(tmp_path, scores={})
  _save(manager, 1)
  _largest_file(tmp_path / 'checkpoints' / '1' / 'state').write_bytes(b'')
  with pytest.raises(errors.UserError, match='can be read'):
    manager.restore(_abstract(_state()))
  manager.close()


def test_unfinished_save_is_never_taken_for_a_whole_one(tmp_path):
  manager = checkpoint.Manager(tmp_path, scores={})
  _save(manager, 1)
  manager.close()
  folder = tmp_path / 'checkpoints'
  (folder / '2.orbax-checkpoint-tmp-7' / 'state').mkdir(parents=True)
  manager = checkpoint.Manager(tmp_path, scores={})
  assert manager.restore(_abstract(_state())).step == 1
  manager.close()


@pytest.mark.parametrize(('loss', 'best'), [(-0.5, 4), (-0.6, 2)])
def test_keeps_the_last_and_the_best(tmp_path, loss, best):
  """Of equal scores the lower loss decides, then the later step."""
  scores = {}
  manager = checkpoint.Manager(tmp_path, scores=scores, keep=2, keep_best=1)
  assert manager.best_step() is None
  for step, value in enumerate([0.1, 0.9, 0.3, 0.9, 0.4, None], start=1):
    if value is not None:
      scores[step] = value, loss if step == 4 else -0.5
    _save(manager, step)
  kept = sorted(int(p.name) for p in (tmp_path / 'checkpoints').iterdir())
  assert kept == [best, 5, 6] and manager.best_step() == best
  manager.close()


def test_restore_of_a_part_and_of_other_arrays(tmp_path):
  manager = checkpoint.Manager(tmp_path, scores={})
  _save(manager, 1)
  abstract = _abstract(_state())
  part = manager.restore({'params': abstract['params'], 'ema': None})
  _equal(part.state['params'], _state(1)['params'])
  with pytest.raises(errors.UserError, match='other'):
    manager.restore({'other': abstract['params']})
  larger = jax.ShapeDtypeStruct((17, 24), jnp.float32)
  with pytest.raises(errors.UserError, match=r'\[17, 24\]'):
    manager.restore({'params': {'kernel': larger}})
  with pytest.raises(errors.UserError, match='not mine'):
    manager.restore(abstract, check=_refuse)
  assert manager.restore(abstract).step == 1  # nothing was moved
  manager.close()


@pytest.mark.parametrize('shapes', [((8, 1), (1, 1)), ((1, 1), (2, 2))])
def test_restore_on_another_number_of_devices(tmp_path, shapes):
  def placed(shape):
    devices = np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape)
    mesh = jax.sharding.Mesh(devices, ('fsdp', 'tensor'))
    spec = jax.sharding.PartitionSpec('fsdp', 'tensor')
    return jax.sharding.NamedSharding(mesh, spec)

  value = jax.random.normal(jax.random.key(1), (16, 24))
  manager = checkpoint.Manager(tmp_path, scores={})
  state = {'x': jax.device_put(value, placed(shapes[0]))}
  manager.save(1, state, meta={})
  manager.wait()
  target = jax.ShapeDtypeStruct(
    value.shape, value.dtype, sharding=placed(shapes[1])
  )
  found = manager.restore({'x': target}).state['x']
  np.testing.assert_array_equal(found, value)
  assert len(found.sharding.device_set) == shapes[1][0] * shapes[1][1]
  manager.close()


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'int32', 'uint8'])
def test_checksum_sees_every_single_bit_and_no_sharding(dtype):
  x = jax.random.normal(jax.random.key(0), (8, 5)) * 9
  x = x.astype(dtype)
  expected = int(checksums.checksum(x))
  raw = bytearray(np.asarray(x).tobytes())
  for bit in range(0, 8 * len(raw), 7):
    raw[bit // 8] ^= 1 << bit % 8
    other = np.frombuffer(bytes(raw), np.asarray(x).dtype).reshape(x.shape)
    assert int(checksums.checksum(jnp.asarray(other))) != expected
    raw[bit // 8] ^= 1 << bit % 8
  split = jax.device_put(x, sharding.batch_sharding(sharding.make_mesh()))
  assert int(jax.jit(checksums.checksum)(split)) == expected
