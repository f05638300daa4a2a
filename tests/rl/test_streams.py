"""Every registered stream: its tasks, and what they do to the environment."""

from __future__ import annotations

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastax.errors import ConfigError
from plastax.rl import STREAMS as ALL
from plastax.rl import Brax
from plastax.rl.classic import Chain, Physics
from plastax.rl.environment import Discrete
from plastax.rl.minatar import ACTIONS, GAMES, MinAtar
from plastax.rl.permuted import Permuted
from plastax.testing.environments import SEEDS, Rollouts, check_run, rollout, run_all

# What needs an extra is in test_brax.py.
STREAMS = {name: config for name, config in ALL.items() if not isinstance(config, Brax)}
# Two quick games stand in for the default four, which take half a minute to compile; those are in a slow test below.
QUICK = {**STREAMS, "minatar_chain": MinAtar(("Breakout", "Freeway"))}
CHAINS = [name for name, config in STREAMS.items() if isinstance(config, Chain)]
PHYSICS = [name for name, config in STREAMS.items() if isinstance(config, Physics)]


def params(names):
    """Chains are one piece of code: one with discrete and one with continuous actions stand in for all."""
    repeated = ("acrobot_chain", "mountaincar_chain")
    return [pytest.param(name, marks=pytest.mark.slow) if name in repeated else name for name in names]


@pytest.fixture(scope="module")
def runs():
    """Name -> its run, computed once and when first asked for."""
    done: dict[str, Rollouts] = {}

    def get(name: str) -> Rollouts:
        if name not in done:
            done[name] = run_all(QUICK[name].build())
        return done[name]

    return get


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def defaults(config):
    return gymnax.make(config.env)[1]


@pytest.mark.parametrize("name", params(STREAMS))
def test_registered_stream_keeps_its_promises(runs, name):
    check_run(name, QUICK[name], runs(name))


@pytest.mark.parametrize("name", params(STREAMS))
def test_tasks_differ_but_for_the_first_of_all_seeds(runs, name):
    run = runs(name)
    content = [task[1:] for task in run.tasks]  # all but the number
    assert [task[0].tolist() for task in run.tasks] == [[i] * SEEDS for i in range(3)]
    assert not same(content[0], content[1])
    assert not same(content[1], content[2])
    if not isinstance(STREAMS[name], MinAtar):
        for task in content[1:]:
            assert not same(*(jax.tree.map(lambda x, seed=seed: x[seed], task) for seed in (0, 1)))
        assert same(*(jax.tree.map(lambda x, seed=seed: x[seed], content[0]) for seed in (0, 1)))


