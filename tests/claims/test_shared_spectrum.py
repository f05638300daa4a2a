"""The probe of the Gram and Gauss-Newton matrices' shared spectrum."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from plastax import probes
from plastax.claims.shared_spectrum import SharedSpectrum
from plastax.models import MLP


def test_the_two_matrices_have_the_same_eigenvalues_to_rounding():
    model = MLP(hidden=(6,)).build((5,), 3)
    x = jax.random.normal(jax.random.key(1), (4, 5))
    values = probes.measure(
        (SharedSpectrum(),), model.init(jax.random.key(0)), model.apply, (x, jnp.arange(4) % 3), jax.random.key(2),
        loss="cross_entropy",
    )  # fmt: skip
    assert 0 < values["shared_spectrum/difference"] < 1e-5
