"""GPT and ViT: the forward pass against NumPy, padding, sizes, whole heads reset, bad input."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastax import methods, tree
from plastax.errors import ConfigError
from plastax.models import GPT, MLP, ViT
from plastax.types import Model

# These tests compile much and compute little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
VOCABULARY, LENGTH = 5, 6
CONFIG = GPT(width=6, depth=2, heads=2, mlp_ratio=2)
# Padding at the end, at the start and in between, and none.
TOKENS = np.array([[1, 3, 0, 2, -1, -1], [-1, -1, 4, 4, 0, 1], [2, -1, 3, -1, 1, 0], [0, 1, 2, 3, 4, 0]], np.int32)
Leaves = dict[str, np.ndarray]


def draw(model: Model, dtype: Any = np.float32) -> Any:
    """Parameters with nothing left at zero."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(0.5 * rng.standard_normal(x.shape), dtype), shapes)


def norm(p: Leaves, name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-6) * p[f"{name}/scale"] + p[f"{name}/bias"]


def dense(p: Leaves, name: str, x: np.ndarray) -> np.ndarray:
    return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]


def blocks(p: Leaves, config: Any, x: np.ndarray, causal: bool) -> tuple[np.ndarray, Leaves]:
    """One sequence ``[T, D]`` through all blocks and the last norm, head by head; and the features."""
    features, size = {}, config.width // config.heads
    for at in (f"block_{i}" for i in range(config.depth)):
        h = norm(p, f"{at}/norm_attention", x)
        q, k, v = (dense(p, f"{at}/attention/{name}", h) for name in ("query", "key", "value"))
        given = np.zeros_like(x)
        for head in range(config.heads):
            own = slice(head * size, (head + 1) * size)
            scores = q[:, own] @ k[:, own].T / np.sqrt(size)
            if causal:
                scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            given[:, own] = weights / weights.sum(1, keepdims=True) @ v[:, own]
        x = x + dense(p, f"{at}/attention/out", given)
        z = dense(p, f"{at}/mlp/up", norm(p, f"{at}/norm_mlp", x))
        up = z / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
        x = x + dense(p, f"{at}/mlp/down", up)
        features |= {f"{at}/attention/value": given, f"{at}/mlp/up": up, f"{at}/mlp/down": x}
    return norm(p, "norm_last", x), features


@pytest.mark.parametrize("tied", [pytest.param(False, marks=pytest.mark.slow), True])
def test_gpt_is_the_network_without_the_padding(tied: bool, x64: None) -> None:
    """In double precision, against a NumPy network that is given every sequence's tokens alone."""
    config = GPT(width=6, depth=2, heads=2, mlp_ratio=2, tied=tied)
    model = config.build((LENGTH,), VOCABULARY)
    params = draw(model, np.float64)
    p = {name: np.asarray(leaf) for name, leaf in tree.named_leaves(params).items()}
    logits, features = jit(model.apply)(params, TOKENS)
    for i, row in enumerate(TOKENS):
        kept = row >= 0
        h, inside = blocks(p, config, p["tokens/embedding"][row[kept]] + p["positions/embedding"][: kept.sum()], True)
        expected = h @ p["tokens/embedding"].T if tied else dense(p, "output", h)
        np.testing.assert_allclose(logits[i][kept], expected, rtol=1e-9, atol=1e-9)
        assert not logits[i][~kept].any()
        assert list(inside) == list(model.hidden)
        for name, value in inside.items():
            np.testing.assert_allclose(features[name][i][kept], value, rtol=1e-9, atol=1e-9)
            assert not features[name][i][~kept].any()
    np.testing.assert_array_equal(model.counted(jnp.asarray(TOKENS)), TOKENS >= 0)


@pytest.mark.parametrize("pool", ["class", pytest.param("mean", marks=pytest.mark.slow)])
def test_vit_is_the_network_in_numpy(pool: Any, x64: None) -> None:
    config = ViT(width=6, depth=1, heads=3, mlp_ratio=2, patch=2, pool=pool)
    model = config.build((4, 6, 2), 3)
    params = draw(model, np.float64)
    p = {name: np.asarray(leaf) for name, leaf in tree.named_leaves(params).items()}
    images = np.random.default_rng(2).standard_normal((2, 4, 6, 2))
    logits, features = jit(model.apply)(params, images)
    for i, image in enumerate(images):
        cut = [image[r : r + 2, c : c + 2].ravel() for r in (0, 2) for c in (0, 2, 4)]
        x = dense(p, "patches", np.stack(cut))
        x = np.concatenate([p["class_token/embedding"], x]) if pool == "class" else x
        h, inside = blocks(p, config, x + p["positions/embedding"], False)
        read = h[0] if pool == "class" else h.mean(0)
        np.testing.assert_allclose(logits[i], dense(p, "output", read), rtol=1e-9, atol=1e-9)
        for name, value in inside.items():
            np.testing.assert_allclose(features[name][i], value, rtol=1e-9, atol=1e-9)


