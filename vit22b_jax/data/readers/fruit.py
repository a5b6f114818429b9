"""`fruit`: apples and oranges drawn by a seeded generator, 64 px, no download.

Two domains for image translation which differ in color and texture, while
places, sizes, light, shadows and backgrounds are alike. A picture is a function
of its domain, split and number.

Coordinates: x to the right, y up, the picture is [-1, 1] both ways. A fruit has
its own (u, v), in which it is about a unit circle, and a third one towards the
viewer: the surface is shaded as a sphere's.
"""

import functools
import hashlib
import math
import pathlib

import numpy as np
from jaxtyping import Float, UInt8

from vit22b_jax.data import encoded

NAMES = ('apple', 'orange')
SIZE = 64
COUNTS = {'train': 400, 'test': 64}

_FINE = 2 * SIZE  # Drawn at twice the size and averaged: smooth edges.
_Y, _X = np.mgrid[1 : -1 : 1j * _FINE, -1 : 1 : 1j * _FINE].astype(np.float32)

Plane = Float[np.ndarray, 'F F']
Picture = Float[np.ndarray, 'F F 3']
Vector = Float[np.ndarray, ' 3']  # Of light, or a color.
Rng = np.random.Generator


def find() -> dict[str, encoded.Embedded]:
  """Opens trainA and testA (apples), trainB and testB (oranges)."""
  version = hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest()
  return {
    f'{split}{letter}': encoded.Embedded(
      f'fruit {kind} {split}',
      version,
      np.zeros(count, np.int32),
      functools.partial(draw, kind, split),
    )
    for split, count in COUNTS.items()
    for letter, kind in zip('AB', NAMES, strict=True)
  }


def draw(kind: str, split: str, index: int) -> UInt8[np.ndarray, '64 64 3']:
  """Draws one picture; the data set has the first COUNTS[split]."""
  rng = np.random.default_rng(
    (NAMES.index(kind), list(COUNTS).index(split), index)
  )
  light = rng.uniform((-0.7, 0.35, 0.6), (0.7, 0.8, 0.9))
  light = (light / np.linalg.norm(light)).astype(np.float32)
  picture = _background(rng)
  radius = rng.uniform(0.44, 0.62)
  x, y = rng.uniform(-1, 1, 2) * (0.92 - radius, 0.8 - radius)
  if rng.random() < 0.3:  # A smaller one peeps out from behind.
    side = 1 if rng.random() < 0.5 else -1
    behind = x + side * radius * 1.15, y + 0.15 * radius
    picture = _fruit(rng, picture, kind, behind, 0.8 * radius, light)
  picture = _fruit(rng, picture, kind, (x, y), radius, light)
  exposure = rng.uniform(0.85, 1.1) * rng.uniform(0.95, 1.05, 3)
  picture = (picture[::2] + picture[1::2]) / 2
  picture = (picture[:, ::2] + picture[:, 1::2]) / 2 * exposure
  picture += rng.normal(0, 0.008, picture.shape)
  return np.rint(255 * np.clip(picture, 0, 1)).astype(np.uint8)


def _background(rng: Rng) -> Picture:
  """Draws a wall above a table, of muted colors with blotches or grain."""
  horizon = rng.uniform(-0.35, 0.45) + rng.uniform(-0.08, 0.08) * _X
  wall = _color(rng, (0, 1), (0.05, 0.3), (0.35, 0.9))
  table = _color(rng, (0.05, 0.65), (0.05, 0.4), (0.3, 0.85))
  below = _step(horizon - _Y, 0.04)[..., None]
  grain = 24 if rng.random() < 0.35 else 3  # Blotches, or the streaks of wood.
  texture = _smooth(rng, (grain, 3))
  light = 1 + 0.12 * texture + 0.15 * rng.uniform(-1, 1) * _X + 0.1 * _Y
  return (wall + below * (table - wall)) * light[..., None]


