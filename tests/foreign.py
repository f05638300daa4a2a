"""Networks of other makes, each beside the same network in plastax's own form: one table."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from plastax import models, tree
from plastax.models import MLP
from plastax.models.layers import ROLES
from plastax.roles import Roles, RolesOf
from plastax.types import Model
from tests.test_roles import Linear

INPUTS, HIDDEN, CLASSES = 4, 6, 3
X = jnp.zeros((1, INPUTS))
Apply = Callable[[Any, jax.Array], Any]


class Form(NamedTuple):
    """A network twice.

    Attributes:
      own: plastax's own.
      to: its parameters -> those of the other make.
      apply: of the other make, to outputs and features under the names of ``own``.
      roles: what its user says of it.
      dtype: of the parameters, of both.
      compute: what inputs and parameters are rounded to, in both.
    """

    own: Model
    to: Callable[[Any], Any]
    apply: Apply
    roles: RolesOf
    dtype: Any = jnp.float32
    compute: Any = None

    def rounded(self, apply: Apply) -> Apply:
        """The network as it computes."""
        if self.compute is None:
            return apply
        narrow = functools.partial(jax.tree.map, lambda x: x.astype(self.compute))
        return lambda params, x: tree.wide(apply(narrow(params), narrow(x)))

    def model(self, theirs: bool) -> Model:
        """Either network, as methods and probes are told of it."""
        draw = (lambda key: self.to(self.own.init(key))) if theirs else self.own.init
        apply = self.rounded(self.apply if theirs else self.own.apply)
        kept = {} if theirs else {"units": self.own.units}
        said = self.roles if theirs else self.own.roles
        return Model(
            lambda key: jax.tree.map(lambda x: x.astype(self.dtype), draw(key)), apply, lambda x: {},
            lambda p, taps, x: (*apply(p, x), {}), (), self.own.hidden, roles=said, **kept,
        )  # fmt: skip


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        hidden = nn.relu(nn.Dense(HIDDEN)(x))
        return nn.Dense(CLASSES)(hidden), {"dense_0": hidden}


class Normalized(nn.Module):
    """By the statistics of the batch."""

    own: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        first, norm, last = ("dense_0", "norm_dense_0", "output") if self.own else (None, None, None)
        z = nn.Dense(HIDDEN, name=first)(x)
        hidden = nn.relu(nn.BatchNorm(use_running_average=False, name=norm)(z))
        return nn.Dense(CLASSES, name=last)(hidden), {"dense_0": hidden}


class Attention(nn.Module):
    """The kernels of attention, of two heads, around a nonlinearity."""

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        hidden = nn.relu(nn.DenseGeneral((2, HIDDEN // 2), name="heads")(x))
        return nn.DenseGeneral(CLASSES, axis=(-2, -1), name="out")(hidden), {
            "dense_0": hidden.reshape(*x.shape[:-1], HIDDEN)
        }


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> Any:
        hidden = nn.relu(nn.Dense(INPUTS)(x))
        return hidden, hidden


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        stack = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        last, hidden = stack()(x, None)
        return nn.Dense(CLASSES)(last), {"dense_0": hidden[0], "dense_1": hidden[1]}


class Nnx(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.first, self.second = nnx.Linear(INPUTS, HIDDEN, rngs=rngs), nnx.Linear(HIDDEN, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> Any:
        hidden = nn.relu(self.first(x))
        return self.second(hidden), {"dense_0": hidden}


def of_nnx(own: Any) -> Any:
    leaves = [own[layer][part] for layer in ("dense_0", "output") for part in ("bias", "kernel")]
    return jax.tree.unflatten(jax.tree.structure(GRAPH[1]), leaves)


def plain(first: Callable, second: Callable) -> Apply:
    def apply(params: Any, x: jax.Array) -> Any:
        hidden = nn.relu(first(params, x))
        return second(params, hidden), {"dense_0": hidden}

    return apply


def linen(module: nn.Module, own: Model, to: Callable[[Any], Any], **kinds: Any) -> Form:
    def apply(params: Any, x: jax.Array) -> Any:
        out = module.apply({"params": params}, x, mutable=["batch_stats"])[0]
        return out if isinstance(out, tuple) else (out, {})

    return Form(own, to, apply, models.roles(module, X), **kinds)


def batch_normalised() -> Model:
    """plastax has it in its residual network alone; here under its names."""
    module = Normalized(own=True)

    def apply(params: Any, x: jax.Array) -> Any:
        return module.apply({"params": params}, x, mutable=["batch_stats"])[0]

    return Model(
        lambda key: module.init(key, X)["params"], apply, lambda x: {}, lambda p, taps, x: (*apply(p, x), {}), (),
        ("dense_0",), roles=ROLES,
    )  # fmt: skip


def of_attention(own: Any) -> Any:
    kernel, bias = own["dense_0"]["kernel"], own["dense_0"]["bias"]
    return {
        "heads": {"kernel": kernel.reshape(INPUTS, 2, -1), "bias": bias.reshape(2, -1)},
        "out": {"kernel": own["output"]["kernel"].reshape(2, -1, CLASSES), "bias": own["output"]["bias"]},
    }


def of_stack(own: Any) -> Any:
    stack = jax.tree.map(lambda *layers: jnp.stack(layers), own["dense_0"], own["dense_1"])
    return {"ScanBlock_0": {"Dense_0": stack}, "Dense_0": own["output"]}


def of_linen(own: Any) -> Any:
    return {"Dense_0": own["dense_0"], "Dense_1": own["output"]}


MODEL = MLP(hidden=(HIDDEN,)).build((INPUTS,), CLASSES)
LINEN = linen(Linen(), MODEL, of_linen)
GRAPH = nnx.split(Nnx(), nnx.Param)
FORMS = {
    "linen": LINEN,
    "nnx": Form(
        MODEL, of_nnx, lambda p, x: nnx.merge(GRAPH[0], p)(x), Roles(output=("second",))
    ),
    "equinox": Form(
        MODEL,
        lambda own: [Linear(own[layer]["kernel"].T, own[layer]["bias"]) for layer in ("dense_0", "output")],
        plain(lambda p, x: x @ p[0].weight.T + p[0].bias[None], lambda p, x: x @ p[1].weight.T + p[1].bias[None]),
        Roles(output=("1",)),
    ),
    "haiku": Form(
        MODEL,
        lambda own: {
            theirs: {"w": own[layer]["kernel"], "b": own[layer]["bias"]}
            for layer, theirs in (("dense_0", "mlp/~/linear_0"), ("output", "mlp/~/linear_1"))
        },
        plain(lambda p, x: x @ p["mlp/~/linear_0"]["w"] + p["mlp/~/linear_0"]["b"][None],
              lambda p, x: x @ p["mlp/~/linear_1"]["w"] + p["mlp/~/linear_1"]["b"][None]),
        Roles(output=("mlp/~/linear_1",)),
    ),
    "one dense": linen(nn.Dense(CLASSES), MLP(hidden=()).build((INPUTS,), CLASSES), lambda own: own["output"]),
    "attention": linen(Attention(), MODEL, of_attention),
    "scanned": linen(Scanned(), MLP(hidden=(INPUTS, INPUTS)).build((INPUTS,), CLASSES), of_stack),
    "batch-normalised": linen(
        Normalized(), batch_normalised(), lambda own: of_linen(own) | {"BatchNorm_0": own["norm_dense_0"]}
    ),
    "bfloat16 parameters": LINEN._replace(dtype=jnp.bfloat16),
    "bfloat16 compute": LINEN._replace(compute=jnp.bfloat16),
    "double": LINEN._replace(dtype=jnp.float64),
}  # fmt: skip
