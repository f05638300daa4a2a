"""Checkpoints that others wrote: the numbers of a dense reference, and the report of a run."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import struct
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plastax
from plastax import __main__ as cli
from plastax import report
from plastax.errors import ConfigError, RecordError
from plastax.inspecting import checkpoints
from plastax.models import MLP
from plastax.probes import FeatureProbe, GradientProbe, Hessian, KroneckerSpectrum
from plastax.records.layout import write_json
from plastax.runs.networks import Keeping
from plastax.tree import named_leaves

INPUTS, WIDTH, CLASSES, SERIES = 3, 4, 3, 3
EXAMPLES = 12
COUNT = INPUTS * WIDTH + WIDTH + WIDTH * CLASSES


def apply(params: Any, x: Any) -> Any:
    hidden = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    return hidden @ params["out"]["kernel"]


def smooth(params: Any, x: Any) -> Any:
    return jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None]) @ params["out"]["kernel"]


def networks() -> list[dict[str, Any]]:
    """Three networks whose features have rank 3, 2 and 1."""
    rng = np.random.default_rng(0)
    kernel, out = rng.normal(size=(INPUTS, WIDTH)), rng.normal(size=(WIDTH, CLASSES))
    made = []
    for rank in (3, 2, 1):
        left, values, right = np.linalg.svd(kernel, full_matrices=False)
        low = left[:, :rank] * values[:rank] @ right[:rank]
        tree = {"hidden": {"kernel": low, "bias": np.zeros(WIDTH)}, "out": {"kernel": out}}
        made.append(jax.tree.map(lambda x: x.astype(np.float32), tree))
    return made


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    # Copies, so that whichever examples are held out the others are all there.
    return rng.normal(size=(EXAMPLES, INPUTS)).astype(np.float32), np.arange(EXAMPLES) % CLASSES


def flat(tree: Any) -> dict[str, np.ndarray]:
    return {f"{layer}.{name}": array for layer, inner in tree.items() for name, array in inner.items()}


def as_npz(place: pathlib.Path, trees: list[Any]) -> list[Any]:
    for k, tree in enumerate(trees):
        np.savez(place / f"step_{8 + k}.npz", **flat(tree))
    return [place / f"step_{8 + k}.npz" for k in range(len(trees))]


def as_safetensors(place: pathlib.Path, trees: list[Any]) -> list[Any]:
    for k, tree in enumerate(trees):
        header, body = {"__metadata__": {"format": "pt"}}, b""
        for name, array in flat(tree).items():
            offsets = [len(body), len(body) + array.nbytes]
            header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": offsets}
            body += array.tobytes()
        told = json.dumps(header).encode()
        (place / f"step_{8 + k}.safetensors").write_bytes(struct.pack("<Q", len(told)) + told + body)
    return [place / "step_*.safetensors"]


def as_orbax(place: pathlib.Path, trees: list[Any]) -> list[Any]:
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
    with ocp.CheckpointManager(place / "series", options=options) as manager:
        for k, tree in enumerate(trees):
            manager.save(8 + k, args=ocp.args.StandardSave({"params": tree, "step": np.asarray(8 + k)}))
        manager.wait_until_finished()
    return [place / "series"]


def as_plastax(place: pathlib.Path, trees: list[Any]) -> list[Any]:
    """A run with two networks, of which the second is the one."""
    settings = {"methods": ["l2"], "seeds": 2, "tasks": 12, "updates_per_task": 1}
    config = {"experiment": "e", "run_id": "r", "settings": settings}
    write_json(place / "run" / "config.json", config)
    for k, tree in enumerate(trees):
        leaves = {f"params/{name.replace('.', '/')}": np.stack([0 * x, x]) for name, x in flat(tree).items()}
        Keeping(1).take(place / "run", config, 8 + k, {"l2": leaves})
    return [place / "run"]


PROBES = (FeatureProbe(), GradientProbe(), Hessian(order=COUNT, probes=1), KroneckerSpectrum())


def looked(series: list[Any], place: pathlib.Path, **options: Any) -> Any:
    given = {"data": data(), "probes": PROBES, "seeds": 2, "examples": 8} | options
    return plastax.inspect(series, given.pop("apply", apply), runs_dir=place / "runs", **given)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run of trees in memory."""
    return looked(networks(), tmp_path_factory.mktemp("reference"))


