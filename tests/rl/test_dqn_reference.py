"""A hundred gradient steps of DQN against NumPy in double precision, and closed-form values of toy environments."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastax.methods import METHODS
from plastax.models import ActorCritic
from plastax.program.parallel import over_seeds, seed_keys
from plastax.rl import STREAMS, dqn
from plastax.rl.environment import Discrete, Environment, EnvironmentStream, Timestep
from plastax.types import Array, Tree
from tests import programs
from tests.rl.toy_environments import TOYS, all_toys

# --- NumPy ------------------------------------------------------------------------------------------------------------


def numbered_stream() -> EnvironmentStream:
    """No observation comes twice, so that a batch tells which steps it is of; episodes end in both ways."""

    def seen(time: Array) -> Array:
        return jnp.sin(1.0 + time * jnp.array([1.0, 0.31, 0.017]))

    def advance(noise: Tree, time: Array, action: Array, task: Tree) -> tuple[Array, Timestep]:
        reward = jnp.cos(1.7 * time) + 0.5 * action
        done = time % 11 == 10, time % 7 == 6
        final = seen(time + 1.0 + 0.5 * (done[0] | done[1]))
        after = time + 1.0
        return after, Timestep(jnp.where(done[0] | done[1], seen(after), final), reward, *done, final)

    def reset(key: Array, task: Tree) -> tuple[Array, Array]:
        return seen(jnp.float32(0)), jnp.float32(0)

    environment = Environment(reset, lambda key, task: jnp.zeros(()), advance, (3,), Discrete(2))
    return EnvironmentStream(environment, lambda key, index: jnp.int32(index))


class Seen(NamedTuple):
    """State of an optimiser that keeps the batch of its last step."""

    inner: Tree
    batch: Tree


def spying(inner: optax.GradientTransformation, like: Tree) -> optax.GradientTransformationExtraArgs:
    def init(params: Tree) -> Seen:
        return Seen(inner.init(params), jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like))

    def update(updates: Tree, state: Seen, params: Tree, *, batch: Tree, **_: object) -> tuple[Tree, Seen]:
        updates, kept = inner.update(updates, state.inner, params)
        return updates, Seen(kept, batch)

    return optax.GradientTransformationExtraArgs(init, update)


class Reference:
    """Double Q-learning of a network with one hidden layer of tanh units, in double precision."""

    def __init__(self, config: dqn.DQN, params: Tree) -> None:
        self.config, self.steps = config, 0
        self.params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        self.target = self.params
        self.moments = [jax.tree.map(np.zeros_like, self.params) for _ in range(2)]

    def values(self, params: Tree, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        hidden = np.tanh(x @ params["dense_0"]["kernel"] + params["dense_0"]["bias"])
        return hidden @ params["output"]["kernel"] + params["output"]["bias"], hidden

    def wanted(self, kept: Tree, observation: np.ndarray) -> float:
        """The n-step target of one example, found by its observation among the steps of the one environment."""
        config, total, discount = self.config, 0.0, 1.0
        (start,) = np.flatnonzero((kept.observation == observation).all(-1))
        for row in range(start, start + config.n_step):
            total += discount * config.reward_scale * kept.reward[row].astype(np.float64)
            discount *= config.gamma
            if kept.terminated[row] or kept.truncated[row]:
                break
        if kept.terminated[row]:
            return total
        successor = kept.successor[[row]].astype(np.float64)
        values = self.values(self.target, successor)[0][0]
        best = (self.values(self.params, successor)[0][0] if config.double else values).argmax()
        return total + discount * values[best]

    def step(self, kept: Tree, batch: dqn.ValueBatch) -> np.ndarray:
        config, x, size = self.config, batch.observation.astype(np.float64), len(batch.action)
        target = np.array([self.wanted(kept, o) for o in batch.observation])
        values, hidden = self.values(self.params, x)
        error = values[np.arange(size), batch.action] - target
        slope = np.clip(error, -config.huber, config.huber) if config.huber else error
        out = np.zeros_like(values)
        out[np.arange(size), batch.action] = slope / size
        inside = (out @ self.params["output"]["kernel"].T) * (1 - hidden**2)
        grads = {
            "dense_0": {"kernel": x.T @ inside, "bias": inside.sum(0)},
            "output": {"kernel": hidden.T @ out, "bias": out.sum(0)},
        }
        self.steps += 1
        t, (b1, b2) = self.steps, (config.b1, config.b2)
        self.moments[0] = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, self.moments[0], grads)
        self.moments[1] = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, self.moments[1], grads)
        self.params = jax.tree.map(
            lambda p, m, v: p - config.learning_rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + config.eps),
            self.params, *self.moments,
        )  # fmt: skip
        if t % config.target_every == 0:
            rate = config.target_rate
            self.target = jax.tree.map(lambda old, new: (1 - rate) * old + rate * new, self.target, self.params)
        return target


@pytest.mark.parametrize(
    "changes",
    [
        {"n_step": 3, "huber": 0.5, "target_every": 7, "target_rate": 0.3, "reward_scale": 0.5},
        pytest.param({"n_step": 1, "huber": 0.0, "target_every": 10, "double": False}, marks=pytest.mark.slow),
    ],
    ids=["n-step, double, Huber, soft target", "plain"],
)
def test_a_hundred_gradient_steps_are_those_of_numpy(changes):
    config = dqn.DQN(
        num_envs=1, num_steps=2, train_every=2, replay_ratio=0.5, batch_size=8, capacity=256, warmup=8, gamma=0.9,
        epsilon_steps=100, epsilon=0.3, learning_rate=3e-3, kronecker_every=0, **changes,
    )  # fmt: skip
    stream, model = numbered_stream(), ActorCritic((8,), activation="tanh").build((3,), 2, continuous=None)
    method = spying(config.optimizer(), dqn.batch_like(config, stream.environment))
    program = dqn.program(config, stream, model, method, updates_per_task=1000)
    state = jax.jit(program.begin)(jax.jit(program.init)(jax.random.key(0), ()), (), jnp.int32(0))
    reference = Reference(config, state.params)
    segment, learned, clock = jax.jit(program.segment, static_argnums=3), 0, 0
    while learned < 100:
        state, record = segment(state, (), jnp.int32(clock), 1)
        clock += 1
        if np.isnan(record["td_loss"][0]):  # not yet warm
            assert clock <= config.idle
            continue
        learned += 1
        kept, batch = jax.tree.map(np.asarray, (state.memory.replay.experience, state.opt_state.batch))
        kept = jax.tree.map(lambda x: x[0], kept)  # of the one environment
        np.testing.assert_allclose(batch.target, reference.step(kept, batch), atol=1e-5)
        for mine, theirs in ((state.params, reference.params), (state.memory.target, reference.target)):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), mine, theirs)
    assert {bool(x) for x in kept.terminated[:200]} == {bool(x) for x in kept.truncated[:200]} == {True, False}


# --- closed forms -----------------------------------------------------------------------------------------------------

DISCOUNT, SEEDS, UPDATES = 0.8, (0, 1), 60
TOY_CONFIG = dqn.DQN(
    num_envs=8, num_steps=16, train_every=2, replay_ratio=0.25, batch_size=64, capacity=1_024, warmup=64, n_step=1,
    gamma=DISCOUNT, learning_rate=3e-3, target_every=20, epsilon=0.2, epsilon_steps=1_000, buffer_at_switch="clear",
    kronecker_every=0, huber=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def learner():
    model = ActorCritic((16,), activation="tanh").build((1,), 2, continuous=None)
    method = METHODS["backprop"].build(TOY_CONFIG.optimizer())
    program = dqn.program(TOY_CONFIG, all_toys(False), model, method, updates_per_task=UPDATES)
    return model, programs.jitted(over_seeds(program, len(SEEDS)), {"xla_backend_optimization_level": 0})


@pytest.mark.slow  # compiles DQN once more
@pytest.mark.parametrize("number", range(len(TOYS)), ids=[toy.__name__ for toy in TOYS])
def test_values_and_actions_are_those_in_closed_form(learner, number):
    """The best action's value within 2 % of the true one for every seed, and it is the best one."""
    model, jitted = learner
    toy = TOYS[number](False)
    state, _ = jitted.segment(jitted.init(seed_keys(SEEDS), ()), (), number * UPDATES, UPDATES)
    values = np.asarray(jax.vmap(lambda params: model.apply(params, toy.observations)[0])(state.params))
    expected = np.tile(np.asarray(toy.values(DISCOUNT)), (len(SEEDS), 1))
    np.testing.assert_allclose(values.max(-1), expected, rtol=0.02)
    if toy.best is not None:
        np.testing.assert_array_equal(values.argmax(-1), np.tile(toy.best, (len(SEEDS), 1)))


