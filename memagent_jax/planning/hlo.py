"""What a compiled program costs a device, read from its optimised HLO.

    text -> computations -> instructions -> Cost, loop bodies times their trips

The compiler's own count includes the body of a loop once and a Pallas kernel
not at all. Here a loop counts as often as it runs, and a kernel costs what it
declares or what `_KERNELS` says.

FLOPs are those of matrix products. Bytes are what instructions move to and from
HBM; operands that stay on the chip, and parts of an operand that are not read,
do not count.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
import json
import math
import re
from typing import NamedTuple

_ITEM_BYTES = {
  **dict.fromkeys(('pred', 's8', 'u8', 'f8e4m3fn', 'f8e5m2'), 1),
  **dict.fromkeys(('s16', 'u16', 'bf16', 'f16'), 2),
  **dict.fromkeys(('s32', 'u32', 'f32'), 4),
  **dict.fromkeys(('s64', 'u64', 'f64'), 8),
}
_ARRAY = re.compile(r'(\w+)\[([\d,]*)\](?:\{([^}]*)\})?')
_COMPUTATION = re.compile(r'^(ENTRY )?%([\w.-]+) \(.*\{$', re.MULTILINE)
_INSTRUCTION = re.compile(r'^ +(?:ROOT )?%([\w.-]+) = ', re.MULTILINE)
_REFERENCE = re.compile(r'%([\w.-]+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_INDEX = re.compile(r'\bindex=(\d+)')
_ESTIMATE = re.compile(r'"cost_estimate":(\{[^}]*\})')
# Memory space 1 in a layout is the chip's own memory; no space, or 0, is HBM.
_ON_CHIP = re.compile(r'S\((?!0\))\d+\)')
_FREE = frozenset(
  'parameter constant tuple get-tuple-element bitcast after-all partition-id '
  'replica-id opt-barrier domain'.split()
)
_COLLECTIVES = frozenset(
  'all-gather all-reduce reduce-scatter all-to-all ragged-all-to-all '
  'collective-permute'.split()
)
_SLICES = frozenset({'dynamic-slice', 'slice', 'gather'})


class Array(NamedTuple):
  """One array of an instruction's type."""

  dtype: str
  shape: tuple[int, ...]
  on_chip: bool

  @property
  def bytes(self) -> int:
    """Size of its elements, without the padding of tiles."""
    return math.prod(self.shape) * _ITEM_BYTES.get(self.dtype, 4)


class Instruction(NamedTuple):
  """One line of a computation."""

  name: str
  arrays: tuple[Array, ...]  # the result
  opcode: str
  operands: tuple[str, ...]
  rest: str  # attributes; a parameter's number; a constant's value


@dataclasses.dataclass(frozen=True)
class Rates:
  """Peak rates of a device, per second."""

  flops: float
  hbm_bytes: float
  link_bytes: float


@dataclasses.dataclass(frozen=True)
class Cost:
  """What instructions cost one device, summed over them."""

  flops: float = 0.0
  hbm_bytes: float = 0.0
  link_bytes: float = 0.0
  # Time with each instruction at the slowest of its three rates.
  seconds: float = 0.0
  # Bytes of the largest result of an all-gather.
  largest_gather: int = 0
  # Number of loops whose trip count is unknown; their bodies are counted once.
  unknown_loops: int = 0

  def __add__(self, other: 'Cost') -> 'Cost':
    return Cost(
      self.flops + other.flops,
      self.hbm_bytes + other.hbm_bytes,
      self.link_bytes + other.link_bytes,
      self.seconds + other.seconds,
      max(self.largest_gather, other.largest_gather),
      self.unknown_loops + other.unknown_loops,
    )

  def times(self, count: float) -> 'Cost':
    """The cost of `count` runs."""
    return dataclasses.replace(
      self,
      flops=count * self.flops,
      hbm_bytes=count * self.hbm_bytes,
      link_bytes=count * self.link_bytes,
      seconds=count * self.seconds,
    )


def cost(text: str, rates: Rates) -> Cost:
  """What one run of a program costs one device.

  Args:
    text: optimised HLO of the program, scheduled or not.
    rates: peak rates of the device, for `seconds`.

  Raises:
    ValueError: text without an entry computation, or a kernel without a cost.
  """
  entry, computations = _parse(text)
  return _Walk(computations, rates).computation(entry)