def _fruit(
  rng: Rng,
  picture: Picture,
  kind: str,
  center: tuple[float, float],
  radius: float,
  light: Vector,
) -> Picture:
  """Puts a fruit and its shadow into a picture."""
  angle = rng.normal(0, 0.2)
  x, y = (_X - center[0]) / radius, (_Y - center[1]) / radius
  shadow_x = (x + 0.5 * light[0]) / 1.15
  shadow = np.exp(-((shadow_x**2 + ((y + 0.88) / 0.3) ** 2) ** 1.5))
  picture = picture * (1 - 0.6 * shadow)[..., None]
  cos, sin = math.cos(angle), math.sin(angle)
  u = (cos * x + sin * y) / rng.uniform(0.97, 1.05)
  v = (cos * y - sin * x) / rng.uniform(0.93, 1.01)
  paint = _apple if kind == 'apple' else _orange
  return paint(rng, picture, u, v, light)


def _apple(
  rng: Rng, picture: Picture, u: Plane, v: Plane, light: Vector
) -> Picture:
  """Paints red, streaked with yellow from the stem down, and glossy."""
  angle = np.arctan2(v, u)
  edge = 1 + 0.04 * np.sin(angle)  # Broad shoulders, a narrow foot,
  for pole, depth in ((math.pi / 2, 0.13), (-math.pi / 2, 0.06)):  # and dents.
    edge = edge - depth * np.exp(-(((angle - pole) / 0.4) ** 2))
  u, v = u / edge, v / edge
  normal = _sphere(u, v)
  red = _color(rng, (-0.03, 0.015), (0.8, 0.95), (0.62, 0.85))
  yellow = _color(rng, (0.1, 0.17), (0.6, 0.8), (0.75, 0.95))
  longitude = np.arctan2(u, normal[2] + 0.2)
  streaks = sum(
    np.sin(rng.uniform(3, 20) * longitude + rng.uniform(0, 7) + v)
    for _ in range(5)
  )
  blush = rng.uniform(-0.7, 0.2) + 0.5 * np.clip(v, -0.2, 1) + 0.09 * streaks
  blush = np.clip(blush, 0, 0.85)[..., None]
  skin = red + blush * (yellow - red)
  dent = np.exp(-((u / 0.34) ** 2 + ((v - 0.8) / 0.2) ** 2))
  skin = skin * (1 - 0.55 * dent)[..., None]
  fruit = _lit(skin, normal, light, gloss=0.65, sharpness=40)
  picture = _over(picture, fruit, _step(1 - np.hypot(u, v), 0.03))
  return _stem(rng, picture, u, v, base=0.74, length=rng.uniform(0.3, 0.5))


def _orange(
  rng: Rng, picture: Picture, u: Plane, v: Plane, light: Vector
) -> Picture:
  """Paints orange, dotted with pores, and a button where the stem was."""
  normal = _sphere(u, v)
  skin = _color(rng, (0.065, 0.095), (0.88, 1), (0.88, 1))
  pores = _pores(rng, u, v)
  skin = skin * (1 - 0.16 * pores + 0.05 * _smooth(rng, (4, 4)))[..., None]
  fruit = _lit(skin, normal, light, gloss=0.28, sharpness=9, bumps=pores)
  picture = _over(picture, fruit, _step(1 - np.hypot(u, v), 0.03))
  return _stem(rng, picture, u, v, base=0.8, length=0.0)


def _stem(
  rng: Rng, picture: Picture, u: Plane, v: Plane, base: float, length: float
) -> Picture:
  """Draws a bent stem, or (length 0) a button, and now and then a leaf."""
  lean = rng.uniform(-0.4, 0.4)
  along = np.clip(v - base, 0, length)
  distance = np.hypot(u - lean * along * (1 + along), v - base - along)
  width = 0.055 if length else 0.085
  brown = _color(rng, (0.06, 0.25), (0.4, 0.6), (0.25, 0.4))
  picture = _over(picture, brown, _step(width - distance, 0.03))
  if rng.random() > (0.5 if length else 0.35):
    return picture
  turn, side = rng.uniform(0.1, 0.6), 1 if rng.random() < 0.5 else -1
  height = v - base - 0.4 * length
  cos, sin = math.cos(turn), math.sin(turn)
  a = cos * side * u + sin * height  # Along the leaf.
  b = cos * height - sin * side * u  # Across it.
  half = 0.17 * np.sin(np.pi * np.clip(a / 0.75, 0, 1)) - 0.02
  green = _color(rng, (0.25, 0.36), (0.5, 0.8), (0.35, 0.6))
  leaf = green * (1.1 - 0.35 * _step(np.abs(b) - 0.015, 0.02) + b)[..., None]
  return _over(picture, leaf, _step(half - np.abs(b), 0.03))


