"""Output losses in double precision: curvature, roots and draws against the Hessian of the value or the divergence."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from plastax import curvature
from plastax.curvature import losses
from plastax.curvature.kronecker import cotangents
from plastax.layers import Tapped
from plastax.types import Loss

# Networks here are made by hand and name no layers.
pytestmark = pytest.mark.filterwarnings("ignore:kronecker:UserWarning")

DRAWS = 20_000
WEIGHT = 0.7
# Whether the numbers are right does not depend on the compiler's effort, but half of the test's time does.
FAST = {"xla_backend_optimization_level": 0}


TOKENS = losses.LOSSES["token_cross_entropy"]
COUNTED = np.array([[1, 1, 1], [0, 1, 0], [0, 0, 0]])
"""Which labels of three sequences of three count: all, one, and none."""


def divergence(outputs: dict, new: dict) -> jax.Array:
    """KL(outputs, new) of every example, by its definition."""
    if "log_std" not in outputs:
        log_p, log_q = (jax.nn.log_softmax(x["policy"]) for x in (outputs, new))
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    var, new_var = (jnp.exp(2 * x["log_std"]) for x in (outputs, new))
    moved = jnp.square(outputs["policy"] - new["policy"])
    return jnp.sum(new["log_std"] - outputs["log_std"] + (var + moved) / (2 * new_var) - 0.5, axis=-1)


def actor_critic(outputs: dict, batch: jax.Array) -> Callable[[dict], jax.Array]:
    """What the curvature of an actor-critic is the Hessian of, at ``outputs``."""
    return lambda new: jnp.mean(divergence(outputs, new) + WEIGHT * 0.5 * jnp.square(new["value"] - batch))


def case(name: str) -> tuple[Loss, Any, Any, Callable]:
    """A loss, outputs, a batch, and the function of the outputs whose Hessian the curvature should be."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape))

    shapes = {
        "cross_entropy": (4, 3),
        "cross_entropy of sequences": (2, 3, 3),
        "token_cross_entropy": (3, 3, 3),
        "mse": (4, 3),
        "mse of scalars": (4,),
        "mse of images": (2, 2, 2, 2),
    }
    if name in shapes:
        outputs = draw(*shapes[name])
        named = losses.LOSSES[name.split()[0]]
        labels = jnp.asarray(rng.integers(0, 3, outputs.shape[:-1])) if "entropy" in name else draw(*outputs.shape)
        if named is TOKENS:
            labels = COUNTED * labels + (COUNTED - 1)
        return named, outputs, (None, labels), lambda o: named.value(o, (None, labels))
    outputs = {"policy": draw(3, 3), "value": draw(3)} | ({"log_std": 0.5 * draw(3, 3)} if name == "gaussian" else {})
    targets = draw(3)
    return losses.actor_critic(name, WEIGHT), outputs, targets, actor_critic(outputs, targets)


CASES = (
    "cross_entropy",
    "cross_entropy of sequences",
    "token_cross_entropy",
    "mse",
    "mse of scalars",
    "mse of images",
    "categorical",
    "gaussian",
)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CASES)
def test_curvature_roots_and_draws_are_one_matrix(name: str) -> None:
    loss, outputs, batch, convex = case(name)
    flat, unravel = ravel_pytree(outputs)
    examples = jax.tree.leaves(outputs)[0].shape[0]
    owner, _ = ravel_pytree(
        jax.tree.map(
            lambda x: jnp.broadcast_to(jnp.arange(examples).reshape(-1, *(1,) * (x.ndim - 1)), x.shape), outputs
        )
    )
    same = np.asarray(owner[:, None] == owner[None])

    def matrices(flat: jax.Array) -> tuple[jax.Array, ...]:
        outputs = unravel(flat)
        exact = jax.hessian(lambda o: convex(unravel(o)))(flat)
        product = jax.vmap(lambda t: ravel_pytree(loss.curvature(outputs, batch, unravel(t)))[0])(jnp.eye(flat.size))
        roots = jax.vmap(lambda r: ravel_pytree(r)[0])(loss.root(outputs, batch))
        keys = jax.random.split(jax.random.key(1), DRAWS)
        draws = jax.vmap(lambda key: ravel_pytree(loss.sample(outputs, batch, key))[0])(keys)
        return exact, product, roots, draws

    exact, product, roots, draws = map(np.asarray, jax.jit(matrices, compiler_options=FAST)(flat))
    assert np.linalg.eigvalsh(exact).max() > 1e-2
    np.testing.assert_array_equal(exact[~same], 0.0)
    np.testing.assert_allclose(product, exact, atol=1e-14)
    # Roots of all examples share a column, so only the blocks are those of the matrix.
    np.testing.assert_allclose(np.where(same, roots.T @ roots, 0.0), exact, atol=1e-14)
    squares = draws[:, :, None] * draws[:, None, :]
    error = 5.5 * squares.std(0) / math.sqrt(DRAWS) + 1e-12
    assert (np.abs(squares.mean(0) - exact) <= error).all()
    assert (error < 0.1 * exact.diagonal().max()).all()
    assert (np.abs(draws.mean(0)) <= 5.5 * draws.std(0) / math.sqrt(DRAWS)).all()


