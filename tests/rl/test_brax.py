"""Robots of Brax: tasks, physics, ends of episodes; the extra that has Brax is not part of a fresh clone."""

from __future__ import annotations

import dataclasses
import importlib.util
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastax import testing
from plastax.errors import ConfigError
from plastax.methods import METHODS
from plastax.models import ActorCritic
from plastax.probes import PROBES
from plastax.rl import STREAMS, Brax, brax, ppo
from plastax.rl.environment import EnvironmentStream
from plastax.testing.promises import quick
from tests.lacking import lacking

# Brax and MuJoCo warn of themselves.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]

SLIDING = """
<mujoco>
  <option timestep="0.002" cone="elliptic" impratio="10"/>
  <worldbody>
    <geom name="floor" type="plane" size="9 9 .1" friction="1 .005 .0001" condim="3"/>
    <body pos="0 0 .1">
      <joint type="slide" axis="1 0 0"/><joint type="slide" axis="0 0 1"/>
      <geom type="box" size=".1 .1 .1" mass="1" friction="1 .005 .0001" condim="3"/>
    </body>
  </worldbody>
</mujoco>
"""


@pytest.fixture(scope="module")
def installed():
    if importlib.util.find_spec("brax") is None:
        lacking("needs Brax: pip install 'plastax-lab[brax]'")
    with jax.numpy_rank_promotion("allow"):  # MuJoCo's code asks for it.
        yield


@pytest.fixture(scope="module")
def short(installed):
    """An ant whose episodes are cut after 3 steps, and its compiled functions."""
    stream = Brax(episode_length=3).build()
    return stream, quick(stream.environment.reset), quick(stream.environment.step)


def test_a_task_has_a_friction_of_its_seed_and_number():
    stream = Brax()
    keys = jax.random.split(jax.random.key(0), 300)
    drawn = np.array(jax.vmap(lambda key: jax.vmap(lambda i: stream.task(key, i).value)(jnp.arange(4)))(keys))
    assert drawn.min() >= 0.02
    assert drawn.max() <= 2
    assert len(np.unique(drawn)) > 1190
    # Log-uniform: the median is the geometric mean of both ends, 0.2, within four standard errors.
    assert np.log(np.median(drawn)) == pytest.approx(np.log(0.2), abs=4 * 0.5 * np.log(100) / np.sqrt(1200))
    published = Brax(schedule="published")
    values = [float(published.task(keys[0], jnp.int32(i)).value) for i in range(6)]
    assert values == pytest.approx([0.2961, 0.2399, 0.0387, 0.3528, 0.0829, 0.2961])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"env": "walker"}, ("env", "'walker'", "ant")),
        ({"schedule": "nature"}, ("schedule", "'nature'", "published")),
        ({"low": 3.0}, ("low", "3.0", "2.0")),
        ({"low": 0.0}, ("low", "0")),
        ({"episode_length": 0}, ("episode_length", "0", "1")),
        ({"quantity": "gravity", "schedule": "published"}, ("schedule", "'published'", "gravity")),
        ({"env": "halfcheetah", "terminate_when_unhealthy": False}, ("terminate_when_unhealthy", "halfcheetah")),
    ],
)
def test_bad_settings_are_refused_in_one_line(settings, words):
    with pytest.raises(ConfigError) as refused:
        Brax(**settings).spaces()
    assert all(word in str(refused.value) for word in words)
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(importlib.util.find_spec("brax") is not None, reason="Brax is installed")
def test_without_brax_one_line_says_how_to_install_it():
    with pytest.raises(ConfigError, match=r"package brax, which is missing; pip install 'plastax-lab\[brax\]'"):
        Brax().spaces()


@pytest.mark.fetched
def test_a_box_slides_as_far_as_friction_and_gravity_let_it(installed):
    from brax.io import mjcf
    from brax.mjx import pipeline

    system = mjcf.loads(SLIDING)

    @jax.jit
    def speed(friction, gravity):
        """Of a box after half a second, from 3 m/s."""
        world = types.SimpleNamespace(sys=system)
        world = brax.changed(brax.changed(world, "friction", friction), "gravity", gravity)
        state = pipeline.init(world.sys, jnp.zeros(2), jnp.array([3.0, 0.0]))
        return jax.lax.fori_loop(0, 250, lambda _, s: pipeline.step(world.sys, s, jnp.zeros(0)), state).qd[0]

    for friction, gravity in ((0.1, 1.0), (0.2, 1.0), (0.4, 1.0), (0.2, 2.0)):
        lost = 3.0 - float(speed(jnp.float32(friction), jnp.float32(gravity)))
        assert lost == pytest.approx(0.5 * friction * gravity * 9.81, rel=0.02)


