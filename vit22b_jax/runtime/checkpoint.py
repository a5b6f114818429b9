"""Saves and restores runs: Orbax, plus a checksum for every array.

    manager = checkpoint.Manager(workdir, scores=scores, keep=2, keep_best=1)
    manager.save(step, state, data=iterator, meta={...})
    found = manager.restore(abstract_state, data=iterator)

Layout: `WORKDIR/checkpoints/STEP/{state,meta}`: the state's arrays, and a JSON
object with format version, position in the data (Grain's iterator state),
checksums, config and whatever the loop wants to find again.

Orbax restores a flipped byte without noticing. So each array's checksum is
computed on the devices that hold it, saved with it, and compared on restore; a
checkpoint that can't be read or doesn't match is put aside with a warning and
the one before it is used.
"""

import contextlib
import dataclasses
import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import grain
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import Array, Shaped, UInt32
from orbax.checkpoint import checkpoint_managers

from vit22b_jax import errors
from vit22b_jax.models import stacking
from vit22b_jax.runtime import distributed
from vit22b_jax.runtime import workdir as workdir_lib

FORMAT = 1
_FOLDER = 'checkpoints'
_DAMAGED = 'checkpoints_damaged'


@dataclasses.dataclass
class Restored:
  """What `Manager.restore` found: the step, the state, and its JSON object."""

  step: int
  state: Any
  meta: dict[str, Any]


def checksum(x: Shaped[Array, '...']) -> UInt32[Array, '']:
  """A 32-bit sum over the bits of `x` that no single changed byte leaves as is.

  sum_i (2 i + 1) bits_i mod 2^32, with 64-bit words as two of 32. Odd weights
  make each term a bijection of its word; integer sums are exact in any order,
  so that every sharding gives the same value.
  """
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  bits = jax.lax.bitcast_convert_type(x, f'uint{8 * min(x.dtype.itemsize, 4)}')
  bits = bits.astype(jnp.uint32)
  index = jnp.zeros(bits.shape, jnp.uint32)
  stride = 1
  for axis in reversed(range(bits.ndim)):
    iota = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    index += iota * jnp.uint32(stride % 2**32)
    stride *= bits.shape[axis]
  return jnp.sum((2 * index + 1) * bits, dtype=jnp.uint32)


@jax.jit
def _checksums(state: Any) -> list[UInt32[Array, '']]:
  return [checksum(x) for x in jax.tree.leaves(state)]


def _named_checksums(state: Any) -> dict[str, int]:
  paths = jax.tree_util.tree_flatten_with_path(state)[0]
  names = [jax.tree_util.keystr(path) for path, _ in paths]
  sums = jax.device_get(_checksums(state))
  return {name: int(value) for name, value in zip(names, sums, strict=True)}


def _rearranged(state: Any, abstract_state: Any) -> Any:
  """The state with its blocks stacked, or not, as in `abstract_state`."""
  names = stacking.paths(abstract_state)
  placed = jax.tree.map(lambda x: x.sharding, abstract_state)
  rearrange = jax.jit(lambda s: stacking.like(s, names), out_shardings=placed)
  return rearrange(state)


def _best(
  steps: Iterable[int], scores: Mapping[int, float], count: int
) -> list[int]:
  """The `count` steps with the best scores; of equal ones the earlier."""
  scored = [step for step in steps if step in scores]
  return sorted(scored, key=lambda step: (-scores[step], step))[:count]


@dataclasses.dataclass
class _KeepBest(checkpoint_managers.PreservationPolicy):
  """Preserves the checkpoints with the best scores."""

  scores: Mapping[int, float]
  count: int

  def should_preserve(self, checkpoints, *, context):
    del context
    steps = [info.step for info in checkpoints]
    best = _best(steps, self.scores, self.count)
    return [step in best for step in steps]