def _parse(text: str) -> tuple[str, dict[str, list[Instruction]]]:
  computations, entry = {}, None
  for start, body in _pieces(_COMPUTATION, text):
    computations[start[2]] = [
      _instruction(name[1], line) for name, line in _pieces(_INSTRUCTION, body)
    ]
    if start[1]:
      entry = start[2]
  if entry is None:
    raise ValueError('no entry computation: this is no optimised HLO.')
  return entry, computations


def _pieces(begin: re.Pattern, text: str) -> Iterator[tuple[re.Match, str]]:
  """Every match, with the text between it and the next."""
  matches = list(begin.finditer(text))
  ends = [*(match.start() for match in matches), len(text)][1:]
  for match, end in zip(matches, ends, strict=True):
    yield match, text[match.end() : end]


def _instruction(name: str, text: str) -> Instruction:
  end = _closing(text, 0) if text[0] == '(' else text.index(' ')
  kind, rest = text[:end], text[end:].lstrip()
  opcode, _ = rest.split('(', 1)
  end = _closing(rest, len(opcode))
  arrays = tuple(
    Array(
      dtype,
      tuple(int(size) for size in sizes.split(',') if size),
      bool(_ON_CHIP.search(layout or '')),
    )
    for dtype, sizes, layout in _ARRAY.findall(kind)
  )
  arguments = rest[len(opcode) : end]
  operands = tuple(_REFERENCE.findall(arguments))
  # A parameter has its number as argument, a constant its value.
  literal = opcode in ('parameter', 'constant')
  rest = arguments[1:-1] if literal else rest[end:]
  return Instruction(name, arrays, opcode, operands, rest)


def _closing(text: str, start: int) -> int:
  """The index just past the parenthesis that closes the one at `start`."""
  depth = 0
  for place in range(start, len(text)):
    depth += {'(': 1, ')': -1}.get(text[place], 0)
    if depth == 0:
      return place + 1
  raise ValueError(f'no closing parenthesis in {text[:80]!r}.')


