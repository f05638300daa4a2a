"""Networks whose outputs for an example depend on the other examples: the numbers of the whole batch, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from plastax import curvature
from plastax.curvature.coupling import coupling
from plastax.errors import ConfigError
from plastax.layers import Tapped
from plastax.models import ResNet18
from plastax.probes import GGN, NTKProbe, TrainabilityProbe, measure
from plastax.program import supervised
from plastax.program.training import Training
from plastax.types import Model
from tests.training_runs import STREAM

FAST = {"xla_backend_optimization_level": 0}
KEY = jax.random.key(0)
# Networks here are made by hand and name no layers.
pytestmark = pytest.mark.filterwarnings("ignore:kronecker:UserWarning")
EXAMPLES, CLASSES = 6, 3


class Normalized(nn.Module):
    """Batch normalisation, with a scale that may start at zero, as at the end of residual branches."""

    scale: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        start = nn.initializers.constant(self.scale)
        x = nn.BatchNorm(use_running_average=False, scale_init=start)(nn.Dense(4)(x))
        return nn.Dense(CLASSES)(x) + nn.Dense(CLASSES)(x)


def normalized(scale: float) -> tuple[Callable, Any]:
    module = Normalized(scale)
    variables = jax.jit(module.init, compiler_options=FAST)(KEY, data()[0])
    stats = variables["batch_stats"]

    def apply(params: Any, batch: Any) -> jax.Array:
        return module.apply({"params": params, "batch_stats": stats}, batch[0], mutable=["batch_stats"])[0]

    return apply, variables["params"]


def data() -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal((EXAMPLES, 5)), jnp.float32), jnp.arange(EXAMPLES) % CLASSES


def centred(params: Any, batch: Any) -> jax.Array:
    """No layer of anybody's: every example less the mean of all."""
    out = jnp.tanh(batch[0] @ params["w"])
    return out - out.mean(0, keepdims=True)


def apart(params: Any, batch: Any) -> jax.Array:
    return jnp.tanh(batch[0] @ params["w"])


def network(name: str) -> tuple[Callable, Any]:
    if name.startswith("normalized"):
        return normalized(0.0 if "zero" in name else 0.7)
    return {"centred": centred, "apart": apart}[name], {"w": jax.random.normal(KEY, (5, CLASSES))}


COUPLED = ("normalized", "normalized, scale zero", "centred")


@pytest.mark.parametrize(
    "name", [*(pytest.param(one, marks=pytest.mark.slow) for one in COUPLED[:2]), "centred", "apart"]
)
def test_gram_spectra_are_those_of_the_whole_batch(name: str) -> None:
    apply, params = network(name)
    flat, unravel = ravel_pytree(params)

    def spectra(params: Any, batch: Any) -> tuple[jax.Array, ...]:
        jacobian = jax.jacrev(lambda f: apply(unravel(f), batch).ravel())(ravel_pytree(params)[0])
        dense = curvature.dense(curvature.ggn(apply, params, batch, "cross_entropy"))
        gram = curvature.gram_spectrum(apply, params, batch, "cross_entropy")
        ntk = curvature.ntk_spectrum(apply, params, batch)
        return dense, jacobian @ jacobian.T, gram.nodes[0], ntk.nodes[0], coupling(apply, params, batch)

    # Under vmap too, where one seed is coupled and another is not.
    seeds = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), params)
    dense, kernel, gram, ntk, found = jax.jit(jax.vmap(spectra, in_axes=(0, None)), compiler_options=FAST)(
        seeds, data()
    )
    assert (np.asarray(found) > 0.1).all() == (name != "apart")
    assert (np.asarray(found) < 1e-5).all() == (name == "apart")
    for expected, nodes in ((dense, gram), (kernel, ntk)):
        values = np.linalg.eigvalsh(np.asarray(expected, np.float64))
        count = min(nodes.shape[1], values.shape[1])
        np.testing.assert_allclose(nodes[:, -count:], values[:, -count:], atol=2e-5 * values.max())
    assert flat.size == dense.shape[-1]


