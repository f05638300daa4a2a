"""Probes in a training loop of one's own, and what they must agree with."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastax import models, probes
from plastax.errors import ConfigError
from plastax.probes import PlasticityProbe


class Net(nn.Module):
    """Layers whose names do not sort in the order of the forward pass."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        b = nn.relu(nn.Dense(6, name="b")(x))
        a = nn.relu(nn.Dense(5, name="a")(b))
        return nn.Dense(3, name="output")(a), {"b": b, "a": a}


def data() -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal((12, 4)), jnp.float32), jnp.asarray(rng.integers(0, 3, 12))


def test_probes_take_a_tapped_module_of_ones_own_and_compile_once(assert_no_retrace: Callable) -> None:
    net, batch = Net(), data()
    params = net.init(jax.random.key(0), batch[0])["params"]
    chosen = ("features", "weights", "movement", "gradient", "kronecker", PlasticityProbe(steps=2, targets=1))

    zeros = jax.tree.map(jnp.zeros_like, params)
    network, key = models.tapped(net), jax.random.key(0)

    def draw(key: jax.Array) -> dict:
        return net.init(key, batch[0])["params"]

    options = {"initial": params, "previous": zeros, "init": draw}
    values = probes.measure(chosen, params, network, batch, key, **options)
    with assert_no_retrace():
        probes.measure(chosen, zeros, network, batch, key, **options)
    assert {name.split("/")[0] for name in values} == {
        "features", "weights", "movement", "gradient", "kronecker", "plasticity",
    }  # fmt: skip
    features = net.apply({"params": params}, batch[0])[1]
    # Layers in the order of the forward pass, as they are called.
    norms = [np.linalg.norm(np.asarray(features[name]), axis=1).mean() for name in ("b", "a")]
    np.testing.assert_allclose(values["features/norm"], norms, rtol=1e-5)
    kernels = [np.linalg.norm(np.asarray(params[name]["kernel"])) for name in ("b", "a", "output")]
    np.testing.assert_allclose(values["weights/norm"], kernels, rtol=1e-5)
    np.testing.assert_array_equal(values["movement/from_init"], 0.0)
    np.testing.assert_allclose(values["movement/change"], kernels, rtol=1e-5)
    assert values["gradient/dormant"].shape == (2, 4)


def test_what_is_missing_is_named() -> None:
    net, batch = Net(), data()
    params = net.init(jax.random.key(0), batch[0])["params"]

    def outputs(params: dict, x: jax.Array) -> jax.Array:
        return net.apply({"params": params}, x)[0]

    def shifted(params: dict, x: jax.Array) -> jax.Array:
        return x[:, :3] + jnp.tanh(params["shift"])[None]

    for name, says in (("movement", "initial"), ("plasticity", "init"), ("feature", "did you mean 'features'")):
        with pytest.raises(ConfigError, match=says):
            probes.measure((name,), params, outputs, batch, jax.random.key(0))
    for name, says in (("features", "none are found; let it return"), ("kronecker", "no layer that can be tapped")):
        with pytest.raises(ConfigError, match=says):
            probes.measure((name,), {"shift": jnp.zeros(3)}, shifted, batch, jax.random.key(0))
    found = probes.measure(("gradient",), params, outputs, batch, jax.random.key(0))
    assert "gradient/dormant" not in found
    assert np.isfinite(found["gradient/norm"])


@pytest.mark.parametrize("name", ["weights", "gradient", "movement"])
def test_parameters_without_kernels_are_named(name: str) -> None:
    params, batch = {"shift": jnp.zeros(3)}, data()
    with pytest.raises(ConfigError, match=r"none of the parameters is a kernel .*'shift'.*roles=Roles"):
        probes.measure(
            (name,), params, lambda p, x: x[:, :3] + p["shift"][None], batch, jax.random.key(0), initial=params,
            previous=params,
        )  # fmt: skip
