"""Kinds of parameters, and spectra of diagonal blocks against dense matrices in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from plastax import curvature, models, tree
from plastax.curvature import blocks
from plastax.errors import ConfigError
from plastax.roles import Roles, of_model
from tests.curvature import attention

FAST = {"xla_backend_optimization_level": 0}
KEY = jax.random.key(0)
ROLES = Roles(output=("output",))
EPS = (1e-1, 1e-2)


def places(params: Any, groups: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Block -> places of its parameters in the flat vector."""
    numbers = ravel_pytree(params)[1](np.arange(tree.size(params)))
    of = {name: np.ravel(leaf) for name, leaf in tree.named_leaves(numbers).items()}
    return {label: np.concatenate([of[name] for name in names]).astype(int) for label, names in groups.items()}


def loss(params: Any, batch: Any) -> jax.Array:
    return attention.loss(params, batch)


@pytest.fixture(scope="module")
def exact() -> np.ndarray:
    return attention.dense_hessian()


def test_kinds_of_the_parameters_of_every_model() -> None:
    def kinds(name: str, shape: tuple[int, ...]) -> dict[str, int]:
        model = models.SUPERVISED[name].build(shape, 10)
        like = jax.eval_shape(model.init, KEY)
        found = blocks.groups(like, "kinds", of_model(model))
        assert sorted(sum(found.values(), ())) == sorted(tree.named_leaves(like))
        return {kind: len(names) for kind, names in found.items()}

    heads = {"q": 8, "k": 8, "v": 8, "out": 8, "mlp": 16, "norm": 18, "head": 2}
    assert kinds("gpt", (8,)) == {"embedding": 2} | heads
    assert kinds("vit", (28, 28, 1)) == {"embedding": 4} | heads
    assert kinds("cnn", (28, 28, 1)) == {"mlp": 4, "conv": 6, "head": 2}
    assert kinds("resnet18", (32, 32, 3)) == {"mlp": 4, "conv": 40, "norm": 40, "head": 2}


@pytest.mark.parametrize("names", ["query key value out", "q_proj k_proj v_proj o_proj", "wq wk wv wo"])
def test_attention_is_known_by_names_side_by_side(names: str) -> None:
    layers = names.split()
    params = {"attention": {name: {"kernel": jnp.ones((4, 4))} for name in layers}, "out": {"kernel": jnp.ones((4, 4))}}
    found = blocks.groups(params, "kinds")
    assert found == {
        **{kind: (f"attention/{name}/kernel",) for kind, name in zip(("q", "k", "v", "out"), layers, strict=True)},
        "mlp": ("out/kernel",),
    }
    assert list(blocks.groups(params, "whole")) == ["whole"]
    assert "attention/" + layers[0] in blocks.groups(params, "layers")


def test_a_block_that_is_unknown_empty_or_taken_is_refused() -> None:
    op = curvature.hessian(lambda p: jnp.sum(p["a"] ** 2 + p["b"] ** 2), {"a": jnp.ones(2), "b": jnp.ones(2)})
    for given, said in {
        "kind": r"blocks: 'kind' is unknown \(did you mean 'kinds'\?\); allowed: whole, layers, kinds",
        ("c",): r"blocks\.x: 'c' is unknown.*allowed: a, b",
        ("a", "b"): None,
    }.items():
        if said:
            with pytest.raises(ConfigError, match=said):
                curvature.block_spectra(op, KEY, given if isinstance(given, str) else {"x": given}, 2, 1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"blocks\.y: 'a' is in the block 'x' as well"):
        curvature.block_spectra(op, KEY, {"x": ["a"], "y": ["a", "b"]}, 2, 1)


