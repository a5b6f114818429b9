"""Public weights: names, layouts, round trips, and what must be refused."""

import functools
import importlib.util
import io
import json
import os
import random

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from configs import common
from tests.helpers import golden_params
from vit22b_jax import config as config_lib
from vit22b_jax import errors
from vit22b_jax.models import stacking, vit
from vit22b_jax.runtime import checkpoint, workdir
from vit22b_jax.weights import initial, pretrained
from vit22b_jax.weights import timm as timm_format

SIZE = 16


def build(block='vit', num_classes=7, **overrides):
  fields = {'depth': 2, 'width': 24, 'num_heads': 3, 'mlp_dim': 36}
  return vit.build(
    block,
    'Ti',
    num_classes=num_classes,
    patch_size=4,
    **(fields | overrides),
  )


@functools.cache
def random_params(model, size=SIZE):
  """Parameters that are all different, so that no mix-up goes unnoticed."""
  x = jnp.zeros((1, size, size, 3))
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda s: rng.standard_normal(s.shape, np.float32) / 4,
    nn.unbox(shapes)['params'],
  )


def zeros(model, size=SIZE):
  return jax.tree.map(np.zeros_like, random_params(model, size))


def assert_equal(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.fixture(scope='module')
def timm():
  """Arrays of a golden ViT under timm's names, and its images and logits."""
  arrays, _ = golden_params.load('timm_vit')
  return golden_params.section(arrays, 'param'), arrays


@pytest.fixture
def timm_file(timm, tmp_path):
  path = tmp_path / 'timm.safetensors'
  path.write_bytes(safetensors.numpy.save(timm[0]))
  return path


def logits(model, params, images):
  return jax.jit(model.apply)({'params': params}, images)


def test_timm_weights_give_timm_logits(timm, timm_file):
  model = build()
  params = pretrained.load_pretrained(timm_file, model, zeros(model), SIZE)
  actual = logits(model, params, golden_params.images(timm[1]))
  expected = timm[1]['logits']
  assert np.abs(actual - expected).max() / np.abs(expected).max() <= 1e-5


def hugging_face(timm):
  """timm's weights under transformers' names."""
  names = {
    'cls_token': 'vit.embeddings.cls_token',
    'pos_embed': 'vit.embeddings.position_embeddings',
    'patch_embed.proj': 'vit.embeddings.patch_embeddings.projection',
    'norm': 'vit.layernorm',
    'head': 'classifier',
  }
  inner = {
    'norm1': 'layernorm_before',
    'norm2': 'layernorm_after',
    'attn.proj': 'attention.output.dense',
    'mlp.fc1': 'intermediate.dense',
    'mlp.fc2': 'output.dense',
  }
  for i in range(2):
    for ours, theirs in inner.items():
      names[f'blocks.{i}.{ours}'] = f'vit.encoder.layer.{i}.{theirs}'
  for name, array in timm.items():
    module, _, leaf = name.rpartition('.')
    if module.endswith('qkv'):
      i = module.split('.')[1]
      for part, rows in zip(
        ('query', 'key', 'value'), np.split(array, 3), strict=True
      ):
        yield f'vit.encoder.layer.{i}.attention.attention.{part}.{leaf}', rows
    elif name in names:
      yield names[name], array
    else:
      yield f'{names[module]}.{leaf}', array
  yield 'vit.pooler.dense.weight', np.ones((24, 24), np.float32)


def google(timm, heads=3):
  """timm's weights as Google's .npz files hold them."""
  names = {
    'patch_embed.proj': 'embedding',
    'norm': 'Transformer/encoder_norm',
    'head': 'head',
  }
  inner = {
    'norm1': 'LayerNorm_0',
    'norm2': 'LayerNorm_2',
    'attn.proj': 'MultiHeadDotProductAttention_1/out',
    'mlp.fc1': 'MlpBlock_3/Dense_0',
    'mlp.fc2': 'MlpBlock_3/Dense_1',
  }
  for i in range(2):
    for ours, theirs in inner.items():
      names[f'blocks.{i}.{ours}'] = f'Transformer/encoderblock_{i}/{theirs}'
  yield 'cls', timm['cls_token']
  yield 'Transformer/posembed_input/pos_embedding', timm['pos_embed']
  for name, array in timm.items():
    module, _, leaf = name.rpartition('.')
    if module.endswith('qkv'):
      start = f'Transformer/encoderblock_{module.split(".")[1]}/'
      start += 'MultiHeadDotProductAttention_1'
      for part, rows in zip(
        ('query', 'key', 'value'), np.split(array, 3), strict=True
      ):
        if leaf == 'weight':
          yield f'{start}/{part}/kernel', rows.T.reshape(24, heads, -1)
        else:
          yield f'{start}/{part}/bias', rows.reshape(heads, -1)
    elif module in names:
      if leaf == 'bias':
        yield f'{names[module]}/bias', array
      elif 'norm' in module:
        yield f'{names[module]}/scale', array
      elif module.endswith('attn.proj'):
        yield f'{names[module]}/kernel', array.T.reshape(heads, -1, 24)
      else:
        yield (
          f'{names[module]}/kernel',
          array.transpose((2, 3, 1, 0) if array.ndim == 4 else (1, 0)),
        )


@pytest.mark.parametrize('kind', ['hugging_face', 'google'])
def test_other_names_load_the_same(kind, timm, timm_file, tmp_path):
  model = build()
  expected = pretrained.load_pretrained(timm_file, model, zeros(model), SIZE)
  if kind == 'google':
    path = tmp_path / 'vit.npz'
    np.savez(path, **dict(google(timm[0])))
  else:
    path = tmp_path / 'model.safetensors'
    arrays = {k: np.ascontiguousarray(a) for k, a in hugging_face(timm[0])}
    path.write_bytes(safetensors.numpy.save(arrays))
  actual = pretrained.load_pretrained(path, model, zeros(model), SIZE)
  assert_equal(actual, expected)


@pytest.mark.parametrize(
  ('block', 'overrides'),
  [
    ('vit', {}),
    ('vit22b', {}),
    ('vit', {'qk_norm': True, 'qkv_bias': False, 'pool': 'mean'}),
    ('vit22b', {'qkv_bias': True, 'norm_bias': True, 'depth': 11}),
    ('vit22b', {'norm': 'rms', 'width': 15, 'mlp_dim': 21}),
    ('vit', {'pos_embedding': 'sincos'}),
    ('vit22b', {'pos_embedding': 'sincos', 'pool': 'mean'}),
  ],
)
def test_export_and_import_give_back_every_parameter(
  block, overrides, tmp_path
):
  model, path = build(block, **overrides), tmp_path / 'out.safetensors'
  params = random_params(model)
  timm_format.write(path, model, params, {'dataset': 'none'}, SIZE)
  assert_equal(
    pretrained.load_pretrained(path, model, zeros(model), SIZE), params
  )


@pytest.mark.parametrize('pool', ['cls', 'mean'])
def test_fixed_positions_are_written_as_learned_ones(pool, tmp_path):
  fixed = build(pool=pool, pos_embedding='sincos')
  path = tmp_path / 'out.safetensors'
  params = random_params(fixed)
  timm_format.write(path, fixed, params, {}, SIZE)
  learned = build(pool=pool)
  loaded = pretrained.load_pretrained(path, learned, zeros(learned), SIZE)
  images = np.random.default_rng(0).standard_normal((2, SIZE, SIZE, 3))
  expected = logits(fixed, params, images)
  np.testing.assert_allclose(
    logits(learned, loaded, images), expected, rtol=1e-5, atol=1e-5
  )
  other = 2 * SIZE  # the same function of another grid
  again = pretrained.load_pretrained(path, fixed, zeros(fixed, other), other)
  assert_equal(again, params)


def test_learned_positions_are_not_taken_for_fixed_ones(timm_file):
  model = build(pos_embedding='sincos')
  with pytest.raises(errors.UserError, match=r"pos_embed .*='learned'"):
    pretrained.load_pretrained(timm_file, model, zeros(model), SIZE)


def test_export_of_vit22b_has_timm_names_and_layout(tmp_path):
  """Against the golden block, whose layout is that of ParallelScalingBlock."""
  arrays, config = golden_params.load('parallel_block')
  expected = golden_params.section(arrays, 'param')
  model, path = build('vit22b', depth=1), tmp_path / 'out.safetensors'
  block = golden_params.parallel_block(expected, config, norm_bias=False)
  params = dict(random_params(model), block_00=block)
  timm_format.write(path, model, params, {'dataset': 'none'}, SIZE)
  written = safetensors.numpy.load_file(path)
  actual = {
    name.removeprefix('blocks.0.'): array
    for name, array in written.items()
    if name.startswith('blocks.0.')
  }
  bias = expected['attn_out_proj.bias'] + expected['mlp_out_proj.bias']
  expected['attn_out_proj.bias'] = bias
  expected['mlp_out_proj.bias'] = np.zeros_like(bias)
  assert_equal(actual, expected)
  others = {name for name in written if not name.startswith('blocks.')}
  assert others == {
    'cls_token',
    'pos_embed',
    'patch_embed.proj.weight',
    'patch_embed.proj.bias',
    'norm.weight',
    'norm.bias',
    'head.weight',
    'head.bias',
  }
  with safetensors.safe_open(path, 'np') as file:
    assert file.metadata() == {'format': 'pt', 'dataset': 'none'}


def test_other_number_of_classes_keeps_the_fresh_head(timm_file):
  model = build(num_classes=5)
  fresh = random_params(model)
  loaded = pretrained.load_pretrained(timm_file, model, fresh, SIZE)
  assert_equal(loaded['head'], fresh['head'])
  same = pretrained.load_pretrained(timm_file, build(), zeros(build()), SIZE)
  assert_equal(loaded['block_01'], same['block_01'])
  assert same['head']['logits']['kernel'].any()


def test_other_image_size_resamples_the_positions(timm, timm_file):
  model, size = build(), 24
  loaded = pretrained.load_pretrained(
    timm_file, model, zeros(model, size), size
  )
  positions = loaded['positions']['pos_embedding']
  source = timm[0]['pos_embed'][0]
  assert positions.shape == (1 + 36, 24)
  np.testing.assert_array_equal(positions[0], source[0])
  np.testing.assert_allclose(
    positions[1:].mean(0), source[1:].mean(0), atol=0.1
  )
  assert logits(model, loaded, jnp.ones((1, size, size, 3))).shape == (1, 7)


def test_pools_without_class_token_drop_it(timm, timm_file):
  for pool in ('mean', 'map'):
    model = build(pool=pool)
    fresh = random_params(model)
    loaded = pretrained.load_pretrained(timm_file, model, fresh, SIZE)
    np.testing.assert_array_equal(
      loaded['positions']['pos_embedding'], timm[0]['pos_embed'][0, 1:]
    )
  assert_equal(loaded['head'], fresh['head'])
  assert_equal(loaded['map_pool'], fresh['map_pool'])


def test_half_precision_files_become_float32(timm, timm_file, tmp_path):
  path = tmp_path / 'half.safetensors'
  half = {k: a.astype(jnp.bfloat16) for k, a in timm[0].items()}
  path.write_bytes(safetensors.numpy.save(half))
  model = build()
  loaded = pretrained.load_pretrained(path, model, zeros(model), SIZE)
  exact = pretrained.load_pretrained(timm_file, model, zeros(model), SIZE)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-2), loaded, exact
  )
  assert {a.dtype for a in jax.tree.leaves(loaded)} == {np.dtype('float32')}