@pytest.mark.slow
def test_cartpole_is_solved():
    """Within 131,072 steps, 14 of 16 seeds have 100 episodes in a row of at least 475 on average.

    That is Gymnasium's definition; 2 % of the actions stay random.
    """
    config, seeds = dqn.DQN(reward_scale=0.05, kronecker_every=0), 16
    updates = 131_072 // config.steps_per_update
    stream = STREAMS["cartpole_physics"].build()
    model = ActorCritic().build((4,), 2, continuous=None)
    method = METHODS["backprop"].build(config.optimizer())
    jitted = programs.jitted(over_seeds(dqn.program(config, stream, model, method, updates_per_task=updates), seeds))
    _, record = jitted.segment(jitted.init(seed_keys(range(seeds)), ()), (), 0, updates)
    solved = [solves(*pair) for pair in zip(record.train["episodes"], record.train["episode_return_sum"])]
    assert sum(solved) >= 14, solved


def solves(episodes: np.ndarray, returns: np.ndarray) -> bool:
    """Whether some updates in a row have 100 episodes or more, with a mean return of at least 475."""
    episodes, returns = (np.concatenate([[0], np.cumsum(x)]) for x in (episodes, returns))
    return any(
        (episodes[j] - episodes[i] >= 100) and (returns[j] - returns[i] >= 475 * (episodes[j] - episodes[i]))
        for i in range(len(episodes)) for j in range(i + 1, len(episodes))
    )  # fmt: skip
