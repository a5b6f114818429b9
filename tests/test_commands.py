"""Each command of the documents runs, small and on stand-ins for data.

`small` makes the small form of a `python main.py` command from the command
itself: the word `tiny`, two steps, folders of made images, workdirs that a
first run has left. What needs hardware is only parsed and its config built
(`test_readme`).
"""

import dataclasses
import importlib.util
import pathlib
import re
import shutil
import subprocess

import jax
import numpy as np
import pytest

from experiments import catalogue, runner
from tests import test_configs, test_main, test_readme
from tests.helpers import data_fixtures
from vit22b_jax import cli, commands

ROOT = test_readme.ROOT
# Flags of machines that aren't here: TPUs to compile for, other processes.
_HARDWARE = ('--topology=v', '--coordinator')
_DURATIONS = ('duration', 'checkpoint.every', 'eval.every', 'log.every')


@dataclasses.dataclass(frozen=True)
class StandIns:
  """Holds what a reader brings: images, and runs that have been trained.

  Attributes:
    classes: a folder of classes.
    domains: a folder of two domains.
    photos: a folder of images.
    runs: a workdir by task.
    made: folder for what the commands make.
  """

  classes: pathlib.Path
  domains: pathlib.Path
  photos: pathlib.Path
  runs: dict[str, pathlib.Path]
  made: pathlib.Path


