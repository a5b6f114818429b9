"""Plans: what is read from a compiled program, predicted, searched and said."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from configs import (
  digits_vit22b_ti,
  fruit_vitunet_ti,
  imagenet_vit22b_l,
  vit22b_22b,
)
from vit22b_jax import commands, errors, plan
from vit22b_jax.plan import (
  collectives,
  costs,
  hlo,
  planner,
  roofline,
  search,
  table,
  topologies,
)
from vit22b_jax.runtime import chips, flops, sharding

DEPTH, WIDTH, ROWS = 5, 7, 11


def compiled(function, *arguments):
  return jax.jit(function).lower(*arguments).compile()


def flops_of(program):
  module = hlo.parse(program.as_text())
  return sum(
    costs.matmul_flops(module.computations[name], instruction) * count
    for name, instruction, count in hlo.executed(module, inside_fusions=True)
  )


def scanned(weights, x):
  return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


def unrolled(weights, x):
  for w in weights:
    x = jnp.tanh(x @ w)
  return x


@pytest.fixture(scope='module')
def layers():
  return jnp.ones((DEPTH, WIDTH, WIDTH)), jnp.ones((ROWS, WIDTH))


def test_a_loop_counts_as_often_as_it_runs(layers):
  work = 2 * ROWS * WIDTH**2 * DEPTH
  scan = compiled(scanned, *layers)
  assert flops_of(scan) == flops_of(compiled(unrolled, *layers)) == work
  # XLA's own analysis counts the body once: what this is for.
  assert scan.cost_analysis()['flops'] < work


def test_loops_within_loops(layers):
  weights, x = layers

  def twice(x):
    return jax.lax.fori_loop(0, 3, lambda _, x: scanned(weights, x), x)

  work = 3 * DEPTH * 2 * ROWS * WIDTH**2
  assert flops_of(compiled(twice, x)) == work


@pytest.mark.parametrize(('step', 'trips'), [(1, 7), (2, 4)])
def test_a_loop_that_xla_does_not_count(step, trips):
  text = (
    '%c (p: (s32[], f32[2])) -> pred[] {\n'
    '  %p = (s32[], f32[2]) parameter(0)\n'
    '  %n = s32[] constant(7)\n'
    '  %i = s32[] get-tuple-element(%p), index=0\n'
    '  ROOT %lt = pred[] compare(%i, %n), direction=LT\n}\n'
    '%b (p.1: (s32[], f32[2])) -> (s32[], f32[2]) {\n'
    '  %p.1 = (s32[], f32[2]) parameter(0)\n'
    '  %j = s32[] get-tuple-element(%p.1), index=0\n'
    '  %x = f32[2]{0} get-tuple-element(%p.1), index=1\n'
    f'  %s = s32[] constant({step})\n'
    '  %k = s32[] add(%j, %s)\n'
    '  ROOT %t = (s32[], f32[2]) tuple(%k, %x)\n}\n'
    'ENTRY %e (q: (s32[], f32[2])) -> (s32[], f32[2]) {\n'
    '  %q = (s32[], f32[2]) parameter(0)\n'
    '  ROOT %w = (s32[], f32[2]) while(%q), condition=%c, body=%b\n}\n'
  )
  module = hlo.parse(text)
  assert hlo.trip_count(module, module.computations['e']['w']) == trips


def test_gradients_and_recomputation_count(layers):
  weights, x = layers

  def loss(weights, policy):
    step = jax.checkpoint(lambda x, w: jnp.tanh(x @ w), policy=policy)
    x_, _ = jax.lax.scan(lambda x, w: (step(x, w), None), x, weights)
    return x_.sum()

  found = []
  for policy in (
    jax.checkpoint_policies.everything_saveable,
    jax.checkpoint_policies.nothing_saveable,
  ):
    program = compiled(jax.grad(lambda w, p=policy: loss(w, p)), weights)
    work = roofline.measure(hlo.parse(program.as_text()), {'data': 1})
    found.append((work.flops, work.recomputed_flops))
  forward = 2 * ROWS * WIDTH**2 * DEPTH
  assert found == [(3 * forward, 0), (4 * forward, forward)]


@pytest.mark.parametrize(
  ('window', 'expected'),
  [
    # Every output meets the middle of the kernel alone: a batch axis in a
    # window's clothes.
    ({'size': 4, 'low': 3, 'stride': 1, 'dilation': 1}, 4),
    ({'size': 16, 'low': 0, 'stride': 15, 'dilation': 16}, 16),
    ({'size': 3, 'low': 1, 'stride': 1, 'dilation': 1}, 3 * 8 - 2),
  ],
)
def test_padding_and_dilation_count_nothing(window, expected):
  length, outputs = {4: (1, 4), 16: (16, 16), 3: (8, 8)}[window['size']]
  text = (
    'ENTRY %e (a: f32[1], b: f32[1]) -> f32[1] {\n'
    f'  %a = f32[1,{length},5]{{2,1,0}} parameter(0)\n'
    f'  %b = f32[{window["size"]},5,3]{{2,1,0}} parameter(1)\n'
    f'  ROOT %c = f32[1,{outputs},3]{{2,1,0}} convolution(%a, %b), '
    f'window={{size={window["size"]} stride={window["stride"]} '
    f'pad={window["low"]}_{window["low"]} lhs_dilate={window["dilation"]}}}, '
    'dim_labels=b0f_0io->b0f\n}\n'
  )
  module = hlo.parse(text)
  instruction = module.computations['e']['c']
  found = costs.matmul_flops(module.computations['e'], instruction)
  assert found == 2 * 5 * 3 * expected


def test_float32_at_highest_precision_is_six_products():
  text = (
    'ENTRY %e (a: f32[2,3]) -> f32[2,2] {\n'
    '  %a = f32[2,3]{1,0} parameter(0)\n'
    '  %b = bf16[2,3]{1,0} convert(%a)\n'
    '  %d = f32[2,2]{1,0} dot(%a, %a), lhs_contracting_dims={1}, '
    'rhs_contracting_dims={1}, operand_precision={highest,highest}\n'
    '  ROOT %h = f32[2,2]{1,0} dot(%b, %b), lhs_contracting_dims={1}, '
    'rhs_contracting_dims={1}, operand_precision={highest,highest}\n}\n'
  )
  computation = hlo.parse(text).computations['e']
  assert costs.passes(computation, computation['d']) == 6
  assert costs.passes(computation, computation['h']) == 1


def test_slices_and_updates_in_place_count_as_what_they_touch():
  table_ = jnp.zeros((1000, 8))

  def body(i, table_):
    row = jax.lax.dynamic_slice(table_, (i, 0), (1, 8))
    return jax.lax.dynamic_update_slice(table_, row + 1, (i, 0))

  program = jax.jit(
    lambda t: jax.lax.fori_loop(0, 10, body, t), donate_argnums=0
  )
  module = hlo.parse(program.lower(table_).compile().as_text())
  work = roofline.measure(module, {'data': 1})
  # Ten rows read and written, and some counters: not ten tables.
  assert 10 * 2 * 32 <= work.bytes < table_.nbytes


@pytest.fixture(scope='module')
def mesh():
  return sharding.make_mesh(data=2, fsdp=2, tensor=2)


def on(mesh, x, *spec):
  return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))


@pytest.mark.parametrize(
  ('axes', 'devices'), [(('tensor',), 2), (('data', 'fsdp'), 4)]
)
def test_collectives_by_axis_and_bytes(mesh, axes, devices):
  whole = NamedSharding(mesh, PartitionSpec())
  x = on(mesh, jnp.ones((24, 16)), axes)
  weights = on(mesh, jnp.ones((3, 16, 24)), None, None, axes)

  def step(x, weights):
    gathered = jax.lax.with_sharding_constraint(x, whole)
    add = lambda total, w: (total + jnp.sum(w @ gathered), None)  # noqa: E731
    return jax.lax.scan(add, 0.0, weights)[0]

  module = hlo.parse(compiled(step, x, weights).as_text())
  found = collectives.find(module, dict(mesh.shape))
  assert {c.axes for c in found} == {axes}
  (gather,) = [c for c in found if c.kind == 'all-gather']
  assert len(gather.group) == devices
  assert gather.bytes == 24 * 16 * 4
  assert gather.wire_bytes == gather.bytes * (devices - 1) / devices
  sums = [c for c in found if c.kind == 'all-reduce']
  assert sum(c.count for c in sums) in (1, 3)  # in the loop, or after it


@pytest.mark.parametrize(
  ('text', 'group'),
  [
    ('replica_groups={{0,3},{1,2}}', (0, 3)),
    ('replica_groups={}', tuple(range(8))),
    ('replica_groups=[2,4]<=[8]', (0, 1, 2, 3)),
    ('replica_groups=[2,4]<=[4,2]T(1,0)', (0, 2, 4, 6)),
    ("replica_groups=mesh['a'=4,'b'=2] {'a'}", (0, 2, 4, 6)),
    (
      "replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}",
      (0, 2, 4, 6),
    ),
    ('source_target_pairs={{0,2},{2,0}}', (0, 2)),
  ],
)
def test_every_way_to_write_groups_is_read(text, group):
  line = f'f32[8]{{0}} all-reduce(%p), channel_id=1, {text}, x={{}}'
  module = hlo.parse(
    'ENTRY %e (p: f32[8]) -> f32[8] {\n'
    f'  %p = f32[8]{{0}} parameter(0)\n  ROOT %r = {line}\n}}\n'
  )
  (found,) = collectives.find(module, {'data': 2, 'fsdp': 2, 'tensor': 2})
  assert found.group == group


def test_unknown_groups_are_an_error():
  module = hlo.parse(
    'ENTRY %e (p: f32[8]) -> f32[8] {\n  %p = f32[8]{0} parameter(0)\n'
    '  ROOT %r = f32[8]{0} all-reduce(%p), replica_groups=?\n}\n'
  )
  with pytest.raises(ValueError, match='unknown form'):
    collectives.find(module, {'data': 8})


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
      collectives.Collective('all-gather', 20, (0, 1, 2, 3), ('fsdp',), 2, ''),
      collectives.Collective('all-reduce', 10, (0, 1), ('data',), 1, ''),
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
  eight = topologies.find('h100:16')
  chip = eight.chip
  assert topologies.bandwidth(eight, None, (0, 7)) == chip.link_bandwidth
  assert topologies.bandwidth(eight, None, (0, 8)) == chip.network_bandwidth
  all_ = topologies.bandwidth(eight, None, tuple(range(16)))
  assert all_ == min(chip.link_bandwidth, 8 * chip.network_bandwidth)


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('v9:2x2', 'is not known'),
    ('v5e', 'is not known'),
    ('v5e:2xa', 'is not known'),
    ('v4:2x2', '3 axes'),
    ('h10:8', 'h100'),
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
def local(tmp_path_factory):
  """plan.json of a tiny classifier on the simulated devices."""
  folder = tmp_path_factory.mktemp('plan')
  config = digits_vit22b_ti.get_config('tiny')
  assert plan.run(config, str(folder), 'local', search=False) == 0
  return config, json.loads((folder / plan.PLAN).read_text())


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
  text = table.render(found)
  for part in ('fits', 'Prediction, not a measurement', 'over data', '0.549'):
    assert part in text


def test_what_does_not_fit_is_an_answer(local):
  config, _ = local
  small = dataclasses.replace(topologies.find('local').chip, hbm_bytes=1000)
  here = topologies.Topology('local', small, (8,), jax.devices())
  found = planner.plan(config, here)
  assert not found['fits']
  text = table.render(found)
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
  with pytest.raises(errors.UserError, match='could not compile'):
    planner._too_large(found, jax.errors.JaxRuntimeError('INTERNAL: x'), 1.0)


def test_gpus_are_estimated():
  config = vit22b_22b.get_config()
  found = planner.plan(config, topologies.find('h100:1024'))
  assert found['method'] == 'estimated'
  memory = found['memory']
  # Weights in float32, split but for the vectors; and two moments of each.
  held = 4 * found['parameters'] / found['mesh']['fsdp']
  assert held <= memory['parameters'] < 1.3 * held
  assert memory['optimizer'] == pytest.approx(
    2 * memory['parameters'], rel=1e-3
  )
  again = found['recomputed_flops_per_device']
  assert 0.05 < again / found['hardware_flops_per_device'] < 0.1
  assert 0.3 < found['predicted_mfu_no_overlap'] < 1
  assert 'Estimated' in table.render(found)


def test_gpus_are_not_estimated_for_translation():
  config = fruit_vitunet_ti.get_config('tiny')
  with pytest.raises(errors.UserError, match='topology=local'):
    planner.plan(config, topologies.find('a100:8'))


def test_a_mesh_that_does_not_match_is_refused():
  config = digits_vit22b_ti.get_config('tiny')
  with config.unlocked():
    config.mesh.data = 3
  with pytest.raises(errors.UserError, match='does not suit 8 devices'):
    planner.plan(config, topologies.find('local'))


def test_search_takes_the_fastest_that_fits(monkeypatch):
  """On a made-up cost: memory falls with parts and recomputation."""
  seconds = {'none': 1.0, 'projections': 1.1, 'hidden': 1.2, 'full': 1.5}
  needs = {'none': 64, 'projections': 32, 'hidden': 16, 'full': 4}

  def fake(config, topology, *, efficiency):
    parts, remat = config.optim.accumulate, config.model.remat
    size = needs[remat] / parts * config.mesh.tensor
    return {
      'config': config.to_dict(),
      'mesh': dict(config.mesh),
      'fits': size <= 8,
      'hbm_bytes_per_device': size,
      'hbm_capacity_bytes': 8,
      'predicted_step_seconds': seconds[remat] + 0.1 * parts,
    }

  monkeypatch.setattr(planner, 'plan', fake)
  config = vit22b_22b.get_config('tiny')
  with config.unlocked():
    config.batch_size = 64
  best, tried = search.fastest(config, topologies.find('h100:8'))
  assert best['config']['model']['remat'] == 'hidden'
  assert best['config']['optim']['accumulate'] == 2
  assert best['mesh']['tensor'] == 1
  meshes = [tuple(p['mesh'][axis] for axis in sharding.AXES) for p in tried]
  assert {(8, 1, 1), (1, 8, 1)} < set(meshes)
  fitting = [p for p in tried if p['fits']]
  assert best['predicted_step_seconds'] == min(
    p['predicted_step_seconds'] for p in fitting
  )


def test_search_from_the_command_line(monkeypatch, tmp_path, capsys):
  """One mesh and policy for real; twice the batch is more than there are."""
  monkeypatch.setattr(search.memory, 'REMAT', {'hidden': ()})
  monkeypatch.setattr(
    search, 'meshes', lambda config, n: [{'data': 1, 'fsdp': 8, 'tensor': 1}]
  )
  config = digits_vit22b_ti.get_config('tiny')
  with config.unlocked():
    config.batch_size = 1024
  assert plan.run(config, str(tmp_path), 'local', search=True) == 0
  found = json.loads((tmp_path / plan.PLAN).read_text())
  assert found['largest_batch_size'] == 1024
  assert found['config']['model']['remat'] == 'hidden'
  assert [p['fits'] for p in found['tried']] == [True]
  assert 'no more images' in capsys.readouterr().out


def test_search_is_for_classifiers():
  config = fruit_vitunet_ti.get_config('tiny')
  with pytest.raises(errors.UserError, match='without it'):
    search.fastest(config, topologies.find('local'))


def test_flags_of_a_plan_need_its_mode():
  config = digits_vit22b_ti.get_config('tiny')
  with pytest.raises(errors.UserError, match='--mode=plan'):
    commands.run('train', config=config, workdir='w', topology='v5e:2x4')


def test_a_gpus_library_calls_count():
  text = (
    'ENTRY %e (a: f32[5,3]) -> f32[5,7] {\n'
    '  %a = bf16[5,3]{1,0} parameter(0)\n  %b = bf16[3,7]{1,0} parameter(1)\n'
    '  ROOT %c = (bf16[5,7]{1,0}, s8[64]{0}) custom-call(%a, %b), '
    'custom_call_target="__cublas$lt$matmul", backend_config={'
    '"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}\n}\n'
  )
  computation = hlo.parse(text).computations['e']
  assert costs.matmul_flops(computation, computation['c']) == 2 * 5 * 3 * 7


def test_what_a_combined_gather_starts():
  text = (
    'ENTRY %e (a: f32[8]) -> f32[8] {\n'
    '  %a = f32[8]{0} parameter(0)\n  %b = f32[16]{0} parameter(1)\n'
    '  ROOT %s = ((f32[8]{0}, f32[16]{0}), (f32[64]{0}, f32[128]{0})) '
    'all-gather-start(%a, %b), replica_groups={{0,1,2,3,4,5,6,7}}\n}\n'
  )
  (found,) = collectives.find(hlo.parse(text), {'data': 8})
  assert found.bytes == 4 * (64 + 128)


needs_libtpu = pytest.mark.skipif(
  topologies.libtpu_version() is None,
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
    with config.unlocked():
      config.batch_size = 32_768
      config.optim.accumulate = 1
    found = planner.plan(config, topologies.find('v5e:2x4'))
    assert not found['fits']
    assert found['hbm_bytes_per_device'] > found['hbm_usable_bytes']
    assert 'too much' in table.render(found)


def three_layers(*, scan):
  """The recipe of the full size with three narrow blocks."""
  config = vit22b_22b.get_config('tiny')
  with config.unlocked():
    config.model.depth = 3
    config.model.scan_layers = scan
    config.optim.accumulate = 1
  return config
