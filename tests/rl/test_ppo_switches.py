"""PPO at task switches: what starts again and what goes on, what a method and a probe see there, and the keys."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from plastax.curvature.kronecker import cotangents, fisher_factors
from plastax.keys import fold
from plastax.methods import METHODS
from plastax.models import ActorCritic
from plastax.program.parallel import over_seeds, seed_keys
from plastax.rl import objective, ppo
from plastax.rl import policy as policies
from plastax.rl.environment import Discrete, Environment, EnvironmentStream, Timestep
from plastax.types import Array, Probe, ProbeInput, Program
from tests.rl.runs import host, joined, run, same

# These tests compile much and compute little.
QUICK = {"xla_backend_optimization_level": 0}
LIMIT = 7


class Spied(NamedTuple):
    """A task that shows itself: every observation is its number and its draw."""

    number: Array
    draw: Array


def spy_stream() -> EnvironmentStream:
    """Reward 1, cut every 7 steps; the observation is the task."""

    def observation(task):
        return jnp.stack([task.number.astype(jnp.float32), task.draw])

    def reset(key, task):
        del key
        return observation(task), jnp.int32(0)

    def advance(noise, state, action, task):
        del noise, action
        done = state + 1 >= LIMIT
        seen = observation(task)
        step = Timestep(seen, jnp.float32(1), jnp.bool_(False), done, seen)
        return jnp.where(done, 0, state + 1), step

    environment = Environment(reset, lambda key, task: jnp.zeros(()), advance, (2,), Discrete(2))

    def task(key, index):
        return Spied(jnp.int32(index), jax.random.normal(jax.random.fold_in(key, index)))

    return EnvironmentStream(environment, task)


SPY_CONFIG = ppo.PPO(num_envs=2, num_steps=5, epochs=2, minibatches=2, learning_rate=1e-2, kronecker_every=1)
SPY_MODEL = ActorCritic((4,)).build((2,), 2, continuous=False)
SPY_UPDATES = 2


def spy_program(method: str = "backprop", **changes) -> Program:
    def measure(seen: ProbeInput) -> dict[str, Array]:
        weight = seen.factors.weight
        return {
            "task": seen.batch.observation,
            "params": ravel_pytree(seen.params)[0],
            "initial": ravel_pytree(seen.initial())[0],
            "previous": ravel_pytree(seen.previous)[0],
            "weight": weight,
            "key": jax.random.key_data(seen.key).astype(jnp.float32),
        }

    config = dataclasses.replace(SPY_CONFIG, **changes)
    chosen = METHODS[method]
    program = ppo.program(
        config,
        spy_stream(),
        SPY_MODEL,
        chosen.build(config.optimizer()),
        [Probe("spy", measure, {}, {}, needs_previous=True)],
        updates_per_task=SPY_UPDATES,
        needs_boundary=chosen.needs_boundary,
    )
    return over_seeds(program, 2)


@pytest.fixture(scope="module")
def spied():
    """Method -> its run of three tasks, recorded task by task."""
    lengths = (SPY_UPDATES,) * 3
    return {name: run(spy_program(name), (5, 6), lengths, QUICK) for name in ("backprop", "reset")}


def spy_keys(number: int, clock: int):
    """The program's own keys, by the rule in `keys`."""
    return jax.vmap(lambda key: fold(key, number, clock))(seed_keys((5, 6)))


def test_every_method_sees_the_same_tasks_and_every_seed_its_own(spied):
    stream, keys = spy_stream(), spy_keys(ppo.Purpose.TASKS, 0)
    seen = {name: [r.probe["spy/task"] for r in ran.records] for name, ran in spied.items()}
    draws = []
    for task in range(3):
        expected = np.asarray(jax.vmap(stream.task, (0, None))(keys, jnp.int32(task)).draw)
        draws += expected.tolist()
        for tasks in seen.values():
            assert tasks[task].shape == (2, 2, SPY_CONFIG.steps_per_update, 2)
            assert (tasks[task][..., 0] == task).all()  # at its start and at its end
            assert (tasks[task][..., 1] == expected[:, None, None]).all()
    assert len(set(draws)) == 6


