"""Taps on the layers of a Flax module: what they are given, and a place to add to what they give.

Layers of `flax.linen` are intercepted while the module is applied, those of `flax.nnx` by `plastax.models.taps_nnx`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from flax.core import DenyList
from flax.traverse_util import flatten_dict, unflatten_dict

from plastax import machine, tree
from plastax.errors import ConfigError
from plastax.layers import LayerInputs, Tapped
from plastax.models import taps_nnx
from plastax.models.window import layer_inputs
from plastax.types import Array, Key, Params, Tree

_INPUTS, _OUTPUTS, _TAPS = "plastax_inputs", "plastax_outputs", "plastax_taps"
"""Collections by which values enter and leave a module: lifted transformations such as `nn.remat` pass them on."""
_PASSES = itertools.count()
Seen = dict[str, tuple[nn.Module, Array]]
"""Layer -> the layer, without arrays, and what it was given or gave; in the order of the forward pass."""


def tapped(
    module: nn.Module | nnx.Module,
    *,
    inputs: Callable[[Tree], Tree] = lambda data: data,
    layers: Collection[str] | None = None,
    variables: Mapping[str, Tree] | None = None,
    rngs: Mapping[str, Key] | None = None,
    mutable: Sequence[str] = (),
    **arguments: Any,
) -> Tapped:
    """Gives out the layers of a Flax module, which stays as it is, for `plastax.curvature.kronecker`.

    Dense layers and convolutions are tapped (`Dense` and `Conv` of `flax.linen`, `Linear` and `Conv` of `flax.nnx`,
    and their subclasses), under the path of their parameters: ``encoder/Dense_0``. Other layers pass as they are, and
    their parameters are in no factor. Layers may be in `nn.remat` and `nn.jit`. A layer in `nn.scan`, `nn.vmap` or
    `nn.RNN` is several layers or steps in one, and is refused.

    Args:
      module: called with one argument, whose leading axis is that of the examples.
      inputs: picks that argument from the data: ``operator.itemgetter(0)`` where the data is ``(x, y)``.
      layers: names of the layers to tap; None: all.
      variables: collections beside the parameters, such as batch statistics. What the module changes in them is lost.
      rngs: keys of what the module draws, ``{"dropout": key}``: the same draws in every pass.
      mutable: collections that are returned in a pair with the outputs, as `flax.linen.Module.apply` does.
      **arguments: further keyword arguments of the call, such as ``train=False``.

    `variables`, `rngs` and `mutable` are for linen. An nnx module has its own statistics and keys; every pass
    starts from those that it had when it was tapped.

    Returns:
      The network. ``params`` is ``module.init(...)["params"]``, or all variables; of nnx ``nnx.state(module,
      nnx.Param)`` (also as `nnx.to_pure_dict`, whose names are those of the layers), all state, or a module like this
      one. ``outputs`` is what the module gives.

    Raises:
      ConfigError: ``module`` is not of Flax, or an argument for linen is given for nnx. Where the network is applied:
        the module has no layer of a name in ``layers``, or it needs a collection that ``variables`` lacks.
      ValueError: where the network is applied: a layer is called twice (its parameters have two inputs) or is in
        `nn.scan` and the like, or no `Window` describes a convolution: grouped, masked, transposed by an input
        dilation, circular or reflecting, or with other than one batch axis.

    Examples:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> from plastax import models
      >>> module = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)])
      >>> x = jnp.ones((5, 3))
      >>> network = models.tapped(module)
      >>> {name: tap.shape for name, tap in network.taps(x).items()}
      {'layers_0': (5, 4), 'layers_2': (5, 2)}
      >>> outputs, inputs = network.apply(module.init(jax.random.key(0), x)["params"], {}, x)
      >>> inputs["layers_2"].values.shape
      (5, 4)
    """
    if isinstance(module, nnx.Module):
        for name, given in (("variables", variables), ("rngs", rngs), ("mutable", mutable)):
            if given:
                raise ConfigError(f"{name}: not for nnx modules; {type(module).__name__} has its own state and keys")
        return taps_nnx.tapped(module, inputs, layers, arguments)
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"module: {type(module).__module__}.{type(module).__name__} is not allowed; give a module of flax.linen "
            "or flax.nnx: layers of Equinox or plain functions cannot be tapped"
        )
    return _linen(module, inputs, layers, variables or {}, rngs or {}, mutable, arguments)


def _linen(
    module: nn.Module,
    inputs: Callable[[Tree], Tree],
    layers: Collection[str] | None,
    variables: Mapping[str, Tree],
    rngs: Mapping[str, Key],
    mutable: Sequence[str],
    arguments: dict[str, Any],
) -> Tapped:
    """The network of a linen module; the arguments are those of `tapped`."""

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

    def interceptor(met: dict[str, nn.Module]) -> nn.module.Interceptor:
        def intercept(next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            out, layer = next_fun(*args, **kwargs), context.module
            if context.method_name != "__call__" or not isinstance(layer, nn.Dense | nn.Conv):
                return out
            name = "/".join(layer.path)
            met.setdefault(name, layer.clone(parent=None))
            if layers is not None and name not in layers:
                return out
            layer.sow(_INPUTS, "x", args[0] if args else kwargs["inputs"])
            layer.sow(_OUTPUTS, "z", out)
            return out + layer.get_variable(_TAPS, "tap") if layer.has_variable(_TAPS, "tap") else out

        return intercept

    def seen(collection: str, run: Callable[[str], tuple[Any, Mapping[str, Tree]]]) -> tuple[Any, Mapping, Seen]:
        """What ``run`` gives with the layers tapped: outputs, state, and of a collection what each layer put there."""
        machine.check_assertions()
        # `nn.jit` calls no layer of what it compiled before for the same mutable collections: each pass has one of its
        # own. Where it takes one layer's compilation for another in the same pass, the pass is repeated without.
        for compile_ in (contextlib.nullcontext, jax.disable_jit):
            met: dict[str, nn.Module] = {}
            with compile_(), explained(), nn.intercept_methods(interceptor(met)):
                outputs, state = run(f"plastax_pass_{next(_PASSES)}")
            values = {"/".join(path[:-1]): given for path, given in flatten_dict(state.get(collection, {})).items()}
            unknown = [name for name in layers or () if name not in met]
            if not unknown and values.keys() <= met.keys():
                break
        if unknown:
            raise ConfigError.unknown("layers", unknown[0], met)
        chosen = [name for name in met if layers is None or name in layers]
        for name in chosen:
            if name not in values:
                raise ValueError(
                    f"layer {name!r} is inside nn.scan, nn.vmap or nn.RNN, which have several layers or steps in one; "
                    "leave it out: models.tapped(module, layers=[...]) with the others"
                )
            if len(values[name]) > 1:
                raise ValueError(
                    f"layer {name!r} is called twice, which Kronecker factors cannot describe; leave it out"
                )
        return outputs, state, {name: (met[name], values[name][0]) for name in chosen}

    def taps(data: Tree) -> dict[str, Array]:
        def init(key: Key, x: Tree, own: str) -> Tree:
            mutable = DenyList(("intermediates", own))
            return None, module.init({"params": key, **rngs}, x, mutable=mutable, **arguments)

        def run(own: str) -> Any:
            return jax.eval_shape(functools.partial(init, own=own), tree.key_like(), inputs(data))

        found = seen(_OUTPUTS, run)[-1]
        return {name: jnp.zeros(shape.shape, shape.dtype) for name, (_, shape) in found.items()}

    def apply(params: Params, taps: dict[str, Array], data: Tree) -> tuple[Tree, dict[str, LayerInputs]]:
        collections: Mapping[str, Tree] = variables
        if isinstance(params, Mapping) and isinstance(params.get("params"), Mapping):
            collections = {**variables, **{name: x for name, x in params.items() if name != "params"}}
            params = params["params"]
        placed = unflatten_dict({(*name.split("/"), "tap") if name else ("tap",): tap for name, tap in taps.items()})
        given = {"params": params, **collections} | ({_TAPS: placed} if taps else {})

        def run(own: str) -> Any:
            kept = [_INPUTS, *collections, *mutable, own]
            return module.apply(given, inputs(data), rngs=dict(rngs), mutable=kept, **arguments)

        outputs, state, found = seen(_INPUTS, run)
        if mutable:
            outputs = outputs, {name: values for name, values in state.items() if name in mutable}
        return outputs, {name: layer_inputs(name, layer, x) for name, (layer, x) in found.items()}

    return Tapped(taps, apply)


def names(network: Tapped, data: Tree) -> tuple[str, ...]:
    """The tapped layers in the order of the forward pass, of the data or of their shapes; nothing is computed."""
    found: list[str] = []
    jax.eval_shape(lambda data: found.extend(network.taps(data)), data)
    return tuple(found)
