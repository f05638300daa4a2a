"""Networks of one's own as models: any module of Flax (linen, nnx) or Equinox, or a pair of functions.

`entry` takes the network, or its class, or a function that makes it, and gives what the registries of models hold.

* A class or function is called with those of these arguments that its signature names: ``outputs``, the number of
  logits, targets or actions; ``input_shape``, of one example; ``continuous``, whether actions are real vectors; and, to
  draw the weights, ``rngs`` (`flax.nnx.Rngs`) or ``key``. All others need defaults; numbers, strings and tuples among
  them become settings: ``--model.width``.
* A module is called with a batch ``[B, *input_shape]`` of floats, in experiments on tokens of integers; one of Equinox
  with single examples, by `jax.vmap`. A pair of functions is ``init(key) -> params`` and
  ``apply(params, x) -> outputs``.
* It returns its outputs ``[B, outputs]``, of tokens ``[B, T, outputs]``, or a pair of these and a dict of its features.
  For PPO it returns ``(logits, value)``, for continuous actions ``(mean, log_std, value)``; or a dict with ``policy``,
  ``value`` and, for continuous actions, ``log_std``. For DQN the outputs are action values.
* An nnx or Equinox module that is given as an object keeps its weights: every seed starts with them.
* With batch normalisation, linen modules take an argument ``train`` in their call.

Layers, features, units and the parameters' roles are found by `plastax.discovery`, and what it does not find can be
declared: let the function return ``entry(module, "net").build(input_shape, outputs)._replace(units=..., roles=...)``.
Parameters are nested dicts by the paths that they have in the network; numbers that are not floating point stay as they
are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from plastax import discovery, parameters, tree
from plastax.errors import ConfigError
from plastax.layers import LayerInputs, Tapped
from plastax.models.pure import Pure, of_equinox, of_linen, of_nnx
from plastax.models.taps import but_refused
from plastax.types import Array, Key, Model, Params, Tree

GIVEN = ("outputs", "input_shape", "continuous", "rngs", "key")
"""The arguments that a class or function of one's own may name; see the module."""
_FORMS = (
    "a module of flax.linen, flax.nnx or Equinox, its class, a pair of functions (init(key), apply(params, x)), or a "
    "function that returns one of these"
)
_EXAMPLES = 3
"""Examples in the batch that networks are traced with."""


@dataclass(frozen=True)
class OwnModel:
    """A network from outside of plastax as an entry of the registries of models; `entry` makes one."""

    source: ClassVar[_Source]

    def build(
        self, input_shape: tuple[int, ...], outputs: int, *, continuous: bool | None = None, tokens: bool = False
    ) -> Model:
        """Makes the model; nothing is computed.

        Args:
          input_shape: of one example.
          outputs: number of logits or targets; of a policy, actions or their dimensions.
          continuous: whether actions are real vectors; None: the network is for supervised learning.
          tokens: whether inputs are tokens, int32 ``[B, T]``; the network then gives logits ``[B, T, outputs]``.

        Raises:
          ConfigError: the network does not fit: its arguments, its outputs, random draws, collections of state.
        """
        obj, name = self.source
        facts = {"outputs": outputs, "input_shape": tuple(input_shape), "continuous": bool(continuous)}
        example = jax.ShapeDtypeStruct((_EXAMPLES, *input_shape), jnp.int32 if tokens else jnp.float32)
        with _explained(name, input_shape):
            made = _pure(obj, name, facts | dataclasses.asdict(self), example)
            if isinstance(made, Model):
                return made
            return _model(made, name, example, outputs, continuous)


class _Source(NamedTuple):
    """What an entry was made of, and its name."""

    obj: Any
    name: str


