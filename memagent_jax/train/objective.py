"""What an update minimises, as a value: the interface of every objective."""

from collections.abc import Callable
from typing import Any

from memagent_jax.structs import WeightedMean

LossAndMetrics = tuple[WeightedMean, dict[str, WeightedMean]]
# (params, rows of a micro-batch) -> loss and metrics, as sums with weights. Frozen
# and hashable, so that it can be a static argument of `update`.
Objective = Callable[[dict, Any], LossAndMetrics]