def test_no_return_crosses_a_switch(spied):
    # A task has 10 steps: one episode of 7 ends in its second update, and the next would end in the third.
    for ran in spied.values():
        train = joined(ran.records)
        np.testing.assert_array_equal(train["episodes"], np.tile([0.0, SPY_CONFIG.num_envs], (2, 3)))
        np.testing.assert_array_equal(train["episode_return"], np.tile([np.nan, LIMIT], (2, 3)))


def test_running_factors_start_again(spied):
    steps = SPY_UPDATES * SPY_CONFIG.epochs * SPY_CONFIG.minibatches
    for ran in spied.values():
        for record in ran.records:
            np.testing.assert_array_equal(record.probe["spy/weight"][:, 0], 0.0)
            np.testing.assert_allclose(
                record.probe["spy/weight"][:, 1], 1 - SPY_CONFIG.kronecker_decay**steps, rtol=1e-5
            )


@pytest.mark.slow  # compiles PPO for each kind
@pytest.mark.parametrize("kind", ["sampled", pytest.param("exact", marks=pytest.mark.slow)])
def test_factors_of_a_kind_are_those_of_the_network(kind):
    """One gradient step on the whole rollout: its factors depend on the start's parameters and the task alone."""
    ran = run(spy_program(kronecker_kind=kind, epochs=1, minibatches=1), (5, 6), (1,), QUICK)
    network = objective.network(SPY_CONFIG, SPY_MODEL, policies.make(Discrete(2)))
    for k in range(2):
        params = SPY_MODEL.init(spy_keys(ppo.Purpose.INIT, 0)[k])
        seen = ran.records[0].probe["spy/task"][k, 0]
        outputs, pull, inputs = jax.vjp(
            lambda taps, params=params, seen=seen: SPY_MODEL.tapped(params, taps, seen)[::2],
            SPY_MODEL.taps(seen),
            has_aux=True,
        )
        pulled = cotangents(network.output_loss, kind, outputs, None, spy_keys(ppo.Purpose.FACTORS, 0)[k])
        expected = fisher_factors(inputs, lambda c, pull=pull: pull(c)[0], pulled)
        for name, pair in expected.items():
            for side, value in pair._asdict().items():
                got = getattr(ran.state.factors.total[name], side)[k] / ran.state.factors.weight[k]
                np.testing.assert_allclose(got, value, rtol=1e-4, atol=1e-6 * np.abs(value).max(), err_msg=name)


def fresh(clock: int):
    keys = jax.vmap(lambda key: jax.random.split(key)[1])(spy_keys(ppo.Purpose.SWITCH, clock))
    return jax.vmap(SPY_MODEL.init)(keys)


def flat(params):
    return np.asarray(jax.vmap(lambda p: ravel_pytree(p)[0])(params))


def test_the_first_probe_of_a_task_sees_the_network_that_starts_it(spied):
    first = flat(jax.vmap(SPY_MODEL.init)(spy_keys(ppo.Purpose.INIT, 0)))
    for ran in spied.values():
        np.testing.assert_allclose(ran.records[0].probe["spy/params"][:, 0], first, rtol=1e-5, atol=1e-8)
        np.testing.assert_array_equal(ran.records[2].probe["spy/params"][:, 1], flat(ran.state.params))
    for before, after in zip(spied["backprop"].records, spied["backprop"].records[1:]):
        np.testing.assert_array_equal(before.probe["spy/params"][:, 1], after.probe["spy/params"][:, 0])
    for task in (1, 2):
        # The update is the difference of the two networks: one rounding.
        started = spied["reset"].records[task].probe["spy/params"][:, 0]
        np.testing.assert_allclose(started, flat(fresh(task * SPY_UPDATES)), rtol=1e-6, atol=1e-6)
        assert np.abs(started - spied["reset"].records[task - 1].probe["spy/params"][:, 1]).max() > 0.1


