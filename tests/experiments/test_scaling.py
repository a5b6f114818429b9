"""The scaling experiment: what is planned, and how rows become tables."""

import json

import pytest

from experiments.scaling import plans, sweep, tables
from vit22b_jax import commands


def test_every_size_and_preset_is_planned():
  cells = list(sweep.cells())
  weak = [c for c in cells if c['scaling'] == 'weak']
  assert {(c['variant'], c['sharding']) for c in weak if c['chips'] > 1} == {
    (v, p) for v in sweep.VARIANTS for p in sweep.PRESETS
  }
  assert {c['batch_size'] // c['chips'] for c in weak} == {sweep.CHIP_BATCH}
  strong = [c for c in cells if c['scaling'] == 'strong']
  assert {c['batch_size'] for c in strong} == {sweep.BATCH}
  gpus = {(c['scaling'], c['chips']) for c in cells} & set(sweep.GPUS)
  assert gpus == set(sweep.GPUS)
  for cell in cells:
    commands.validate(sweep.config_of(cell))


def row(cell, **values):
  return {
    **cell,
    'fits': True,
    'hbm_bytes_per_device': 2**31,
    'predicted_step_seconds': 0.5,
    'predicted_seconds': {
      'matmul': 0.1,
      'memory': 0.1,
      'communication': {'fsdp': 0.3},
    },
    'predicted_mfu_no_overlap': 0.25,
    **values,
  }


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A sweep in which one size never fits and one preset is refused."""
  rows = []
  for cell in sweep.cells():
    if cell['variant'] == '22B':
      rows.append(row(cell, fits=False, predicted_step_seconds=None))
    elif cell['variant'] == 'Ti' and cell['sharding'] == 'fsdp+tensor':
      rows.append({**cell, 'fits': False, 'refused': '3 heads'})
    else:
      rows.append(row(cell))
  file = tmp_path / 'sweep.json'
  file.write_text(json.dumps(rows))
  monkeypatch.setattr(sweep, 'SWEEP', file)
  monkeypatch.setattr(tables, 'HERE', tmp_path)
  return tmp_path


def test_tables_of_a_sweep(folder):
  lines = tables.sweep_table().splitlines()
  assert len(lines) == 2 + len(sweep.VARIANTS) * len(sweep.PRESETS)
  assert '| 0.25 (2.0) |' in next(x for x in lines if 'B, fsdp |' in x)
  assert lines[2 + 2].count('refused') == len(sweep.SLICES) - 1
  assert 'no (2.0)' in lines[-1]
  gpus = tables.gpus_table().splitlines()
  assert gpus[0] == '| size | rtx4090:1 | h100:1 | h100:8 | v4:1x1x1 |'
  assert gpus[2] == '| S |' + ' 0.25 (2.0) |' * 4
  assert '**0.3**' in tables.strong_table()
  tables.draw()
  assert (folder / 'memory.png').stat().st_size > 10_000
  assert (folder / 'seconds.png').exists()


def test_the_committed_tables_are_those_of_the_committed_plans():
  readme = tables.HERE / 'README.md'
  assert tables.render(readme.read_text()) == readme.read_text()


def test_each_plan_was_made_by_its_command():
  for name, plan in tables.load():
    assert plan['command'].split()[2:] == plans.command(name), name
