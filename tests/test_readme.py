"""The Python examples of every README.md run, in their order, on names that a reader has."""

from __future__ import annotations

import importlib.util
import pathlib
import re
import runpy
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import plastax
from plastax.records import files, layout
from plastax.types import Params, Record

ROOT = pathlib.Path(__file__).parent.parent
FOUND = [ROOT / "README.md", *sorted(path for top in ("plastax", "experiments") for path in (ROOT / top).rglob("*.md"))]
BLOCKS = {
    path.relative_to(ROOT).as_posix(): re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    for path in FOUND
}
EXPERIMENTS = [(name, block) for name, blocks in BLOCKS.items() for block in blocks if "EXPERIMENT =" in block]
OF_RUNS = [(name, block) for name, blocks in BLOCKS.items() for block in blocks if "plastax.load(" in block]
OF_STUDIES = [(name, block) for name, blocks in BLOCKS.items() for block in blocks if ".run()" in block]
MADE = {name: [b for b in blocks if "study =" in b and ".run()" not in b] for name, blocks in BLOCKS.items()}
OF_CHECKPOINTS = [(name, block) for name, blocks in BLOCKS.items() for block in blocks if "plastax.inspect(" in block]
MISSING = [name for name in ("equinox",) if importlib.util.find_spec(name) is None]  # no dependency of plastax
OF_NETWORKS = {
    name: [
        block
        for block in blocks
        if not {(name, block)} & {*EXPERIMENTS, *OF_RUNS, *OF_STUDIES, *OF_CHECKPOINTS}
        and block not in MADE[name]
        and not any(f"import {one}" in block for one in MISSING)
    ]
    for name, blocks in BLOCKS.items()
}


