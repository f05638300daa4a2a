"""The methods on networks of other makes: the numbers of the same network in plastax's own form, or a refusal."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from plastax import methods, roles, tree
from plastax.errors import ConfigError
from plastax.models.layers import ROLES
from plastax.roles import Kernel, Roles, RolesOf
from tests.test_roles import LayerNorm, Linear, Network

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
# One network, in plastax's own form: hidden layers, normalised, and an output layer.
OWN = {
    "dense_0": {"kernel": (6, 8), "bias": (8,)},
    "norm_dense_0": {"scale": (8,), "bias": (8,)},
    "dense_1": {"kernel": (8, 7), "bias": (7,)},
    "output": {"kernel": (7, 3), "bias": (3,)},
}


def own(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s), jnp.float32), OWN, is_leaf=_is_shape)


def _is_shape(x: Any) -> bool:
    return isinstance(x, tuple)


def linen(of: Callable[[str], Any]) -> Any:
    return {
        "Dense_0": {"kernel": of("dense_0/kernel"), "bias": of("dense_0/bias")},
        "LayerNorm_0": {"scale": of("norm_dense_0/scale"), "bias": of("norm_dense_0/bias")},
        "Dense_1": {"kernel": of("dense_1/kernel"), "bias": of("dense_1/bias")},
        "Dense_2": {"kernel": of("output/kernel"), "bias": of("output/bias")},
    }


def haiku(of: Callable[[str], Any]) -> Any:
    return {
        "mlp/~/linear_0": {"w": of("dense_0/kernel"), "b": of("dense_0/bias")},
        "ln": {"scale": of("norm_dense_0/scale"), "offset": of("norm_dense_0/bias")},
        "mlp/~/linear_1": {"w": of("dense_1/kernel"), "b": of("dense_1/bias")},
        "head": {"w": of("output/kernel"), "b": of("output/bias")},
    }


class Module(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first, self.second, self.head = (nnx.Linear(*s, rngs=rngs) for s in ((6, 8), (8, 7), (7, 3)))
        self.norm = nnx.LayerNorm(8, rngs=rngs)


def of_nnx(of: Callable[[str], Any]) -> Any:
    module = Module(nnx.Rngs(0))
    for layer, theirs in (("dense_0", module.first), ("dense_1", module.second), ("output", module.head)):
        theirs.kernel.set_value(of(f"{layer}/kernel"))
        theirs.bias.set_value(of(f"{layer}/bias"))
    module.norm.scale.set_value(of("norm_dense_0/scale"))
    module.norm.bias.set_value(of("norm_dense_0/bias"))
    return nnx.state(module, nnx.Param)


def equinox(of: Callable[[str], Any]) -> Any:
    layers = [Linear(of(f"{layer}/kernel").T, of(f"{layer}/bias")) for layer in ("dense_0", "dense_1", "output")]
    norm = LayerNorm(of("norm_dense_0/scale"), of("norm_dense_0/bias"))
    return Network([layers[0], norm, *layers[1:]])


MAKES = {
    "own": (lambda of: own_form(of), ROLES),
    "linen": (linen, Roles(output=("Dense_2",), normalized=("Dense_0",))),
    "haiku": (haiku, Roles(output=("head",), normalized=("mlp/~/linear_0",))),
    "nnx": (of_nnx, Roles(output=("head",), normalized=("first",))),
    "equinox": (equinox, Roles(output=("layers/3",), normalized=("layers/0",))),
}
# Every method that looks at what a parameter is.
METHODS: dict[str, Callable[[RolesOf], Any]] = {
    "l2": lambda r: optax.chain(methods.l2(0.1, r), optax.sgd(0.1)),
    "weight_decay": lambda r: optax.chain(optax.sgd(0.1), methods.weight_decay(0.1, r)),
    "parseval": lambda r: methods.parseval(0.1, 1.0, r),
    "isometry": lambda r: methods.isometry(0.1, r),
    "spectral_norm": lambda r: methods.spectral_norm(0.1, exponent=3, iterations=100, roles=r),
    "weight_clipping": lambda r: optax.chain(optax.sgd(3.0), methods.weight_clipping(0.8, r)),
    "project": lambda r: optax.chain(optax.sgd(0.1), methods.project(roles=r)),
    "project hidden": lambda r: optax.chain(optax.sgd(0.1), methods.project(norms=False, output=False, roles=r)),
    "dash": lambda r: methods.dash(optax.sgd(0.1), 0.1, 0.3, 1, r),
    "upgd local": lambda r: methods.upgd(optax.sgd(0.1), 0.0, variant="local", roles=r),
    "reset_head": lambda r: methods.reset_head(optax.adam(0.1), r),
    "muon": lambda r: methods.Muon(0.1).build(optax.sgd(0.1), Declared(r)),
}


class Declared(NamedTuple):
    """What of a model `Muon` looks at."""

    roles: RolesOf


def run(method: Any, turn: Callable[[int], Any]) -> Any:
    """A switch and a step; ``turn`` gives the tree of a number. What becomes of the first."""
    params = turn(0)
    state = method.init(params)
    method = optax.with_extra_args_support(method)
    for clock, grads in enumerate((jax.tree.map(jnp.zeros_like, params), turn(1))):
        extra = {"key": jax.random.key(0), "clock": clock, "init_fn": lambda _: turn(2), "boundary": not clock}
        updates, state = method.update(grads, state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params


def own_form(of: Callable[[str], Any]) -> Any:
    return tree.map_named(lambda name, _: of(name), own(0))


@functools.cache
def all_of(make: str, names: tuple[str, ...]) -> dict[str, Any]:
    """What becomes of a network under methods."""
    build, declared = MAKES[make]

    def turn(seed: int) -> Any:
        leaves = tree.named_leaves(own(seed))
        return build(lambda name: leaves[name])

    return jit(lambda: {name: run(METHODS[name](declared), turn) for name in names})()


@pytest.mark.parametrize(
    ("make", "names"),
    [
        ("equinox", ("l2", "project hidden", "reset_head")),
        *(pytest.param(make, tuple(METHODS), marks=pytest.mark.slow) for make in MAKES if make != "own"),
    ],
)
def test_numbers_are_those_of_the_own_form(make: str, names: tuple[str, ...]) -> None:
    before = tree.named_leaves(own(0))
    for name in names:
        expected = tree.named_leaves(all_of("own", names)[name])
        assert any(not np.array_equal(x, before[n]) for n, x in expected.items()), name
        # Sums in another order, of a transposed kernel.
        close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5, err_msg=name)
        jax.tree.map(close, all_of(make, names)[name], MAKES[make][0](lambda n, to=expected: to[n]))


@pytest.mark.parametrize("name", ["parseval", "isometry", "reset_head", "project hidden"])
def test_without_a_word_on_the_output_layer_they_refuse(name: str) -> None:
    """Were it called ``output``, too."""
    with pytest.raises(ConfigError, match=r"nothing says which .*give.*roles=Roles\((output|normalized)="):
        METHODS[name](roles.STRUCTURE).init(own(0))


NOTHING = {"alpha": jnp.ones(()), "table": {"embedding": jnp.ones((3, 4))}}


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("l2", "weight_decay", "muon", "upgd local")])
def test_with_nothing_to_act_on_they_refuse(name: str) -> None:
    with pytest.raises(ConfigError, match=r"none of the parameters|no output layer|no hidden layer"):
        METHODS[name](Roles(output=(), normalized=())).init(NOTHING)


@pytest.mark.parametrize("name", ["l2", "weight_decay"])
def test_decay_of_normalisations_alone_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: all parameters belong to normalisations"):
        METHODS[name](roles.STRUCTURE).init({"LayerNorm_0": {"scale": jnp.ones(3), "bias": jnp.ones(3)}})


STACK = {"blocks": {"kernel": (2, 5, 4), "bias": (2, 4)}}
QUERY = {"query": {"kernel": (6, 2, 4), "bias": (2, 4)}}
CONV = {"conv": {"kernel": (4, 3, 2, 2), "bias": (4, 1, 1)}}
FORMS = {
    # (parameters, their roles, those of one layer as a dense one: index of a layer -> (kernel, bias))
    "scanned": (STACK, Roles(output=()), [lambda k, b, i=i: (k[i], b[i]) for i in range(2)]),
    "attention": (QUERY, Roles(output=()), [lambda k, b: (k.reshape(6, 8), b.reshape(8))]),
    "convolution": (
        CONV,
        Roles(output=(), kernels={"conv/kernel": Kernel((1,), (0,), (2, 3))}),
        [lambda k, b: (k.reshape(4, 12).T, b.reshape(4))],
    ),
}


BY_MATRIX = [n for n in METHODS if n not in ("reset_head", "project hidden", "dash", "upgd local")]


@pytest.mark.slow  # compiles much
@pytest.mark.parametrize("form", FORMS)
def test_kernels_of_more_axes_are_matrices_of_their_own(form: str) -> None:
    shapes, declared, layers = FORMS[form]
    ((layer, parts),) = shapes.items()

    def draw(seed: int) -> list[jax.Array]:
        rng = np.random.default_rng(seed)
        return [jnp.asarray(rng.standard_normal(parts[part]), jnp.float32) for part in ("kernel", "bias")]

    def train(roles_of: RolesOf, of: Callable[..., Any]) -> Any:
        turn = lambda seed: {layer: dict(zip(("kernel", "bias"), of(*draw(seed))))}  # noqa: E731
        return {n: run(METHODS[n](roles_of), turn)[layer] for n in BY_MATRIX if n != "muon" or form != "convolution"}

    def both() -> Any:
        return train(declared, lambda k, b: (k, b)), [train(Roles(output=()), of) for of in layers]

    together, alone = jit(both)()
    for name, got in together.items():
        for of, expected in zip(layers, alone):
            mine = dict(zip(("kernel", "bias"), of(got["kernel"], got["bias"])))
            for part, value in mine.items():
                np.testing.assert_allclose(value, expected[name][part], rtol=1e-3, atol=1e-3, err_msg=name)


def test_noise_leaves_normalisations_alone() -> None:
    params = nn.LayerNorm().init(jax.random.key(0), jnp.ones((1, 3)))["params"]
    params = {"LayerNorm_0": params, "Dense_0": {"kernel": jnp.ones((3, 2))}}
    noisy = methods.ShrinkAndPerturb(shrink=0.1, perturb=1.0, variant="gaussian").build(optax.sgd(0.1))
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = noisy.update(zeros, noisy.init(params), params, key=jax.random.key(0))
    assert not jnp.any(updates["LayerNorm_0"]["scale"])
    assert jnp.all(updates["Dense_0"]["kernel"] != 0)


def test_settings_that_say_nothing_of_a_layer_are_named() -> None:
    declared = dataclasses.replace(Roles(), output=("Dense_7",))
    with pytest.raises(ConfigError, match=r"roles.output: 'Dense_7' is unknown .did you mean"):
        methods.parseval(roles=declared).init(linen(lambda name: tree.named_leaves(own(0))[name]))
