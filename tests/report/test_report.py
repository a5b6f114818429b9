"""report: readable pages from whole, partial, broken and long runs."""

import ast
import json
import pathlib
import re
import resource
import shutil

import numpy as np
import pytest
from etils import epath

from tests.helpers import chromium, report_fixtures
from vit22b_jax import durations, errors, report
from vit22b_jax.report import (
  classifier_page,
  downsample,
  heatmaps,
  intervals,
  page,
  scores,
  summary,
  traces,
)
from vit22b_jax.runtime import runs


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  return report_fixtures.make(
    tmp_path_factory.mktemp('runs') / 'whole', steps=700, depth=5
  )


@pytest.fixture(scope='module')
def exploded(tmp_path_factory):
  return report_fixtures.make(
    tmp_path_factory.mktemp('runs') / 'exploded', explode_at=4_000
  )


def _figures(html: str) -> list[dict]:
  found = re.findall(r"data-chart='([^']*)'", html)
  return [json.loads(figure) for figure in found]


def test_never_imports_jax():
  folder = pathlib.Path(report.__file__).parent
  for path in folder.glob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      names = [n.name for n in getattr(node, 'names', [])]
      names.append(getattr(node, 'module', None) or '')
      assert not any(name.split('.')[0] in ('jax', 'flax') for name in names)


def test_whole_run_shows_every_part(whole):
  path = report.write(whole)
  assert path == whole / 'report.html'
  html = path.read_text()
  for text in (
    '63.1\u202f%',
    '96.4\u202f%',
    '0.9377',
    '10,000',
    '5.41 M',
    'vit22b Ti, patch 4, on cifar10 at 32 px',
    'Largest absolute gradient',
    'Residual stream RMS',
    'Confused most often',
    'data:image/png;base64,',
    'optim.learning_rate',
    '0123abc',
  ):
    assert text in html
  assert len(_figures(html)) == 3 + 3 + 4 + 1
  assert path.stat().length < 4e6


def test_page_asks_the_network_for_nothing(whole):
  html = report.write(whole).read_text()
  assert "default-src 'none'" in html
  assert not re.search(r'(src|href)=["\']?(?!data:)\w', html)
  assert not re.search(r'@import|url\(|fetch\(|https?://', html)


def test_output_elsewhere(whole, tmp_path):
  path = report.write(whole, tmp_path / 'other.html')
  assert path.read_text().startswith('<!doctype html>')


def test_bare_workdir_says_what_is_missing(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps(report_fixtures.CONFIG))
  html = report.write(tmp_path).read_text()
  for text in ('No row of metrics yet', 'No diagnostics', 'Not finished'):
    assert text in html
  assert report.plots(tmp_path, tmp_path / 'plots') == []
  (tmp_path / 'file').touch()
  with pytest.raises(errors.UserError, match='file is a file'):
    report.plots(tmp_path, tmp_path / 'file')


def test_not_a_workdir(tmp_path):
  with pytest.raises(errors.UserError, match=r'config\.json'):
    report.write(tmp_path)


def test_unwritable_output(whole, tmp_path):
  with pytest.raises(errors.UserError, match='Could not write the report'):
    report.write(whole, tmp_path / 'missing' / 'report.html')


def test_a_full_disk_leaves_the_page_that_was_there(tmp_path):
  run = report_fixtures.make(tmp_path / 'run', steps=100, finished=False)
  before = report.write(run).read_text()
  files = sorted(p.name for p in run.iterdir())
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
  try:
    with pytest.raises(errors.UserError, match='Free some space'):
      report.write(run)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert (run / 'report.html').read_text() == before
  assert sorted(p.name for p in run.iterdir()) == files


