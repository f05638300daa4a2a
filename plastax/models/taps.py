"""Taps on the layers of a Flax module: what they are given, and a place to add to what they give.

The module stays as it is: its layers are met while it is applied.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.linear import canonicalize_padding

from plastax import machine, tree
from plastax.errors import ConfigError
from plastax.types import Array, LayerInputs, Params, Tapped, Tree, Window


def tapped(
    module: nn.Module,
    *,
    inputs: Callable[[Tree], Tree] = lambda data: data,
    layers: Collection[str] | None = None,
    variables: Mapping[str, Tree] | None = None,
    **arguments: Any,
) -> Tapped:
    """Gives out the layers of a module, unchanged, for `plastax.curvature.kronecker`.

    Tapped are all `flax.linen.Dense` and `flax.linen.Conv` (their subclasses too) under the names of their parameters,
    ``encoder/Dense_0``; other layers pass as they are, and their parameters are in no factor. Layers inside lifted
    transformations (`nn.scan`, `nn.vmap`) cannot be tapped.

    Args:
      module: called with one argument, whose leading axis is the examples'.
      inputs: picks that argument from the data: ``operator.itemgetter(0)`` where the data is ``(x, y)``.
      layers: names of the layers to tap; None: all.
      variables: collections beside the parameters, such as batch statistics; read, never changed.
      **arguments: further keyword arguments of the call, such as ``train=False``.

    Returns:
      The network; ``params`` is what ``module.init(...)["params"]`` gives, and ``outputs`` what the module gives.

    Raises:
      ConfigError: ``module`` is not one of `flax.linen`; or, where the network is applied, ``params`` has other
        collections too, or the module needs a collection that ``variables`` lacks, or changes one; or Python runs
        without assertions.
      ValueError: where the network is applied, for a layer that is called twice (its parameters have two inputs), and
        for convolutions that no `Window` describes: grouped, masked, transposed by an input dilation, circular or
        reflecting, or with other than one batch axis.
    """
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"module: {type(module).__module__}.{type(module).__name__} is not allowed; give a flax.linen.Module: "
            "layers of nnx, Equinox or plain functions cannot be tapped"
        )
    variables = variables or {}

    @contextlib.contextmanager
    def explained() -> Iterator[None]:
        """Says which argument is meant where Flax speaks of its scopes."""
        try:
            yield
        except (flax.errors.ScopeCollectionNotFound, flax.errors.ModifyScopeVariableError) as error:
            raise ConfigError(
                f"variables: {', '.join(map(repr, variables)) or 'none'} is not enough for {type(module).__name__} "
                f"({str(error).partition(' (')[0]}); give its collections and let it only read them: "
                "models.tapped(module, variables={'batch_stats': ...}, use_running_average=True)"
            ) from error

    def intercept(visit: Callable[[str, nn.Module, Array, Array], Array]) -> nn.module.Interceptor:
        machine.check_assertions()
        names: set[str] = set()

        def interceptor(next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            out = next_fun(*args, **kwargs)
            name = "/".join(context.module.path)
            if context.method_name != "__call__" or not isinstance(context.module, nn.Dense | nn.Conv):
                return out
            if layers is not None and name not in layers:
                return out
            if name in names:
                message = f"layer {name!r} is called twice, which Kronecker factors cannot describe; leave it out"
                raise ValueError(message)
            names.add(name)
            return visit(name, context.module, args[0] if args else kwargs["inputs"], out)

        return interceptor

    def taps(data: Tree) -> dict[str, Array]:
        shapes: dict[str, jax.ShapeDtypeStruct] = {}

        def visit(name: str, layer: nn.Module, x: Array, out: Array) -> Array:
            shapes[name] = jax.ShapeDtypeStruct(out.shape, out.dtype)
            return out

        with nn.intercept_methods(intercept(visit)):
            jax.eval_shape(lambda key, x: module.init(key, x, **arguments), tree.key_like(), inputs(data))
        return {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in shapes.items()}

    def apply(params: Params, taps: dict[str, Array], data: Tree) -> tuple[Tree, dict[str, LayerInputs]]:
        if isinstance(params, Mapping) and isinstance(params.get("params"), Mapping):
            raise ConfigError(f"params: the collections {', '.join(params)} are not allowed; give variables['params']")
        seen: dict[str, LayerInputs] = {}

        def visit(name: str, layer: nn.Module, x: Array, out: Array) -> Array:
            window = _window(name, layer, x) if isinstance(layer, nn.Conv) else None
            seen[name] = LayerInputs(x, layer.use_bias, window)
            return out + taps[name] if name in taps else out

        with explained(), nn.intercept_methods(intercept(visit)):
            outputs = module.apply({"params": params, **variables}, inputs(data), **arguments)
        return outputs, seen

    return Tapped(taps, apply)


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
