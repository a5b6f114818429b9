"""The examples in docstrings print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import vit22b_jax

MODULES = [
  module.name
  for module in pkgutil.walk_packages(vit22b_jax.__path__, 'vit22b_jax.')
]


def _with_examples():
  """Modules with `>>>` in a docstring, found in their sources."""
  for name in MODULES:
    source = importlib.util.find_spec(name).origin
    with open(source) as file:
      if '>>> ' in file.read():
        yield name


def test_there_are_examples():
  assert len(list(_with_examples())) >= 15


@pytest.mark.parametrize('name', sorted(_with_examples()))
def test_examples(name):
  found = doctest.testmod(importlib.import_module(name))
  assert found.attempted
  assert not found.failed