def test_half_written_last_lines_are_dropped(tmp_path):
  path = report_fixtures.make(tmp_path / 'run', steps=100, finished=False)
  with (path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 150, "train/lo')
  with (path / 'diagnostics.csv').open('a') as file:
    file.write('100,2.3,1')
  run = runs.read(path)
  assert run.last_step == 100
  assert run.diagnostics['step'][-1] == 99
  assert 'Step 100' in report.write(path).read_text()


def test_a_step_without_a_finite_value_of_any_layer_is_drawn(tmp_path):
  """Gradients may overflow while the loss is still finite."""
  (tmp_path / 'config.json').write_text(json.dumps(report_fixtures.CONFIG))
  (tmp_path / 'diagnostics.csv').write_text(
    'step,loss,grad_norm/00,grad_norm/01\n1,1,5,6\n2,1,inf,nan\n3,1,7,8\n'
  )
  steps, values = runs.read(tmp_path).layers('grad_norm')
  np.testing.assert_array_equal(steps, [1, 2, 3])
  np.testing.assert_array_equal(values, [[5, np.inf, 7], [6, np.nan, 8]])
  (figure,) = heatmaps.layers(runs.read(tmp_path)).values()
  assert figure['data'][0]['x'] == [1, 2, 3]
  assert [row[1] for row in figure['data'][0]['z']] == [None, None]


def test_non_finite_values_reach_the_page_as_text(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps(report_fixtures.CONFIG))
  (tmp_path / 'metrics.jsonl').write_text(
    '{"step": 1, "train/loss": 2.0}\n{"step": 2, "train/loss": NaN}\n'
  )
  (tmp_path / 'diagnostics.csv').write_text(
    'step,loss,max_logit,max_abs_grad,grad_norm/00\n'
    '0,2,1,9000,1\n1,inf,inf,2,nan\n2,nan,-3,3,1\n'
  )
  html = report.write(tmp_path).read_text()
  curve, logit, gradient, heat = _figures(html)
  assert curve['data'][0]['y'] == [2.0, None]
  assert logit['data'][0]['y'] == [1.0, None, -3.0]
  assert logit['data'][0]['customdata'] == ['1', 'inf', '-3']
  assert gradient['data'][0]['y'] == [traces.CAP, 2.0, 3.0]
  assert gradient['data'][0]['customdata'][0] == '9,000'
  assert heat['data'][0]['z'] == [[0.0, None, 0.0]]
  assert 'Not finite, first at step 1' in html
  assert len(report.plots(tmp_path, tmp_path / 'plots')) == 3


def test_a_constant_rate_is_not_drawn_at_zero(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps(report_fixtures.CONFIG))
  rows = [{'step': step, 'train/learning_rate': 2e-4} for step in (1, 2, 3)]
  report_fixtures.write_lines(tmp_path / 'metrics.jsonl', rows)
  (figure,) = _figures(report.write(tmp_path).read_text())
  assert figure['layout']['yaxis']['rangemode'] == 'tozero'


def test_explosion_is_the_headline(exploded):
  answer = page.verdicts(runs.read(exploded))[1]
  assert answer.mood == 'bad'
  assert answer.answer == 'Yes, first at step 4,280'
  assert 'In block 03' in answer.detail
  assert 'attn_logit_max/03' in answer.detail


def test_start_up_transients_are_not_explosions(whole):
  report_fixtures.write_lines(
    whole / 'events.jsonl', report_fixtures.events(100)[:1]
  )
  answer = page.verdicts(runs.read(whole))[1]
  (whole / 'events.jsonl').unlink()
  assert (answer.answer, answer.mood) == ('No', 'good')
  assert '1 start-up transient' in answer.detail


def test_halted_run_says_so(tmp_path):
  path = report_fixtures.make(tmp_path / 'run', steps=100, finished=False)
  event = report_fixtures.events(50)[1] | {'action': 'halt', 'step': 101}
  report_fixtures.write_lines(path / 'events.jsonl', [event])
  progress = page.verdicts(runs.read(path))[2]
  assert (progress.answer, progress.mood) == ('Halted', 'bad')
  assert progress.detail.startswith('Step 101 of 7,000: explosion.')


def test_envelope_keeps_every_spike():
  values = np.random.default_rng(0).normal(size=200_003)
  values[[77_777, 133_333]] = 50.0, -50.0
  values[150_001] = np.nan
  keep = downsample.envelope(values, 400)
  assert {0, 77_777, 133_333, 150_001, 200_002} <= set(keep)
  assert len(keep) <= 3 * 400 + 2
  assert (np.diff(keep) > 0).all()


def test_envelope_leaves_short_series_alone():
  np.testing.assert_array_equal(
    downsample.envelope(np.ones(7), 5), np.arange(7)
  )


def test_buckets():
  values = np.array([[1.0, 9, 2, 3, 4, 5, 6], [0, 0, 0, np.inf, 0, -7, 0]])
  starts, high = downsample.buckets(values, 3, 'max')
  np.testing.assert_array_equal(starts, [0, 2, 4])
  np.testing.assert_array_equal(high, [[9, 3, 6], [0, np.nan, 0]])
  _, low = downsample.buckets(values, 3, 'min')
  np.testing.assert_array_equal(low, [[1, 2, 4], [0, np.nan, -7]])


def test_confused_pairs_leave_out_the_diagonal():
  counts = np.array([[90, 3, 7], [0, 50, 0], [1, 0, 9]])
  pairs = scores.confused(counts, ['a', 'b', 'c'], 12)
  assert [(p['true'], p['predicted'], p['count']) for p in pairs] == [
    ('a', 'c', 7),
    ('a', 'b', 3),
    ('c', 'a', 1),
  ]
  assert pairs[0]['part'] == pytest.approx(0.07)


def _predict(path, count, wrong, classes=10, pictures=True):
  """Gives a run predictions of a whole part, `wrong` of them wrong."""
  rng = np.random.default_rng(0)
  labels = rng.integers(classes, size=count)
  chosen = labels.copy()
  chosen[:wrong] = (labels[:wrong] + 1) % classes
  sure = rng.uniform(0.5, 1, count).astype(np.float32)
  probabilities = np.repeat((1 - sure[:, None]) / (classes - 1), classes, 1)
  probabilities[np.arange(count), chosen] = sure
  confusion = np.zeros((classes, classes), int)
  np.add.at(confusion, (labels, chosen), 1)
  rows = np.arange(count if pictures else 1)
  np.savez(
    path / 'predictions.npz',
    images=rng.integers(0, 255, (len(rows), 4, 4, 3), np.uint8),
    image_rows=rows,
    labels=labels,
    probabilities=probabilities,
    indices=np.arange(count) + 1_000,
    confusion=confusion,
    class_names=np.array([f'class {i}' for i in range(classes)]),
  )
  scores = json.loads((path / 'eval.json').read_text())
  scores |= {'num_examples': count, 'top1': 1 - wrong / count}
  (path / 'eval.json').write_text(json.dumps(scores))
  return path, sure[:wrong]


def test_every_error_is_on_the_page_worst_first(tmp_path):
  run = report_fixtures.make(tmp_path / 'run', steps=100)
  path, sure = _predict(run, 400, 70)
  html, _, _ = report.write(path).read_text().partition('<h2>Attention')
  assert '70 of 400 images are wrong' in html
  first = re.findall(r'class="wrong">.*?<small>image (\d+)', html, re.DOTALL)
  (more,) = re.findall(r"data-errors='([^']*)'", html)
  places = [*map(int, first), *(one['place'] for one in json.loads(more))]
  assert places == (np.argsort(-sure) + 1_000).tolist()
  assert all(one['sources'] for one in json.loads(more))


def test_errors_without_pictures_have_their_places(tmp_path):
  run = report_fixtures.make(tmp_path / 'run', steps=100)
  path, _ = _predict(run, 400, 9, pictures=False)
  html = report.write(path).read_text()
  assert '9 of 400 images are wrong' in html
  assert len(re.findall(r'<small>image 10\d\d', html)) == 9


def test_attention_is_shown_by_brightness(whole):
  _, _, section = report.write(whole).read_text().partition('<h2>Attention')
  pictures = re.findall(r'src="([^"]*)"', section.partition('</ul>')[0])
  assert len(pictures) == 8 * 3
  image = np.full((4, 4, 3), 200, np.uint8)
  lit = classifier_page._lit(image, np.array([[0.0, 1.0], [0.0, 0.0]]))
  assert lit[0, 3, 0] == 200 and lit[3, 0, 0] == 40
  broken = classifier_page._lit(image, np.full((2, 2), np.nan))
  assert (broken == 40).all()


def test_models_without_maps_have_no_section_for_them(tmp_path):
  run = report_fixtures.make(tmp_path / 'run', steps=100)
  (run / 'attention.npz').unlink()
  assert '<h2>Attention' not in report.write(run).read_text()


def test_labels_of_several_classes_have_average_precisions(tmp_path):
  run = report_fixtures.make(tmp_path / 'run', steps=100)
  np.savez(
    run / 'predictions.npz',
    images=np.zeros((2, 4, 4, 3), np.uint8),
    image_rows=np.array([0, 2]),
    targets=np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]], np.uint8),
    probabilities=np.array([[0.9, 0.6, 0], [1, 1, 0], [0, 0, 0]], np.float32),
    indices=np.arange(3),
    class_names=np.array(['sun', 'sea', 'ship']),
  )
  scores = json.loads((run / 'eval.json').read_text())
  for name in ('top1', 'top5', 'auroc'):
    scores.pop(name)
  scores |= {'map': 0.75, 'average_precision': [0.8, 0.7, 'nan']}
  (run / 'eval.json').write_text(json.dumps(scores))
  rows = [{'step': s, 'val/map': s / 100, 'val/loss': 1.0} for s in (50, 60)]
  report_fixtures.write_lines(run / 'metrics.jsonl', rows)
  html = report.write(run).read_text()
  assert page.verdicts(runs.read(run))[0].answer == '75.0\u202f% test mAP'
  assert 'Best validation mAP 60.0\u202f% at step 60' in html
  table = re.sub('<[^>]*>', ' ', html.partition('<h2>Classes')[2])
  table = ' '.join(table.partition('How to repeat')[0].split())
  for line in ('sun 2 100.0% 100.0% 80.0%', 'sea 1 50.0% 100.0% 70.0%'):
    assert line in table
  assert 'ship 0 – – –' in table and 'onfusion' not in table
  assert '1 of 3 images are wrong' in html.replace('sample ', '')
  assert '✗ sun, sea' in html and 'true: sun' in html and '✓ none' in html
  assert 'Mean average precision' in html
  other = report_fixtures.make(tmp_path / 'other', steps=100)
  shutil.copy(run / 'eval.json', other / 'eval.json')
  text = report.compare([run, other], tmp_path / 'page.html').read_text()
  assert 'mAP, %: 75.00' in text and 'val mAP, %' in text


