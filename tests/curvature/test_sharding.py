"""A batch that explicit mesh axes, the default of `jax.make_mesh`, spread over devices: the numbers of one device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastax import curvature, linalg, models
from plastax.curvature.kronecker import factors
from plastax.probes import Hessian, TrainabilityProbe, measure

KEY = jax.random.key(0)
EXAMPLES, CLASSES = 8, 3
LOSS = curvature.losses.LOSSES["cross_entropy"]


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        hidden = nn.relu(nn.Dense(5)(x))
        return nn.Dense(CLASSES)(hidden), {"hidden": hidden}


NET = Net()


def outputs(params: Any, data: Any) -> jax.Array:
    return NET.apply({"params": params}, data[0])[0]


def layers() -> Any:
    network = models.tapped(NET, inputs=lambda data: data[0])
    return network._replace(apply=lambda p, taps, d: (lambda out, x: (out[0], x))(*network.apply(p, taps, d)))


def measured(*probes: Any) -> Callable[[Any, Any], Any]:
    return lambda p, d: measure(probes, p, models.tapped(NET), d, KEY, initial=p, previous=p)


FAST: dict[str, Callable[[Any, Any], Any]] = {
    "effective rank": lambda p, d: jax.value_and_grad(linalg.effective_rank)(d[0]),
    "kronecker": lambda p, d: curvature.kronecker(layers(), p, d, LOSS, kind="empirical"),
}
RARE: dict[str, Callable[[Any, Any], Any]] = {
    "gram": lambda p, d: curvature.gram_spectrum(outputs, p, d, LOSS),
    "effective rank of wide features": lambda p, d: linalg.effective_rank(jnp.concatenate([d[0]] * 8, axis=1)),
    "exact kronecker": lambda p, d: curvature.kronecker(layers(), p, d, LOSS),
    "sampled kronecker": lambda p, d: curvature.kronecker(layers(), p, d, LOSS, kind="sampled", key=KEY),
    "factors": lambda p, d: factors({"a": d[0]}, {"a": jnp.sin(d[0])}),
    "gram in chunks": lambda p, d: curvature.gram_spectrum(outputs, p, d, LOSS, 4),
    "ntk": lambda p, d: curvature.ntk_spectrum(outputs, p, d),
    "fisher": lambda p, d: curvature.dense(curvature.fisher(outputs, p, d, LOSS, KEY)),
    "empirical fisher": lambda p, d: curvature.dense(curvature.empirical_fisher(outputs, p, d, LOSS)),
    "ggn": lambda p, d: curvature.dense(curvature.ggn(outputs, p, d, LOSS)),
    "ggn in chunks": lambda p, d: curvature.dense(curvature.ggn(outputs, p, d, LOSS, 4)),
    "hessian in chunks": lambda p, d: curvature.dense(
        curvature.hessian(lambda p, d: LOSS.value(outputs(p, d), d), p, d, 4)
    ),
    "features": measured("features"),
    "parameters and gradients": measured("weights", "movement", "gradient", "kronecker"),
    "spectra": measured(Hessian(order=4, probes=1), "ggn", "ntk", TrainabilityProbe(learning_rate=0.1, steps=3)),
}


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in RARE)])
def test_spread_batches_have_the_numbers_of_one_device(name: str) -> None:
    rng = np.random.default_rng(0)
    data = jnp.asarray(rng.standard_normal((EXAMPLES, 4)), jnp.float32), jnp.arange(EXAMPLES) % CLASSES
    params = NET.init(KEY, data[0])["params"]
    take = (FAST | RARE)[name]
    expected = jax.jit(take)(params, data)
    with jax.set_mesh(jax.make_mesh((2,), ("d",))):
        spread = jax.device_put(data, jax.NamedSharding(jax.sharding.get_mesh(), jax.P("d")))
        assert any(jax.typeof(spread[0]).sharding.spec)
        found = jax.jit(take)(params, spread)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5, err_msg=jax.tree_util.keystr(path))