def test_softmax_has_one_root_less_than_classes_even_where_it_is_saturated() -> None:
    logits = jnp.asarray([[0.0, 30.0, 60.0], [60.0, 0.0, 30.0], [0.0, 200.0, -200.0], [1.0, 2.0, 3.0]])
    roots = np.asarray(jax.jit(losses.softmax_root)(logits), np.float64)
    assert roots.shape == (2, 4, 3)
    x = np.asarray(logits, np.float64)
    p = np.exp(x - x.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    others = 1.0 - np.eye(3)
    exact = -p[:, :, None] * p[:, None, :] * others + np.eye(3) * (p * (p @ others))[:, None, :]
    got = np.einsum("kni,knj->nij", roots, roots)
    # Relative to the entry's own row and column, however small; below the type's range there is nothing.
    size = np.sqrt(np.einsum("nii->ni", exact))
    assert (np.abs(got - exact) <= 3e-6 * size[:, :, None] * size[:, None, :] + 1e-37).all()


def test_values_refuse_labels_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"\(4, 1\) and \(4,\)"):
        losses.LOSSES["mse"].value(jnp.ones((4, 1)), (None, jnp.ones(4)))
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(4, 1\)"):
        losses.LOSSES["cross_entropy"].value(jnp.ones((4, 3)), (None, jnp.ones((4, 1), int)))
    with pytest.raises(ValueError, match="float32"):
        losses.LOSSES["cross_entropy"].value(jnp.ones((4, 3)), (None, jnp.ones(4)))


def linear(params: Any, batch: Any) -> jax.Array:
    return batch[0] @ params


def masked(value: float) -> Callable:
    """Logits whose second class is left out."""
    return lambda params, batch: linear(params, batch).at[:, 1].set(value)


def factors(kind: str) -> Callable:
    def take(params: Any, batch: Any, apply: Callable) -> Any:
        network = Tapped(lambda d: {}, lambda p, taps, d: (apply(p, d), {}))
        return cotangents(CE, kind, network.apply(params, {}, batch)[0], batch, KEY), curvature.kronecker(
            network, params, batch, CE, kind=kind, key=KEY
        )

    return take


CE, KEY = losses.LOSSES["cross_entropy"], jax.random.key(0)
# Everything that takes a loss: (params, batch, network) -> numbers.
TAKERS: dict[str, Callable[..., Any]] = {
    "value": lambda p, b, f: CE.value(f(p, b), b),
    "gradient": lambda p, b, f: jax.grad(lambda p: CE.value(f(p, b), b))(p),
    "ggn": lambda p, b, f: curvature.ggn(f, p, b, CE).mv(p),
    "fisher": lambda p, b, f: curvature.fisher(f, p, b, CE, KEY).mv(p),
    "empirical_fisher": lambda p, b, f: curvature.empirical_fisher(f, p, b, CE).mv(p),
    "gram": lambda p, b, f: curvature.gram_spectrum(f, p, b, CE).nodes,
    "ggn_spectrum": lambda p, b, f: curvature.ggn_spectrum(f, p, b, CE, KEY, 2, 1, "lanczos").nodes,
    **{kind: factors(kind) for kind in ("empirical", "sampled", "exact")},
}
every_taker = pytest.mark.parametrize("name", TAKERS)


def batch_of(*labels: int) -> tuple[jax.Array, jax.Array]:
    x = np.random.default_rng(0).standard_normal((len(labels), 4))
    return jnp.asarray(x, jnp.float32), jnp.asarray(labels, jnp.int32)