def test_a_probe_in_the_same_folder_has_a_section(tmp_path):
  run = report_fixtures.make(tmp_path / 'run', steps=100)
  (run / 'probe.json').write_text(json.dumps(report_fixtures.PROBE))
  html = report.write(run).read_text()
  assert report_fixtures.PROBE['advice'] in html
  assert 'model.pre_norm=True' in html
  *_, logits, _ = _figures(html)
  assert [line['name'] for line in logits['data']] == ['0.001', '0.004']
  assert logits['data'][1]['y'] == [3.0, traces.CAP]
  alone = page.write_probe(epath.Path(run), runs.read(run).probe)
  assert alone.name == 'probe.html'
  assert len(_figures(alone.read_text())) == 2


def test_headlines_have_their_intervals_and_calibration(tmp_path):
  run = report_fixtures.make(tmp_path / 'run', steps=100)
  html = report.write(_predict(run, 400, 70)[0]).read_text()
  low, high = intervals.wilson(1 - 70 / 400, 400)
  between = f'{summary.percent(low)} to {summary.percent(high)}'
  assert f'first choice is right; 95 % interval {between}' in html
  assert 'nats; 95 % interval' in html
  assert 'macro, one against rest; 95 % interval' in html
  assert 'Expected calibration error' in html


def test_few_classes_have_no_top_five(tmp_path):
  run = report_fixtures.make(tmp_path / 'run', steps=100, classes=['a', 'b'])
  text = report.write(run).read_text()
  assert 'top-5' not in text
  table = report.markdown_table([run])
  assert '| 0.631 | – | 0.938 |' in table


