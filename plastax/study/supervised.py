"""Experiments on supervised streams: what they share, and how they become programs."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from plastax import data, tree
from plastax.data import Dataset, text
from plastax.data.text import Corpus
from plastax.errors import ConfigError
from plastax.models import SUPERVISED
from plastax.models.own import OwnModel
from plastax.program import supervised
from plastax.program.training import Training
from plastax.streams import TOKENS
from plastax.study import settings
from plastax.study.experiment import Experiment, Prepared, Shared, with_defaults
from plastax.study.names import Named
from plastax.study.preparing import alike, cut, method_of, probes_of, transformation
from plastax.types import MethodConfig, Model, Program, Stream


@dataclass(frozen=True)
class Config(settings.Config):
    """Settings of all supervised experiments. Each adds a field ``stream``: the settings of its stream."""

    model: str = "mlp"
    """Network: mlp, cnn, resnet18, vit, gpt (for tokens), or your own, module:object."""
    segments_per_task: int = 1
    """Calls of the compiled program per task. More calls show progress and save checkpoints more often."""
    training: Training = field(default_factory=Training)
    """Optimiser, batches, epochs."""

    if TYPE_CHECKING:

        @property
        def stream(self) -> Any:
            """Of every experiment."""


@dataclass(frozen=True)
class Synthetic:
    """Settings of the data set ``synthetic``, see `plastax.data.synthetic.read`."""

    classes: int = 10
    """Number of classes."""
    train_per_class: int = 600
    """Training images per class."""
    test_per_class: int = 100
    """Held-out images per class."""
    difficulty: float = 0.75
    """From 0 (all images of a class are the same) to 1 (very hard)."""


@dataclass(frozen=True)
class ImageConfig(Config):
    """Settings of experiments on images."""

    data: str = "digits"
    """Data set (`plastax list data`), or your own: an .npz file, a folder of images by class, or module:object."""
    data_path: str = settings.aside("")
    """Folder or archive of its files. By default search PLASTAX_DATA, the cache and installed packages, or download."""
    data_verify: bool = settings.aside(True)
    """Refuse files that are not the published ones, or incomplete."""
    synthetic: Synthetic = field(default_factory=Synthetic)
    """The data set synthetic."""

    def __post_init__(self) -> None:
        _from_anywhere(self)


@dataclass(frozen=True)
class TokenConfig(Config):
    """Settings of experiments on sequences of tokens."""

    model: str = "gpt"
    """Network: gpt, or your own for tokens [B, T], module:object."""
    data: str = "grammar"
    """Source of the sequences: grammar (drifting automata), recall (pairs of keys and values), text (a file of yours,
    see data-path), or your own stream of tokens, module:object."""
    data_path: str = settings.aside("")
    """The file of the data text."""

    def __post_init__(self) -> None:
        _from_anywhere(self)

    @property
    def stream(self) -> Any:
        """The settings of the source."""
        return settings.choice(self, "data")


def _from_anywhere(config: Any) -> None:
    """Makes the path of the data absolute: the run may be resumed from another directory."""
    if config.data_path:
        object.__setattr__(config, "data_path", os.path.abspath(os.path.expanduser(config.data_path)))


def experiment(
    name: str, config: type[Config], defaults: Mapping[str, Any], presets: Mapping[str, Mapping[str, Any]]
) -> Experiment[Any]:
    """An experiment on a supervised stream.

    Args:
      name: its name.
      config: its settings, with a field ``stream``; or a `TokenConfig`.
      defaults: dotted setting -> value, over the defaults of ``config``.
      presets: name -> dotted setting -> value, over ``defaults``.
    """
    return Experiment(
        name,
        config,
        with_defaults(defaults, presets),
        {"model": SUPERVISED} | ({"data": TOKENS} if issubclass(config, TokenConfig) else {}),
        prepare,
        share,
        stand_in=stand_in,
        fixed=("synthetic",),
    )


class Streams(NamedTuple):
    """The streams of a study.

    Attributes:
      dataset: the data set, or text; None if the streams need none.
      of: ``settings -> stream``. Equal settings give the same stream, so that its data are in memory once.
    """

    dataset: Dataset | Corpus | None
    of: Callable[[Any], Stream]


def streams(dataset: Dataset | Corpus | None) -> Streams:
    """Streams over a data set or a text, or over none."""
    return Streams(dataset, functools.cache(lambda stream: stream.build(*[] if dataset is None else [dataset])))


def share(config: Config) -> Shared:
    """Streams over the data set; raises `ConfigError` if it cannot be loaded."""
    if isinstance(config, TokenConfig):
        return _share_text(config)
    if not isinstance(config, ImageConfig):
        return Shared(streams(None))
    options = dataclasses.asdict(config.synthetic) if config.data == "synthetic" else {}
    dataset = data.load(_data(config), config.data_path or None, verify=config.data_verify, **options)
    card = dataset.card
    # The card also has the path, which changes no number: only the checksum is part of the identity.
    recorded = {"data_checksum": card.checksum, "data_card": card.to_json()}
    shape = " x ".join(map(str, card.shape))
    said = f"data: {card.name}, {card.train:,} + {card.test:,} examples of {shape}, {card.classes} classes"
    return Shared(streams(dataset), recorded, said, "bold red" if card.synthetic else None)


def _share_text(config: TokenConfig) -> Shared:
    """Streams of tokens, over the text file if they need one."""
    if not config.stream.needs_data:
        if config.data_path:
            raise ConfigError(f"data_path: {config.data_path} is for the data text, and data is {config.data!r}")
        return Shared(streams(None))
    corpus = text.read(config.data_path)
    card = corpus.card
    recorded = {"data_checksum": card.checksum, "data_card": card.to_json()}
    return Shared(streams(corpus), recorded, f"data: {card.name}, {card.train:,} bytes")


def _data(config: ImageConfig) -> Any:
    """The data set's name or path, or the own object in its place."""
    own = [named.entry for named in config.own.get("data", {}).values()]
    return own[0] if own else config.data


