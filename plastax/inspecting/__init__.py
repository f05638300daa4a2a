"""Turns a series of checkpoints, of networks that were trained anywhere, into the records and report of a run."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plastax import data as datasets
from plastax import output, probes, ranges, report, tracking, tree
from plastax.curvature import losses
from plastax.errors import ConfigError
from plastax.inspecting import checkpoints as reading
from plastax.inspecting.checkpoints import Checkpoint
from plastax.layers import Tapped
from plastax.models import SUPERVISED, own
from plastax.probes import PROBES, activity
from plastax.probes.base import ProbeConfig
from plastax.program import segments
from plastax.records import environment, layout, lifecycle
from plastax.roles import STRUCTURE
from plastax.study import names, objects, settings
from plastax.study.run import Run
from plastax.types import Array, Model, Params, Tree

DEFAULT = ("features", "weights", "gradient", "hessian", "ggn", "kronecker")
"""The probes that are taken by default, as far as the network allows."""


@dataclass(frozen=True)
class Settings:
    """How checkpoints are looked at."""

    loss: str = "cross_entropy"
    """Loss whose curvature is measured: cross_entropy (of labels), or mse (of targets [B, D])."""
    examples: int = 512
    """Examples that everything is measured on (at most); probes may take fewer."""
    seeds: int = 3
    """Draws of examples and of random probe vectors. Intervals are over these, not over networks."""
    first_seed: int = 0
    """The first draw."""
    part: str = ""
    """Path of the parameters in a checkpoint, such as state/params. By default the whole checkpoint, or the params of a
    training state."""
    network: int = 0
    """Number of the network in a run of plastax, from 0."""
    name: str = "network"
    """What tables and figures call the network."""
    runs_dir: Path = Path("runs")
    """Directory of all runs: <runs-dir>/inspect/<run id>."""

    def __post_init__(self) -> None:
        ranges.check(self, "", "examples", "seeds", least=1)
        ranges.check(self, "", "first_seed", "network", least=0)
        if self.loss not in (allowed := ("cross_entropy", "mse")):
            raise ConfigError.unknown("loss", self.loss, allowed)


def inspect(
    checkpoints: Any,
    apply: str | Callable[[Params, Array], Any] | None = None,
    *,
    data: Any,
    model: Any = None,
    probes: Sequence[Any] = (),
    strict: bool | None = None,
    console: output.Console | None = None,
    **options: Any,
) -> Run:
    """Measures the networks in a series of checkpoints, and reports as a run does, with checkpoints in place of tasks.

    Every checkpoint is measured on the same examples with the same random draws, so that differences are the
    network's.

    Args:
      checkpoints: paths, patterns or trees of parameters, see `checkpoints.find`.
      apply: ``(params, x) -> outputs [B, C]``, or ``-> (outputs, features)``; or its name, ``module:function``.
        ``params`` is what a checkpoint holds. Layers and features are found by tracing, see `plastax.discovery`.
      data: see `plastax.data.load`; for the loss ``mse`` a pair of arrays, or an ``.npz`` file with ``x`` and ``y``.
      model: in place of ``apply``: a network, or its name, see `plastax.models.own`. A run of plastax needs neither.
      probes: names or configurations, by default `DEFAULT`.
      strict: refuse a probe that the network does not allow; otherwise leave it out with a note. By default probes that
        are given are refused, and those of `DEFAULT` left out.
      console: where progress is shown.
      **options: fields of `Settings`.

    Returns:
      The run. Its data, tables, figures and report are those of any run; ``task`` is the number of the checkpoint.

    Raises:
      ConfigError: a checkpoint, the function and the data do not fit one another; nothing is compiled then.
      RecordError: a checkpoint is damaged.
    """
    chosen, console = Settings(**options), console or output.Console(stderr=True)
    series = reading.find(checkpoints, chosen.network)
    examples = _examples(data, chosen)
    first = reading.parameters(series[0].read(), chosen.part)
    network = _network(apply, model, first, series[0], examples, chosen)
    found = [names.find("probes", one, PROBES) for one in probes or DEFAULT]
    kept = _allowed(found, network, bool(probes) if strict is None else strict)
    built = [one.entry.build(network.model) for one in kept]
    dims, coords = segments.labels(built)
    for checkpoint in series[1:]:  # Before anything is compiled, and one at a time in memory.
        _fitted(reading.parameters(checkpoint.read(), chosen.part), network, checkpoint)
    params = _fitted(first, network, series[0])
    # Says what else does not fit before anything is written.
    traced = _look(network, _due(kept, 0), chosen.loss).trace(params, params, params, *examples[:3])
    told: dict[str, Any] = {
        field.name: getattr(chosen, field.name) for field in dataclasses.fields(chosen) if field.name != "runs_dir"
    }
    told |= {"methods": [chosen.name], "tasks": len(series), "updates_per_task": 1}
    told |= {**network.told, **examples.told}
    told |= {"probes": [one.name for one in kept]} | {one.key: dataclasses.asdict(one.entry) for one in kept}
    told |= {"checkpoints": [checkpoint.name for checkpoint in series]}
    mark = settings.identity(told, ("data_card",))
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S-%f")
    directory = Path(chosen.runs_dir) / "inspect" / f"{stamp}-{mark}"
    config = {
        "experiment": "inspect", "run_id": directory.name, "settings": told, "hash": mark, "asides": ["data_card"],
        "dims": {name: list(axes) for name, axes in dims.items()},
        "coords": {axis: list(labels) for axis, labels in coords.items()},
        "axis": "checkpoint",
        "notes": [
            *(f"{one.name} is not measured: the network shows no layers for it" for one in found if one not in kept),
            *activity.caveats(network.model.activation, [one.name for one in kept]),
        ],
    }  # fmt: skip
    here = environment.environment([*network.code, *(code for one in kept for code in one.code)])
    begin = functools.partial(layout.start_run, directory, config, here)
    with lifecycle.hold(directory, {chosen.name: len(series)}, begin=lambda blank: begin(blank=blank), end="recorded"):
        _measure(directory, config, series, network, examples, kept, chosen, console, traced)
    lifecycle.conclude(directory, lambda: report.write(directory))
    for note in config["notes"]:
        output.say(console, f"Note: {note}")
    return Run(directory)


def _allowed(found: Sequence[names.Named], network: _Network, strict: bool) -> list[names.Named]:
    """The probes whose needs a network meets; if ``strict``, raises `ConfigError` for the others."""
    model = network.model
    there = {"features": bool(model.hidden), "taps": bool(model.layers), "init": not network.own}
    lacking = {one.name: [need for need in one.entry.needs if not there.get(need, True)] for one in found}
    if strict and (name := next((name for name, needs in lacking.items() if needs), None)):
        raise ConfigError(f"probes: {name} needs {lacking[name][0]}, which the network does not show; leave it out")
    return [one for one in found if not lacking[one.name]]


class _Network(NamedTuple):
    """A network as plastax sees it.

    Attributes:
      model: its functions; its parameters are nested dicts.
      told: settings that name it.
      own: whether the parameters of the first checkpoint say what it takes.
      code: for the record of the environment.
    """

    model: Model
    told: Mapping[str, Any]
    own: bool
    code: Sequence[Any]

    @property
    def like(self) -> dict[str, Any]:
        """Path -> shape of a parameter."""
        return tree.named_leaves(jax.eval_shape(self.model.init, tree.key_like()))


class _Examples(NamedTuple):
    """What is measured on: ``[seed, B, ...]``; the held-out part may be missing."""

    train: tuple[Array, Array]
    test: tuple[Array, Array] | None
    keys: Array
    outputs: int
    told: Mapping[str, Any]

    @property
    def x(self) -> jax.ShapeDtypeStruct:
        """One batch of inputs."""
        return jax.ShapeDtypeStruct(self.train[0].shape[1:], jnp.float32)


def _examples(data: Any, chosen: Settings) -> _Examples:
    keys = jax.vmap(jax.random.key)(jnp.arange(chosen.first_seed, chosen.first_seed + chosen.seeds))

    def drawn(x: Any, y: Any) -> tuple[Array, Array]:
        order = [np.random.default_rng(chosen.first_seed + k).permutation(len(x)) for k in range(chosen.seeds)]
        places = np.stack([one[: chosen.examples] for one in order])
        inputs = np.asarray(x)[places]
        inputs = inputs / np.float32(255) if inputs.dtype == np.uint8 else inputs.astype(np.float32)
        return jnp.asarray(inputs), jnp.asarray(np.asarray(y)[places])

    if chosen.loss == "cross_entropy":
        dataset = datasets.load(data)
        test = drawn(dataset.test_images, dataset.test_labels) if len(dataset.test_labels) else None
        told = {"data": dataset.card.name, "data_checksum": dataset.card.checksum, "data_card": dataset.card.to_json()}
        train = drawn(dataset.train_images, dataset.train_labels)
        return _Examples(train, test, keys, dataset.card.classes, told)
    if isinstance(data, str | Path):
        archive = reading.READERS[".npz"](Path(data)) if Path(data).suffix == ".npz" else {}
        pair = [archive[name] for name in ("x", "y") if name in archive]
    else:
        pair = list(data) if isinstance(data, tuple) else []
    if len(pair) != 2 or np.ndim(pair[1]) != 2 or len(pair[0]) != len(pair[1]):
        raise ConfigError(
            f"data: the loss {chosen.loss} needs inputs x [N, ...] and targets y [N, D], as arrays or .npz"
        )
    x, y = (np.asarray(one, np.float32) for one in pair)
    checksum = hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()
    return _Examples(drawn(x, y), None, keys, y.shape[1], {"data": "own", "data_checksum": checksum})


def _network(
    apply: Any, model: Any, first: Tree, checkpoint: Checkpoint, examples: _Examples, chosen: Settings
) -> _Network:
    """The network, made for the parameters of the first checkpoint."""
    stored = checkpoint.settings.get("model_settings", {}) if apply is None and model is None else {}
    model = checkpoint.settings["model"] if stored else model
    if (apply is None) == (model is None):
        raise ConfigError("apply: give either it, a function (params, x) -> outputs, or a model")
    shape = examples.x.shape[1:]
    if model is not None:
        named = names.find("models", model, SUPERVISED, "model")
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
        named = named._replace(entry=dataclasses.replace(named.entry, **values))
        told = {"model": named.name, "model_settings": dataclasses.asdict(named.entry)}
        made = _Network(named.entry.build(shape, examples.outputs), told, False, named.code or (named.entry,))
    else:
        module, function = objects.load("apply", apply) if isinstance(apply, str) else (apply.__module__, apply)
        name = apply if isinstance(apply, str) else f"{module}:{getattr(apply, '__qualname__', type(apply).__name__)}"
        outputs = _outputs(function, name, first, checkpoint, examples)
        params = jax.tree.map(jnp.asarray, first)
        entry = own.entry((lambda key: params, function), name)
        source = environment.source_of(module, function)
        made = _Network(entry.build(shape, outputs), {"apply": name, "apply_source": source}, True, (function,))
    _fitted(first, made, checkpoint)
    return made


def _outputs(function: Any, name: str, params: Tree, checkpoint: Checkpoint, examples: _Examples) -> int:
    """How many outputs a function gives."""
    try:
        found = jax.eval_shape(function, params, examples.x)
    except Exception as error:
        said = (str(error).strip() or "no message").splitlines()[0]
        raise ConfigError(
            f"apply: {name} cannot be called with {checkpoint.name} and inputs {list(examples.x.shape)}: "
            f"{type(error).__name__}: {said}"
        ) from error
    outputs = found[0] if isinstance(found, tuple | list) and len(found) == 2 else found
    if not hasattr(outputs, "shape") or len(outputs.shape) < 2 or outputs.shape[-1] < examples.outputs:
        what = list(outputs.shape) if hasattr(outputs, "shape") else type(outputs).__name__
        raise ConfigError(f"apply: {name} gives {what}; the data needs outputs [B, {examples.outputs}]")
    return int(outputs.shape[-1])


def _fitted(params: Tree, network: _Network, checkpoint: Checkpoint) -> Params:
    """The parameters in a checkpoint as the model takes them; raises `ConfigError` where they do not fit."""
    flat = {name.removesuffix("/value"): leaf for name, leaf in tree.named_leaves(params).items()}
    like = network.like
    if not flat.keys() & like.keys():
        flat = {name.removeprefix("params/"): leaf for name, leaf in flat.items() if name.startswith("params/")} or flat
    wants = "the first checkpoint has" if network.own else "the model needs"
    for name, wanted in like.items():
        if name not in flat:
            raise ConfigError(f"checkpoints: {checkpoint.name} has no {name}; it has {', '.join(flat)}")
        if np.shape(flat[name]) != wanted.shape:
            raise ConfigError(
                f"checkpoints: {checkpoint.name}: {name} is {list(np.shape(flat[name]))}; {wants} {list(wanted.shape)}"
            )
    extra = [name for name, x in flat.items() if name not in like and jnp.issubdtype(jnp.result_type(x), jnp.floating)]
    if extra:
        lacks = "the first checkpoint lacks" if network.own else "the model lacks"
        raise ConfigError(f"checkpoints: {checkpoint.name} holds {extra[0]}, which {lacks}; --part names a part of it")
    return reading.nested({name: jnp.asarray(flat[name]) for name in like})


def _measure(
    directory: Path,
    config: Mapping[str, Any],
    series: Sequence[Checkpoint],
    network: _Network,
    examples: _Examples,
    kept: Sequence[names.Named],
    chosen: Settings,
    console: output.Console,
    traced: jax.stages.Traced,
) -> None:
    """Measures and records one checkpoint after another; ``traced`` is what measures the first."""
    looks: dict[tuple[ProbeConfig, ...], jax.stages.Compiled] = {}
    (sink,) = tracking.sinks("disabled", (), console)
    sink.start(config, directory, chosen.name)
    folder, initial, previous = layout.records_folder(directory, config, chosen.name), None, None
    for index, checkpoint in enumerate(series):
        params = _fitted(reading.parameters(checkpoint.read(), chosen.part), network, checkpoint)
        initial, previous = initial or params, previous or params
        due, arguments = _due(kept, index), (params, initial, previous, *examples[:3])
        begun, compiling = time.perf_counter(), 0.0
        if due not in looks:
            stage = traced if index == 0 else _look(network, due, chosen.loss).trace(*arguments)
            looks[due] = stage.lower().compile()
            compiling = time.perf_counter() - begun
        values: dict[str, np.ndarray] = jax.device_get(looks[due](*arguments))
        seconds, previous = time.perf_counter() - begun - compiling, params
        # Nothing is trained: the start and the end of a checkpoint are the same network.
        probe = {name: np.stack([value, value], axis=1) for name, value in values.items()}
        segment = layout.Segment({"loss": values["evaluation/train_loss"][:, None]}, probe, {})
        host = {
            "segment": index, "clock": index, "length": 1, "task": index, "train_seconds": seconds,
            "probe_seconds": seconds, "compile_seconds": compiling,
            "env_steps": float(np.prod(examples.train[1].shape[:2])),
        }  # fmt: skip
        record: Any = segment  # On the host already.
        layout.write_segment(folder, index, record, host, layout.owner(config, chosen.name))
        sink.log(tracking.reduce_segment(segment._replace(host=host), config, chosen.name), index)
    sink.finish()


def _due(kept: Sequence[names.Named], index: int) -> tuple[ProbeConfig, ...]:
    """The probes of a checkpoint."""
    return tuple(one.entry for one in kept if index % one.entry.every == 0)


def _look(network: _Network, due: tuple[ProbeConfig, ...], loss: str) -> Any:
    """The jitted function that measures one checkpoint; its values have a leading axis of draws."""
    model, given = network.model, losses.get(loss)
    tapped = Tapped(model.taps, lambda params, taps, x: _paired(*model.tapped(params, taps, x)))

    def evaluated(params: Params, batch: tuple[Array, Array], name: str) -> dict[str, Array]:
        outputs = model.apply(params, batch[0])[0]
        values = {f"evaluation/{name}_loss": given.value(outputs, batch)}
        if loss == "cross_entropy":
            values[f"evaluation/{name}_accuracy"] = jnp.mean(jnp.argmax(outputs, -1) == batch[1])
        return values

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, None, None, 0, 0, 0))
    def look(params: Params, initial: Params, previous: Params, train: Any, test: Any, key: Array) -> dict[str, Array]:
        values = evaluated(params, train, "train") | ({} if test is None else evaluated(params, test, "test"))
        return values | probes.measure(
            due, params, tapped, train, key, loss=loss, activation=model.activation, initial=initial,
            previous=previous, init=None if network.own else model.init, roles=model.roles or STRUCTURE,
        )  # fmt: skip

    return look


def _paired(outputs: Tree, features: Tree, inputs: Tree) -> Any:
    return (outputs, features), inputs
