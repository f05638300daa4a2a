"""Kronecker factors of networks of one's own: of all layers of Flax that have them."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from plastax import tree
from plastax.curvature.kronecker import factors, shares_without
from plastax.models import own
from plastax.study.api import Study
from plastax.types import Examples, Params

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
OUTPUTS, EXAMPLES = 3, 4


class Attentive(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.Dense(4, name="stem")(x.reshape(len(x), -1, x.shape[-1]))
        h = h + nn.MultiHeadDotProductAttention(2, name="attention")(nn.LayerNorm(name="norm")(h))
        return nn.Dense(self.outputs, name="head")(nn.relu(h).mean(1))


class NnxAttentive(nnx.Module):
    def __init__(self, input_shape: tuple[int, ...], outputs: int, *, rngs: nnx.Rngs) -> None:
        self.stem, self.norm = nnx.Linear(input_shape[-1], 4, rngs=rngs), nnx.LayerNorm(4, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.head = nnx.Linear(4, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.stem(x.reshape(len(x), -1, x.shape[-1]))
        return self.head(nnx.relu(h + self.attention(self.norm(h))).mean(1))


@pytest.mark.parametrize("network", [Attentive, NnxAttentive])
def test_factors_of_attention_are_sums_over_examples(network: Any) -> None:
    """``A`` of what the layers are given; ``G``, summed over places, of each example's gradient of the bias."""
    model, module = own.entry(network, "net").build((3, 2), OUTPUTS), Attentive(OUTPUTS)
    layers = ["stem", "norm", *(f"attention/{part}" for part in ("query", "key", "value", "out")), "head"]
    assert sorted(model.factored) == sorted(layers)
    assert sorted(model.layers) == sorted({*layers} - {"norm"})
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        params = jax.tree.map(
            lambda x: jnp.asarray(rng.standard_normal(x.shape)), jax.eval_shape(model.init, jax.random.key(0))
        )
        batch = Examples(jnp.asarray(rng.standard_normal((EXAMPLES, 3, 2))), jnp.arange(EXAMPLES) % OUTPUTS)
        given: dict[str, np.ndarray] = {}

        def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            given.setdefault("/".join(context.module.path), args[0])
            return call(*args, **kwargs)

        with nn.intercept_methods(record):
            module.apply({"params": params}, batch.x)

        def loss(outputs: jax.Array, y: jax.Array) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()

        grads = tree.named_leaves(jit(jax.vmap(jax.grad(
            lambda p, x, y: loss(module.apply({"params": p}, x[None]), y[None])), (None, 0, 0)))(params, *batch[:2])
        )  # fmt: skip

        @jit
        def taken(params: Params) -> Any:
            def of(taps: Any) -> Any:
                outputs, _, inputs = model.tapped(params, taps, batch.x)
                return loss(outputs, batch.y), inputs

            slopes, inputs = jax.grad(of, has_aux=True)(jax.tree.map(jnp.float64, model.taps(batch.x)))
            return [factors(inputs, slopes, sharing) for sharing in ("expand", "reduce")]

        expanded, reduced = taken(params)
        for name in layers:
            each = [grads[f"{name}/{part}"].reshape(EXAMPLES, -1) for part in ("scale", "bias")[name != "norm" :]]
            g = np.concatenate(each, axis=1)
            np.testing.assert_allclose(reduced[name].g, g.T @ g / EXAMPLES, rtol=1e-5, atol=1e-12, err_msg=name)
            if name != "norm":
                rows = np.asarray(given[name]).reshape(-1, len(expanded[name].a) - 1)
                a = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
                np.testing.assert_allclose(expanded[name].a, a.T @ a / len(a), rtol=1e-5, atol=1e-12, err_msg=name)


@pytest.mark.slow  # compiles a training step and its measurements
@pytest.mark.parametrize("network", [Attentive, NnxAttentive])
def test_a_run_of_attention_leaves_nothing_out(network: Any, tmp_path: pathlib.Path) -> None:
    run = Study(
        "random_label", methods=["backprop"], preset="smoke", seeds=1, tasks=1, model=network, probes=["kronecker"],
        training={"kronecker_every": 1}, runs_dir=tmp_path, settings={"wandb": "disabled"},
    ).run()  # fmt: skip
    data = run.data
    assert "probe/kronecker/left_out" not in data
    assert np.isfinite(data["probe/kronecker/running_a_largest"].sel(layer="attention/query", mark="end")).all()
    assert np.isfinite(data["probe/kronecker/other_g_largest"].sel(other_layer="norm")).all()


class Mixed(nn.Module):
    """Layers that have factors, and others without: a mask, steps that share a layer, an array of the module's own."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        masked = nn.Dense(3, name="masked")
        h = nn.LayerNorm(name="norm")(masked(x) + masked(jnp.tanh(x)))
        h = nn.LayerNorm(name="half")(h, mask=jnp.arange(3) < 2)
        h = h + nn.RNN(nn.SimpleCell(3, name="cell"))(h[:, None])[:, 0]
        return nn.Dense(OUTPUTS, name="head")(nn.relu(h @ self.param("own", nn.initializers.ones, (3, 3))))


class Looped(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.step, self.norm = nnx.Linear(3, 3, rngs=rngs), nnx.LayerNorm(3, rngs=rngs)
        self.head = nnx.Linear(3, OUTPUTS, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h, _ = jax.lax.scan(lambda h, _: (jnp.tanh(self.step(h)), None), self.norm(x), None, length=2)
        return self.head(h)


@pytest.mark.parametrize(
    ("network", "factored", "without"),
    [(Mixed(), ["", "masked", "norm", "head"], {"half", "cell"}), (Looped, ["norm", "head"], {"step"})],
)
def test_layers_without_factors_are_left_out_alone(network: Any, factored: list[str], without: set[str]) -> None:
    model = own.entry(network, "net").build((3,), OUTPUTS)
    params = model.init(jax.random.key(0))
    assert sorted(model.factored) == sorted(factored)
    assert {name.partition("/")[0] for name in shares_without(model.factored, params)} == without
    x = jnp.ones((5, 3))
    _, _, inputs = jit(model.tapped)(params, model.taps(x), x)
    assert sorted(inputs) == sorted(factored)