def entry(obj: Any, name: str) -> Any:
    """The entry of a network of one's own, see the module.

    Args:
      obj: the network, its class, or a function that makes it. An entry (a dataclass with ``build``) is returned as it
        is; a class of entries with its defaults.
      name: for messages.

    Returns:
      A frozen dataclass with ``build(input_shape, outputs, *, continuous=None) -> Model``. Its fields are the settings.

    Raises:
      ConfigError: it is something else, or asks for unknown arguments.

    Examples:
      >>> import flax.linen as nn
      >>> from plastax.models import own
      >>> def build(outputs, width=8):
      ...     return nn.Sequential([nn.Dense(width), nn.relu, nn.Dense(outputs)])
      >>> model = own.entry(build, "net").build((4,), 3)
      >>> model.layers, model.hidden, model.roles.output, model.activation
      (('layers_0', 'layers_2'), ('layers_0',), ('layers_2',), 'relu')
    """
    if callable(getattr(obj, "build", None)):
        return obj() if isinstance(obj, type) else obj
    fields: list[Any] = []
    if _is_maker(obj):
        for parameter in _parameters(obj, name):
            default = parameter.default
            if default is inspect.Parameter.empty and parameter.name not in GIVEN:
                raise ConfigError(
                    f"model: {name} ({_described(obj)}) asks for the argument {parameter.name!r}, which nothing gives; "
                    f"give it a default, or name it one of {', '.join(GIVEN)}"
                )
            if parameter.name not in GIVEN and isinstance(default, bool | int | float | str | tuple):
                one: Any = type(default[0]) if isinstance(default, tuple) and default else None
                kind: Any = tuple[one, ...] if one else type(default)
                fields.append((parameter.name, kind, dataclasses.field(default=default)))
    elif _kind(obj) is None:
        raise ConfigError(f"model: {name} is {_described(obj)}; give {_FORMS}")
    namespace = {"source": _Source(obj, name), "__doc__": (inspect.getdoc(obj) or name).partition("\n")[0]}
    return dataclasses.make_dataclass("Own", fields, bases=(OwnModel,), frozen=True, namespace=namespace)()


@dataclass(frozen=True)
class Fixed:
    """Gives the same parameters for every key; methods that draw new ones ask for ``refusal`` and refuse."""

    params: Callable[[Key], Params]
    refusal: str

    def __call__(self, key: Key) -> Params:
        """The parameters."""
        return self.params(key)


def _is_equinox(obj: Any) -> bool:
    equinox = sys.modules.get("equinox")
    return equinox is not None and isinstance(obj, equinox.Module)


def _is_maker(obj: Any) -> bool:
    return isinstance(obj, type) or (callable(obj) and _kind(obj) is None)


def _kind(obj: Any) -> str | None:
    """What kind of network an object is; None: of none."""
    if isinstance(obj, nn.Module | nnx.Module):
        return "linen" if isinstance(obj, nn.Module) else "nnx"
    if _is_equinox(obj):
        return "equinox"
    pair = isinstance(obj, tuple | list) and len(obj) == 2 and all(callable(one) for one in obj)
    return "functions" if pair else "model" if isinstance(obj, Model) else None


def _described(obj: Any) -> str:
    kind = obj if isinstance(obj, type) or inspect.isroutine(obj) else type(obj)
    what = "" if kind is obj else "an object of "
    return f"{what}{kind.__module__}.{kind.__qualname__}"


def _parameters(obj: Any, name: str) -> list[inspect.Parameter]:
    try:
        # The metaclasses of nnx and Equinox hide the signature of a class.
        made: Any = obj.__init__ if isinstance(obj, type) else obj  # type: ignore[misc]
        found = list(inspect.signature(made).parameters.values())
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model: {name} ({_described(obj)}) has no signature; give {_FORMS}") from error
    linen = ("parent", "name") if isinstance(obj, type) and issubclass(obj, nn.Module) else ()
    found = found[1:] if isinstance(obj, type) else found
    return [p for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in linen]


