"""Which uses of layers have all that the layers' parameters do, as their Kronecker factors say.

A factor takes a layer for a map of its inputs, one for each example. It would be silently wrong where the parameters
act otherwise, too: a kernel that is read a second time (`h @ embed.embedding.T`), or a call on something that has no
axis of examples. The trace of a network shows both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax.errors import FlaxError
from jax.interpreters.partial_eval import dce_jaxpr

from plastax import tree
from plastax.models.forms import Use
from plastax.types import Array, Params, Tree

Cut = Callable[[str, Array, Array], Array]
"""``(use, inputs, result) -> array``, in place of the result of a call: it depends on the inputs, not on parameters."""


def alone(
    network: Callable[[Params, Tree, Tree, Cut, int], Tree], params: Params, rest: Tree, x: Tree
) -> Callable[[Use], bool]:
    """Whether the calls of a use are all that its parameters do, and each has the axis of the examples.

    Args:
      network: ``(params, rest, x, cut, examples) -> outputs``, with calls that seem to be of ``examples`` cut.
      params: or their shapes; path names are those of `Use.parameters`.
      rest: what else the network has, or its shapes.
      x: what the network gets, or its shapes; the leading axis is that of the examples.
    """
    sizes: dict[str, set[int]] = {}

    def cut(use: str, given: Array, out: Array) -> Array:
        sizes.setdefault(use, set()).add(len(given))
        return jnp.zeros_like(out) + jnp.sum(given).astype(out.dtype)

    def traced(times: int) -> Any:
        like = jax.tree.map(lambda a: jax.ShapeDtypeStruct((times * len(a), *a.shape[1:]), a.dtype), x)
        examples = len(jax.tree.leaves(like)[0])
        return jax.make_jaxpr(lambda p, rest, x: network(p, rest, x, cut, examples))(params, rest, like)

    # With twice as many examples: what has no axis of examples does not become longer.
    times = 2
    try:
        closed = traced(times)
    except (TypeError, ValueError, FlaxError):  # Some networks are written for one size of the batch.
        times, sizes = 1, {}
        closed = traced(times)
    used = dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))[1]
    elsewhere = {name.removesuffix("/value") for name, one in zip(tree.named_leaves(params), used, strict=False) if one}

    def is_alone(use: Use) -> bool:
        longer = {times * form.tap[0] for form in use.calls}
        own = {name for names in use.parameters().values() for name in names}
        # A call that `nn.jit` had compiled before is not seen again.
        return sizes.get(use.name, longer) == longer and not own & elsewhere

    return is_alone
