"""The names and layouts of other libraries' ViTs -> timm's.

arrays = dict(layouts.from_hugging_face(arrays))
arrays = dict(layouts.from_google(arrays))
"""

import re
from collections.abc import Iterator

import numpy as np

from vit22b_jax import errors

Arrays = dict[str, np.ndarray]

_HUGGING_FACE = (
  (r'^vit\.', ''),
  (r'^embeddings\.cls_token', 'cls_token'),
  (r'^embeddings\.position_embeddings', 'pos_embed'),
  (r'^embeddings\.patch_embeddings\.projection', 'patch_embed.proj'),
  (r'^encoder\.layer\.', 'blocks.'),
  (r'\.layernorm_before\.', '.norm1.'),
  (r'\.layernorm_after\.', '.norm2.'),
  (r'\.attention\.attention\.query\.', '.attn.qkv.'),
  (r'\.attention\.output\.dense\.', '.attn.proj.'),
  (r'\.intermediate\.dense\.', '.mlp.fc1.'),
  (r'\.output\.dense\.', '.mlp.fc2.'),
  (r'^layernorm\.', 'norm.'),
  (r'^classifier\.', 'head.'),
)
_GOOGLE = (
  (r'^cls$', 'cls_token'),
  (r'^Transformer/posembed_input/pos_embedding$', 'pos_embed'),
  (r'^embedding/', 'patch_embed.proj/'),
  (r'^Transformer/encoderblock_', 'blocks/'),
  (r'/LayerNorm_0/', '/norm1/'),
  (r'/LayerNorm_2/', '/norm2/'),
  (r'/MultiHeadDotProductAttention_1/query/', '/attn.qkv/'),
  (r'/MultiHeadDotProductAttention_1/out/', '/attn.proj/'),
  (r'/MlpBlock_3/Dense_0/', '/mlp.fc1/'),
  (r'/MlpBlock_3/Dense_1/', '/mlp.fc2/'),
  (r'^Transformer/encoder_norm/', 'norm/'),
  (r'/(kernel|scale)$', '/weight'),
  (r'/', '.'),
)


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
  for pattern, replacement in rules:
    name = re.sub(pattern, replacement, name)
  return name


def _with_keys_and_values(arrays: Arrays, query: str) -> list[np.ndarray]:
  names = [query.replace('query', part) for part in ('query', 'key', 'value')]
  missing = [name for name in names if name not in arrays]
  if missing:
    raise errors.UserError(f'The file of weights lacks {", ".join(missing)}.')
  return [arrays[name] for name in names]


def from_hugging_face(arrays: Arrays) -> Iterator[tuple[str, np.ndarray]]:
  """transformers' `ViTForImageClassification` and `ViTModel`."""
  for name, array in arrays.items():
    # A pooler is not on the way to a classifier's logits.
    if re.search(r'(^|\.)pooler\.|\.attention\.attention\.(key|value)\.', name):
      continue
    if '.attention.attention.query.' in name:
      array = np.concatenate(_with_keys_and_values(arrays, name))
    yield _rename(name, _HUGGING_FACE), array


def from_google(arrays: Arrays) -> Iterator[tuple[str, np.ndarray]]:
  """github.com/google-research/vision_transformer: kernels are [in, out]."""
  for name, array in arrays.items():
    if re.search('Attention_1/(key|value)/', name):
      continue
    if '/query/' in name:
      array = np.stack(_with_keys_and_values(arrays, name))  # [3, (D,) N, K]
      if name.endswith('kernel'):
        array = np.moveaxis(array, 1, -1).reshape(-1, array.shape[1])
      else:
        array = array.ravel()
    elif name == 'embedding/kernel':
      array = array.transpose(3, 2, 0, 1)
    elif name.endswith('kernel'):
      array = array.reshape(-1, array.shape[-1]).T
    yield _rename(name, _GOOGLE), array