GPT_2: Any = pytest.param(768, 12, 4, 50_257, 1024, True, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("width", "depth", "ratio", "vocabulary", "length", "tied"),
    [(48, 4, 4, 64, 32, False), (48, 4, 4, 64, 32, True), (10, 3, 1, 7, 9, False), GPT_2],
)
def test_gpt_has_as_many_parameters_as_the_formula_says(
    width: int, depth: int, ratio: int, vocabulary: int, length: int, tied: bool
) -> None:
    model = GPT(width=width, depth=depth, heads=2, mlp_ratio=ratio, tied=tied).build((length,), vocabulary)
    block = (4 + 2 * ratio) * width**2 + (9 + ratio) * width
    expected = depth * block + (vocabulary + length + 2) * width + (0 if tied else (width + 1) * vocabulary)
    found = tree.size(jax.eval_shape(model.init, jax.random.key(0)))
    assert found == expected
    if vocabulary == 50_257:
        assert found == 124_439_808  # GPT-2


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_vit_has_as_many_parameters_as_the_formula_says(pool: Any) -> None:
    model = ViT(width=12, depth=2, heads=4, mlp_ratio=3, patch=4, pool=pool).build((8, 12, 3), 5)
    tokens = 6 + 2 * (pool == "class")  # the class token has an embedding and a position
    expected = 2 * (10 * 12**2 + 12 * 12) + 12 * (4 * 4 * 3 + 1) + 12 * tokens + 2 * 12 + 5 * 13
    assert tree.size(jax.eval_shape(model.init, jax.random.key(0))) == expected


def test_kernels_are_drawn_as_gpt_2_draws_them() -> None:
    model = GPT(width=64, depth=2, heads=4).build((16,), 64)
    leaves = tree.named_leaves(jit(model.init)(jax.random.key(0)))
    for name, leaf in leaves.items():
        kernel = name.endswith(("kernel", "embedding"))
        std = 0.02 / (2 if name.endswith(("out/kernel", "down/kernel")) else 1)
        np.testing.assert_allclose(np.std(leaf), std if kernel else 0, rtol=0.1)
        assert kernel or (leaf == name.endswith("scale")).all()


DEAD = {"block_0/attention/value": [2, 3], "block_1/mlp/up": [1, 3]}
"""Layer -> the columns of its dead units: the second of two heads, and two of four neurons."""


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("redo", "regrama", "self_normalized_resets")]


@pytest.mark.parametrize("name", ["continual_backprop", *SLOW])
def test_a_dead_head_or_neuron_is_replaced_and_nothing_else_moves(name: str) -> None:
    """With ReLU, whose units can die; the numbers of the reset network are those of the network before."""
    model = GPT(width=4, depth=2, heads=2, mlp_ratio=1, activation="relu").build((LENGTH,), VOCABULARY)

    def silenced(name: str, x: jax.Array) -> jax.Array:
        layer = name.rpartition("/")[0]
        if layer not in DEAD:
            return x
        others = 3.0 if name == "block_1/mlp/up/bias" else x  # so that no other neuron is silent
        return jnp.zeros_like(x).at[:].set(others).at[..., jnp.array(DEAD[layer])].set(0.0)

    params = tree.map_named(silenced, draw(model))
    options: dict[str, Any] = {
        "redo": {"period": 1, "threshold": 0.0},
        "regrama": {"period": 1, "threshold": 0.0},
        "continual_backprop": {"replacement_rate": 0.5, "maturity": 0},
        "self_normalized_resets": {"level": 0.9, "first_gap": 1.5, "patience": 1},
    }
    units = {layer: model.units[layer] for layer in DEAD}
    method = getattr(methods, name)(optax.sgd(0.0), units, **options[name])

    def step(params: Any) -> Any:
        taps = model.taps(TOKENS)
        outputs, features = model.apply(params, TOKENS)
        tap_grads = jax.grad(lambda taps: jnp.sum(jnp.square(model.tapped(params, taps, TOKENS)[0])))(taps)
        if name == "regrama":  # A unit is dead to it that gets no gradient.
            tap_grads = {layer: jnp.where(features[layer] == 0, 0, tap_grads[layer]) for layer in DEAD}
        args = {"key": jax.random.key(3), "clock": jnp.int32(1), "batch": TOKENS, "counted_fn": model.counted}
        args |= {"features": features, "tap_grads": tap_grads, "init_fn": model.init, "every_step": True}
        state = method.init(params)
        if name == "continual_backprop":
            state = state._replace(last=jnp.int32(0))
        zeros = jax.tree.map(jnp.zeros_like, params)
        new = optax.apply_updates(params, method.update(zeros, state, params, **args)[0])
        return new, outputs, model.apply(new, TOKENS)[0]

    new, before, after = jit(step)(params)
    np.testing.assert_allclose(after, before, atol=1e-6)
    a, b = tree.named_leaves(params), tree.named_leaves(new)
    for layer, dead in DEAD.items():
        for entry in units[layer].outgoing:
            x, y = np.asarray(a[entry.name]), np.asarray(b[entry.name])
            assert x[dead].any()
            assert not y[dead].any()
            np.testing.assert_array_equal(np.delete(y, dead, axis=0), np.delete(x, dead, axis=0))
        for entry in units[layer].incoming:
            x, y = np.asarray(a[entry.name]), np.asarray(b[entry.name])
            drawn = entry.name.endswith("kernel")
            assert (y[..., dead] != x[..., dead]).all() if drawn else not y[..., dead].any()
            np.testing.assert_array_equal(np.delete(y, dead, axis=-1), np.delete(x, dead, axis=-1))


