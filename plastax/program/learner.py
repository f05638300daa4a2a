"""What all kinds of training share: the network as functions of a batch, one gradient step, one task switch.

`Learner` has the four moments of a network's training: its `start`, every gradient `step`, the `switch` of tasks, and
what probes get to see of it (`seen`). A program says what a batch is, and where it comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from plastax import tree
from plastax.curvature import running
from plastax.curvature.kronecker import Factors, Kind, cotangents, factors, fisher_factors
from plastax.keys import fold
from plastax.layers import LayerInputs
from plastax.types import (
    Array,
    Features,
    Key,
    Loss,
    Method,
    MethodArgs,
    Model,
    Moving,
    Params,
    ProbeInput,
    Recorded,
    Tree,
)


class Aside(NamedTuple):
    """What a forward pass leaves beside the outputs.

    Attributes:
      features: the network's.
      inputs: of the tapped layers.
      stats: running statistics of batch normalisation, moved on; empty without.
    """

    features: Features
    inputs: dict[str, LayerInputs]
    stats: Tree = ()


class Pass(NamedTuple):
    """What one forward and one backward pass leave.

    Attributes:
      value: the loss, a scalar.
      metrics: scalars beside it.
      features: the network's.
      grads: gradient with respect to the parameters.
      inputs: of the tapped layers.
      tap_grads: gradient with respect to the tapped layers' pre-activations.
      outputs: the network's.
      pull: the backward pass of this forward pass: cotangent of the outputs -> gradients as ``tap_grads``.
      stats: see `Aside`.
    """

    value: Array
    metrics: dict[str, Array]
    features: Features
    grads: Params
    inputs: dict[str, LayerInputs]
    tap_grads: dict[str, Array]
    outputs: Tree
    pull: Callable[[Tree], dict[str, Array]]
    stats: Tree = ()


def backward(
    forward: Callable[[Params, dict[str, Array]], tuple[Tree, Aside]],
    loss: Callable[[Tree], tuple[Array, dict[str, Array]]],
    params: Params,
    taps: dict[str, Array],
) -> Pass:
    """The gradient with respect to parameters and pre-activations, of one forward and one backward pass.

    What follows from the gradient compiles to the same code whether the rest is used or not, so that Kronecker factors
    change no bit of training. Normalisations are the exception: with factors XLA rounds their gradients in another way.

    Args:
      forward: ``(params, taps) -> (outputs, aside)``.
      loss: ``(outputs) -> (value, metrics)``.
      params: where the gradient is taken.
      taps: zeros, see `Model.taps`.
    """
    outputs, pull, aside = jax.vjp(forward, params, taps, has_aux=True)
    outputs, pull, aside = jax.lax.optimization_barrier((outputs, pull, aside))
    (value, metrics), cotangent = jax.value_and_grad(loss, has_aux=True)(outputs)
    # Over exactly one: XLA computes no quotient twice. It would compute a gradient by few outputs again wherever it is
    # used, and round it accordingly, with factors in another way than without. The barrier alone is gone by then.
    cotangent = jax.tree.map(lambda g: g / jnp.exp(0 * value).astype(g.dtype), cotangent)
    grads, tap_grads = pull(cotangent)
    value, metrics, grads, tap_grads = jax.lax.optimization_barrier((value, metrics, grads, tap_grads))
    # Exactly one, but XLA cannot know it before the backward pass is finished. Without it the CPU backend could step
    # a kernel before the pass has read it, and to be safe copies every kernel in every step (a tenth of a step of the
    # paper's network at batch 16, a third at batch 1). Where an entry here is not finite, no gradient is finite anyway.
    # Not `1 + 0 * ...`: XLA would copy the loss's own backward pass into the optimiser's code for every parameter, a
    # fifth of PPO's program. It computes an exponential once.
    one = jnp.exp(0 * sum(g[(0,) * g.ndim] for g in tap_grads.values()))
    grads = jax.tree.map(lambda g: g * one, grads)
    return Pass(
        value, metrics, aside.features, grads, aside.inputs, tap_grads, outputs, lambda c: pull(c)[1], aside.stats
    )


def grad_norm(seen: Pass) -> Array:
    """Euclidean norm of the whole gradient, a scalar.

    A kernel's gradient is ``sum_i a_i g_i^T`` over its input rows, a bias's is ``sum_i g_i``. If the rows are few for
    the kernel's size, the squared norm of both is computed from them, ``sum_ij (a_i . a_j + 1) (g_i . g_j)``. To read
    all entries of the gradient again could cost as much as the whole step, and with batches of one they are never
    written. Rows that cancel leave a rounding error relative to ``(sum_i |a_i| |g_i|)^2``.
    """
    direct, squared = tree.named_leaves(seen.grads), jnp.zeros(())
    for name, inputs in seen.inputs.items():
        parts = [f"{name}/{part}" for part in (("kernel", "bias") if inputs.bias else ("kernel",))]
        if not all(part in direct for part in parts):  # Other networks than Flax's have other names.
            continue
        kernel = direct[parts[0]]
        a, g = (x.reshape(-1, x.shape[-1]) for x in (inputs.values, seen.tap_grads[name]))
        plain = inputs.window is None and inputs.groups == 1 and not inputs.others
        if plain and len(a) ** 2 * sum(kernel.shape) < kernel.size:
            for part in parts:
                del direct[part]
            with jax.default_matmul_precision("highest"):
                squared += jnp.sum((a @ a.T + float(inputs.bias)) * (g @ g.T))
    return jnp.sqrt(jnp.maximum(squared, 0) + jnp.square(tree.norm(direct)))


def factors_of(seen: Pass, kind: Kind, loss: Loss, batch: Tree, key: Key) -> dict[str, Factors]:
    """The Kronecker factors of a pass, by layer.

    Args:
      seen: the pass.
      kind: whose gradients: empirical (the loss's own) | sampled | exact, see `kronecker.cotangents`.
      loss: of the network's outputs.
      batch: that the pass saw.
      key: of the draws of ``sampled``.
    """
    if kind == "empirical":
        return factors(seen.inputs, seen.tap_grads)
    return fisher_factors(seen.inputs, seen.pull, cotangents(loss, kind, seen.outputs, batch, key))


def recorded(state: Tree) -> dict[str, Array]:
    """Values for the record of all method states within ``state``."""
    found = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Recorded))
    return {name: value for one in found if isinstance(one, Recorded) for name, value in one.recorded.items()}


def step(method: Method, grads: Tree, state: Tree, params: Params, args: MethodArgs) -> tuple[Params, Tree]:
    """Parameters and state after a step of the method, scaled by ``args.rate``."""
    whole = isinstance(args.rate, float) and args.rate == 1
    if whole and isinstance(method, Moving):
        return method.move(grads, state, params, **args._asdict())
    updates, state = method.update(grads, state, params, **args._asdict())
    return optax.apply_updates(params, updates if whole else optax.tree.scale(args.rate, updates)), state


class Network(NamedTuple):
    """A model and its loss as functions of ``(params, batch)``, for training, methods and probes alike.

    Attributes:
      loss: -> scalar, without any regulariser.
      features: of the hidden layers.
      outputs: with leading axis ``B``.
      output_loss: the loss as a function of ``(outputs, batch)``, with its curvature.
      tapped: ``(params, taps, batch) -> (loss, (features, inputs of the tapped layers))``.
      taps: ``(batch) -> zeros``, see `Model.taps`.
      counted: ``(batch) -> bool [B, T]``, see `Model.counted`; it returns None if every place counts.
      backward: ``(params, running statistics, batch) -> pass``.
    """

    loss: Callable[[Params, Tree], Array]
    features: Callable[[Params, Tree], Features]
    outputs: Callable[[Params, Tree], Tree]
    output_loss: Loss
    tapped: Callable[[Params, dict[str, Array], Tree], tuple[Array, tuple[Features, dict[str, LayerInputs]]]]
    taps: Callable[[Tree], dict[str, Array]]
    counted: Callable[[Tree], Array | None]
    backward: Callable[[Params, Tree, Tree], Pass]


def network(
    model: Model,
    output_loss: Loss,
    loss: Callable[[Tree, Tree], tuple[Array, dict[str, Array]]],
    inputs: Callable[[Any], Array],
    finish: Callable[[Tree, Any], Tree] = lambda outputs, batch: outputs,
) -> Network:
    """The network of a model.

    Args:
      model: the model.
      output_loss: of the outputs.
      loss: ``(outputs, batch) -> (value, metrics)``: the same value, and scalars beside it.
      inputs: what the model gets of a batch.
      finish: what becomes of the model's outputs before the loss sees them (a mask of classes).
    """

    def outputs_fn(params: Params, batch: Tree) -> Tree:
        return finish(model.apply(params, inputs(batch))[0], batch)

    def tapped(
        params: Params, taps: dict[str, Array], batch: Tree
    ) -> tuple[Array, tuple[Features, dict[str, LayerInputs]]]:
        outputs, features, layer_inputs = model.tapped(params, taps, inputs(batch))
        return loss(finish(outputs, batch), batch)[0], (features, layer_inputs)

    def pass_of(params: Params, stats: Tree, batch: Tree) -> Pass:
        def forward(params: Params, taps: dict[str, Array]) -> tuple[Tree, Aside]:
            if model.train is None:
                outputs, *aside = *model.tapped(params, taps, inputs(batch)), stats
            else:
                outputs, *aside = model.train(params, stats, taps, inputs(batch))
            return finish(outputs, batch), Aside(*aside)

        return backward(forward, lambda outputs: loss(outputs, batch), params, model.taps(inputs(batch)))

    def counted(batch: Tree) -> Array | None:
        return None if model.counted is None else model.counted(inputs(batch))

    return Network(
        lambda params, batch: loss(outputs_fn(params, batch), batch)[0],
        lambda params, batch: model.apply(params, inputs(batch))[1],
        outputs_fn,
        output_loss,
        tapped,
        lambda batch: model.taps(inputs(batch)),
        counted,
        pass_of,
    )


class Averaging(Protocol):
    """The settings of running Kronecker factors."""

    @property
    def kronecker_every(self) -> int:
        """Gradient steps from one batch to the next; 0: no factors."""

    @property
    def kronecker_kind(self) -> Kind:
        """Whose gradients, see `factors_of`."""

    @property
    def kronecker_decay(self) -> float:
        """Of the running mean."""


class Learned(NamedTuple):
    """What learning changes; part of every program's state.

    Attributes:
      params: of the network.
      stats: running statistics of its batch normalisation; empty without.
      opt_state: of the method.
      factors: running Kronecker factors of the task.
    """

    params: Params
    stats: Tree
    opt_state: Tree
    factors: running.Running


class Learner(NamedTuple):
    """A network that learns through a method.

    Attributes:
      model: the model.
      network: its functions.
      method: optimiser with its plasticity-preserving method.
      averaging: of Kronecker factors.
      like: shapes of a batch.
      role: of the seed's key, for draws of sampled Kronecker factors; see `keys.fold`.
      needs_boundary: whether the method acts at switches (`MethodConfig.needs_boundary`).
      restarts_statistics: whether running statistics restart at switches (`MethodConfig.restarts_statistics`).
    """

    model: Model
    network: Network
    method: Method
    averaging: Averaging
    like: Tree
    role: int
    needs_boundary: bool = False
    restarts_statistics: bool = False

    def start(self, key: Key, params: Params) -> Learned:
        """What learning starts with: these parameters, and nothing learned.

        Args:
          key: the seed's.
          params: fresh.
        """
        shapes: Tree = {}
        if self.averaging.kronecker_every:
            batch = tree.zeros(self.like)
            shapes = jax.eval_shape(
                lambda: self._factors(self.network.backward(params, self.model.stats, batch), batch, key, jnp.int32(0))
            )
        # A copy of its own: the state is donated, and a network may be started again.
        stats = jax.tree.map(jnp.copy, self.model.stats)
        return Learned(params, stats, self.method.init(params), running.start(shapes))

    def step(
        self, learned: Learned, batch: Tree, clock: Array, key: Key, seed: Key, rate: Array | float = 1.0
    ) -> tuple[Learned, Pass]:
        """One gradient step.

        Args:
          learned: before it.
          batch: of the step.
          clock: its number, int32.
          key: the step's own.
          seed: the seed's key.
          rate: share of the step that is made, see `MethodArgs.rate`.

        Returns:
          After it; the pass that it was made of, whose metrics also have ``grad_norm`` and what the method `recorded`.
        """
        seen = self.network.backward(learned.params, learned.stats, batch)
        average = learned.factors
        if self.averaging.kronecker_every:
            average = jax.lax.cond(
                clock % self.averaging.kronecker_every == 0,
                lambda f: running.update(f, self._factors(seen, batch, seed, clock), self.averaging.kronecker_decay),
                lambda f: f,
                average,
            )
        args = self._args(key, clock, batch, seen.value, seen.features, seen.tap_grads, boundary=False)._replace(
            rate=rate
        )
        params, opt_state = step(self.method, seen.grads, learned.opt_state, learned.params, args)
        metrics = seen.metrics | {"grad_norm": grad_norm(seen)} | recorded(opt_state)
        return Learned(params, seen.stats, opt_state, average), seen._replace(metrics=metrics)

    def switch(self, learned: Learned, clock: Array, key: Key) -> Learned:
        """The switch to a task: what the method does at switches, and factors of the new task alone.

        Args:
          learned: at the end of the task before.
          clock: gradient steps so far; 0: this is the first task, and nothing has been learned that could be lost.
          key: the switch's own.
        """

        def act(learned: Learned) -> Learned:
            params, stats, opt_state, factors = learned
            if self.needs_boundary:
                args = self._args(key, clock, tree.zeros(self.like), jnp.zeros(()), {}, {}, boundary=clock > 0)
                zeros = jax.tree.map(jnp.zeros_like, params)
                updates, opt_state = self.method.update(zeros, opt_state, params, **args._asdict())
                params = optax.apply_updates(params, updates)
            return Learned(params, self.model.stats if self.restarts_statistics else stats, opt_state, factors)

        learned = jax.lax.cond(clock > 0, act, lambda learned: learned, learned)
        return learned._replace(factors=running.start(learned.factors.total))

    def seen(self, learned: Learned, batch: Tree, key: Key, initial: Key, previous: Params) -> ProbeInput:
        """What probes look at.

        Args:
          learned: now.
          batch: that the probes take.
          key: of this measurement.
          initial: the key that the network was drawn by.
          previous: parameters at the end of the previous task; empty where no probe needs them.
        """
        of = self.network
        return ProbeInput(
            learned.params, batch, of.loss, of.features, of.outputs, of.output_loss, of.tapped, of.taps,
            learned.factors, key, lambda: self.model.init(initial), previous, of.counted,
        )  # fmt: skip

    def _factors(self, seen: Pass, batch: Tree, seed: Key, clock: Array) -> dict[str, Factors]:
        own = fold(seed, self.role, clock)
        return factors_of(seen, self.averaging.kronecker_kind, self.network.output_loss, batch, own)

    def _args(
        self, key: Key, clock: Array, batch: Tree, value: Array, features: Features, tap_grads: dict[str, Array],
        *, boundary: Array | bool,
    ) -> MethodArgs:  # fmt: skip
        of = self.network
        return MethodArgs(
            key, clock, batch, value, features, tap_grads, of.loss, of.features, of.outputs, self.model.init, boundary,
            counted_fn=of.counted,
        )  # fmt: skip


def learned_of(state: Any) -> Learned:
    """The part of a program's state that learning changes."""
    return Learned(*(getattr(state, name) for name in Learned._fields))
