"""report on translations: distances with their conditions, samples, sizes."""

import base64
import io
import json
import re
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from tests.helpers import report_fixtures
from vit22b_jax import report
from vit22b_jax.report import page, samples, summary, translation_page
from vit22b_jax.runtime import runs


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  return report_fixtures.make_translation(
    tmp_path_factory.mktemp('runs') / 'fruit', steps=2_000, every=100
  )


def _figures(html: str) -> list[dict]:
  found = re.findall(r"data-chart='([^']*)'", html)
  return [json.loads(figure) for figure in found]


def _text(html: str) -> str:
  """Returns what a reader sees, without pictures and scripts."""
  seen = re.sub(r'<(script|style).*?</\1>', '', html, flags=re.DOTALL)
  return ' '.join(re.sub(r'<[^>]*>', ' ', seen).split())


def test_distances_come_with_their_conditions_and_anchors(whole):
  html = report.write(whole).read_text()
  seen = _text(html)
  for said in (
    'Distances, uncalibrated',
    'apple → orange generator FID KID this run 41.23 0.02062 ± 0.001',
    'orange → apple generator FID KID this run 31.46',
    'identity: images left as they are 164.9',
    'untrained generator 371.1',
    'test part (64 apple, 60 orange)',
    'tap 2048, resize clean, quantize round, random Inception weights, seed 0,'
    ' uncalibrated',
    'FID 41.23 / 31.46 (uncalibrated)',
    'FID, uncalibrated',
    'KID, uncalibrated',
    'ViTUnet released_vit Ti, patch 8, resampling space',
    'Largest score',
  ):
    assert said in seen, said
  assert 'Largest logit' not in seen
  assert len(_figures(html)) == 8 + 3


def test_runs_from_before_a_key_was_renamed(tmp_path):
  run = report_fixtures.make_translation(tmp_path / 'run', steps=400, every=400)
  said = translation_page.conditions(runs.read(run))
  assert 'quantize round' in said
  for name in ('config.json', 'eval.json'):
    text = (run / name).read_text()
    assert '"quantize"' in text
    (run / name).write_text(text.replace('"quantize"', '"quantise"'))
  assert translation_page.conditions(runs.read(run)) == said


def test_public_weights_are_not_called_uncalibrated(tmp_path):
  run = report_fixtures.make_translation(
    tmp_path / 'run', steps=400, every=400, weights=''
  )
  html = report.write(run).read_text()
  assert 'uncalibrated' not in html
  assert 'FID 41.23 / 31.46<' in html


def test_pairs_have_their_distance(whole, tmp_path):
  run = shutil.copytree(whole, tmp_path / 'run')
  scores = json.loads((run / 'eval.json').read_text())
  scores |= {'paired_l1': 0.2, 'paired_l1_a2b': 0.125, 'paired_l1_b2a': 0.275}
  (run / 'eval.json').write_text(json.dumps(scores))
  seen = _text(report.write(run).read_text())
  assert 'FID KID L1 to the pairs this run 41.23' in seen
  assert '± 0.001 0.125 identity' in seen
  assert 'FID and KID were not computed' not in seen
  kept = {k: v for k, v in scores.items() if 'fid' not in k and 'kid' not in k}
  kept |= {'not_computed': 'no weights of Inception'}
  (run / 'eval.json').write_text(json.dumps(kept))
  seen = _text(report.write(run).read_text())
  assert 'FID and KID were not computed: no weights' in seen
  assert 'this run – – 0.125' in seen
  assert 'L1 to the pairs' not in _text(report.write(whole).read_text())
  measures = translation_page.measures(runs.read(run))
  assert 'paired_l1_b2a' in [measure.key for measure in measures]


def test_equal_counts_are_told(whole):
  run = runs.read(whole)
  assert 'smaller' not in translation_page.conditions(run)
  run.choices['fid.num'] = 'min'
  assert 'as the smaller set has, random ' in translation_page.conditions(run)


def test_generators_no_better_than_nothing_have_not_learned(whole, tmp_path):
  run = runs.read(whole)
  run.evaluation['identity_fid_b2a'] = 31.0
  answer = page.verdicts(run)[0]
  assert answer.mood == 'bad'
  assert 'orange → apple: 101.5\u202f%' in answer.detail


def test_unfinished_run_tells_its_validation(tmp_path):
  run = report_fixtures.make_translation(
    tmp_path / 'run', steps=1_000, finished=False
  )
  answer = page.verdicts(runs.read(run))[0]
  assert answer.answer.startswith('Validation FID ')
  assert answer.answer.endswith(' (uncalibrated)')
  seen = _text(report.write(run).read_text())
  assert 'this run' not in seen
  assert 'random Inception weights, seed 0, uncalibrated' in seen


def test_weights_of_ones_own_may_be_the_public_ones(tmp_path):
  run = report_fixtures.make_translation(
    tmp_path / 'run', steps=400, finished=False, weights='inception.pth'
  )
  assert translation_page.calibration(runs.read(run)) == 'own weights'


def test_bare_workdir(tmp_path):
  config = json.dumps(report_fixtures.TRANSLATION)
  (tmp_path / 'config.json').write_text(config)
  seen = _text(report.write(tmp_path).read_text())
  for said in ('No grid of samples yet', 'No row of metrics', 'Not finished'):
    assert said in seen
  assert report.plots(tmp_path, tmp_path / 'plots') == []


