"""Plans: what is predicted of a program, searched and said."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from configs import (
  digits_vit22b_ti,
  fruit_vitunet_ti,
  imagenet_vit22b_l,
  vit22b_22b,
)
from tests import test_main
from vit22b_jax import errors, plan
from vit22b_jax.plan import (
  collectives,
  planner,
  rendering,
  roofline,
  search,
  topologies,
)
from vit22b_jax.runtime import chips, flops, sharding


def test_prediction_by_hand():
  chip = chips.Chip(
    name='x', kind='x', flops=100.0, hbm_bandwidth=10.0, link_bandwidth=5.0
  )
  work = roofline.Work(
    operations=[
      roofline.Operation(flops=200, passes=1, bytes=5, count=3),  # 2 s, 0.5 s
      roofline.Operation(flops=0, passes=1, bytes=40, count=1),  # 4 s
      roofline.Operation(flops=100, passes=1, bytes=30, count=1),  # 1 s, 3 s
    ],
    collectives=[
      collectives.Collective('all-gather', 20, (0, 1, 2, 3), ('fsdp',), 2),
      collectives.Collective('all-reduce', 10, (0, 1), ('data',), 1),
    ],
    recomputed_flops=0,
  )
  found = roofline.predict(work, chip, lambda group: 5.0)
  assert found.matmul == pytest.approx(7)
  assert found.memory == pytest.approx(4 + 2)
  assert found.communication == pytest.approx({'fsdp': 6.0, 'data': 2.0})
  assert found.no_overlap == pytest.approx(21)
  assert found.overlap == pytest.approx(13)
  half = roofline.predict(work, chip, lambda group: 5.0, efficiency=0.5)
  assert half.matmul == pytest.approx(14)
  assert half.memory == pytest.approx(4 + 1)


@dataclasses.dataclass
class Device:
  coords: tuple[int, ...]


def test_bandwidth_of_rings_and_lines():
  shape = (8, 4, 4)
  places = [Device(c) for c in np.ndindex(*shape)]
  mesh = types.SimpleNamespace(devices=np.array(places).reshape(8, 16))
  chip = chips.named('v4')
  slice_ = topologies.Topology('v4:8x4x4', chip, shape, places)
  link = chip.link_bandwidth

  def links(*group):
    return topologies.bandwidth(slice_, mesh, group) / link

  assert links(*range(0, 128, 16)) == 2  # the whole first axis: a ring
  assert links(0, 16) == 1  # a part of it: a line
  assert links(*range(128)) == 2 + 2 + 2
  # Slices smaller than a cube of 4 x 4 x 4 are meshes, without rings.
  small = topologies.Topology('v4:4x4x2', chip, (4, 4, 2), places)
  places = [Device(c) for c in np.ndindex(4, 4, 2)]
  mesh = types.SimpleNamespace(devices=np.array(places))
  assert topologies.bandwidth(small, mesh, tuple(range(32))) == 3 * link


def test_gpus_leave_their_node_together():
  chip = chips.named('h100')
  nodes = topologies.Topology('h100:16', chip, (16,), ())

  def bandwidth(ids, group):
    devices = np.array([types.SimpleNamespace(id=i) for i in ids])
    mesh = types.SimpleNamespace(devices=devices)
    return topologies.bandwidth(nodes, mesh, group)

  ids = np.arange(16)
  assert bandwidth(ids, (0, 7)) == chip.link_bandwidth
  assert bandwidth(ids, (0, 8)) == chip.network_bandwidth
  all_ = min(chip.link_bandwidth, 8 * chip.network_bandwidth)
  assert bandwidth(ids, tuple(range(16))) == all_
  # A mesh may put them in another order.
  ids = ids.reshape(2, 8).T.ravel()
  assert bandwidth(ids, (0, 2)) == chip.link_bandwidth
  assert bandwidth(ids, (0, 1)) == chip.network_bandwidth


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('v9:2x2', 'is not known'),
    ('v5e', 'is not known'),
    ('v5e:2xa', 'is not known'),
    ('v4:2x2', '3 axes'),
    ('h10:8', 'h100'),
    ('h100:²', 'is not known'),
    ('h100:0', 'is not known'),
    ('h100:8x', 'is not known'),
    ('h100:99999999', 'is not known'),
    ('local:8', 'is not known'),
  ],
)
def test_unknown_hardware_is_an_error_that_lists_it(name, message):
  with pytest.raises(errors.UserError, match=message):
    topologies.find(name)


def test_without_libtpu_the_error_says_how_to_get_it(monkeypatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(errors.UserError, match=r"pip install '\.\[tpu\]'"):
    topologies.find('v5e:2x4')


@pytest.fixture(scope='module')
def program():
  """The compiled step of the plan below, once there is one."""
  return []


@pytest.fixture(scope='module')
def local(tmp_path_factory, program):
  """plan.json of a tiny classifier on the simulated devices."""
  folder = tmp_path_factory.mktemp('plan')
  config = digits_vit22b_ti.get_config('tiny')
  compile_for = topologies.compile_for
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      topologies,
      'compile_for',
      lambda *given: program.append(compile_for(*given)) or program[0],
    )
    assert plan.run(config, str(folder), 'local', search=False) == 0
  return config, json.loads((folder / plan.PLAN).read_text())


@pytest.fixture
def compiled_before(local, program, monkeypatch):
  """Spares other plans their compilation."""
  monkeypatch.setattr(topologies, 'compile_for', lambda *given: program[0])


def test_a_plan_for_the_devices_at_hand(local):
  config, found = local
  assert found['fits'] and found['devices'] == 8
  assert found['batch_size'] == config.batch_size
  memory = found['memory']
  assert memory['optimizer'] >= 2 * memory['parameters'] > 0
  assert 4 * found['parameters'] == memory['parameters']
  assert sum(memory.values()) == found['hbm_bytes_per_device']
  model = found['model_flops_per_device']
  side = config.data.image_size // config.model.patch_size
  assert model * 8 == config.batch_size * flops.training_flops(
    depth=1, width=32, mlp_dim=64, tokens=side**2 + 1
  )
  # Besides the blocks: patches and head.
  assert model < found['hardware_flops_per_device'] < 1.7 * model
  assert found['recomputed_flops_per_device'] == 0
  assert {c['axes'] for c in found['collectives']} == {'data'}
  seconds = found['predicted_seconds']
  parts = (
    seconds['matmul'],
    seconds['memory'],
    sum(seconds['communication'].values()),
  )
  assert found['predicted_step_seconds'] == pytest.approx(sum(parts))
  assert found['predicted_step_seconds_overlap'] == pytest.approx(
    max(parts[0] + parts[1], parts[2])
  )
  assert found['predicted_mfu_overlap'] > found['predicted_mfu_no_overlap'] > 0
  assert found['predicted_chip_hours'] == pytest.approx(
    sum(parts) * found['total_steps'] * 8 / 3600
  )


def test_a_plan_in_words(local):
  _, found = local
  text = rendering.render(found)
  for part in ('fits', 'Prediction, not a measurement', 'over data', '0.549'):
    assert part in text


@pytest.mark.usefixtures('compiled_before')
def test_what_does_not_fit_is_an_answer(local):
  config, _ = local
  small = dataclasses.replace(topologies.find('local').chip, hbm_bytes=1000)
  here = topologies.Topology('local', small, (8,), jax.devices())
  found = planner.plan(config, here)
  assert not found['fits']
  text = rendering.render(found)
  assert 'DOES NOT FIT' in text and 'too much' in text


def test_out_of_memory_is_read_from_the_compilers_words():
  found = {
    'topology': 'v5e:2x4',
    'memory': {'parameters': 1},
    'hbm_capacity_bytes': 16 * 2**30,
  }
  for words, needed in (
    (
      'Ran out of memory on HBM, the total memory required for HLO temporaries '
      '(43.07G) exceeds available HBM (15.75G).',
      43.07,
    ),
    (
      'Ran out of memory in memory space hbm. Used 27.70G of 15.75G hbm.',
      27.7,
    ),
    (
      'Ran out of memory in memory space vmem. Used 17.20M of 16.00M vmem. '
      'HLO temporaries (20.00G) exceeds available HBM (15.75G)',
      20,
    ),
  ):
    error = jax.errors.JaxRuntimeError(f'RESOURCE_EXHAUSTED: {words}')
    plan_ = planner._too_large(found, error, 1.0)
    assert not plan_['fits']
    assert plan_['hbm_bytes_per_device'] == pytest.approx(needed * 2**30)
    assert plan_['hbm_usable_bytes'] == pytest.approx(15.75 * 2**30)
  error = jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory')
  plan_ = planner._too_large(found, error, 1.0)
  assert plan_['hbm_bytes_per_device'] >= plan_['hbm_usable_bytes']
  large = found | {'memory': {'parameters': 9 * 2**30, 'other': 9 * 2**30}}
  plan_ = planner._too_large(large, error, 1.0)
  assert plan_['hbm_bytes_per_device'] == 18 * 2**30  # the whole state
  with pytest.raises(errors.UserError, match='could not compile'):
    planner._too_large(found, jax.errors.JaxRuntimeError('INTERNAL: x'), 1.0)


def test_a_mesh_that_does_not_match_is_refused():
  config = digits_vit22b_ti.get_config('tiny')
  config.mesh.data = 3
  with pytest.raises(errors.UserError, match='does not suit 8 devices'):
    planner.plan(config, topologies.find('local'))


def test_search_takes_the_fastest_that_fits():
  """On a made-up cost: memory falls with parts and recomputation."""
  seconds = {'none': 1.0, 'projections': 1.1, 'hidden': 1.2, 'full': 1.5}
  needs = {'none': 64, 'projections': 32, 'hidden': 16, 'full': 4}

  def fake(config):
    parts, remat = config.optim.accumulate, config.model.remat
    size = needs[remat] / parts * config.mesh.tensor
    return {
      'config': config.to_dict(),
      'mesh': dict(config.mesh),
      'fits': size <= 8,
      'hbm_bytes_per_device': size,
      'hbm_capacity_bytes': 8,
      # A program of an unknown form has no prediction.
      'predicted_step_seconds': (
        None if config.mesh.tensor > 1 else seconds[remat] + 0.1 * parts
      ),
    }

  config = vit22b_22b.get_config('tiny')
  config.batch_size = 64
  best, tried = search.fastest(config, 8, fake)
  assert best['config']['model']['remat'] == 'hidden'
  assert best['config']['optim']['accumulate'] == 2
  assert best['mesh']['tensor'] == 1
  meshes = [tuple(p['mesh'][axis] for axis in sharding.AXES) for p in tried]
  assert {(8, 1, 1), (1, 8, 1)} < set(meshes)
  fitting = [p for p in tried if p['fits']]
  assert best['predicted_step_seconds'] == min(
    p['predicted_step_seconds'] or np.inf for p in fitting
  )


@pytest.mark.usefixtures('compiled_before')
def test_search_from_the_command_line(monkeypatch, tmp_path, capsys):
  """One mesh and policy; twice the batch is more than there are."""
  monkeypatch.setattr(search.remat_lib, 'REMAT', {'hidden': ()})
  monkeypatch.setattr(
    search, 'meshes', lambda config, n: [{'data': 1, 'fsdp': 8, 'tensor': 1}]
  )
  config = digits_vit22b_ti.get_config('tiny')
  config.batch_size = 1024
  assert plan.run(config, str(tmp_path), 'local', search=True) == 0
  found = json.loads((tmp_path / plan.PLAN).read_text())
  assert found['largest_batch_size'] == 1024
  assert found['config']['model']['remat'] == 'hidden'
  assert [p['fits'] for p in found['tried']] == [True]
  said = capsys.readouterr().out
  assert 'no more images' in said
  assert 'Without microbatches: remat hidden fits (0.' in said


def test_which_remat_fits_is_said():
  def plan_(remat, parts, gib, fits):
    return {
      'config': {'optim': {'accumulate': parts}, 'model': {'remat': remat}},
      'hbm_bytes_per_device': gib * 2**30,
      'fits': fits,
    }

  tried = [
    plan_('none', 1, 40, False),
    plan_('none', 2, 20, True),
    plan_('projections', 1, 30, False),
    plan_('projections', 1, 28, False),  # on another mesh
    plan_('hidden', 1, 15, True),
  ]
  assert rendering.choices(tried) == (
    'Without microbatches: remat none does not fit (40.00 GiB), remat '
    'projections does not fit (28.00 GiB), remat hidden fits (15.00 GiB).'
  )


def test_search_is_for_classifiers():
  config = fruit_vitunet_ti.get_config('tiny')
  with pytest.raises(errors.UserError, match='without it'):
    search.fastest(config, 8, planner.plan)


@pytest.mark.parametrize('efficiency', ['nan', '0', '-1', '1.5', '1e300'])
def test_no_part_of_the_peak(efficiency, tmp_path, capsys):
  given = f'--workdir={tmp_path}', f'--matmul_efficiency={efficiency}'
  assert test_main.call('--mode=plan', test_main.CONFIG, *given) == 2
  assert 'matmul_efficiency=' in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_flags_of_a_plan_need_its_mode(capsys):
  assert test_main.call(test_main.CONFIG, '--topology=v5e:2x4') == 2
  assert '--mode=plan' in capsys.readouterr().err


needs_libtpu = pytest.mark.skipif(
  topologies.compiler_versions()['libtpu'] is None,
  reason="libtpu is not installed: pip install '.[tpu]'",
)


@pytest.mark.slow
@needs_libtpu
class TestTpu:
  """Programs for TPUs, compiled without one."""

  @pytest.mark.parametrize(
    ('name', 'devices'), [('v4:2x2x1', 4), ('v5e:2x4', 8), ('v5p:1x1x1', 1)]
  )
  def test_a_chip_counts_once(self, name, devices):
    assert len(topologies.find(name).devices) == devices

  def test_an_unknown_slice_is_refused(self):
    with pytest.raises(errors.UserError, match='does not know such a slice'):
      topologies.find('v5e:3x5')

  def test_a_scanned_step_counts_as_an_unrolled_one(self):
    found = []
    for scan in (True, False):
      found.append(
        planner.plan(three_layers(scan=scan), topologies.find('v5e:2x4'))
      )
      assert found[-1]['fits'] and found[-1]['versions']['libtpu']
      axes_ = {c['axes'] for c in found[-1]['collectives']}
      assert any('fsdp' in axis for axis in axes_)
    scanned_, unrolled_ = (f['hardware_flops_per_device'] for f in found)
    assert scanned_ == pytest.approx(unrolled_, rel=0.01)
    assert scanned_ > found[0]['model_flops_per_device']

  def test_too_large_says_by_how_much(self):
    config = imagenet_vit22b_l.get_config()
    config.batch_size = 32_768
    config.optim.accumulate = 1
    found = planner.plan(config, topologies.find('v5e:2x4'))
    assert not found['fits']
    assert found['hbm_bytes_per_device'] > found['hbm_usable_bytes']
    assert 'too much' in rendering.render(found)


def three_layers(*, scan):
  """The recipe of the full size with three narrow blocks."""
  config = vit22b_22b.get_config('tiny')
  config.model.depth = 3
  config.model.scan_layers = scan
  config.optim.accumulate = 1
  return config
