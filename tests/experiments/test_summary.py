"""The README's sentences say what the rows say, and no more."""

import json

import pytest

from experiments import summary


def probe(variant, exponent, explosion):
  return {
    'stage': 'bisect',
    'size': 'S',
    'variant': variant,
    'exponent': exponent,
    'explosion': explosion,
  }


def named(rows):
  return {str(i): row for i, row in enumerate(rows)}


def test_stability_counts_doublings_of_the_lowest_exploding_rate():
  rows = named(
    [
      probe('original', 0, None),
      probe('original', 1, 40),
      probe('pre_norm', 2, None),
      probe('pre_norm', 3, 50),
      probe('mlp_norm', 0, None),
      probe('mlp_norm', 1, 60),
      probe('sum_norm', 4, None),  # its rate isn't found yet
    ]
  )
  text = summary.stability(rows)
  assert 'from a learning rate of 0.002 on' in text
  assert '4 times with pre-norm.' in text
  assert 'stays the same with MLP-norm.' in text
  assert 'sum-norm' not in text


def test_stability_says_which_seeds_explode_earlier_on_lossless_images():
  def repeat(variant, exponent, explosion):
    return {**probe(variant, exponent, explosion), 'stage': 'repeat'}

  jpeg = [
    *(probe('original', 0, None), probe('original', 1, 40)),
    *(probe('mlp_norm', 0, None), probe('mlp_norm', 1, 60)),
    *(probe('pre_norm', 2, None), probe('pre_norm', 3, 50)),
    *(probe('sum_norm', 5, None), probe('sum_norm', 6, 4)),
  ]
  lossless = [
    *(repeat('original', 0, None), repeat('original', 1, 18)),
    *(repeat('pre_norm', 2, step) for step in (None, 12, None)),
    *(repeat('sum_norm', 5, step) for step in (10, None, 7)),
  ]
  assert summary.stability(named(jpeg + lossless)).endswith(
    '32 times with sum-norm (`released`). On lossless images 1 of 3 seeds '
    'explodes at half of that with pre-norm. On lossless images 2 of 3 seeds '
    'explode at half of that with sum-norm (`released`). It stays the same '
    'with MLP-norm.'
  )


def run(data, block, seed, top1):
  return {
    'stage': 'seeds',
    'data': data,
    'block': block,
    'seed': seed,
    'top1': top1,
  }


@pytest.mark.parametrize(
  ('sets', 'better', 'verdict'),
  [
    (['cifar10'], 0.0, 'Not shown'),
    (['cifar10'], 0.2, 'In part'),
    (['cifar10', 'cifar100'], 0.2, 'Yes, at this budget'),
    (['cifar10', 'cifar100'], -0.2, 'Not shown'),
  ],
)
def test_a_lead_is_one_whose_interval_leaves_out_zero(sets, better, verdict):
  rows = named(
    [
      run(data, block, seed, 0.5 + 0.01 * seed + (block == 'vit22b') * better)
      for data in sets
      for block in ('vit', 'vit22b')
      for seed in range(3)
    ]
  )
  text = summary.classification(rows)
  assert text.startswith(verdict)
  assert f': cifar10 {better:+.3f} [' in text
  assert '], where ViT reaches 0.510' in text


def test_translation_ranks_generators_with_untouched_images():
  def row(generator, fid):
    paper = {'fid': fid, 'identity_fid': 3.0, 'calibrated': False}
    return {
      'data': 'cycle_gan/x',
      'generator': generator,
      'paper': paper | {'tap': 64},
      'default': {'tap': 2048, 'fid': 9 - fid, 'identity_fid': 1.0},
    }

  text = summary.translation(named([row('ViT-B', 4.0), row('ResNet', 2.0)]))
  assert 'Uncalibrated FID' in text
  assert 'x at tap 64: ResNet 2, untouched images 3, ViT-B 4;' in text
  assert 'x at tap 2048: untouched images 1, ViT-B 5, ResNet 7.' in text


def test_speed_is_of_pytorch_alone_by_processor_and_mode(tmp_path):
  def measured(**ratios):
    rows = [
      {'peer': k.replace('_', ' '), 'ratio': v} for k, v in ratios.items()
    ]
    return {'environment': {'cores': 2}, 'rows': rows}

  compiled = {'rows': [{'peer': 'timm ViT, compiled', 'ratio': 1.1}]}
  files = {
    'results': {
      'X': measured(timm_ViT=1.5, our_vit_S=0.9, plain_Flax_ViT=0.8),
      'Y': {**measured(), **compiled},
    },
    'translation': {'X': measured(PyTorch=1.25)},
    'inception': {'X': measured(torch_fidelity=2.0)},
  }
  for name, content in files.items():
    (tmp_path / f'{name}.json').write_text(json.dumps(content))
  assert summary.speed(tmp_path) == (
    "PyTorch's time over ours (above 1: ours is faster): "
    'X 1.25 to 2.00 eager; Y 1.10 compiled.'
  )


def test_the_cost_of_qk_norm_is_told_where_it_was_timed(tmp_path):
  ratios = {
    'our vit S': 0.9,
    'our vit S with QK-norm': 1.08,
    'our vit22b S without QK-norm': 0.8,
  }
  rows = [{'peer': peer, 'ratio': ratio} for peer, ratio in ratios.items()]
  found = {'X': {'rows': rows}, 'Y': {'rows': rows[:1]}}
  (tmp_path / 'results.json').write_text(json.dumps(found))
  assert summary.qk_norm(tmp_path) == (
    'On X, at S, a step of `vit22b` takes 0.80 times as long without QK-norm, '
    'and one of `vit` 1.20 times as long with it.'
  )