def test_probes_see_where_the_run_and_the_task_began(spied):
    for ran in spied.values():
        first = ran.records[0].probe["spy/params"][:, :1]
        previous = first
        for record in ran.records:
            # Drawn again, in another compiled program: to rounding.
            np.testing.assert_allclose(record.probe["spy/initial"], first.repeat(2, 1), rtol=1e-5, atol=1e-8)
            np.testing.assert_array_equal(record.probe["spy/previous"], previous.repeat(2, 1))
            previous = record.probe["spy/params"][:, 1:]


@pytest.mark.parametrize("name", ["reset", pytest.param("backprop", marks=pytest.mark.slow)])
def test_begin_of_a_task(spied, name):
    begin = jax.jit(spy_program(name).begin, compiler_options=QUICK)
    state = jax.tree.map(jnp.asarray, spied[name].state)._replace(key=seed_keys((5, 6)))
    assert (state.actors.episode_return > 0).all()
    clock = 3 * SPY_UPDATES
    begun = begin(state, (), jnp.int32(clock))
    np.testing.assert_array_equal(begun.actors.state, 0)
    np.testing.assert_array_equal(begun.actors.episode_return, 0.0)
    np.testing.assert_array_equal(begun.actors.observation[..., 0], 3.0)
    np.testing.assert_array_equal(begun.factors.weight, 0.0)
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(begun.factors.total))
    if name == "backprop":
        assert same(host(begun.params), host(state.params))
        assert same(host(begun.opt_state), host(state.opt_state))
    else:
        np.testing.assert_allclose(flat(begun.params), flat(fresh(clock)), rtol=1e-6, atol=1e-6)
        assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(begun.opt_state))


def test_probe_keys_are_never_used_twice(spied):
    keys = np.concatenate([r.probe["spy/key"].reshape(-1, 2) for r in spied["backprop"].records])
    assert len(np.unique(keys, axis=0)) == len(keys)


@pytest.mark.parametrize("kind", ["reset", pytest.param("global", marks=pytest.mark.slow)])
def test_only_reset_forgets_its_statistics_at_a_switch(kind):
    ran = run(spy_program(normalize_observations=kind), (5, 6), (SPY_UPDATES,) * 2, QUICK)
    updates = SPY_UPDATES * (2 if kind == "global" else 1)
    np.testing.assert_array_equal(ran.state.statistics.count, updates * SPY_CONFIG.steps_per_update)
    np.testing.assert_allclose(ran.state.statistics.mean[:, 0], 0.5 if kind == "global" else 1.0, rtol=1e-6)


def test_no_key_is_used_twice():
    """JAX's own checker, on one network's compiled program, with a method and a probe that draw.

    The checker looks into scans and branches. It lets `jax.random.fold_in` be called on one key many times, as it must,
    so it cannot see two folds of the same number: `test_probe_keys_are_never_used_twice` is for that.
    """

    def measure(seen: ProbeInput) -> dict[str, Array]:
        return {"noise": jax.random.normal(seen.key)}

    program = ppo.program(
        SPY_CONFIG,
        spy_stream(),
        SPY_MODEL,
        METHODS["reset"].build(SPY_CONFIG.optimizer()),
        [Probe("noise", measure, {}, {})],
        updates_per_task=SPY_UPDATES,
        needs_boundary=True,
    )
    with jax.debug_key_reuse(True):
        with pytest.raises(jax.errors.KeyReuseError):
            jax.jit(lambda key: jax.random.normal(key) + jax.random.uniform(key))(jax.random.key(0))
        state = jax.jit(program.init, compiler_options=QUICK)(jax.random.key(0), ())
        state = jax.jit(program.begin, compiler_options=QUICK)(state, (), jnp.int32(0))
        jax.jit(program.measure, compiler_options=QUICK)(program.view(state), (), jnp.int32(0))
        jax.jit(program.segment, static_argnums=3, compiler_options=QUICK)(state, (), jnp.int32(0), 1)
