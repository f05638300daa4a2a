"""Plasticity itself: how well a copy of the network fits new targets within a fixed budget.

This measures what a network can still learn; every other probe measures something that is supposed to go along with it.
It is also the most expensive probe: each target is a training run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from plastax import ranges
from plastax.errors import ConfigError
from plastax.probes.base import Need, ProbeConfig, flat_counted, flat_outputs, thinned
from plastax.types import Array, Key, Model, Params, Probe, ProbeInput, Tree

Targets = Literal["sine", "network"]
OptimizerName = Literal["adam", "sgd"]


class Fit(NamedTuple):
    """Mean squared errors of one network on new targets, ``[targets]`` each.

    Attributes:
      before: of the network as it is.
      after: of the copy that was trained.
      baseline: of the best constant prediction: the targets' variance over examples.
    """

    before: Array
    after: Array
    baseline: Array


def sample_plasticity(before: Array, after: Array) -> Array:
    """``clip(1 - after / max(before, 1e-8), 0, 1)``: what one step gains on the sample that it was taken on.

    Averaged over the steps of a task. It rises with the step size and saturates at 0 for a step that overshoots, so it
    compares networks at one step size. It says nothing about other samples. For non-negative losses.

    Args:
      before: loss on the sample before the step.
      after: loss on it after the step.

    References:
      Elsayed and Mahmood, "Addressing loss of plasticity and catastrophic forgetting in continual learning", ICLR 2024,
      as in their code.
    """
    return jnp.clip(1.0 - after / jnp.maximum(before, 1e-8), 0.0, 1.0)


def fit(
    outputs_fn: Callable[[Params, Tree], Array],
    init_fn: Callable[[Key], Params],
    params: Params,
    batch: Tree,
    key: Key,
    *,
    targets: int,
    steps: int,
    optimizer: optax.GradientTransformation,
    kind: Targets = "sine",
    frequency: float = 1e5,
    batch_size: int = 0,
    counted: Array | None = None,
) -> Fit:
    """Trains a copy of ``params`` on each of several new regression targets, from a fresh optimiser state.

    With f the network, g the network at freshly drawn parameters, and a the mean of f's outputs on the batch now, the
    targets are

    * ``sine``: ``a + sin(frequency g(x))``: at so high a frequency nothing about the inputs predicts them; centred
      where
      the network is;
    * ``network``: ``g(x)`` itself, smooth in x and of a fresh network's scale (target-fitting capacity).

    Args:
      outputs_fn: ``(params, batch) -> [B, C]``.
      init_fn: ``(key) -> params``, the network's initialiser.
      params: where training starts; the caller's are not changed.
      batch: B examples, of which only the inputs matter.
      key: for the targets and the mini-batches.
      targets: how many, side by side.
      steps: gradient steps on each.
      optimizer: for the copy.
      kind: see above.
      frequency: of ``sine``. At 1e5, float32 keeps about two digits of the sine's argument, as good as any hash.
      batch_size: examples per step, drawn with replacement; 0: all.
      counted: bool ``[B, C]``, the outputs that means are over; None: all.

    References:
      Lyle et al., "Understanding plasticity in neural networks", ICML 2023, arXiv 2303.01486, section 3 (``sine``).
      Lyle, Rowland and Dabney, "Understanding and preventing capacity loss in reinforcement learning", ICLR 2022
      (``network``).
    """

    def loss(params: Params, batch: Tree, y: Array, counted: Array | None) -> Array:
        return jnp.mean(jnp.square(outputs_fn(params, batch) - y), where=counted)

    def off_first(x: Array) -> Array:
        # Means of differences: outputs of classes that do not exist yet are huge, and all the same.
        return x - x[:1]

    now = outputs_fn(params, batch)
    centre = now[:1] + jnp.mean(off_first(now), axis=0, keepdims=True, where=counted)
    some = None if counted is None else jnp.any(counted, axis=0)
    if some is not None:  # The mean of nothing is NaN.
        centre = jnp.where(some, centre, 0)

    def one(key: Key) -> Fit:
        target_key, batch_key = jax.random.split(key)
        drawn = outputs_fn(init_fn(target_key), batch)
        y = drawn if kind == "network" else centre + jnp.sin(frequency * drawn)

        def step(carry: tuple[Params, Tree], key: Key) -> tuple[tuple[Params, Tree], None]:
            params, state = carry
            part = batch, y, counted
            if batch_size:
                index = jax.random.randint(key, (batch_size,), 0, y.shape[0])
                part = jax.tree.map(lambda x: x[index], part)
            updates, state = optimizer.update(jax.grad(loss)(params, *part), state, params)
            return (optax.apply_updates(params, updates), state), None

        (trained, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(batch_key, steps))
        baseline = jnp.mean(jnp.var(off_first(y), axis=0, where=counted), where=some)
        return Fit(loss(params, batch, y, counted), loss(trained, batch, y, counted), baseline)

    return jax.vmap(one)(jax.random.split(key, targets))


@dataclass(frozen=True)
class PlasticityProbe(ProbeConfig):
    """Behavioural plasticity: what a fixed budget of training on fresh random targets reaches, on a copy."""

    name: ClassVar[str] = "plasticity"
    needs: ClassVar[tuple[Need, ...]] = ("init",)

    targets: int = 4
    """Random target functions, each a training run of the copy."""
    steps: int = 200
    """Gradient steps on each."""
    optimizer: OptimizerName = "adam"
    """adam | sgd, from a fresh state."""
    learning_rate: float = 1e-3
    """Its step size."""
    examples: int = 64
    """Examples of the probe batch (at most)."""
    batch_size: int = 0
    """Examples per step; 0: all of them."""
    kind: Targets = "sine"
    """sine: of a random network's output at a high frequency (Lyle et al. 2023) | network: that output (2022)."""
    frequency: float = 1e5
    """Of the sine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges.check(self, self.name, "targets", "steps", "examples", least=1)
        ranges.check(self, self.name, "learning_rate", "frequency", above=0)
        ranges.check(self, self.name, "batch_size", least=0)
        for name, kinds in (("optimizer", OptimizerName), ("kind", Targets)):
            if getattr(self, name) not in get_args(kinds):
                raise ConfigError.unknown(f"plasticity.{name}", getattr(self, name), get_args(kinds))

    def build(self, model: Model) -> Probe:
        """The probe; see `fit`.

        All outputs are regressed (logits, or policy and value), so numbers compare across losses. ``plasticity``: the
        mean over targets of ``baseline - after``, the published definition with the error of the best constant as its
        baseline: at most the targets' variance (1/2 of ``sine``), negative where training ends above it; ``loss``: the
        mean of ``after``; ``loss_before``; ``target_loss`` ``[target]``: ``after`` of each, whose spread is the error.

        The number depends on the budget: a long one hides what a short one shows, and the other way round. Compare at
        one setting, and state it.
        """
        optimizer = optax.adam(self.learning_rate) if self.optimizer == "adam" else optax.sgd(self.learning_rate)

        def measure(seen: ProbeInput) -> dict[str, Array]:
            seen = thinned(seen, self.examples)

            def outputs(params: Params, batch: Tree) -> Array:
                return flat_outputs(seen.outputs_fn(params, batch))

            counted = seen.counted_fn(seen.batch)
            if counted is not None:
                counted = flat_counted(counted, outputs(seen.params, seen.batch).shape[1])
            found = fit(
                outputs, model.init, seen.params, seen.batch, seen.key, targets=self.targets, steps=self.steps,
                optimizer=optimizer, kind=self.kind, frequency=self.frequency, batch_size=self.batch_size,
                counted=counted,
            )  # fmt: skip
            return {
                "plasticity": jnp.mean(found.baseline - found.after),
                "loss": jnp.mean(found.after),
                "loss_before": jnp.mean(found.before),
                "target_loss": found.after,
            }

        return Probe(self.name, measure, {"target_loss": ("target",)}, {}, every=self.every)
