"""Every Python example of the README runs, in the README's order, on names that a reader has."""

from __future__ import annotations

import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import plastax
from plastax.records import layout
from plastax.types import Record

README = pathlib.Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
OF_RUNS = [block for block in BLOCKS if "plastax.load" in block]
OF_NETWORKS = [block for block in BLOCKS if block not in OF_RUNS]


class Net(nn.Module):
    """Outputs alone, as most networks are written."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(16, name="dense_0")(x))
        return nn.Dense(3, name="dense_1")(x)


def test_examples_of_a_library_user_run() -> None:
    module, key = Net(), jax.random.key(0)
    rng = np.random.default_rng(0)
    batch = (jnp.asarray(rng.standard_normal((12, 4)), jnp.float32), jnp.asarray(rng.integers(0, 3, 12)))
    params = module.init(key, batch[0])["params"]

    def features_fn(params, batch):
        return {"dense_0": nn.relu(batch[0] @ params["dense_0"]["kernel"])}

    def loss_fn(params, batch):
        logits = module.apply({"params": params}, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    def apply(params, x):
        return module.apply({"params": params}, x), features_fn(params, (x,))

    scope = {
        "jax": jax, "module": module, "params": params, "batch": batch, "key": key, "loss_fn": loss_fn,
        "features_fn": features_fn, "apply": apply,
    }  # fmt: skip
    for block in OF_NETWORKS:
        exec(compile(block, "README.md", "exec"), scope)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), scope["params"], params)
    assert max(jax.tree.leaves(moved)) > 0
    own, given = (
        scope["tx"],
        jax.tree.map(jnp.ones_like, params),
    )  # the last method of the README, by its declared roles
    updates, _ = own.update(given, own.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert scope["values"]["features/effective_rank"].shape == (1,)
    assert set(scope["factors"]) == {"dense_0", "dense_1"}
    assert float(scope["s"].trace().value) > 0


def test_examples_of_a_runs_reader_run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a run of two methods, one of them swept, of which the examples select what they say."""
    arms = {"reset": {"method": "reset", "settings": {}}}
    arms |= {f"l2_er@l2={l2}": {"method": "l2_er", "settings": {"method.l2": l2}} for l2 in (0.0, 1e-4)}
    settings = {"methods": ["reset", "l2_er"], "seeds": 2, "tasks": 1, "updates_per_task": 3}
    monkeypatch.chdir(tmp_path)
    directory = pathlib.Path("runs/rl_gymnax/<run id>")
    dims = {"hessian/nodes": ["probe", "node"]}
    config = {"experiment": "rl_gymnax", "run_id": "one", "settings": settings, "arms": arms, "dims": dims}
    layout.write_json(directory / "config.json", config)
    probe = {"hessian/nodes": np.ones((2, 2, 1, 4)), "hessian/relative_rank": np.ones((2, 2))}
    for k, arm in enumerate(arms):
        values = Record({"episode_return": np.full((2, 3), k)}, probe)
        layout.write_segment(directory / "records" / arm, 0, values, {"clock": 0, "length": 3, "task": 0})
    scope: dict = {}
    selected = []
    for block in OF_RUNS:
        exec(compile(block, "README.md", "exec"), scope)
        for line in block.splitlines():
            if ".sel(arm=" in line:
                selected.append(np.atleast_1d(eval(line, scope | {"data": plastax.load(directory)})["arm"]).tolist())
    assert selected == [["reset"], ["l2_er@l2=0.0001"], ["l2_er@l2=0.0", "l2_er@l2=0.0001"]]