class Manager:
  """The checkpoints of one workdir.

  Args:
    workdir: the run's folder; `gs://` paths work.
    scores: how good the state of each evaluated step is, more being better;
      the caller adds to it, and a save looks at it to choose what to keep.
    keep: how many of the newest checkpoints stay.
    keep_best: how many of those with the best scores stay as well.
    read_only: leave everything as it is, also what is damaged.
  """

  def __init__(
    self,
    workdir: epath.PathLike,
    *,
    scores: Mapping[int, float],
    keep: int = 1,
    keep_best: int = 0,
    read_only: bool = False,
  ):
    self.workdir = epath.Path(workdir)
    self._path = self.workdir / _FOLDER
    if not workdir_lib.is_remote(self._path):
      self._path = self._path.resolve()  # Orbax wants absolute paths
    self._scores = scores
    self._read_only = read_only
    self._options = ocp.CheckpointManagerOptions(
      preservation_policy=checkpoint_managers.AnyPreservationPolicy(
        [checkpoint_managers.LatestN(keep), _KeepBest(scores, keep_best)]
      ),
      create=not read_only,  # Orbax's own read_only warns three times
      cleanup_tmp_directories=not read_only,
    )
    self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
      self._path, options=self._options, item_names=('state', 'meta')
    )

  def latest_step(self) -> int | None:
    """The newest saved step; None when there is none."""
    return max(self._manager.all_steps(), default=None)

  def best_step(self) -> int | None:
    """The saved step with the best score; None before any evaluation."""
    best = _best(self._manager.all_steps(), self._scores, 1)
    return best[0] if best else None

  def save(
    self,
    step: int,
    state: Any,
    *,
    data: grain.DatasetIterator | None,
    meta: dict[str, Any],
  ) -> bool:
    """Starts saving; the state may be donated as soon as this returns.

    Args:
      step: the number of steps done; a step that is saved already is left.
      state: any tree of jax arrays.
      data: an iterator with `get_state`, at the position to resume from.
      meta: a JSON object.

    Returns:
      Whether anything was saved.

    Raises:
      UserError: the disk is full or can't be written.
    """
    if step in self._manager.all_steps():
      return False
    arrays = jax.tree_util.tree_flatten_with_path(state)[0]
    meta = dict(
      meta,
      format=FORMAT,
      data=None if data is None else data.get_state(),
      shapes={jax.tree_util.keystr(k): list(x.shape) for k, x in arrays},
      checksums=_named_checksums(state),
    )
    meta['checksum'] = _meta_checksum(meta)
    if jax.default_backend() == 'cpu':
      # Orbax keeps views of host buffers, which the next step would overwrite.
      state = jax.tree.map(jnp.copy, state)
    items = {
      'state': ocp.args.PyTreeSave(state),
      'meta': ocp.args.JsonSave(meta),
    }
    try:
      return self._manager.save(step, args=ocp.args.Composite(**items))
    except (OSError, ValueError) as error:
      _blame_disk(self.workdir, error)
      raise

  def wait(self) -> None:
    """Blocks until everything is on disk; raises what went wrong there."""
    try:
      self._manager.wait_until_finished()
    except (OSError, ValueError) as error:
      _blame_disk(self.workdir, error)
      raise

  def restore(
    self,
    abstract_state: Any,
    *,
    data: grain.DatasetIterator | None = None,
    step: int | None = None,
    check: Callable[[dict[str, Any]], None] = lambda meta: None,
  ) -> Restored | None:
    """The newest checkpoint that is whole, or None when there is none.

    Damaged ones that are newer are moved to `checkpoints_damaged/`, once an
    older one has been restored; when none can be, nothing is moved.

    Args:
      abstract_state: ShapeDtypeStructs with the shardings to restore to, for
        any number of devices; top-level keys may be left out, as the
        optimiser's are where only the weights matter. Blocks may be stacked
        here and not in the checkpoint, or the other way round.
      data: an iterator to set to the saved position.
      step: the one to try first, before the newest.
      check: looks at a checkpoint's JSON object before its arrays are read;
        raises UserError for another run's.

    Raises:
      UserError: checkpoints exist, but none of them can be used.
    """
    steps = distributed.broadcast_json([*self._manager.all_steps()])
    steps.sort(key=lambda s: (s == step, s), reverse=True)
    damaged = []
    for candidate in steps:
      found = self._restore_one(candidate, abstract_state, check)
      if found is None:
        damaged.append(candidate)
        continue
      if damaged:
        logging.warning('Checkpoint %d is used instead.', candidate)
        if not self._read_only:
          self._put_aside(damaged)
      if data is not None:
        data.set_state(found.meta['data'])
      return found
    if steps:
      raise errors.UserError(
        f'None of the checkpoints {steps} in {self.workdir} can be read. Copy '
        'one from a backup, or start afresh with another --workdir.'
      )
    return None

  def _restore_one(
    self,
    step: int,
    abstract_state: Any,
    check: Callable[[dict[str, Any]], None],
  ) -> Restored | None:
    """Returns one checkpoint; None, with a warning, if it is damaged.

    Raises:
      UserError: it is another run's.
    """
    try:
      state, meta = self._read(step, abstract_state, check)
      problem = ''
    except errors.UserError:
      raise
    except Exception as error:  # Orbax and TensorStore raise many kinds.
      problem = _described(error)
    if not any(distributed.gather(bool(problem))):
      found = _named_checksums(state)  # of the whole arrays, by all processes
      wrong = [k for k, v in found.items() if meta['checksums'][k] != v]
      if not wrong:
        if stacking.paths(state) != stacking.paths(abstract_state):
          state = _rearranged(state, abstract_state)
        return Restored(step, state, meta)
      problem = f'checksum mismatch in {len(wrong)} arrays: {wrong[:3]}'
    logging.warning(
      'Checkpoint %s is damaged (%s): trying another one.',
      self.workdir / _FOLDER / str(step),
      problem or 'for another process',
    )
    return None

  def _read(
    self,
    step: int,
    abstract_state: Any,
    check: Callable[[dict[str, Any]], None],
  ) -> tuple[Any, dict[str, Any]]:
    """Reads a checkpoint's state and JSON object.

    Orbax's handlers read without its manager's barriers: one that fails in this
    process alone must not leave the others waiting.
    """
    folder = self._path / str(step)
    with contextlib.closing(ocp.JsonCheckpointHandler()) as handler:
      meta = handler.restore(folder / 'meta', args=ocp.args.JsonRestore())
    saved = self._judge(step, abstract_state, meta, check)
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
      state = handler.restore(
        folder / 'state',
        args=ocp.args.PyTreeRestore(
          item=saved,
          restore_args=ocp.checkpoint_utils.construct_restore_args(saved),
          partial_restore=True,
        ),
      )
    return state, meta

  def _judge(
    self,
    step: int,
    abstract_state: Any,
    meta: dict[str, Any],
    check: Callable[[dict[str, Any]], None],
  ) -> Any:
    """Looks at a checkpoint's JSON object; the abstract state it has saved."""
    if meta['format'] != FORMAT:
      raise errors.UserError(
        f'Checkpoint {step} in {self.workdir} has format {meta["format"]}; '
        f'this version reads format {FORMAT}. Use the version of vit22b_jax '
        'in its versions.json.'
      )
    if meta['checksum'] != _meta_checksum(meta):
      raise ValueError('checksum mismatch in its JSON object')
    check(meta)
    saved = stacking.like(abstract_state, meta['shapes'])
    self._check_shapes(step, saved, meta)
    return saved

  def _check_shapes(
    self, step: int, abstract_state: Any, meta: dict[str, Any]
  ) -> None:
    for path, x in jax.tree_util.tree_flatten_with_path(abstract_state)[0]:
      name = jax.tree_util.keystr(path)
      there = meta['shapes'].get(name)
      if there != list(x.shape):
        raise errors.UserError(
          f'Checkpoint {step} in {self.workdir} is of another model: {name} '
          f'has shape {there or "(it is missing)"} there and {list(x.shape)} '
          'in this configuration. Use another --workdir.'
        )

  def _put_aside(self, steps: list[int]) -> None:
    """Moves checkpoints away, so that their steps can be saved again."""
    folder = self.workdir / _DAMAGED
    for step in steps if jax.process_index() == 0 else ():
      folder.mkdir(parents=True, exist_ok=True)
      target = folder / str(step)
      if target.exists():
        target.rmtree()
      (self.workdir / _FOLDER / str(step)).rename(target)
    multihost_utils.sync_global_devices('put aside')
    self._manager.close()
    self._manager = self._open()

  def close(self) -> None:
    """Finishes what is being saved, and lets go of the folder."""
    self.wait()
    self._manager.close()


def _described(error: Exception) -> str:
  first = str(error).strip().split('\n')[0][:300]
  return f'{type(error).__name__}: {first}'


def _meta_checksum(meta: dict[str, Any]) -> int:
  rest = {key: value for key, value in meta.items() if key != 'checksum'}
  return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def _blame_disk(workdir: epath.PathLike, error: Exception) -> None:
  """Raises UserError, saying what to do, if a save failed for the disk."""
  if isinstance(error.__cause__, jax.errors.JaxRuntimeError):
    return  # a TimeoutError of Orbax's barrier: another process was lost
  signs = ('RESOURCE_EXHAUSTED', 'PERMISSION_DENIED', 'os_error_code')
  text = str(error)
  if not isinstance(error, OSError) and not any(s in text for s in signs):
    return
  raise errors.UserError(
    f'Could not save a checkpoint in {workdir}: {text[:500]}. Make room or '
    'choose another --workdir; the checkpoints written before are whole, and '
    'the same command resumes from the newest.'
  ) from error
