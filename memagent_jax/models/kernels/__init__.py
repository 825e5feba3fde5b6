"""The decoder's costly operations, computed as suits each platform.

    linear    every projection        one matrix product, on a mesh axis by axis
    swiglu    the gated MLP           cpu: a gradient that keeps only its argument
    matmul    attention's products    cpu: a few rows are taken one by one
    CAUSAL    prefill and training    tpu: splash attention; gpu: cuDNN's
    LIVE      a decode step           tpu: only the slots in use

`attention` falls back to blocks of queries where a platform has no entry. To add a
kernel, write it in the file of its platform, with the shapes of its neighbours, and
enter it in a table here.

tokamax 0.0.12 (openxla) runs the same splash kernel on TPU and cuDNN's on GPU.
It is not used because of what it costs: tokens-major operands, to be transposed
for every call, and ten more packages, one of them pinned to a release of 2021
(typeguard 2.13.3).
"""

import jax
import jax.numpy as jnp

from memagent_jax import sharding
from memagent_jax.models.kernels import cpu, gpu, tpu
from memagent_jax.models.kernels.cpu import matmul, swiglu

__all__ = ['CAUSAL', 'LIVE', 'linear', 'matmul', 'swiglu']

# Both by platform. Queries are grouped by kv head and scaled, keys and values
# heads-major, slots last. On a mesh each device has its own rows and heads.
CAUSAL = {'tpu': tpu.causal, 'gpu': gpu.causal}
LIVE = {'tpu': tpu.live}


def linear(x: jax.Array, kernel: jax.Array, inputs: int) -> jax.Array:
  """Contracts the last `inputs` axes of x with the first ones of the kernel."""
  if sharding.num_shards('mlp') > 1:
    # (pair, heads) merged into one axis has no layout where heads are split,
    # and the whole kernel would be gathered.
    return jnp.tensordot(x, kernel, inputs)
  return cpu.linear(x, kernel, inputs)
