"""Taps on the layers of a module of `flax.linen`, which are intercepted while the module is applied.

What a layer was given leaves the module in a collection of its own, and its tap enters in another. Lifted
transformations such as `nn.remat` pass these on. `nn.scan` and `nn.vmap` only pass on the collections that they were
told of; there both travel among the parameters.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import DenyList
from flax.traverse_util import flatten_dict, unflatten_dict

from plastax import machine, tree
from plastax.errors import ConfigError, Refused
from plastax.layers import LayerInputs, Tapped
from plastax.models import forms
from plastax.models.alone import Cut, alone
from plastax.models.forms import Form, Use
from plastax.types import Array, Key, Params, Tree

_INPUTS, _TAPS = "plastax_inputs", "plastax_taps"
"""Collections, and names within them, of what layers are given and of their taps."""
_PASSES = itertools.count()


class _Found(NamedTuple):
    """What a pass meets.

    Attributes:
      layers: names of the layers that could be tapped.
      calls: use -> number of the call -> its form.
      lost: use out of reach, whose collections a lifted transformation does not pass on -> shapes of its parameters.
    """

    layers: dict[str, None]
    calls: dict[str, dict[int, Form]]
    lost: dict[str, dict[str, tuple[int, ...]]]


def tapped(
    module: nn.Module,
    inputs: Callable[[Tree], Tree],
    layers: Collection[str] | None,
    without: Collection[str],
    mask: Callable[[Tree], Array | None],
    variables: Mapping[str, Tree],
    rngs: Mapping[str, Key],
    mutable: Sequence[str],
    arguments: dict[str, Any],
    known: bool = False,
) -> Tapped:
    """See `plastax.models.taps.tapped`, whose arguments these are; for ``known`` see `plastax.models.taps.of_known`."""

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

    def interceptor(found: _Found, stacks: Mapping[str, tuple[int, ...]], examples: int) -> nn.module.Interceptor:
        def intercept(next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            out, layer, method = next_fun(*args, **kwargs), context.module, context.method_name
            if method not in forms.METHODS or not forms.has(layer, method):
                return out
            name = "/".join(layer.path)
            use = forms.use_of(name, method)
            found.layers.setdefault(name)
            if name in without or (layers is not None and name not in layers):
                return out
            own = layer.is_mutable_collection(_INPUTS)
            if not own and use not in stacks:
                found.lost[use] = {part: x.shape for part, x in layer.variables["params"].items()}
                return out
            x, *rest = _arrays_first(args, kwargs)
            if not forms.of_examples(layer, method, x, examples):
                return out
            into, of = (_INPUTS, _TAPS) if own else ("params", "params")
            sown, tap = f"{_INPUTS}.{method}", f"{_TAPS}.{method}"
            call = len(layer.get_variable(into, sown, ()))
            calls = found.calls.setdefault(use, {})
            calls[call] = forms.of(name, layer, x, out, rest)
            layer.sow(into, sown, x)
            if not layer.has_variable(of, tap):
                return out
            return out + forms.placed([calls[i] for i in range(call + 1)], call, layer.get_variable(of, tap))

        return intercept

    def seen(
        run: Callable[[str, Any], tuple[Any, Mapping[str, Tree]]], x: Tree, outer: Tree = None
    ) -> tuple[Tree, Mapping[str, Tree], list[Use]]:
        """A pass with the layers tapped, or two: only the first shows which layers are stacked.

        Args:
          run: ``(a collection of this pass's own, stacks) -> (outputs, state)``.
          x: what the module gets.
          outer: the parameters; None: they are in the state.
        """
        machine.check_assertions()
        examples, stacks = len(jax.tree.leaves(x)[0]), dict[str, tuple[int, ...]]()
        for _ in range(2):
            # `nn.jit` calls no layer of what it compiled before for the same mutable collections: each pass has one of
            # its own. Where it takes one layer's compilation for another in the same pass, the pass is repeated
            # without.
            for compile_ in (contextlib.nullcontext, jax.disable_jit):
                found = _Found({}, {}, {})
                met = _unless_changed(interceptor(found, stacks, examples))
                with compile_(), explained(), nn.intercept_methods(met):
                    outputs, state = run(f"plastax_pass_{next(_PASSES)}", stacks)
                given = _given(state)
                unknown = [name for name in (*(layers or ()), *without) if name not in found.layers]
                if not unknown and given.keys() <= found.calls.keys():
                    break
            if unknown:
                raise ConfigError.unknown("layers", unknown[0], found.layers)
            if not found.lost:
                break
            stacks = _stacks(found.lost, state["params"] if outer is None else outer)
        return (
            outputs,
            state,
            [
                Use(use, [calls[i] for i in range(len(calls))], stacks.get(use, ()), given[use])
                for use, calls in found.calls.items()
            ],
        )

    def cut_at_layers(params: Params, rest: Mapping[str, Tree], x: Tree, cut: Cut, examples: int) -> Tree:
        def intercept(next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            out, layer, method = next_fun(*args, **kwargs), context.module, context.method_name
            if method not in forms.METHODS or not forms.has(layer, method):
                return out
            given, name = _arrays_first(args, kwargs)[0], "/".join(layer.path)
            return (
                cut(forms.use_of(name, method), given, out)
                if forms.of_examples(layer, method, given, examples)
                else out
            )

        kept = [*rest, *mutable, f"plastax_pass_{next(_PASSES)}"]
        with explained(), nn.intercept_methods(_unless_changed(intercept)):
            return module.apply({"params": params, **rest}, x, rngs=dict(rngs), mutable=kept, **arguments)[0]

    checked: dict[Any, Callable[[Use], bool]] = {}  # Shapes of what the module gets -> whether a use is alone.

    def chosen(found: list[Use], params: Params, rest: Mapping[str, Tree], x: Tree) -> list[Use]:
        shapes = str(jax.tree.map(jnp.shape, x))
        if shapes not in checked:
            checked[shapes] = alone(cut_at_layers, params, rest, x)
        return list(filter(checked[shapes], found))

    def uses(data: Tree) -> list[Use]:
        def init(key: Key, x: Tree, own: str) -> Tree:
            mutable = DenyList(("intermediates", own))
            return None, module.init({"params": key, **rngs}, x, mutable=mutable, **arguments)

        def run(own: str, _: Any) -> Any:
            return jax.eval_shape(functools.partial(init, own=own), tree.key_like(), inputs(data))

        found = seen(run, inputs(data))[-1]
        if known:
            return found
        rest = jax.eval_shape(
            lambda key, x: module.init({"params": key, **rngs}, x, **arguments), tree.key_like(), inputs(data)
        )
        return chosen(found, rest.pop("params"), {**rest, **variables}, inputs(data))

    def taps(data: Tree) -> dict[str, Array]:
        return {name: tap for use in uses(data) for name, tap in use.taps().items()}

    def parameters(data: Tree) -> dict[str, tuple[str, ...]]:
        return {name: own for use in uses(data) for name, own in use.parameters().items()}

    def apply(params: Params, taps: dict[str, Array], data: Tree) -> tuple[Tree, dict[str, LayerInputs]]:
        collections: Mapping[str, Tree] = variables
        if isinstance(params, Mapping) and isinstance(params.get("params"), Mapping):
            collections = {**variables, **{name: x for name, x in params.items() if name != "params"}}
            params = params["params"]

        def run(own: str, stacks: Mapping[str, tuple[int, ...]]) -> Any:
            rest = dict(taps)
            taken = {_at(use): forms.stacked(rest, use, stack) for use, stack in stacks.items()}
            stacked = {at: tap for at, tap in taken.items() if tap is not None}
            own_taps = {_TAPS: unflatten_dict({_at(use): tap for use, tap in rest.items()})} if rest else {}
            whole = unflatten_dict(flatten_dict(params) | stacked) if stacked else params
            kept = [_INPUTS, *collections, *mutable, own, *["params"] * bool(stacks)]
            return module.apply(
                {"params": whole, **collections, **own_taps}, inputs(data), rngs=dict(rngs), mutable=kept, **arguments
            )

        outputs, state, found = seen(run, inputs(data), params)
        found = found if known else chosen(found, params, collections, inputs(data))
        if mutable:
            outputs = outputs, {name: values for name, values in state.items() if name in mutable}
        counted = mask(data)
        return outputs, {name: x for use in found for name, x in use.inputs(counted).items()}

    return Tapped(taps, apply, parameters)


def _unless_changed(intercept: nn.module.Interceptor) -> nn.module.Interceptor:
    """The interceptor, but not of layers whose parameters another module changes before they are applied."""
    inside: list[nn.Module] = []

    def outer(next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, nn.WeightNorm | nn.SpectralNorm):
            inside.append(context.module)
            try:
                return next_fun(*args, **kwargs)
            finally:
                inside.pop()
        return next_fun(*args, **kwargs) if inside else intercept(next_fun, args, kwargs, context)

    return outer


def _arrays_first(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    return sorted((*args, *kwargs.values()), key=lambda given: not hasattr(given, "shape"))


def _given(state: Mapping[str, Tree]) -> dict[str, tuple[Array, ...]]:
    """Use -> what each of its calls was given, as it came out of the module."""
    found = {}
    for path, calls in flatten_dict({name: state.get(name, {}) for name in (_INPUTS, "params")}).items():
        _, mine, method = path[-1].partition(f"{_INPUTS}.")
        if mine:
            found[forms.use_of("/".join(path[1:-1]), method)] = calls
    return found


def _at(use: str) -> tuple[str, ...]:
    """Where a use's tap is, among the layers' variables."""
    name, method = forms.of_use(use)
    return (*name.split("/"), f"{_TAPS}.{method}") if name else (f"{_TAPS}.{method}",)


def _stacks(lost: Mapping[str, Mapping[str, tuple[int, ...]]], params: Params) -> dict[str, tuple[int, ...]]:
    """Sizes of the leading axes of the parameters, of layers inside of lifted transformations.

    Raises:
      Refused: layers have no such axes: several steps share their parameters.
    """
    shapes = {"/".join(path): jnp.shape(x) for path, x in flatten_dict(nn.meta.unbox(params)).items()}
    stacks, shared = {}, dict[str, None]()
    for use, parts in lost.items():
        name = forms.of_use(use)[0]
        whole = {part: shapes[f"{name}/{part}" if name else part] for part in parts}
        depths = {len(whole[part]) - len(shape) for part, shape in parts.items()}
        leading = {whole[part][: len(whole[part]) - len(shape)] for part, shape in parts.items()}
        if (
            depths == {0}
            or len(leading) > 1
            or any(whole[part][-len(shape) :] != shape for part, shape in parts.items())
        ):
            shared.setdefault(name)
        else:
            (stacks[use],) = leading
    if shared:
        raise Refused(
            f"layer {next(iter(shared))!r} is inside nn.scan, nn.vmap or nn.RNN, whose steps share its parameters or "
            f"stack them along another axis than the first; leave it out: models.tapped(module, without={[*shared]})",
            shared,
        )
    return stacks