@pytest.fixture(scope='module')
def compiled_fast():
  """Programs that run for two steps need none of LLVM's optimizations."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(scope='module')
def stand_ins(tmp_path_factory, compiled_fast):
  folder = tmp_path_factory.mktemp('stand_ins')
  classes = data_fixtures.make_folder(
    folder / 'classes', counts={'train': 9, 'test': 4}
  )
  domains = data_fixtures.make_domains(
    folder / 'domains',
    counts={'trainA': 9, 'trainB': 9, 'testA': 4, 'testB': 4},
    sizes=((40, 40),),
  )
  given = StandIns(
    classes=classes,
    domains=domains,
    photos=classes / 'test' / 'cat',
    runs={
      'classification': folder / 'classification',
      'translation': folder / 'translation',
    },
    made=folder,
  )
  for task, config in (
    ('classification', 'cifar10_vit22b_s'),
    ('translation', 'fruit_vitunet_ti'),
  ):
    chosen = small([f'--config={ROOT}/configs/{config}.py'], given)
    assert test_main.call(*chosen, f'--workdir={given.runs[task]}') == 0
  run = given.runs['classification']
  shutil.copytree(run, f'{run}_again')  # to be compared with it
  return given


def _flag(arguments, name, default=None):
  values = [a.partition('=')[2] for a in arguments if a.startswith(f'{name}=')]
  return values[-1] if values else default


def _task(arguments):
  values = test_readme.parsed(arguments)
  return values.config.task if values.config is not None else None


def small(arguments, given):
  """The command's small form; `given` are the stand-ins.

  A plan for GPUs computes nothing, so it stays as large as it is.
  """
  mode = _flag(arguments, '--mode', 'train')
  task = _task(arguments)
  out = list(arguments)

  def put(flag, value):
    out[:] = [a for a in out if not a.startswith(f'{flag}=')]
    out.append(f'{flag}={value}')

  if mode == 'report':
    put('--workdirs', f'{given.runs["classification"]}*')
    put('--workdir', given.made)
  elif mode == 'fid':
    put('--config.a', given.photos)
    put('--config.b', given.classes / 'test' / 'dog')
    put('--config.dir', given.made)
    put('--config.fid.weights', 'random:0')
    put('--config.fid.tap', 64)
  elif mode in ('eval', 'predict', 'export', 'translate'):
    needed = 'translation' if mode == 'translate' else 'classification'
    put('--workdir', given.runs[needed])
    if _flag(arguments, '--input'):
      put('--input', given.photos)
  elif _flag(arguments, '--topology', 'local') == 'local':
    spec = _flag(arguments, '--config')
    words = spec.partition(':')[2]
    if 'tiny' not in words.split(','):
      words = ','.join(filter(None, (words, 'tiny')))
    out.insert(0, f'--config={spec.partition(":")[0]}:{words}')
    out.remove(f'--config={spec}')
    if task == 'translation':
      put('--config.data.name', f'folder:{given.domains}')
    elif _flag(arguments, '--config.data.name', '').startswith('folder:'):
      put('--config.data.name', f'folder:{given.classes}')
    else:
      put('--config.data.name', 'digits')
    for key in _DURATIONS:
      put(f'--config.{key}', '2 steps')
    if _flag(arguments, '--config.profile'):
      put('--config.profile', 2)
    tensor = _flag(arguments, '--config.mesh.tensor')
    if tensor:  # which has to divide the heads
      put('--config.model.num_heads', tensor)
    out.append('--noconfig.log.tensorboard')
    if mode == 'probe':  # opens everything, and trains nothing
      put('--minutes', 0)
  return out


def _needs_hardware(arguments):
  return any(a.startswith(_HARDWARE) for a in arguments)


# Where a run and its data lie, and its seed, make it no other command.
_PLACES = ('--workdir=', '--config.data.dir=', '--config.seed=')
RUN = {
  tuple(a for a in arguments if not a.startswith(_PLACES))
  for _, arguments in test_readme.COMMANDS
  if not _needs_hardware(arguments)
}
# Classifiers' configs without another flag are trained by `test_configs`.
TRAINED = {(f'--config=configs/{name}.py',) for name in test_configs.NAMES}
UNIQUE = [list(arguments) for arguments in sorted(RUN - TRAINED)]


@pytest.mark.slow
@pytest.mark.parametrize(
  'arguments', UNIQUE, ids=[' '.join(a)[:80] for a in UNIQUE]
)
def test_a_command_runs(arguments, stand_ins, tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  chosen = small(arguments, stand_ins)
  if not any(a.startswith('--workdir=') for a in chosen):
    chosen.append(f'--workdir={tmp_path / "run"}')
  if _flag(chosen, '--config.init_from'):
    # Their own weights, as a run of the same model exports them.
    without = [a for a in chosen if not a.startswith('--config.init_from=')]
    assert test_main.call(*without) == 0
    run = _flag(chosen, '--workdir')
    assert test_main.call('--mode=export', f'--workdir={run}') == 0
    chosen = [
      *without,
      f'--config.init_from={run}/model.safetensors',
      f'--workdir={tmp_path / "tuned"}',
    ]
  assert test_main.call(*chosen) == 0


def _documents():
  for path in test_readme.DOCUMENTS:
    yield path, path.read_text()


def _make_targets():
  """Of `make X` where a line of a document begins with it, or in backticks."""
  found = set()
  for _, text in _documents():
    found |= set(re.findall(r'(?:^ {4}|`)make ([a-z.][\w./-]*)', text, re.M))
  return sorted(found)


@pytest.mark.parametrize('target', _make_targets())
def test_a_make_target_exists(target):
  done = subprocess.run(
    ['make', '-n', target, 'PYTHON=python3'],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr


def _modules():
  """(module, its flags) of `python -m experiments...` in the documents."""
  for _, text in _documents():
    for line in re.findall(r'python -m (experiments\.[^\n`|#]*)', text):
      module, *flags = line.split()
      if 'NAME' not in module:
        yield module.rstrip(';,.:'), [f for f in flags if f.startswith('--')]


MODULES = sorted({(module, tuple(flags)) for module, flags in _modules()})


@pytest.mark.parametrize(
  ('module', 'flags'), MODULES, ids=[' '.join((m, *f)) for m, f in MODULES]
)
def test_a_module_exists_and_knows_its_flags(module, flags):
  assert importlib.util.find_spec(module), module
  experiment = {f'experiments.{e.name}.run': e for e in catalogue.EXPERIMENTS}
  if module in experiment:
    runner.parser(experiment[module]).parse_args(flags)


@pytest.mark.parametrize(
  ('experiment', 'scale'),
  [(e, scale) for e in catalogue.EXPERIMENTS for scale in e.scales],
  ids=lambda value: getattr(value, 'name', value),
)
def test_every_run_of_an_experiment_builds_its_config(experiment, scale):
  for cell in experiment.cells(scale, {}):
    if cell.config and cell.facts.get('seed', 0) == 0:
      values = test_readme.parsed(cell.arguments())
      commands.validate(values.config)


def _blocks():
  """(document, Python) of each block of Python in the documents."""
  for path, text in _documents():
    for block in re.findall(r'```python\n(.*?)```', text, re.S):
      yield str(path.relative_to(ROOT)), block


def test_there_is_python_in_the_readme():
  assert 'README.md' in dict(_blocks())


@pytest.mark.slow
@pytest.mark.parametrize(('document', 'block'), list(_blocks()))
def test_python_in_the_documents_runs(document, block, stand_ins):
  del document
  run = stand_ins.runs['classification']
  block = re.sub(r"'runs/\w+'", repr(str(run)), block)
  photo = repr(str(next(stand_ins.photos.iterdir())))
  block = re.sub(r"'\w+\.jpg'", lambda _: photo, block)
  found = {}
  exec(block, found)
  assert found['logits'].shape == (len(found['images']), 10)
  assert np.isfinite(found['logits']).all()
  np.testing.assert_allclose(found['probabilities'].sum(1), 1, rtol=1e-5)


def test_the_documented_modes_are_those_of_main():
  modes = {_flag(a, '--mode', 'train') for _, a in test_readme.COMMANDS}
  assert modes == set(cli.MODES)
