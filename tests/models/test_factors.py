"""Factors of every kind of layer, linen and nnx, against sums over examples and places in float64.

The reference is the same network written out in plain JAX, with a shift added to what each call of a layer gives: the
gradients of the shifts are those of the pre-activations.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from plastax import curvature, models, tree
from plastax.curvature.kronecker import Factors, rank, total_effective_rank
from plastax.types import Loss

# These tests compile much and compute little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
EXAMPLES, TOKENS, VOCABULARY, WIDTH, HEADS = 4, 5, 7, 6, 2
HEAD = WIDTH // HEADS
EQUATION = "bthd,hde->bhte"


class Block(nn.Module):
    """Embeddings, attention, an MLP, both normalisations, products of several axes, and layers with two uses."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        counted = tokens >= 0
        table = nn.Embed(VOCABULARY, WIDTH, name="table")
        places = jnp.arange(TOKENS)
        h = table(jnp.maximum(tokens, 0)) + nn.Embed(TOKENS, WIDTH, name="places")(places)[None]
        h = h + nn.Embed(1, WIDTH, name="start")(jnp.zeros((len(h), 1), jnp.int32))
        x = nn.LayerNorm(name="norm")(h)
        h = h + nn.MultiHeadDotProductAttention(HEADS, name="attention")(x, x, mask=counted[:, None, None])
        h = h + nn.Dense(WIDTH, name="down")(nn.gelu(nn.Dense(8, name="up")(nn.RMSNorm(name="rms")(h))))
        twice = nn.Dense(WIDTH, name="twice")
        h = h + jnp.tanh(twice(jnp.tanh(twice(h))))
        each = nn.Einsum((HEADS, HEAD, 4), EQUATION, name="each")(h.reshape(*h.shape[:2], HEADS, HEAD))
        both = nn.DenseGeneral((2, 3), axis=(-1, 1), name="both")(each)
        h = h + nn.LayerNorm(use_scale=False, name="shifted")(both.reshape(h.shape))
        return table.attend(h)


