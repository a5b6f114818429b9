"""The configs that come with the package: their folder, names and comments.

    named_configs.resolve(['vit22b', '--config=digits_vit22b_ti:tiny'])
    print(named_configs.listing())                   # --list
    print(named_configs.describe(config, path))      # --config=X --help

Nothing here imports jax. Config files are run by `config_flags`, which finds
`configs.common` through `import_folder`.
"""

import ast
import importlib.util
import itertools
import pathlib
import sys
from collections.abc import Iterable, Iterator

from vit22b_jax import errors, rules
from vit22b_jax.config import ConfigDict

_PACKAGE = pathlib.Path(__file__).parent.parent


def folder() -> pathlib.Path:
  """Returns the folder of the configs: a checkout's, or the package's own."""
  checkout = _PACKAGE.parent / 'configs'
  there = (checkout / 'common.py').exists()
  return checkout if there else _PACKAGE / 'configs'


def import_folder() -> None:
  """Makes `from configs import common` mean the configs of this package."""
  if 'configs' not in sys.modules:
    spec = importlib.util.spec_from_file_location(
      'configs',
      folder() / '__init__.py',
      submodule_search_locations=[str(folder())],
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules['configs'] = module
    spec.loader.exec_module(module)


def names() -> list[str]:
  """Returns the names of the configs, sorted."""
  found = [path.stem for path in folder().glob('*.py')]
  return sorted(name for name in found if name not in ('__init__', 'common'))


def resolve(argv: list[str]) -> list[str]:
  """Returns arguments with paths in the place of the names of configs.

  NAME and, where there is no such file, configs/NAME.py stand for the config
  of that name; words after a colon stay.
  """
  resolved, known = [], names()
  for i, argument in enumerate(argv):
    flag, _, spec = argument.partition('=')
    if flag not in ('--config', '-config'):
      follows = i and argv[i - 1] in ('--config', '-config')
      spec = argument if follows else ''
    path, colon, words = spec.partition(':')
    name = path.removeprefix('configs/').removesuffix('.py')
    if name in known and not pathlib.Path(path).is_file():
      start = argument.removesuffix(spec)
      argument = f'{start}{folder() / name}.py{colon}{words}'
    resolved.append(argument)
  return resolved


def listing() -> str:
  """Returns a line for each config: its name and what it trains."""
  width = max(map(len, names()))
  lines = []
  for name in names():
    text = (folder() / f'{name}.py').read_text()
    summary = ast.get_docstring(ast.parse(text)).split('\n')[0]
    lines.append(f'{name:<{width}}  {summary}')
  return '\n'.join(lines)


def describe(config: ConfigDict, path: str) -> str:
  """Returns a config file's docstring and its keys with values and comments."""
  doc = ast.get_docstring(ast.parse(pathlib.Path(path).read_text())) or path
  said, known = comments(config.task), rules.RULES[config.task]
  lines = [doc, '', f'Keys of {path}, as in --config.seed=1:', '']
  for key, value in rules.flatten(config).items():
    lines.append(f'  {key} = {value!r}')
    if key in said:
      lines.append(f'      {said[key]}')
    if key in known and not known[key].choices:  # comments list those
      lines.append(f'      must be {known[key].expected}')
  return '\n'.join(lines)


# Names that other trainers have for a key.
_OTHER_NAMES = {
  'batch_size': 'bs batch train_batch_size',
  'data.dir': 'root data_dir data_path',
  'data.image_size': 'img_size resolution',
  'data.name': 'root dataset data_path',
  'data.workers': 'num_workers',
  'duration': 'epochs num_epochs steps num_steps total_steps max_steps',
  'init_from': 'pretrained finetune checkpoint_path',
  'loss.class_weights': 'class_weight pos_weight weight',
  'loss.label_smoothing': 'smoothing',
  'model.depth': 'num_layers layers',
  'model.dropout': 'dropout_rate drop_rate',
  'model.num_heads': 'heads nheads',
  'model.stochastic_depth': 'drop_path drop_path_rate',
  'model.variant': 'arch',
  'model.width': 'hidden_size embed_dim dim',
  'optim.accumulate': 'accum_steps grad_accum',
  'optim.base_batch_size': 'scale_lr auto_scale_lr lr_base_size',
  'optim.clip_norm': 'grad_clip clip_grad grad_clip_norm',
  'optim.ema': 'ema_decay model_ema',
  'optim.freeze': 'linear_probe linear_probing freeze_backbone frozen',
  'optim.layer_decay': 'llrd layer_wise_lr_decay layer_lr_decay',
  'optim.learning_rate': 'lr base_lr learning_rate',
  'optim.name': 'opt optimizer',
  'optim.schedule': 'sched scheduler lr_schedule',
  'optim.warmup': 'warmup_steps warmup_epochs',
  'optim.weight_decay': 'wd weight_decay',
}


def suggest_key(name: str, known: Iterable[str], prefix: str = '') -> str:
  """Returns which of the known keys an unknown name may stand for."""
  last = name.rpartition('.')[2].replace('-', '_')
  keys = [
    f"'{prefix}{key}'"
    for key, others in _OTHER_NAMES.items()
    if last in others.split() and key in known
  ]
  if keys:
    return f' Did you mean {" or ".join(keys)}?'
  return '' if prefix else errors.did_you_mean(name, known)


# --- Comments --------------------------------------------------------------


def comments(task: str) -> dict[str, str]:
  """Returns the comment of each key of a task, as configs/common.py has it."""
  text = (folder() / 'common.py').read_text()
  tree, lines = ast.parse(text), text.splitlines()
  functions = {f.name: f for f in tree.body if isinstance(f, ast.FunctionDef)}

  def assigned(name: str, prefix: str = '') -> Iterator[tuple[str, str]]:
    for node in functions[name].body:
      key = ''
      if isinstance(node, ast.Assign):
        key = ast.unparse(node.targets[0]).partition('.')[2]
      value = getattr(node, 'value', None)
      called = getattr(getattr(value, 'func', None), 'id', None)
      if called in functions:  # a section
        yield from assigned(called, f'{prefix}{key}.' if key else prefix)
      elif key and (text := _comment_at(node, lines)):
        yield prefix + key, text

  return dict(assigned({'fid': 'comparison'}.get(task, task)))


def _comment_at(node: ast.stmt, lines: list[str]) -> str:
  """Returns the comment behind a statement, or those of the lines before."""
  above = itertools.takewhile(
    lambda line: line.lstrip().startswith('#'),
    reversed(lines[: node.lineno - 1]),
  )
  found = [
    line for line in lines[node.lineno - 1 : node.end_lineno] if '# ' in line
  ]
  found = found or list(above)[::-1]
  return ' '.join(line.partition('# ')[2] for line in found)
