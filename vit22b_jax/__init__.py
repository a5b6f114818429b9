"""ViT-22B against ViT, trained from scratch, in JAX.

predictor = vit22b_jax.load('runs/cifar10_vit22b_s')
predictor.predict(['cat.jpg', 'dog.jpg'])  # probabilities [2, 10]

>>> import vit22b_jax
>>> model = vit22b_jax.create('vit22b', variant='S', num_classes=10)
>>> model.depth, model.width, model.num_heads
(12, 384, 6)
"""

__version__ = '0.2.0'
__all__ = ['Predictor', 'Translator', 'UserError', 'create', 'load']


def __getattr__(name: str):
  # Late, so that `vit22b_jax.report` and the command line's parser start
  # without jax.
  if name in __all__:
    from vit22b_jax import api

    return getattr(api, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
