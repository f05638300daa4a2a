"""Which methods could share a compiled program: those that differ in numbers only.

The numbers of methods are constants of their programs. They could be inputs, as those of ``--sweep`` are, and one
program could train several methods, if it gave every one of them the bits of its own program. This prints, for a small
network:

- which methods have the same program once all numbers are left out, and which have it with their numbers;
- for pairs of which one is the other with a setting at zero: whether the other's program, with that setting as an
  input, gives the same parameters, bit for bit, and what the programs take to compile.

    python -m experiments.bench.alike
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console

from experiments.bench._bars import table
from experiments.bench.supervised import mnist
from plastax.methods import METHODS
from plastax.models import MLP
from plastax.program import parallel, supervised
from plastax.program.training import OptimizerName, Training
from plastax.streams import Permuted
from plastax.types import MethodConfig, Program, Stream

PAIRS: tuple[tuple[str, str, Mapping[str, float]], ...] = (
    ("backprop", "l2", {"l2": 0.0}),
    ("backprop", "weight_decay", {"decay": 0.0}),
    ("layernorm", "layernorm_l2", {"l2": 0.0}),
    ("effective_rank", "l2_er", {"l2": 0.0}),
)
"""A method, and another one that equals it under these settings at no more work in a step."""
NUMBER = re.compile(r"-?(?:\d+\.?\d*(?:e[-+]?\d+)?|inf|nan):\w+\[\]")
"""A constant of a jaxpr."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to compare."""

    optimizer: OptimizerName = "adam"
    """Of all methods."""
    hidden: tuple[int, ...] = (32, 32)
    """Widths of the network."""
    updates: int = 8
    """Rounds that the pairs train for."""


class Trained(NamedTuple):
    """Parameters after training, and processor seconds of compilation."""

    params: Any
    seconds: float


def program(config: Config, stream: Stream, method: MethodConfig) -> Program:
    """Of one network."""
    settings = Training(config.optimizer, 1e-3, batch_size=16, updates=config.updates)
    hidden = MLP(config.hidden, **method.model_options)
    model = hidden.build(stream.input_shape, stream.outputs)
    model = model._replace(batch_like=supervised.batch_like(settings, stream))
    optimizer = method.build(settings.transformation(), model)
    return supervised.program(settings, stream, model, optimizer, needs_boundary=method.needs_boundary)


def text(config: Config, stream: Stream, method: MethodConfig) -> str:
    """The program as traced: a segment with its switch of tasks."""
    one = program(config, stream, method)
    state = jax.eval_shape(one.init, jax.random.key(0), one.data)
    clock = jnp.int32(0)
    begin = jax.make_jaxpr(one.begin)(state, one.data, clock)
    segment = jax.make_jaxpr(one.segment, static_argnums=3)(state, one.data, clock, config.updates)
    return f"{begin}\n{segment}"


def without_numbers(traced: str) -> str:
    """The text without the values of its constants."""
    return NUMBER.sub("#", traced)


def alike(texts: Mapping[str, str]) -> list[list[str]]:
    """Groups of two or more names with equal texts."""
    groups = defaultdict(list)
    for name, text in texts.items():
        groups[text].append(name)
    return [group for group in groups.values() if len(group) > 1]


def trained(config: Config, stream: Stream, method: Any, values: Mapping[str, float]) -> Trained:
    """Trains two seeds; ``values`` are settings of the method that are inputs of the program."""
    batch = parallel.batch(lambda v: program(config, stream, dataclasses.replace(method, **v)), {"": values}, range(2))
    one = batch.program
    data = batch.place(one.data)
    state = jax.jit(one.init)(batch.starts[0], data)
    state = jax.jit(one.begin)(state, data, jnp.int32(0))
    began = time.process_time()
    run = jax.jit(one.segment, static_argnums=3).lower(state, data, jnp.int32(0), config.updates).compile()
    seconds = time.process_time() - began
    state = run(state, data, jnp.int32(0))[0]
    return Trained((state.network if values else state).params, seconds)


def same_bits(one: Any, other: Any) -> bool:
    """Whether two trees of parameters are equal, bit for bit."""
    pairs = zip(*(jax.tree.leaves(tree) for tree in (one, other)), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def compared(config: Config, stream: Stream, name: str, other: str, zero: Mapping[str, float]) -> dict[str, str]:
    """A line of the table: a pair of `PAIRS`."""
    method, wider = METHODS[name], METHODS[other]
    usual = {setting: getattr(wider, setting) for setting in zero}
    own, others = (trained(config, stream, one, {}) for one in (method, wider))
    shared, also = (trained(config, stream, wider, values) for values in (zero, usual))
    said = {True: "same", False: "differ"}
    return {
        "method": name, "as": ", ".join(f"{other}.{setting} 0" for setting in zero),
        "bits": said[same_bits(own.params, shared.params)],
        "bits of the other": said[same_bits(others.params, also.params)],
        "compilation, CPU-s": f"{own.seconds:.1f}", "of the other": f"{others.seconds:.1f}",
        "of the shared": f"{shared.seconds:.1f}",
    }  # fmt: skip


def main(config: Config) -> None:
    """Compares, and prints what was found."""
    console = Console(width=120)
    stream = Permuted(128).build(mnist(quick=True))
    texts = {name: text(config, stream, method) for name, method in METHODS.items()}
    bare = {name: without_numbers(traced) for name, traced in texts.items()}
    for what, found in (("the same program", alike(texts)), ("the same but for numbers", alike(bare))):
        console.print(f"{what}: {'; '.join(map(' = '.join, found)) or 'none'}")
    rows = [compared(config, stream, *pair) for pair in PAIRS]
    console.print(table(f"A method as another one with a setting at zero, {config.optimizer}", rows, left=2))


if __name__ == "__main__":
    main(tyro.cli(Config))
