"""What plastax does differently on CPUs, GPUs and TPUs, and why: the one place that says so.

`CHOICES` is used unless an environment variable says otherwise, for example ``PLASTAX_CONVOLUTIONS=patches``. It is
read when a function is traced, so set it before the first one. Arguments (``batch`` of `curvature.spectrum`, ``method``
of `curvature.ggn_spectrum`) and settings (``seed_chunk``, ``arms_at_once``) have the last word. A run records what was
chosen under ``choices`` in its ``environment.json``, and is not continued under other choices.

Those for CPUs were measured. Those for GPUs and TPUs are what is usual there; `experiments/bench/accelerator.py`
compares them with their alternatives on the device at hand.

Everything else runs alike everywhere. What was written for CPUs costs nothing elsewhere: masked sums in place of
gathers, sorts of plain integers, maxima of slices for pooling.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args, get_type_hints

import jax

from plastax.errors import ConfigError

Way = Literal["loop", "batch"]


class Choices(NamedTuple):
    """How plastax computes on one kind of device.

    Attributes:
      convolutions: one matrix product with patches, or XLA's own operation, for which the vendor's libraries are tuned.
        XLA's is 5 to 14 times as slow on CPUs, inside loops and where kernels differ by seed.
      narrow_layers: dense ones of up to 8 outputs: column by column, or XLA's product. Columns make a training step of
        several networks 1.6 to 2.7 times as fast on CPUs. GPUs and TPUs would start a kernel for each.
      decompositions: of several networks, and rows of a Gram matrix: one after another, or as one batch. A batch can
        deadlock on CPUs (`plastax.linalg`). GPUs have batched kernels for small matrices.
      lanczos: runs of several probes and seeds: one after another, or as many side by side as fit half of the memory.
        Batches take 1.0 to 2.8 times as long on CPUs, whose caches they overflow. One run cannot fill a GPU.
      decomposition_cost: operations of an eigendecomposition of n rows, over n^3, at the speed of a matrix product.
        On CPUs 6 to 10 were measured. Elsewhere its steps are too small for the device; the number is an estimate.
      double: whether the device has float64.
      seed_chunk: networks that one call trains, unless ``seed_chunk`` says it; 0: all. Calls share the cores of a CPU.
        There eight agents of `rl_gymnax` take a fifth less CPU time in pairs than in one call, as in fours, and a tenth
        less than alone. A GPU is made for many.
      arms_beside: whether programs run side by side, one a core: the calls of a method, and methods (``arms_at_once``).
        They share a GPU badly.
    """

    convolutions: Literal["patches", "xla"]
    narrow_layers: Literal["columns", "xla"]
    decompositions: Way
    lanczos: Way
    decomposition_cost: float
    double: bool
    seed_chunk: int
    arms_beside: bool


CHOICES: Mapping[str, Choices] = MappingProxyType(
    {
        "cpu": Choices("patches", "columns", "loop", "loop", 8.0, double=True, seed_chunk=2, arms_beside=True),
        "gpu": Choices("xla", "xla", "batch", "batch", 200.0, double=True, seed_chunk=0, arms_beside=False),
        "tpu": Choices("xla", "xla", "batch", "batch", 200.0, double=False, seed_chunk=0, arms_beside=False),
    }
)
"""Name of a backend, as `jax.default_backend` has it -> choices. Backends that are not here get those of GPUs."""
VARIABLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {name: get_args(kind) for name, kind in get_type_hints(Choices).items() if get_args(kind)}
)
"""The choices that ``PLASTAX_<NAME>`` overrides -> their values."""


_used: ContextVar[Mapping[str, str]] = ContextVar("_used", default=MappingProxyType({}))


@contextlib.contextmanager
def using(**choices: str) -> Iterator[None]:
    """A context in which functions are traced under other choices, whatever the environment says."""
    token = _used.set(choices)
    try:
        yield
    finally:
        _used.reset(token)


def chosen(environment: Mapping[str, str] = os.environ) -> Choices:
    """The choices for JAX's default device.

    Args:
      environment: the process's variables.

    Raises:
      ConfigError: a variable has a value that is not allowed, or one that does not work on the device.

    Examples:
      >>> chosen({}).lanczos, chosen({"PLASTAX_LANCZOS": "batch"}).lanczos  # on CPU
      ('loop', 'batch')
    """
    backend = jax.default_backend()
    told = {name: value for name in VARIABLES if (value := environment.get(f"PLASTAX_{name.upper()}"))}
    for name, value in told.items():
        if value not in VARIABLES[name]:
            raise ConfigError(f"PLASTAX_{name.upper()}: {value!r} is not allowed; give {' or '.join(VARIABLES[name])}")
    if backend == "cpu" and told.get("decompositions") == "batch":
        raise ConfigError("PLASTAX_DECOMPOSITIONS: batch can deadlock on CPUs; unset it, or give loop")
    return CHOICES.get(backend, CHOICES["gpu"])._replace(**{**told, **_used.get()})  # type: ignore[arg-type]
