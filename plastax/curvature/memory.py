"""How much memory a spectrum will take, and hence how many Lanczos runs go side by side."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from plastax import machine, platforms, sharding, tree
from plastax.curvature.lanczos import Reorthogonalise, block_sizes, kept_rows
from plastax.types import Tree

Place: TypeAlias = Literal["device", "host"]
"""Where the Lanczos basis is kept."""
WORKING_VECTORS = 7
"""Vectors that a run holds beside its basis and one per block of it."""
MEMORY_SHARE = 0.5
"""Part of an accelerator's memory that runs side by side may take: their products need some as well."""


def memory(
    params: Tree,
    order: int = 64,
    probes: int = 4,
    seeds: int = 1,
    *,
    reorthogonalise: Reorthogonalise = "full",
    basis_dtype: Any = None,
    basis: Place = "device",
    batch: int | None = None,
) -> int:
    """Bytes of each device's memory that `spectrum` will take beside the operator's own: mostly the Lanczos bases.

    The operator's own memory (parameters, data, activations of a product) comes on top: that of one Hessian product, as
    many times as runs go side by side.

    Args:
      params: what the operator acts on, ``op.like``: a tree of arrays or of shape structs. If they have a ``sharding``
        over several devices, the bytes are those of one.
      order: Lanczos steps a probe.
      probes: number of probe vectors.
      seeds: number of seeds in a `vmap` around `spectrum`.
      reorthogonalise: as for `spectrum`.
      basis_dtype: as for `spectrum`.
      basis: as for `spectrum`.
      batch: as for `spectrum`; what it would choose by default.

    Returns:
      The estimate, within 25 % of what XLA reserves.

    Raises:
      ValueError: for another value of ``reorthogonalise``, or a placement that cannot be used.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from plastax import curvature
      >>> params = {"w": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)}
      >>> curvature.memory(params, order=100) / 1e6  # on CPU, where one run follows another
      448.0
      >>> curvature.memory(params, order=100, basis="host") / 1e6
      28.0
      >>> spread = jax.NamedSharding(jax.sharding.AbstractMesh((8,), ("params",)), jax.P("params"))
      >>> params = {"w": jax.ShapeDtypeStruct((1000, 1000), jnp.float32, sharding=spread)}
      >>> curvature.memory(params, order=100) / 1e6  # on each of eight devices
      56.0
    """
    one = run_bytes(params, order, reorthogonalise, basis_dtype, basis)
    return one * min(batch or at_once(one, device_memory()), probes * seeds)


def run_bytes(
    params: Tree, order: int, reorthogonalise: Reorthogonalise, basis_dtype: Any, basis: Place = "device"
) -> int:
    """Bytes that one Lanczos run takes on each device."""
    dim, mine = tree.size(params), sharding.size_on_each(params)
    dtype = jnp.promote_types(jnp.result_type(*jax.tree.leaves(params)), jnp.float32)
    rows = kept_rows(min(order, dim), reorthogonalise) if basis == "device" else 0
    blocks, stored = block_sizes(rows), jnp.dtype(basis_dtype or dtype)
    # A narrower block is widened to be multiplied.
    widened = max(blocks, default=0) if stored.itemsize < dtype.itemsize else 0
    return mine * (rows * stored.itemsize + (WORKING_VECTORS + len(blocks) + widened) * dtype.itemsize)


def device_memory() -> int | None:
    """Bytes of the default device's memory, None if unknown; on CPU, those that are free."""
    if jax.default_backend() == "cpu":
        return machine.free_memory()
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def at_once(one: int, available: int | None) -> int:
    """How many runs of ``one`` bytes go side by side: one or all that fit, see `platforms.Choices.lanczos`."""
    if platforms.chosen().lanczos == "loop" or available is None:
        return 1
    return max(1, int(MEMORY_SHARE * available) // one)


def check(params: Tree, order: int, reorthogonalise: Reorthogonalise, basis_dtype: Any, basis: Place) -> None:
    """Raises MemoryError, with the estimate and the settings to change, if one Lanczos run cannot fit."""
    one = run_bytes(params, order, reorthogonalise, basis_dtype)
    available = device_memory() if basis == "device" else machine.free_memory()
    if available is None or one <= available:
        return
    if basis == "device":
        subject, owner = "one Lanczos run", "device"
        advice = (
            "lower order, keep the basis in half the memory with basis_dtype=jnp.bfloat16 or on the host with "
            "basis='host', or keep less of it with reorthogonalise='none' or a number of vectors"
        )
    else:
        subject, owner = "a Lanczos basis", "host"
        advice = "lower order, or use basis='device' with reorthogonalise='none'"
    raise MemoryError(
        f"{subject} of order {order} over {tree.size(params):,} parameters needs about {_size(one)}, and the {owner} "
        f"has {_size(available)}; {advice}"
    )


def _size(number: int) -> str:
    return f"{number / 2**30:,.1f} GiB"
