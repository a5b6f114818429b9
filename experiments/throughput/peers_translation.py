"""PyTorch's side of the translation step: ViTUnets, PatchGANs, CycleGAN."""

import itertools
import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

LAMBDA_CYCLE, LAMBDA_IDENTITY = 10.0, 0.5


class Block(nn.Module):
  """x + Attn(n x), then x + MLP(n x), as the ViTUnet was released."""

  def __init__(self, width: int, heads: int, hidden: int):
    super().__init__()
    self.heads, self.scale = heads, width**-0.5
    self.attn_norm = nn.LayerNorm(width)
    self.qkv = nn.Linear(width, 3 * width, bias=False)
    self.out = nn.Linear(width, width)
    self.mlp_norm = nn.LayerNorm(width)
    self.mlp = nn.Sequential(
      nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
    )

  def forward(self, x: Tensor) -> Tensor:
    qkv = self.qkv(self.attn_norm(x)).unflatten(-1, (3, self.heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    o = functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
    x = x + self.out(o.transpose(1, 2).flatten(2))
    return x + self.mlp(self.mlp_norm(x))


def _conv(inputs: int, outputs: int) -> list[nn.Module]:
  return [nn.ReflectionPad2d(1), nn.Conv2d(inputs, outputs, 3)]


def _conv_norm_relu(inputs: int, outputs: int) -> list[nn.Module]:
  norm = nn.InstanceNorm2d(outputs)
  return [*_conv(inputs, outputs), norm, nn.ReLU(inplace=True)]


class Residual(nn.Module):
  """x + two convolutions, each with its norm."""

  def __init__(self, width: int):
    super().__init__()
    last = [*_conv(width, width), nn.InstanceNorm2d(width)]
    self.block = nn.Sequential(*_conv_norm_relu(width, width), *last)

  def forward(self, x: Tensor) -> Tensor:
    return x + self.block(x)


class ViTUnet(nn.Module):
  """The released generator, which resamples channels and joins tokens.

  Args:
    size: side of the image in pixels.
    patch: side of a patch in pixels.
    width: of the outer stages; the others have 1/2, 1/4 and 1/8 of it.
    depth: six times the blocks of a stage.
    heads: of every block.
    hidden: units of the MLPs of the outer stages.
  """

  def __init__(
    self,
    size: int,
    patch: int,
    width: int = 384,
    depth: int = 12,
    heads: int = 6,
    hidden: int = 1536,
  ):
    super().__init__()
    self.patch, self.grid = patch, size // patch

    def stage(part):
      blocks = (
        Block(width // part, heads, hidden // part) for _ in range(depth // 6)
      )
      return nn.Sequential(*blocks)

    self.positions = nn.Parameter(torch.randn(1, self.grid**2, width))
    self.embed = nn.Linear(3 * patch**2, width)
    self.encoders = nn.ModuleList(stage(part) for part in (1, 2, 4))
    self.middle = stage(8)
    self.decoders = nn.ModuleList(stage(part) for part in (4, 2, 1))
    self.to_pixels = nn.Linear(width, 3 * patch**2)
    self.cnn = nn.Sequential(
      *_conv_norm_relu(12, 64),
      *_conv_norm_relu(64, 128),
      *(Residual(128) for _ in range(depth // 3)),
      *_conv_norm_relu(128, 64),
      *_conv(64, 3),
      nn.Tanh(),
    )

  def forward(self, images: Tensor) -> Tensor:
    p = self.patch
    x = functional.pixel_unshuffle(images, p).flatten(2).transpose(1, 2)
    x = self.embed(x) + self.positions
    skips = []
    for encoder in self.encoders:
      x = encoder(x)
      skips.append(x)
      x = x[..., ::2]
    x = self.middle(x)
    for decoder in self.decoders:
      x = torch.cat([skips.pop(), x.repeat_interleave(2, dim=-1)], dim=1)
      x = decoder(x)
    x = self.to_pixels(x).unflatten(1, (4, self.grid, self.grid))
    x = x.unflatten(-1, (3, p * p)).permute(0, 1, 4, 5, 2, 3).flatten(1, 3)
    return self.cnn(functional.pixel_shuffle(x, p))


def patchgan() -> nn.Sequential:
  """Builds the 70x70 PatchGAN: C64-C128-C256-C512-1."""
  layers = [nn.Conv2d(3, 64, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
  for inputs, outputs, stride in ((64, 128, 2), (128, 256, 2), (256, 512, 1)):
    layers += [
      nn.Conv2d(inputs, outputs, 4, stride, 1),
      nn.InstanceNorm2d(outputs),
      nn.LeakyReLU(0.2, inplace=True),
    ]
  return nn.Sequential(*layers, nn.Conv2d(512, 1, 4, 1, 1))


class Pool:
  """Earlier fakes: half of the images shown are of them."""

  def __init__(self, size: int = 50):
    self.size, self.images = size, []

  def exchange(self, fakes: Tensor) -> Tensor:
    """Fakes and stored images, as CycleGAN mixes them."""
    shown = []
    for fake in fakes.detach():
      if len(self.images) < self.size:
        self.images.append(fake)
      elif random.random() < 0.5:
        row = random.randrange(self.size)
        fake, self.images[row] = self.images[row], fake
      shown.append(fake)
    return torch.stack(shown)


class CycleGAN:
  """Two generators, two discriminators, their optimizers and pools."""

  def __init__(self, size: int, patch: int, memory_format: torch.memory_format):
    self.gen_ab, self.gen_ba = ViTUnet(size, patch), ViTUnet(size, patch)
    self.disc_a, self.disc_b = patchgan(), patchgan()
    for module in self.modules():
      for part in module.modules():
        if isinstance(part, nn.Conv2d):
          nn.init.normal_(part.weight, 0.0, 0.02)
          nn.init.zeros_(part.bias)
      module.to(memory_format=memory_format).train()
    self.gen_tx, self.disc_tx = (
      torch.optim.Adam(
        itertools.chain(*(m.parameters() for m in modules)),
        lr=2e-4,
        betas=(0.5, 0.999),
      )
      for modules in (self.modules()[:2], self.modules()[2:])
    )
    self.pool_a, self.pool_b = Pool(), Pool()

  def modules(self) -> list[nn.Module]:
    return [self.gen_ab, self.gen_ba, self.disc_a, self.disc_b]

  def step(self, real_a: Tensor, real_b: Tensor) -> float:
    """Generators, then discriminators, on images in [-1, 1]."""
    n = len(real_a)
    for disc in (self.disc_a, self.disc_b):
      disc.requires_grad_(False)
    both = torch.cat([real_a, real_b])
    fake_b, idt_b = self.gen_ab(both).split(n)
    idt_a, fake_a = self.gen_ba(both).split(n)
    rec_a, rec_b = self.gen_ba(fake_b), self.gen_ab(fake_a)
    of_a, of_b = self.disc_a(fake_a), self.disc_b(fake_b)
    cycle = functional.l1_loss(rec_a, real_a)
    cycle = cycle + functional.l1_loss(rec_b, real_b)
    identity = functional.l1_loss(idt_a, real_a)
    identity = identity + functional.l1_loss(idt_b, real_b)
    loss = (of_a - 1).square().mean() + (of_b - 1).square().mean()
    loss = loss + LAMBDA_CYCLE * (cycle + LAMBDA_IDENTITY * identity)
    self.gen_tx.zero_grad(set_to_none=True)
    loss.backward()
    self.gen_tx.step()

    for disc in (self.disc_a, self.disc_b):
      disc.requires_grad_(True)
    self.disc_tx.zero_grad(set_to_none=True)
    disc_loss = 0.0
    for disc, pool, real, fake in (
      (self.disc_a, self.pool_a, real_a, fake_a),
      (self.disc_b, self.pool_b, real_b, fake_b),
    ):
      scores = disc(torch.cat([real, pool.exchange(fake)]))
      of_real, of_fake = scores.split(n)
      term = (of_real - 1).square().mean() + of_fake.square().mean()
      disc_loss = disc_loss + term / 2
    disc_loss.backward()
    self.disc_tx.step()
    return loss.item() + disc_loss.item()


def training_step(
  batch_size: int, image_size: int, patch: int, layout: str, threads: int
) -> tuple[Callable[[], float], int]:
  """Returns a CycleGAN step of two ViTUnet-S on random images.

  Args:
    batch_size: images of each domain a step.
    image_size: side in pixels.
    patch: side in pixels.
    layout: 'contiguous_format' (PyTorch's default) or 'channels_last'.
    threads: that PyTorch may use.

  Returns:
    The step, which returns the sum of its losses, and the number of parameters.
  """
  torch.set_num_threads(threads)
  torch.manual_seed(0)
  memory_format = getattr(torch, layout)
  model = CycleGAN(image_size, patch, memory_format)
  shape = (batch_size, 3, image_size, image_size)
  images = [torch.randint(0, 256, shape, dtype=torch.uint8) for _ in 'ab']

  def step() -> float:
    real = (i.to(memory_format=memory_format) / 127.5 - 1 for i in images)
    return model.step(*real)

  parameters = itertools.chain(*(m.parameters() for m in model.modules()))
  return step, sum(p.numel() for p in parameters)
