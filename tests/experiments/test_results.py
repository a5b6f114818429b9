"""The README's numbers come from the files under experiments/."""

import json
import pathlib
import shutil

from experiments import collect, results
from tests.helpers import report_fixtures

README = pathlib.Path(__file__).parents[2] / 'README.md'


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
  _set_data_dir(run / 'config.json', '/home/me/tfds')
  folder.mkdir()
  (folder / 'plan.json').write_text('{}')  # of another run that was kept here
  collect.collect(run, folder)
  assert not (folder / 'plan.json').exists()
  before, after = (
    json.loads((path / 'config.json').read_text()) for path in (run, folder)
  )
  assert after['data'].pop('dir') == ''
  before['data'].pop('dir')
  assert after == before
  assert not (folder / 'samples').exists()
  monkeypatch.setattr(results, 'ROOT', tmp_path)
  section = '\n\n'.join(results.runs())
  assert '| fruit | fruit | ViTUnet released_vit Ti' in section
  assert ', uncalibrated | 41.23 | 164.9 |' in section
  assert (folder / 'samples.png').exists()
  assert section.index('| digits | digits |') < section.index('| fruit |')


def _set_data_dir(path, folder):
  config = json.loads(path.read_text())
  config['data']['dir'] = folder
  path.write_text(json.dumps(config))


def test_kept_configs_name_no_folder_of_a_machine():
  for path in (results.ROOT / 'experiments').rglob('config.json'):
    assert json.loads(path.read_text())['data']['dir'] == '', path


def test_no_kept_result_names_a_folder_of_a_machine():
  for path in (results.ROOT / 'experiments').rglob('*.json'):
    assert '--workdir=/' not in path.read_text(), path
    assert 'data.dir=/' not in path.read_text(), path
