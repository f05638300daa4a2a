"""The parts of DQN: n-step transitions, the loss and its curvature, settings that are refused, memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import rl_gymnax
from plastax.errors import ConfigError
from plastax.models import ActorCritic
from plastax.rl import STREAMS, action_values, dqn, replay
from plastax.rl.action_values import ValueBatch
from plastax.rl.replay import Steps

ROWS, ENVS = 12, 2


def recorded() -> Steps:
    """Steps ``[ROWS, ENVS]`` whose observations are their numbers; episodes end in every way, also twice in a row."""
    rng = np.random.default_rng(0)
    number = np.arange(ROWS * ENVS, dtype=np.float32).reshape(ROWS, ENVS, 1)
    terminated, truncated = np.zeros((2, ROWS, ENVS), bool)
    terminated[[2, 3, 8], 0] = truncated[[5, 8], 0] = True
    truncated[[0, 7, 11], 1] = True
    reward = rng.normal(size=(ROWS, ENVS)).astype(np.float32)
    return Steps(number, rng.integers(0, 3, (ROWS, ENVS)), reward, terminated, truncated, number + 0.5)


def turned(steps: Steps) -> Steps:
    """``[ENVS, ROWS]``."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), steps)


def part(steps: Steps, start: int, stop: int) -> Steps:
    return jax.tree.map(lambda x: x[:, start:stop], steps)


@pytest.mark.parametrize("n", [1, 4])
def test_transitions_end_with_the_episode_and_after_n_steps(n):
    steps, gamma = recorded(), 0.9
    found = jax.jit(lambda steps: replay.transitions(replay.windows(steps, n), gamma))(turned(steps))
    row, env = (x.reshape(-1) for x in np.mgrid[: ROWS - n + 1, :ENVS])
    assert found.action.shape == row.shape
    for i, (t, e) in enumerate(zip(row, env)):
        total, discount = 0.0, 1.0
        for k in range(n):
            at = t + k, e
            total += discount * steps.reward[at]
            discount *= gamma
            if steps.terminated[at] or steps.truncated[at]:
                break
        assert found.observation[i] == steps.observation[t, e]
        assert found.action[i] == steps.action[t, e]
        assert found.successor[i] == steps.successor[at]
        np.testing.assert_allclose(found.rewards[i], total, rtol=1e-6)
        # A truncation is not a termination: its successor has a value. If both are true, it has none.
        np.testing.assert_allclose(found.discount[i], 0 if steps.terminated[at] else discount, rtol=1e-6)


@pytest.mark.parametrize("cleared", [0, 5])
@pytest.mark.parametrize("added", [5, ROWS])
def test_only_complete_transitions_of_the_newest_rows_are_drawn_all_of_them_alike(added, cleared):
    """A buffer of 7 rows, which was cleared after some of the rows that were added."""
    steps, n, held = turned(recorded()), 3, min(added - cleared, 7)
    buffer = replay.buffer(7, ENVS, 8_000, n)

    @jax.jit
    def draw(state, key):
        for row in range(added):
            state = replay.clear(state) if row == cleared else state
            state = buffer.add(state, part(steps, row, row + 1))
        return buffer.sample(state, key).experience

    state = buffer.init(jax.tree.map(lambda x: x[0, 0], steps))
    if held < n:
        assert not buffer.can_sample(state)
        return
    drawn = jax.tree.map(np.asarray, draw(state, jax.random.key(0)))
    assert drawn.reward.shape == (8_000, n)
    np.testing.assert_array_equal(drawn.observation[..., 0], drawn.observation[:, :1, 0] + ENVS * np.arange(n))
    number, count = np.unique(drawn.observation[:, 0], return_counts=True)
    rows = range(added - held, added - n + 1)
    np.testing.assert_array_equal(number, [r * ENVS + e for r in rows for e in range(ENVS)])
    np.testing.assert_allclose(count / 8_000, 1 / len(number), atol=5 * np.sqrt(1 / len(number) / 8_000))


def test_the_newest_row_is_cut_also_where_the_buffer_begins_again():
    steps, buffer = turned(recorded()), replay.buffer(8, ENVS, 4, 1)
    state = buffer.init(jax.tree.map(lambda x: x[0, 0], steps))
    for first, row in ((0, 3), (4, 7), (8, 3)):
        state = buffer.add(state, part(steps, first, first + 4))
        end = replay.cut(state).experience
        assert end.truncated[:, row].all()
        np.testing.assert_array_equal(np.delete(end.truncated, row, 1), np.delete(state.experience.truncated, row, 1))
        np.testing.assert_array_equal(end.terminated, state.experience.terminated)


def test_targets_of_double_q_learning():
    batch = replay.Transitions(*[jnp.zeros(1)] * 2, jnp.array([1.0, 1.0]), jnp.zeros(1), jnp.array([0.5, 0.0]))
    online, target = jnp.array([[0.0, 1.0]] * 2), jnp.array([[4.0, 2.0]] * 2)
    np.testing.assert_array_equal(action_values.targets(batch, online, target, True), [2.0, 1.0])
    np.testing.assert_array_equal(action_values.targets(batch, online, target, False), [3.0, 1.0])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("threshold", [0.0, 0.7])
