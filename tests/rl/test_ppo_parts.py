"""The pieces of PPO, one by one, against NumPy, SciPy and dense double-precision references."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from plastax.errors import ConfigError
from plastax.keys import shuffles
from plastax.rl import normalize, ppo
from plastax.rl import policy as policies
from plastax.rl.environment import Continuous, Discrete
from plastax.rl.rollout import Transition, successor_values

# --- advantages -------------------------------------------------------------------------------------------------------


def reference_advantages(reward, value, next_value, terminated, truncated, gamma, decay):
    """The textbook sum, one environment and one starting step at a time, with no recursion."""
    steps, envs = reward.shape
    out = np.zeros((steps, envs))
    for env in range(envs):
        for start in range(steps):
            weight = 1.0
            for t in range(start, steps):
                successor = 0.0 if terminated[t, env] else next_value[t, env]
                out[start, env] += weight * (reward[t, env] + gamma * successor - value[t, env])
                if terminated[t, env] or truncated[t, env]:
                    break
                weight *= gamma * decay
    return out


def transitions(seed: int = 0, steps: int = 23, envs: int = 8):
    rng = np.random.default_rng(seed)
    reward, value, next_value = rng.normal(size=(3, steps, envs))
    terminated = (rng.random((steps, envs)) < 0.2).astype(float)
    truncated = (rng.random((steps, envs)) < 0.2).astype(float)
    # The rollout ends in every way that it can.
    terminated[-1, :4], truncated[-1, :4] = [0, 1, 0, 1], [0, 0, 1, 1]
    return reward, value, next_value, terminated, truncated


@pytest.mark.parametrize(("gamma", "decay"), [(0.99, 0.95), (0.9, 1.0), (1.0, 0.5), (0.5, 0.0), (0.0, 0.9)])
def test_advantages_are_the_textbook_sum(gamma, decay):
    data = transitions()
    ours = ppo.advantages(*(jnp.asarray(x, jnp.float32) for x in data), gamma, decay)
    np.testing.assert_allclose(ours, reference_advantages(*data, gamma, decay), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("terminated", "truncated", "first", "last"),
    [
        # Two steps of reward 1 and value 0, successors worth 10, gamma 0.5, lambda 1; the flags are of the first step.
        (0, 0, 1 + 5 + 0.5 * (1 + 5), 1 + 5),
        (1, 0, 1.0, 1 + 5),
        (0, 1, 1 + 5, 1 + 5),
        (1, 1, 1.0, 1 + 5),
    ],
)
def test_advantages_at_the_end_of_an_episode_and_of_the_rollout(terminated, truncated, first, last):
    def column(first):
        return jnp.array([[first], [0.0]], jnp.float32)

    ones = jnp.ones((2, 1))
    ours = ppo.advantages(ones, 0 * ones, 10 * ones, column(terminated), column(truncated), 0.5, 1.0)
    np.testing.assert_allclose(ours[:, 0], [first, last], rtol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_values_of_successors_are_the_critics_wherever_they_count(share):
    """Three seeds at once, whose episodes are cut at different times."""
    rng = np.random.default_rng(2)
    seeds, steps, envs, size = 3, 23, 8, 4
    observation, final = rng.normal(size=(2, seeds, steps, envs, size)).astype(np.float32)
    terminated, truncated = (rng.random((2, seeds, steps, envs)) < share).astype(np.float32)
    ended = (terminated + truncated)[..., None] > 0
    final[:, :-1] = np.where(ended[:, :-1], final[:, :-1], observation[:, 1:])

    def critic(observation):
        return jnp.tanh(observation @ jnp.arange(1.0, size + 1))

    def of(observation, terminated, truncated, final):
        seen = Transition(observation, None, None, None, terminated, truncated, final, None)
        return successor_values(critic, critic(observation), seen)

    ours = jax.jit(jax.vmap(of))(observation, terminated, truncated, final)
    counts = terminated == 0
    np.testing.assert_allclose(ours[counts], np.tanh(final @ np.arange(1.0, size + 1))[counts], rtol=1e-5, atol=1e-6)
    assert np.isfinite(ours).all()


# --- normalisation ----------------------------------------------------------------------------------------------------


def rollouts(count: int = 7):
    rng = np.random.default_rng(1)
    return [rng.normal(3.0 * i, 1.0 + i, size=(20 + 5 * i, 3)) for i in range(count)]


@pytest.mark.parametrize("kind", ["global", "reset"])
def test_pooled_statistics_are_those_of_all_observations_together(kind):
    statistics = normalize.start((3,))
    for i, x in enumerate(data := rollouts()):
        statistics = normalize.update(statistics, jnp.asarray(x, jnp.float32), kind)
        pool = np.concatenate(data[: i + 1])
        np.testing.assert_allclose(statistics.mean, pool.mean(0), rtol=1e-5)
        np.testing.assert_allclose(statistics.variance, pool.var(0), rtol=1e-4)
        assert statistics.count == len(pool)
    x = jnp.asarray(data[0], jnp.float32)
    np.testing.assert_allclose(
        normalize.apply(statistics, x, kind), (data[0] - pool.mean(0)) / pool.std(0), rtol=1e-3, atol=1e-3
    )


def test_ema_is_the_mixture_with_exponential_weights():
    rate, statistics = 0.3, normalize.start((3,))
    data = rollouts()
    for x in data:
        statistics = normalize.update(statistics, jnp.asarray(x, jnp.float32), "ema", rate)
    # Each rollout's weight follows from the rule: its share of all observations, but at least the rate.
    weights, count = np.zeros(len(data)), 0
    for i, x in enumerate(data):
        count += len(x)
        now = max(len(x) / count, rate)
        weights *= 1 - now
        weights[i] = now
    assert weights[0] < 1
    np.testing.assert_allclose(weights.sum(), 1)
    mean = sum(w * x.mean(0) for w, x in zip(weights, data))
    square = sum(w * np.square(x).mean(0) for w, x in zip(weights, data))
    np.testing.assert_allclose(statistics.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(statistics.variance, square - mean**2, rtol=1e-4)


def test_the_first_rollout_counts_in_full():
    x = rollouts(1)[0]
    for kind in ("global", "ema", "reset"):
        statistics = normalize.update(normalize.start((3,)), jnp.asarray(x, jnp.float32), kind)
        np.testing.assert_allclose(statistics.mean, x.mean(0), rtol=1e-5)
        np.testing.assert_allclose(statistics.variance, x.var(0), rtol=1e-5)


def test_none_neither_learns_nor_changes():
    start, x = normalize.start((3,)), jnp.asarray(rollouts(1)[0], jnp.float32)
    assert normalize.update(start, x, "none") is start
    assert normalize.apply(start, x, "none") is x


def one_hot(first: int, count: int):
    """States that leave the others out: 10 there are, of which ``count`` from ``first`` on occur."""
    rng = np.random.default_rng(first)
    return jnp.asarray(np.eye(10)[rng.integers(first, first + count, 400)], jnp.float32)


def pixels(channel: int):
    """MinAtar's: 10 x 10 cells of 6 channels, of which a game uses its own."""
    game = np.random.default_rng(channel).integers(0, 2, (400, 10, 10)).astype(np.float32)
    return jnp.zeros((400, 10, 10, 6)).at[..., channel].set(game)


