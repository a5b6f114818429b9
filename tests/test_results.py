"""The README's numbers come from the files under experiments/."""

import pathlib
import shutil

from experiments import collect, results
from tests import report_fixtures

README = pathlib.Path(__file__).parent.parent / 'README.md'


def test_readme_is_up_to_date():
  text = README.read_text()
  assert results.render(text) == text, 'run python -m experiments.results'


def test_readme_pictures_exist():
  for line in README.read_text().splitlines():
    if line.startswith('!['):
      target = line.split('](')[1].rstrip(')')
      assert (README.parent / target).exists(), target


def test_translations_come_with_a_table_and_their_samples(
  tmp_path, monkeypatch
):
  digits = results.ROOT / 'experiments' / 'digits' / 'seed_0'
  shutil.copytree(digits, tmp_path / 'experiments' / 'digits')
  run = report_fixtures.make_translation(tmp_path / 'run', steps=200, every=100)
  folder = tmp_path / 'experiments' / 'fruit'
  collect.collect(run, folder)
  assert not (folder / 'samples').exists()
  monkeypatch.setattr(results, 'ROOT', tmp_path)
  section = results.section()
  assert '| fruit | fruit | ViTUnet released_vit Ti' in section
  assert ', uncalibrated | 41.23 | 164.9 |' in section
  assert '](experiments/fruit/samples.png)' in section
  assert (folder / 'samples.png').exists()
  assert section.index('| digits | digits |') < section.index('| fruit |')
