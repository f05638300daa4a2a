"""What every parameter of a Flax module is, seen while the module is called."""

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

    The module is traced, not run. Known are kernels of `nn.Dense`, `nn.DenseGeneral` (attention) and convolutions,
    whatever their layers are called and however they are stacked; normalisations; which layers a normalisation follows;
    and the output layers: those whose results are the module's. What is done to them behind (a division, a softmax)
    hides them: then say ``dataclasses.replace(found, output=(...))``.

    Args:
      module: of which outputs may come first in a tuple with features.
      *inputs: of its call, or their shapes.
      **arguments: further keyword arguments of the call.

    Raises:
      ConfigError: layers are stacked along other axes than the first.
    """
    kernels: dict[str, Kernel] = {}
    shapes: dict[str, tuple[int, ...]] = {}  # within whatever stacks the layer
    norms: list[str] = []
    followed: list[str] = []
    results: list[tuple[str, Array]] = []  # held, so that no other array gets an old one's identity

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
    """The axes of a layer's kernel, from the right; None: it has none that is known."""
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