def test_norm_bias_that_a_model_lacks_must_be_zero(tmp_path):
  path = tmp_path / 'biased.safetensors'
  biased = build('vit22b', norm_bias=True)
  timm_format.write(path, biased, random_params(biased), {}, SIZE)
  model = build('vit22b')
  with pytest.raises(errors.UserError, match=r'in_norm\.bias.*norm_bias=True'):
    pretrained.load_pretrained(path, model, zeros(model), SIZE)


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    ({'depth': 3}, r'lacks blocks\.2\.norm1\.weight'),
    ({'depth': 1}, r'no use for, such as blocks\.1\.attn\.proj\.bias'),
    ({'width': 48}, r'shape \[1, 1, 24\].*does not fit cls \[48\]'),
    ({'mlp_dim': 24}, r'mlp\.fc1\.weight.*does not fit .*mlp_in/kernel'),
    ({'block': 'vit22b'}, r'lacks blocks\.0\.in_norm\.weight'),
    ({'block': 'released'}, r'pre_norm=False: timm has no such block'),
    ({'block': 'vit22b_mlp_norm'}, r'mlp_norm=True: timm has no such block'),
  ],
)
def test_weights_of_another_model_are_refused(overrides, message, timm_file):
  model = build(**overrides)
  params = random_params(model)
  with pytest.raises(errors.UserError, match=message):
    pretrained.load_pretrained(timm_file, model, params, SIZE)


