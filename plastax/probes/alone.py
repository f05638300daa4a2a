"""Probes without the rest of plastax: of a network that somebody else trains."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from plastax import tree
from plastax.curvature import checks, losses, running
from plastax.errors import ConfigError
from plastax.probes.weights import kernel_names
from plastax.roles import STRUCTURE, RolesOf
from plastax.types import Array, Examples, Features, Key, LayerInputs, Loss, Model, Params, ProbeInput, Tapped, Tree

Apply = Callable[[Params, Array], Any]


@functools.partial(jax.jit, static_argnames=("probes", "apply", "loss", "activation", "init", "roles"))
def measure(
    probes: tuple[Any, ...],
    params: Params,
    apply: Apply | Tapped,
    batch: tuple[Array, Array],
    key: Key,
    *,
    loss: Loss | str = "cross_entropy",
    activation: str = "relu",
    initial: Params = None,
    previous: Params = None,
    init: Callable[[Key], Params] | None = None,
    roles: RolesOf = STRUCTURE,
) -> dict[str, Array]:
    """What some probes say of one network on one batch.

    Compiled once for the same ``probes`` and the same ``apply``, ``loss`` and ``init`` objects: define them outside of
    the training loop. It can be mapped over seeds and be part of a larger compiled function. Layers are those that are
    tapped, else those with a kernel, whatever it is called.

    Args:
      probes: configurations, ``FeatureProbe(tau=0.1)``, or names of `PROBES`, each with its defaults.
      params: a tree of the network's parameters.
      apply: ``(params, x) -> outputs``, or ``-> (outputs, features)`` with a dict of hidden layers' features
        ``[B, ..., units]``, in the order of the forward pass, which `FeatureProbe` needs; any other tuple is the
        outputs. Or
        ``plastax.models.tapped(module)`` of a Flax module that returns either: what `KroneckerSpectrum`, and the units
        without gradient of `GradientProbe`, need.
      batch: inputs ``[B, ...]`` and labels ``[B]`` or targets ``[B, D]``.
      key: of what is random in the probes.
      loss: a name of `plastax.curvature.losses`, or a loss.
      activation: name of the hidden layers' nonlinearity, see `plastax.probes.activity`.
      initial: parameters that training began with; for `MovementProbe`.
      previous: parameters at the end of the last task; for `MovementProbe`.
      init: ``key -> params``, the initialiser; for `PlasticityProbe`.
      roles: what says which parameters are kernels and what their axes are, see `plastax.roles.Roles`.

    Returns:
      ``<probe>/<value>``.

    Raises:
      ConfigError: an unknown name, or a probe that needs what is not given.
    """
    from plastax.probes import PROBES  # Here: that module imports this one.

    unknown = [probe for probe in probes if isinstance(probe, str) and probe not in PROBES]
    if unknown:
        raise ConfigError.unknown("probes", unknown[0], PROBES)
    configs: list[Any] = [PROBES[probe] if isinstance(probe, str) else probe for probe in probes]
    output_loss = losses.get(loss)
    checks.key(key)
    if not isinstance(batch, tuple | list) or len(batch) not in (2, len(Examples._fields)):
        keys = f" with {', '.join(map(str, batch))}" if isinstance(batch, dict) else ""
        raise ConfigError(f"batch: a {type(batch).__name__}{keys} is not allowed; give (inputs, labels)")
    checks.examples(batch, "batch")
    params, batch, initial, previous = tree.gathered((params, batch, initial, previous))
    examples = Examples(*batch)
    # A plain network is one without taps.
    network = apply if isinstance(apply, Tapped) else Tapped(lambda x: {}, lambda p, taps, x: (apply(p, x), {}))

    def forward(params: Params, taps: dict[str, Array], x: Array) -> tuple[Tree, Features, dict[str, LayerInputs]]:
        out, inputs = network.apply(params, taps, x)
        # Any other tuple is the outputs themselves, of an actor and a critic, say.
        paired = isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], Mapping)
        outputs, features = out if paired else (out, {})
        return outputs, _arrays(features), inputs

    def tapped_loss(
        params: Params, taps: Tree, data: Examples
    ) -> tuple[Array, tuple[Features, dict[str, LayerInputs]]]:
        outputs, features, inputs = forward(params, taps, data.x)
        return output_loss.value(outputs, data), (features, inputs)

    hidden: list[str] = []
    # Read while it is traced: a dict that comes out of JAX is sorted.
    jax.eval_shape(lambda p, x: hidden.extend(forward(p, {}, x)[1]), params, examples.x)
    tapped = tuple(network.taps(examples.x))
    layers = tapped
    if not tapped and any(config.name in ("weights", "movement", "gradient") for config in configs):
        layers = tuple(kernel_names(params, roles, "probes"))
    needs = (
        ({"features"}, hidden, "apply: the network gives no features; let it return (outputs, features)"),
        ({"kronecker"}, tapped, "apply: its layers are not tapped; give plastax.models.tapped(module)"),
        ({"movement"}, initial is not None and previous is not None, "initial, previous: None is not allowed"),
        ({"plasticity"}, init, "init: None is not allowed; give the network's initialiser"),
    )
    for config in configs:
        for names, there, why in needs:
            if config.name in names and not there:
                raise ConfigError(f"{why}, with the probe {config.name}")
    model = Model(
        init or _no_init, lambda p, x: forward(p, {}, x)[:2], network.taps, forward, layers, tuple(hidden),
        activation=activation, roles=roles,
    )  # fmt: skip
    seen = ProbeInput(
        params, examples, lambda p, data: tapped_loss(p, {}, data)[0], lambda p, data: forward(p, {}, data.x)[1],
        lambda p, data: forward(p, {}, data.x)[0], output_loss, tapped_loss, lambda data: network.taps(data.x),
        running.start({}), key, lambda: initial, previous,
    )  # fmt: skip
    values: dict[str, Array] = {}
    for i, config in enumerate(configs):
        found = config.build(model).measure(seen._replace(key=jax.random.fold_in(key, i)))
        values |= {f"{config.name}/{name}": value for name, value in found.items()}
    return values


def _arrays(features: Mapping[str, Any]) -> Features:
    wrong = [name for name, x in features.items() if getattr(x, "ndim", 0) < 2]
    if wrong:
        raise ConfigError(f"apply: the features {', '.join(wrong)} are not allowed; give arrays [B, ..., units]")
    return dict(features)


def _no_init(key: Key) -> Params:
    raise NotImplementedError