def test_numbers_are_those_of_dense_matrices(reference: Any) -> None:
    data_ = reference.data
    dataset = plastax.data.load(data())
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), networks()[0])
        rebuild = jax.flatten_util.ravel_pytree(wide)[1]

    def loss(vector: Any, x: Any, y: Any) -> Any:
        logits = jax.nn.log_softmax(apply(rebuild(vector), x))
        return -jnp.mean(logits[jnp.arange(len(y)), y])

    dense = jax.jit(lambda *args: (loss(*args), jax.hessian(loss)(*args)))
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(len(dataset.train_images))[:8]
        x, y = dataset.train_images[order].astype(np.float64), dataset.train_labels[order]
        for k, params in enumerate(networks()):
            values = data_.isel(arm=0, seed=seed, task=k).sel(mark="init")
            features = np.maximum(x @ params["hidden"]["kernel"].astype(np.float64), 0.0)
            with jax.enable_x64(True):
                leaves = np.asarray(jax.flatten_util.ravel_pytree(params)[0], np.float64)
                value, hessian = map(np.asarray, dense(leaves, x, y))
            eigenvalues = np.linalg.eigvalsh(hessian)
            np.testing.assert_allclose(values["probe/evaluation/train_loss"], value, rtol=1e-5)
            np.testing.assert_allclose(values["probe/hessian/largest"], eigenvalues[-1], rtol=1e-4)
            np.testing.assert_allclose(values["probe/hessian/smallest"], eigenvalues[0], rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(
                values["probe/features/numerical_rank"].item(), np.linalg.matrix_rank(features.astype(np.float32))
            )
            np.testing.assert_allclose(values["probe/features/dead_units"], np.mean((features == 0).all(axis=0)))
            inputs = np.concatenate([x, np.ones((len(x), 1))], axis=1)
            a = np.linalg.eigvalsh(inputs.T @ inputs / len(x))
            np.testing.assert_allclose(values["probe/kronecker/a_largest"].sel(layer="hidden"), a[-1], rtol=1e-5)


@pytest.mark.parametrize("write", [as_npz, as_safetensors, as_orbax, as_plastax])
def test_every_kind_of_checkpoint_holds_the_same_trees(write: Callable[..., list[Any]], tmp_path: pathlib.Path) -> None:
    found = checkpoints.find(write(tmp_path, networks()), network=1)
    assert [re.findall(r"\d+", one.name)[-1].lstrip("0") for one in found] == ["8", "9", "10"]
    for one, wanted in zip(found, networks(), strict=True):
        jax.tree.map(np.testing.assert_array_equal, checkpoints.parameters(one.read()), wanted)


@pytest.mark.slow  # What the files hold is tested above.
def test_a_run_of_files_is_that_of_trees(reference: Any, tmp_path: pathlib.Path) -> None:
    run = looked(as_orbax(tmp_path, networks()), tmp_path)
    for name, array in reference.data.data_vars.items():
        if not str(name).startswith("host/"):
            np.testing.assert_array_equal(array.values, run.data[name].values, err_msg=str(name))
    assert [pathlib.Path(name).name for name in run.config["settings"]["checkpoints"]] == ["8", "9", "10"]


def test_it_is_reported_compared_and_exported_as_a_run(
    reference: Any, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reference.status.state == "finished"
    page = (reference.directory / "report.html").read_text()
    assert "in each checkpoint" in page
    assert "Does the network keep its accuracy" not in page  # Two draws have no interval.
    assert "task start" not in page.rpartition("</head>")[2]
    assert "Kronecker" in page
    assert "ε-rank" in page or "eps-rank" in page
    assert (reference.directory / "figures" / "overview.png").exists()
    assert {axes.get_xlabel() for axes in reference.plot("ranks").figure.axes} <= {"checkpoint", ""}
    assert reference.table().loc["network", "train_accuracy_late"] >= 0
    frame = report.print_comparison([reference.directory, reference.directory], quantity="hessian/rank")
    assert set(frame["run"]) == {"A", "B"}
    assert "checkpoints are numbered from 0" in " ".join(capsys.readouterr().out.split())
    report.write_and_print([reference.directory] * 2, tmp_path / "both.html")
    assert "in each checkpoint" in (tmp_path / "both.html").read_text()
    cli.main(["export", str(reference.directory), "--format", "csv", "--out", str(tmp_path)])
    assert (tmp_path / "probe.csv").exists()
    assert plastax.load(reference.directory)["probe/hessian/rank"].sizes["task"] == SERIES


@pytest.mark.slow  # starts a process
def test_the_command_finds_a_function_in_a_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    as_npz(tmp_path, networks())
    np.savez(tmp_path / "data.npz", x=data()[0], y=data()[1])
    (tmp_path / "inspected_net.py").write_text(
        "import jax.numpy as jnp\n\n\ndef forward(params, x):\n"
        "    hidden = jnp.tanh(x @ params['hidden']['kernel'] + params['hidden']['bias'][None])\n"
        "    return hidden @ params['out']['kernel']\n"
    )
    files = "step_10.npz step_9.npz step_8.npz --apply inspected_net.py:forward --data data.npz"
    rest = "--probes features hessian --hessian.order 4 --hessian.probes 1 --seeds 1 --examples 8"
    cli.main(["inspect", *files.split(), *rest.split()])
    (directory,) = (tmp_path / "runs" / "inspect").iterdir()
    config = json.loads((directory / "config.json").read_text())
    # In the given order.
    assert config["settings"]["checkpoints"] == ["step_10.npz", "step_9.npz", "step_8.npz"]
    assert config["settings"]["hessian"]["order"] == 4
    assert len(config["settings"]["apply_source"]) == 64
    told = capsys.readouterr()
    assert directory.name in told.out.replace("\n", "")
    assert "The dormancy of this network says little" in told.err
    assert "The dormancy of this network says little" in (directory / "report.html").read_text()


class Net(nn.Module):
    """A module without settings, whose layers are called as in the checkpoints."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(CLASSES, name="out", use_bias=False)(nn.relu(nn.Dense(WIDTH, name="hidden")(x)))


def quick(series: Any, place: pathlib.Path, **options: Any) -> Any:
    return looked(series, place, apply=None, probes=("features",), seeds=1, **options).data


def test_a_module_stands_for_a_function(reference: Any, tmp_path: pathlib.Path) -> None:
    variables = [{"params": tree, "opt_state": {}, "step": 3} for tree in networks()]
    found, wanted = quick(variables, tmp_path, model=Net), reference.data.isel(seed=[0])
    for name in ("probe/features/numerical_rank", "probe/evaluation/train_loss"):
        np.testing.assert_allclose(found[name].values, wanted[name].values, rtol=1e-6)


def test_a_run_of_plastax_says_what_its_network_is(tmp_path: pathlib.Path) -> None:
    model = MLP(hidden=(WIDTH,)).build((INPUTS,), CLASSES)
    settings = {"methods": ["l2"], "seeds": 1, "tasks": 2, "updates_per_task": 1, "model": "mlp"}
    settings["model_settings"] = dataclasses.asdict(MLP(hidden=(WIDTH,)))
    config = {"experiment": "e", "run_id": "r", "settings": settings}
    write_json(tmp_path / "run" / "config.json", config)
    for task in range(2):
        leaves = named_leaves(model.init(jax.random.key(task)))
        leaves = {f"params/{name}": np.asarray(x)[None] for name, x in leaves.items()}
        Keeping(1).take(tmp_path / "run", config, task, {"l2": leaves})
    assert quick(tmp_path / "run", tmp_path)["probe/features/rows"].sizes["task"] == 2


@pytest.mark.slow  # compiles another loss
def test_targets_are_compared_by_mean_squares(tmp_path: pathlib.Path) -> None:
    x = data()[0]
    y = np.stack([x.sum(axis=1), x[:, 0], 0 * x[:, 0]], axis=1)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    found = quick(networks(), tmp_path, model=Net, data=tmp_path / "data.npz", loss="mse", examples=EXAMPLES)
    losses = [np.mean((np.asarray(apply(one, x)) - y) ** 2) for one in networks()]
    np.testing.assert_allclose(found["train/loss"].values.ravel(), losses, rtol=1e-5)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda trees: trees[2]["out"].pop("kernel"), r"step_10.npz has no out/kernel"),
        (
            lambda trees: trees[1]["out"].update(kernel=np.ones((5, 3))),
            r"step_9.npz: out/kernel is \[5, 3\]; .* \[4, 3\]",
        ),
        (lambda trees: trees[1].update(new={"bias": np.ones(2)}), r"step_9.npz holds new/bias, which the first"),
    ],
)
def test_checkpoints_that_do_not_fit_are_named(spoil: Any, said: str, tmp_path: pathlib.Path) -> None:
    trees = networks()
    spoil(trees)
    with pytest.raises(ConfigError, match=said):
        looked(as_npz(tmp_path, trees), tmp_path)
    assert not (tmp_path / "runs").exists()


def test_what_cannot_be_used_is_said(tmp_path: pathlib.Path) -> None:
    (tmp_path / "net.pkl").write_bytes(b"\x80\x04")
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    (tmp_path / "cut.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    lying = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "lying.safetensors").write_bytes(struct.pack("<Q", len(lying)) + lying + bytes(4))
    (tmp_path / "empty").mkdir()
    for name, error, said in [
        ("net.pkl", ConfigError, "reading a pickle can run any code"),
        ("objects.npz", RecordError, "Object arrays cannot be loaded"),
        ("cut.safetensors", RecordError, "header is longer than the file"),
        ("lying.safetensors", RecordError, "the place of a does not fit its shape"),
        ("empty", ConfigError, "a folder without checkpoints"),
        ("nowhere", ConfigError, "there is no"),
        ("none_*", ConfigError, "nothing matches"),
    ]:
        with pytest.raises(error, match=said):
            looked([tmp_path / name], tmp_path)
    for options, said in [
        ({"apply": None}, "give either it"),
        ({"apply": lambda params, x: params["nothing"]}, "cannot be called with tree 0 and inputs .*KeyError"),
        ({"apply": lambda params, x: jnp.ones(3)}, "the data needs outputs"),
        ({"probes": ("nothing",)}, "probes"),
        ({"probes": ("plasticity",)}, "plasticity needs init"),
        ({"loss": "mse"}, "needs inputs x"),
        ({"loss": "hinge"}, "loss"),
        ({"seeds": 0}, "seeds"),
        ({"part": "state"}, "part: state is not in the checkpoint"),
    ]:
        with pytest.raises(ConfigError, match=said):
            looked(networks(), tmp_path, **options)
    assert not (tmp_path / "runs").exists()


def test_order_is_that_of_the_numbers_unless_another_is_given(tmp_path: pathlib.Path) -> None:
    def names(*given: str) -> list[str]:
        return [pathlib.Path(one.name).stem for one in checkpoints.find([tmp_path / name for name in given])]

    as_npz(tmp_path, networks())
    (tmp_path / "config.json").write_text("{}")  # As beside the models of others.
    assert [pathlib.Path(one.name).stem for one in checkpoints.find(tmp_path)] == ["step_8", "step_9", "step_10"]
    assert names("step_9.npz", "step_8.npz") == ["step_9", "step_8"]
    # As a shell gives step_*.
    assert names("step_10.npz", "step_8.npz", "step_9.npz") == ["step_8", "step_9", "step_10"]
