"""Saves and restores runs: Orbax, plus a checksum for every array.

    manager = checkpoint.Manager(workdir, scores=scores, keep=2, keep_best=1)
    manager.save(step, state, meta={...})
    found = manager.restore(abstract_state)

Layout: `WORKDIR/checkpoints/STEP/{state,meta}`: the state's arrays, and a JSON
object with format version, step, checksums and whatever the loop wants to find
again: its position in the data, the config. Orbax restores a flipped byte
without noticing, and believes a folder's number; so each array's checksum is
saved with the step and compared on restore.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from vit22b_jax import errors
from vit22b_jax.data import files
from vit22b_jax.models import stacking
from vit22b_jax.runtime import checksums, distributed

FORMAT = 1
_WHOLE, _DAMAGED, _UNREAD = range(3)  # what a process found
# Of TensorStore and jax: what says nothing of a checkpoint itself.
_PASSING = (
  *('UNAVAILABLE', 'DEADLINE_EXCEEDED'),
  *('PERMISSION_DENIED', 'RESOURCE_EXHAUSTED'),
)

# Looks at a checkpoint's JSON object.
Check = Callable[[dict[str, Any]], None]


class Restored(NamedTuple):
  """A restored checkpoint: its step, the state, and its JSON object."""

  step: int
  state: Any
  meta: dict[str, Any]


class _DamagedError(Exception):
  """A checkpoint that can't be used; says why."""


def _may_pass(error: Exception) -> bool:
  """Returns whether a read failed for the disk, network or memory.

  Then the checkpoint may be whole. What isn't there is damage.
  """
  missing = FileNotFoundError, NotADirectoryError, IsADirectoryError
  if isinstance(error, OSError | MemoryError):
    return not isinstance(error, missing)
  text = str(error)
  if 'os_error_code' in text:  # TensorStore's, of a file
    return 'NOT_FOUND' not in text
  return any(status in text for status in _PASSING)


def _best(
  steps: Iterable[int], scores: Mapping[int, Any], count: int
) -> list[int]:
  """Returns the `count` steps of the best scores; of equal ones the later."""
  scored = [step for step in steps if step in scores]
  return sorted(scored, key=lambda s: (scores[s], s), reverse=True)[:count]


@dataclasses.dataclass
class _KeepBest(checkpoint_managers.PreservationPolicy):
  """Preserves the checkpoints with the best scores.

  Orbax's own BestN wants a checkpoint's score when it is saved; a first
  validation is saved before it, and a resumed run knows scores from its rows.
  """

  scores: Mapping[int, Any]
  count: int

  def should_preserve(self, checkpoints, *, context):
    steps = [info.step for info in checkpoints]
    best = _best(steps, self.scores, self.count)
    return [step in best for step in steps]