@pytest.mark.parametrize("kind", ["global", "ema", "reset"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (one_hot(0, 5), one_hot(5, 5)),
        (pixels(0), pixels(5)),
        (jnp.full((400, 3), 0.1), jnp.full((400, 3), 0.1 + 1e-6)),  # rounding of a constant
        (jnp.full((400, 3), 9.8), jnp.full((400, 3), 3.7)),  # another constant of physics
    ],
)
def test_what_moves_for_the_first_time_at_a_switch_is_bounded(kind, before, after):
    statistics = normalize.start(before.shape[1:])
    for _ in range(3):
        statistics = normalize.update(statistics, before, kind)
    if kind == "reset":
        # The same happens after the first rollout of a task that has not shown everything.
        statistics = normalize.update(normalize.start(before.shape[1:]), before, kind)
    seen = normalize.apply(statistics, after, kind)
    assert np.abs(seen).max() <= 10.0
    assert np.abs(normalize.apply(statistics, before, kind)).max() <= 10.0
    if before.ndim == 2 and np.abs(after - before).max() < 1e-5:
        assert np.abs(seen).max() < 0.1
    else:
        assert np.abs(normalize.apply(statistics, after, kind, clip=0.0)).max() > 1e3


def test_what_varies_is_not_clipped():
    x = jnp.asarray(rollouts(1)[0], jnp.float32)
    statistics = normalize.update(normalize.start((3,)), x, "global")
    np.testing.assert_allclose(normalize.apply(statistics, x, "global").std(0), 1.0, rtol=1e-5)


def test_the_start_normalises_nothing():
    x = jnp.asarray(rollouts(1)[0], jnp.float32)
    np.testing.assert_allclose(normalize.apply(normalize.start((3,)), x, "global"), x, rtol=1e-6)


# --- policies ---------------------------------------------------------------------------------------------------------

BOX = Continuous((-1.0, -0.5), (1.0, 0.5), 2)


def outputs(kind: str, batch: int = 5, seed: int = 0):
    rng = np.random.default_rng(seed)
    if kind == "categorical":
        return policies.make(Discrete(4)), {"policy": jnp.asarray(rng.normal(0, 1.5, (batch, 4)))}
    spread = {
        "policy": jnp.asarray(rng.normal(size=(batch, 2))),
        "log_std": jnp.asarray(rng.normal(-0.5, 0.5, (batch, 2))),
    }
    return policies.make(BOX), spread


