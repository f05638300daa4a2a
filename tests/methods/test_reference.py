"""Every method against NumPy in float64, step by step, from the formula in its docstring."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastax import methods
from plastax.methods.effective_rank import mean_effective_rank
from plastax.types import MethodArgs, Model

pytestmark = pytest.mark.usefixtures("x64")

SHAPES = {
    "actor": {
        "dense_0": {"bias": (5,), "kernel": (3, 5)},
        "norm_dense_0": {"bias": (5,), "scale": (5,)},
        "output": {"kernel": (5, 4)},
    },
    "log_std": (2,),
}
STEPS, RATE, EXAMPLES = 6, 0.05, 7
Flat = dict[str, np.ndarray]
NAMES = (
    "actor/dense_0/bias",
    "actor/dense_0/kernel",
    "actor/norm_dense_0/bias",
    "actor/norm_dense_0/scale",
    "actor/output/kernel",
    "log_std",
)
NORMS = ("actor/norm_dense_0/bias", "actor/norm_dense_0/scale")


def random_tree(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape)), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
    )


def flat(tree: Any) -> Flat:
    return {name: np.array(leaf, np.float64) for name, leaf in zip(NAMES, jax.tree.leaves(tree), strict=True)}


def init_fn(key: jax.Array) -> Any:
    shapes, structure = jax.tree.flatten(SHAPES, is_leaf=lambda x: isinstance(x, tuple))
    keys = jax.random.split(key, len(shapes))
    return jax.tree.unflatten(structure, [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)])


def features_fn(params: Any, x: jax.Array) -> dict[str, jax.Array]:
    actor = params["actor"]
    h = jnp.tanh(x @ actor["dense_0"]["kernel"] + actor["dense_0"]["bias"][None, :])
    h = h * actor["norm_dense_0"]["scale"][None, :] + actor["norm_dense_0"]["bias"][None, :]
    return {"actor/dense_0": h, "actor/dense_1": jnp.sin(h @ actor["output"]["kernel"])}


def numpy_features(w: Flat, x: np.ndarray) -> list[np.ndarray]:
    h = np.tanh(x @ w["actor/dense_0/kernel"] + w["actor/dense_0/bias"])
    h = h * w["actor/norm_dense_0/scale"] + w["actor/norm_dense_0/bias"]
    return [h, np.sin(h @ w["actor/output/kernel"])]


def numpy_effective_rank(h: np.ndarray) -> float:
    s = np.linalg.svd(h, compute_uv=False)
    p = s / s.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


def rank_gradient(w: Flat, x: np.ndarray, h: float = 1e-5) -> Flat:
    """Central differences of the mean effective rank."""
    out = {}
    for name, value in w.items():
        out[name] = np.zeros_like(value)
        for index in np.ndindex(value.shape):
            ends = []
            for sign in (1, -1):
                moved = {k: v.copy() for k, v in w.items()}
                moved[name][index] += sign * h
                ends.append(np.mean([numpy_effective_rank(f) for f in numpy_features(moved, x)]))
            out[name][index] = (ends[0] - ends[1]) / (2 * h)
    return out


class Sgd:
    """SGD with momentum 0.9."""

    transform = optax.sgd(RATE, momentum=0.9)

    def __init__(self) -> None:
        self.trace: Flat = {}

    def __call__(self, g: Flat) -> Flat:
        self.trace = {k: g[k] + 0.9 * self.trace.get(k, 0.0) for k in g}
        return {k: -RATE * v for k, v in self.trace.items()}


class Adam:
    """Adam with the usual constants (Kingma and Ba 2015, algorithm 1)."""

    transform = optax.adam(RATE)

    def __init__(self) -> None:
        self.t, self.m, self.v = 0, {}, {}

    def __call__(self, g: Flat) -> Flat:
        self.t += 1
        self.m = {k: 0.9 * self.m.get(k, 0.0) + 0.1 * g[k] for k in g}
        self.v = {k: 0.999 * self.v.get(k, 0.0) + 0.001 * g[k] ** 2 for k in g}
        out = {}
        for k in g:
            m, v = self.m[k] / (1 - 0.9**self.t), self.v[k] / (1 - 0.999**self.t)
            out[k] = -RATE * m / (np.sqrt(v) + 1e-8)
        return out


# A reference: (weights, gradient, initial weights, optimiser, step, fresh draw, batch) -> new weights.
Reference = Callable[[Flat, Flat, Flat, Any, int, Flat, np.ndarray], Flat]


def moved(w: Flat, u: Flat) -> Flat:
    return {k: w[k] + u[k] for k in w}


def coupled(w: Flat, g: Flat, strength: float) -> Flat:
    return {k: g[k] + (0.0 if k in NORMS else strength * w[k]) for k in w}


def ascent(w: Flat, new: Flat, x: np.ndarray, er_lr: float) -> Flat:
    """The gradient is taken where the optimiser's is, before either step."""
    slope = rank_gradient(w, x)
    return {k: new[k] + er_lr * slope[k] for k in w}


