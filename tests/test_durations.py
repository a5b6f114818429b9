"""Durations in steps, epochs and percent, and what is refused."""

import pytest

from vit22b_jax import durations, errors


@pytest.mark.parametrize(
  ('value', 'expected'),
  [
    (500, 500),
    ('500', 500),
    ('500 steps', 500),
    ('1 step', 1),
    ('0 steps', 0),
    ('3 epochs', 39),
    ('1epoch', 13),
    ('0.5 epochs', 6),
    ('10%', 70),
    ('12.5 %', 88),
    ('100%', 701),
    ('.1%', 1),
    ('0%', 0),
    (' 7 ', 7),
  ],
)
def test_steps(value, expected):
  got = durations.steps(value, steps_per_epoch=13, total_steps=701)
  assert got == expected
  assert type(got) is int


@pytest.mark.parametrize(
  'value',
  [
    '',
    'soon',
    '-5',
    -5,
    '3 hours',
    '1.5 steps',
    1.5,
    '101%',
    '1e3',
    True,
    None,
  ],
)
def test_refuses_what_is_not_a_duration(value):
  with pytest.raises(errors.UserError, match=f'duration {value!r}'):
    durations.steps(value, steps_per_epoch=13, total_steps=701)


def test_the_length_of_the_run_is_not_a_part_of_itself():
  with pytest.raises(errors.UserError, match="'200 epochs'"):
    durations.steps('50%', steps_per_epoch=13)


def test_check_names_the_key():
  durations.validate('50%', 'eval.every', positive=True)
  durations.validate('0 epochs', 'optim.warmup')
  with pytest.raises(errors.UserError, match=r"eval\.every: duration 'soon'"):
    durations.validate('soon', 'eval.every')
  with pytest.raises(errors.UserError, match=r"duration: .*'200 epochs'"):
    durations.validate('50%', 'duration', percent=False)
  with pytest.raises(errors.UserError, match="every='0%' must be above 0"):
    durations.validate('0%', 'eval.every', positive=True)
