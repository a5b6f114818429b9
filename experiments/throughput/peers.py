"""PyTorch's side of the comparison: timm's models and a plain training step."""

from collections.abc import Callable

import torch

WIDTHS = {'Ti': 192, 'S': 384, 'B': 768, 'L': 1024}
DEPTHS = {'L': 24}  # the others': 12


def import_torchvision() -> None:
  """Makes `import torchvision` work beside a CPU build of torch.

  timm and torch-fidelity import it. Its wheel from the registry is built for
  the CUDA torch: beside a CPU build its compiled operators stay out, and its
  import fails because two of them are unknown. Neither package uses them, so
  they are declared here without a body.
  """
  try:
    import torchvision  # noqa: F401
  except RuntimeError:
    library = torch.library.Library('torchvision', 'FRAGMENT')
    for name in ('nms', 'qnms'):
      library.define(f'{name}(Tensor a, Tensor b, float threshold) -> Tensor')
    # The declarations live as long as this object.
    import_torchvision.library = library


def timm_vit():
  """timm's `models.vision_transformer` module."""
  import_torchvision()
  from timm.models import vision_transformer

  return vision_transformer


def training_step(
  block: str,
  variant: str,
  batch_size: int,
  threads: int,
  compiled: bool,
  *,
  image_size: int = 32,
  patch: int = 4,
  num_classes: int = 10,
  depth: int | None = None,
  device: str = 'cpu',
  dtype: torch.dtype | None = None,
) -> tuple[Callable[[], float], int]:
  """Returns a training step of timm's ViT on random images.

  Args:
    block: 'vit', or 'vit22b' for timm's `ParallelScalingBlock`.
    variant: one of WIDTHS.
    batch_size: images a step.
    threads: that PyTorch may use.
    compiled: whether `torch.compile` compiles the model.
    image_size: pixels a side.
    patch: pixels a side of a patch.
    num_classes: outputs.
    depth: blocks; None for the variant's.
    device: 'cpu' or 'cuda', where AdamW is fused.
    dtype: of autocast; None for float32.

  Returns:
    The step, which returns its loss, and the number of parameters.
  """
  torch.set_num_threads(threads)
  torch.manual_seed(0)
  models = timm_vit()
  width = WIDTHS[variant]
  model = models.VisionTransformer(
    img_size=image_size,
    patch_size=patch,
    num_classes=num_classes,
    embed_dim=width,
    depth=depth or DEPTHS.get(variant, 12),
    num_heads=width // 64,
    block_fn={
      'vit': models.Block,
      'vit22b': models.ParallelScalingBlock,
    }[block],
  ).to(device)
  parameters = list(model.train().parameters())
  optimizer = torch.optim.AdamW(
    parameters, lr=5e-4, weight_decay=1e-4, fused=device == 'cuda' or None
  )
  run = torch.compile(model) if compiled else model
  criterion = torch.nn.CrossEntropyLoss()
  shape = (batch_size, 3, image_size, image_size)
  images = torch.randn(shape, device=device)
  labels = torch.randint(0, num_classes, (batch_size,), device=device)

  def step() -> float:
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device, dtype, enabled=dtype is not None):
      loss = criterion(run(images), labels)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 10.0)
    optimizer.step()
    return loss.item()

  return step, sum(p.numel() for p in parameters)
