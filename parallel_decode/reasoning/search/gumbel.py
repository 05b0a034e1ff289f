"""Gumbel variables for sampling without replacement (Kool, van Hoof and Welling, 2019)."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def gumbels(log_weights: Array, rng: np.random.Generator) -> Array:
    """A Gumbel variable at each location log_weights; -inf stays -inf. The k largest of them are k
    items drawn without replacement, each with probability proportional to exp(log_weight)."""
    return log_weights + rng.gumbel(size=log_weights.shape)


def conditioned(variables: Array, maximum: float) -> Array:
    """The same Gumbel variables, given that the largest of them is `maximum`.

    With Z the largest: G = -log(exp(-maximum) - exp(-Z) + exp(-G~)), written so that nothing
    overflows or cancels.
    """
    largest = variables.max()
    with np.errstate(divide="ignore", invalid="ignore"):
        # v = maximum - G~ + log(1 - exp(G~ - Z)); at G~ = Z the logarithm is -inf, and G = maximum.
        v = maximum - variables + np.log1p(-np.exp(variables - largest))
        result = maximum - np.maximum(0.0, v) - np.log1p(np.exp(-np.abs(v)))
    result[np.isneginf(variables)] = -np.inf
    result[variables == largest] = maximum
    return np.asarray(result)
