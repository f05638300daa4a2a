"""Parts of methods that act on steps, alone: cosines, special functions, projections, bounds."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from plastax import methods
from plastax.errors import ConfigError
from plastax.methods.dash import factors
from plastax.methods.trac import erfi
from plastax.models import CNN, MLP
from plastax.models.layers import ROLES

pytestmark = pytest.mark.usefixtures("x64")


def test_dash_compares_the_places_of_a_convolutions_channel_pairs() -> None:
    rng = np.random.default_rng(0)
    w, g = (rng.standard_normal((3, 2, 4, 5)) for _ in range(2))
    found = factors({"conv_0": {"kernel": jnp.asarray(w)}}, {"conv_0": {"kernel": jnp.asarray(g)}}, 0.1, ROLES)
    for i in range(4):
        for o in range(5):
            a, b = w[..., i, o].ravel(), -g[..., i, o].ravel()
            cosine = a @ b / np.sqrt((a @ a) * (b @ b))
            np.testing.assert_allclose(found["conv_0"]["kernel"][0, 0, i, o], max(0.1, cosine), rtol=1e-12)


def test_erfi_is_scipys() -> None:
    x = np.linspace(-9, 9, 301)
    np.testing.assert_allclose(erfi(jnp.asarray(x)), scipy.special.erfi(x), rtol=1e-12)
    x = x.astype(np.float32)
    got = erfi(jnp.asarray(x))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, scipy.special.erfi(x.astype(np.float64)), rtol=4e-6)


def test_projection_without_a_normalisation_has_nothing_to_project() -> None:
    model = MLP((4,)).build((3,), 2)
    params = jax.eval_shape(model.init, jax.random.key(0))
    with pytest.raises(ConfigError, match="project: no normalisation follows any of the layers 'dense_0'"):
        methods.project(norms=False, output=False, roles=model.roles).init(params)


def test_projection_leaves_a_normalised_network_as_it_is() -> None:
    """Scaling a whole layer does not change the output of a normalisation that follows it."""
    model = CNN((4,), (3,), (6,), layer_norm=True).build((6, 6, 2), 3)
    method = methods.project(norms=False, output=False, roles=model.roles)

    @jax.jit
    def step() -> Any:
        params = model.init(jax.random.key(0))
        grown = jax.tree.map(lambda x: x + 0.3, params)
        moves = jax.tree.map(jnp.subtract, grown, params)
        moves, _ = method.update(moves, method.init(params), params, clock=jnp.int32(0))
        projected = optax.apply_updates(params, moves)
        x = jax.random.normal(jax.random.key(1), (5, 6, 6, 2))
        return grown, projected, *(model.apply(p, x)[0] for p in (grown, projected))

    grown, projected, before, after = step()
    assert not np.allclose(projected["conv_0"]["kernel"], grown["conv_0"]["kernel"])
    # LayerNorm's epsilon, 1e-6, is all that sees the scale.
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


def test_clipping_bounds_are_the_initialisers() -> None:
    model = MLP(hidden=(50, 40), initializer="he_uniform").build((30,), 3)
    bounds = methods.weight_clipping().init(model.init(jax.random.key(0))).bounds
    for layer, fan_in in (("dense_0", 30), ("dense_1", 50), ("output", 40)):
        assert bounds[layer]["bias"] == bounds[layer]["kernel"]
        np.testing.assert_allclose(bounds[layer]["kernel"], np.sqrt(6 / fan_in), rtol=0.05)
