"""Accelerators by name: speed, memory and price of a chip, and slices of them.

Source of the figures: Google Cloud's documentation of each generation (peak
bfloat16 FLOPs, HBM, bandwidths) and its on-demand price per chip-hour in the
cheapest region of the United States, both read in 2025.
"""

from collections.abc import Sequence
import dataclasses

import jax

from memagent_jax.planning.hlo import Rates

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One generation of accelerators."""

  rates: Rates
  hbm_bytes: int
  dollars_per_hour: float
  # Slices that can be rented, from small to large.
  slices: tuple[str, ...]


_FLAT = ('2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_CUBES = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8')
# Rates per second: FLOPs, bytes of HBM, and bytes over all links, one way.
CHIPS = {
  'v4': Chip(Rates(275e12, 1228e9, 300e9), 32 * GIB, 3.22, _CUBES),
  'v5e': Chip(Rates(197e12, 819e9, 200e9), 16 * GIB, 1.20, _FLAT),
  'v5p': Chip(Rates(459e12, 2765e9, 600e9), 95 * GIB, 4.20, _CUBES),
  'v6e': Chip(Rates(918e12, 1640e9, 448e9), 32 * GIB, 2.70, _FLAT),
}


def chip(topology: str) -> Chip:
  """The chip of a topology such as `v5p:4x4x4`.

  Raises:
    ValueError: an unknown generation.
  """
  generation = topology.partition(':')[0]
  if generation not in CHIPS:
    raise ValueError(
      f'topology {topology!r}: generation {generation!r} is unknown; expected '
      f'NAME:AxB or NAME:AxBxC with one of {", ".join(CHIPS)}.'
    )
  return CHIPS[generation]


def slices(topology: str) -> list[str]:
  """Topologies of the same generation, from small to large."""
  generation = topology.partition(':')[0]
  return [f'{generation}:{shape}' for shape in chip(topology).slices]


def devices(topology: str) -> Sequence[jax.Device]:
  """Descriptions of the devices of a topology, for the compiler.

  Raises:
    ValueError: an unknown topology, or no compiler for it is installed.
  """
  chip(topology)
  # Part of JAX, but slow to import and not needed elsewhere.
  from jax.experimental import topologies

  try:
    description = topologies.get_topology_desc(
      platform='tpu', topology_name=topology
    )
  except Exception as e:  # its type depends on what is missing
    raise ValueError(
      f'topology {topology!r}: the TPU compiler is not here or does not know it '
      f'({" ".join(str(e).split())[:200]}); install the extra [tpu_aot] and set '
      'TPU_SKIP_MDS_QUERY=1 where there is no TPU.'
    ) from e
  return description.devices
