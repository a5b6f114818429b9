"""The README's numbers come from the files under experiments/."""

import pathlib

from experiments import results

README = pathlib.Path(__file__).parent.parent / 'README.md'


def test_readme_is_up_to_date():
  text = README.read_text()
  assert results.render(text) == text, 'run python -m experiments.results'


def test_readme_pictures_exist():
  for line in README.read_text().splitlines():
    if line.startswith('!['):
      target = line.split('](')[1].rstrip(')')
      assert (README.parent / target).exists(), target
