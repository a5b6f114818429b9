"""Judges every key of every config: its type, range and choices.

    RULES['classification']['optim.b1'].validate('optim.b1', 0.9)

A key is judged here and nowhere else; `tasks` judges how keys fit together.
`configs/common.py` says what each key means and has its default. A new key's
rule needs `absent`, or a run whose config.json lacks it can't be resumed.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import config_dict

from vit22b_jax import durations, errors

ABSENT = '(absent)'
_HUGE = 1e30  # float32 overflows at 3e38


def flatten(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns nested values by dotted key; lists become tuples.

  >>> flatten({'optim': {'b1': 0.9}})
  {'optim.b1': 0.9}
  """
  if isinstance(values, config_dict.ConfigDict):
    values = values.to_dict()
  flat = {}
  for key, value in values.items():
    if isinstance(value, Mapping):
      flat.update(flatten(value, f'{prefix}{key}.'))
    else:
      flat[prefix + key] = tuple(value) if isinstance(value, list) else value
  return flat


@dataclasses.dataclass(frozen=True)
class Rule:
  """The values that a key takes.

  Attributes:
    kind: type of a value.
    expected: the values in words, as in "must be EXPECTED".
    accepts: judges a value of any type.
    choices: all values, where they can be listed.
    check: raises UserError(key, value) instead, with more to say.
    optional: None is a value too, and what an absent key means.
    absent: what a config.json means that was written before the key existed.
  """

  kind: type
  expected: str
  accepts: Callable[[Any], bool] = lambda value: True
  choices: tuple[Any, ...] = ()
  check: Callable[[Any, str], None] | None = None
  optional: bool = False
  absent: Any = ABSENT

  def validate(self, key: str, value: Any) -> None:
    """Raises UserError unless the key takes the value."""
    if value is None and self.optional:
      return
    if self.choices:
      errors.validate_choice(key, value, self.choices)
    elif self.check:
      self.check(value, key)
    elif not self.accepts(value):
      raise errors.UserError(f'{key}={value!r} must be {self.expected}.')


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _int(low: int, high: int = 2**31, *, rest: bool = False) -> Rule:
  """At least `low` and below `high`; -1 too where it stands for the rest."""

  def accepts(value):
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole and (low <= value < high or (rest and value == -1))

  below = f' and below {high}' if high != 2**31 else ''
  devices = ', or -1 for all the devices that the other axes leave'
  expected = f'a whole number of at least {low}{below}{devices * rest}'
  return Rule(int, expected, accepts)


def _float(
  low: float = 0,
  high: float = _HUGE,
  *,
  above: bool = False,
  through: bool = False,
) -> Rule:
  """At least (or above) `low`, and below (or up to) `high`."""

  def accepts(value):
    number = _is_number(value) and low <= value <= high
    return number and (value > low or not above) and (value < high or through)

  lower = f'{"above" if above else "of at least"} {low:g}'
  upper = f' and {"up to" if through else "below"} {high:g}'
  expected = f'a finite number {lower}{upper * (high != _HUGE)}'
  return Rule(float, expected, accepts)


def _choice(*choices: Any) -> Rule:
  listed = ', '.join(map(str, choices))
  return Rule(type(choices[0]), f'one of {listed}', choices=choices)


def _text(expected: str = 'text', pattern: str = r'[^\0]*') -> Rule:
  def accepts(value):
    return isinstance(value, str) and bool(re.fullmatch(pattern, value, re.S))

  return Rule(str, expected, accepts)


def _numbers(
  count: int, expected: str, accepts: Callable[[tuple[Any, ...]], bool]
) -> Rule:
  def all_accepted(value):
    is_tuple = isinstance(value, tuple) and len(value) == count
    return is_tuple and all(map(_is_number, value)) and accepts(value)

  return Rule(tuple, expected, all_accepted)


def _rgb(rule: Rule) -> Rule:
  expected = f'three numbers, for red, green and blue, each {rule.expected}'
  return _numbers(3, expected, lambda value: all(map(rule.accepts, value)))


def _range(high: float) -> Rule:
  expected = f'two numbers above 0 and up to {high:g}, the smaller first'
  return _numbers(2, expected, lambda v: 0 < v[0] <= v[1] <= high)


def _duration(**options: bool) -> Rule:
  check = functools.partial(durations.validate, **options)
  return Rule(str, 'steps, epochs or percent, as text', check=check)


def _optional(rule: Rule) -> Rule:
  expected = f'None or {rule.expected}'
  return dataclasses.replace(rule, optional=True, expected=expected)


def _later(rule: Rule, absent: Any) -> Rule:
  """Judges a key that older runs lack, who meant `absent`."""
  return dataclasses.replace(rule, absent=absent)


