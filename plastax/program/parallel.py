"""One network's program becomes many networks' program: seeds, values of settings, devices.

Networks never exchange anything, so seeds and settings share one axis, the leading axis of the state: seed k under the
values of arm j is one network. A mesh of devices cuts that axis, and nothing crosses the cuts.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from plastax import sharding
from plastax.errors import ConfigError
from plastax.types import Array, Key, Program, Tree

AXIS = "networks"
"""Name of the mesh's axis of networks."""


def seed_keys(seeds: Sequence[int] | np.ndarray | Array) -> Key:
    """PRNG keys ``[S]`` of seed numbers. Seed k has the same key alone and among others."""
    return _keys(seeds if isinstance(seeds, jax.Array) else np.asarray(seeds, np.uint32))


@jax.jit
def _keys(seeds: Array) -> Key:
    return jax.vmap(jax.random.key)(seeds.astype(jnp.uint32))


def over_seeds(program: Program, seeds: int) -> Program:
    """Gives states, views and results a leading axis of ``seeds`` networks; data and clock stay shared.

    Args:
      program: of one network.
      seeds: ``S``.
    """

    def each(fn: Callable[..., Any]) -> Callable[..., Any]:
        """``fn(state, *shared)``, of all networks."""
        if seeds > 1:
            return lambda state, *shared: jax.vmap(lambda state: fn(state, *shared))(state)
        # `vmap` over one network computes both sides of conditions that depend on it, and XLA transposes the gradients
        # of its kernels once more: an update of PPO takes a tenth more time on CPUs.
        return lambda state, *shared: jax.tree.map(lambda x: x[None], fn(jax.tree.map(lambda x: x[0], state), *shared))

    return program._replace(
        init=each(program.init),
        begin=each(program.begin),
        segment=each(program.segment),
        measure=each(program.measure),
        alike=program.alike and (program.alike, seeds),
    )


class Swept(NamedTuple):
    """A network and its own settings.

    Attributes:
      settings: name -> float32 scalar.
      network: the network's key, and after ``init`` its state.
    """

    settings: dict[str, Array]
    network: Tree


def over_settings(make: Callable[[Mapping[str, Any]], Program], settings: Mapping[str, float]) -> Program:
    """The program of one network whose settings are part of its state (`Swept`), not constants of the program.

    Args:
      make: makes the program from values of the settings, numbers or traced scalars.
      settings: example values. Data and labels must not depend on them.

    Returns:
      A program whose ``init`` takes `Swept` of the settings and the key.
    """

    def init(start: Swept, data: Tree) -> Swept:
        return Swept(start.settings, make(start.settings).init(start.network, data))

    def begin(state: Swept, data: Tree, clock: Array) -> Swept:
        return state._replace(network=make(state.settings).begin(state.network, data, clock))

    def segment(state: Swept, data: Tree, clock: Array, length: int) -> tuple[Swept, dict[str, Array]]:
        network, train = make(state.settings).segment(state.network, data, clock, length)
        return state._replace(network=network), train

    def measure(view: Swept, data: Tree, border: Array) -> dict[str, Array]:
        return make(view.settings).measure(view.network, data, border)

    one = make(settings)
    return one._replace(
        init=cast(Any, init),
        begin=cast(Any, begin),
        segment=segment,
        view=lambda state: state._replace(network=one.view(state.network)),
        measure=measure,
        alike=None,
    )


