"""What a spectrum has to say, computed at once, and how far from the truth it may be."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plastax.curvature import Estimate, Extremes, Spectrum

SEEDS = 12
EPS = (1e-3, 0.03, 0.3)
KEYS = jax.random.split(jax.random.key(0), SEEDS)


class Summary(NamedTuple):
    rank: Estimate
    numerical_rank: Estimate
    relative_rank: Estimate
    effective_rank: Estimate
    trace: Estimate
    negative_mass: Estimate
    frobenius: Estimate
    stable_rank: Estimate
    condition: Estimate
    curve: tuple[jax.Array, Estimate]
    extreme: Extremes


def summarise(s: Spectrum) -> Summary:
    return Summary(
        s.rank(jnp.asarray(EPS)),
        s.rank(0.0),
        s.rank(0.25, relative=True),
        s.effective_rank(),
        s.trace(),
        s.negative_mass(),
        s.frobenius(),
        s.stable_rank(),
        s.condition_number(EPS[1]),
        s.rank_curve(),
        s.extreme(3),
    )


summarise_many = jax.jit(jax.vmap(summarise), compiler_options={"xla_backend_optimization_level": 0})
"""Of spectra with a leading axis: the one large program here, shared by all tests whose spectra have one shape."""


def exact_effective_rank(values: np.ndarray) -> float:
    size = np.abs(values)
    if not size.any():
        return 0.0
    p = size[size > 1e-12 * size.max()] / size.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def covered(estimate: Estimate, exact: float, errors: float, slack: float = 1e-3) -> np.ndarray:
    distance = np.abs(np.asarray(estimate.value) - exact)
    return distance <= errors * np.asarray(estimate.standard_error) + slack * abs(exact)
