"""The loss of PPO, its gradient and its curvature against the plain formula and dense double precision."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jax.flatten_util import ravel_pytree

from plastax.models import ActorCritic
from plastax.rl import objective, ppo
from plastax.rl import policy as policies
from plastax.rl.environment import Continuous, Discrete

BATCH = 64
BOX = Continuous((-1.0, -0.5), (1.0, 0.5), 2)


def divergence(kind: str, old, new):
    """KL(old, new) of one example, by its definition."""
    if kind == "categorical":
        log_p, log_q = (jax.nn.log_softmax(x["policy"]) for x in (old, new))
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q))
    var, new_var = (jnp.exp(2 * x["log_std"]) for x in (old, new))
    terms = new["log_std"] - old["log_std"] + (var + (old["policy"] - new["policy"]) ** 2) / (2 * new_var) - 0.5
    return jnp.sum(terms)


def problem(continuous: bool, config: ppo.PPO):
    """A small network, and a batch of its own, slightly off-policy; everything in the current precision."""
    rng = np.random.default_rng(0)
    size = 2 if continuous else 3
    policy = policies.make(BOX if continuous else Discrete(size))
    model = ActorCritic((8,), activation="tanh").build((3,), size, continuous=continuous)
    params = jax.tree.map(lambda x: jnp.asarray(x + 0.5 * rng.normal(size=x.shape)), model.init(jax.random.key(0)))
    observation = jnp.asarray(rng.normal(size=(BATCH, 3)))
    out = model.apply(params, observation)[0]
    action = jnp.asarray(rng.normal(size=(BATCH, 2)) if continuous else rng.integers(0, size, BATCH))
    value = out["value"] + 0.3 * rng.normal(size=BATCH)
    log_prob = policy.log_prob(out, action) + 0.3 * rng.normal(size=BATCH)
    batch = ppo.RolloutBatch(
        observation, action, log_prob, value, jnp.asarray(rng.normal(1, 2, BATCH)), value + rng.normal(size=BATCH)
    )
    return policy, model, params, batch, objective.network(config, model, policy)


def reference_loss(config: ppo.PPO, out, batch: ppo.RolloutBatch, continuous: bool):
    out, batch = jax.tree.map(np.asarray, (out, batch))
    if continuous:
        normal = scipy.stats.norm(out["policy"], np.exp(out["log_std"]))
        log_prob, entropy = normal.logpdf(batch.action).sum(-1), normal.entropy().sum(-1)
    else:
        log_p = scipy.special.log_softmax(out["policy"], axis=-1)
        log_prob, entropy = log_p[np.arange(BATCH), batch.action], -(np.exp(log_p) * log_p).sum(-1)
    ratio = np.exp(log_prob - batch.log_prob)
    a = (batch.advantage - batch.advantage.mean()) / batch.advantage.std()
    total, clipped = [], 0
    for i in range(BATCH):
        bounded = min(max(ratio[i], 1 - config.clip), 1 + config.clip)
        clipped += bounded != ratio[i]
        policy_loss = -min(ratio[i] * a[i], bounded * a[i])
        error = (out["value"][i] - batch.target[i]) ** 2
        if config.value_clip:
            moved = min(max(out["value"][i] - batch.value[i], -config.value_clip), config.value_clip)
            error = max(error, (batch.value[i] + moved - batch.target[i]) ** 2)
        total.append((policy_loss, 0.5 * error, entropy[i], ratio[i] - 1 - np.log(ratio[i])))
    assert 0 < clipped < BATCH
    parts = dict(zip(("policy_loss", "value_loss", "entropy", "kl"), np.mean(total, axis=0)))
    return (
        parts["policy_loss"] + config.value_weight * parts["value_loss"] - config.entropy_weight * parts["entropy"],
        parts,
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("value_clip", [0.0, 0.2])
def test_loss_is_the_plain_formula(continuous, value_clip):
    config = ppo.PPO(value_clip=value_clip, value_weight=0.7, entropy_weight=0.03)
    _, model, params, batch, network = problem(continuous, config)
    value, metrics, features = jax.jit(lambda *of: network.backward(*of)[:3])(params, (), batch)
    np.testing.assert_allclose(jax.jit(network.loss)(params, batch), value, rtol=1e-12)
    expected, parts = reference_loss(config, model.apply(params, batch.observation)[0], batch, continuous)
    np.testing.assert_allclose(value, expected, rtol=1e-6)  # the advantages' 1e-8 is not in the plain formula
    assert metrics.keys() == parts.keys()
    for name, part in parts.items():
        np.testing.assert_allclose(metrics[name], part, rtol=1e-6)
    assert tuple(features) == model.hidden
    np.testing.assert_array_equal(
        network.outputs(params, batch)["value"], model.apply(params, batch.observation)[0]["value"]
    )


@pytest.mark.parametrize("continuous", [False, True])
def test_tapped_loss_and_its_gradient_are_the_same(continuous):
    config = ppo.PPO()
    _, model, params, batch, network = problem(continuous, config)
    taps = model.taps(batch.observation)
    value, grads = jax.jit(jax.value_and_grad(network.loss))(params, batch)
    both = jax.jit(jax.value_and_grad(network.tapped, argnums=(0, 1), has_aux=True))(params, taps, batch)
    (tapped, (features, inputs)), (tapped_grads, tap_grads) = both
    np.testing.assert_allclose(tapped, value, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(network.features(params, batch)), jax.tree.leaves(features), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(tapped_grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    # A kernel's gradient is its inputs times its pre-activations' gradients.
    for part in ("actor", "critic"):
        layer = inputs[f"{part}/dense_0"].values.T @ tap_grads[f"{part}/dense_0"]
        np.testing.assert_allclose(grads[part]["dense_0"]["kernel"], layer, rtol=1e-4, atol=1e-6)

    # What the training step takes: all of it from one pass, which can be gone back once more.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def twice(params, batch):
        seen = network.backward(params, (), batch)
        cotangent = jax.grad(lambda outputs: network.output_loss.value(outputs, batch))(seen.outputs)
        return seen._replace(pull=None), seen.pull(cotangent)

    seen, again = twice(params, batch)
    expected = (value, features, grads, inputs, tap_grads, tap_grads)
    got = (seen.value, seen.features, seen.grads, seen.inputs, seen.tap_grads, again)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("continuous", [False, True])
def test_output_curvature_is_the_hessian_of_the_mean_divergence_and_value_loss(continuous):
    kind = "gaussian" if continuous else "categorical"
    config = ppo.PPO(value_weight=0.7)
    _, _, params, batch, network = problem(continuous, config)
    batch = jax.tree.map(lambda x: x[:6], batch)
    old = network.outputs(params, batch)
    flat, unflatten = ravel_pytree(old)

    def convex(x):
        new = unflatten(x)
        kl = jax.vmap(lambda a, b: divergence(kind, a, b))(old, new).mean()
        return kl + config.value_weight * 0.5 * jnp.square(new["value"] - batch.target).mean()

    @jax.vmap
    def product_with(tangent):
        return ravel_pytree(network.output_loss.curvature(old, batch, unflatten(tangent)))[0]

    dense, product = jax.jit(jax.hessian(convex))(flat), jax.jit(product_with)(jnp.eye(flat.size))
    np.testing.assert_allclose(product, dense, atol=1e-12)
    np.testing.assert_allclose(product, product.T, atol=1e-14)
    assert np.linalg.eigvalsh(product).min() > -1e-13
    assert np.linalg.eigvalsh(product).max() > 1e-3


def test_advantages_are_normalised_even_where_they_are_all_equal():
    config = ppo.PPO()
    _, _, params, batch, network = problem(False, config)
    equal = batch._replace(advantage=jnp.full(BATCH, 3.0))
    metrics = jax.jit(lambda *of: network.backward(*of).metrics)(params, (), equal)
    np.testing.assert_allclose(metrics["policy_loss"], 0.0, atol=1e-6)