@pytest.mark.parametrize(
  'classes, top1, mood',
  [(100, 0.064, 'plain'), (100, 0.011, 'bad'), (100, 0.5, 'good')],
)
def test_what_learned_little_is_not_green(tmp_path, classes, top1, mood):
  names = [f'class {i}' for i in range(classes)]
  path = report_fixtures.make(tmp_path / 'run', steps=100, classes=names)
  run = runs.read(path)
  run.evaluation['top1'] = top1
  assert page.verdicts(run)[0].mood == mood


def test_how_to_repeat_it(tmp_path):
  path = report_fixtures.make(tmp_path / 'run', steps=100)
  versions = report_fixtures.VERSIONS | {'command': 'python main.py --config=x'}
  (path / 'versions.json').write_text(json.dumps(versions))
  html = report.write(path).read_text()
  assert '<pre><code>python main.py --config=x</code></pre>' in html
  assert 'model.depth' not in html  # None: left to the variant


def test_a_hundred_classes_have_their_labels(tmp_path):
  names = [f'class {i}' for i in range(100)]
  path = report_fixtures.make(tmp_path / 'run', steps=100, classes=names)
  (*_, figure) = _figures(report.write(path).read_text())
  assert figure['data'][0]['x'] == names
  assert figure['layout']['xaxis']['dtick'] == 1


