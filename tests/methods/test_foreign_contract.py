"""Every method on every foreign network: what it makes of the same network in plastax's own form, or a refusal."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastax.curvature.losses import LOSSES
from plastax.errors import ConfigError
from plastax.methods import METHODS
from plastax.methods.base import Settings
from plastax.types import MethodArgs, Model
from tests import foreign
from tests.foreign import FORMS, Form
from tests.methods.test_contract import CONFIGS

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
KEY = jax.random.key(0)
STEPS, EXAMPLES = 3, 8
# Noise is drawn in the order of a tree; power iterations start from vectors of a kernel's shape, and converge here.
# The others have an effect within a few steps, and beyond the rounding of bfloat16.
SETTINGS: dict[str, dict[str, Any]] = {
    "upgd": {"noise": 0.0},
    "spectral_norm": {"iterations": 200},
    "hare_tortoise": {"period": 2},
    "l2_init": {"strength": 0.5},
    "shrink_and_perturb": {"shrink": 0.1, "perturb": 0.1},
    "wasserstein_init": {"strength": 0.5},
    "weight_clipping": {"kappa": 0.5},
    "weight_decay": {"decay": 0.1},
}
OF_ADAM = {"adam_rel", "moment_reset"}
UNITS = {"continual_backprop", "redo", "regrama", "self_normalized_resets", "plasticity_injection"}
REFUSED = {"one dense": {"parseval", "isometry", "effective_rank", "l2_er"}}
# The others are options of the model.
NAMES = ["backprop", *(name for name, config in METHODS.items() if type(config).build is not Settings.build)]


def batch(clock: int, dtype: Any) -> dict[str, jax.Array]:
    rng = np.random.default_rng(clock)
    x = jnp.asarray(rng.standard_normal((EXAMPLES, foreign.INPUTS)), dtype)
    return {"x": x, "y": jnp.asarray(rng.integers(0, foreign.CLASSES, EXAMPLES))}


def build(name: str, model: Model, dtype: Any) -> Any:
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch(0, dtype))
    config = dataclasses.replace(CONFIGS[name], **SETTINGS.get(name, {}))
    inner = optax.adam(1e-2) if name in OF_ADAM else optax.sgd(0.1)
    return config.build(inner, model._replace(batch_like=like))


def run(name: str, form: Form, theirs: bool) -> Any:
    """A switch, where the method acts at switches, and steps. What becomes of the network."""
    model = form.model(theirs)
    method = build(name, model, form.dtype)
    params = model.init(KEY)
    state = method.init(params)

    def loss(params: Any, data: Any) -> jax.Array:
        return LOSSES["cross_entropy"].value(model.apply(params, data["x"])[0], (data["x"], data["y"]))

    for clock in range(STEPS):
        data = batch(clock, form.dtype)
        boundary = clock == 1 and METHODS[name].needs_boundary
        value, grads = jax.value_and_grad(loss)(params, data)
        features = model.apply(params, data["x"])[1]
        args = MethodArgs(
            jax.random.key(clock), jnp.int32(clock), data, value, features, {}, loss,
            lambda p, d: model.apply(p, d["x"])[1], lambda p, d: model.apply(p, d["x"])[0], model.init, boundary,
        )  # fmt: skip
        grads = jax.tree.map(jnp.zeros_like, grads) if boundary else grads
        updates, state = method.update(grads, state, params, **args._asdict())
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_methods_do_to_foreign_networks_what_they_do_to_own_ones(form: str) -> None:
    given, refused = FORMS[form], set()
    with jax.enable_x64(True) if form == "double" else contextlib.nullcontext():

        def all_of() -> Any:
            found = {}
            for name in NAMES:
                try:
                    theirs = run(name, given, True)
                except ConfigError:
                    refused.add(name)
                else:
                    found[name] = given.to(run(name, given, False)), theirs
            return found

        found = jit(all_of)()
        short = jnp.bfloat16 in (given.dtype, given.compute)
        for name, (expected, got) in found.items():
            assert jax.tree.structure(expected) == jax.tree.structure(got)
            for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
                assert a.dtype == b.dtype == given.dtype, name
                close = {"rtol": 3e-2, "atol": 3e-2} if short else {"rtol": 1e-3, "atol": 1e-4}
                np.testing.assert_allclose(np.asarray(b, np.float64), np.asarray(a, np.float64), err_msg=name, **close)
    assert refused == UNITS | REFUSED.get(form, set())
    plain = jax.tree.leaves(found["backprop"][1])
    idle = {
        name
        for name, (_, got) in found.items()
        if all(np.array_equal(a, b) for a, b in zip(plain, jax.tree.leaves(got), strict=True))
    }
    assert idle == {"backprop"}
