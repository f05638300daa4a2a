"""Environments against gymnax's own step, and the toys against their closed forms."""

from __future__ import annotations

import functools

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastax.errors import ConfigError
from plastax.rl.environment import SPACES, Continuous, Discrete, GymnaxTask, Timestep, from_gymnax, make
from tests.rl.toy_environments import TOYS, Toy, action_reward, matching_reward, truncation

STEPS, ENVS = 60, 3


def task_of(params, **changes):
    return GymnaxTask(jnp.int32(0), params.replace(**{k: jnp.int32(v) for k, v in changes.items()}), ())


def trajectories(env_id: str, limit: int | None, predraw: bool) -> tuple[Timestep, Timestep]:
    """One rollout of gymnax's step and of ours, with the same keys and actions."""
    env, params = make(env_id)
    task = task_of(params, **({} if limit is None else {"max_steps_in_episode": limit}))
    environment = from_gymnax(env, task, predraw=predraw)

    def theirs(key, state, action, task):
        observation, state, reward, terminated, truncated, info = env.step(key, state, action, task.params)
        return state, Timestep(observation, reward, terminated, truncated, info["final_observation"])

    # The comparison allows rounding, so that the compiler may be spared its work.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(key, task):
        reset_key, action_key, step_key = jax.random.split(key, 3)
        keys = jax.random.split(step_key, STEPS * ENVS).reshape(STEPS, ENVS)
        noise = environment.noise(step_key, task, STEPS, ENVS)
        actions = jax.vmap(jax.vmap(env.action_space(params).sample))(jax.random.split(action_key, (STEPS, ENVS)))

        def body(states, xs):
            key, noise, action = xs
            expected, their_step = jax.vmap(theirs, (0, 0, 0, None))(key, states[0], action, task)
            state, our_step = jax.vmap(environment.advance, (0, 0, 0, None))(noise, states[1], action, task)
            return (expected, state), (their_step, our_step)

        _, state = jax.vmap(environment.reset, (0, None))(jax.random.split(reset_key, ENVS), task)
        return jax.lax.scan(body, (state, state), (keys, noise, actions))[1]

    return jax.tree.map(np.asarray, run(jax.random.key(0), task))


@pytest.mark.parametrize(
    ("env_id", "limit", "predraw", "ends"),
    [
        ("CartPole-v1", 15, True, {(True, False), (False, True)}),
        ("Pendulum-v1", 25, False, {(False, True)}),
        ("UmbrellaChain-bsuite", None, True, {(True, False)}),  # random rewards and observations, integer rewards
        ("DeepSea-bsuite", None, False, {(True, True)}),  # both flags at once, and a step of its own
        pytest.param("Acrobot-v1", 25, True, {(False, True)}, marks=pytest.mark.slow),
        pytest.param("MountainCar-v0", 25, True, {(False, True)}, marks=pytest.mark.slow),
        pytest.param("Breakout-MinAtar", 6, False, {(False, True), (True, True)}, marks=pytest.mark.slow),
    ],
)
def test_transitions_are_those_of_gymnax(env_id, limit, predraw, ends):
    """``ends``: the pairs (terminated, truncated) with which episodes end."""
    theirs, mine = trajectories(env_id, limit, predraw)
    assert mine.observation.dtype == mine.final_observation.dtype == mine.reward.dtype == np.float32
    assert mine.terminated.dtype == mine.truncated.dtype == np.bool_
    for name in Timestep._fields:
        expected = getattr(theirs, name).astype(np.float32)
        np.testing.assert_allclose(getattr(mine, name).astype(np.float32), expected, 1e-5, 1e-5, err_msg=name)
    done = mine.terminated | mine.truncated
    assert set(zip(mine.terminated[done].tolist(), mine.truncated[done].tolist())) == ends
    changed = np.any((mine.observation != mine.final_observation).reshape(*done.shape, -1), -1)
    assert not np.any(changed & ~done)
    assert np.any(changed & done)


def test_step_is_draw_and_advance_however_it_is_drawn():
    env, params = make("MountainCar-v0")
    task = task_of(params, max_steps_in_episode=1)
    ahead, late = (from_gymnax(env, task, predraw=predraw) for predraw in (True, False))
    _, state = ahead.reset(jax.random.key(1), task)
    key, action = jax.random.key(2), jnp.int32(2)
    expected = ahead.advance(ahead.draw(key, task), state, action, task)
    assert expected[1].truncated
    jax.tree.map(np.testing.assert_array_equal, ahead.step(key, state, action, task), expected)
    jax.tree.map(np.testing.assert_array_equal, late.step(key, state, action, task), expected)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "Freeway-MinAtar", "FourRooms-misc"])
