"""Probes without the rest of plastax: of a network that somebody else trains."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plastax import discovery, parameters, tree
from plastax.curvature import checks, losses, running
from plastax.curvature.kronecker import factored as factored_by
from plastax.errors import ConfigError
from plastax.layers import LayerInputs, Tapped
from plastax.probes.base import Need, ProbeConfig
from plastax.probes.registry import PROBES
from plastax.probes.weights import kernel_names
from plastax.roles import STRUCTURE, RolesOf
from plastax.types import Array, Examples, Features, Key, Loss, Model, Params, ProbeInput, Tree, all_count

Apply = Callable[[Params, Array], Any]


def measure(
    probes: tuple[str | ProbeConfig, ...],
    params: Params,
    apply: Apply | Tapped,
    batch: tuple[Array, Array],
    key: Key,
    *,
    loss: Loss | str = "cross_entropy",
    activation: str | None = None,
    initial: Params = None,
    previous: Params = None,
    init: Callable[[Key], Params] | None = None,
    roles: RolesOf = STRUCTURE,
    counted: Callable[[Array], Array] | None = None,
) -> dict[str, Array]:
    """Measures one network on one batch.

    Compiles once for the same ``probes`` and the same ``apply``, ``loss`` and ``init`` objects: define these outside of
    the training loop. Can be mapped over seeds and be part of a larger compiled function. Features and taps that
    ``apply`` does not give are found in its trace, see `plastax.discovery`. The layers are the tapped ones if any are
    tapped, else those with a kernel, whatever it is called.

    Args:
      probes: configurations, ``FeatureProbe(tau=0.1)``, or names of `PROBES` for their defaults.
      params: the network's parameters: a tree of arrays, or what else `plastax.parameters.split` takes. ``apply`` gets
        it as it was given.
      apply: ``(params, x) -> outputs``, or ``-> (outputs, features)`` with a dict of the hidden layers' features
        ``[B, ..., units]`` in the order of the forward pass; any other tuple counts as outputs. Or
        ``plastax.models.tapped(module)`` of a Flax module that returns either.
      batch: inputs ``[B, ...]`` and labels ``[B]`` or targets ``[B, D]``.
      key: for the probes' random draws.
      loss: a name of `plastax.curvature.losses`, or a loss.
      activation: name of the hidden layers' nonlinearity, see `plastax.probes.activity`; by default that which is
        found, or relu.
      initial: parameters at the start of training; for `MovementProbe`.
      previous: parameters at the end of the last task; for `MovementProbe`.
      init: ``key -> params``, the initialiser; for `PlasticityProbe` and `GainProbe`.
      roles: which parameters are kernels and what their axes are, see `plastax.roles.Roles`.
      counted: ``(x) -> bool [B, T]``, which places of sequences are not padding; the network's outputs must be zero at
        the others, and features are taken as zero there. None: all places count.

    Returns:
      ``<probe>/<value>`` -> array.

    Raises:
      ConfigError: for an unknown name, parameters that are no arrays, a batch of padding alone, or a probe that needs
        what is neither given nor found.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from plastax import probes
      >>> params = {"hidden": {"kernel": 2.0 * jnp.eye(3)}, "output": {"kernel": jnp.ones((3, 2))}}
      >>> def apply(params, x):
      ...     hidden = jax.nn.relu(x @ params["hidden"]["kernel"])
      ...     return hidden @ params["output"]["kernel"], {"hidden": hidden}
      >>> batch = jnp.eye(3), jnp.array([0, 1, 0])
      >>> values = probes.measure(("features", "weights"), params, apply, batch, jax.random.key(0))
      >>> float(values["features/srank"][0]), float(values["weights/spectral_norm"][0])
      (3.0, 2.0)
    """
    for name, leaf in tree.named_leaves((params, initial, previous)).items():
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | int | float):
            raise ConfigError(
                f"params: {name.partition('/')[2]!r} is of type {type(leaf).__name__}; give a tree of arrays, "
                "equinox.partition(module, equinox.is_array)[0] of an Equinox module, and combine it in apply"
            )
    configs = tuple(_config(probe) for probe in probes)
    checks.key(key)
    _check_batch(batch)
    if counted is not None and checks.concrete(batch[0]):
        with jax.ensure_compile_time_eval():
            some = np.asarray(counted(jnp.asarray(batch[0]))).any()
        if not some:
            what = f"no place of the inputs {list(jnp.shape(batch[0]))} counts, all are padding"
            raise ConfigError(f"batch: {what}; leave batches of padding out")
    return _measure(
        configs, params, apply, batch, key, losses.get(loss), activation, initial, previous, init, roles, counted
    )


@functools.partial(
    jax.jit, static_argnames=("configs", "apply", "output_loss", "activation", "init", "roles", "counted")
)
def _measure(
    configs: tuple[ProbeConfig, ...],
    params: Params,
    apply: Apply | Tapped,
    batch: tuple[Array, Array],
    key: Key,
    output_loss: Loss,
    activation: str | None,
    initial: Params,
    previous: Params,
    init: Callable[[Key], Params] | None,
    roles: RolesOf,
    counted: Callable[[Array], Array] | None,
) -> dict[str, Array]:
    """`measure`, of arguments that fit."""
    params, whole = parameters.split(params)
    initial, previous = (None if one is None else parameters.split(one)[0] for one in (initial, previous))
    params, batch, initial, previous = tree.gathered((params, batch, initial, previous))
    examples = Examples(*batch)
    # A plain network is one without taps.
    given = apply if isinstance(apply, Tapped) else Tapped(lambda x: {}, lambda p, taps, x: (apply(p, x), {}))

    def own(params: Params, taps: dict[str, Array], x: Array) -> tuple[Tree, Features, dict[str, LayerInputs]]:
        out, inputs = given.apply(whole(params), taps, x)
        # Any other tuple is the outputs themselves, of an actor and a critic, say.
        paired = isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], Mapping)
        outputs, features = out if paired else (out, {})
        return outputs, _arrays(features), inputs

    def plain(params: Params, x: Array) -> tuple[Tree, Features]:
        return own(params, {}, x)[:2]

    hidden: list[str] = []
    # Read while it is traced: a dict that comes out of JAX is sorted.
    jax.eval_shape(lambda p, x: hidden.extend(plain(p, x)[1]), params, examples.x)
    factored: Mapping[str, tuple[str, ...]] = factored_by(given, examples.x)
    layers = tuple(layer for layer, own in factored.items() if own[0].endswith("kernel"))
    forward: Callable[..., Any] = own
    taps_of = given.taps
    lacks = {need for need, names in (("features", hidden), ("taps", factored)) if not names}
    if lacks & {need for config in configs for need in config.needs}:
        found = discovery.discover(plain, params, examples.x)
        hidden, layers, factored = list(found.hidden), found.layers, found.factored
        forward, taps_of = functools.partial(discovery.tapped, plain), functools.partial(discovery.taps, plain, params)
        activation = activation or found.activation
        roles = found.roles if roles is STRUCTURE else roles

    def seen_at(params: Params, taps: Tree, x: Array) -> tuple[Tree, Features, dict[str, LayerInputs]]:
        outputs, features, inputs = forward(params, taps, x)
        if counted is not None:
            features = {name: jnp.where(counted(x)[..., None], h, 0) for name, h in features.items()}
            inputs = {name: dataclasses.replace(seen, counted=counted(x)) for name, seen in inputs.items()}
        return outputs, features, inputs

    def tapped_loss(
        params: Params, taps: Tree, data: Examples
    ) -> tuple[Array, tuple[Features, dict[str, LayerInputs]]]:
        outputs, features, inputs = seen_at(params, taps, data.x)
        return output_loss.value(outputs, data), (features, inputs)

    if not layers and any("kernels" in config.needs for config in configs):
        layers = tuple(kernel_names(params, roles, "probes"))
    _check_needs(configs, {
        "features": bool(hidden), "taps": bool(factored), "init": init is not None,
        "origins": initial is not None and previous is not None,
    })  # fmt: skip
    draw = lambda key: params if init is None else parameters.split(init(key))[0]  # noqa: E731
    model = Model(
        draw, lambda p, x: seen_at(p, {}, x)[:2], taps_of, seen_at, layers, tuple(hidden),
        activation=activation or "relu", roles=roles, counted=counted, factored=factored,
    )  # fmt: skip
    seen = ProbeInput(
        params, examples, lambda p, data: tapped_loss(p, {}, data)[0], lambda p, data: seen_at(p, {}, data.x)[1],
        lambda p, data: seen_at(p, {}, data.x)[0], output_loss, tapped_loss, lambda data: taps_of(data.x),
        running.start({}), key, lambda: initial, previous,
        all_count if counted is None else lambda data: counted(data.x),
    )  # fmt: skip
    values: dict[str, Array] = {}
    for i, config in enumerate(configs):
        measured = config.build(model).measure(seen._replace(key=jax.random.fold_in(key, i)))
        values |= {f"{config.name}/{name}": value for name, value in measured.items()}
    return values


def _config(probe: str | ProbeConfig) -> ProbeConfig:
    if isinstance(probe, str) and probe not in PROBES:
        raise ConfigError.unknown("probes", probe, PROBES)
    return PROBES[probe] if isinstance(probe, str) else probe


def _check_batch(batch: Any) -> None:
    if not isinstance(batch, tuple | list) or len(batch) not in (2, len(Examples._fields)):
        keys = f" with {', '.join(map(str, batch))}" if isinstance(batch, dict) else ""
        raise ConfigError(f"batch: a {type(batch).__name__}{keys} is not allowed; give (inputs, labels)")
    checks.examples(batch, "batch")


_REMEDIES: Mapping[Need, str] = {
    "features": "apply: the network gives no features, and none are found; let it return (outputs, features)",
    "taps": "apply: it has no layer that can be tapped",
    "origins": "initial, previous: None is not allowed",
    "init": "init: None is not allowed; give the network's initialiser",
}


def _check_needs(configs: tuple[ProbeConfig, ...], given: Mapping[Need, bool]) -> None:
    for config in configs:
        for need in config.needs:
            if not given.get(need, True):
                raise ConfigError(f"{_REMEDIES[need]}, with the probe {config.name}")


def _arrays(features: Mapping[str, Any]) -> Features:
    wrong = [name for name, x in features.items() if getattr(x, "ndim", 0) < 2]
    if wrong:
        raise ConfigError(f"apply: the features {', '.join(wrong)} are not allowed; give arrays [B, ..., units]")
    return dict(features)