@pytest.mark.parametrize("name", params([*CHAINS, *PHYSICS, "permuted_obs"]))
def test_task_zero_is_the_unchanged_environment(runs, name):
    run = runs(name)
    expected = jax.tree.map(lambda x: np.broadcast_to(np.asarray(x), (SEEDS, *np.shape(x))), defaults(STREAMS[name]))
    for value, default in zip(jax.tree.leaves(run.tasks[0].params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(value, default, rtol=1e-6)
    if name in CHAINS:
        assert not run.tasks[0].view.any()
    if name == "permuted_obs":
        np.testing.assert_array_equal(run.tasks[0].view, [range(4)] * SEEDS)


@pytest.mark.parametrize("name", params(CHAINS))
def test_offset_is_all_that_changes(runs, name):
    run = runs(name)
    offset = run.tasks[1].view[:, None]
    assert 0.5 < run.tasks[1].view.std() < 4.0
    np.testing.assert_allclose(run.first[1], run.first[0] + offset, rtol=1e-5, atol=1e-5)
    clean, shifted = run.timesteps[:2]
    for field in ("observation", "final_observation"):
        expected = getattr(clean, field) + offset[:, None]
        np.testing.assert_allclose(getattr(shifted, field), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(shifted.reward, clean.reward, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(shifted.terminated, clean.terminated)


def test_permutation_is_all_that_changes(runs):
    run = runs("permuted_obs")
    clean, permuted = run.timesteps[:2]
    for seed, order in enumerate(run.tasks[1].view):
        assert sorted(order) == [0, 1, 2, 3]
        expected = clean.final_observation[seed][..., order]
        np.testing.assert_allclose(permuted.final_observation[seed], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(run.first[1][seed], run.first[0][seed][..., order], rtol=1e-6)


def test_permutation_of_images_keeps_their_shape():
    stream = Permuted("Breakout-MinAtar").build()
    assert stream.environment.observation_shape == (10, 10, 4)
    plain, permuted = (
        stream.environment.reset(jax.random.key(0), stream.task(jax.random.key(1), i))[0] for i in (0, 1)
    )
    assert float(plain.sum()) == float(permuted.sum())
    assert bool(jnp.any(plain != permuted))


@pytest.mark.parametrize("name", PHYSICS)
def test_physics_changes_the_course_and_not_the_start(runs, name):
    run = runs(name)
    np.testing.assert_allclose(run.first[1], run.first[0], rtol=1e-6)
    assert not np.allclose(run.timesteps[1].final_observation, run.timesteps[0].final_observation, rtol=1e-3)


def test_physics_constants_are_consistent(runs):
    for task in runs("cartpole_physics").tasks:
        p = task.params
        np.testing.assert_allclose(p.total_mass, p.masscart + p.masspole, rtol=1e-6)
        np.testing.assert_allclose(p.polemass_length, p.masspole * p.length, rtol=1e-6)
    for task in runs("acrobot_physics").tasks:
        p = task.params
        np.testing.assert_allclose(p.link_com_pos_1, p.link_length_1 / 2, rtol=1e-6)
        np.testing.assert_allclose(p.link_com_pos_2, p.link_length_2 / 2, rtol=1e-6)
        inertia = (p.link_mass_1 * p.link_length_1**2 + p.link_mass_2 * p.link_length_2**2) / 2
        np.testing.assert_allclose(p.link_moi, inertia, rtol=1e-5)
    gravity = np.concatenate([task.params.gravity for task in runs("mountaincar_physics").tasks])
    assert np.all((gravity >= 0.00125) & (gravity <= 0.005))


def solve(name: str, act) -> np.ndarray:
    """[64] returns of the first episodes of a fixed controller, on 64 drawn tasks."""
    stream = STREAMS[name].build()

    @jax.jit
    @jax.vmap
    def run(key):
        task = stream.task(key, jnp.int32(1))

        def body(carry, key):
            observation, state, alive = carry
            state, timestep = stream.environment.step(key, state, act(observation), task)
            ended = timestep.terminated | timestep.truncated
            return (timestep.observation, state, alive & ~ended), alive * timestep.reward

        carry = (*stream.environment.reset(key, task), jnp.bool_(True))
        return jax.lax.scan(body, carry, jax.random.split(key, 500))[1].sum()

    return np.asarray(run(jax.random.split(jax.random.key(1), 64)))


def test_drawn_cartpoles_are_solvable():
    """By one linear controller on all of them."""
    weights = jnp.array([0.05, 0.2, 1.0, 0.3])
    assert np.all(solve("cartpole_physics", lambda x: (x @ weights > 0).astype(jnp.int32)) == 500)


@pytest.mark.slow
def test_drawn_cars_and_acrobots_are_solvable():
    """By pushing along the movement, before the time limit."""
    assert np.all(solve("mountaincar_physics", lambda x: jnp.where(x[1] >= 0, 2, 0)) > -200)
    assert np.all(solve("acrobot_physics", lambda x: jnp.where(x[4] > 0, 0, 2)) > -500)


def test_minatar_plays_the_game_of_its_task(runs):
    run = runs("minatar_chain")
    assert run.stream.environment.observation_shape == (10, 10, 10)
    assert run.stream.environment.action_space == Discrete(ACTIONS)
    assert [task.game[0] for task in run.tasks] == [0, 1, 0]
    for index, channels in enumerate((4, 7, 4)):
        used = run.timesteps[index].observation.any(axis=(0, 1, 2, 3, 4))
        assert not used[channels:].any()
        assert used[0]
        assert not run.first[index][..., channels:].any()
    # Task 2 is Breakout again.
    assert same(run.timesteps[0], run.timesteps[2])


def test_minatar_is_gymnax_with_padding_and_surplus_actions_do_nothing():
    stream = MinAtar(("Breakout",)).build()
    env, params = gymnax.make("Breakout-MinAtar", use_minimal_action_set=False)
    task = stream.task(jax.random.key(0), jnp.int32(0))
    _, states = stream.environment.reset(jax.random.key(1), task)
    key = jax.random.key(2)
    step = jax.jit(lambda action: stream.environment.step(key, states, action, task))
    theirs = jax.jit(lambda action: env.step(key, states[0], action, params))
    for action in (1, 3, 0):
        after, timestep = step(action)
        observation, state, reward, *_ = theirs(action)
        np.testing.assert_array_equal(timestep.observation[..., :4], observation)
        np.testing.assert_array_equal(timestep.reward, reward)
        assert same(after[0], state)
    still = [step(action) for action in (0, 2, 4, 5)]
    assert all(same(still[0], other) for other in still[1:])


def test_minatar_switch_stays_a_branch_under_vmapped_seeds(runs):
    stream = runs("minatar_chain").stream
    run = jax.vmap(lambda key, index: rollout(stream, key, index), (0, None))
    program = jax.make_jaxpr(run)(jax.random.split(jax.random.key(0), SEEDS), jnp.int32(0))
    scan = [equation for equation in program.eqns if equation.primitive.name == "scan"][-1]
    names = [equation.primitive.name for equation in scan.params["jaxpr"].eqns]
    assert "cond" in names, names


@pytest.mark.slow
@pytest.mark.parametrize("games", [STREAMS["minatar_chain"].games, GAMES])
def test_minatar_with_more_games(games):
    run = run_all(MinAtar(games).build(), len(games))
    assert [task.game[0] for task in run.tasks] == list(range(len(games)))
    assert all(np.all(np.isfinite(leaf)) for timestep in run.timesteps for leaf in timestep)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Chain("CartPole-v7"), "stream.env: 'CartPole-v7' .*did you mean 'CartPole-v"),
        (Chain("Breakout-MinAtar"), r"stream.env: .*shape \(10, 10, 4\)"),
        (Chain(sigma=-1.0), "stream.sigma: -1.0 .*finite number at least 0"),
        (Chain(sigma=float("nan")), "stream.sigma: nan"),
        (Chain(sigma=float("inf")), "stream.sigma: inf"),
        (Physics("Catch-bsuite"), "stream.env: 'Catch-bsuite' .*Pendulum-v1"),
        (Physics(strength=-0.5), "stream.strength: -0.5"),
        (Permuted("MNISTBandit-bsuite"), "stream.env: .*downloads"),
        (Permuted("nothing"), "stream.env: 'nothing' .*CartPole-v1"),
        (Permuted("FrozenLake-misc"), "stream.env: .*single number"),
        (MinAtar(()), r"stream.games: \(\) .*Seaquest"),
        (MinAtar(("Breakout", "Pong")), "stream.games: .*Pong.*Seaquest"),
    ],
)
def test_refusals_name_setting_value_and_what_is_allowed(config, message):
    with pytest.raises(ConfigError, match=message):
        config.build()
