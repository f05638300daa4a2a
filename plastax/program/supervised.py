"""Supervised learning on a stream of tasks: the one place where stream, model, method and probes meet."""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plastax import roles, tree
from plastax.curvature import losses, running
from plastax.errors import ConfigError
from plastax.keys import fold, shuffles
from plastax.probes.plasticity import sample_plasticity
from plastax.program import learner, segments
from plastax.program.learner import Learned, Learner, Network, learned_of
from plastax.program.training import Training
from plastax.types import (
    Array,
    Examples,
    Key,
    Method,
    Model,
    Params,
    Probe,
    Program,
    Stream,
    Tree,
)

CHUNK = 250
"""Most examples that an evaluation has in memory at once, of a seed."""

INACTIVE = -1e9
"""Logit of an inactive class: its probability is exactly zero, and so are its gradient and curvature."""


class Best(NamedTuple):
    """The weights of a task's best update, and their validation accuracy; -1 before its first."""

    params: Params
    stats: Tree
    score: Array


class State(NamedTuple):
    """Everything that a seed's next update needs, apart from the clock; the fields of `learner.Learned` among others.

    Attributes:
      key: the seed's.
      params: of the network.
      stats: running statistics of its batch normalisation, if any.
      opt_state: of the method.
      order: int32, the order of the examples in this epoch; empty where no update leaves an epoch unfinished.
      factors: running Kronecker factors of the task.
      previous: parameters at the end of the previous task, for probes that need them; else empty.
      best: the task's best weights, which come back at its end; empty unless asked for.
      alive: whether all losses were finite so far, see `segments.program`.
    """

    key: Key
    params: Params
    stats: Tree
    opt_state: Tree
    order: Array | tuple[()]
    factors: running.Running
    previous: Params
    best: Best | tuple[()]
    alive: Array


Purpose = enum.IntEnum("Purpose", "INIT TASKS SWITCH ORDER STEP PROBE FACTORS", start=0)
"""What a draw from a seed's key is for, see `keys.fold`; the numbers are part of every result."""


