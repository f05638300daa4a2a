"""DQN as a program: task switches, what methods do to its memory, probes, resume; all methods."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from plastax.errors import ConfigError
from plastax.keys import fold
from plastax.methods import METHODS
from plastax.models import ActorCritic
from plastax.program.parallel import over_seeds, seed_keys
from plastax.rl import STREAMS, dqn
from plastax.rl.agent import Purpose
from plastax.study import settings
from plastax.types import Array, Probe, ProbeInput, Program
from tests import programs
from tests.rl.runs import host, joined, run, same

QUICK = {"xla_backend_optimization_level": 0}
SEEDS, UPDATES = (0, 1), 4
CONFIG = dqn.DQN(
    num_envs=2, num_steps=8, train_every=4, replay_ratio=0.25, batch_size=8, capacity=96, warmup=24, n_step=2,
    target_every=3, epsilon_steps=40, learning_rate=1e-2, kronecker_every=2,
)  # fmt: skip
LEARNED = UPDATES * CONFIG.gradient_steps - CONFIG.idle * CONFIG.steps_per_turn
"""Gradient steps of the first task."""


def spy(seen: ProbeInput) -> dict[str, Array]:
    grads = jax.grad(seen.loss_fn)(seen.params, seen.batch)
    return {
        "observation": seen.batch.observation,
        "target": seen.batch.target,
        "params": ravel_pytree(seen.params)[0],
        "slope": jnp.linalg.norm(ravel_pytree(grads)[0]),
        "weight": seen.factors.weight,
    }


def program(name: str = "backprop", config: dqn.DQN = CONFIG, **changes) -> Program:
    method = dataclasses.replace(METHODS[name], **changes)
    network = settings.with_options(ActorCritic((8, 8)), "mlp", name, method.model_options)
    stream = STREAMS["cartpole_chain"].build()
    model = network.build((4,), 2, continuous=None)
    model = model._replace(batch_like=dqn.batch_like(config, stream.environment))
    return dqn.program(
        config, stream, model, method.build(config.optimizer(), model), [Probe("spy", spy, {}, {})],
        updates_per_task=UPDATES, needs_boundary=method.needs_boundary,
    )  # fmt: skip


@functools.cache
def jitted(name: str = "backprop", config: dqn.DQN = CONFIG, **changes) -> programs.Jitted:
    return programs.jitted(over_seeds(program(name, config, **changes), len(SEEDS)), QUICK)


@pytest.fixture(scope="module")
def whole():
    """Two tasks, a segment each."""
    return run(over_seeds(program(), len(SEEDS)), SEEDS, (UPDATES, UPDATES), QUICK)


def test_a_record_begins_with_learning(whole):
    train = joined(whole.records)
    idle = CONFIG.idle // CONFIG.turns  # updates without any learning
    assert idle >= 1
    for name in ("td_loss", "q_value", "grad_norm"):
        assert np.isnan(train[name][:, :idle]).all()
        assert np.isfinite(train[name][:, idle:]).all()
    assert (train["alive"] == 1).all()
    # The optimiser's own count: every gradient step was one, and no other was.
    (count,) = (x for x in jax.tree.leaves(whole.state.opt_state) if x.shape == (2,) and x.dtype == np.int32)
    np.testing.assert_array_equal(count, LEARNED + UPDATES * CONFIG.gradient_steps)


def test_buffer_continues_over_a_switch_and_no_transition_reaches_over_it(whole):
    kept = whole.state.memory.replay.experience  # [seeds, environments, rows]
    steps = np.arange(2 * UPDATES * CONFIG.num_steps)[-CONFIG.rows :]
    # The second task adds an offset to observations: within the rows of a task the successor is the next observation.
    ended = kept.terminated | kept.truncated
    for one, following in itertools.pairwise(steps):
        a, b = one % CONFIG.rows, following % CONFIG.rows
        follows = (kept.successor[:, :, a] == kept.observation[:, :, b]).all(-1)
        np.testing.assert_array_equal(follows, ~ended[:, :, a])
    border = (UPDATES * CONFIG.num_steps - 1) % CONFIG.rows
    assert (UPDATES * CONFIG.num_steps - 1) in steps
    assert (kept.truncated | kept.terminated)[..., border].all()


@pytest.mark.slow  # compiles another length
def test_segments_and_a_restart_from_the_host_change_no_bit(whole):
    state = whole.jitted.init(seed_keys(SEEDS), ())
    for clock in range(0, 2 * UPDATES, UPDATES // 2):
        state, _ = whole.jitted.segment(state, (), clock, UPDATES // 2)
        state = jax.tree.map(jnp.asarray, host(state))._replace(key=seed_keys(SEEDS))
    assert same(host(state), whole.state)


@pytest.mark.slow  # compiles DQN once more
def test_probes_change_no_bit_and_see_fresh_experience_of_the_task(whole):
    bare = dataclasses.replace(CONFIG, probe_targets="regression")
    other = run(over_seeds(program(config=bare), len(SEEDS)), SEEDS, (UPDATES, UPDATES), QUICK)
    assert same(other.state, whole.state)
    td, regression = ([r.probe for r in ran.records] for ran in (whole, other))
    for task, record in enumerate(td):
        assert np.isfinite(record["spy/slope"]).all()
        assert record["spy/observation"].shape[2] == CONFIG.steps_per_update
        # The angle of the pole, at most 0.21 + 0.05, has a large offset in the second task.
        assert (np.abs(record["spy/observation"][..., 2].mean((1, 2))) > 1).all() == bool(task)
        np.testing.assert_array_equal(record["spy/weight"][:, 0], 0)
    # The other targets are the values of one drawn network, whatever was learned.
    model = ActorCritic((8, 8)).build((4,), 2, continuous=None)
    for k, key in enumerate(seed_keys(SEEDS)):
        fixed = model.init(fold(key, Purpose.TARGETS))
        for record in regression:
            values = model.apply(fixed, record["spy/observation"][k].reshape(-1, 4))[0]
            off = np.abs(values - record["spy/target"][k].reshape(-1, 1)).min(-1)
            np.testing.assert_allclose(off, 0, atol=1e-5)


@pytest.mark.parametrize("choice", ["keep", pytest.param("clear", marks=pytest.mark.slow)])
def test_a_cleared_buffer_is_filled_before_learning_continues(choice, whole):
    config = dataclasses.replace(CONFIG, buffer_at_switch=choice)
    found = whole if choice == "keep" else run(over_seeds(program(config=config), 2), SEEDS, (UPDATES,) * 2, QUICK)
    second = np.isnan(found.records[1].train["td_loss"])
    first = np.isnan(found.records[0].train["td_loss"])
    np.testing.assert_array_equal(second, first if choice == "clear" else np.zeros_like(first))


def test_the_target_network_is_a_copy_after_a_switch(whole):
    state = jax.tree.map(jnp.asarray, whole.state)._replace(key=seed_keys(SEEDS))
    assert not same(whole.state.params, whole.state.memory.target)
    begun = host(whole.jitted.begin(state, (), jnp.int32(2 * UPDATES)))
    assert same(begun.params, whole.state.params)
    assert same(begun.memory.target, whole.state.params)
    assert same(begun.opt_state, whole.state.opt_state)


ACTS = [name for name, method in METHODS.items() if method.needs_boundary or method.replaces_units]


MOMENTS = {"reset": ".", "moment_reset": ".", "reset_head": "output", "adam_rel": ".count"}
"""Method -> what the paths of Adam's state have in common that it clears at a switch. The others clear nothing."""