@pytest.mark.parametrize("name", [pytest.param("normalized, scale zero", marks=pytest.mark.slow), "centred"])
def test_parts_of_a_batch_that_needs_all_are_refused(name: str) -> None:
    apply, params = network(name)
    takes = {
        "gram": lambda p, b, size: curvature.gram_matrix(apply, p, b, "cross_entropy", size),
        "ggn": lambda p, b, size: curvature.dense(curvature.ggn(apply, p, b, "cross_entropy", size)),
        "fisher": lambda p, b, size: curvature.dense(curvature.empirical_fisher(apply, p, b, "cross_entropy", size)),
    }
    chosen = list(takes.values()) if name == "centred" else [takes["ggn"]]
    for take, size in zip(chosen, (2, 5, 2)):
        with pytest.raises(ValueError, match=f"chunk_size={size}.*batch statistics"):
            take(params, data(), size)
    found = jax.jit(lambda p, b: [take(p, b, 2) for take in chosen], compiler_options=FAST)(params, data())
    assert all(np.isnan(one).all() for one in found)


def test_exact_factors_need_independent_examples() -> None:
    params = network("centred")[1]
    network_of = {name: Tapped(lambda d: {}, lambda p, taps, d, f=f: (f(p, d), {})) for name, f in
                  (("centred", centred), ("apart", apart))}  # fmt: skip
    with pytest.raises(ValueError, match=r"kind='exact'.*batch statistics"):
        curvature.kronecker(network_of["centred"], params, data(), "cross_entropy")
    assert curvature.kronecker(network_of["apart"], params, data(), "cross_entropy") == {}
    assert curvature.kronecker(network_of["centred"], params, data(), "cross_entropy", kind="empirical") == {}


def resnet() -> Model:
    return ResNet18(channels=(2,), blocks=(1,), hidden=()).build((4, 4, 1), CLASSES)


@pytest.mark.slow
def test_probes_of_the_residual_network_have_the_numbers_of_its_batch() -> None:
    model = resnet()
    params = model.init(KEY)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((EXAMPLES, 4, 4, 1)), jnp.float32)
    batch = x, jnp.arange(EXAMPLES) % CLASSES
    chosen = (GGN(method="gram"), NTKProbe(), TrainabilityProbe(learning_rate=0.1, steps=10))
    found = measure(chosen, params, model.apply, batch, KEY)

    @jax.jit
    def matrices(params: Any) -> tuple[jax.Array, jax.Array]:
        flat, unravel = ravel_pytree(params)
        jacobian = jax.jacrev(lambda f: model.apply(unravel(f), batch[0])[0].ravel())(flat)
        p = jax.nn.softmax(model.apply(params, batch[0])[0])
        inner = jnp.eye(CLASSES)[None] * p[:, None] - p[:, None] * p[:, :, None]
        blocks = jacobian.reshape(EXAMPLES, CLASSES, -1)
        return jnp.einsum("icp,icd,idq->pq", blocks, inner, blocks) / EXAMPLES, jacobian @ jacobian.T

    dense, kernel = (np.linalg.eigvalsh(np.asarray(x, np.float64))[::-1] for x in matrices(params))
    assert found["ggn/complete"]
    np.testing.assert_allclose(found["ggn/largest"], dense[0], rtol=1e-4)
    np.testing.assert_allclose(found["ggn/trace"], dense.sum(), rtol=1e-4)
    np.testing.assert_allclose(found["ntk/eigenvalues"], kernel, atol=1e-4 * kernel[0])
    kept = (1.0 - 0.1 * 2.0 / kernel.size * np.maximum(kernel, 0)) ** 20
    np.testing.assert_allclose(found["trainability/loss"], kept.mean(), rtol=1e-3)


def test_training_refuses_exact_factors_of_a_batch_normalised_network() -> None:
    with pytest.raises(ConfigError, match=r"kronecker_kind: 'exact'.*batch normalisation"):
        supervised.program(Training(kronecker_every=1, kronecker_kind="exact"), STREAM, resnet(), None)