@pytest.mark.slow
@pytest.mark.fetched
def test_steps_are_those_of_brax(installed):
    """Although our state is a small part of Brax's, whose steps compute the rest."""
    stream = Brax(quantity="gravity", low=1.0, high=1.0).build()
    robot = brax.made("ant", True)
    task = stream.task(jax.random.key(0), jnp.int32(0))
    observation, state = quick(stream.environment.reset)(jax.random.key(1), task)
    theirs = quick(robot.reset)(jax.random.key(1))
    np.testing.assert_array_equal(observation, theirs.obs)
    # MuJoCo starts an episode's solver from 0, Brax from the acceleration that it computes for its first state.
    still = jnp.zeros_like(theirs.pipeline_state.qacc_warmstart)
    theirs = theirs.replace(pipeline_state=theirs.pipeline_state.replace(qacc_warmstart=still))
    ours_step, their_step = quick(stream.environment.step), quick(robot.step)
    for key in jax.random.split(jax.random.key(2), 20):
        action = jax.random.uniform(key, (8,), minval=-1, maxval=1)
        state, out = ours_step(key, state, action, task)
        theirs = their_step(theirs, action)
        np.testing.assert_allclose(out.final_observation, theirs.obs, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(out.reward, theirs.reward, rtol=1e-3, atol=1e-3)
        assert bool(out.terminated) is bool(theirs.done)


@pytest.mark.slow
@pytest.mark.fetched
def test_a_cut_episode_is_no_termination_and_the_next_begins_afresh(short):
    stream, reset, step = short
    task = stream.task(jax.random.key(0), jnp.int32(0))
    observation, state = reset(jax.random.key(1), task)
    begun, seen = [observation], []
    for i in range(7):
        state, out = step(jax.random.key(i), state, jnp.zeros(8), task)
        seen.append(out)
        if i % 3 == 2:
            begun.append(out.observation)
    assert [bool(out.truncated) for out in seen] == [False, False, True, False, False, True, False]
    assert not any(bool(out.terminated) for out in seen)
    for out in seen:
        assert bool(jnp.all(out.observation == out.final_observation)) is not bool(out.truncated)
    # Each episode starts in a state of its own.
    for i, one in enumerate(begun):
        assert all(float(jnp.abs(one - other).max()) > 1e-3 for other in begun[i + 1 :])
        assert float(jnp.abs(one[0] - 0.55)) < 0.101  # The height of an ant at its start, and its noise.


@pytest.mark.slow
@pytest.mark.fetched
def test_ten_tasks_take_one_compilation_and_play_differently(short):
    stream, reset, step = short
    ends = []
    for number in range(10):
        task = stream.task(jax.random.key(0), jnp.int32(number))
        _, state = reset(jax.random.key(1), task)
        for i in range(2):
            state, out = step(jax.random.key(i), state, jnp.ones(8), task)
        ends.append(np.asarray(out.observation))
    assert step._cache_size() == reset._cache_size() == 1
    assert len({end.tobytes() for end in ends}) == 10


@pytest.mark.slow
@pytest.mark.fetched
def test_spectra_are_those_of_the_current_task(short):
    """Not of the first one's friction. Network and keys are the same in all measurements."""
    environment = short[0].environment
    config = ppo.PPO(num_envs=1, num_steps=4, minibatches=1)
    model = ActorCritic((4,)).build((27,), 8, continuous=True)
    probe = dataclasses.replace(PROBES["hessian"], order=4, probes=1).build(model)

    @quick
    def second_task(frictions):
        stream = EnvironmentStream(environment, lambda key, index: brax.BraxTask(jnp.int32(index), frictions[index]))
        method = METHODS["backprop"].build(config.optimizer())
        made = ppo.program(config, stream, model, method, [probe], updates_per_task=1)
        state = made.init(jax.random.key(0), ())
        return made.measure(made.view(state), (), jnp.int32(2))["hessian/nodes"]

    nodes = second_task(jnp.array([1.0, 1.0]))
    np.testing.assert_array_equal(second_task(jnp.array([0.02, 1.0])), nodes)
    assert float(jnp.abs(second_task(jnp.array([1.0, 0.02])) - nodes).max()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, stream in STREAMS.items() if isinstance(stream, Brax)])
def test_registered_stream_keeps_its_promises(installed, name):
    testing.check_environment_stream(STREAMS[name])