def test_the_readme_says_what_methods_do_to_dqn():
    text = (pathlib.Path(dqn.__file__).parent / "README.md").read_text().partition("## What methods do to DQN")[2]
    rows = {row[1]: row[2] for row in re.finditer(r"^\| `(\w+)` \|(.*)$", text.partition("\n## ")[0], re.M)}
    assert sorted(rows) == sorted(ACTS)
    for name, row in rows.items():
        assert ("within tasks" in row) != METHODS[name].needs_boundary
        assert ("kept" in row.split("|")[1]) == (MOMENTS.get(name) in (None, ".count") and "within" not in row)


@pytest.mark.slow  # compiles DQN for each
@pytest.mark.parametrize("name", ACTS)
def test_target_network_moments_and_buffer_at_a_switch(name):
    """The target network is the network after the method; the buffer is as it was; moments are the method's."""
    made = jitted(name)
    state, _ = made.segment(made.init(seed_keys(SEEDS), ()), (), 0, UPDATES)
    before = host(state)
    assert not same(before.params, before.memory.target)
    after = host(made.begin(state, (), jnp.int32(UPDATES)))
    assert same(after.params, after.memory.target)
    kept, was = (one.memory.replay.experience._replace(truncated=()) for one in (after, before))
    assert same(kept, was)
    for (path, new), old in zip(
        jax.tree_util.tree_leaves_with_path(after.opt_state), jax.tree.leaves(before.opt_state), strict=True
    ):
        place = jax.tree_util.keystr(path)
        if re.search(r"\.(mu|nu|count)", place):
            cleared = name in MOMENTS and MOMENTS[name] in place
            np.testing.assert_array_equal(new, np.zeros_like(old) if cleared else old, err_msg=place)
            assert old.any() or not cleared
    if not METHODS[name].needs_boundary:
        assert same(after.params, before.params)
        assert same(after.opt_state, before.opt_state)