def test_class_names_can_not_inject_html(tmp_path):
  path = report_fixtures.make(
    tmp_path / 'run', steps=100, classes=['<script>alert(1)</script>', "o'b"]
  )
  html = report.write(path).read_text()
  assert '<script>alert' not in html
  assert _figures(html)


def test_thousand_classes_are_listed_not_drawn(tmp_path):
  path = report_fixtures.make(
    tmp_path / 'run', steps=100, classes=[f'class {i}' for i in range(1_000)]
  )
  path = report.write(path)
  assert 'too large to draw' in path.read_text()
  assert path.stat().length < 4e6


@pytest.mark.slow
def test_long_run_stays_small(tmp_path):
  path = report_fixtures.make(tmp_path / 'run', steps=200_000, depth=12)
  assert report.write(path).stat().length < 4e6


@pytest.mark.parametrize(
  'number, text', [(5_628_490, '5.63 M'), (21.7e9, '21.7 G'), (999, '999')]
)
def test_si(number, text):
  assert summary.si(number) == text


@pytest.mark.parametrize(
  'seconds, text',
  [(3_725, '1 h 2 min'), (1_324, '22 min 4 s'), (59.4, '59 s')],
)
def test_duration(seconds, text):
  assert durations.in_words(seconds) == text


def test_plots_are_pictures(exploded, tmp_path):
  paths = report.plots(exploded, tmp_path / 'plots')
  assert [path.name for path in paths] == [
    'curves.png',
    'stability.png',
    'layers.png',
  ]
  assert all(path.read_bytes().startswith(b'\x89PNG') for path in paths)


def test_markdown_table(whole, tmp_path):
  partial = report_fixtures.make(
    tmp_path / 'partial', steps=100, finished=False
  )
  lines = report.markdown_table([whole, partial]).splitlines()
  assert lines[2] == (
    '| whole | cifar10 | vit22b | Ti | 700 | 0.631 | 0.964 | 0.938 | 1.123 |'
  )
  assert lines[3].endswith('| 100 | – | – | – | – |')
  evaluation = json.loads((whole / 'eval.json').read_text())
  text = json.dumps(evaluation | {'data': 'folder:other'})
  shutil.copytree(whole, tmp_path / 'other')
  (tmp_path / 'other' / 'eval.json').write_text(text)
  assert '| other | folder:other | vit22b |' in report.markdown_table(
    [tmp_path / 'other']
  )


def test_ended_early(whole):
  progress = page.verdicts(runs.read(whole))[2]
  assert progress.answer == 'Ended early'
  assert progress.detail == 'Step 700 of 7,000, then tested.'


def test_a_run_that_wants_no_test_finishes_without(tmp_path):
  path = report_fixtures.make(tmp_path / 'run', steps=700, finished=False)
  config = report_fixtures.CONFIG | {'duration': '2 epochs'}
  config = json.dumps(config | {'eval': config['eval'] | {'test': False}})
  (path / 'config.json').write_text(config)
  progress = page.verdicts(runs.read(path))[2]
  assert (progress.answer, progress.mood) == ('Finished', 'good')
  assert progress.detail == 'Step 700 of 700; eval.test is off.'