BAD = {
    "no tokens": (lambda: CONFIG.build((0,), 5), r"model: 'gpt' needs inputs \[T\], two or more tokens.* \(0,\)"),
    "one token": (lambda: CONFIG.build((1,), 5), r"two or more tokens; this stream's are \(1,\)"),
    "images": (lambda: CONFIG.build((8, 8, 1), 5), r"two or more tokens; this stream's are \(8, 8, 1\)"),
    "no vocabulary": (lambda: CONFIG.build((4,), 0), r"model\.outputs: 0 is not allowed; give 1 or more"),
    "heads": (lambda: GPT(width=10, heads=4), r"model\.heads: 4 does not divide the width 10; give one of 1, 2, 5, 10"),
    "no heads": (lambda: ViT(heads=0), r"model\.heads: 0 is not allowed; give 1 or more"),
    "no depth": (lambda: GPT(depth=0), r"model\.depth: 0 is not allowed"),
    "initialiser": (lambda: GPT(initializer="gtp2"), r"model\.initializer: 'gtp2' is unknown"),  # type: ignore[arg-type]
    "pool": (lambda: ViT(pool="max"), r"model\.pool: 'max' is unknown"),  # type: ignore[arg-type]
    "patches": (lambda: ViT(patch=3).build((8, 9, 1), 2), r"model\.patch: 3 does not divide .* \(8, 9, 1\)"),
    "no images": (lambda: ViT().build((8,), 2), r"model: 'vit' needs inputs \[height, width, channels\]"),
    "injections": (
        lambda: GPT(injections=1).build((4,), 5),
        r"model\.injections: 1 is not allowed without dense hidden",
    ),
    "tied injections": (
        lambda: GPT(injections=1, tied=True).build((4,), 5),
        r"model\.injections: 1 is not allowed without an output layer",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str) -> None:
    build, message = BAD[case]
    with pytest.raises(ConfigError, match=message) as raised:
        build()
    assert "\n" not in str(raised.value)


def test_inputs_that_are_no_tokens_are_refused() -> None:
    model = CONFIG.build((LENGTH,), VOCABULARY)
    with pytest.raises(ConfigError, match=r"model: 'gpt' needs tokens, .*; this stream's inputs are float32"):
        jax.eval_shape(model.apply, draw(model), jnp.zeros((2, LENGTH)))


def test_sequences_longer_than_the_network_was_built_for_are_refused() -> None:
    model = CONFIG.build((LENGTH,), VOCABULARY)
    with pytest.raises(ConfigError, match="x: 7 tokens are too many; this model was built for 6 or fewer"):
        jax.eval_shape(model.apply, draw(model), jnp.zeros((2, LENGTH + 1), jnp.int32))


def test_tokens_beyond_the_vocabulary_are_not_taken_for_others() -> None:
    model = CONFIG.build((LENGTH,), VOCABULARY)
    x = jnp.asarray(TOKENS).at[0, 1].set(VOCABULARY)
    assert np.isnan(jit(model.apply)(draw(model), x)[0][0]).any()
    assert MLP().build((4,), 2).counted is None
