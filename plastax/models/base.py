"""What every model has: its common settings, and the way from a Flax module to pure functions."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from plastax import ranges, tree
from plastax.errors import ConfigError
from plastax.layers import LayerInputs, Units
from plastax.models import layers, taps
from plastax.models.injection import with_injections
from plastax.models.layers import ActivationName
from plastax.types import Array, Features, Key, Model, Params, Tree


class Network(nn.Module):
    """The Flax module of a supervised model."""

    config: Any
    outputs: int

    def __post_init__(self) -> None:
        ranges.check(self, "model", "outputs", least=1)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The settings that all models share."""

    activation: ActivationName = "relu"
    """Nonlinearity of the hidden layers (leaky_relu: slope 0.1; crelu and deep_fourier make two features a unit)."""
    layer_norm: bool = False
    """LayerNorm with scale and bias before each nonlinearity, at each place of an image; resnet18: in dense layers."""
    injections: int = 0
    """Pairs of further heads, for the method plasticity_injection."""
    head_layers: int = 2
    """Layers of a head, the output layer included."""

    def __post_init__(self) -> None:
        ranges.check_choices(self, "model", activation=ActivationName)
        ranges.check(self, "model", "injections", least=0)

    def check_widths(self, *names: str, some: Sequence[str] = ()) -> None:
        """Refuses settings that are not tuples of positive numbers, and empty ones of those in ``some``."""
        ranges.check(self, "model", *names, least=1)
        for name in some:
            if not getattr(self, name):
                raise ConfigError(f"model.{name}: () is not allowed; give one or more numbers")

    def chain(self, widths: Mapping[str, int], branch: str = "") -> dict[str, Units]:
        """The units of hidden layers of which each feeds the next, and the last the layer ``output``.

        Args:
          widths: layer -> its number of units, in the order of the forward pass.
          branch: what the layers' names begin with: ``actor/``.
        """
        return {
            f"{branch}{layer}": self.units(f"{branch}{layer}", widths[layer], f"{branch}{reader}")
            for layer, reader in itertools.pairwise((*widths, "output"))
        }

    def units(self, layer: str, width: int, reader: str, *, norm: bool | None = None) -> Units:
        """The units of a layer that one other reads; ``norm``: whether it is normalised, None: as ``layer_norm``."""
        norm = self.layer_norm if norm is None else norm
        return layers.units(layer, width, (reader,), norm=norm, activation=self.activation)

    def as_model(
        self,
        module: nn.Module,
        input_shape: tuple[int, ...],
        units: Mapping[str, Units],
        *,
        hidden: tuple[str, ...] | None = None,
        batch_norm: bool = False,
        counted: Callable[[Array], Array] | None = None,
    ) -> Model:
        """Gives a Flax module out as pure functions, with further heads where ``injections`` asks for them.

        Args:
          module: ``(x) -> (outputs, features)``; with batch normalisation also with an argument ``train``, True by
            default: normalise by the batch and move the running statistics on.
          input_shape: of one example.
          units: hidden layer -> its units.
          hidden: names of the features, in the order of the forward pass; None: those of ``units``.
          batch_norm: whether the module has running statistics, in Flax's collection ``batch_stats``.
          counted: see `Model`; None: inputs are floats, not tokens.

        Raises:
          ConfigError: the network has no such heads.
        """
        example = jax.ShapeDtypeStruct((1, *input_shape), jnp.int32 if counted else jnp.float32)
        plain = taps.of_known(module, counted=counted)
        # The running statistics may change, and are returned beside the outputs.
        moving = functools.partial(taps.of_known, module, counted=counted, mutable=["batch_stats"])

        def init(key: Key) -> Params:
            return module.lazy_init(key, example)["params"]

        def train(
            params: Params, stats: Tree, taps: dict[str, Array], x: Array
        ) -> tuple[Tree, Features, dict[str, LayerInputs], Tree]:
            # Without statistics Flax starts new ones; `tapped` drops them.
            network = moving(variables={"batch_stats": stats} if stats else {})
            ((outputs, features), moved), inputs = network.apply(params, taps, x)
            return outputs, features, inputs, moved.get("batch_stats", {})

        def tapped(params: Params, taps: dict[str, Array], x: Array) -> tuple[Tree, Features, dict[str, LayerInputs]]:
            outputs, features, inputs, _ = train(params, {}, taps, x)
            return outputs, features, inputs

        def apply(params: Params, x: Array) -> tuple[Tree, Features]:
            outputs, features, _ = tapped(params, {}, x)
            return outputs, features

        def evaluate(params: Params, stats: Tree, x: Array) -> tuple[Tree, Features]:
            given: Any = module.apply({"params": params, "batch_stats": stats}, x, train=False)
            return given

        factored = taps.parameters_of(plain, example)
        kernels = tuple(layer for layer, own in factored.items() if own[0].endswith("kernel"))
        model = Model(
            init, apply, plain.taps, tapped, kernels, hidden or tuple(units), units,
            activation=self.activation, roles=layers.ROLES, counted=counted, factored=factored,
        )  # fmt: skip
        if batch_norm:
            # As Flax starts them, in NumPy: building a model compiles nothing.
            like = jax.eval_shape(lambda key: module.lazy_init(key, example)["batch_stats"], tree.key_like())
            starts = {"mean": np.zeros, "var": np.ones}
            stats = jax.tree_util.tree_map_with_path(lambda path, x: starts[path[-1].key](x.shape, x.dtype), like)
            model = model._replace(stats=stats, train=train, evaluate=evaluate)
        return with_injections(model, self.injections, self.head_layers)