_FLAG = Rule(bool, 'True or False', lambda value: isinstance(value, bool))
_PATH = _text('a path, not a web address', r'(?!https?://)[^\0]*')
_PROJECT = _later(_text('the name of a project'), '')
_POSITIVE = _float(above=True)
_COUNT = _int(1)
_FRACTION = _float(0, 1)
_PROBABILITY = _float(0, 1, through=True)
_SHARE = _float(0, 1, above=True, through=True)
_WEIGHT = _float()
_CADENCE = _duration(positive=True)

_RUN = {
  'seed': _int(0, 2**32),
  'batch_size': _COUNT,
  'duration': _duration(percent=False, positive=True),
  'sharding': _later(_choice('data', 'fsdp', 'fsdp+tensor'), 'data'),
  'init_from': _PATH,
  'profile': _later(
    _text("'' or steps, as '10' or '10-15'", r'([0-9]+(-[0-9]+)?)?'), ''
  ),
  'checkpoint': {
    'every': _CADENCE,
    'minutes': _WEIGHT,
    'keep': _COUNT,
    'keep_best': _int(0),
  },
  'eval': {
    'every': _CADENCE,
    'batch_size': _optional(_COUNT),
    'early_stop': _int(0),
    'checkpoint': _choice('best', 'last'),
    'test': _later(_FLAG, True),
  },
  'diagnostics': {
    'per_layer': _FLAG,
    'on_explosion': _choice('record', 'skip_step', 'halt'),
    'max_logit': _POSITIVE,
    'max_abs_grad': _POSITIVE,
    'zscore': _POSITIVE,
    'window': _int(1, 100_000),
    'ignore': _duration(),
  },
  'log': {'every': _CADENCE, 'tensorboard': _FLAG, 'wandb': _PROJECT},
  'mesh': {
    **dict.fromkeys(('data', 'fsdp', 'tensor'), _optional(_int(1, rest=True))),
    'max_replicated': _later(_WEIGHT, 1.0),
  },
}
_SOURCE = {
  'name': _text(
    "a TFDS name, 'folder:PATH', 'digits' or 'fruit', not a web address",
    r'(?!(folder:)?https?://)[^\0]+',
  ),
  'dir': _PATH,
  'image_size': _int(1, 65_536),
  'val_fraction': _float(0, 1, above=True),
  'split_seed': _optional(_int(0, 2**32)),
  'allow_changes': _later(_FLAG, False),
  'cache_max_gb': _WEIGHT,
  'max_corrupt': _int(0),
  'workers': _int(0, 1024),
}
_BLOCK = {
  **dict.fromkeys(('depth', 'num_heads'), _optional(_int(1, 1_000))),
  **dict.fromkeys(('width', 'mlp_dim'), _optional(_int(1, 100_000))),
  **dict.fromkeys(
    ('pre_norm', 'qk_norm', 'mlp_norm', 'sum_norm', 'norm_scale', 'norm_bias'),
    _optional(_FLAG),
  ),
  'qkv_bias': _optional(_FLAG),
  'norm': _optional(_choice('layer', 'rms')),
  'eps': _optional(_float(0, 1, above=True)),
  'softmax_scale': _optional(_choice('head', 'width')),
  'init': _optional(_choice('vit', 'torch')),
  'dtype': _choice('auto', 'float32', 'bfloat16', 'float16'),
  'precision': _choice('default', 'highest'),
}
_BLOCKS = _choice(
  *('vit', 'vit22b', 'vit22b_mlp_norm'),
  *('released_vit', 'released', 'released_unnormed'),
)
_VARIANTS = _choice('Ti', 'S', 'B', 'L', 'H', '22B')
_PATCH = _int(1, 65_536)
_ATTENTION = _choice('auto', 'xla', 'cudnn')
_OPTIM = {
  'name': _choice('adamw', 'adam', 'sgd', 'adagrad'),
  'learning_rate': _POSITIVE,
  'base_batch_size': _later(_int(0), 0),
  **dict.fromkeys(('b1', 'b2', 'momentum'), _FRACTION),
  'eps': _POSITIVE,
  'weight_decay': _WEIGHT,
  'decay': _choice('matrices', 'all'),
  'clip_norm': _WEIGHT,
  'schedule': _choice('multistep', 'cosine', 'rsqrt', 'constant'),
  'warmup': _duration(),
}
_CLASS_WEIGHTS = _text(
  "none, balanced or a number above 0 for each class, such as '1,2.5,1'",
  r'none|balanced|(\d*\.?\d+)(,\d*\.?\d+)+',
)
_FID = {
  'weights': _text(
    "'', a file or 'random:SEED' with a whole number",
    r'(?!random:)[^\0]*|random:[0-9]{1,9}',
  ),
  'tap': _choice(2048, 768, 192, 64),
  'resize': _choice('clean', 'tf1', 'torch'),
  'quantize': _choice('round', 'truncate', 'none'),
  'num': _choice('all', 'min'),
  'batch_size': _COUNT,
  'kid_subsets': _int(2, 100_000),
  'kid_subset_size': _int(2),
}


