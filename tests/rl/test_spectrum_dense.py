"""Spectra of the PPO loss, as the probes measure them, against dense Hessians in double precision."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from plastax import tree
from plastax.models import ActorCritic
from plastax.probes import GGN, Hessian
from plastax.rl import objective, ppo
from plastax.rl import policy as policies
from plastax.rl.environment import Discrete
from plastax.types import ProbeInput

EXAMPLES = 64
EPS = (1e-3, 1e-2, 1e-1)


class Problem(NamedTuple):
    dense: np.ndarray
    """Eigenvalues, ascending, float64."""
    measure: Callable[[int], dict]
    """order -> what the probe measured, of 8 keys, NumPy."""


def setting():
    """A small actor-critic away from its start, and a slightly off-policy batch, in float64."""
    rng = np.random.default_rng(0)
    model = ActorCritic((6,), activation="tanh").build((3,), 3, continuous=False)
    network = objective.network(ppo.PPO(), model, policies.make(Discrete(3)))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda s: rng.normal(0, 0.7, s.shape), shapes)
    observation = rng.normal(size=(EXAMPLES, 3))
    action = rng.integers(0, 3, EXAMPLES)
    noise = rng.normal(size=(4, EXAMPLES))
    return model, network, params, observation, action, noise


def batch_of(model, params, observation, action, noise):
    outputs = model.apply(params, observation)[0]
    log_prob = policies.make(Discrete(3)).log_prob(outputs, action) + 0.1 * noise[0]
    value = outputs["value"]
    return ppo.RolloutBatch(observation, action, log_prob, value, 1.0 + noise[1], value + noise[2])


@pytest.fixture(scope="module", params=["hessian", "ggn"])
def problem(request) -> Problem:
    model, network, params, *rest = setting()
    with jax.enable_x64(True):
        exact = jax.tree.map(jnp.asarray, params)
        batch = batch_of(model, exact, *map(jnp.asarray, rest))
        flat, unflatten = ravel_pytree(exact)
        if request.param == "hessian":
            dense = jax.jit(jax.hessian(lambda p: network.loss(unflatten(p), batch)))(flat)
        else:
            # J^T C J with both written out: the Jacobian of all outputs, and the block matrix C from its definition.
            outputs, rebuild = ravel_pytree(network.outputs(exact, batch))
            jacobian = jax.jit(jax.jacfwd(lambda p: ravel_pytree(network.outputs(unflatten(p), batch))[0]))(flat)
            p = np.asarray(jax.nn.softmax(rebuild(outputs)["policy"]))
            curvature = np.zeros((outputs.size, outputs.size))
            places = rebuild(jnp.arange(outputs.size))
            policy_at, value_at = np.asarray(places["policy"], int), np.asarray(places["value"], int)
            for i in range(EXAMPLES):
                curvature[np.ix_(policy_at[i], policy_at[i])] = (np.diag(p[i]) - np.outer(p[i], p[i])) / EXAMPLES
                curvature[value_at[i], value_at[i]] = 0.5 / EXAMPLES  # PPO's value_weight
            dense = np.asarray(jacobian).T @ curvature @ np.asarray(jacobian)
        dense = np.linalg.eigvalsh(np.asarray(dense))
        single = jax.tree.map(lambda x: np.asarray(x, np.float32 if x.dtype == np.float64 else np.int32), batch)
    single = jax.tree.map(jnp.asarray, single)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    assert tree.size(params) == dense.size

    def seen(key) -> ProbeInput:
        return ProbeInput(
            params,
            single,
            network.loss,
            network.features,
            network.outputs,
            network.output_loss,
            network.tapped,
            network.taps,
            {},
            key,
            lambda: params,
            (),
        )

    def measure(order: int):
        config = {"hessian": Hessian, "ggn": GGN}[request.param](order, 4, EPS, EXAMPLES)
        probe = config.build(model)
        # Products and decompositions do not depend on the compiler's effort, but half the test's time does.
        options = {"xla_backend_optimization_level": 0}
        run = jax.jit(jax.vmap(lambda key: probe.measure(seen(key))), compiler_options=options)
        return jax.tree.map(np.asarray, run(jax.random.split(jax.random.key(1), 8)))

    return Problem(dense, functools.cache(measure))


def counts(dense: np.ndarray, relative: bool = False) -> list[int]:
    size = np.abs(dense)
    eps = np.asarray(EPS) * (size.max() if relative else 1.0)
    # No eigenvalue is near a threshold: a count cannot hang on rounding.
    assert np.abs(size[:, None] / eps - 1).min() > 1e-3
    return (size[:, None] > eps).sum(0).tolist()


def test_a_complete_spectrum_is_exact(problem):
    """Eigenvalues within 1e-5 of the largest (float32; found: 3e-6), counts exactly, trace to 1e-5 of the sizes."""
    dense, found = problem.dense, problem.measure(problem.dense.size)
    size = np.abs(dense).max()
    np.testing.assert_allclose(found["nodes"], np.broadcast_to(dense, found["nodes"].shape), atol=1e-5 * size)
    np.testing.assert_allclose(found["largest"], dense[-1], rtol=1e-5)
    np.testing.assert_allclose(found["smallest"], dense[0], rtol=1e-5, atol=1e-5 * size)
    np.testing.assert_allclose(found["trace"], dense.sum(), atol=1e-5 * np.abs(dense).sum())
    np.testing.assert_array_equal(found["rank"], np.tile(counts(dense), (8, 1)))
    np.testing.assert_array_equal(found["relative_rank"], np.tile(counts(dense, True), (8, 1)))
    np.testing.assert_array_equal(found["rank_se"], 0.0)
    p = np.abs(dense) / np.abs(dense).sum()
    np.testing.assert_allclose(found["effective_rank"], np.exp(-(p * np.log(np.maximum(p, 1e-300))).sum()), rtol=1e-3)
    np.testing.assert_array_equal(found["dim"], dense.size)


@pytest.mark.slow  # `tests/curvature` has partial spectra of other losses
def test_a_partial_spectrum_is_within_its_errors(problem):
    """16 of P steps, 4 probes: outer eigenvalues to 1e-3 and their bounds; sums within 4 standard errors."""
    dense, found = problem.dense, problem.measure(16)
    size = np.abs(dense).max()
    assert dense.size > 2 * 16
    np.testing.assert_allclose(found["largest"], dense[-1], rtol=1e-3)
    for end in ("largest", "smallest"):
        miss = np.abs(found[end][:, None] - dense[None]).min(1)
        assert (miss <= found[f"{end}_residual"] + 1e-5 * size).all()
    for name, exact in (("rank", counts(dense)), ("relative_rank", counts(dense, True)), ("trace", dense.sum())):
        error = np.abs(found[name] - np.asarray(exact, float))
        assert (error <= 4 * found[f"{name}_se"] + 1e-3 * np.abs(exact) + 1e-5).all(), (name, exact, found[name])
        # The errors are not so large that they say nothing.
        assert np.mean(found[f"{name}_se"]) < 0.25 * dense.size * (1 if name != "trace" else size)