def test_state_keeps_its_types(env_id):
    """A weakly typed leaf would make the first and the second segment two compilations."""
    env, params = make(env_id)
    task = task_of(params)
    environment = from_gymnax(env, task)
    observation, state = jax.eval_shape(environment.reset, jax.random.key(0), task)
    action = jnp.zeros(environment.action_space.size) if isinstance(environment.action_space, Continuous) else 0
    after, timestep = jax.eval_shape(environment.step, jax.random.key(0), state, action, task)
    for before, later in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (before.shape, before.dtype, before.weak_type) == (later.shape, later.dtype, False)
    assert timestep.observation.shape == observation.shape == environment.observation_shape
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((observation, timestep)))


def test_spaces_are_known_before_an_environment_is_made():
    assert {*SPACES} == {*gymnax.registered_envs} - {"MNISTBandit-bsuite"}
    for env_id, spaces in SPACES.items():
        env, params = make(env_id)
        environment = from_gymnax(env, task_of(params))
        assert (environment.observation_shape, environment.action_space) == spaces, env_id


def test_refusals():
    with pytest.raises(ConfigError, match=r"stream.env: .CartPole-v9. .* CartPole-v1"):
        make("CartPole-v9")
    with pytest.raises(ConfigError, match=r"stream.env: .MNISTBandit-bsuite. downloads"):
        make("MNISTBandit-bsuite")

    env, params = make("Pendulum-v1")
    env.action_space = lambda params: gymnax.environments.spaces.Box(0.0, 1.0, (2, 2))
    with pytest.raises(ConfigError, match="one-dimensional boxes are allowed"):
        from_gymnax(env, task_of(params))


@pytest.mark.slow
@pytest.mark.parametrize("env_id", sorted(set(gymnax.registered_envs) - {"MNISTBandit-bsuite"}))
def test_every_environment_of_gymnax_runs_in_a_scan(env_id):
    env, params = make(env_id)
    task = task_of(params)
    environment = from_gymnax(env, task, predraw=False)
    key = jax.random.key(0)
    action = env.action_space(params).sample(key)

    @jax.jit
    def run(task):
        _, state = environment.reset(key, task)
        body = lambda state, key: environment.step(key, state, action, task)  # noqa: E731
        return jax.lax.scan(body, state, jax.random.split(key, 5))[1]

    with jax.numpy_rank_promotion("allow"):  # for Swimmer's own code
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(run(task)))


def play(toy: Toy, best: bool) -> tuple[np.ndarray, Timestep]:
    """The observations acted on, ``[4, 12, 1]``, and the outcomes, with the best or with random actions."""
    environment = toy.stream.environment
    space = environment.action_space
    task = toy.stream.task(jax.random.key(0), 0)

    def act(key, observation):
        if best and toy.best is not None:
            return toy.best[jnp.argmin(jnp.abs(toy.observations[:, 0] - observation[0]))]
        if isinstance(space, Discrete):
            return jax.random.randint(key, (), 0, space.n)
        return jax.random.uniform(key, (space.size,), minval=-1.0)

    @jax.jit
    @jax.vmap
    def run(key):
        def body(carry, key):
            observation, state = carry
            state, timestep = environment.step(key, state, act(key, observation), task)
            return (timestep.observation, state), (observation, timestep)

        return jax.lax.scan(body, environment.reset(key, task), jax.random.split(key, 12))[1]

    return jax.tree.map(np.asarray, run(jax.random.split(jax.random.key(3), 4)))


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("make_toy", TOYS)
def test_toys_have_their_closed_form_values(make_toy, continuous):
    """The values are those of the best policy: they solve its Bellman equation on every transition."""
    toy = make_toy(continuous)
    observation, timestep = play(toy, best=True)
    known = dict(zip(toy.observations[:, 0].tolist(), toy.values(0.9).tolist()))
    assert set(observation.ravel().tolist()) == set(known)
    value = np.vectorize(known.get)
    following = np.where(timestep.terminated, 0.0, value(timestep.final_observation[..., 0]))
    np.testing.assert_allclose(timestep.reward + 0.9 * following, value(observation[..., 0]), rtol=1e-6)


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("make_toy", [action_reward, matching_reward])
def test_wrong_actions_cost(make_toy, continuous):
    assert play(make_toy(continuous), best=False)[1].reward.mean() < 0.9


def test_truncation_never_terminates():
    timestep = play(truncation(limit=5), best=False)[1]
    assert not timestep.terminated.any()
    np.testing.assert_array_equal(np.flatnonzero(timestep.truncated[0]), [4, 9])
