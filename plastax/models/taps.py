"""Taps on the layers of a Flax module: what they are given, and a place to add to what they give.

The module stays as it is: its layers are met while it is applied.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.linear import canonicalize_padding
from flax.traverse_util import flatten_dict, unflatten_dict

from plastax import machine, tree
from plastax.errors import ConfigError
from plastax.types import Array, Key, LayerInputs, Params, Tapped, Tree, Window

_INPUTS, _OUTPUTS, _TAPS = "plastax_inputs", "plastax_outputs", "plastax_taps"
"""Collections by which values enter and leave a module: lifted transformations such as `nn.remat` pass them on."""


def tapped(
    module: nn.Module,
    *,
    inputs: Callable[[Tree], Tree] = lambda data: data,
    layers: Collection[str] | None = None,
    variables: Mapping[str, Tree] | None = None,
    rngs: Mapping[str, Key] | None = None,
    mutable: Sequence[str] = (),
    **arguments: Any,
) -> Tapped:
    """Gives out the layers of a module, unchanged, for `plastax.curvature.kronecker`.

    Tapped are all `flax.linen.Dense` and `flax.linen.Conv` (their subclasses too) under the names of their parameters,
    ``encoder/Dense_0``; other layers pass as they are, and their parameters are in no factor. Layers may be
    rematerialised (`nn.remat`); inside `nn.scan`, `nn.vmap` or `nn.RNN`, which have several layers or steps in one, and
    inside an `nn.jit` that has been compiled before, they are refused.

    Args:
      module: called with one argument, whose leading axis is the examples'.
      inputs: picks that argument from the data: ``operator.itemgetter(0)`` where the data is ``(x, y)``.
      layers: names of the layers to tap; None: all.
      variables: collections beside the parameters, such as batch statistics. The module may change them, as in
        training; what comes of that is left.
      rngs: keys of what the module draws, ``{"dropout": key}``: the same draws in every pass.
      mutable: collections that the outputs are to be in a pair with, as Flax has it.
      **arguments: further keyword arguments of the call, such as ``train=False``.

    Returns:
      The network; ``params`` is what ``module.init(...)["params"]`` gives, and ``outputs`` what the module gives.

    Raises:
      ConfigError: ``module`` is not one of `flax.linen`; or, where the network is applied, ``params`` has other
        collections too, ``layers`` has one that the module has not, or the module needs a collection that ``variables``
        lacks.
      ValueError: where the network is applied, for a layer that is called twice (its parameters have two inputs), one
        that a lifted transformation hides, and for convolutions that no `Window` describes: grouped, masked, transposed
        by an input dilation, circular or reflecting, or with other than one batch axis.
    """
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"module: {type(module).__module__}.{type(module).__name__} is not allowed; give a flax.linen.Module: "
            "layers of nnx, Equinox or plain functions cannot be tapped"
        )
    variables, rngs = variables or {}, rngs or {}

    @contextlib.contextmanager
    def explained() -> Iterator[None]:
        """Says which argument is meant where Flax speaks of its scopes."""
        try:
            yield
        except (flax.errors.ScopeCollectionNotFound, flax.errors.ModifyScopeVariableError) as error:
            raise ConfigError(
                f"variables: {', '.join(map(repr, variables)) or 'none'} is not enough for {type(module).__name__} "
                f"({str(error).partition(' (')[0]}); give its collections: "
                "models.tapped(module, variables={'batch_stats': ...})"
            ) from error
        except flax.errors.InvalidRngError as error:
            raise ConfigError(
                f"rngs: {', '.join(map(repr, rngs)) or 'none'} is not enough for {type(module).__name__}, which draws; "
                "give models.tapped(module, rngs={'dropout': key})"
            ) from error

    # The layers in the order of the forward pass, without arrays. Kept over calls: `nn.jit` does not call them again.
    known: dict[str, nn.Module] = {}

    def visiting(met: set[str]) -> nn.module.Interceptor:
        machine.check_assertions()

        def interceptor(next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            out, layer = next_fun(*args, **kwargs), context.module
            name = "/".join(layer.path)
            if context.method_name != "__call__" or not isinstance(layer, nn.Dense | nn.Conv):
                return out
            known.setdefault(name, layer.clone(parent=None))
            if layers is not None and name not in layers:
                return out
            met.add(name)
            layer.sow(_INPUTS, "x", args[0] if args else kwargs["inputs"])
            layer.sow(_OUTPUTS, "z", out)
            return out + layer.get_variable(_TAPS, "tap") if layer.has_variable(_TAPS, "tap") else out

        return interceptor

    def given_out(
        state: Mapping[str, Tree], collection: str, met: set[str], expected: Collection[str] | None = None
    ) -> dict[str, Any]:
        """Layer -> the one value that it gave out, in the order of the forward pass."""
        missing = [name for name in layers or () if name not in known]
        if missing:
            raise ConfigError.unknown("layers", missing[0], known)
        values = {"/".join(path[:-1]): given for path, given in flatten_dict(state.get(collection, {})).items()}
        for name in met | set(values):
            if name not in values:
                message = (
                    f"layer {name!r} is inside nn.scan, nn.vmap or nn.RNN, which have several layers or steps in one; "
                    "leave it out: models.tapped(module, layers=[...]) with the others"
                )
                raise ValueError(message)
            if len(values[name]) > 1:
                message = f"layer {name!r} is called twice, which Kronecker factors cannot describe; leave it out"
                raise ValueError(message)
        if hidden := set(values) - (known.keys() if expected is None else set(expected)):
            message = (
                f"layer {min(hidden)!r} is inside nn.jit, which keeps what it compiled before the layer was tapped; "
                "give the module without nn.jit: what is around it can be jitted instead"
            )
            raise ValueError(message)
        return {name: values[name][0] for name in known if name in values}

    def taps(data: Tree) -> dict[str, Array]:
        met: set[str] = set()

        def init(key: Key, x: Tree) -> Tree:
            return module.init({"params": key, **rngs}, x, **arguments)

        with explained(), nn.intercept_methods(visiting(met)):
            state = jax.eval_shape(init, tree.key_like(), inputs(data))
        shapes = given_out(state, _OUTPUTS, met)
        return {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in shapes.items()}

    def apply(params: Params, taps: dict[str, Array], data: Tree) -> tuple[Tree, dict[str, LayerInputs]]:
        if isinstance(params, Mapping) and isinstance(params.get("params"), Mapping):
            raise ConfigError(f"params: the collections {', '.join(params)} are not allowed; give variables['params']")
        met: set[str] = set()
        placed = unflatten_dict({(*name.split("/"), "tap") if name else ("tap",): tap for name, tap in taps.items()})
        given = {"params": params, **variables} | ({_TAPS: placed} if taps else {})
        with explained(), nn.intercept_methods(visiting(met)):
            outputs, state = module.apply(
                given, inputs(data), rngs=dict(rngs), mutable=[_INPUTS, *variables, *mutable], **arguments
            )
        if mutable:
            outputs = outputs, {name: values for name, values in state.items() if name in mutable}
        found = given_out(state, _INPUTS, met, taps or None)
        return outputs, {name: _inputs(name, known[name], x) for name, x in found.items()}

    return Tapped(taps, apply)


def _inputs(name: str, layer: Any, x: Array) -> LayerInputs:
    return LayerInputs(x, layer.use_bias, _window(name, layer, x) if isinstance(layer, nn.Conv) else None)


def names(network: Tapped, data: Tree) -> tuple[str, ...]:
    """The tapped layers in the order of the forward pass, of the data or of their shapes; nothing is computed."""
    found: list[str] = []
    jax.eval_shape(lambda data: found.extend(network.taps(data)), data)
    return tuple(found)


def _window(name: str, conv: nn.Conv, x: Array) -> Window:
    size = (conv.kernel_size,) if isinstance(conv.kernel_size, int) else tuple(conv.kernel_size)

    def each(value: Any) -> tuple[int, ...]:
        return (value or 1,) * len(size) if value is None or isinstance(value, int) else tuple(value)

    padding = canonicalize_padding(conv.padding, len(size))
    refused = {
        f"feature_group_count={conv.feature_group_count}": conv.feature_group_count != 1,
        f"input_dilation={conv.input_dilation}": set(each(conv.input_dilation)) != {1},
        f"padding={padding!r}": isinstance(padding, str) and padding not in ("SAME", "VALID"),
        "a mask": conv.mask is not None,
        f"inputs {x.shape}": x.ndim != len(size) + 2,
    }
    if any(refused.values()):
        what = ", ".join(reason for reason, holds in refused.items() if holds)
        message = f"layer {name!r} is a convolution with {what}, which Kronecker factors cannot describe; leave it out"
        raise ValueError(message)
    strides, dilation = each(conv.strides), each(conv.kernel_dilation)
    if isinstance(padding, str):
        reach = tuple((k - 1) * d + 1 for k, d in zip(size, dilation, strict=True))
        padding = jax.lax.padtype_to_pads(x.shape[1:-1], reach, strides, padding)
    return Window(size, strides, tuple((int(low), int(high)) for low, high in padding), dilation)