@every_taker
def test_outputs_that_are_no_logits_are_refused(name: str) -> None:
    cases: list[tuple[Callable, int, str]] = [
        (lambda p, b: linear(p, b)[:, 0], 4, "two or more classes C, got"),
        (lambda p, b: linear(p, b)[:, :1], 4, "two or more classes C, got"),
        (lambda p, b: (linear(p, b), {"hidden": b[0]}), 4, "one array, got a tuple"),
        (linear, 0, "one or more examples"),
    ]
    for outputs, examples, says in cases:
        if examples == 0 and name in ("value", "gradient"):
            continue  # plain functions of arrays: NaN, as every mean of nothing
        batch = jax.ShapeDtypeStruct((examples, 4), jnp.float32), jax.ShapeDtypeStruct((examples,), jnp.int32)
        with pytest.raises(ValueError, match=says):
            jax.eval_shape(
                lambda p, b, f=outputs: TAKERS[name](p, b, f), jax.ShapeDtypeStruct((4, 3), jnp.float32), batch
            )


@every_taker
def test_labels_that_are_no_classes_are_refused_and_nan_where_nobody_can_look(name: str) -> None:
    params = jnp.ones((4, 3))
    run = jax.jit(lambda y: TAKERS[name](params, (batch_of(0, 1, 2)[0], y), linear), compiler_options=FAST)
    for wrong in (-1, -100, 3):
        values = jax.tree.leaves(run(jnp.asarray([0, 1, wrong])))
        assert values
        assert all(np.isnan(x).all() for x in values)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(run(jnp.asarray([0, 1, 2]))))
    if name not in ("value", "gradient"):
        with pytest.raises(ValueError, match=r"classes from 0 to 2, got some from -100 to 1|not finite: loss"):
            TAKERS[name](params, batch_of(0, 1, -100), linear)


