"""What the benchmarks against rejax share: its adapter to gymnax 1.0, the judge of both sides' policies, the table."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from experiments.bench._bars import machine, table
from experiments.bench._measure import Times
from plastax.report.statistics import mean_interval


class FiveValues:
    """gymnax 1.0's environment with the five-value step of gymnax 0.0, all that rejax calls."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.default_params = env.default_params

    def reset(self, key: Any, params: Any) -> Any:
        """(observation, state)."""
        return self.env.reset(key, params)

    def step(self, key: Any, state: Any, action: Any, params: Any) -> Any:
        """(observation, state, reward, done, info)."""
        obs, state, reward, terminated, truncated, info = self.env.step(key, state, action, params)
        return obs, state, reward, jnp.logical_or(terminated, truncated), info

    def action_space(self, params: Any) -> Any:
        """Gymnax's own."""
        return self.env.action_space(params)

    def observation_space(self, params: Any) -> Any:
        """Gymnax's own."""
        return self.env.observation_space(params)


@functools.partial(jax.jit, static_argnums=0)
def evaluate(act: Callable[[Any, Any, Any], Any], params: Any, key: Any) -> Any:
    """Mean undiscounted return of 64 CartPole episodes (at most 500 steps) of one policy: the judge of both sides."""
    import gymnax

    env, env_params = gymnax.make("CartPole-v1")

    def episode(key: Any) -> Any:
        obs, state = env.reset(key, env_params)

        def step(carry: Any, key: Any) -> Any:
            obs, state, alive, total = carry
            act_key, step_key = jax.random.split(key)
            obs, state, reward, terminated, truncated, _ = env.step(
                step_key, state, act(params, obs, act_key), env_params
            )
            return (obs, state, alive & ~(terminated | truncated), total + alive * reward), None

        carry = (obs, state, jnp.bool_(True), jnp.float32(0))
        return jax.lax.scan(step, carry, jax.random.split(jax.random.fold_in(key, 1), 500))[0][3]

    return jax.vmap(episode)(jax.random.split(key, 64)).mean()


def row(seeds: int, side: str, steps: int, taken: Times, ours: Times, judged: Any) -> dict[str, Any]:
    """The numbers of one side: ``steps`` of all seeds in a round, and the seeds' final returns ``[S]``."""
    judge = mean_interval(np.asarray(judged))
    (wall, cpu), (wall_ratio, cpu_ratio) = taken.median(), taken.ratio(ours).median()
    return {
        "seeds": seeds, "side": side, "steps_per_second": steps / wall, "steps_per_cpu_second": steps / cpu,
        "time_over_plastax": wall_ratio, "cpu_time_over_plastax": cpu_ratio,
        "final_return": [float(judge.mean), float(judge.low), float(judge.high)],
    }  # fmt: skip


def show(agent: str, rows: Sequence[dict[str, Any]], out: Path | None) -> None:
    """Prints the table, and writes the numbers as JSON."""
    texts = [
        {"seeds": str(row["seeds"]), "side": row["side"], "steps/s": f"{row['steps_per_second']:,.0f}",
         "steps/CPU-s": f"{row['steps_per_cpu_second']:,.0f}", "time / ours": f"{row['time_over_plastax']:.2f}",
         "CPU time / ours": f"{row['cpu_time_over_plastax']:.2f}",
         "final return [95 % CI]": "{:.0f} [{:.0f}, {:.0f}]".format(*row["final_return"])}
        for row in rows
    ]  # fmt: skip
    Console().print(table(f"CartPole {agent}, {machine()}", texts))
    if out:
        out.write_text(json.dumps(rows, indent=1))
