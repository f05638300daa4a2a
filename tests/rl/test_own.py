"""Environments of one's own: every form of one environment gives the same numbers, and what does not fit is said."""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rl_gymnax import EXPERIMENT
from plastax.errors import ConfigError
from plastax.methods import METHODS
from plastax.models import ActorCritic
from plastax.program.parallel import over_seeds
from plastax.rl import ENVIRONMENTS, Chain, Own, Permuted, Physics, adapted, own, ppo
from plastax.rl.environment import Continuous, Discrete, Spaces, Timestep, make, spaces_of
from plastax.study import configuration, reinforcement
from tests.rl import forms
from tests.rl.runs import run, same
from tests.rl.toy_environments import observation_reward, truncation, two_steps

FORMS: dict[str, Callable[[Any], Any]] = {
    "gymnax 1.0": forms.Modern,
    "gymnax 0.0.x": forms.Old,
    "told by a function": lambda toy: adapted(forms.OldSilent(toy), truncated=lambda state, params: state.truncated),
    "step without a reset": lambda toy: adapted(forms.StepWithoutReset(forms.Old(toy)), resets=False),
    "step with a reset": lambda toy: forms.StepWithReset(forms.Old(toy)),
    "six values": lambda toy: forms.SixValues(forms.Modern(toy)),
    "Craftax": forms.Craftax,
    "navix": lambda toy: adapted(forms.ToGymnax(toy), resets=False),
}


@pytest.fixture(autouse=True)
def no_names_stay():
    yield
    ENVIRONMENTS.clear()


