"""What is read from a compiled program: arithmetic, bytes, collectives."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vit22b_jax.plan import collectives, costs, hlo, roofline
from vit22b_jax.runtime import chips, sharding

DEPTH, WIDTH, ROWS = 5, 7, 11
V4, H100 = chips.named('v4'), chips.named('h100')


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


def test_draws_that_are_repeated_by_chance_count_once(layers):
  def mixed(x, key):
    return jax.random.beta(key, 0.2, 0.2) * x @ x.T

  program = compiled(mixed, layers[1], jax.random.key(0))
  assert program.as_text().count(' while(') >= 2
  assert flops_of(program) == 2 * ROWS**2 * WIDTH


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
    work = roofline.measure(hlo.parse(program.as_text()), {'data': 1}, V4)
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
  assert costs.passes(computation, computation['d'], V4) == 6
  assert costs.passes(computation, computation['h'], V4) == 1


def test_slices_and_updates_in_place_count_as_what_they_touch():
  table_ = jnp.zeros((1000, 8))

  def body(i, table_):
    row = jax.lax.dynamic_slice(table_, (i, 0), (1, 8))
    return jax.lax.dynamic_update_slice(table_, row + 1, (i, 0))

  program = jax.jit(
    lambda t: jax.lax.fori_loop(0, 10, body, t), donate_argnums=0
  )
  module = hlo.parse(program.lower(table_).compile().as_text())
  work = roofline.measure(module, {'data': 1}, V4)
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


def gpu_call(target, arguments, results, attributes='', chip=H100):
  """The FLOPs, passes and bytes of a call of a GPU's library."""
  lines = [
    f'  %p{i} = {shape} parameter({i})\n' for i, shape in enumerate(arguments)
  ]
  names = ', '.join(f'%p{i}' for i in range(len(arguments)))
  text = (
    'ENTRY %e (p: f32[1]) -> f32[1] {\n' + ''.join(lines) + f'  ROOT %c = '
    f'({results}, u8[4096]{{0}}) custom-call({names}), '
    f'custom_call_target="{target}"{attributes}\n}}\n'
  )
  module = hlo.parse(text)
  computation = module.computations['e']
  call = computation['c']
  return (
    costs.matmul_flops(computation, call),
    costs.passes(computation, call, chip),
    costs.memory_bytes(module, computation, call),
  )


def test_cudnn_attention_counts():
  B, L, N, K = 2, 6, 3, 8
  arrays = [f'bf16[{B},{L},{N},{K}]{{3,2,1,0}}'] * 3
  size = 2 * B * L * N * K
  product = 2 * B * N * L * L * K
  forward = gpu_call('__cudnn$fmhaSoftmax', arrays, arrays[0])
  assert forward == (2 * product, 1, 4 * size)
  backward = gpu_call('__cudnn$fmhaSoftmaxBackward', arrays, ', '.join(arrays))
  assert backward == (5 * product, 1, 6 * size)


@pytest.mark.parametrize(
  ('target', 'arguments', 'result'),
  [
    ('Forward', 'xk', 'y'),
    ('BackwardInput', 'yk', 'x'),
    ('BackwardFilter', 'xy', 'k'),
  ],
)
def test_cudnn_convolutions_count_alike(target, arguments, result):
  """3 x 3 over 8 x 8 padded to as many outputs: 22 pairs along each axis."""
  shapes = {
    'x': 'f32[2,8,8,5]{3,2,1,0}',
    'k': 'f32[7,3,3,5]{3,2,1,0}',
    'y': 'f32[2,8,8,7]{3,2,1,0}',
  }
  attributes = ', window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f'
  flops_, passes, _ = gpu_call(
    f'__cudnn$conv{target}',
    [shapes[a] for a in arguments],
    shapes[result],
    attributes,
  )
  assert flops_ == 2 * 2 * 5 * 7 * 22**2
  assert passes == costs.TENSOR_FLOAT_PASSES


@pytest.mark.parametrize(
  ('name', 'expected'),  # of data sheets: peaks in bfloat16 and in float32
  [('h100', 989 / 66.9), ('a100', 16), ('l40s', 362 / 91.6), ('a10g', 2)],
)
def test_float32_products_of_a_gpu_cost_several(name, expected):
  arrays = ['f32[5,3]{1,0}', 'f32[3,7]{1,0}']
  numbers = '"lhs_contracting_dimensions":["1"]'
  chip = chips.named(name)
  for precision, passes in (('DEFAULT', 2), ('HIGHEST', expected)):
    config = (
      f', backend_config={{{numbers},"operand_precision":["{precision}"]}}'
    )
    found = gpu_call('__cublas$gemm', arrays, 'f32[5,7]{1,0}', config, chip)
    assert found[:2] == (2 * 5 * 3 * 7, pytest.approx(passes))


def test_what_a_combined_gather_starts():
  text = (
    'ENTRY %e (a: f32[8]) -> f32[8] {\n'
    '  %a = f32[8]{0} parameter(0)\n  %b = f32[16]{0} parameter(1)\n'
    '  ROOT %s = ((f32[8]{0}, f32[16]{0}), (f32[64]{0}, f32[128]{0})) '
    'all-gather-start(%a, %b), replica_groups={{0,1,2,3,4,5,6,7}}\n}\n'
  )
  (found,) = collectives.find(hlo.parse(text), {'data': 8})
  assert found.bytes == 4 * (64 + 128)