def test_film_has_few_steps_and_readable_pictures(whole):
  html = report.write(whole).read_text()
  steps = re.findall(r'<figure class="frame" data-step="step ([\d,]+)">', html)
  assert len(steps) <= 13
  assert steps[0] == '0' and steps[-1] == '2,000'
  sources = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', html)
  assert len(sources) == 2 * len(steps) + 2
  first = Image.open(io.BytesIO(base64.b64decode(sources[0])))
  drawn = report_fixtures.discs(0.0, 64, 4, 'a2b')
  assert first.size == drawn.shape[1::-1]
  assert np.abs(np.asarray(first, float) - drawn).mean() < 8


def test_large_noisy_grids_leave_the_page_small(tmp_path):
  run = report_fixtures.make_translation(tmp_path / 'run', steps=400, every=400)
  noise = np.random.default_rng(0).integers(0, 256, (772, 1030, 3), np.uint8)
  content = samples.png(noise)
  for step in range(0, 13):
    for direction in ('a2b', 'b2a'):
      name = f'{direction}_{step:08d}.png'
      (run / 'samples' / name).write_bytes(content)
  assert report.write(run).stat().length < 8e6


def test_half_written_grids_are_left_out(tmp_path):
  run = report_fixtures.make_translation(tmp_path / 'run', steps=400, every=200)
  whole = (run / 'samples' / 'a2b_00000200.png').read_bytes()
  (run / 'samples' / 'a2b_00000200.png').write_bytes(whole[:200])
  (run / 'samples' / 'b2a_00000400.png').unlink()
  (run / 'samples' / 'b2a_00000400.png.new').write_bytes(whole[:200])
  html = report.write(run).read_text()
  assert re.findall(r'data-step="([^"]*)"', html) == ['step 0']
  assert 'Samples of step 0,' in _text(html)


def test_chosen_steps():
  assert samples.chosen_steps([]) == []
  assert samples.chosen_steps({30, 10, 20}) == [10, 20, 30]
  chosen = samples.chosen_steps(range(0, 20_000, 100))
  assert len(chosen) == 12
  assert chosen[0] == 0 and chosen[-1] == 19_900
  gaps = np.diff(chosen)
  assert (np.diff(gaps) >= 0).all()


def test_the_samples_told_of_are_next_to_the_evaluated_weights(whole):
  run = runs.read(whole)
  run.evaluation['step'] = 1_240
  assert samples.evaluated_step(run, [0, 1_100, 1_200, 1_300]) == 1_200
  content = translation_page.content(run)
  assert content['returns_step'] == 1_200
  assert 1_200 in content['film']


def test_what_the_way_back_loses():
  real, made = np.full((2, 5, 7, 3), 40, np.uint8), np.zeros_like
  grid = samples.grid([real, made(real), real + 51])
  assert samples.deviation(grid) == pytest.approx(0.2)
  width, height = samples.reconstruction(grid)[1:]
  assert (width, height) == (2 * 7 + 2, 4 * 5 + 3 * 2)


def test_white_grids_lose_nothing():
  grid = np.full((19, 5, 3), 255, np.uint8)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    assert samples.deviation(grid) == 0.0


def test_domain_names_can_not_inject_html(tmp_path):
  run = report_fixtures.make_translation(
    tmp_path / 'run',
    steps=400,
    every=400,
    names=('<script>alert(1)</script>', "o'b"),
  )
  html = report.write(run).read_text()
  assert '<script>alert' not in html
  assert _figures(html)


def test_domains_of_one_name_have_both_their_directions(tmp_path):
  run = report_fixtures.make_translation(
    tmp_path / 'run', steps=400, every=400, names=('face', 'face')
  )
  seen = _text(report.write(run).read_text())
  assert 'a → b generator FID' in seen and 'b → a generator FID' in seen


def test_gradient_norms_of_networks_are_lines_not_layers(tmp_path):
  config = json.dumps(report_fixtures.TRANSLATION)
  (tmp_path / 'config.json').write_text(config)
  (tmp_path / 'diagnostics.csv').write_text(
    'step,max_logit,max_abs_grad,loss,grad_norm/gen_ab,grad_norm/gen_ba,'
    'grad_norm/disc_a\n1,1,1,2,5,6,7\n2,1,1,1,3,4,nan\n'
  )
  html = report.write(tmp_path).read_text()
  *_, figure = _figures(html)
  assert 'Gradient norm of each network' in html
  assert [line['name'] for line in figure['data']] == [
    'gen_ab',
    'gen_ba',
    'disc_a',
    'disc_a: not finite',
  ]
  assert figure['data'][1]['y'] == [6.0, 4.0]


def test_events_name_the_network(tmp_path):
  event = report_fixtures.events(50)[1] | {'layer': 'block_gen_ab'}
  assert summary.place(event) == 'gen_ab'


def test_plots_are_pictures(whole, tmp_path):
  paths = report.plots(whole, tmp_path / 'plots')
  assert [p.name for p in paths] == [
    'curves.png',
    'stability.png',
    'samples.png',
  ]
  assert all(path.read_bytes().startswith(b'\x89PNG') for path in paths)


def test_markdown_has_a_table_for_each_task(whole, tmp_path):
  digits = report_fixtures.make(tmp_path / 'digits', steps=100)
  partial = report_fixtures.make_translation(
    tmp_path / 'partial', steps=100, every=100, finished=False
  )
  first, second = report.markdown_table([whole, digits, partial]).split('\n\n')
  lines = first.splitlines()
  assert len(lines) == 2 + 2 + 2
  assert lines[0].count('|') == lines[1].count('|') == lines[2].count('|')
  assert '| apple → orange |' in lines[2] and '| orange → apple |' in lines[3]
  assert '| 64 + 60 images, tap 2048, ' in lines[2]
  assert ', uncalibrated | 41.23 | 164.9 | 371.1 | 0.02062 |' in lines[2]
  assert lines[4].endswith('| – | – | – | – | – |')
  assert 'top-1' in second
