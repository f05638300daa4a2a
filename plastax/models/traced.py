"""What each parameter of a linen module is, seen while the module is traced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from plastax import tree
from plastax.errors import ConfigError
from plastax.roles import DENSE, Kernel, Roles, convolution
from plastax.types import Array, Tree

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.BatchNorm, nn.GroupNorm, nn.InstanceNorm)


def roles(module: nn.Module, *inputs: Tree, **arguments: Any) -> Roles:
    """The roles of a `flax.linen` module's parameters, for the methods' argument ``roles``.

    The module is traced, not run. Found are the kernels of `nn.Dense`, `nn.DenseGeneral` (attention) and convolutions,
    whatever their layers are called and however they are stacked; normalisations; the layers that a normalisation
    follows; and the output layers. An output layer is one whose result the module returns. If the module changes that
    result first (by a division, a softmax), the layer is not found: then give
    ``dataclasses.replace(found, output=(...))``.

    Args:
      module: of which outputs may come first in a tuple with features.
      *inputs: of its call, or their shapes.
      **arguments: further keyword arguments of the call.

    Raises:
      ConfigError: layers are stacked along other axes than the first.

    Examples:
      >>> import flax.linen as nn, jax.numpy as jnp
      >>> from plastax import models
      >>> found = models.roles(nn.Sequential([nn.Dense(4), nn.LayerNorm(), nn.relu, nn.Dense(2)]), jnp.ones((1, 3)))
      >>> found.output, found.normalized, found.norms
      (('layers_3',), ('layers_0',), ('layers_1',))
    """
    kernels: dict[str, Kernel] = {}
    shapes: dict[str, tuple[int, ...]] = {}  # within whatever stacks the layer
    norms: list[str] = []
    followed: list[str] = []
    results: list[tuple[str, Array]] = []  # kept alive: they are told apart by identity

    def layers_of(x: Tree) -> list[str]:
        return [name for leaf in jax.tree.leaves(x) for name, out in results if out is leaf]

    def interceptor(next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        out, layer = next_fun(*args, **kwargs), context.module
        if context.method_name != "__call__":
            return out
        name = "/".join(layer.path)
        for part, x in layer.variables.get("params", {}).items():
            if not isinstance(x, Mapping):
                shapes[f"{name}/{part}" if name else part] = jnp.shape(x)
        if isinstance(layer, _NORMS):
            norms.append(name)
            followed.extend(layers_of((args, kwargs)))
        kernel = _kernel(layer)
        if kernel is not None:
            kernels[f"{name}/kernel" if name else "kernel"] = kernel
            results.append((name, out))
        return out

    def call(key: Array, *inputs: Tree) -> Tree:
        with nn.intercept_methods(interceptor):
            out, variables = module.init_with_output(key, *inputs, **arguments)
        first = out[0] if isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], Mapping) else out
        heads.extend(layers_of(first))
        return variables["params"]

    heads: list[str] = []
    params = tree.named_leaves(jax.eval_shape(call, tree.key_like(), *inputs))
    stacked = {}
    for name, x in params.items():
        inside = shapes.get(name, x.shape)
        if x.shape != inside:
            depth = stacked[name.rpartition("/")[0]] = len(x.shape) - len(inside)
            if x.shape[depth:] != inside:
                raise ConfigError(f"module: {name!r} {list(x.shape)} is stacked, and not along its first axes")
    return Roles(
        output=tuple(dict.fromkeys(heads)) or None,
        kernels=kernels,
        norms=tuple(dict.fromkeys(norms)),
        stacked=stacked,
        normalized=tuple(dict.fromkeys(followed)),
    )


def _kernel(layer: nn.Module) -> Kernel | None:
    """The axes of a layer's kernel, from the right; None where they are unknown."""
    if isinstance(layer, nn.Dense):
        return DENSE
    if isinstance(layer, nn.DenseGeneral):
        units = 1 if isinstance(layer.features, int) else len(layer.features)
        size = jnp.ndim(layer.variables["params"]["kernel"])
        count = 1 if isinstance(layer.axis, int) else len(layer.axis)
        if layer.batch_dims or count + units != size:
            return None
        return Kernel(tuple(range(-size, -units)), tuple(range(-units, 0)))
    if isinstance(layer, nn.Conv | nn.ConvTranspose):
        kernel = convolution(1 if isinstance(layer.kernel_size, int) else len(layer.kernel_size))
        turned = isinstance(layer, nn.ConvTranspose) and layer.transpose_kernel
        return Kernel(kernel.outputs, kernel.inputs, kernel.places) if turned else kernel
    return None