@pytest.mark.usefixtures("x64")
def test_categorical_log_prob_and_entropy():
    policy, out = outputs("categorical")
    p = scipy.special.softmax(np.asarray(out["policy"]), axis=-1)
    for action in range(4):
        np.testing.assert_allclose(policy.log_prob(out, jnp.full(5, action)), np.log(p[:, action]), rtol=1e-10)
    np.testing.assert_allclose(policy.entropy(out), scipy.stats.entropy(p, axis=-1), rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_gaussian_log_prob_and_entropy():
    policy, out = outputs("gaussian")
    action = np.random.default_rng(1).normal(size=(5, 2))
    normal = scipy.stats.norm(np.asarray(out["policy"]), np.exp(out["log_std"]))
    np.testing.assert_allclose(policy.log_prob(out, action), normal.logpdf(action).sum(-1), rtol=1e-10)
    np.testing.assert_allclose(policy.entropy(out), normal.entropy().sum(-1), rtol=1e-10)


def test_categorical_samples_have_the_policys_frequencies():
    policy, out = outputs("categorical", batch=1)
    logits = out["policy"][0]
    out = {"policy": jnp.broadcast_to(logits, (20_000, 4))}
    actions = policy.sample(out, policy.noise(jax.random.key(0), (20_000,)))
    assert actions.dtype == jnp.int32
    counts = np.bincount(actions, minlength=4)
    p = scipy.special.softmax(np.asarray(logits, np.float64))
    assert scipy.stats.chisquare(counts, len(actions) * p).pvalue > 1e-3


def test_gaussian_samples_have_the_policys_distribution():
    policy, out = outputs("gaussian", batch=1)
    many = {name: jnp.broadcast_to(x, (20_000, 2)) for name, x in out.items()}
    actions = np.asarray(policy.sample(many, policy.noise(jax.random.key(0), (20_000,))))
    for i in range(2):
        normal = scipy.stats.norm(float(out["policy"][0, i]), float(jnp.exp(out["log_std"][0, i])))
        assert scipy.stats.kstest(actions[:, i], normal.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(actions.T)[0, 1]) < 4 / np.sqrt(len(actions))


def test_only_what_the_environment_gets_is_clipped():
    policy, _ = outputs("gaussian")
    np.testing.assert_array_equal(
        policy.to_environment(jnp.array([[3.0, -3.0], [0.25, 0.5]])), [[1, -0.5], [0.25, 0.5]]
    )
    categorical, _ = outputs("categorical")
    np.testing.assert_array_equal(categorical.to_environment(jnp.array([0, 3])), [0, 3])


# --- shuffles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 64, 512, 4096, 5000])
def test_shuffles_are_orders(size):
    orders = np.asarray(shuffles(jax.random.key(0), 3, size))
    assert orders.dtype == np.int32
    np.testing.assert_array_equal(np.sort(orders, axis=-1), np.tile(np.arange(size), (3, 1)))
    if size > 7:
        assert len(np.unique(orders, axis=0)) == 3


def test_shuffles_are_uniform():
    orders = np.asarray(shuffles(jax.random.key(1), 24_000, 4))
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_envs", 0),
        ("num_steps", -1),
        ("epochs", 0),
        ("minibatches", 0),
        ("minibatches", 5),
        ("minibatches", 1024),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("eps", 0.0),
        ("reward_scale", -1.0),
        ("b1", 1.5),
        ("b2", -0.1),
        ("gamma", 1.01),
        ("gamma", float("nan")),
        ("gae_lambda", 2.0),
        ("kronecker_decay", -1.0),
        ("kronecker_every", -1),
        ("max_grad_norm", -0.5),
        ("clip", -0.2),
        ("clip", float("nan")),
        ("value_clip", -1.0),
        ("value_weight", -1.0),
        ("entropy_weight", -0.01),
        ("normalize_observations", "batch"),
        ("observation_clip", -1.0),
        ("observation_clip", float("nan")),
        ("kronecker_kind", "true"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(setting, value):
    with pytest.raises(ConfigError, match=rf"ppo\.{setting}: '?{value}") as error:
        ppo.PPO(**{setting: value})
    assert "\n" not in str(error.value)


def test_minibatches_that_do_not_divide_name_the_whole():
    with pytest.raises(ConfigError, match=r"minibatches: 3 does not divide the rollout's 512 steps"):
        ppo.PPO(minibatches=3)


def test_defaults_are_allowed_and_add_up():
    config = ppo.PPO()
    assert config.steps_per_update == 512
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.gamma = 0.5


@pytest.mark.parametrize("limit", [0.0, 0.5])
def test_the_optimiser_clips_only_where_asked(limit):
    # Two steps with gradients of very different size: Adam alone forgets a constant factor, but not a ratio.
    optimizer = ppo.PPO(learning_rate=0.1, max_grad_norm=limit).optimizer()
    params = jnp.zeros(2)
    state = optimizer.init(params)
    first, state = optimizer.update(jnp.array([3.0, 4.0]), state, params)
    second, _ = optimizer.update(jnp.array([0.3, 0.4]), state, params)
    ratio = (0.5 if limit else 5.0) / 0.5
    mean, square = (0.9 * 0.1 * ratio + 0.1) / 0.19, (0.999 * 0.001 * ratio**2 + 0.001) / (1 - 0.999**2)
    np.testing.assert_allclose(second, -0.1 * mean / np.sqrt(square) * np.ones(2), rtol=1e-4)
    np.testing.assert_allclose(first, -0.1 * np.ones(2), rtol=1e-4)