def test_curvature_of_the_loss_is_its_hessian(threshold):
    rng = np.random.default_rng(1)
    values, action = jnp.asarray(rng.normal(size=(8, 3))), jnp.asarray(rng.integers(0, 3, 8))
    batch = ValueBatch(jnp.zeros(8), action, jnp.asarray(rng.normal(size=8)))
    loss = action_values.huber(threshold)
    error = np.asarray(values)[np.arange(8), action] - batch.target
    linear = np.abs(error) > threshold if threshold else np.zeros(8, bool)
    assert linear.any() == bool(threshold)
    expected = np.where(linear, threshold * (np.abs(error) - threshold / 2), error**2 / 2).mean()
    np.testing.assert_allclose(loss.value(values, batch), expected, rtol=1e-12)
    dense = jax.jit(jax.hessian(lambda v: loss.value(v.reshape(8, 3), batch)))(values.reshape(-1))
    product_with = jax.vmap(lambda t: loss.curvature(values, batch, t.reshape(8, 3)).reshape(-1))
    product = jax.jit(product_with)(jnp.eye(24))
    np.testing.assert_allclose(product, dense, atol=1e-14)
    root = loss.root(values, batch).reshape(-1, 8, 3)
    per_example = np.einsum("kbi,kbj->bij", root, root)
    np.testing.assert_allclose(per_example, np.stack([dense[3 * i : 3 * i + 3, 3 * i : 3 * i + 3] for i in range(8)]))
    draw = jax.jit(jax.vmap(lambda key: loss.sample(values, batch, key)))
    drawn = draw(jax.random.split(jax.random.key(0), 20_000))
    np.testing.assert_allclose(np.einsum("sbi,sbj->bij", drawn, drawn) / 20_000, per_example, atol=0.01)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train_every": 3}, r"dqn.train_every: 3 does not divide num_steps 128"),
        ({"replay_ratio": 0.3}, r"dqn.replay_ratio: 0.3 x 16 environment steps .* are 4.8 gradient steps"),
        ({"replay_ratio": 1 / 32}, r"dqn.replay_ratio: .* are 0.5 gradient steps"),
        ({"capacity": 10_001}, r"dqn.capacity: 10001 is not allowed; give a multiple of num_envs, 4,"),
        ({"capacity": 16, "n_step": 5}, r"dqn.capacity: 16 is not allowed; .* at least num_envs x .*, 20"),
        ({"capacity": 12}, r"dqn.capacity: 12 is not allowed; .* at least num_envs x .*, 16"),
        ({"target_rate": 1.5}, r"dqn.target_rate: 1.5 is not allowed"),
        ({"buffer_at_switch": "drop"}, r"dqn.buffer_at_switch: 'drop' is unknown; allowed: keep, clear"),
        ({"gamma": 1.1}, r"dqn.gamma: 1.1 is not allowed; give a number from 0 to 1"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        dqn.DQN(**settings)


def test_streams_that_cannot_be_played_are_refused():
    with pytest.raises(ConfigError, match=r"agent: dqn needs discrete actions"):
        dqn.batch_like(dqn.DQN(), STREAMS["pendulum_chain"].spaces())
    with pytest.raises(ConfigError, match=r"dqn.warmup: 1000 is not allowed for tasks of 512 steps"):
        dqn.DQN().check_task(1)


def test_a_network_of_action_values_has_one_branch():
    model = ActorCritic((8, 6)).build((4,), 3, continuous=None)
    assert model.hidden == ("dense_0", "dense_1")
    outputs, features = model.apply(model.init(jax.random.key(0)), jnp.ones((5, 4)))
    assert outputs.shape == (5, 3)
    assert {name: x.shape for name, x in features.items()} == {"dense_0": (5, 8), "dense_1": (5, 6)}


def test_games_are_kept_in_a_quarter_of_the_memory():
    environment = STREAMS["minatar_chain"].build().environment
    kept = jax.eval_shape(lambda: replay.buffer(10, 2, 1, 1).init(replay.step_like(environment))).experience
    assert kept.observation.shape == kept.successor.shape == (2, 10, *environment.observation_shape)
    assert kept.observation.dtype == kept.successor.dtype == jnp.bool_


def test_buffers_that_do_not_fit_into_memory_are_refused_in_one_line(tmp_path, capsys):
    line = "--preset smoke --agent dqn --dqn.capacity 2000000000 --seeds 1000 --method backprop --probes none"
    with pytest.raises(SystemExit) as stop:
        rl_gymnax.EXPERIMENT.main([*line.split(), "--wandb", "disabled", "--runs-dir", str(tmp_path)])
    said = capsys.readouterr().err
    assert (stop.value.code, said.count("\n")) == (1, 1)
    assert "out of memory in backprop: 1,000 networks are" in said
    assert "dqn.capacity (2000000000)" in said
    assert not list(tmp_path.iterdir())