class NnxBlock(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.table = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.places, self.start = nnx.Embed(TOKENS, WIDTH, rngs=rngs), nnx.Embed(1, WIDTH, rngs=rngs)
        self.norm, self.rms = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.RMSNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(WIDTH, 8, rngs=rngs), nnx.Linear(8, WIDTH, rngs=rngs)
        self.twice = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.each = nnx.Einsum(EQUATION, (HEADS, HEAD, 4), (HEADS, 4), rngs=rngs)
        self.both = nnx.LinearGeneral((HEADS, 4), (2, 3), axis=(-1, 1), rngs=rngs)
        self.shifted = nnx.LayerNorm(WIDTH, use_scale=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        counted = tokens >= 0
        h = self.table(jnp.maximum(tokens, 0)) + self.places(jnp.arange(TOKENS))[None]
        h = h + self.start(jnp.zeros((len(h), 1), jnp.int32))
        x = self.norm(h)
        h = h + self.attention(x, mask=counted[:, None, None])
        h = h + self.down(nnx.gelu(self.up(self.rms(h))))
        h = h + jnp.tanh(self.twice(jnp.tanh(self.twice(h))))
        both = self.both(self.each(h.reshape(*h.shape[:2], HEADS, HEAD)))
        return self.table.attend(h + self.shifted(both.reshape(h.shape)))


class Plain:
    """The block in plain JAX; ``rows`` are what the parameters of each call met, ``[B, T, d_a]``."""

    def __init__(self, params: Any, shifts: dict[str, list[jax.Array]]) -> None:
        self.params, self.shifts, self.rows = params, shifts, dict[str, list[jax.Array]]()

    def layer(self, name: str, x: jax.Array, z: jax.Array, *, bias: bool = True) -> jax.Array:
        """Shifts what a layer gives, ``[B, T, d_out]``."""
        calls = self.rows.setdefault(name, [])
        calls.append(jnp.concatenate([x, jnp.ones_like(x[..., :1])], -1) if bias else x)
        return z + self.shifts[name][len(calls) - 1] if name in self.shifts else z

    def dense(self, name: str, x: jax.Array) -> jax.Array:
        p: Any = functools.reduce(operator.getitem, name.split("/"), self.params)
        kernel = p["kernel"].reshape(x.shape[-1], -1)
        return self.layer(name, x, x @ kernel + p["bias"].reshape(-1))

    def norm(self, name: str, x: jax.Array, *, centred: bool = True) -> jax.Array:
        x = x - x.mean(-1, keepdims=True) if centred else x
        x = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
        p = self.params[name]
        return self.layer(name, x, x * p.get("scale", 1.0) + p.get("bias", 0.0), bias=False)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        counted, table = tokens >= 0, self.params["table"]["embedding"]
        words = jax.nn.one_hot(jnp.maximum(tokens, 0), VOCABULARY, dtype=table.dtype)
        h = self.layer("table", words, words @ table, bias=False) + self.params["places"]["embedding"]
        ones = jnp.ones((len(h), 1, 1), h.dtype)
        h = h + self.layer("start", ones, ones * self.params["start"]["embedding"], bias=False)
        x = self.norm("norm", h)
        q, k, v = (
            self.dense(f"attention/{name}", x).reshape(*x.shape[:2], HEADS, HEAD) for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(HEAD)
        weights = jax.nn.softmax(jnp.where(counted[:, None, None], scores, jnp.finfo(jnp.float32).min))
        h = h + self.dense("attention/out", jnp.einsum("bhts,bshd->bthd", weights, v).reshape(h.shape))
        h = h + self.dense("down", jax.nn.gelu(self.dense("up", self.norm("rms", h, centred=False))))
        h = h + jnp.tanh(self.dense("twice", jnp.tanh(self.dense("twice", h))))
        p, parts = self.params["each"], h.reshape(*h.shape[:2], HEADS, HEAD)
        z = jnp.einsum("bthd,hde->bthe", parts, p["kernel"]) + p["bias"]
        each = self.layer("each", parts, z)
        both = self.dense("both", each.reshape(*h.shape[:2], -1))
        h = h + self.norm("shifted", both)
        return self.layer("table.attend", h, h @ table.T, bias=False)


def value(outputs: jax.Array, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Of the labels that count, and of all outputs, so that padding has gradients."""
    log_p = jax.nn.log_softmax(outputs)
    own = jnp.take_along_axis(log_p, jnp.maximum(batch[1], 0)[..., None], -1)[..., 0]
    return -jnp.sum(jnp.where(batch[1] >= 0, own, 0)) / jnp.sum(batch[1] >= 0) + jnp.mean(outputs**2)


LOSS = Loss(value, lambda outputs, batch, tangent: tangent)
LENGTHS = np.array([5, 3, 4, 0])
"""Of the examples; the last is padding alone."""
LAYERS = (
    "table", "start", "norm", "attention/query", "attention/key", "attention/value", "attention/out", "rms", "up",
    "down", "twice", "each", "both", "shifted", "table.attend",
)  # fmt: skip


@pytest.fixture(scope="module")
def case() -> Any:
    """Parameters with nothing at zero, the batch, and of each layer rows, gradients ``[B, T, d]`` and what counts."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(VOCABULARY, size=(EXAMPLES, TOKENS))
    counted = np.arange(TOKENS) < LENGTHS[:, None]
    labels = np.where(counted & (rng.random(counted.shape) < 0.8), rng.integers(VOCABULARY, size=counted.shape), -1)
    batch = jnp.asarray(np.where(counted, tokens, -1), jnp.int32), jnp.asarray(labels, jnp.int32)
    shapes = jax.eval_shape(Block().init, jax.random.key(0), batch[0])["params"]
    params = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape) / 2, jnp.float32), shapes)
    assert tree.size(params) < 5000
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        wide = jax.tree.map(lambda x: jnp.asarray(np.float64(x)), params)
        sizes: dict[str, list[Any]] = {}

        class Sizes(Plain):
            def layer(self, name: str, x: jax.Array, z: jax.Array, *, bias: bool = True) -> jax.Array:
                sizes.setdefault(name, []).append(jnp.zeros(z.shape, z.dtype))
                return z

        jax.eval_shape(lambda: Sizes(wide, {})(batch[0]))
        shifts = {name: [np.zeros(z.shape) for z in calls] for name, calls in sizes.items()}

        @jax.jit
        def gradients(shifts: Any) -> Any:
            def loss(shifts: Any) -> Any:
                plain = Plain(wide, shifts)
                return value(plain(batch[0]), batch), plain.rows

            return jax.grad(loss, has_aux=True)(shifts)

        grads, rows = jax.tree.map(np.asarray, gradients(shifts))
    marks = {name: np.concatenate([_marks(x, counted) for x in calls], 1) for name, calls in rows.items()}
    joined = [{name: np.concatenate(calls, 1) for name, calls in found.items()} for found in (rows, grads)]
    return params, batch, *joined, marks


def _marks(x: np.ndarray, counted: np.ndarray) -> np.ndarray:
    return counted if x.shape[1] == TOKENS else counted.any(1, keepdims=True)


def second_moment(x: np.ndarray, counted: np.ndarray, sharing: str, *, mean: bool) -> np.ndarray:
    """Sum of outer products over examples and places that count, of ``x`` ``[B, T, d]``; for inputs their mean."""
    total, weight = np.zeros((x.shape[-1],) * 2), 0
    for own, marks in zip(x, counted, strict=True):
        places = own[marks]
        if sharing == "expand":
            total, weight = total + sum(np.outer(v, v) for v in places), weight + len(places)
        elif len(places):
            v = places.mean(0) if mean else places.sum(0)
            total, weight = total + np.outer(v, v), weight + 1
    return total / weight if mean else total


def expected(case: Any, name: str, sharing: str) -> tuple[np.ndarray, np.ndarray]:
    """Both factors of a layer."""
    _, _, rows, grads, marks = case
    x, g, counted = rows[name], grads[name], marks[name]
    examples = (LENGTHS > 0).sum()
    if name in ("norm", "rms", "shifted"):
        g = np.where(counted[..., None], g, 0)
        parts = {"norm": (x * g, g), "rms": (x * g,), "shifted": (g,)}[name]
        s = np.concatenate([part.sum(1) for part in parts], -1)
        return np.ones((1, 1)), examples * s.T @ s
    if name == "each":
        g = g.reshape(*g.shape[:2], HEADS, -1)
        pairs = [(x[:, :, i], g[:, :, i]) for i in range(HEADS)]
        factors = [
            (second_moment(a, counted, sharing, mean=True), examples * second_moment(s, counted, sharing, mean=False))
            for a, s in pairs
        ]
        return tuple(np.stack(side) for side in zip(*factors, strict=True))
    a, s = second_moment(x, counted, sharing, mean=True), examples * second_moment(g, counted, sharing, mean=False)
    return np.diag(a) if name in ("table", "start") else a, np.diag(s) if name == "table.attend" else s


@pytest.fixture(scope="module", params=["linen", "nnx"])
def found(case: Any, request: pytest.FixtureRequest) -> dict[str, dict[str, Factors]]:
    """Sharing -> factors, of each library's module."""
    params, batch, *_ = case
    module: Any = Block() if request.param == "linen" else NnxBlock()
    network = models.tapped(module, inputs=operator.itemgetter(0), counted=lambda batch: batch[0] >= 0)
    if request.param == "nnx":
        nnx.update(module, params)
        params = nnx.state(module, nnx.Param)
    assert tuple(models.taps.parameters_of(network, batch)) == LAYERS
    assert list(curvature.left_out(network, params, batch)) == ["places/embedding"]

    @jit
    def run(params: Any) -> Any:
        of = functools.partial(curvature.kronecker, network, params, batch, LOSS, kind="empirical")
        return {sharing: of(sharing=sharing) for sharing in ("expand", "reduce")}

    with pytest.warns(UserWarning, match=r"'places/embedding' \(\d\.\d% of the parameters\) in no factor"):
        return run(params)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("name", LAYERS)
def test_factors_are_sums_over_examples(case: Any, found: Any, name: str, sharing: str) -> None:
    for got, reference in zip(found[sharing][name], expected(case, name, sharing), strict=True):
        assert got.shape == reference.shape
        np.testing.assert_allclose(got, reference, atol=1e-5 * max(np.abs(reference).max(), 1e-5), rtol=0)


class Grouped(nn.Module):
    """A convolution in two groups, and a depthwise one with two units a channel."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.tanh(nn.Conv(4, (2, 2), strides=2, feature_group_count=2, name="two")(x))
        return nn.Conv(8, (3, 3), feature_group_count=4, use_bias=False, name="each")(x).mean((1, 2))


class NnxGrouped(nnx.Module):
    def __init__(self) -> None:
        self.two = nnx.Conv(6, 4, (2, 2), strides=2, feature_group_count=2, rngs=nnx.Rngs(0))
        self.each = nnx.Conv(4, 8, (3, 3), feature_group_count=4, use_bias=False, rngs=nnx.Rngs(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.each(jnp.tanh(self.two(x))).mean((1, 2))


@pytest.mark.slow
def test_groups_have_the_factors_of_convolutions_of_their_own() -> None:
    """The same network with a dense convolution for each group, whose factors are those of the group."""
    rng = np.random.default_rng(0)
    data = jnp.asarray(rng.standard_normal((3, 5, 6, 6)), jnp.float32), jnp.arange(3)
    module = NnxGrouped()
    params = nnx.to_pure_dict(nnx.state(module, nnx.Param))

    class Parts(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            two = [nn.Conv(2, (2, 2), strides=2, name=f"two_{i}")(x[..., 3 * i : 3 * i + 3]) for i in range(2)]
            x = jnp.tanh(jnp.concatenate(two, -1))
            each = [nn.Conv(2, (3, 3), use_bias=False, name=f"each_{i}")(x[..., i : i + 1]) for i in range(4)]
            return jnp.concatenate(each, -1).mean((1, 2))

    def cut(name: str, i: int) -> dict[str, jax.Array]:
        return {part: x[..., 2 * i : 2 * i + 2] for part, x in params[name].items()}

    parts = {f"two_{i}": cut("two", i) for i in range(2)} | {f"each_{i}": cut("each", i) for i in range(4)}
    cases = ((Parts(), parts), (Grouped(), params), (module, nnx.state(module, nnx.Param)))

    @jit
    def run(given: Any) -> Any:
        networks = [models.tapped(module, inputs=operator.itemgetter(0)) for module, _ in cases]
        return [curvature.kronecker(n, p, data, "cross_entropy") for n, p in zip(networks, given, strict=True)]

    alone, *found = run([given for _, given in cases])
    for each in found:
        for name, count in (("two", 2), ("each", 4)):
            expected = [alone[f"{name}_{i}"] for i in range(count)]
            for got, *sides in zip(each[name], *expected, strict=True):
                np.testing.assert_allclose(got, np.stack(sides), rtol=1e-5, atol=1e-7)
            assert rank(each[name], 1e-3) == sum(rank(pair, 1e-3) for pair in expected) > 0
        np.testing.assert_allclose(total_effective_rank(each), total_effective_rank(alone), rtol=1e-4)


class Step(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        layer = nn.Dense(3, name="dense")
        return x + jnp.tanh(layer(layer(nn.LayerNorm(name="norm")(x)))), None


class Unrolled(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(2):
            x = Step(name=f"steps_{i}")(x, None)[0]
        return nn.Dense(2, name="output")(x)


class Scanned(nn.Module):
    """The same, its parameters in a stack; ``block`` is a step."""

    block: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scan = nn.scan(self.block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return nn.Dense(2, name="output")(scan(name="steps")(x, None)[0])


class NnxStep(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm, self.dense = nnx.LayerNorm(3, rngs=rngs), nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + jnp.tanh(self.dense(self.dense(self.norm(x))))


class NnxScanned(nnx.Module):
    def __init__(self) -> None:
        self.steps = nnx.vmap(NnxStep)(nnx.Rngs(0).split(2))
        self.output = nnx.Linear(3, 2, rngs=nnx.Rngs(1))

    def __call__(self, x: jax.Array) -> jax.Array:
        def step(x: jax.Array, block: NnxStep) -> jax.Array:
            return block(x)

        return self.output(nnx.scan(step, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.steps))


def test_a_stack_of_layers_has_the_factors_of_each() -> None:
    module = NnxScanned()
    params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    data = jnp.asarray(np.random.default_rng(0).standard_normal((4, 5, 3)), jnp.float32), jnp.ones((4, 5, 2))
    steps = {f"steps_{i}": jax.tree.map(operator.itemgetter(i), params["steps"]) for i in range(2)}
    cases = (
        (Unrolled(), steps | {"output": params["output"]}),
        (Scanned(Step), params),
        (Scanned(nn.remat(Step)), params),
        (module, nnx.state(module, nnx.Param)),
    )
    networks = [models.tapped(module, inputs=operator.itemgetter(0)) for module, _ in cases]
    assert curvature.left_out(networks[1], params, data) == {}

    @jit
    def run(given: Any) -> Any:
        return [curvature.kronecker(n, p, data, "mse", kind="empirical") for n, p in zip(networks, given, strict=True)]

    alone, *found = run([given for _, given in cases])
    for each in found:
        assert len(each) == len(alone) == 5
        for name, pair in each.items():
            layer, _, i = name.rpartition("/")
            expected = alone[layer.replace("steps", f"steps_{i}")] if layer else alone[name]
            jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), pair, expected)
