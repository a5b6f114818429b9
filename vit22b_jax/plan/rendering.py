"""Puts plans into words for the console."""

from collections.abc import Sequence
from typing import Any

from vit22b_jax.plan import planner

_KINDS = {
  'parameters': 'parameters',
  'optimizer': 'optimizer',
  'ema': 'averaged weights',
  'other_state': 'rest of the state',
  'batch': 'batch',
  'temporaries': 'activations and temporaries',
  'code': 'code',
}


def render(plan: dict[str, Any]) -> str:
  """Returns the content of plan.json in words."""
  mesh = ' x '.join(f'{axis}={size}' for axis, size in plan['mesh'].items())
  config = plan['config']
  lines = [
    f'{plan["topology"]}: {plan["devices"]} x {plan["chip"]}, mesh {mesh}',
    f'{plan["parameters"]:,} parameters, batch {plan["batch_size"]:,} in '
    f'{config.get("optim", {}).get("accumulate", 1)} part(s), remat '
    f'{config["model"].get("remat", "none")}',
    '',
    *_memory(plan),
    '',
    *_arithmetic(plan),
    *_prediction(plan),
  ]
  return '\n'.join(lines)


def line(plan: dict[str, Any]) -> str:
  """Returns a plan of a search in a line."""
  mesh = 'x'.join(str(size) for size in plan['mesh'].values())
  config = plan['config']
  head = (
    f'batch {plan["batch_size"]:>7,}  mesh {mesh:>10}  remat '
    f'{config["model"]["remat"]:<11} parts '
    f'{config["optim"]["accumulate"]:>4}  {gib(plan["hbm_bytes_per_device"])}'
  )
  if not plan['fits']:
    return f'{head}  does not fit'
  if plan['predicted_step_seconds'] is None:
    return f'{head}  fits; no prediction'
  return (
    f'{head}  {plan["predicted_step_seconds"]:.4g} s a step, utilization '
    f'{plan["predicted_mfu_no_overlap"]:.3f}'
  )


def choices(tried: Sequence[dict[str, Any]]) -> str:
  """Returns which remat fits without microbatches, from a search's plans."""
  needs: dict[str, dict[str, Any]] = {}
  for plan in tried:
    remat = plan['config']['model']['remat']
    if plan['config']['optim']['accumulate'] == 1:
      needs[remat] = min(plan, needs.get(remat, plan), key=_needed)
  words = [
    f'remat {remat} {"fits" if plan["fits"] else "does not fit"} '
    f'({gib(_needed(plan))})'
    for remat, plan in needs.items()
  ]
  return f'Without microbatches: {", ".join(words)}.'


def _needed(plan: dict[str, Any]) -> float:
  return plan['hbm_bytes_per_device']


def gib(size: float) -> str:
  """Returns bytes as text in GiB."""
  return f'{size / 2**30:.2f} GiB'


def _memory(plan) -> list[str]:
  lines = ['Memory of a device:']
  lines += [
    f'  {name:<28}{gib(plan["memory"][key]):>12}'
    for key, name in _KINDS.items()
    if plan['memory'].get(key)
  ]
  total, capacity = _needed(plan), plan['hbm_capacity_bytes']
  verdict = 'fits' if plan['fits'] else 'DOES NOT FIT'
  lines.append(
    f'  {"needed":<28}{gib(total):>12}  of {gib(capacity)}: {verdict}'
  )
  if not plan['fits']:
    over = total - plan.get('hbm_usable_bytes', capacity)
    lines.append(
      f'  {gib(over)} too much: more optim.accumulate, a model.remat that '
      'keeps less, more devices (--search tries them), or a smaller batch'
    )
  if 'largest_batch_size' in plan:
    more = plan.get('next_batch_bytes_per_device')
    more = f'twice that needs {gib(more)}' if more else 'no more images'
    largest = plan['largest_batch_size']
    lines.append(f'  largest batch in so many parts: {largest:,}; {more}')
  return [*lines, f'Compiled in {plan["compile_seconds"]:.1f} s.']


def _arithmetic(plan) -> list[str]:
  hardware = plan['hardware_flops_per_device']
  if hardware is None:
    return []
  again = plan['recomputed_flops_per_device'] / hardware
  return [
    'A step on a device:',
    f'  model FLOPs                 {plan["model_flops_per_device"]:12.4g}',
    f'  hardware FLOPs              {hardware:12.4g}  ({again:.1%} recomputed)',
    f'  memory traffic              {gib(plan["memory_traffic_bytes"]):>12}',
    *(
      f'  {row["kind"]} over {row["axes"]}: {row["count"]:,} of '
      f'{gib(row["bytes"])} in all, {gib(row["wire_bytes"])} sent'
      for row in plan['collectives']
    ),
  ]


def _prediction(plan) -> list[str]:
  if 'not_predicted' in plan:
    return [f'No prediction: {plan["not_predicted"]}.']
  if plan['predicted_step_seconds'] is None:
    return []
  seconds = plan['predicted_seconds']
  wires = ', '.join(
    f'{axes} {value:.4g}' for axes, value in seconds['communication'].items()
  )
  hours, overlap = (
    f'{plan[key]:,.0f}' if plan[key] >= 10 else f'{plan[key]:.2g}'
    for key in ('predicted_chip_hours', 'predicted_chip_hours_overlap')
  )
  return [
    '',
    'Prediction, not a measurement: a roofline with products at '
    f'{plan["matmul_efficiency"]:.0%} of the peak.',
    f'  seconds: products {seconds["matmul"]:.4g}, memory '
    f'{seconds["memory"]:.4g}, links {wires or 0}',
    f'  one after the other         {plan["predicted_step_seconds"]:12.4g} s a '
    f'step, utilization {plan["predicted_mfu_no_overlap"]:.3f}',
    '  with the links hidden       '
    f'{plan["predicted_step_seconds_overlap"]:12.4g} s a step, utilization '
    f'{plan["predicted_mfu_overlap"]:.3f}',
    f'  (published for ViT-22B on 1,024 v4: {planner.PUBLISHED_MFU})',
    f'  {plan["total_steps"]:,} steps: {hours} chip-hours ({overlap} with '
    'overlap)',
  ]