class Manager:
  """The checkpoints of one workdir, local or `gs://`.

  Args:
    workdir: the run's folder.
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
    scores: Mapping[int, Any],
    keep: int = 1,
    keep_best: int = 0,
    read_only: bool = False,
  ):
    self.workdir = epath.Path(workdir)
    self._path = self.workdir / 'checkpoints'
    if not files.is_remote(self._path):
      if os.path.lexists(self._path) and not os.path.isdir(self._path):
        raise errors.UserError(
          f'{self._path} should be the folder of checkpoints and is a file, or '
          'a link to nothing: move it elsewhere, or bring the folder back.'
        )
      self._path = self._path.resolve()  # Orbax wants absolute paths
    self.scores = scores
    self._read_only = read_only
    self._options = ocp.CheckpointManagerOptions(
      preservation_policy=checkpoint_managers.AnyPreservationPolicy(
        [checkpoint_managers.LatestN(keep), _KeepBest(scores, keep_best)]
      ),
      create=not read_only,  # Orbax's own read_only warns three times
      cleanup_tmp_directories=not read_only,
      lightweight_initialize=True,  # reads no times, which may be damaged
    )
    self._open()

  def _open(self) -> None:
    self._manager = ocp.CheckpointManager(
      self._path, options=self._options, item_names=('state', 'meta')
    )

  def latest_step(self) -> int | None:
    """Returns the newest saved step; None when there is none."""
    return max(self._manager.all_steps(), default=None)

  def best_step(self) -> int | None:
    """Returns the saved step with the best score; None without a score."""
    return next(iter(_best(self._manager.all_steps(), self.scores, 1)), None)

  def is_best(self, step: int) -> bool:
    """Returns whether no validated step, saved or not, has a better score."""
    best = max(self.scores.values(), default=None)
    return self.scores.get(step) == best

  def save(self, step: int, state: Any, *, meta: dict[str, Any]) -> None:
    """Starts saving; the state may be donated as soon as this returns.

    `meta` is a JSON object, to find again. A step that is there is left as it
    is.

    Raises:
      UserError: the folder holds a later step, or can't be written.
    """
    if step in self._manager.all_steps():
      return
    shapes = checksums.named_leaves(state).items()
    meta = meta | {
      'format': FORMAT,
      'step': step,
      'shapes': {name: list(x.shape) for name, x in shapes},
      'checksums': checksums.of_arrays(state),
    }
    meta['checksum'] = checksums.of_json(meta)
    if jax.default_backend() == 'cpu':
      # Orbax keeps views of host buffers, which the next step would overwrite.
      state = jax.tree.map(jnp.copy, state)
    items = ocp.args.Composite(
      state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta)
    )
    with self._explained():
      saved = self._manager.save(step, args=items)
    if not saved:
      raise errors.UserError(
        f'Step {step} was not saved, since {self._path} holds the later '
        f'checkpoint {self.latest_step()}: move that one elsewhere.'
      )

  def wait(self) -> None:
    """Blocks until everything is on disk; raises what went wrong there."""
    with self._explained():
      self._manager.wait_until_finished()

  @contextlib.contextmanager
  def _explained(self):
    """Raises UserError for what the disk refuses, saying what to do."""
    try:
      yield
    except (OSError, ValueError) as error:
      if isinstance(error.__cause__, jax.errors.JaxRuntimeError):
        raise  # a TimeoutError of Orbax's barrier: another process was lost
      remedy = errors.disk_remedy(error)
      # TensorStore's are ValueErrors.
      of_disk = isinstance(error, OSError) or 'os_error_code' in str(error)
      if not remedy and not of_disk:
        raise
      raise errors.UserError(
        f'Could not save a checkpoint in {self.workdir}: {str(error)[:500]}. '
        f'{remedy}The checkpoints written before are whole, and the same '
        'command resumes from the newest.'
      ) from error

  def restore(
    self,
    abstract_state: Any,
    *,
    step: int | None = None,
    check: Check = lambda meta: None,
  ) -> Restored | None:
    """Restores the newest checkpoint that is whole; None if there is none.

    Damaged ones that are newer are moved to `checkpoints_damaged/`, once an
    older one has been restored; when none can be, nothing is moved.

    Args:
      abstract_state: ShapeDtypeStructs with the shardings to restore to, for
        any number of devices; top-level keys may be left out, as the
        optimizer's are where only the weights matter. Blocks may be stacked
        here and not in the checkpoint, or the other way round.
      step: the one to try first, before the newest.
      check: looks at a checkpoint's JSON object before its arrays are read;
        raises UserError for another run's.

    Raises:
      UserError: checkpoints exist, but none of them can be used.
    """
    steps = distributed.broadcast_json([*self._manager.all_steps()])
    steps.sort(key=lambda s: (s == step, s), reverse=True)
    damaged = {}
    for candidate in steps:
      try:
        found = self._restore_one(candidate, abstract_state, check)
      except _DamagedError as error:
        damaged[candidate] = str(error)
        logging.warning(
          'Checkpoint %s is damaged (%s).', self._path / str(candidate), error
        )
        continue
      if damaged:
        logging.warning('Checkpoint %d is used instead.', candidate)
        if not self._read_only:
          self._put_aside(damaged)
      return found
    if steps:
      raise errors.UserError(
        f'None of the checkpoints {steps} in {self.workdir} can be read '
        f'({damaged[steps[0]]}). Copy one from a backup, or start afresh with '
        'another --workdir.'
      )
    return None

  def _restore_one(
    self, step: int, abstract_state: Any, check: Check
  ) -> Restored:
    """Restores one checkpoint, in all processes or in none.

    Raises:
      UserError: it is another run's, or of another version.
      _DamagedError: a process can't read it, or a checksum differs.
    """
    problem, code = '', _WHOLE
    try:
      state, meta = self._read(step, abstract_state, check)
    except errors.UserError:
      raise
    except Exception as error:  # Orbax and TensorStore raise many kinds.
      line = str(error).strip().split('\n')[0][:300]
      problem = f'{type(error).__name__}: {line}'
      code = _UNREAD if _may_pass(error) else _DAMAGED
    codes = distributed.gather(code)
    if _UNREAD in codes:
      raise errors.UserError(
        f'Checkpoint {step} in {self.workdir} could not be read '
        f'({problem or "by another process"}). It need not be damaged, so '
        'nothing was moved: try again once that is mended, or move it away '
        'yourself to go on from the one before.'
      )
    if _DAMAGED in codes:
      raise _DamagedError(problem or 'another process could not read it')
    found = checksums.of_arrays(state)  # of the whole arrays, by all processes
    wrong = [k for k, v in found.items() if meta['checksums'][k] != v]
    if wrong:
      raise _DamagedError(
        f'checksum mismatch in {len(wrong)} arrays: {wrong[:3]}'
      )
    names = stacking.paths(abstract_state)
    if stacking.paths(state) != names:  # stacked in one of the two alone
      shardings = jax.tree.map(lambda x: x.sharding, abstract_state)
      state = jax.jit(
        lambda s: stacking.like(s, names), out_shardings=shardings
      )(state)
    return Restored(step, state, meta)

  def _read(
    self, step: int, abstract_state: Any, check: Check
  ) -> tuple[Any, dict[str, Any]]:
    """Reads a checkpoint's state and JSON object.

    Orbax's handlers read without its manager's barriers: one that fails in this
    process alone must not leave the others waiting.
    """
    folder = self._path / str(step)
    with contextlib.closing(ocp.JsonCheckpointHandler()) as handler:
      meta = handler.restore(folder / 'meta', args=ocp.args.JsonRestore())
    self._validate_meta(step, meta)
    check(meta)
    saved = stacking.like(abstract_state, meta['shapes'])
    self._validate_shapes(step, saved, meta)
    arguments = ocp.args.PyTreeRestore(
      item=saved,
      restore_args=ocp.checkpoint_utils.construct_restore_args(saved),
      partial_restore=True,
    )
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
      return handler.restore(folder / 'state', args=arguments), meta

  def _validate_meta(self, step: int, meta: Any) -> None:
    """Raises ValueError for a damaged JSON object, UserError for a newer one.

    Those of the first versions don't name their step.
    """
    if not isinstance(meta, dict) or not isinstance(meta.get('format'), int):
      raise ValueError('its JSON object has no format')
    if meta['format'] != FORMAT:
      raise errors.UserError(
        f'Checkpoint {step} in {self.workdir} has format {meta["format"]}; '
        f'this version reads format {FORMAT}. Use the version of vit22b_jax '
        'in its versions.json.'
      )
    if meta.get('checksum') != checksums.of_json(meta):
      raise ValueError('checksum mismatch in its JSON object')
    if not {'shapes', 'checksums'} <= meta.keys():
      raise ValueError('its JSON object has no checksums')
    if meta.get('step', step) != step:
      raise ValueError(f'it is checkpoint {meta["step"]} under another number')

  def _validate_shapes(
    self, step: int, abstract_state: Any, meta: dict[str, Any]
  ) -> None:
    for name, x in checksums.named_leaves(abstract_state).items():
      there = meta['shapes'].get(name)
      if there != list(x.shape):
        raise errors.UserError(
          f'Checkpoint {step} in {self.workdir} is of another model: {name} '
          f'has shape {there or "(it is missing)"} there and {list(x.shape)} '
          'in this configuration. Use another --workdir.'
        )
      if name not in meta['checksums']:
        raise ValueError(f'its JSON object has no checksum of {name}')

  def _put_aside(self, steps: Iterable[int]) -> None:
    """Moves checkpoints away, so that their steps can be saved again."""
    folder = self.workdir / 'checkpoints_damaged'
    for step in steps if jax.process_index() == 0 else ():
      folder.mkdir(exist_ok=True)
      target = folder / str(step)
      target.rmtree(missing_ok=True)
      (self._path / str(step)).rename(target)
    multihost_utils.sync_global_devices('put aside')
    self._manager.close()
    self._open()  # Orbax's reload() would read times

  def close(self) -> None:
    """Finishes what is being saved, and lets go of the folder."""
    self.wait()
    self._manager.close()
