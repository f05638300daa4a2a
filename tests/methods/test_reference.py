"""Every method against NumPy in float64, step by step, from the formula in its docstring."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastax import methods
from plastax.methods.effective_rank import mean_effective_rank
from plastax.models.layers import ROLES
from plastax.moving import Moving
from plastax.program.learner import step
from plastax.types import MethodArgs, Model
from tests.methods import references, test_surgery_reference, test_update_space
from tests.methods.scheme import (
    EXAMPLES,
    Adam,
    Sgd,
    features_fn,
    flat,
    init_fn,
    moved,
    numpy_effective_rank,
    numpy_features,
    random_tree,
)

pytestmark = pytest.mark.usefixtures("x64")

STEPS = 6


def reference_backprop(w, g, w0, opt, t, xi, x):
    return moved(w, opt(g))


def reference_shrink_and_perturb(w, g, w0, opt, t, xi, x):
    new = moved(w, opt(g))
    return {k: (1 - 0.1) * new[k] + 0.04 * xi[k] for k in w} if t % 3 == 0 else new


CASES: dict[str, tuple[Any, Any]] = references.CASES | {
    "backprop": (methods.Backprop(), reference_backprop),
    "shrink_and_perturb": (
        methods.ShrinkAndPerturb(shrink=0.1, perturb=0.04, period=3),
        reference_shrink_and_perturb,
    ),
    "reset": (methods.Reset(), reference_backprop),
}
VARIANTS: dict[str, tuple[Any, Any]] = references.VARIANTS


def outputs_fn(params: Any, x: jax.Array) -> jax.Array:
    return features_fn(params, x)["actor/dense_1"]


def init(key: jax.Array) -> Any:
    return init_fn(key)


HIDDEN = ("actor/dense_0", "actor/dense_1")
MODEL = Model(init, *[None] * 3, (), HIDDEN, batch_like=jax.ShapeDtypeStruct((EXAMPLES, 3), np.float64), roles=ROLES)


def test_every_method_has_a_reference() -> None:
    have = {*CASES, *test_update_space.NAMES, *test_surgery_reference.NAMES}
    # Those that differ in the model alone are built as another is.
    builds = {type(methods.METHODS[name]).build for name in have}
    lacking = {name for name, config in methods.METHODS.items() if type(config).build not in builds}
    assert not lacking, (
        f"write {', '.join(sorted(lacking))} in NumPy: a function reference_<name>, and a line in CASES, both in "
        "tests/methods/references.py; plastax/methods/README.md shows one"
    )


# The same rule in another place, or the same code with another optimiser.
SLOW = ("l2_init by l1", "isometry decoupled", "effective_rank in short steps")
# Adam tells a coupled term from a decoupled one; under SGD the two differ by the momentum alone.
ALL = [(name, Adam, False) for name in (*CASES, *VARIANTS)] + [(name, Sgd, False) for name in ("l2", "weight_decay")]
MOVING = [(n, Adam, True) for n in (*CASES, *VARIANTS) if n.startswith(("effective_rank", "l2_er")) and "loss" not in n]
RUNS = [
    pytest.param(name, inner, moves, marks=pytest.mark.slow) if name in SLOW or inner is Sgd else (name, inner, moves)
    for name, inner, moves in ALL + MOVING
]


@pytest.mark.parametrize(("name", "inner", "moves"), RUNS)
def test_steps_equal_numpy(name: str, inner: type, moves: bool) -> None:
    assert_steps_equal(*(CASES | VARIANTS)[name], inner, moves)


def assert_steps_equal(config: Any, reference: Any, inner: type = Adam, moves: bool = False) -> None:
    """A method's steps equal its reference's, by its ``update``, or by its ``move``."""
    reference = reference() if isinstance(reference, type) else reference
    method = config.build(inner.transform, MODEL)
    params = random_tree(0)
    batches = np.random.default_rng(1).standard_normal((STEPS, EXAMPLES, 3))

    @jax.jit
    def update(params: Any, state: Any, grads: Any, key: jax.Array, clock: jax.Array, batch: jax.Array) -> Any:
        value, loss_fn = jnp.mean(jnp.square(batch)), lambda p, b: jnp.zeros(())
        functions = (loss_fn, features_fn, outputs_fn, init)
        args = MethodArgs(key, clock, batch, value, {}, {}, *functions, boundary=False)
        if moves:
            assert isinstance(method, Moving)
            return step(method, grads, state, params, args)
        updates, state = method.update(grads, state, params, **args._asdict())
        return optax.apply_updates(params, updates), state

    w, opt, state = flat(params), inner(), method.init(params)
    w0 = {k: v.copy() for k, v in w.items()}
    for t in range(STEPS):
        grads, key = random_tree(100 + t), jax.random.key(t)
        w = reference(w, flat(grads), w0, opt, t, flat(init(key)), batches[t])
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