def over_parameters(program: Program, mesh: jax.sharding.Mesh) -> Program:
    """Cuts each network over the axis `sharding.AXIS` of a mesh: parameters, and what has their shapes in the state.

    The program is that of one device otherwise. XLA adds the communication that the layers need. `over_devices` of the
    result takes a mesh with both axes: `AXIS`, the networks, and `sharding.AXIS`.

    Args:
      program: of one network.
      mesh: with the axis `sharding.AXIS`.

    Raises:
      ConfigError: when traced, for a mesh without that axis.
    """

    def cut(state: Tree) -> Tree:
        return jax.lax.with_sharding_constraint(state, sharding.shardings(state, mesh))

    def segment(state: Tree, data: Tree, clock: Array, length: int) -> tuple[Tree, dict[str, Array]]:
        state, train = program.segment(cut(state), data, clock, length)
        return cut(state), train

    return program._replace(
        init=lambda key, data: cut(program.init(key, data)),
        begin=lambda state, data, clock: cut(program.begin(cut(state), data, clock)),
        segment=segment,
        measure=lambda view, data, border: program.measure(cut(view), data, border),
        alike=program.alike and (program.alike, mesh),
    )


def over_devices(program: Program, mesh: jax.sharding.Mesh) -> Program:
    """Cuts the leading axis over the devices of a mesh, whose number must divide it.

    Every device runs the same program on its own networks. The compiled program has no collective.

    Args:
      program: over the networks of one device.
      mesh: with the axis `AXIS`. What is cut over other axes stays so, see `over_parameters`.
    """
    cut, whole = jax.P(AXIS), jax.P()

    def on_each(fn: Callable[..., Any], *specs: jax.P) -> Callable[..., Any]:
        return jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=cut, axis_names={AXIS}, check_vma=False)

    def segment(state: Tree, data: Tree, clock: Array, length: int) -> tuple[Tree, dict[str, Array]]:
        return on_each(lambda s, d, c: program.segment(s, d, c, length), cut, whole, whole)(state, data, clock)

    return program._replace(
        init=on_each(program.init, cut, whole),
        begin=on_each(program.begin, cut, whole, whole),
        segment=segment,
        measure=on_each(program.measure, cut, whole, whole),
        alike=program.alike and (program.alike, mesh),
    )