def _lit(
  skin: Picture,
  normal: Float[np.ndarray, '3 F F'],
  light: Vector,
  *,
  gloss: float,
  sharpness: float,
  bumps: Plane | float = 0.0,
) -> Picture:
  """Lights a surface by Blinn-Phong: ambient, diffuse and a highlight."""
  half = light + np.array([0, 0, 1], np.float32)
  half /= np.linalg.norm(half)
  facing, mirror = np.tensordot(np.stack([light, half]), normal, 1)
  diffuse = 0.34 + 0.72 * np.clip(facing, 0, 1)
  highlight = gloss * np.clip(mirror, 0, 1) ** sharpness * (1 - 0.7 * bumps)
  return skin * diffuse[..., None] + highlight[..., None]


def _pores(rng: Rng, u: Plane, v: Plane) -> Plane:
  """Dots spread evenly over the visible half of a sphere, in [0, 1]."""
  points = rng.normal(size=(900, 3))
  points /= np.linalg.norm(points, axis=1, keepdims=True)
  points = points[points[:, 2] > 0.15]
  # From (u, v), which are affine in rows and columns, back to those.
  rows, columns = (
    np.array([plane[-1, 0] - plane[0, 0], plane[0, -1] - plane[0, 0]])
    for plane in (u, v)
  )
  origin = np.array([u[0, 0], v[0, 0]])
  where = np.linalg.solve(np.stack([rows, columns]), (points[:, :2] - origin).T)
  row, column = np.rint(where * (_FINE - 1)).astype(int)
  seen = (row > 0) & (row < _FINE - 1) & (column > 0) & (column < _FINE - 1)
  dots = np.zeros((_FINE, _FINE), np.float32)
  for down, right, weight in ((0, 0, 1), (0, 1, 0.6), (1, 0, 0.6), (1, 1, 0.4)):
    dots[row[seen] + down, column[seen] + right] = weight
  return dots


def _sphere(u: Plane, v: Plane) -> Float[np.ndarray, '3 F F']:
  """Returns unit normals; those of the rim for what is outside."""
  outside = np.maximum(np.hypot(u, v), 1)
  u, v = u / outside, v / outside
  return np.stack([u, v, np.sqrt(np.maximum(1 - u**2 - v**2, 0))])


def _smooth(rng: Rng, cells: tuple[int, int]) -> Plane:
  """Draws noise in [-1, 1], linear between rows x columns of cells."""
  noise = rng.uniform(-1, 1, (cells[0] + 1, cells[1] + 1)).astype(np.float32)
  for axis, count in enumerate(cells):
    place = np.linspace(0, count, _FINE, endpoint=False, dtype=np.float32)
    low = place.astype(int)
    share = np.expand_dims(place % 1, 1 - axis)
    first, second = noise.take(low, axis), noise.take(low + 1, axis)
    noise = first + share * (second - first)
  return noise


def _color(rng: Rng, *ranges: tuple[float, float]) -> Vector:
  """Draws a color from ranges of hue (in turns), saturation and value."""
  hue, saturation, value = (rng.uniform(*limits) for limits in ranges)
  # https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative
  k = (np.array([5, 3, 1], np.float32) + 6 * hue) % 6
  return value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)


def _step(distance: Plane, width: float) -> Plane:
  """Returns 0 below, 1 above zero, with a ramp of that width between."""
  return np.clip(distance / width + 0.5, 0, 1)


def _over(picture: Picture, top: Picture | Vector, opacity: Plane) -> Picture:
  return picture + opacity[..., None] * (top - picture)