def about(stream: Named) -> Experiment[Any]:
    """An experiment about a stream of one's own, with the defaults of `Config`."""
    base = ImageConfig if getattr(stream.entry, "needs_data", True) else Config
    namespace = {"__doc__": base.__doc__, "own": {"stream": {"stream": stream}}}
    fields = [("stream", type(stream.entry), stream.entry)]
    config = dataclasses.make_dataclass("Config", fields, bases=(base,), frozen=True, namespace=namespace)
    return experiment(stream.key, config, {}, {"default": {}})


def stand_in(config: Config) -> Streams | None:
    """Streams over blank images, if the data set has to be downloaded; else None."""
    if not isinstance(config, ImageConfig) or config.data_path or (blank := data.blank(_data(config))) is None:
        return None
    return streams(blank)


def prepare(config: Config, name: str, shared: Streams) -> Prepared:
    """See `Experiment`."""
    stream, training = shared.of(config.stream), config.training
    if stream.tasks is not None and config.tasks > stream.tasks:
        raise ConfigError(f"tasks: {config.tasks} is more than the {stream.tasks} of {stream.description}; give fewer")
    updates, steps = training.updates, training.blocks(stream.examples).steps_per_update
    plan = cut(config, config.segments_per_task, updates, steps * training.batch_size, steps)
    method = method_of(config, name)
    _check_boundaries(config, name, method, stream)
    chosen = settings.choice(config, "model")
    options = settings.with_options(chosen, config.model, name, method.model_options)
    like = supervised.batch_like(training, stream)
    tokens = {"tokens": True} if isinstance(options, OwnModel) and jnp.issubdtype(like.x.dtype, jnp.integer) else {}
    model = options.build(stream.input_shape, stream.outputs, **tokens)._replace(batch_like=like)
    _check_outputs(config.model, model, stream)
    _check_rank(config, name, model)
    probes = probes_of(config, model, training.learning_rate, updates * steps)

    def make(values: Mapping[str, Any]) -> Program:
        own = settings.replaced(config, values)
        method = method_of(own, name)
        return supervised.program(
            own.training,
            stream,
            model,
            transformation(method, own.training.transformation(), model),
            probes,
            needs_boundary=method.needs_boundary,
            restarts_statistics=method.restarts_statistics,
            probe_every=config.probe_every,
            alike=None if values else alike(config, config.stream, options, training),
        )

    return Prepared(plan, make, probes, model)


def _check_boundaries(config: Config, name: str, method: MethodConfig, stream: Stream) -> None:
    """Refuses methods and settings that act at task switches if the stream has none."""
    if stream.boundaries:
        return
    if method.needs_boundary:
        raise ConfigError(
            f"methods: {name} acts at task boundaries, which {stream.description} does not have; give other methods, "
            "or a stream with boundaries"
        )
    if config.training.head == "reset":
        raise ConfigError(
            f"training.head: 'reset' acts at task boundaries, which {stream.description} does not have; give 'keep'"
        )


def _check_outputs(name: str, model: Model, stream: Stream) -> None:
    """Refuses a network that does not give logits of every token."""
    if stream.loss != "token_cross_entropy":
        return
    x, y, _ = model.batch_like
    given = jax.eval_shape(lambda key, x: model.apply(model.init(key), x)[0], tree.key_like(), x)
    if getattr(given, "shape", ()) != (*y.shape, stream.outputs):
        raise ConfigError(
            f"model: {name} does not give logits of every token, [B, {stream.input_shape[0]}, {stream.outputs}], "
            f"which {stream.description} need; give gpt"
        )


def _check_rank(config: Config, method: str, model: Model) -> None:
    """Refuses features of a model without hidden layers, and effective ranks of a single example."""
    if "features" in config.probes and not model.hidden:
        raise ConfigError("probes: features is not allowed for a model without hidden layers; leave it out")
    for name in {"effective_rank", "l2_er"} & {*settings.members(method)}:
        if not model.hidden:
            raise ConfigError(f"methods: {method} is not allowed for a model without hidden layers; name others")
        if config.training.batch_size == 1 and getattr(config, name).window == 1:
            raise ConfigError(
                f"training.batch_size: 1 is not allowed with the method {method}: the rank of one example is always 1; "
                f"give 2 or more, or set {name}.window to a number of batches"
            )
