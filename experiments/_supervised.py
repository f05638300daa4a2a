"""What the experiments on supervised streams share: their settings, how they are built and how they are run."""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # On busy machines OpenBLAS's threads make small SVDs 100x slower.

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from experiments import _study
from plastax import data, machine, memory, output, parallel, run, settings, starting, train
from plastax.data import Dataset
from plastax.errors import ConfigError
from plastax.methods import METHODS
from plastax.models import SUPERVISED
from plastax.probes import PROBES
from plastax.training import Training
from plastax.types import MethodConfig, Model, Probe, Program, Stream

CHOSEN: dict[str, Mapping[str, Any]] = {"model": SUPERVISED}
GROUPS: dict[str, Mapping[str, Any]] = {"methods": METHODS, "probes": PROBES}


@dataclass(frozen=True)
class Config(settings.Study):
    """What every supervised experiment can be told; each adds ``stream`` and, where the stream needs them, ``data``."""

    model: str = "mlp"
    """Network: mlp, cnn or resnet18."""
    segments_per_task: int = 1
    """Calls of the compiled program a task: more show progress and checkpoint more often."""
    training: Training = field(default_factory=Training)
    """Optimiser, batches, epochs."""


@dataclass(frozen=True)
class Synthetic:
    """The images of the data set ``synthetic``, which `plastax.data.synthetic.read` draws."""

    classes: int = 10
    """Number of classes."""
    train_per_class: int = 600
    """Training images a class."""
    test_per_class: int = 100
    """Held-out images a class."""
    difficulty: float = 0.75
    """0: all images of a class are the same; 1: very hard."""


@dataclass(frozen=True)
class ImageConfig(Config):
    """An experiment on a data set of images."""

    data: str = "digits"
    """Data set (`python -m plastax list data`)."""
    data_path: str = ""
    """Folder or archive of its files; empty: PLASTAX_DATA, the cache, installed packages, then the network."""
    data_verify: bool = True
    """Refuse files that are not the published ones, or not all of them."""
    synthetic: Synthetic = field(default_factory=Synthetic)
    """The images of the data set synthetic; without effect on others."""


def load(config: Any) -> Dataset | None:
    """The data set of the stream, None where it needs none; raises `ConfigError` where it cannot be had."""
    if not config.stream.needs_data:
        return None
    options = dataclasses.asdict(config.synthetic) if config.data == "synthetic" else {}
    return data.load(config.data, config.data_path or None, verify=config.data_verify, **options)


def build(config: Any, dataset: Dataset | None) -> tuple[list[parallel.Batch], run.Plan]:
    """The programs over all networks, and the plan of segments; raises `ConfigError` before anything compiles.

    Args:
      config: of the experiment.
      dataset: what `load` gives for it.
    """

    @functools.cache
    def stream_of(stream: Any) -> Stream:
        """One for all arms that have the same, so that its data are there once."""
        return stream.build() if dataset is None else stream.build(dataset)

    def prepare(config: Any, name: str) -> tuple[run.Plan, _study.Make, list[Probe]]:
        stream = stream_of(config.stream)
        updates, steps = config.training.updates, config.training.blocks(stream.examples).steps_per_update
        plan = _study.cut(config, updates, steps * config.training.batch_size, steps)
        method = _study.method_of(config, name)
        _check_boundaries(config, name, method, stream)
        options = settings.with_options(config.model_settings, config.model, name, method.model_options)
        model = options.build(stream.input_shape, stream.outputs)
        model = model._replace(batch_like=train.batch_like(config.training, stream))
        _check_rank(config, name, model)
        looks = _study.looks(config, model, config.training.learning_rate, updates * steps)
        probes = [look.build(model) for look in looks]

        def make(values: Mapping[str, Any]) -> Program:
            own = settings.replaced(config, values)
            method = _study.method_of(own, name)
            return train.program(
                own.training,
                stream,
                model,
                method.build(own.training.transformation(), model),
                probes,
                needs_boundary=method.needs_boundary,
                starts_anew=method.starts_anew,
                probe_every=config.probe_every,
            )

        return plan, make, probes

    # The probe counts eigenvalues beyond what the step size allows: with it, the step size is a constant.
    static = ("training.learning_rate",) if "trainability" in config.probes else ()
    return _study.build(config, GROUPS, prepare, fixed=("synthetic",), static=static)


def _check_boundaries(config: Any, name: str, method: MethodConfig, stream: Stream) -> None:
    """Refuses what acts at task switches where there are none."""
    if stream.boundaries:
        return
    if method.needs_boundary:
        raise ConfigError(
            f"methods: {name} acts at task boundaries, and there are none in {stream.description}; give methods that "
            "do not, or a stream that has them"
        )
    if config.training.head == "reset":
        raise ConfigError(
            f"training.head: 'reset' acts at task boundaries, and there are none in {stream.description}; give 'keep'"
        )


def _check_rank(config: Any, method: str, model: Model) -> None:
    """Refuses what looks at hidden layers where there are none, and at ranks of a single row."""
    if "features" in config.probes and not model.hidden:
        raise ConfigError("probes: features is not allowed for a model without hidden layers; leave it out")
    for name in {"effective_rank", "l2_er"} & {*settings.members(method)}:
        if not model.hidden:
            raise ConfigError(f"methods: {method} is not allowed for a model without hidden layers; name others")
        if config.training.batch_size == 1 and getattr(config, name).window == 1:
            raise ConfigError(
                f"training.batch_size: 1 is not allowed with the method {method}: the rank of one example is one, "
                f"whatever the weights; give 2 or more, or {name}.window, the last batches to look at"
            )


def main(base: type, presets: Mapping[str, Mapping[str, Any]], experiment: str) -> None:
    """Runs the study that the command line asks for.

    Args:
      base: the experiment's settings, a `Config`.
      presets: what each preset changes in their defaults.
      experiment: its name.
    """
    config = settings.parse(base, presets, CHOSEN, GROUPS)
    machine.check()
    if getattr(config, "data_path", ""):  # Whoever resumes the run may be in another directory.
        config = dataclasses.replace(config, data_path=os.path.abspath(os.path.expanduser(config.data_path)))
    with memory.explained(experiment, settings.to_json(config, GROUPS)):
        starting.check_writable(config, experiment)
        if config.stream.needs_data and not config.data_path and (blank := data.blank(config.data)):
            build(config, blank)  # What cannot be built is refused before anything is fetched.
        dataset = load(config)
        build(config, dataset)  # What cannot be built is refused before anything is printed.
        console = output.Console()
        extra = {}
        if dataset is not None:
            # The checksum says which images they are; the card also says where they lay, which changes no number.
            extra = {
                "data_checksum": dataset.card.checksum,
                "data_card": json.loads(json.dumps(dataset.card._asdict())),
            }
            output.say(console, f"{dataset.card}\n", "bold red" if dataset.card.synthetic else None)
        _study.carry_out(experiment, config, GROUPS, lambda config: build(config, dataset), extra, console)