@pytest.mark.parametrize("way", ["forward", "reverse"])
@pytest.mark.parametrize("chunk_size", [None, pytest.param(4, marks=pytest.mark.slow)])
def test_products_of_blocks_equal_the_dense_ones(way: Any, chunk_size: int | None, exact: np.ndarray) -> None:
    params, batch = attention.make()
    groups = blocks.groups(params, "kinds", ROLES)
    where = places(params, groups)
    if chunk_size is not None:  # The mean over the chunks of 4 and of 2 examples, whose numbers of tokens differ.
        first, last = (attention.dense_hessian(seen=seen) for seen in (slice(4), slice(4, None)))
        exact = (4 * first + 2 * last) / 6
    v = np.float32(np.random.default_rng(0).standard_normal(len(exact)))

    @jax.jit
    def images(params: Any, v: Any) -> dict[str, jax.Array]:
        op = curvature.hessian(loss, params, batch, chunk_size, way)
        out = {}
        for label, names in groups.items():
            own = curvature.block(op, lambda name, of=names: name in of)
            part = tree.map_named(lambda name, x, of=names: x if name in of else None, v)
            out[label] = ravel_pytree(own.mv(part))[0]
        return out

    for label, image in images(params, ravel_pytree(params)[1](v)).items():
        inside = np.sort(where[label])
        expected = exact[np.ix_(inside, inside)] @ np.float64(v[inside])
        np.testing.assert_allclose(image, expected, atol=1e-5 * np.linalg.norm(expected), err_msg=label)


def repeated(
    count: int, order: int, probes: int, exact: np.ndarray, kinds: tuple[str, ...] = blocks.KINDS
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Deviations from the exact numbers in standard errors: block -> ``[count, EPS + 1]``, and of the share outside."""
    params, batch = attention.make()
    groups = {kind: names for kind, names in blocks.groups(params, "kinds", ROLES).items() if kind in kinds}
    where, norm = places(params, groups), np.abs(np.linalg.eigvalsh(exact)).max()

    def measured(key: jax.Array) -> tuple[dict[str, Any], curvature.Estimate]:
        op = curvature.hessian(loss, params, batch)
        found = curvature.block_spectra(op, key, groups, order, probes)
        numbers = {k: (s.rank(norm * jnp.array(EPS)), s.effective_rank()) for k, s in found.blocks.items()}
        return numbers, found.off_diagonal()

    keys = jax.random.split(KEY, count)
    numbers, share = jax.jit(lambda keys: jax.lax.map(measured, keys))(keys)

    def deviation(found: curvature.Estimate, expected: Any) -> np.ndarray:
        error = np.abs(np.float64(found.value) - expected)
        rounding = 1e-4 * np.abs(expected)
        return error / np.maximum(np.float64(found.standard_error), np.maximum(rounding, 1e-6))

    out, inside = {}, 0.0
    for label, (rank, effective) in numbers.items():
        part = exact[np.ix_(where[label], where[label])]
        inside += np.sum(part**2)
        size = np.abs(np.linalg.eigvalsh(part))
        p = size[size > 0] / size.sum()
        ranks = [(size > eps * norm).sum() for eps in EPS]
        columns = [deviation(rank, ranks), deviation(effective, np.exp(-np.sum(p * np.log(p))))[:, None]]
        out[label] = np.concatenate(columns, axis=1)
    return out, deviation(share, 1.0 - inside / np.sum(exact**2))


def test_spectra_of_blocks_and_the_share_outside_are_within_their_errors(exact: np.ndarray) -> None:
    deviations, share = repeated(3, 24, 2, exact, ("norm", "mlp"))
    for label, found in deviations.items():
        assert np.median(found) < 2, label
        assert found.max() < 5, label
    assert np.median(share) < 2


@pytest.mark.slow
def test_spectra_of_blocks_cover_the_truth_in_200_repetitions(exact: np.ndarray) -> None:
    deviations, share = repeated(200, 16, 1, exact)
    for label, found in deviations.items():
        assert ((found < 2).mean(axis=0) >= 0.95).all(), (label, (found < 2).mean(axis=0))
    assert (share < 2).mean() >= 0.95
