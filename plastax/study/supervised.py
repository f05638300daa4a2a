"""Experiments on supervised streams: what they share beside their defaults."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from plastax import data
from plastax.data import Dataset
from plastax.errors import ConfigError
from plastax.models import SUPERVISED
from plastax.program import supervised
from plastax.program.training import Training
from plastax.study import settings
from plastax.study.experiment import Experiment, Prepared, Shared, cut, method_of, probes_of, with_defaults
from plastax.types import MethodConfig, Model, Program, Stream


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
    data_path: str = settings.aside("")
    """Folder or archive of its files; empty: PLASTAX_DATA, the cache, installed packages, then the network."""
    data_verify: bool = settings.aside(True)
    """Refuse files that are not the published ones, or not all of them."""
    synthetic: Synthetic = field(default_factory=Synthetic)
    """The images of the data set synthetic; without effect on others."""

    def __post_init__(self) -> None:
        if self.data_path:  # Whoever resumes the run may be in another directory.
            object.__setattr__(self, "data_path", os.path.abspath(os.path.expanduser(self.data_path)))


def experiment(
    name: str, config: type[Config], defaults: Mapping[str, Any], presets: Mapping[str, Mapping[str, Any]]
) -> Experiment[Any]:
    """An experiment on a supervised stream.

    Args:
      name: of the experiment.
      config: its settings, which have a field ``stream``: the settings of a stream.
      defaults: dotted setting -> value, over those of ``config``.
      presets: name -> what it changes in the defaults.
    """
    return Experiment(
        name,
        config,
        with_defaults(defaults, presets),
        {"model": SUPERVISED},
        prepare,
        share,
        stand_in=stand_in,
        fixed=("synthetic",),
    )


class Streams(NamedTuple):
    """What all arms share.

    Attributes:
      dataset: the data set; None where the stream needs none.
      of: the stream of its settings, one for all arms that have the same, so that its data are there once.
    """

    dataset: Dataset | None
    of: Callable[[Any], Stream]


def streams(dataset: Dataset | None) -> Streams:
    """Streams over a data set, or over none."""
    return Streams(dataset, functools.cache(lambda stream: stream.build(*[] if dataset is None else [dataset])))


def share(config: Any) -> Shared:
    """The data set of the stream; raises `ConfigError` where it cannot be had."""
    if not config.stream.needs_data:
        return Shared(streams(None))
    options = dataclasses.asdict(config.synthetic) if config.data == "synthetic" else {}
    dataset = data.load(config.data, config.data_path or None, verify=config.data_verify, **options)
    card = dataset.card
    # The checksum says which images they are; the card also says where they lay, which changes no number.
    recorded = {"data_checksum": card.checksum, "data_card": json.loads(json.dumps(card._asdict()))}
    return Shared(streams(dataset), recorded, f"{card}\n", "bold red" if card.synthetic else None)


def stand_in(config: Any) -> Streams | None:
    """Streams over blank images, where the data set would have to be fetched."""
    if not config.stream.needs_data or config.data_path or (blank := data.blank(config.data)) is None:
        return None
    return streams(blank)


def prepare(config: Any, name: str, shared: Streams) -> Prepared:
    """See `Experiment`."""
    stream, training = shared.of(config.stream), config.training
    updates, steps = training.updates, training.blocks(stream.examples).steps_per_update
    plan = cut(config, config.segments_per_task, updates, steps * training.batch_size, steps)
    method = method_of(config, name)
    _check_boundaries(config, name, method, stream)
    options = settings.with_options(config.model_settings, config.model, name, method.model_options)
    model = options.build(stream.input_shape, stream.outputs)
    model = model._replace(batch_like=supervised.batch_like(training, stream))
    _check_rank(config, name, model)
    probes = probes_of(config, model, training.learning_rate, updates * steps)

    def make(values: Mapping[str, Any]) -> Program:
        own = settings.replaced(config, values)
        method = method_of(own, name)
        return supervised.program(
            own.training,
            stream,
            model,
            method.build(own.training.transformation(), model),
            probes,
            needs_boundary=method.needs_boundary,
            restarts_statistics=method.restarts_statistics,
            probe_every=config.probe_every,
        )

    return Prepared(plan, make, probes)


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