def reference_backprop(w, g, w0, opt, t, xi, x):
    return moved(w, opt(g))


def reference_l2(w, g, w0, opt, t, xi, x):
    return moved(w, opt(coupled(w, g, 0.3)))


def reference_weight_decay(w, g, w0, opt, t, xi, x):
    return {k: new - (0.0 if k in NORMS else 0.07) * w[k] for k, new in moved(w, opt(g)).items()}


def reference_l2_init(w, g, w0, opt, t, xi, x):
    return moved(w, opt({k: g[k] + 2 * 0.3 * (w[k] - w0[k]) for k in w}))


def reference_effective_rank(w, g, w0, opt, t, xi, x):
    new = moved(w, opt(g))
    return ascent(w, new, x, 0.2) if t % 2 == 0 else new


def reference_rank_in_the_loss(w, g, w0, opt, t, xi, x):
    return moved(w, opt(ascent(w, g, x, -0.2) if t % 2 == 0 else g))


class RankOfRecentBatches:
    """At the end of every second step, of the last three batches."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def __call__(self, w, g, w0, opt, t, xi, x):
        self.seen = [*self.seen, x][-3:]
        new = moved(w, opt(g))
        return ascent(w, new, np.concatenate(self.seen), 0.2) if t % 2 == 1 else new


def reference_l2_er(w, g, w0, opt, t, xi, x):
    new = moved(w, opt(coupled(w, g, 0.3)))
    return ascent(w, new, x, 0.2) if t % 2 == 0 else new


def reference_shrink_and_perturb(w, g, w0, opt, t, xi, x):
    new = moved(w, opt(g))
    return {k: (1 - 0.1) * new[k] + 0.04 * xi[k] for k in w} if t % 3 == 0 else new


CASES: dict[str, tuple[Any, Reference]] = {
    "backprop": (methods.Backprop(), reference_backprop),
    "layernorm": (methods.LayerNorm(), reference_backprop),
    "l2": (methods.L2(l2=0.3), reference_l2),
    "layernorm_l2": (methods.LayerNormL2(l2=0.3), reference_l2),
    "weight_decay": (methods.WeightDecay(decay=0.07), reference_weight_decay),
    "l2_init": (methods.L2Init(strength=0.3), reference_l2_init),
    "effective_rank": (methods.EffectiveRank(er_lr=0.2, period=2), reference_effective_rank),
    "l2_er": (methods.L2ER(er_lr=0.2, period=2, l2=0.3), reference_l2_er),
    "shrink_and_perturb": (
        methods.ShrinkAndPerturb(shrink=0.1, perturb=0.04, period=3),
        reference_shrink_and_perturb,
    ),
    "reset": (methods.Reset(), reference_backprop),
}


# Static options of a method.
VARIANTS: dict[str, tuple[Any, Any]] = {
    "effective_rank in the loss": (
        methods.EffectiveRank(er_lr=0.2, period=2, form="loss"),
        reference_rank_in_the_loss,
    ),
    "effective_rank of recent batches": (
        methods.EffectiveRank(er_lr=0.2, period=2, window=3),
        RankOfRecentBatches,
    ),
}
MODEL = Model(init_fn, *[None] * 3, (), (), batch_like=jax.ShapeDtypeStruct((EXAMPLES, 3), np.float64))


def test_every_method_has_a_reference() -> None:
    from tests.methods import test_update_space  # It builds on this module.

    assert set(CASES) | test_update_space.NAMES == set(methods.METHODS)


# Adam tells a coupled term from a decoupled one; under SGD the two differ by the momentum alone.
@pytest.mark.parametrize(
    ("name", "inner"), [(n, Adam) for n in (*CASES, *VARIANTS)] + [(n, Sgd) for n in ("l2", "weight_decay")]
)
def test_steps_equal_numpy(name: str, inner: type) -> None:
    config, reference = (CASES | VARIANTS)[name]
    reference = reference() if isinstance(reference, type) else reference
    method = config.build(inner.transform, MODEL)
    params = random_tree(0)
    batches = np.random.default_rng(1).standard_normal((STEPS, EXAMPLES, 3))

    @jax.jit
    def update(params: Any, state: Any, grads: Any, key: jax.Array, clock: jax.Array, batch: jax.Array) -> Any:
        args = MethodArgs(
            key,
            clock,
            batch,
            jnp.zeros(()),
            {},
            {},
            lambda p, b: jnp.zeros(()),
            features_fn,
            features_fn,
            init_fn,
            False,
        )
        updates, state = method.update(grads, state, params, **args._asdict())
        return optax.apply_updates(params, updates), state

    w, opt, state = flat(params), inner(), method.init(params)
    w0 = {k: v.copy() for k, v in w.items()}
    for t in range(STEPS):
        grads, key = random_tree(100 + t), jax.random.key(t)
        w = reference(w, flat(grads), w0, opt, t, flat(init_fn(key)), batches[t])
        params, state = update(params, state, grads, key, jnp.asarray(t, jnp.int32), jnp.asarray(batches[t]))
        for leaf, (where, expected) in zip(jax.tree.leaves(params), w.items(), strict=True):
            assert leaf.dtype == jnp.float64
            np.testing.assert_allclose(leaf, expected, rtol=1e-7, atol=1e-9, err_msg=f"step {t}, {where}")


def test_regularised_effective_rank_is_the_mean_over_layers() -> None:
    params, x = random_tree(3), np.random.default_rng(4).standard_normal((EXAMPLES, 3))
    expected = np.mean([numpy_effective_rank(h) for h in numpy_features(flat(params), x)])
    got = jax.jit(lambda params, x: mean_effective_rank(features_fn(params, x)))(params, jnp.asarray(x))
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    # A convolution's channels are the columns; its examples and places are the rows.
    maps = np.random.default_rng(5).standard_normal((2, 3, 2, 4))
    got = jax.jit(mean_effective_rank)({"conv_0": jnp.asarray(maps)})
    np.testing.assert_allclose(got, numpy_effective_rank(maps.reshape(12, 4)), rtol=1e-9)


def test_effective_rank_rises() -> None:
    """Ascent, not descent; and the step leaves the optimiser's state alone."""
    x = jnp.asarray(np.random.default_rng(6).standard_normal((EXAMPLES, 3)))
    params = random_tree(7)
    # Nearly collapsed: every unit of the first layer is nearly the same.
    kernel = params["actor"]["dense_0"]["kernel"]
    params["actor"]["dense_0"]["kernel"] = 0.1 * kernel + kernel[:, :1]
    method = methods.effective_rank(1e-2, period=1)

    @jax.jit
    def climb(params: Any) -> tuple[Any, jax.Array]:
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, _ = method.update(
            zeros, method.init(params), params, clock=jnp.int32(0), batch=x, features_fn=features_fn
        )
        return optax.apply_updates(params, updates), mean_effective_rank(features_fn(params, x))

    ranks = []
    for _ in range(10):
        params, rank = climb(params)
        ranks.append(float(rank))
    assert all(after > before for before, after in itertools.pairwise(ranks))
