"""PPO learns: closed-form values on toy environments, and known returns on classic control (slow)."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from plastax.methods import METHODS
from plastax.models import ActorCritic
from plastax.program.parallel import over_seeds, seed_keys
from plastax.rl import ppo
from plastax.rl.classic import Chain
from tests import programs
from tests.rl.toy_environments import TOYS, all_toys

DISCOUNT = 0.8
SEEDS = (0, 1)
UPDATES = 250
CONFIG = ppo.PPO(
    num_envs=16,
    num_steps=16,
    epochs=4,
    minibatches=2,
    learning_rate=2e-3,
    gamma=DISCOUNT,
    entropy_weight=0.0,
    kronecker_every=0,
)


@pytest.fixture(scope="module", params=[False, True], ids=["discrete", "continuous"])
def learner(request):
    continuous = request.param
    stream = all_toys(continuous)
    network = ActorCritic((16,), activation="tanh", initial_log_std=-1.0)
    model = network.build((1,), 1 if continuous else 2, continuous=continuous)
    method = METHODS["backprop"].build(CONFIG.optimizer())
    program = over_seeds(ppo.program(CONFIG, stream, model, method, updates_per_task=UPDATES), len(SEEDS))
    options = {"xla_backend_optimization_level": 0}  # compiles in half the time
    return continuous, model, programs.jitted(program, options)


@pytest.mark.parametrize("number", range(len(TOYS)), ids=[toy.__name__ for toy in TOYS])
def test_values_and_actions_are_those_in_closed_form(learner, number):
    """Critic within 2 % of the value for every seed; best action most likely, or within 0.03 of it."""
    continuous, model, jitted = learner
    toy = TOYS[number](continuous)
    # A fresh network, and the clock at the start of the toy's own task.
    state, _ = jitted.segment(jitted.init(seed_keys(SEEDS), ()), (), number * UPDATES, UPDATES)
    outputs = jax.vmap(lambda params: model.apply(params, toy.observations)[0])(state.params)
    values = np.asarray(toy.values(DISCOUNT))
    np.testing.assert_allclose(outputs["value"], np.tile(values, (len(SEEDS), 1)), rtol=0.02)
    if toy.best is None:
        return
    for policy in np.asarray(outputs["policy"]):
        if continuous:
            np.testing.assert_allclose(policy, toy.best, atol=0.03)
        else:
            np.testing.assert_array_equal(policy.argmax(-1), toy.best)


# --- classic control --------------------------------------------------------------------------------------------------


def final_returns(env: str, config: ppo.PPO, model: ActorCritic, updates: int, last: int, seeds: int = 4) -> np.ndarray:
    """Mean return of the episodes that ended in the ``last`` updates, of each seed; actions sampled."""
    stream = Chain(env, sigma=0.0).build()
    size, continuous = ppo.action_size(stream.environment)
    network = model.build(stream.environment.observation_shape, size, continuous=continuous)
    method = METHODS["backprop"].build(config.optimizer())
    program = over_seeds(ppo.program(config, stream, network, method, updates_per_task=updates), seeds)
    jitted = programs.jitted(program)
    _, record = jitted.segment(jitted.init(seed_keys(range(seeds)), ()), (), 0, updates)
    episodes = np.asarray(record.train["episodes"])[:, -last:]
    returns = np.nan_to_num(np.asarray(record.train["episode_return"])[:, -last:])
    return (returns * episodes).sum(1) / episodes.sum(1)


@pytest.mark.slow
def test_cartpole_is_solved():
    """Gymnasium's threshold for CartPole-v1 is 475 of at most 500.

    Under a constant step size about one seed in nine is in a slump at the end, which one depends on rounding: with
    sixteen seeds that would decide.
    """
    config = ppo.PPO(learning_rate=1e-3)
    model = ActorCritic((64, 64), activation="tanh")
    returns = final_returns("CartPole-v1", config, model, updates=600, last=100, seeds=64)
    assert returns.mean() >= 475, returns


@pytest.mark.slow
def test_acrobot_is_solved():
    """Gymnasium's threshold for Acrobot-v1 is -100."""
    config = ppo.PPO(num_envs=8, learning_rate=1e-3)
    returns = final_returns("Acrobot-v1", config, ActorCritic((64, 64), activation="tanh"), updates=300, last=50)
    assert returns.mean() >= -100, returns


@pytest.mark.slow
def test_pendulum_is_learned():
    """Random actions return about -1200 and good agents -150; sampled actions are a little below the mean action's."""
    config = ppo.PPO(
        num_envs=16, num_steps=200, epochs=10, minibatches=32, learning_rate=1e-3, max_grad_norm=0.5, gamma=0.95,
        entropy_weight=0.0, reward_scale=0.1,
    )  # fmt: skip
    returns = final_returns("Pendulum-v1", config, ActorCritic((64, 64), activation="tanh"), updates=80, last=20)
    assert returns.mean() >= -250, returns
