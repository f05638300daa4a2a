"""Curvature of what people have: the parameters among it are differentiated, everything else is held fixed."""

from __future__ import annotations

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from plastax import curvature, models, parameters, probes, tree
from plastax.errors import ConfigError

INPUTS, HIDDEN, CLASSES, EXAMPLES = 3, 4, 2, 5
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((EXAMPLES, INPUTS)), jnp.float32)
Y = jnp.asarray(RNG.integers(0, CLASSES, EXAMPLES))
BATCH = X, Y
KEY = jax.random.key(0)


class Linen(nn.Module):
    """By running statistics, which are no parameters."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        z = nn.BatchNorm(use_running_average=True, use_bias=False, use_scale=False)(nn.Dense(HIDDEN)(x))
        return nn.Dense(CLASSES)(jnp.tanh(z))


class Nnx(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.first, self.last = nnx.Linear(INPUTS, HIDDEN, rngs=rngs), nnx.Linear(HIDDEN, CLASSES, rngs=rngs)
        self.norm = nnx.BatchNorm(HIDDEN, use_running_average=True, use_bias=False, use_scale=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(jnp.tanh(self.norm(self.first(x))))


MODULE, NET = Linen(), Nnx()
VARIABLES = MODULE.init(KEY, X)
GRAPH, PARAMS, REST = nnx.split(NET, nnx.Param, ...)
PLAIN = {"w": VARIABLES["params"]["Dense_0"]["kernel"], "v": VARIABLES["params"]["Dense_1"]["kernel"]}


def plain(params: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["w"]) @ params["v"] * params.get("scale", 1)


FORMS: dict[str, tuple[Any, Any]] = {  # what somebody has, and ``(that, x) -> logits``
    "variables": (VARIABLES, MODULE.apply),
    "frozen variables": (flax.core.freeze(VARIABLES), MODULE.apply),
    "params": (VARIABLES["params"], lambda p, x: MODULE.apply({**VARIABLES, "params": p}, x)),
    "a train state": (
        TrainState.create(apply_fn=MODULE.apply, params=VARIABLES["params"], tx=optax.adam(1e-3)),
        lambda state, x: state.apply_fn({**VARIABLES, "params": state.params}, x),
    ),
    "a train state of variables": (
        TrainState.create(apply_fn=MODULE.apply, params=VARIABLES, tx=optax.adam(1e-3)),
        lambda state, x: state.apply_fn(state.params, x),
    ),
    "a state of nnx": (PARAMS, lambda p, x: nnx.merge(GRAPH, p, REST)(x)),
    "all state of nnx": (nnx.state(NET), lambda p, x: nnx.merge(GRAPH, p)(x)),
    "a module of nnx": (NET, lambda net, x: net(x)),
    "a tree with other things": (
        {**PLAIN, "scale": jnp.int32(2), "mask": jnp.array([True]), "no": None, "name": jnp.tanh},
        plain,
    ),
    "bfloat16": (jax.tree.map(lambda x: x.astype(jnp.bfloat16), PLAIN), plain),
}  # fmt: skip


def loss(logits: jax.Array, y: jax.Array) -> jax.Array:
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * jax.nn.one_hot(y, CLASSES), axis=-1))


@pytest.mark.parametrize("form", FORMS)
def test_curvature_is_that_of_the_parameters_alone(form: str, x64: None) -> None:
    """Against the dense Hessian of all parameters in one vector, in double precision."""
    given, apply = FORMS[form]
    own, whole = parameters.split(given)
    double = jax.tree.map(lambda x: x.astype(jnp.float64), own)
    flat, unravel = jax.flatten_util.ravel_pytree(double)
    sizes = {"a tree with other things": 20, "bfloat16": 20}
    assert flat.size == sizes.get(form, INPUTS * HIDDEN + HIDDEN + HIDDEN * CLASSES + CLASSES)

    def of(vector: jax.Array, x: jax.Array = X) -> jax.Array:
        return apply(whole(unravel(vector)), x)

    @jax.jit
    def dense() -> Any:
        hessian = curvature.hessian(lambda p, batch: loss(apply(p, batch[0]), batch[1]), given, BATCH)
        ggn = curvature.ggn(lambda p, batch: apply(p, batch[0]), given, BATCH, "cross_entropy")
        jacobian, probabilities = jax.jacobian(of)(flat), jax.nn.softmax(of(flat))
        middle = jax.vmap(lambda p: jnp.diag(p) - jnp.outer(p, p))(probabilities)
        exact = (
            jax.hessian(lambda v: loss(of(v), Y))(flat),
            jnp.einsum("bip,bij,bjq->pq", jacobian, middle, jacobian) / EXAMPLES,
        )
        return (curvature.dense(hessian), curvature.dense(ggn)), exact

    tolerance = 0.03 if form == "bfloat16" else 1e-5
    for mine, exact in zip(*dense(), strict=True):
        assert np.abs(exact).max() > 1e-3
        np.testing.assert_allclose(mine, exact, atol=tolerance)


@pytest.mark.parametrize("form", ["variables", "a train state", "a module of nnx", "a state of nnx"])
def test_probes_find_layers_and_features_by_themselves(form: str) -> None:
    given, apply = FORMS[form]
    values = probes.measure(("features", "weights", "kronecker", "gradient"), given, apply, BATCH, KEY)
    hidden = {
        name: x for name, x in tree.named_leaves(parameters.split(given)[0]).items() if x.shape == (INPUTS, HIDDEN)
    }
    (kernel,) = hidden.values()
    np.testing.assert_allclose(values["weights/norm"][0], np.linalg.norm(kernel), rtol=1e-5)
    assert values["weights/norm"].shape == (2,)
    z = X @ kernel / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(values["features/norm"], [np.linalg.norm(np.tanh(z), axis=1).mean()], rtol=1e-4)
    second = np.linalg.eigvalsh(np.concatenate([X, np.ones((EXAMPLES, 1))], 1).T @ np.concatenate(
        [X, np.ones((EXAMPLES, 1))], 1) / EXAMPLES)  # fmt: skip
    np.testing.assert_allclose(values["kronecker/a_largest"][0], second[-1], rtol=1e-4)


def test_taps_take_all_variables_and_modules() -> None:
    tapped = models.tapped(MODULE)
    outputs, inputs = tapped.apply(VARIABLES, {}, X)
    np.testing.assert_allclose(outputs, MODULE.apply(VARIABLES, X), rtol=1e-6)
    assert list(inputs) == ["Dense_0", "Dense_1"]
    network = models.tapped(NET)
    for given in (NET, PARAMS, nnx.state(NET)):
        np.testing.assert_allclose(network.apply(given, {}, X)[0], NET(X), rtol=1e-5)


def test_what_has_no_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match=r"params has no parameters.*it has 'n' \(int32\)"):
        curvature.hessian(lambda p: 0.0, {"n": jnp.int32(1)})
    with pytest.raises(ValueError, match="complex: 'z'"):
        parameters.split({"z": jnp.ones(2, jnp.complex64), "w": jnp.ones(2)})
    with pytest.raises(ConfigError, match=r"params: 'act' is of type .*; give a tree of arrays, equinox.partition"):
        probes.measure(("weights",), {"act": jnp.tanh, **PLAIN}, plain, BATCH, KEY)
