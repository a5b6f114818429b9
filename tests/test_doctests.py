"""The examples in docstrings print what they say."""

import doctest
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# By their sources: imports cost seconds, and every worker collects.
MODULES = [
  '.'.join(path.relative_to(ROOT).with_suffix('').parts)
  for path in sorted((ROOT / 'vit22b_jax').rglob('*.py'))
  if '>>> ' in path.read_text()
]


def test_there_are_examples():
  assert len(MODULES) >= 30


@pytest.mark.parametrize('name', MODULES)
def test_examples(name):
  found = doctest.testmod(
    importlib.import_module(name.removesuffix('.__init__'))
  )
  assert found.attempted
  assert not found.failed