def spread(available: int, wanted: int, multiple: int = 1) -> Array:
    """At most ``wanted`` of ``available`` indices, evenly spaced, int32; rounded down to ``multiple``, if more."""
    count = min(available, wanted)
    count -= count % multiple if count > multiple else 0
    # In NumPy's 64 bits: the products are large.
    return jnp.asarray(np.arange(count) * available // count, jnp.int32)


def batch_like(config: Training, stream: Stream) -> Examples:
    """Shapes of a training batch."""

    def example(key: Key, data: Tree) -> Examples:
        task = stream.task(key, data, jnp.int32(0))
        return stream.train(task, data, jnp.zeros(config.batch_size, jnp.int32), key)

    return jax.eval_shape(example, tree.key_like(), stream.data)


def _network(model: Model, loss_name: str) -> tuple[Network, Callable[[Params, Tree, Examples], dict[str, Array]]]:
    """The functions of a network, and its evaluation: ``(params, running statistics, batch) -> metrics``."""
    loss = losses.get(loss_name)

    def masked(outputs: Array, batch: Examples) -> Array:
        return outputs if batch.active is None else jnp.where(batch.active, outputs, INACTIVE)

    def with_metrics(outputs: Array, batch: Examples) -> tuple[Array, dict[str, Array]]:
        metrics = {"loss": loss.value(outputs, batch)}
        if loss_name == "cross_entropy":
            metrics["accuracy"] = jnp.mean(jnp.argmax(outputs, -1) == batch.y, dtype=jnp.float32)
        if loss_name == "token_cross_entropy":
            right = jnp.argmax(outputs, -1) == batch.y
            metrics["token_accuracy"] = jnp.mean(right, where=losses.counted(batch.y), dtype=jnp.float32)
        return metrics["loss"], metrics

    def evaluate(params: Params, stats: Tree, batch: Examples) -> dict[str, Array]:
        outputs, _ = model.evaluate(params, stats, batch.x) if model.evaluate else model.apply(params, batch.x)
        return with_metrics(masked(outputs, batch), batch)[1]

    return learner.network(model, loss, with_metrics, lambda batch: batch.x, masked), evaluate


class _Evaluation(NamedTuple):
    """Means over evenly spaced examples of a task, ``evaluation/<part>_<metric>``.

    Attributes:
      stream: has the examples.
      metrics: ``(params, running statistics, batch) -> metrics``.
      examples: the most to take.
    """

    stream: Stream
    metrics: Callable[[Params, Tree, Examples], dict[str, Array]]
    examples: int

    def all(self, state: State, data: Tree, task: Tree, train_key: Key, test_key: Key) -> dict[str, Array]:
        """On all parts, and of both losses what is above the stream's reference, if it has one."""
        values = self.train(state, data, task, train_key)
        values |= self.test(state, data, task, test_key)
        values |= self.validation(state, data, task)
        if self.stream.reference is not None:
            values["evaluation/reference"] = least = self.stream.reference(task, data)
            for part in ("train", "test") if self.stream.held_out else ("train",):
                values[f"evaluation/{part}_excess"] = values[f"evaluation/{part}_loss"] - least
        return values

    def train(self, state: State, data: Tree, task: Tree, key: Key) -> dict[str, Array]:
        """On training examples."""
        return self._means("train", state, self.stream.examples, lambda i, k: self.stream.train(task, data, i, k), key)

    def test(self, state: State, data: Tree, task: Tree, key: Key) -> dict[str, Array]:
        """On held-out examples; nothing if the stream has none."""
        if not self.stream.held_out:
            return {}
        return self._means("test", state, self.stream.held_out, lambda i, _: self.stream.test(task, data, i), key)

    def validation(self, state: State, data: Tree, task: Tree) -> dict[str, Array]:
        """On validation examples; nothing if the stream keeps none."""
        if (take := self.stream.validation) is None:
            return {}
        return self._means("validation", state, self.stream.validated, lambda i, _: take(task, data, i), state.key)

    def _means(
        self, part: str, state: State, available: int, take: Callable[[Array, Key], Examples], key: Key
    ) -> dict[str, Array]:
        index = spread(available, self.examples, CHUNK)
        chunks = index.reshape(-1, min(index.size, CHUNK))
        weights = losses.get(self.stream.loss).weights

        def chunk(x: tuple[Array, Key]) -> tuple[dict[str, Array], Array | None]:
            batch = take(*x)
            return self.metrics(state.params, state.stats, batch), weights and jnp.sum(weights(batch))

        means, counts = jax.lax.map(chunk, (chunks, jax.random.split(key, len(chunks))))

        def mean(x: Array) -> Array:
            # A chunk in which nothing is counted has no mean.
            return jnp.mean(x) if counts is None else jnp.sum(jnp.where(counts > 0, counts * x, 0)) / jnp.sum(counts)

        return {f"evaluation/{part}_{name}": mean(value) for name, value in means.items()}


def _check(config: Training, stream: Stream, model: Model) -> None:
    """Refuses settings that the stream or the model cannot serve."""
    if config.head == "reset" and (refusal := getattr(model.init, "refusal", "")):
        raise ConfigError(f"training.head: reset is not allowed: {refusal}")
    if config.restore_best and (stream.validation is None or stream.loss != "cross_entropy"):
        raise ConfigError(
            f"training.restore_best: True is not allowed for {stream.description}: no images are kept for validation; "
            "give False, or stream.validation_per_class where there is that"
        )
    if config.kronecker_every and config.kronecker_kind == "exact" and model.train is not None:
        raise ConfigError(
            "training.kronecker_kind: 'exact' is not allowed for a network with batch normalisation, whose examples "
            "share their backward pass; give sampled, whose factors have the same mean"
        )


def program(
    config: Training,
    stream: Stream,
    model: Model,
    method: Method,
    probes: Sequence[Probe] = (),
    *,
    needs_boundary: bool = False,
    restarts_statistics: bool = False,
    probe_every: int = 1,
    alike: Hashable = None,
) -> Program:
    """Supervised training of one seed on ``stream``, learning through ``method``, measured by ``probes``.

    Training values of the record are means over the gradient steps of an update, each taken on the batch before its
    step: ``loss``, ``accuracy`` (of classes; this is the online accuracy), ``token_accuracy`` (of the labels that are
    counted), ``grad_norm``, ``sample_plasticity`` if the configuration asks for it, and what the method records
    (`Recorded`). At both ends of every task the record also has ``evaluation/{train,test}_{loss,accuracy}``, and
    ``evaluation/validation_...`` if the stream keeps validation examples. If it has a reference (the entropy of its
    source), ``evaluation/reference`` is there, and ``evaluation/{train,test}_excess``, how far the losses are above it.

    Args:
      config: optimiser, epochs, batches.
      stream: the tasks; each has ``config.updates`` updates.
      model: for ``stream.input_shape`` and ``stream.outputs``. With batch normalisation, training uses the batch's
        statistics and evaluation the running ones. Methods and probes see `Model.apply`.
      method: optimiser with its plasticity-preserving method.
      probes: measured on training examples of the new task at its initialisation, and of the ended one at its end.
      needs_boundary: whether the method acts at switches (`MethodConfig.needs_boundary`).
      restarts_statistics: whether running statistics restart at switches (`MethodConfig.restarts_statistics`).
      probe_every: tasks from one probed task to the next; evaluations are taken in all.
      alike: equal for equal configuration, stream, model, probes and ``probe_every``, see `Program.alike`.

    Raises:
      ConfigError: batches and updates do not fit the task, see `Training.blocks`; ``restore_best`` without validation
        examples; exact Kronecker factors of a network with batch normalisation; probes that label an axis differently.
    """
    _check(config, stream, model)
    blocks = config.blocks(stream.examples)
    network, metrics_of = _network(model, stream.loss)
    evaluation = _Evaluation(stream, metrics_of, config.evaluation_examples)
    learns = Learner(
        model, network, method, config, batch_like(config, stream), Purpose.FACTORS,
        needs_boundary=needs_boundary, restarts_statistics=restarts_statistics,
    )  # fmt: skip
    needs_previous = any(probe.needs_previous for probe in probes)

    def rate_factor(clock: Array) -> Array:
        """The step size at gradient step ``clock`` of the run, of that at the start of its task."""
        steps = config.updates * blocks.steps_per_update
        passed = sum(clock % steps >= round(share * steps) for share in config.drops)
        return jnp.power(config.drop_factor, -jnp.asarray(passed, jnp.float32))

    def gradient_step(data: Tree, task: Tree, seed: Key, learned: Learned, x: tuple[Array, Array, Key]) -> Any:
        clock, index, key = x
        examples_key, method_key = jax.random.split(key)
        batch = stream.train(task, data, index, examples_key)
        rate = rate_factor(clock) if config.drops else 1.0
        learned, seen = learns.step(learned, batch, clock, method_key, seed, rate)
        metrics = seen.metrics
        if config.sample_plasticity:
            after = network.loss(learned.params, batch)
            metrics |= {"sample_plasticity": sample_plasticity(seen.value, after)}
        return learned, metrics

    def update(state: State, data: Tree, task: Tree, clock: Array) -> tuple[State, dict[str, Array]]:
        def draw(number: Array) -> Array:
            return shuffles(fold(state.key, Purpose.ORDER, number // blocks.parts), 1, stream.examples)[0]

        def part(state: State, number: Array) -> tuple[State, dict[str, Array]]:
            """Part ``number`` of the run's epochs."""
            if blocks.parts == 1:
                order = draw(number)
            else:
                order = jax.lax.cond(number % blocks.parts == 0, draw, lambda _: state.order, number)
                state = state._replace(order=order)
            size = blocks.steps * config.batch_size
            index = jax.lax.dynamic_slice_in_dim(order, number % blocks.parts * size, size)
            clocks = number * blocks.steps + jnp.arange(blocks.steps)
            keys = jax.vmap(lambda c: fold(state.key, Purpose.STEP, c))(clocks)
            xs = (clocks, index.reshape(blocks.steps, config.batch_size), keys)
            learned, metrics = jax.lax.scan(
                lambda learned, x: gradient_step(data, task, state.key, learned, x), learned_of(state), xs
            )
            return state._replace(**learned._asdict()), jax.tree.map(jnp.mean, metrics)

        state, metrics = jax.lax.scan(part, state, clock * blocks.epochs + jnp.arange(blocks.epochs))
        if isinstance(state.best, Best):
            state = keep_best(state, state.best, data, task, clock)
        return state, jax.tree.map(jnp.mean, metrics)

    def healthy(state: State, metrics: dict[str, Array]) -> Array:
        return jnp.isfinite(metrics["loss"]) & tree.finite(state.params)

    def keep_best(state: State, best: Best, data: Tree, task: Tree, clock: Array) -> State:
        """Keeps the task's best weights so far; after its last update, restores them."""
        score = evaluation.validation(state, data, task)["evaluation/validation_accuracy"]
        now = Best(state.params, state.stats, score)
        best = jax.tree.map(lambda a, b: jnp.where(score > best.score, a, b), now, best)
        params, stats = jax.lax.cond(
            (clock + 1) % config.updates == 0, lambda: (best.params, best.stats), lambda: (state.params, state.stats)
        )
        return state._replace(params=params, stats=stats, best=best)

    def begin(state: State, data: Tree, task: Tree, clock: Array) -> State:
        if needs_previous:
            state = state._replace(previous=state.params)
        method_key, head_key = jax.random.split(fold(state.key, Purpose.SWITCH, clock))
        learned = learns.switch(learned_of(state), clock * blocks.steps_per_update, method_key)
        if config.head == "reset":
            params = jax.lax.cond(clock > 0, lambda p: with_fresh_head(p, head_key), lambda p: p, learned.params)
            learned = learned._replace(params=params)
        if isinstance(state.best, Best):
            state = state._replace(best=state.best._replace(score=-jnp.ones(())))
        return state._replace(**learned._asdict())

    def with_fresh_head(params: Params, key: Key) -> Params:
        fresh, heads = model.init(key), roles.outputs(roles.of_model(model).of(params), "training.head")
        return tree.map_named(lambda name, old, new: new if name in heads else old, params, fresh)

    def measure(state: State, data: Tree, task: Tree, border: Array) -> dict[str, Array]:
        train_key, test_key, probe_key = jax.random.split(fold(state.key, Purpose.PROBE, border), 3)
        values = evaluation.all(state, data, task, train_key, test_key)
        number = segments.task_of(border, config.updates)

        def look() -> dict[str, Array]:
            batch_key, key = jax.random.split(probe_key)
            batch = stream.train(task, data, spread(stream.examples, config.probe_examples), batch_key)
            seen = learns.seen(learned_of(state), batch, key, fold(state.key, Purpose.INIT), state.previous)
            return segments.look(probes, seen, number)

        return values | segments.every(probe_every, number, look)

    def init(key: Key, data: Tree) -> State:
        learned = learns.start(key, model.init(fold(key, Purpose.INIT)))
        order = jnp.zeros(stream.examples, jnp.int32) if blocks.parts > 1 else ()
        # Copies: the state is donated.
        previous = jax.tree.map(jnp.copy, learned.params) if needs_previous else ()
        best: Best | tuple[()] = ()
        if config.restore_best:
            best = jax.tree.map(jnp.copy, Best(learned.params, learned.stats, -jnp.ones(())))
        return State(key, order=order, previous=previous, best=best, alive=jnp.bool_(True), **learned._asdict())

    def task_of(state: State, data: Tree, index: Array) -> Tree:
        return stream.task(fold(state.key, Purpose.TASKS), data, index)

    def view(state: State) -> State:
        return state._replace(opt_state=(), order=(), best=())

    parts = segments.Parts(init, task_of, begin, update, healthy, view, measure)
    return segments.program(parts, probes, updates_per_task=config.updates, data=stream.data, alike=alike)