@contextlib.contextmanager
def _explained(name: str, input_shape: tuple[int, ...]) -> Iterator[None]:
    """Turns whatever goes wrong in a trace into one line that names the network."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        shape = ", ".join(map(str, ("B", *input_shape)))
        raise ConfigError(
            f"model: {name} cannot be called with inputs [{shape}]: {type(error).__name__}: {first}"
        ) from error


def _pure(obj: Any, name: str, facts: Mapping[str, Any], example: Any) -> Pure | Model:
    """The functions of a network; a function may return a whole `Model`."""

    def make(key: Key) -> Any:
        if not _is_maker(obj):
            return obj
        arguments = {**facts, "rngs": nnx.Rngs(key), "key": key}
        return obj(**{p.name: arguments[p.name] for p in _parameters(obj, name) if p.name in arguments})

    kept: list[Any] = []
    # Only traced: the weights are not needed yet.
    jax.eval_shape(lambda key: kept.append(make(key)), tree.key_like())
    drawn = bool({p.name for p in _parameters(obj, name)} & {"rngs", "key"}) if _is_maker(obj) else False
    match _kind(kept[0]):
        case "linen":
            return of_linen(kept[0], name, example)
        case "nnx":
            return of_nnx(make, fixed=not drawn)
        case "equinox":
            return of_equinox(make, fixed=not drawn)
        case "functions":
            init, apply = kept[0]
            return Pure(init, lambda params, stats, x, train: (apply(params, x), stats))
        case "model":
            whole: Model = kept[0]
            return whole
    raise ConfigError(f"model: {name} ({_described(obj)}) gives {_described(kept[0])}; give {_FORMS}")


def _names(init: Callable[[Key], Tree], name: str) -> parameters.Named:
    like = jax.eval_shape(init, tree.key_like())
    # nnx keeps an array in the attribute `value` of its variable.
    named = {at.removesuffix("/value"): x for at, x in tree.named_leaves(like).items()}
    kinds = {
        at: np.dtype("bool") if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype for at, x in named.items()
    }
    wrong = [at for at, kind in kinds.items() if jnp.issubdtype(kind, jnp.complexfloating)]
    floating = {at for at, kind in kinds.items() if jnp.issubdtype(kind, jnp.floating)}
    if wrong or not floating:
        what = f"the complex parameters {', '.join(wrong)}" if wrong else "no parameters of floating point"
        raise ConfigError(f"model: {name} has {what}; give a network with real ones")
    rest = {}
    if floating < named.keys():
        leaves = zip(named, jax.tree.leaves(jax.jit(init)(jax.random.key(0))), strict=True)
        rest = {at: leaf for at, leaf in leaves if at not in floating}
    return parameters.Named(tuple(named), jax.tree.structure(like), rest)


def _model(pure: Pure, name: str, example: Any, outputs: int, continuous: bool | None) -> Model:
    """The model of a network, for batches like ``example``."""
    if pure.stats and continuous is not None:
        raise ConfigError(f"model: {name} has batch statistics, which PPO would act without; take layer normalisation")
    names = _names(pure.init, name)

    def network(stats: Tree, train: bool, tapped: Tapped | None = None, taps: Any = ()) -> discovery.Network:
        def run(params: Params, x: Array) -> tuple[Any, ...]:
            given, inputs = names.unpack(params), dict[str, LayerInputs]()
            if tapped is None:
                out, moved = pure.call(given, stats, x, train)
            else:
                (out, moved), inputs = tapped.apply((given, stats), taps, x)
            named = isinstance(out, tuple | list) and len(out) == 2 and isinstance(out[1], Mapping)
            out, features = out if named else (out, {})
            places = x.shape if jnp.issubdtype(x.dtype, jnp.integer) else x.shape[:1]
            return _outputs(out, name, places, outputs, continuous), dict(features), moved, inputs

        return run

    def draw(key: Key) -> Params:
        return names.pack(pure.init(key))

    like = jax.eval_shape(draw, tree.key_like())
    plain = network(pure.stats, True)
    found = discovery.discover(plain, like, example)
    if found.draws:
        raise ConfigError(f"model: {name} draws random numbers (dropout?), which is not supported; set its rate to 0")

    flax, factored, others = None, found.factored, dict[str, tuple[str, ...]]()
    if pure.tapped and tree.named_leaves(like).keys() - set().union(*factored.values()):
        flax, seen = but_refused(pure.tapped, example)
        factored, others = _joined(factored, seen)
    kinds = found.roles.of(like)
    kernels = {role.layer for role in kinds.values() if role.kind == "kernel"}
    layers = tuple(name for name in factored if name in found.layers or name in kernels)

    def taps(x: Array) -> dict[str, Array]:
        zeros = discovery.taps(plain, like, x) | (flax.taps(x) if flax and others else {})
        return {name: zeros[name] for name in factored}

    def train(params: Params, stats: Tree, taps: Mapping[str, Array], x: Array) -> Any:
        mine, theirs = ({name: taps[name] for name in taps if (name in others) is one} for one in (False, True))
        run = network(stats, True, flax if others else None, theirs)
        outputs, features, inputs, moved, further = discovery.tapped(run, params, mine, x)
        inputs |= {name: further[name] for name in others}
        return outputs, features, {name: inputs[name] for name in factored}, moved

    def tapped(params: Params, taps: Mapping[str, Array], x: Array) -> Any:
        return train(params, pure.stats, taps, x)[:3]

    def evaluate(params: Params, stats: Tree, x: Array) -> Any:
        return discovery.tapped(network(stats, False), params, {}, x)[:2]

    refusal = (
        f"{name} is an object with weights of its own, so there are no others to draw; give its class, or a function "
        "of rngs (nnx) or key (Equinox) that makes it"
    )
    return Model(
        Fixed(draw, refusal) if pure.fixed else draw,
        lambda params, x: discovery.tapped(plain, params, {}, x)[:2],
        taps,
        tapped,
        layers,
        found.hidden,
        found.units,
        pure.stats,
        train if pure.stats else None,
        evaluate if pure.stats else None,
        activation=found.activation,
        roles=found.roles,
        lacking=found.lacking,
        factored=factored,
    )


def _joined(
    found: Mapping[str, tuple[str, ...]], seen: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """The layers that the trace shows, and those of Flax that add parameters to theirs.

    Args:
      found: layer -> names of its parameters, as the trace shows them.
      seen: the same of the layers of Flax. Both are in the order of the forward pass.

    Returns:
      All layers in that order, and those of them that are tapped as layers of Flax.
    """
    others = {name: own for name, own in seen.items() if not any({*own} <= {*one} for one in found.values())}
    taken = set().union(*others.values())
    joined: dict[str, tuple[str, ...]] = {}
    for name in found:
        if name in seen:
            joined |= {before: seen[before] for before in itertools.takewhile(name.__ne__, seen) if before in others}
        if taken.isdisjoint(found[name]):
            joined[name] = found[name]
    return joined | others, others


def _outputs(out: Any, name: str, places: tuple[int, ...], outputs: int, continuous: bool | None) -> Tree:
    """What a network gives at each of ``places``, examples or ``[B, T]``, as losses and policies read it.

    Raises:
      ConfigError: it is something else.
    """
    size = places[0]
    hint = f"; let its class or function take the argument outputs, here {outputs}"
    if continuous is None:
        if isinstance(out, tuple | list | Mapping) or jnp.shape(out) != (*places, outputs):
            needed = ", ".join(map(str, ("B", *places[1:], outputs)))
            raise ConfigError(f"model: {name} gives {_shapes(out)}, and the stream needs [{needed}]{hint}")
        return out
    parts = ("policy", "log_std", "value") if continuous else ("policy", "value")
    if isinstance(out, tuple | list) and len(out) == len(parts):
        out = dict(zip(parts, out, strict=True))
    shape = {"policy": (size, outputs), "log_std": (size, outputs), "value": (size,)}
    if not isinstance(out, Mapping) or set(out) != set(parts):
        raise ConfigError(
            f"model: {name} gives {_shapes(out)}, and PPO needs ({', '.join(parts)}) of the shapes "
            f"{', '.join(str(['B', *shape[part][1:]]).replace(chr(39), '') for part in parts)}"
        )
    if "log_std" in out:
        out = {**out, "log_std": jnp.broadcast_to(out["log_std"], jnp.shape(out["policy"]))}
    for part in parts:
        if math.prod(jnp.shape(out[part])) != math.prod(shape[part]) or jnp.shape(out[part])[:1] != (size,):
            raise ConfigError(f"model: {name} gives {part} {_shapes(out[part])}, and PPO needs {shape[part]}{hint}")
    return {part: out[part].reshape(shape[part]) for part in parts}


def _shapes(out: Any) -> str:
    leaves = jax.tree.leaves(out)
    shapes = [str(["B", *jnp.shape(leaf)[1:]]).replace("'", "") for leaf in leaves]
    return shapes[0] if len(leaves) == 1 and not isinstance(out, tuple | list | Mapping) else f"({', '.join(shapes)})"
