"""The networks that the accelerator benchmark trains and measures: PPO's, and supervised ones."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.bench._measure import Running, Side, compiled, needed
from experiments.bench.supervised import mnist
from plastax import tree
from plastax.methods import Backprop
from plastax.models import MLP, ActorCritic
from plastax.probes import Hessian, KroneckerSpectrum
from plastax.program import parallel, supervised
from plastax.program.training import Training
from plastax.rl import Chain, ppo
from plastax.streams import Permuted
from plastax.types import Program, Tree

AGENT = ppo.PPO(learning_rate=2e-3, epochs=8, reward_scale=0.05, kronecker_every=0)
"""The agent of `rl_gymnax`, without Kronecker factors."""
EVERY = 16
"""Gradient steps between Kronecker factors, where they are on."""
BATCH = 16
"""Examples in a step of the supervised network."""
SPECTRA = (Hessian(), KroneckerSpectrum())
"""What is measured."""


class Task(NamedTuple):
    """A kind of training.

    Attributes:
      name: of it.
      make: ``every -> program`` of one network, with Kronecker factors every ``every`` gradient steps, 0: none.
      length: updates in a run.
      steps: of the environment, or of gradient descent, in a run of one network.
      passes: bytes that a run of one network reads and writes at least.
    """

    name: str
    make: Callable[[int], Program]
    length: int
    steps: int
    passes: float


def tasks(hidden: tuple[int, ...], updates: int, *, quick: bool) -> tuple[Task, Task]:
    """PPO as in `rl_gymnax`, and a supervised network, both with spectra at hand."""
    rl_model = ActorCritic().build((4,), 2, continuous=False)

    def agent(every: int) -> Program:
        config = dataclasses.replace(AGENT, kronecker_every=every)
        stream = Chain("experiments.bench._cartpole:CartPole").build()
        method, probes = Backprop().build(config.optimizer()), [probe.build(rl_model) for probe in SPECTRA]
        return ppo.program(config, stream, rl_model, method, probes, updates_per_task=10**6)

    steps, dataset = 10 * updates, mnist(quick=quick)
    images = len(dataset.train_images) // (steps * BATCH) * steps * BATCH
    stream = Permuted(images).build(dataset)
    model = MLP(hidden).build(stream.input_shape, stream.outputs)

    def network(every: int) -> Program:
        config = Training("sgd", 1e-2, batch_size=BATCH, updates=images // (steps * BATCH), kronecker_every=every)
        method, probes = Backprop().build(config.transformation()), [probe.build(model) for probe in SPECTRA]
        return supervised.program(config, stream, model, method, probes)

    params = tree.nbytes(jax.eval_shape(model.init, tree.key_like()))
    widths = "-".join(map(str, (784, *hidden, 10)))
    return (
        Task("rl_gymnax", agent, updates, updates * AGENT.steps_per_update, 0.0),
        # Weights are read forward, and once more backward; that pass and the step write them.
        Task(f"{widths}, batch {BATCH}", network, 1, steps, 3.0 * steps * params),
    )


class Networks(NamedTuple):
    """Networks side by side and their compiled training.

    Attributes:
      program: of all.
      start: makes their state, before the first step.
      data: that they share.
      run: a call of the training: ``(state, data, clock) -> (state, what it records)``.
      compile_s: seconds that it took to compile.
    """

    program: Program
    start: Callable[[], list[Tree]]
    data: Tree
    run: Any
    compile_s: float


@functools.cache
def networks(task: Task, seeds: int, every: int = 0, chunk: int = 0) -> Networks:
    """Over all devices; several trials share them."""
    batch = parallel.batch(lambda _: task.make(every), {"": {}}, range(seeds), chunk, devices=0)
    program, data, zero = batch.program, batch.place(batch.program.data), jnp.int32(0)
    init, begin = jax.jit(program.init), jax.jit(program.begin)

    def start() -> list[Tree]:
        return [begin(init(keys, data), data, zero) for keys in batch.starts]

    segment = jax.jit(program.segment, static_argnums=3, donate_argnums=0)
    before = time.perf_counter()
    run = segment.lower(start()[0], data, zero, task.length).compile()
    return Networks(program, start, data, run, time.perf_counter() - before)


def trains(name: str, *of: Any) -> Side:
    """Training, run after run; arguments as of `networks`."""
    program, start, data, run, seconds = networks(*of)
    length = of[0].length
    clock = itertools.cycle(range(0, program.updates_per_task - length + 1, length))

    def calls(state: list[Tree]) -> tuple[list[Tree], list[Tree]]:
        now = jnp.int32(next(clock))
        after, record = zip(*(run(part, data, now) for part in state))
        return [*after], [*record]

    running = Running(start(), calls)
    return Side(name, running, compile_s=seconds, memory=needed(run))


def measures(name: str, task: Task, seeds: int) -> Side:
    """All spectra of networks before their first step."""
    program, start, data, *_ = networks(task, seeds)
    return compiled(name, program.measure, program.view(start()[0]), data, jnp.int32(0))