_PROBE = """
const timer = setInterval(() => {
  const charts = document.querySelectorAll('.chart').length;
  const drawn = document.querySelectorAll('.main-svg .xtick').length;
  if (!charts || !document.querySelector('.toggle [aria-pressed]') || !drawn)
    return;
  document.querySelector('[data-axis=log]')?.click();
  const range = document.querySelector('.player input');
  if (range) {
    range.value = 0;
    range.dispatchEvent(new Event('input'));
    const shown = [...document.querySelectorAll('.frame')]
      .filter((frame) => frame.offsetHeight);
    say('shows ' + shown.map((frame) => frame.dataset.step) +
      ' by ' + document.querySelector('.player output').textContent);
  }
  clearInterval(timer);
  setTimeout(() => say('width ' + document.documentElement.scrollWidth +
    ' plots ' + document.querySelectorAll('.plot .plot-container').length +
    ' of ' + charts), 1000);
}, 100);
"""


@pytest.mark.slow
@pytest.mark.parametrize('width', [390, 1280])
@pytest.mark.parametrize('finished', [True, False])
def test_chromium_slides_through_samples(finished, width, tmp_path):
  path = report_fixtures.make_translation(
    tmp_path / 'run',
    steps=800,
    finished=finished,
    images=8 if finished else 4,
    names=('monet', 'a' * 30),
  )
  html = report.write(path).read_text()
  count = len(_figures(html))
  assert chromium.says(html, tmp_path, width, _PROBE) == [
    'shows step 0 by step 0',
    f'width {width} plots {count} of {count}',
  ]


@pytest.mark.slow
@pytest.mark.parametrize('width', [390, 1280])
@pytest.mark.parametrize('kind', ['exploded', 'partial', 'hundred'])
def test_chromium(kind, width, tmp_path):
  options = {
    'exploded': {'explode_at': 4_000},
    'partial': {'steps': 500, 'finished': False, 'per_layer': False},
    'hundred': {
      'steps': 700,
      'classes': [f'a rather long name {i}' for i in range(100)],
    },
  }[kind]
  path = report_fixtures.make(tmp_path / 'run', **options)
  html = report.write(path).read_text()
  charts_count = len(_figures(html))
  said = chromium.says(html, tmp_path, width, _PROBE)
  assert said == [f'width {width} plots {charts_count} of {charts_count}']


_NAMES = """
const timer = setInterval(() => {
  const plots = [...document.querySelectorAll('.plot')];
  if (!plots.every((plot) => plot.data)) return;
  clearInterval(timer);
  const { x, colorscale } = plots.find((p) => p.data[0].texttemplate).data[0];
  const left = plots.filter((plot) => JSON.stringify([plot.data, plot.layout])
    .match(/color[^"]*":"[$]/));
  say([...x, ...colorscale[0], left.length]);
}, 100);
"""


@pytest.mark.slow
def test_chromium_leaves_names_of_classes_that_look_like_colors(tmp_path):
  names = ['$5', '$bad', '$scale']
  run = report_fixtures.make(tmp_path / 'run', steps=100, classes=names)
  said = chromium.says(report.write(run).read_text(), tmp_path, 390, _NAMES)
  assert said == ['$5,$bad,$scale,0,#f2f5fa,0']


_ERRORS = """
const timer = setInterval(() => {
  const list = document.querySelector('[data-errors]');
  if (!list.children.length) return;
  clearInterval(timer);
  const [search, more] = ['input', 'button'].map((name) =>
    list.parentElement.querySelector(name));
  say(list.children.length + ' of ' + JSON.parse(list.dataset.errors).length);
  more.click();
  say(list.children.length + ' ' + more.hidden);
  search.value = 'class 3';
  search.dispatchEvent(new Event('input'));
  say([...list.children].every((card) => card.textContent.includes('class 3')));
  const head = document.querySelectorAll('.sortable th button')[3];
  head.click();
  const cells = [...document.querySelectorAll('.sortable tbody td:last-child')];
  const values = cells.map((cell) => Number(cell.dataset.value));
  say(values.every((value, at) => !at || value >= values[at - 1]));
}, 100);
"""


@pytest.mark.slow
def test_chromium_shows_more_errors(tmp_path):
  run = report_fixtures.make(tmp_path / 'run', steps=100)
  html = report.write(_predict(run, 400, 200)[0]).read_text()
  said = chromium.says(html, tmp_path, 390, _ERRORS)
  assert said == ['96 of 152', '152 true', 'true', 'true']