@pytest.mark.slow  # compiles DQN once more
def test_replaced_units_stay_in_the_target_network_until_its_update():
    """ReDo replaces every unit in every step: their outgoing weights are zero, in the target network only later."""
    config = dataclasses.replace(CONFIG, target_every=CONFIG.gradient_steps * UPDATES)
    made = jitted("redo", config, period=1, threshold=1e9)
    state = made.init(seed_keys(SEEDS), ())
    start = host(state)
    state, _ = made.segment(state, (), 0, UPDATES)
    assert (np.asarray(state.params["output"]["kernel"]) == 0).all()
    assert same(host(state).memory.target, start.params)
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape[1:] == (8, 2)]
    assert len(moments) >= 2
    assert all((np.asarray(x) == 0).all() for x in moments)


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


REFUSED = {"orthogonal": "needs the option 'initializer' of the model"}
"""Methods that ask for what the network does not have, under every agent."""


@pytest.mark.parametrize(
    "name",
    [n if n in ("redo", *REFUSED) else pytest.param(n, marks=pytest.mark.slow) for n in METHODS],
)
def test_every_method_keeps_the_state_in_shape_or_refuses(name):
    if name in REFUSED:
        with pytest.raises(ConfigError, match=REFUSED[name]):
            program(name)
        return
    made = program(name)
    state = jax.eval_shape(made.init, jax.random.key(0), ())
    begun = jax.eval_shape(lambda s: made.begin(s, (), jnp.int32(0)), state)
    after, _ = jax.eval_shape(lambda s: made.segment(s, (), jnp.int32(0), UPDATES), state)
    assert shapes(state) == shapes(begun) == shapes(after)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in METHODS if n not in REFUSED])
def test_every_method_learns_over_a_switch(name):
    found = run(over_seeds(program(name), len(SEEDS)), SEEDS, (UPDATES,) * 2, QUICK)
    train = joined(found.records)
    assert (train["alive"] == 1).all()
    assert np.isfinite(train["td_loss"][:, -UPDATES:]).all()
    assert np.isfinite(found.records[1].probe["spy/slope"]).all()
    assert (found.records[1].probe["spy/params"][:, 1] != found.records[1].probe["spy/params"][:, 0]).any()


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_agents_are_of_32_bits_where_jax_has_64_enabled():
    made = program("l2")
    state = jax.eval_shape(made.init, jax.random.key(0), ())
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((state.params, state.memory.target)))
    after, _ = jax.eval_shape(lambda s: made.segment(s, (), jnp.int32(0), UPDATES), state)
    assert shapes(state) == shapes(after)
