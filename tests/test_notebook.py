"""The notebook's cells run, top to bottom, in a folder of their own."""

import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOK = ROOT / 'experiments' / 'quickstart.ipynb'


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  monkeypatch.chdir(tmp_path)
  content = json.loads(NOTEBOOK.read_text())
  cells = [c for c in content['cells'] if c['cell_type'] == 'code']
  assert all(not c['outputs'] for c in cells)  # results come from running it
  namespace = {}
  for cell in cells:
    exec(''.join(cell['source']), namespace)
  assert namespace['done'].returncode == 0, namespace['done'].stderr
  assert namespace['probabilities'].shape == (6, 10)
  assert (tmp_path / 'runs' / 'quickstart' / 'report.html').exists()