@every_taker
def test_masked_logits_are_those_of_classes_that_cannot_be(name: str) -> None:
    params = jnp.asarray(np.random.default_rng(1).standard_normal((4, 3)), jnp.float32)
    run = jax.jit(lambda value: TAKERS[name](params, batch_of(0, 2, 2), masked(value)), compiler_options=FAST)
    found = {value: jax.tree.leaves(run(value)) for value in (-jnp.inf, -1e9, jnp.inf, jnp.nan)}
    for got, expected in zip(found[-jnp.inf], found[-1e9], strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    # Other infinities are faults, as all are of other losses.
    for bad in (jnp.inf, jnp.nan):
        assert any(np.isnan(x).any() for x in found[bad])


def test_masked_logits_are_refused_by_losses_without_classes() -> None:
    params = jnp.ones((4, 3))
    curvature.ggn(masked(-jnp.inf), params, batch_of(0, 2), CE)
    with pytest.raises(ValueError, match="not finite: outputs"):
        curvature.ggn(masked(-jnp.inf), params, (batch_of(0, 2)[0], jnp.ones((2, 3))), "mse")


def test_curvature_of_confident_classifiers_stays_positive() -> None:
    """Of float32 against float64, however near to one the probability of a class is."""
    rng = np.random.default_rng(0)
    for margin in (2.0, 12.0, 17.0, 30.0):
        logits = jnp.asarray(rng.standard_normal((1, 5)) + margin * np.eye(5)[:1], jnp.float32)
        product = jax.jit(jax.vmap(lambda t, z=logits: losses.softmax_curvature(z, t[None])[0]), compiler_options=FAST)
        got = np.asarray(product(jnp.eye(5)), np.float64)
        p = np.exp(np.asarray(logits[0], np.float64))
        p /= p.sum()
        exact = -np.outer(p, p) * (1 - np.eye(5)) + np.diag(p * (np.outer(np.ones(5), p) @ (1 - np.eye(5)))[0])
        np.testing.assert_allclose(got, exact, rtol=3e-6)
        values = np.linalg.eigvalsh((got + got.T) / 2)
        assert values[0] > -3e-7 * values[-1]


def test_names_and_heads_that_are_none() -> None:
    for unknown in ("hinge", lambda outputs, batch: 0.0, ["mse"]):
        with pytest.raises(ValueError, match=r"\['cross_entropy', 'mse', 'token_cross_entropy'\]"):
            losses.get(unknown)
    with pytest.raises(ValueError, match="'beta'"):
        losses.actor_critic("beta")
    with pytest.raises(ValueError, match="without its value"):
        losses.actor_critic("gaussian").value({}, None)


def sequences() -> tuple[Any, ...]:
    """A linear network of three sequences, and its dense Gauss-Newton matrix by the mean over counted labels."""
    rng = np.random.default_rng(0)
    x, params = rng.standard_normal((3, 3, 2)), jnp.asarray(rng.standard_normal((2, 3)))
    labels = jnp.asarray(np.where(COUNTED, rng.integers(0, 3, COUNTED.shape), -7))
    logits = x @ np.asarray(params)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    inner = np.einsum("btc,cd->btcd", p, np.eye(3)) - np.einsum("btc,btd->btcd", p, p)
    exact = np.einsum("bt,bti,btcd,btj->icjd", COUNTED, x, inner, x).reshape(6, 6) / COUNTED.sum()
    # Of the example's own part of the loss, times the number of examples.
    slopes = np.einsum("bt,bti,btc->bic", COUNTED, x, p - np.eye(3)[np.abs(labels) % 3]).reshape(3, 6)
    return params, (jnp.asarray(x), labels), exact, slopes.T @ slopes * 3 / COUNTED.sum() ** 2


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", [pytest.param(None, marks=pytest.mark.slow), 2])
def test_sequences_of_different_lengths_can_be_chunked(size: int | None) -> None:
    params, batch, exact, empirical = sequences()

    def compiled(take: Callable[..., Any]) -> Any:
        return jax.jit(take, compiler_options=FAST)(params, batch)

    matrix = compiled(lambda p, b: curvature.dense(curvature.ggn(linear, p, b, TOKENS, size)))
    np.testing.assert_allclose(matrix, exact, atol=1e-14)
    nodes = compiled(lambda p, b: curvature.gram_spectrum(linear, p, b, TOKENS, size).nodes)
    np.testing.assert_allclose(np.sort(np.ravel(nodes))[-6:], np.linalg.eigvalsh(exact), atol=1e-12)
    if size is None:
        matrix = compiled(lambda p, b: curvature.dense(curvature.empirical_fisher(linear, p, b, TOKENS)))
        np.testing.assert_allclose(matrix, empirical, atol=1e-14)
    else:
        drawn = compiled(lambda p, b: curvature.dense(curvature.fisher(linear, p, b, TOKENS, KEY, 5_000, size)))
        np.testing.assert_allclose(drawn, exact, atol=0.05 * exact.max())


def test_labels_that_are_not_counted_have_no_gradient_and_the_others_their_mean() -> None:
    params, batch, *_ = sequences()
    logits = jnp.asarray(linear(params, batch), jnp.float32)
    value, slope = jax.value_and_grad(TOKENS.value)(logits, batch)
    mask = COUNTED.astype(bool)
    alone = logits[mask], batch[1][mask]
    np.testing.assert_allclose(value, CE.value(alone[0], (None, alone[1])), rtol=1e-6)
    np.testing.assert_array_equal(slope[~mask], 0.0)
    assert (np.abs(slope[mask]).max(-1) > 1e-3).all()
    # A class that is left out where nothing is counted is no fault.
    np.testing.assert_allclose(TOKENS.value(logits.at[2, 0, 0].set(-jnp.inf), batch), value, rtol=1e-6)


@pytest.mark.parametrize(
    ("labels", "says"), [(jnp.full((3, 3), -1), "none of the 9 labels is counted"), (jnp.full((3, 3), 3), "0 to 2.*3")]
)
def test_padding_alone_and_tokens_beyond_the_vocabulary_are_refused_or_nan(labels: jax.Array, says: str) -> None:
    params, (x, _), *_ = sequences()
    takers: dict[str, Callable[[Any], Any]] = {
        "value": lambda b: TOKENS.value(linear(params, b), b),
        "gradient": lambda b: jax.grad(lambda p: TOKENS.value(linear(p, b), b))(params),
        "ggn": lambda b: curvature.ggn(linear, params, b, TOKENS).mv(params),
        "gram": lambda b: curvature.gram_spectrum(linear, params, b, TOKENS).nodes,
    }
    for name, take in takers.items():
        with pytest.raises(ValueError, match=says):
            take((x, labels))
        assert np.isnan(jax.jit(take, compiler_options=FAST)((x, labels))).all(), name
