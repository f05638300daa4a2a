"""A small actor-critic that probes are tested on, its loss, and one compiled program a probe."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plastax import tree
from plastax.curvature import running
from plastax.curvature.kronecker import Factors, factors
from plastax.models import ActorCritic
from plastax.probes import KroneckerSpectrum
from plastax.types import Loss, ProbeInput

# These tests compile much and compute little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
EXAMPLES = 10
MODEL = ActorCritic(hidden=(5, 4)).build((3,), 2, continuous=False)


def loss_fn(params: Any, batch: dict) -> jax.Array:
    return tapped_loss_fn(params, {}, batch)[0]


example_gradients = jit(jax.vmap(jax.grad(loss_fn), in_axes=(None, 0)))


def tapped_loss_fn(params: Any, taps: dict, batch: dict) -> tuple[jax.Array, tuple[dict, dict]]:
    outputs, features, inputs = MODEL.tapped(params, taps, batch["x"])
    error = jnp.square(outputs["policy"] - batch["y"]).sum(axis=1) + jnp.square(outputs["value"] - batch["v"])
    return 0.5 * jnp.mean(error), (features, inputs)


# Half the squared errors, summed over the outputs of an example.
OUTPUT_LOSS = Loss(
    lambda outputs, batch: jnp.zeros(()),
    lambda outputs, batch, tangent: jax.tree.map(lambda t: t / batch["x"].shape[0], tangent),
    lambda outputs, batch: {
        "policy": jnp.zeros((3, *outputs["policy"].shape)).at[[0, 1], :, [0, 1]].set(len(batch["x"]) ** -0.5),
        "value": jnp.zeros((3, *outputs["value"].shape)).at[2].set(len(batch["x"]) ** -0.5),
    },
)


def make_params(dead: bool = False, dtype: Any = np.float32) -> Any:
    """A network with nothing at zero; or one whose hidden units are all silent."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))

    def draw(name: str, like: Any) -> jax.Array:
        value = rng.standard_normal(like.shape) / 2
        return jnp.asarray(np.full(like.shape, -100.0) if dead and "dense" in name and "bias" in name else value, dtype)

    return tree.map_named(draw, shapes)


def make_batch(seed: int = 2, dtype: Any = np.float32) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    shapes = {"x": (EXAMPLES, 3), "y": (EXAMPLES, 2), "v": (EXAMPLES,)}
    return {name: jnp.asarray(rng.standard_normal(shape), dtype) for name, shape in shapes.items()}


def look(params: Any, batch: Any, factors: Any, seed: Any = 0) -> ProbeInput:
    return ProbeInput(
        params=params,
        batch=batch,
        loss_fn=loss_fn,
        features_fn=lambda p, b: MODEL.apply(p, b["x"])[1],
        outputs_fn=lambda p, b: MODEL.apply(p, b["x"])[0],
        output_loss=OUTPUT_LOSS,
        tapped_loss_fn=tapped_loss_fn,
        taps_fn=lambda b: MODEL.taps(b["x"]),
        factors=factors,
        key=jax.random.key(seed),
        initial=lambda: jax.tree.map(jnp.ones_like, params),
        previous=jax.tree.map(jnp.zeros_like, params),
    )


def no_factors() -> running.Running:
    return running.start({})


def fresh_factors(params: Any, batch: Any) -> dict[str, Factors]:
    """As the training step makes them."""
    taps = MODEL.taps(batch["x"])
    tap_grads, (_, inputs) = jax.grad(tapped_loss_fn, argnums=1, has_aux=True)(params, taps, batch)
    return factors(inputs, tap_grads)


@functools.cache
def measure_of(config: Any) -> Callable[..., dict[str, jax.Array]]:
    """One compiled program a probe: (parameters ``[2, ...]``, batch, key seeds ``[2]``) -> values."""
    probe = config.build(MODEL)

    def one(params: Any, batch: Any, seed: jax.Array) -> dict[str, jax.Array]:
        if not isinstance(config, KroneckerSpectrum):
            return probe.measure(look(params, batch, no_factors(), seed))
        value = fresh_factors(params, batch)
        factors = running.update(running.start(value), value, 0.9)
        return probe.measure(look(params, batch, factors, seed))

    return jit(jax.vmap(one, in_axes=(0, None, 0)))


def live_and_dead() -> Any:
    return jax.tree.map(lambda *x: jnp.stack(x), make_params(), make_params(dead=True))


def dense_spectrum(gauss_newton: bool) -> np.ndarray:
    """Eigenvalues of the dense matrix, in float64."""
    with jax.enable_x64(True):
        params, batch = make_params(dtype=np.float64), make_batch(dtype=np.float64)
        # The network that the probe sees, which is rounded to float32.
        params, batch = jax.tree.map(lambda x: x.astype(jnp.float32).astype(jnp.float64), (params, batch))
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        if gauss_newton:

            def outputs(w: jax.Array) -> jax.Array:
                out = MODEL.apply(unravel(w), batch["x"])[0]
                return jnp.concatenate([out["policy"].ravel(), out["value"]])

            jacobian = np.asarray(jit(jax.jacrev(outputs))(flat))
            return np.linalg.eigvalsh(jacobian.T @ jacobian / EXAMPLES)
        return np.linalg.eigvalsh(np.asarray(jit(jax.hessian(lambda w: loss_fn(unravel(w), batch)))(flat)))
