"""Writes Table 1's counts in Markdown, and the parts of differences."""

from collections import Counter

from experiments import documents
from experiments.runner import Row

# The paper's Table 1, millions. Its ViT column is the literature's.
PAPER = {
  'Ti': ('5.8', '5.6'),
  'S': ('22.2', '22.1'),
  'B': ('86', '87.9'),
  'L': ('307', '307'),
  'H': ('632', '-'),
  '22B': ('-', '21743'),
}
# What the authors' code has at 32 px, patch 16, 10 classes.
RELEASED = {
  ('released_vit', 'Ti'): 5_636_170,
  ('released_vit', 'S'): 22_184_074,
  ('released_vit', 'B'): 88_015_114,
  ('released_vit', 'L'): 307_268_618,
  ('released_vit', 'H'): 637_157_130,
  ('released', 'Ti'): 5_628_490,
  ('released', 'S'): 22_168_714,
  ('released', 'B'): 87_984_394,
  ('released', 'L'): 307_178_506,
}
_KINDS = (
  'block matrices',
  'block biases',
  'block norms',
  'patch embedding',
  'class token, positions',
  'final norm',
  'head',
  'head norm',
)
# (block, setting) on either side of a difference, and what it is.
_DIFFERENCES = (
  (('released', 'released'), ('released_vit', 'released')),
  (('vit22b', 'literature'), ('vit', 'literature')),
  (('vit22b_mlp_norm', 'literature'), ('vit22b', 'literature')),
  (('vit', 'literature'), ('released_vit', 'released')),
  (('vit22b', 'literature'), ('released', 'released')),
)


def sections(row: Row) -> list[str]:
  """Returns the page's parts."""
  counts = {
    (c['block'], c['setting'], c['size']): Counter(_by_kind(c['terms']))
    for c in row['counts']
  }
  return [
    "The paper's counts in millions, and ours: `released` and `released_vit` "
    'as its code has them (32 px, 10 classes), `vit` and `vit22b` as the '
    'literature counts (224 px, 1,000 classes, linear head); patches of 16.',
    _beside_paper(counts),
    'What differences consist of, in parameters; other terms are equal. '
    '`released` is a setting of 32 px, 10 classes and the head of the '
    "authors' code, `literature` one of 224 px, 1,000 classes and a linear "
    'head.',
    _differences(counts),
    'Where the 22 billion are: the matrices of the 48 blocks alone make the '
    "paper's 21743M.",
    _parts(counts['vit22b', 'literature', '22B']),
  ]


def _by_kind(terms: dict[str, int]) -> dict[str, int]:
  found: Counter[str] = Counter()
  for path, number in terms.items():
    found[kind_of(path)] += number
  return dict(found)


def kind_of(path: str) -> str:
  """Returns the kind of a term, one of those that the tables name."""
  first, *rest = path.split('/')
  if first == 'block':
    if '_norm' in rest[0]:
      return 'block norms'
    return 'block matrices' if rest[-1] == 'kernel' else 'block biases'
  if first == 'head':
    return 'head norm' if rest[0] == 'batch_norm' else 'head'
  if first in ('cls', 'positions'):
    return 'class token, positions'
  return {'patch_embedding': 'patch embedding'}.get(first, 'final norm')


def _beside_paper(counts: dict) -> str:
  lines = []
  for size, (vit, vit22b) in PAPER.items():
    lines.append(
      [
        size,
        vit,
        *_count(counts, 'released_vit', 'released', size),
        *_count(counts, 'vit', 'literature', size)[:1],
        vit22b,
        *_count(counts, 'released', 'released', size),
        *_count(counts, 'vit22b', 'literature', size)[:1],
      ]
    )
  return documents.table(
    (
      'size',
      '#ViT, paper',
      '#`released_vit`',
      "#the code's",
      '#`vit`',
      '#ViT-22B, paper',
      '#`released`',
      "#the code's",
      '#`vit22b`',
    ),
    lines,
  )


def _count(counts: dict, block: str, setting: str, size: str) -> list[str]:
  """Returns our count, and that of the released code beside it."""
  ours = counts[block, setting, size].total()
  known = RELEASED.get((block, size))
  if known is None:
    return [f'{ours:,}', '-']
  return [f'{ours:,}', f'{ours - known:+,}' if ours - known else 'equal']


def _differences(counts: dict) -> str:
  lines = []
  for left, right in _DIFFERENCES:
    for size in PAPER:
      difference = Counter(counts[*left, size])
      difference.subtract(counts[*right, size])
      terms = [
        f'{kind} {difference[kind]:+,}' for kind in _KINDS if difference[kind]
      ]
      lines.append(
        [
          _side(left),
          _side(right),
          size,
          f'{difference.total():+,}',
          ', '.join(terms),
        ]
      )
  return documents.table(
    ('count of', 'less that of', 'size', '#difference', 'terms'), lines
  )


def _side(side: tuple[str, str]) -> str:
  return f'`{side[0]}`, {side[1]}'


def _parts(counts: Counter) -> str:
  lines = [[kind, f'{counts[kind]:,}'] for kind in _KINDS if counts[kind]]
  return documents.table(
    ('part', '#parameters'), [*lines, ['all', f'{counts.total():,}']]
  )
