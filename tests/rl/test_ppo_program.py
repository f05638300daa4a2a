"""PPO as a program: what may change its numbers and what may not, task switches, records, keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from plastax.curvature.kronecker import cotangents, fisher_factors
from plastax.keys import fold
from plastax.methods import METHODS
from plastax.models import ActorCritic, ConvActorCritic
from plastax.parallel import over_seeds, seed_keys
from plastax.probes import FeatureProbe, Hessian, monitor
from plastax.rl import policy as policies
from plastax.rl import ppo
from plastax.rl.classic import Chain
from plastax.rl.environment import Discrete, Environment, Stream, Timestep
from plastax.rl.minatar import MinAtar
from plastax.types import Array, ConfigError, Probe, ProbeInput, Program, Record, Tree

SEEDS, UPDATES = (0, 1, 2), 4  # of a task
CONFIG = ppo.PPO(num_envs=2, num_steps=32, epochs=2, minibatches=2, learning_rate=1e-3, kronecker_every=2)
MODEL = ActorCritic((8, 8)).build((4,), 2, continuous=False)


# For what need not be the program that users run: half the compile time.
QUICK = {"xla_backend_optimization_level": 0}


class Run(NamedTuple):
    state: ppo.State
    records: list[Record]
    segment: Callable[..., tuple[ppo.State, Record]]
    """The jitted function that it came from."""
    compilations: int
    """Compilations that its segments took, those of one length together."""


def host(tree: Tree) -> Tree:
    """NumPy arrays, of keys their data."""

    def leaf(x):
        return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)

    return jax.tree.map(leaf, tree)


def same(a: Tree, b: Tree) -> bool:
    a, b = (jax.tree.leaves(x) for x in (a, b))
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True))


def distance(a: Tree, b: Tree) -> float:
    return max(float(np.max(np.abs(x - y))) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def seed(tree: Tree, k: int) -> Tree:
    return jax.tree.map(lambda x: x[k : k + 1], tree)


def joined(records: list[Record]) -> Tree:
    return {name: np.concatenate([r.train[name] for r in records], axis=1) for name in records[0].train}


def run(program: Program, seeds=SEEDS, lengths=(UPDATES, UPDATES), options=None) -> Run:
    segment = jax.jit(program.segment, static_argnums=3, compiler_options=options)
    init = jax.jit(program.init, compiler_options=options)
    state, clock, records = init(seed_keys(seeds), program.data), 0, []
    for length in lengths:
        state, record = segment(state, program.data, jnp.int32(clock), length)
        clock += length
        records.append(host(record))
    return Run(host(state), records, segment, segment._cache_size())


@pytest.fixture(scope="module")
def cartpole():
    """Makes a program of the tiny network on CartPole with offsets, and many networks of it."""
    stream = Chain("CartPole-v1").build()
    probes = (FeatureProbe().build(MODEL), Hessian(order=8, probes=1, examples=64).build(MODEL))

    def make(*, seeds: int = len(SEEDS), chunk: int = 0, probed: bool = False, monitored: bool = False, **changes):
        config = dataclasses.replace(CONFIG, **changes)
        method = METHODS["backprop"].build(config.optimizer())
        program = ppo.program(
            config,
            stream,
            MODEL,
            method,
            probes if probed else (),
            updates_per_task=UPDATES,
            monitor=monitor if monitored else None,
        )
        return over_seeds(program, seeds, chunk)

    return make


@pytest.fixture(scope="module")
def bare(cartpole) -> Run:
    return run(cartpole())


@pytest.fixture(scope="module")
def probed(cartpole) -> Run:
    return run(cartpole(probed=True, monitored=True))


# --- what must not change the numbers ---------------------------------------------------------------------------------


def test_probes_and_monitor_change_no_bit(bare, probed):
    assert same(bare.state, probed.state)
    train = joined(probed.records)
    assert same(joined(bare.records), {name: train[name] for name in bare.records[0].train})


def test_scan_length_one_changes_no_bit(cartpole, bare):
    short = run(cartpole(), lengths=(1,) * (2 * UPDATES))
    assert same(bare.state, short.state)
    assert same(joined(bare.records), joined(short.records))


@pytest.mark.slow
def test_scan_length_two_changes_no_bit_and_the_probes_see_the_same(cartpole, probed):
    short = run(cartpole(probed=True, monitored=True), lengths=(2,) * UPDATES)
    assert same(probed.state, short.state)
    assert same(joined(probed.records), joined(short.records))
    for task in range(2):
        whole, halves = probed.records[task].probe, short.records[2 * task : 2 * task + 2]
        for name, value in whole.items():
            np.testing.assert_array_equal(halves[0].probe[name][:, 0], value[:, 0])
            np.testing.assert_array_equal(halves[1].probe[name][:, 1], value[:, 1])
            assert np.isnan(halves[0].probe[name][:, 1]).all()
            assert np.isnan(halves[1].probe[name][:, 0]).all()


def assert_only_factors_differ(a: Run, b: Run) -> None:
    nothing = a.state.factors
    assert same(a.state._replace(factors=nothing), b.state._replace(factors=nothing))
    assert same(joined(a.records), joined(b.records))


def test_kronecker_factors_change_no_bit(cartpole, bare):
    """What follows from the gradient is compiled the same, whether factors are taken of the pass or not."""
    without = run(cartpole(kronecker_every=0))
    assert_only_factors_differ(bare, without)
    assert without.state.factors.total == {}
    assert all((x != 0).any() for x in jax.tree.leaves(bare.state.factors.total))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sampled", "exact"])
def test_other_kinds_of_factors_change_no_bit_either(cartpole, bare, kind):
    other = run(cartpole(kronecker_kind=kind))
    assert_only_factors_differ(bare, other)
    for name, pair in bare.state.factors.total.items():
        np.testing.assert_allclose(other.state.factors.total[name].a, pair.a, rtol=1e-6)
        assert np.abs(other.state.factors.total[name].g - pair.g).max() > 1e-3 * np.abs(pair.g).max()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["layer_norm", "conv"])
def test_kronecker_factors_change_no_bit_of_other_networks(which):
    if which == "conv":
        stream = MinAtar(games=("Breakout",)).build()
        config: ActorCritic = ConvActorCritic((8,), channels=(4,))
    else:
        stream, config = Chain("CartPole-v1").build(), ActorCritic((8, 8), "tanh", layer_norm=True)
    size, continuous = ppo.action_size(stream.environment)
    model = config.build(stream.environment.observation_shape, size, continuous=continuous)

    def train(kind: str, every: int) -> Run:
        agent = dataclasses.replace(CONFIG, kronecker_every=every, kronecker_kind=kind)
        method = METHODS["backprop"].build(agent.optimizer())
        return run(over_seeds(ppo.program(agent, stream, model, method, updates_per_task=UPDATES), len(SEEDS)))

    without = train("empirical", 0)
    for kind in ("empirical", "exact"):
        taken = train(kind, 2)
        assert_only_factors_differ(taken, without)
        assert set(taken.state.factors.total) == set(model.layers)


@pytest.mark.slow  # compiles PPO twice more
def test_a_seed_alone_equals_that_seed_among_others(cartpole, bare):
    """Bit for bit where as many run side by side (`seed_chunk`), whoever they are; else up to rounding.

    XLA multiplies one network's matrices with other instructions than several networks' at once: 1e-8 after 8 updates
    here, with 64 units and 128 steps 4e-7 after one update, and as different as other seeds after some ten.
    """
    alone = run(cartpole(seeds=1), seeds=SEEDS[1:2])
    assert distance(seed(bare.state.params, 1), alone.state.params) < 1e-6
    assert same(seed(bare.state.key, 1), alone.state.key)
    # Side by side in chunks of one it is the same program, bit for bit.
    chunked = run(cartpole(chunk=1))
    assert same(seed(chunked.state, 1), alone.state)
    assert same(seed(joined(chunked.records), 1), joined(alone.records))


def test_another_order_of_seeds_changes_no_bit(cartpole, bare):
    state = jax.jit(cartpole().init)(seed_keys(SEEDS[::-1]), ())
    for task in range(2):
        state, _ = bare.segment(state, (), jnp.int32(task * UPDATES), UPDATES)
    assert same(bare.state, jax.tree.map(lambda x: x[::-1], host(state)))


def test_a_seed_that_breaks_down_is_frozen_and_changes_no_bit_of_the_others(cartpole, bare):
    state = jax.jit(cartpole().init)(seed_keys(SEEDS), ())
    params = jax.tree.map(lambda x: x.at[1].set(jnp.nan), state.params)
    state = state._replace(params=params)
    before, records = host(state), []
    for task in range(2):
        state, record = bare.segment(state, (), jnp.int32(task * UPDATES), UPDATES)
        records.append(host(record))
    for k in (0, 2):
        assert same(seed(host(state), k), seed(bare.state, k))
        assert same(seed(joined(records), k), seed(joined(bare.records), k))
    # Its environments began the first task anew, which is no update; then nothing moves.
    assert same(seed(host(state).opt_state, 1), seed(before.opt_state, 1))
    recorded = joined(records)
    np.testing.assert_array_equal(recorded["alive"], np.outer([1, 0, 1], np.ones(2 * UPDATES)))
    assert np.isnan(recorded["value_loss"][1]).all()
    assert np.isnan(recorded["episodes"][1, 1:]).all()


def test_chunks_must_divide_the_seeds(cartpole):
    with pytest.raises(ConfigError, match=r"seed_chunk: 2 is not allowed.*divisor of the 3 seeds"):
        cartpole(chunk=2)


def test_one_compilation_serves_all_tasks(probed, assert_no_retrace):
    assert probed.compilations == 1
    state = jax.tree.map(jnp.asarray, probed.state)._replace(key=seed_keys(SEEDS))
    clocks = [jnp.int32(UPDATES * task) for task in range(2, 6)]
    with assert_no_retrace():
        for clock in clocks:
            state, record = probed.segment(state, (), clock, UPDATES)
    assert probed.segment._cache_size() == 1
    assert np.isfinite(record.probe["hessian/largest"]).all()


# --- records ----------------------------------------------------------------------------------------------------------


def test_record_is_small_and_has_nan_only_where_no_episode_ended(probed):
    for record in probed.records:
        for name, values in record.train.items():
            assert values.shape == (len(SEEDS), UPDATES), name
            missing = record.train["episodes"] == 0 if name == "episode_return" else np.zeros_like(values)
            np.testing.assert_array_equal(np.isnan(values), missing, err_msg=name)
        for name, values in record.probe.items():
            assert values.shape[:2] == (len(SEEDS), 2), name
            assert values[0, 0].size <= 16, name
            assert np.isfinite(values).all(), name


def test_probe_names_have_dims_and_coords(cartpole, probed):
    program = cartpole(probed=True)
    for name, values in probed.records[0].probe.items():
        dims = program.dims.get(name, ())
        assert values.ndim == 2 + len(dims), name
        for axis, size in zip(dims, values.shape[2:]):
            assert len(program.coords.get(axis, range(size))) == size


GOLDEN = {
    "alive": [1.0, 1.0],
    "entropy": [0.693146, 0.693128],
    "episode_return": [21.0, 31.5],
    "episodes": [1.66667, 2.66667],
    "grad_norm": [5.09409, 5.27501],
    "kl": [1.19644e-06, 4.10108e-06],
    "policy_loss": [-0.000153345, -0.000473609],
    "value_loss": [37.9018, 32.6172],
}


def test_golden_step(bare):
    """Metrics of the first two updates, means over seeds.

    Where a change of the algorithm is meant to change them, replace the dictionary by the one in the message; where it
    is not, it is a bug.
    """
    found = {name: values[:, :2].mean(0).tolist() for name, values in joined(bare.records).items()}
    assert found.keys() == GOLDEN.keys()
    for name, values in GOLDEN.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-6, err_msg=f"{name}; all: {found}")


# --- task switches ----------------------------------------------------------------------------------------------------

LIMIT = 7


class Spied(NamedTuple):
    """A task that shows itself: every observation is its number and its draw."""

    number: Array
    draw: Array


def spy_stream() -> Stream:
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
    return Stream(environment, lambda key, i: Spied(jnp.int32(i), jax.random.normal(jax.random.fold_in(key, i))), "spy")


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
    stream, keys = spy_stream(), spy_keys(ppo._TASKS, 0)
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
    objective = ppo.losses(SPY_CONFIG, SPY_MODEL, policies.make(Discrete(2)))
    for k in range(2):
        params = SPY_MODEL.init(spy_keys(ppo._INIT, 0)[k])
        seen = ran.records[0].probe["spy/task"][k, 0]
        outputs, pull, inputs = jax.vjp(
            lambda taps, params=params, seen=seen: SPY_MODEL.tapped(params, taps, seen)[::2],
            SPY_MODEL.taps(seen),
            has_aux=True,
        )
        pulled = cotangents(objective.output_loss, kind, outputs, None, spy_keys(ppo._FACTORS, 0)[k])
        expected = fisher_factors(inputs, lambda c, pull=pull: pull(c)[0], pulled)
        for name, pair in expected.items():
            for side, value in pair._asdict().items():
                got = getattr(ran.state.factors.total[name], side)[k] / ran.state.factors.weight[k]
                np.testing.assert_allclose(got, value, rtol=1e-4, atol=1e-6 * np.abs(value).max(), err_msg=name)


def fresh(clock: int):
    keys = jax.vmap(lambda key: jax.random.split(key)[1])(spy_keys(ppo._SWITCH, clock))
    return jax.vmap(SPY_MODEL.init)(keys)


def flat(params):
    return np.asarray(jax.vmap(lambda p: ravel_pytree(p)[0])(params))


def test_the_first_probe_of_a_task_sees_the_network_that_starts_it(spied):
    first = flat(jax.vmap(SPY_MODEL.init)(spy_keys(ppo._INIT, 0)))
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
    """A segment of no updates is the switch alone."""
    start = jax.jit(spy_program(name).segment, static_argnums=3, compiler_options=QUICK)
    state = jax.tree.map(jnp.asarray, spied[name].state)._replace(key=seed_keys((5, 6)))
    assert (state.actors.episode_return > 0).all()
    clock = 3 * SPY_UPDATES
    begun, record = start(state, (), jnp.int32(clock), 0)
    assert record.train["episodes"].shape == (2, 0)
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


# --- keys -------------------------------------------------------------------------------------------------------------


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
        jax.jit(program.segment, static_argnums=3, compiler_options=QUICK)(state, (), jnp.int32(0), 1)
