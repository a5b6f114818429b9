"""What a message about a typo ends with."""

import pytest

from vit22b_jax import errors


@pytest.mark.parametrize(
  ('value', 'expected'),
  [
    ('cosin', " Did you mean 'cosine'?"),
    ('sin', " Did you mean 'cosine'?"),
    ('quux', ''),
    (7, ''),
  ],
)
def test_did_you_mean(value, expected):
  known = (name for name in ('constant', 'cosine', 'rsqrt'))
  assert errors.did_you_mean(value, known) == expected
