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
from plastax.curvature.kronecker import Factors, Kind
from plastax.keys import fold
from plastax.layers import LayerInputs
from plastax.moving import Moving
from plastax.program.passes import Aside, Pass, backward, factors_of, grad_norm
from plastax.types import (
    Array,
    Features,
    Key,
    Loss,
    Method,
    MethodArgs,
    Model,
    Params,
    ProbeInput,
    Recorded,
    Tree,
)


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