class Net(nn.Module):
    """Outputs alone, as most networks are written."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(16, name="dense_0")(x))
        return nn.Dense(3, name="dense_1")(x)


def names(params: Params, batch: tuple[jax.Array, jax.Array], key: jax.Array) -> dict:
    """What examples take for granted: a network, its loss and its features."""
    module = Net()

    def features_fn(params, batch):
        return {"dense_0": nn.relu(batch[0] @ params["dense_0"]["kernel"])}

    def loss_fn(params, batch):
        logits = module.apply({"params": params}, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    def apply(params, x):
        return module.apply({"params": params}, x), features_fn(params, (x,))

    return {"jax": jax, "plastax": plastax, **locals()}


@pytest.mark.parametrize("readme", [name for name, blocks in OF_NETWORKS.items() if blocks])
def test_examples_of_a_library_user_run(readme: str) -> None:
    """All of a page in one program: it compiles in a fraction of the time of its single operations."""
    rng = np.random.default_rng(0)
    batch = (jnp.asarray(rng.standard_normal((12, 4)), jnp.float32), jnp.asarray(rng.integers(0, 3, 12)))

    def page(key: jax.Array) -> dict:
        given = names(Net().init(key, batch[0])["params"], batch, key)
        scope = given | {"__name__": readme}  # or dataclasses would write into the module `builtins`
        for block in OF_NETWORKS[readme]:
            exec(compile(block, readme, "exec", dont_inherit=True), scope)
        made = {name: value for name, value in scope.items() if given.get(name) is not value}
        return {name: value for name, value in made.items() if arrays(value)}

    for name, value in jax.jit(page)(jax.random.key(0)).items():
        for leaf in jax.tree.leaves(value):
            assert np.isfinite(leaf).all(), name


def arrays(value: object) -> bool:
    """Whether something is a tree of nothing but numbers that were computed."""
    leaves = jax.tree.leaves(value)
    return bool(leaves) and all(isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.number) for x in leaves)


@pytest.fixture
def elsewhere(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The working directory, empty and outside of the checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("readme", "block"), EXPERIMENTS, ids=[name for name, _ in EXPERIMENTS])
def test_experiments_run_as_files_of_their_own(elsewhere, monkeypatch, capsys, readme, block) -> None:
    (elsewhere / "own.py").write_text(block)
    monkeypatch.setattr("sys.argv", ["own.py", "--preset", "smoke", "--dry-run"])
    runpy.run_path("own.py", run_name="__main__")
    assert capsys.readouterr().out.endswith("nothing was run\n")
    assert [path.name for path in elsewhere.iterdir()] == ["own.py"]


@pytest.mark.slow  # Whole runs, as small as they can be.
@pytest.mark.parametrize(("readme", "block"), OF_STUDIES, ids=[name for name, _ in OF_STUDIES])
def test_examples_of_studies_run(elsewhere, readme, block) -> None:
    small = "plastax.Study(preset='smoke', tasks=1, settings={'track': [], 'stream.examples': 40}, "
    exec(compile(block.replace("plastax.Study(", small).replace("seeds=4", "seeds=1"), readme, "exec"), {})
    assert [path.name for path in elsewhere.iterdir()] == ["runs"]


@pytest.mark.parametrize("readme", [name for name, blocks in MADE.items() if blocks])
def test_studies_of_ones_own_things_are_ready_to_run(elsewhere, readme) -> None:
    for number, block in enumerate(MADE[readme]):
        scope = {"plastax": plastax, "__name__": f"{readme} {number}"}
        module = types.ModuleType(scope["__name__"])  # Where its classes say that they are from.
        module.__dict__.update(scope)
        sys.modules[module.__name__] = module
        exec(compile(block, readme, "exec", dont_inherit=True), module.__dict__)
        study = module.study
        study.experiment.build(study.config)


@pytest.mark.slow  # compiles all that it measures
@pytest.mark.parametrize(("readme", "block"), OF_CHECKPOINTS, ids=[name for name, _ in OF_CHECKPOINTS])
def test_examples_of_checkpoints_run(elsewhere, readme, block) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((24, 4), np.float32), np.arange(24) % 3
    (elsewhere / "ckpts").mkdir()
    for step in range(2):
        params = Net().init(jax.random.key(step), x)["params"]
        leaves = {f"{layer}/{name}": leaf for layer, of in params.items() for name, leaf in of.items()}
        np.savez(elsewhere / "ckpts" / f"step_{step}.npz", **leaves)
    scope = {"plastax": plastax, "x": x, "y": y, "apply": lambda params, x: Net().apply({"params": params}, x)}
    exec(compile(block, readme, "exec"), scope)
    assert np.isfinite(scope["run"].data["probe/hessian/rank"]).any()


@pytest.mark.parametrize("readme", dict(OF_RUNS))
def test_examples_of_a_runs_reader_run(elsewhere, readme) -> None:
    """On a run of two methods, one of them swept; what an example selects is there."""
    arms = {"reset": {"method": "reset", "settings": {}}}
    arms |= {f"l2_er@l2={l2}": {"method": "l2_er", "settings": {"method.l2": l2}} for l2 in (0.0, 1e-4)}
    settings = {"methods": ["reset", "l2_er"], "seeds": 2, "tasks": 1, "updates_per_task": 3}
    directory = pathlib.Path("runs/rl_gymnax/<run id>")
    dims = {"hessian/nodes": ["probe", "node"]}
    config = {"experiment": "rl_gymnax", "run_id": "one", "settings": settings, "arms": arms, "dims": dims}
    files.write_json(directory / "config.json", config)
    probe = {"hessian/nodes": np.ones((2, 2, 1, 4)), "hessian/relative_rank": np.ones((2, 2))}
    for k, arm in enumerate(arms):
        values = Record({"episode_return": np.full((2, 3), k)}, probe)
        layout.write_segment(directory / "records" / arm, 0, values, {"clock": 0, "length": 3, "task": 0})
    scope = {"plastax": plastax}
    for name, block in OF_RUNS:
        if name == readme:
            exec(compile(block, readme, "exec"), scope)
            one = scope | {"data": plastax.load(directory)}
            for line in block.splitlines():
                if ".sel(" in line:
                    assert len(eval(line, one)), line
