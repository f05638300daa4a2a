"""Curvature of any function: operators, Lanczos spectra with error bars, Kronecker factors. Knows no experiment.

Examples:
  >>> import jax, jax.numpy as jnp
  >>> from plastax import curvature
  >>> def loss_fn(params, batch):
  ...     return jnp.mean((batch @ params["w"]) ** 2)
  >>> params, batch = {"w": jnp.ones(6)}, jnp.array([[3.0, 0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0, 0]])
  >>> @jax.jit
  ... def rank(params, batch):
  ...     op = curvature.hessian(loss_fn, params, data=batch)
  ...     return curvature.spectrum(op, jax.random.key(0), order=6, probes=1).rank(1e-3)
  >>> rank(params, batch)
  2 ± 0
"""

from __future__ import annotations

from plastax.curvature import lanczos
from plastax.curvature.blocks import BlockSpectra, block_spectra
from plastax.curvature.fisher import empirical_fisher, fisher
from plastax.curvature.gram import ggn_spectrum, gram_matrix, gram_spectrum, ntk_spectrum
from plastax.curvature.kronecker import Factors, kronecker, left_out
from plastax.curvature.memory import memory
from plastax.curvature.operators import add, block, dense, from_matrix, ggn, hessian, scale, shift
from plastax.curvature.products import asymmetry
from plastax.curvature.published import published_epsilon_rank
from plastax.curvature.quadrature import spectrum
from plastax.curvature.spectrum import Estimate, Extremes, Spectrum, from_eigenvalues
from plastax.curvature.trainability import Trainability, dead_unit_rank_bound, linear_loss, trainability
from plastax.types import Loss

__all__ = [
    "BlockSpectra",
    "Estimate",
    "Extremes",
    "Factors",
    "Loss",
    "Spectrum",
    "Trainability",
    "add",
    "asymmetry",
    "block",
    "block_spectra",
    "dead_unit_rank_bound",
    "dense",
    "empirical_fisher",
    "fisher",
    "from_eigenvalues",
    "from_matrix",
    "ggn",
    "ggn_spectrum",
    "gram_matrix",
    "gram_spectrum",
    "hessian",
    "kronecker",
    "lanczos",
    "left_out",
    "linear_loss",
    "memory",
    "ntk_spectrum",
    "published_epsilon_rank",
    "scale",
    "shift",
    "spectrum",
    "trainability",
]