def test_unsafe_and_damaged_files_are_refused(timm_file, tmp_path):
  class Payload:
    def __reduce__(self):
      return (pytest.fail, ('unpickled an object',))

  def saved(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()

  whole = timm_file.read_bytes()
  payload = saved(cls=np.array([Payload()], dtype=object))
  cases = {
    'model.bin': (b'anything', r'not a \.safetensors or \.npz file'),
    'cut.safetensors': (whole[: len(whole) // 2], 'damaged'),
    'empty.safetensors': (b'', 'damaged'),
    'pickled.npz': (payload, 'Object arrays'),
    'cut.npz': (saved(cls=np.ones(999))[:-50], 'damaged'),
    'empty.npz': (b'', 'damaged'),
  }
  for name, (content, message) in cases.items():
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(errors.UserError, match=message):
      pretrained.read(path)
  os.mkfifo(tmp_path / 'pipe.npz')  # to open it waits for ever
  for name in ('absent.npz', 'pipe.npz'):
    with pytest.raises(errors.UserError, match='No file of weights'):
      pretrained.read(tmp_path / name)


def test_any_bytes_give_weights_or_one_message(timm, timm_file, tmp_path):
  rng = random.Random(0)
  np.savez(tmp_path / 'vit.npz', **dict(google(timm[0])))
  wholes = {
    '.safetensors': timm_file.read_bytes(),
    '.npz': (tmp_path / 'vit.npz').read_bytes(),
  }
  refused, model = 0, build()
  params = zeros(model)
  for i in range(120):
    suffix = rng.choice(list(wholes))
    data = bytearray(wholes[suffix])
    kind = rng.randrange(3)
    for _ in range(1 + 4 * kind):  # near the header, where names and shapes are
      data[rng.randrange(3000 if kind else len(data))] = rng.randrange(256)
    if kind == 2:
      del data[rng.randrange(len(data)) :]
    path = tmp_path / f'fuzz{suffix}'
    path.write_bytes(bytes(data))
    try:
      pretrained.load_pretrained(path, model, params, SIZE)
    except errors.UserError as error:
      refused += 1
      assert str(path) in str(error), i
  assert refused > 60


@pytest.mark.parametrize(
  ('name', 'array', 'message'),
  [
    ('cls', np.ones((1, 1, 24), np.complex64), 'cls_token holds complex64'),
    ('cls', np.array('text'), 'cls_token holds <U4'),
    ('cls', np.array(3.0), 'does not fit cls'),
    ('embedding/kernel', np.ones(3), 'arrays of other shapes than a ViT'),
    (
      'Transformer/posembed_input/pos_embedding',
      np.array(1.0),
      'pos_embed has',
    ),
    (
      'Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel',
      np.ones((2, 2), np.float32),
      'arrays of other shapes than a ViT',
    ),
  ],
)
def test_arrays_of_other_kinds_are_named(name, array, message, timm, tmp_path):
  path, model = tmp_path / 'vit.npz', build()
  np.savez(path, **(dict(google(timm[0])) | {name: array}))
  with pytest.raises(errors.UserError, match=message):
    pretrained.load_pretrained(path, model, zeros(model), SIZE)


@pytest.mark.parametrize(
  'overrides',
  [
    {'head': 'mlp'},
    {'pool': 'map'},
    {'block': 'released_vit'},
    {'softmax_scale': 'width'},
  ],
)
def test_models_without_timm_names_are_not_exported(overrides, tmp_path):
  model, path = build(**overrides), tmp_path / 'out.safetensors'
  with pytest.raises(errors.UserError, match=r'timm has|in timm'):
    timm_format.write(path, model, {}, {}, SIZE)
  assert not path.exists()


@pytest.mark.parametrize('name', pretrained._OTHERS)
def test_parts_that_no_model_here_has_are_named(name, timm, tmp_path):
  path = tmp_path / 'other.safetensors'
  extra = {name: np.ones((1, 1, 24), np.float32)}
  path.write_bytes(safetensors.numpy.save(timm[0] | extra))
  model = build()
  with pytest.raises(errors.UserError, match=r'can not be used: .* has '):
    pretrained.load_pretrained(path, model, zeros(model), SIZE)


def test_a_class_token_without_a_position_has_a_zero_one(timm, tmp_path):
  """timm's no_embed_class: positions of patches alone."""
  path, model = tmp_path / 'file.safetensors', build()
  arrays = dict(timm[0], pos_embed=timm[0]['pos_embed'][:, 1:].copy())
  path.write_bytes(safetensors.numpy.save(arrays))
  params = pretrained.load_pretrained(path, model, zeros(model), SIZE)
  positions = params['positions']['pos_embedding']
  assert not positions[0].any()
  np.testing.assert_array_equal(positions[1:], arrays['pos_embed'][0])


@pytest.mark.parametrize('count', [10, 12, 16 + 2, 8])
def test_positions_of_no_square_grid_are_refused(count, timm, tmp_path):
  path, model = tmp_path / 'file.safetensors', build(pool='mean')
  arrays = dict(timm[0], pos_embed=np.ones((1, count, 24), np.float32))
  if count == 10:  # nine and a token's, in a file without a token
    del arrays['cls_token']
  path.write_bytes(safetensors.numpy.save(arrays))
  match = rf'file.safetensors has {count} positions .*none of a square grid'
  with pytest.raises(errors.UserError, match=match):
    pretrained.load_pretrained(path, model, zeros(model), SIZE)


def test_a_dropped_class_token_is_said(timm_file, caplog):
  model = build(pool='mean')
  with caplog.at_level('WARNING'):
    pretrained.load_pretrained(timm_file, model, zeros(model), SIZE)
  assert "has a class token, which model.pool='mean' leaves out" in caplog.text


def test_timm_arguments_are_those_of_the_peer():
  model = build('vit22b', pool='mean')
  assert timm_format.arguments(model, SIZE) == {
    **{'img_size': SIZE, 'patch_size': 4, 'num_classes': 7, 'embed_dim': 24},
    **{'depth': 2, 'num_heads': 3, 'mlp_ratio': 1.5, 'qkv_bias': False},
    **{'qk_norm': True, 'class_token': False, 'global_pool': 'avg'},
    **{'final_norm': True, 'fc_norm': False},
  }


def timm_model(block, pool, **more):
  """timm's counterpart of `build`, by the words of `weights.timm`."""
  for name in ('torch', 'timm'):
    if importlib.util.find_spec(name) is None:
      pytest.skip(f"{name} is not installed (pip install '.[peers]')")
  from experiments.throughput import peers

  peer = peers.timm_vit()
  fields = {'img_size': SIZE, 'patch_size': 4, 'num_classes': 7}
  fields |= {'embed_dim': 24, 'depth': 2, 'num_heads': 3, 'mlp_ratio': 1.5}
  if block == 'vit22b':
    fields |= {'block_fn': peer.ParallelScalingBlock, 'qkv_bias': False}
    fields |= {'qk_norm': True}
  if pool == 'mean':
    fields |= {'class_token': False, 'global_pool': 'avg'}
    fields |= {'fc_norm': False, 'final_norm': True}
  return peer.VisionTransformer(**fields, **more).eval()


def timm_logits(model, images):
  import torch

  with torch.no_grad():
    return model(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()


IMAGES = np.random.default_rng(0).standard_normal((3, SIZE, SIZE, 3))
IMAGES = IMAGES.astype(np.float32)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('block', ['vit', 'vit22b'])
def test_timm_weights_give_the_same_function_here(block, tmp_path):
  theirs = timm_model(block, 'cls')
  import torch

  for name, parameter in theirs.named_parameters():
    zero = block == 'vit22b' and 'norm' in name and name.endswith('bias')
    torch.nn.init.normal_(parameter, std=0 if zero else 0.3)
  expected = timm_logits(theirs, IMAGES)
  path = tmp_path / 'theirs.safetensors'
  state = {name: x.numpy() for name, x in theirs.state_dict().items()}
  path.write_bytes(safetensors.numpy.save(state))
  model = build(block)
  params = pretrained.load_pretrained(path, model, zeros(model), SIZE)
  actual = logits(model, params, IMAGES)
  assert np.abs(actual - expected).max() / np.abs(expected).max() <= 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('pool', ['cls', 'mean'])
@pytest.mark.parametrize('pos_embedding', ['learned', 'sincos'])
@pytest.mark.parametrize('block', ['vit', 'vit22b'])
def test_exported_weights_give_the_same_function_in_timm(
  block, pos_embedding, pool, tmp_path
):
  theirs = timm_model(block, pool)
  model = build(block, pool=pool, pos_embedding=pos_embedding)
  assert_same_in_timm(model, theirs, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('norm', ['layer', 'rms'])
def test_exported_norms_are_those_that_are_named(norm, tmp_path):
  model = build('vit22b', norm=norm, eps=0.01)
  name, eps = timm_format.norm_layer(model).values()
  pytest.importorskip('timm')
  from timm import layers

  norm_layer = functools.partial(getattr(layers, name), eps=eps)
  theirs = timm_model('vit22b', 'cls', norm_layer=norm_layer)
  assert_same_in_timm(model, theirs, tmp_path)


def assert_same_in_timm(model, theirs, folder):
  import torch

  path = folder / 'ours.safetensors'
  timm_format.write(path, model, random_params(model), {}, SIZE)
  state = safetensors.numpy.load_file(path)
  theirs.load_state_dict({name: torch.tensor(x) for name, x in state.items()})
  expected = timm_logits(theirs, IMAGES)
  actual = logits(model, random_params(model), IMAGES)
  assert np.abs(actual - expected).max() / np.abs(expected).max() <= 1e-5


@pytest.mark.parametrize('scanned', [False, True])
def test_weights_of_a_run_fit_however_its_blocks_lie(tmp_path, scanned):
  config = common.finish(common.classification(), '')
  (tmp_path / workdir.CONFIG).write_text(config_lib.to_json(config))
  names = [str(i) for i in range(7)]
  (tmp_path / workdir.CLASSES).write_text(json.dumps(names))
  there = random_params(build(scan_layers=scanned))
  manager = checkpoint.Manager(tmp_path, scores={})
  manager.save(3, {'params': jax.device_put(there)}, meta={})
  manager.close()
  model = build(scan_layers=not scanned)
  new = {'params': jax.device_put(zeros(model)), 'batch_stats': {}}
  found = initial.load(tmp_path, model, new, names, SIZE)
  assert_equal(stacking.unstack(found['params']), stacking.unstack(there))
  new['params']['final_norm']['scale'] = jnp.zeros(25)
  with pytest.raises(errors.UserError, match='other networks'):
    initial.load(tmp_path, model, new, names, SIZE)