class _Walk:
  """Costs of computations, each computed once."""

  def __init__(
    self, computations: Mapping[str, Sequence[Instruction]], rates: Rates
  ) -> None:
    self._computations, self._rates = computations, rates
    self._by_name = {
      name: {one.name: one for one in instructions}
      for name, instructions in computations.items()
    }
    self.computation = functools.cache(self._computation)

  def _computation(self, name: str) -> Cost:
    total = Cost()
    for one in self._computations[name]:
      total += self._instruction(name, one)
    return total

  def _instruction(self, name: str, one: Instruction) -> Cost:
    opcode = one.opcode
    if opcode in _FREE or opcode.endswith('-done'):
      return Cost()
    opcode = opcode.removesuffix('-start')
    if opcode == 'while':
      body = self.computation(_called(one, 'body'))
      body += self.computation(_called(one, 'condition'))
      trips = self._trips(one)
      if trips is None:
        return body + Cost(unknown_loops=1)
      return body.times(trips)
    if opcode in ('call', 'async'):
      return self.computation(
        _called(one, 'to_apply' if opcode == 'call' else 'calls')
      )
    if opcode == 'conditional':
      costs = [self.computation(branch) for branch in _branches(one)]
      return max(costs, key=lambda c: c.seconds)
    operands = [self._by_name[name][x] for x in one.operands]
    if opcode in _COLLECTIVES:
      return self._collective(opcode, one, operands)
    moved = sum(a.bytes for a in _result(one) if not a.on_chip)
    if opcode == 'custom-call':
      kernel = _kernel(one, operands)
      moved += sum(map(_hbm_bytes, operands))
      # A kernel that skips parts of its operands declares how much it moves.
      return self._cost(kernel.flops, kernel.hbm_bytes or moved)
    if opcode == 'copy':
      # A copy between memories counts once, on the side of HBM.
      moved = max(moved, sum(map(_hbm_bytes, operands)))
      return self._cost(0.0, moved)
    if opcode == 'fusion':
      return self._fusion(_called(one, 'calls'), operands, moved)
    if opcode in _SLICES:
      return self._cost(0.0, 2 * moved)
    if opcode == 'dynamic-update-slice':
      return self._cost(0.0, 2 * _hbm_bytes(operands[1]))
    read = sum(map(_hbm_bytes, operands))
    return self._cost(_product_flops(one, operands), moved + read)

  def _trips(self, loop: Instruction) -> int | None:
    """How often a loop runs, annotated or by its counter's limit, or None."""
    known = _TRIPS.search(loop.rest)
    if known:
      return int(known[1])
    inner = list(self._computations[_called(loop, 'condition')])
    for one in [x for x in inner if x.opcode == 'fusion']:
      inner += self._computations[_called(one, 'calls')]
    compares = [x for x in inner if x.opcode == 'compare']
    limits = [x.rest for x in inner if x.opcode == 'constant']
    if len(compares) == len(limits) == 1 and 'direction=LT' in compares[0].rest:
      return -(-int(limits[0]) // self._stride(loop))
    return None

  def _stride(self, loop: Instruction) -> int:
    """What an iteration adds to the counter: 2 if two were merged into one."""
    body = _called(loop, 'body')
    named = self._by_name[body]
    *_, carried = [
      x.operands for x in self._computations[body] if x.opcode == 'tuple'
    ]
    for one in self._computations[_called(loop, 'condition')]:
      if one.opcode != 'get-tuple-element':
        continue
      counter = named[carried[int(_found(_INDEX, one.rest)[1])]]
      if counter.opcode == 'add':
        added = [named[x] for x in counter.operands]
        strides = [int(x.rest) for x in added if x.opcode == 'constant']
        if strides:
          return strides[0]
    return 1

  def _fusion(
    self, name: str, operands: Sequence[Instruction], written: float
  ) -> Cost:
    """The cost of a fusion, whose products and collectives overlap."""
    read, written = _fused_bytes(self._computations[name], operands, written)
    cost = self._cost(self._fused_flops(name), read + written)
    for one in self._computations[name]:
      if one.opcode.removesuffix('-start') in _COLLECTIVES:
        sent = self._collective(
          one.opcode.removesuffix('-start'),
          one,
          [self._by_name[name][x] for x in one.operands],
        )
        seconds = max(cost.seconds, sent.seconds)
        cost = dataclasses.replace(cost + sent, seconds=seconds)
    return cost

  def _fused_flops(self, name: str) -> float:
    total = 0.0
    for one in self._computations[name]:
      if one.opcode == 'fusion':
        total += self._fused_flops(_called(one, 'calls'))
      else:
        operands = [self._by_name[name][x] for x in one.operands]
        total += _product_flops(one, operands)
    return total

  def _collective(
    self, opcode: str, one: Instruction, operands: Sequence[Instruction]
  ) -> Cost:
    """The larger side goes over the links; an all-reduce sends it twice."""
    read = sum(a.bytes for x in operands for a in x.arrays)
    written = [a.bytes for a in _result(one)]
    largest = max(read, sum(written))
    sent = largest * (2 if opcode == 'all-reduce' else 1)
    seconds = max(
      sent / self._rates.link_bytes, 2 * largest / self._rates.hbm_bytes
    )
    gathered = max(written, default=0) if opcode == 'all-gather' else 0
    return Cost(0.0, 2 * largest, sent, seconds, gathered)

  def _cost(self, flops: float, hbm_bytes: float) -> Cost:
    seconds = max(flops / self._rates.flops, hbm_bytes / self._rates.hbm_bytes)
    return Cost(flops, hbm_bytes, 0.0, seconds)


def _found(pattern: str | re.Pattern[str], text: str) -> re.Match[str]:
  """The first match of a pattern that the compiler always writes."""
  match = re.search(pattern, text)
  if match is None:
    raise ValueError(f'no {pattern} in {text[:80]!r}.')
  return match


def _called(one: Instruction, attribute: str) -> str:
  match = re.search(rf'{attribute}=%([\w.-]+)', one.rest)
  if match is None:
    raise ValueError(f'{one.opcode} {one.name} has no {attribute}.')
  return match[1]


def _branches(one: Instruction) -> list[str]:
  match = re.search(r'branch_computations=\{([^}]*)\}', one.rest)
  if match:
    return _REFERENCE.findall(match[1])
  return [_called(one, f'{which}_computation') for which in ('true', 'false')]


def _result(one: Instruction) -> Sequence[Array]:
  """Arrays of the result; an asynchronous instruction lists its operands too."""
  if one.opcode.endswith('-start') and len(one.arrays) > 1:
    return one.arrays[1:2]
  return one.arrays


def _hbm_bytes(one: Instruction) -> int:
  return sum(a.bytes for a in one.arrays if not a.on_chip)


def _fused_bytes(
  inner: Sequence[Instruction], operands: Sequence[Instruction], written: float
) -> tuple[float, float]:
  """Bytes read and written by a fusion, of slices and updates just the part."""
  uses: dict[str, list[Instruction]] = {}
  for one in inner:
    for operand in one.operands:
      uses.setdefault(operand, []).append(one)
  parameters = [x for x in inner if x.opcode == 'parameter']
  parameters.sort(key=lambda x: int(x.rest))
  read = 0.0
  for parameter, given in zip(parameters, operands, strict=True):
    using = uses.get(parameter.name, [])
    whole = _hbm_bytes(given)
    if using and all(x.opcode in _SLICES for x in using):
      whole = min(whole, sum(a.bytes for x in using for a in x.arrays))
    elif using and all(
      x.opcode == 'dynamic-update-slice' and x.operands[0] == parameter.name
      for x in using
    ):
      whole = 0
    read += whole
  updates = [x for x in inner if x.opcode == 'dynamic-update-slice']
  if updates:
    names = {x.name: x for x in inner}
    whole = sum(a.bytes for x in updates for a in x.arrays)
    part = sum(a.bytes for x in updates for a in names[x.operands[1]].arrays)
    written = max(written - whole, 0) + part
  return read, written


def _product_flops(one: Instruction, operands: Sequence[Instruction]) -> float:
  """2 * B * M * N * K for a matrix product; 0 for anything else."""
  if one.opcode == 'dot':
    contracted = _found(r'lhs_contracting_dims=\{([\d,]*)\}', one.rest)[1]
    left = operands[0].arrays[0].shape
    inner = math.prod(left[int(d)] for d in contracted.split(',') if d)
    return 2.0 * math.prod(one.arrays[0].shape) * inner
  if one.opcode == 'convolution':
    return 2.0 * _convolution_products(one, operands)
  return 0.0


def _convolution_products(
  one: Instruction, operands: Sequence[Instruction]
) -> float:
  """Multiplications of a matrix product written as a convolution.

  Each label of its three shapes is an axis of the product: one of the result's
  rows or columns, of the sum, or of the batch.
  """
  labels = _found(r'dim_labels=(\w+)_(\w+)->(\w+)', one.rest)
  left, right, out = (
    dict(zip(names, x.arrays[0].shape, strict=True))
    for names, x in zip(labels.groups(), (*operands, one), strict=True)
  )
  total = left['b'] * right['i'] * right['o']
  for axis in set(left) - {'b', 'f'}:
    sizes = left[axis], right[axis], out[axis]
    # Two of the three are equal, all of them in a batch; the third is 1.
    total *= max(sizes)
  return total


# --- kernels -----------------------------------------------------------------------


def _kernel(one: Instruction, operands: Sequence[Instruction]) -> Cost:
  """FLOPs of a custom call, and its bytes of HBM if it declares them."""
  if 'custom_call_target="tpu_custom_call"' not in one.rest:
    return Cost()
  declared = _ESTIMATE.search(one.rest)
  if declared:
    estimate: Mapping[str, str] = json.loads(declared[1])
    return Cost(float(estimate['flops']), float(estimate['bytes_accessed']))
  for name, flops in _KERNELS.items():
    if one.name.startswith(name):
      return Cost(flops([x.arrays[0] for x in operands], one.arrays))
  raise ValueError(
    f'kernel {one.name} declares no cost and none is known; known: '
    f'{", ".join(_KERNELS)}.'
  )


def _splash_flops(
  products: int,
) -> Callable[[Sequence[Array], Sequence[Array]], float]:
  """A function for the FLOPs of splash attention, by its products per block.

  The first operands are integers that say which blocks exist, [heads or 1,
  block rows, columns]; the queries are [N, heads, tokens, dimensions], without
  N if it is 1.
  """

  def flops(operands: Sequence[Array], results: Sequence[Array]) -> float:
    queries = next(
      a.shape for a in operands if len(a.shape) > 2 and 'f' in a.dtype
    )
    # A fused kernel also returns the queries' gradient, a part per key block.
    fused = any(len(a.shape) > len(queries) for a in results)
    *n, heads, tokens, dim = queries
    rows = operands[0].shape[-2]
    # A causal mask: the diagonal and what is below it.
    pairs = (rows + 1) / (2 * rows) * tokens**2
    return 2.0 * (products + fused) * math.prod(n) * heads * pairs * dim

  return flops


# Forward: scores and values. Backward: scores again, the gradient of the
# probabilities, and the gradients that the kernel is for.
_KERNELS = {
  'splash_mha_fwd': _splash_flops(2),
  'splash_mha_dkv': _splash_flops(4),
  'splash_mha_dq': _splash_flops(3),
}
