"""ViT-22B against ViT, trained from scratch, in JAX.

model = vit22b_jax.create('vit22b', variant='S', num_classes=10)
model, variables = vit22b_jax.load('runs/cifar10_vit22b_s')
"""

__all__ = ['create', 'load']


def __getattr__(name: str):
  # Late, so that `vit22b_jax.report` and the command line's parser start
  # without jax.
  if name in __all__:
    from vit22b_jax import api

    return getattr(api, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