def rollout(env: Any, steps: int = 12) -> tuple[np.ndarray, Timestep]:
    """The observations acted on and the outcomes of four environments under random actions."""
    stream = own.entry(env, "mine").build()
    environment, task = stream.environment, stream.task(jax.random.key(0), jnp.int32(0))
    space = environment.action_space

    def act(key):
        if isinstance(space, Discrete):
            return jax.random.randint(key, (), 0, space.n)
        return jax.random.uniform(key, (space.size,), minval=-1.0)

    @jax.jit
    @jax.vmap
    def play(key):
        def body(carry, key):
            observation, state = carry
            state, timestep = environment.step(key, state, act(key), task)
            return (timestep.observation, state), (observation, timestep)

        return jax.lax.scan(body, environment.reset(key, task), jax.random.split(key, steps))[1]

    return jax.tree.map(np.asarray, play(jax.random.split(jax.random.key(3), 4)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make_toy", [observation_reward, two_steps, truncation])  # random starts, both ends
def test_every_form_gives_the_same_transitions(make_toy, form):
    expected = rollout(forms.Modern(make_toy()))
    assert same(rollout(FORMS[form](make_toy())), expected)
    assert (expected[1].terminated | expected[1].truncated).any()


@pytest.mark.parametrize("form", FORMS)
def test_values_at_the_time_limit_are_bootstrapped(form):
    """The return of each step is in closed form: 1 / (1 - discount) at every step, if a truncation is none of its
    ends."""
    toy = truncation()
    _, timestep = rollout(FORMS[form](toy))
    value = float(toy.values(0.9)[0])
    following = np.where(timestep.terminated, 0.0, value)
    np.testing.assert_allclose(timestep.reward + 0.9 * following, value, rtol=1e-6)
    np.testing.assert_array_equal(timestep.truncated.argmax(1), 4)
    assert timestep.truncated.sum(1).tolist() == [2] * 4


def test_without_a_word_about_it_every_end_is_a_termination():
    _, timestep = rollout(forms.OldSilent(truncation()))
    assert not timestep.truncated.any()
    assert timestep.terminated.sum(1).tolist() == [2] * 4


def trained(env: Any) -> Any:
    config = ppo.PPO(num_envs=4, num_steps=8, epochs=1, minibatches=2, kronecker_every=0)
    model = ActorCritic((8,)).build((1,), 2, continuous=False)
    stream = own.entry(env, "mine").build()
    method = METHODS["backprop"].build(config.optimizer())
    return run(over_seeds(ppo.program(config, stream, model, method, updates_per_task=2), 2), (0, 1), [4])


def test_every_form_gives_the_same_records():
    """Episode returns among them, which are known: 1 for every episode of two steps."""
    new, old = trained(forms.Modern(two_steps())), trained(forms.Old(two_steps()))
    assert same(new.records, old.records)
    assert same(new.state.params, old.state.params)
    returns = new.records[0].train["episode_return"]
    np.testing.assert_array_equal(returns, 1.0)


def test_own_environments_are_streams_and_the_base_of_streams():
    env = CARTPOLE[0]
    assert own.entry(env, "mine") == Own("mine")
    assert Own("mine").spaces() == Permuted("mine").spaces() == Own().spaces()
    name = "tests.rl.test_own:CARTPOLE"
    key = jax.random.key(0)
    for stream in (Chain, Permuted):
        by_id, mine, imported, direct = (stream(env=one).build() for one in ("CartPole-v1", "mine", name, env))
        task = by_id.task(key, jnp.int32(2))
        for other in (mine, imported, direct):
            assert same(other.task(key, jnp.int32(2)), task)
            assert same(*(one.environment.reset(key, task) for one in (other, by_id)))
    with pytest.raises(ConfigError, match="'mine' has no physics"):
        Physics("mine").spaces()


CARTPOLE = gymnax.make("CartPole-v1")


def cartpole():
    """An environment with longer poles."""
    env, params = CARTPOLE
    return env, params.replace(length=1.0)


def test_parameters_given_with_an_environment_are_its_parameters():
    assert float(make("tests.rl.test_own:cartpole")[1].length) == 1.0
    assert float(make(cartpole)[1].length) == 1.0
    assert float(make(CARTPOLE[0])[1].length) == 0.5


def test_stream_settings_stand_for_themselves():
    assert own.entry(Chain("CartPole-v1", 1.0), "mine") == Chain("CartPole-v1", 1.0)
    assert own.entry(Chain, "mine") == Chain()
    assert not ENVIRONMENTS


def test_continuous_actions_have_bounds():
    assert spaces_of(forms.Old(truncation(continuous=True))) == Spaces((1,), Continuous((-1.0,), (1.0,), 1))


class Changed(forms.Old):
    """An environment of 0.0.x of which one method is another."""

    def __init__(self, **methods: Any) -> None:
        super().__init__(truncation())
        for name, method in methods.items():
            setattr(self, name, types.MethodType(method, self))


def step_giving(change: Callable[..., Any]) -> Changed:
    return Changed(step_env=lambda self, *args: change(*forms.Old.step_env(self, *args)))


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (3, "int: it has the methods .*; needed are reset_env"),
        (types.SimpleNamespace(reset=1, step=2), "SimpleNamespace: it has the methods none; needed are reset_env"),
        (
            Changed(step_env=lambda self, state, action: 0),
            r"Changed: step cannot be traced \(TypeError: .*; needed are",
        ),
        (Changed(reset_env=lambda self, key, params: 0), r"reset gives int32 \(\); needed are \(observation, state\)"),
        (step_giving(lambda o, s, r, d, i: (o, s, r, d)), "step gives 4 values; needed are"),
        (step_giving(lambda o, s, r, d, i: (o, s, r, d, d, i)[:5]), "step gives 5 values; needed are"),
        (step_giving(lambda o, s, r, d, i: ({"x": o}, s, r, d, i)), "observation is a dict; needed is one array"),
        (step_giving(lambda o, s, r, d, i: (o, s, o, d, i)), r"reward is float32 \(1,\); needed is one number"),
        (
            step_giving(lambda o, s, r, d, i: (o[0], s, r, d, i)),
            r"observation is float32 \(1,\) after reset, float32 \(\)",
        ),
        (
            step_giving(lambda o, s, r, d, i: (o, s.toy, r, d, i)),
            r"state.\w+ is nothing after reset, .* after a step|state.* is .* after reset, nothing after a step",
        ),
        (
            step_giving(lambda o, s, r, d, i: (o, s._replace(truncated=1.0), r, d, i)),
            r"state.truncated is bool \(\) after reset, float32 \(\) after a step; make them alike",
        ),
        (Changed(action_space=lambda self, params: None), r"action_space\(params\).sample\(key\) cannot be traced"),
        (forms.StepWithoutReset(forms.Old(truncation())), r"truncates, and has step alone; .*resets=False"),
        (forms.ToGymnax(truncation()), r"truncates, and has step alone; .*resets=False"),
        ("mylab.env:make", "'mylab.env:make' cannot be imported .*mylab.*; give module:object"),
        ("tests.rl.test_own:nothing", "cannot be imported .*nothing"),
        ("CartPole-v9", "'CartPole-v9' is unknown .*CartPole-v1.* module:object"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_compiles(env, said):
    with pytest.raises(ConfigError, match=rf"stream.env: .*{said}") as refused:
        spaces_of(env)
    assert len(str(refused.value).splitlines()) == 1


def test_a_name_of_gymnax_is_refused():
    with pytest.raises(ConfigError, match="CartPole-v1 is the name of gymnax's environment"):
        own.entry(forms.Modern(truncation()), "CartPole-v1")


def test_an_experiment_takes_them_by_name_and_records_their_source(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "poles_of_mine.py").write_text("from tests.rl.test_own import cartpole\n")
    configure = functools.partial(configuration.configure, EXPERIMENT.config, EXPERIMENT.presets, EXPERIMENT.choices)

    def recorded(stream, **values):
        return reinforcement.share(configure({"stream": stream, **values})).recorded

    for name in ("tests.rl.test_own:cartpole", f"{tmp_path}/poles_of_mine.py:cartpole"):
        source = recorded("permuted_obs", **{"stream.env": name})["env_source"]
        assert source in [
            hashlib.sha256(path.read_bytes()).hexdigest() for path in (Path(__file__), *tmp_path.glob("*.py"))
        ]
    assert not recorded("permuted_obs")
    with pytest.raises(ConfigError, match=r"stream.env: a CartPole is given; give it a name"):
        recorded(Permuted(env=CARTPOLE[0]))