# Every key of every config, by task.
RULES: dict[str, dict[str, Rule]] = {
  'classification': flatten(
    {
      **_RUN,
      'data': {
        **_SOURCE,
        'load_size': _optional(_int(1, 65_536)),
        'eval_crop': _optional(_SHARE),
        'sampling': _later(_choice('shuffle', 'balanced'), 'shuffle'),
        'augment': _choice(
          *('none', 'paper', 'crop', 'standard', 'randaugment', 'strong')
        ),
        'crop_scale': _optional(_range(1)),
        'crop_ratio': _optional(_range(100)),
        'crop_padding': _optional(_int(-1, 65_536)),
        'flip_horizontal': _optional(_PROBABILITY),
        'flip_vertical': _optional(_PROBABILITY),
        'randaugment_layers': _optional(_int(0, 100)),
        'randaugment_magnitude': _optional(_float(0, 10, through=True)),
        'erase': _optional(_PROBABILITY),
        **dict.fromkeys(('mixup', 'cutmix'), _optional(_float(0, 1000))),
        'mix_switch': _optional(_PROBABILITY),
        'mean': _rgb(_float(-1000, 1000)),
        'std': _rgb(_float(0, 1000, above=True)),
      },
      'model': {
        **_BLOCK,
        'block': _BLOCKS,
        'variant': _VARIANTS,
        'patch_size': _PATCH,
        'final_norm': _optional(_FLAG),
        'head': _optional(_choice('linear', 'mlp', 'mlp_bn')),
        'head_bias': _optional(_float(-10_000, 10_000)),
        'pool': _choice('cls', 'mean', 'map'),
        'pos_embedding': _choice('learned', 'sincos'),
        'dropout': _FRACTION,
        'stochastic_depth': _FRACTION,
        'remat': _later(
          _choice('none', 'projections', 'hidden', 'full'), 'none'
        ),
        'scan_layers': _later(_FLAG, False),
        'attention': _ATTENTION,
      },
      'optim': {
        **_OPTIM,
        'head_weight_decay': _optional(_WEIGHT),
        'layer_decay': _later(_SHARE, 1.0),
        'freeze': _later(_choice('none', 'backbone'), 'none'),
        'accumulate': _COUNT,
        'ema': _FRACTION,
      },
      'loss': {
        'kind': _choice('softmax', 'sigmoid'),
        'class_weights': _later(_CLASS_WEIGHTS, 'none'),
        'label_smoothing': _FRACTION,
        'input_gradient_penalty': _WEIGHT,
      },
    }
  ),
  'translation': flatten(
    {
      **_RUN,
      'data': {
        **_SOURCE,
        'load_size': _int(1, 65_536),
        'preprocess': _choice('resize_and_crop', 'crop', 'scale_width', 'none'),
        'flip': _FLAG,
        'pairing': _choice('unpaired', 'index', 'paired'),
      },
      'model': {
        **_BLOCK,
        'generator': _choice('vitunet', 'resnet'),
        'block': _optional(_BLOCKS),
        'variant': _optional(_VARIANTS),
        'patch_size': _optional(_PATCH),
        'resample': _optional(_choice('channels', 'space')),
        'dropout': _optional(_FRACTION),
        'attention': _optional(_ATTENTION),
        'blocks': _optional(_int(1, 10_000)),
      },
      'discriminator': {'name': _choice('patchgan70', 'released')},
      'optim': {
        **_OPTIM,
        'schedule': _choice(
          *_OPTIM['schedule'].choices, 'linear', 'linear_released'
        ),
        'decay_start': _duration(),
        'update_order': _choice('generators', 'discriminators'),
        'pool_size': _int(0, 1_000_000),
      },
      'loss': {
        'gan': _choice('lsgan', 'vanilla'),
        **dict.fromkeys(('lambda_cycle', 'lambda_identity'), _WEIGHT),
        'lambda_paired': _later(_WEIGHT, 0.0),
        'discriminator_factor': _WEIGHT,
      },
      'fid': _FID,
      'eval': _RUN['eval'] | {'fid': _later(_FLAG, True)},
      'log': {
        **_RUN['log'],
        'samples': _CADENCE,
        'num_samples': _int(1, 10_000),
      },
    }
  ),
  'fid': flatten(
    {
      **dict.fromkeys(('a', 'b', 'dir'), _PATH),
      **dict.fromkeys(('infinity', 'save_statistics'), _FLAG),
      'fid': _FID,
    }
  ),
}


def validate_fields(
  section: str, fields: Mapping[str, Any], task: str = 'classification'
) -> None:
  """Raises UserError for a field of a section that its key doesn't take."""
  for name, value in fields.items():
    if rule := RULES[task].get(f'{section}.{name}'):
      rule.validate(f'{section}.{name}', value)