class Batch(NamedTuple):
    """A program and the networks that it trains: the seeds of one or several arms, arm by arm.

    One call of the program trains some of them, and all calls are alike: the last one trains copies where networks are
    missing, whose results are dropped.

    Attributes:
      arms: their labels; each has ``networks / len(arms)``.
      program: over the networks of a call.
      draw: makes `starts`, once.
      like: the shapes of one of `starts`.
      networks: their number.
      width: networks of a call, equal shares of all devices.
      mesh: the devices; None: JAX's default device.
    """

    arms: tuple[str, ...]
    program: Program
    draw: Callable[[], list[Tree]]
    like: Tree
    networks: int
    width: int
    mesh: jax.sharding.Mesh | None

    @property
    def calls(self) -> int:
        """Calls that train all networks."""
        return -(-self.networks // self.width)

    @property
    def starts(self) -> list[Tree]:
        """Keys or `Swept` ``[width]`` of each call, for ``program.init``. Nothing compiles before this is asked for."""
        return self.draw()

    @property
    def name(self) -> str:
        """The first arm's label, and the number of further arms."""
        return self.arms[0] + (f" (+{len(self.arms) - 1})" if len(self.arms) > 1 else "")

    @property
    def folder(self) -> str:
        """Name of a folder that no other batch of the study has."""
        if len(self.arms) == 1:
            return self.arms[0]
        digest = hashlib.sha256("\n".join(self.arms).encode()).hexdigest()[:8]
        return f"{self.arms[0].partition('@')[0]}@{len(self.arms)}-{digest}"

    @property
    def apart(self) -> jax.NamedSharding | None:
        """Where networks lie: on the device that trains them."""
        return None if self.mesh is None else jax.NamedSharding(self.mesh, jax.P(AXIS))

    @property
    def shared(self) -> jax.NamedSharding | None:
        """Where data lie that all networks share: on every device."""
        return None if self.mesh is None else jax.NamedSharding(self.mesh, jax.P())

    def place(self, data: Tree) -> Tree:
        """Puts data that all networks share where they belong, once."""
        return jax.device_put(data, self.shared)

    def spread(self, leaves: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        """Cuts arrays ``[networks, ...]`` into ``[width, ...]`` for each call, filled up by copies from the front."""
        rows = np.arange(self.calls * self.width).reshape(self.calls, self.width) % self.networks
        return [{name: leaf[own] for name, leaf in leaves.items()} for own in rows]

    def real(self, *values: Tree) -> Tree:
        """The inverse of `spread`: arrays ``[width, ...]`` of each call to NumPy arrays ``[networks, ...]``.

        If the devices belong to several processes (`jax.distributed`), all of them must call it. Each gets everything.
        """
        return jax.tree.map(lambda *parts: np.concatenate([*map(_whole, parts)])[: self.networks], *values)

    def split(self, values: Tree) -> dict[str, Tree]:
        """Arm -> its rows of arrays ``[networks, ...]``."""
        size = self.networks // len(self.arms)
        return {
            arm: jax.tree.map(lambda x, i=i: x[i * size : (i + 1) * size], values) for i, arm in enumerate(self.arms)
        }


def _whole(x: Any) -> np.ndarray:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        x = multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)


def batch(
    make: Callable[[Mapping[str, Any]], Program],
    arms: Mapping[str, Mapping[str, float]],
    seeds: Sequence[int],
    chunk: int = 0,
    devices: int = 1,
) -> Batch:
    """All seeds of arms that differ only in the values of settings, as one program.

    Args:
      make: see `over_settings`; of one network.
      arms: label -> setting -> value, with the same settings in all arms; one arm if there are no settings. Seed k has
        the same key in all arms, so differences are paired.
      seeds: numbers of the seeds.
      chunk: the most networks that a call trains on each device. Several calls can run at the same time, or one after
        another in the memory of one. 0: all.
      devices: number of devices to use, of this machine or, under `jax.distributed`, of all processes; 0: all. No more
        are used than have networks to train.

    Raises:
      ConfigError: ``chunk`` is negative, or there are fewer devices.
    """
    count = len(arms) * len(seeds)
    there = jax.devices()
    if devices < 0 or devices > len(there):
        raise ConfigError(f"devices: {devices} is not allowed; give 0 (all) to {len(there)}, as many as there are")
    if chunk < 0:
        raise ConfigError(f"seed_chunk: {chunk} is not allowed; give 0 (all at once) or more")
    used = min(devices or len(there), -(-count // (chunk or 1)))
    each = -(-count // used)
    each = min(chunk or each, each)
    values = [*arms.values()]
    program = over_seeds(over_settings(make, values[0]) if values[0] else make({}), each)
    mesh = None
    if used > 1:
        mesh = jax.sharding.Mesh(np.asarray(there[:used]), (AXIS,))
        program = over_devices(program, mesh)
    width = used * each

    keys = jax.eval_shape(seed_keys, jax.ShapeDtypeStruct((width,), jnp.uint32))
    column: Any = jax.ShapeDtypeStruct(keys.shape, jnp.float32)
    like = Swept(dict.fromkeys(values[0], column), keys) if values[0] else keys

    @functools.cache
    def draw() -> list[Tree]:
        index = np.arange(count)
        columns = {name: np.asarray([v[name] for v in values], np.float32)[index // len(seeds)] for name in values[0]}
        parts = made.spread({"": np.asarray(seeds)[index % len(seeds)], **columns})
        return [start(part.pop(""), part) for part in parts]

    def start(seeds: np.ndarray, columns: Mapping[str, np.ndarray]) -> Tree:
        keys = seed_keys(seeds)
        found = Swept(jax.tree.map(jnp.asarray, dict(columns)), keys) if columns else keys
        # Not `device_put`: the devices may be those of several processes.
        return jax.jit(lambda x: x, out_shardings=jax.NamedSharding(mesh, jax.P(AXIS)))(found) if mesh else found

    made = Batch(tuple(arms), program, draw, like, count, width, mesh)
    return made
