"""How far the parameters have moved: since the run began, and within a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from plastax import tree
from plastax.probes.base import Need, ProbeConfig, check_network
from plastax.probes.weights import kernels
from plastax.types import Array, Model, Params, Probe, ProbeInput, Tree


def distances(a: Tree, b: Tree) -> dict[str, Array]:
    """``l1``, ``l2`` and ``linf`` norms of ``a - b``, over all entries of the trees, scalars.

    Papers report each of them as "weight change", and Plasticine ``l2 / sqrt(P)``: only numbers of one norm compare. L1
    and L2 grow with the number of parameters; Linf is that of a single weight.

    References:
      lop-jax (arXiv 2509.22335): all three, per task.
    """
    moved = jax.tree.leaves(jax.tree.map(jnp.subtract, tree.wide(a), tree.wide(b)))
    return {
        "l1": sum((jnp.sum(jnp.abs(x)) for x in moved), jnp.zeros(())),
        "l2": tree.norm(moved),
        "linf": jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0.0) for x in moved])),
    }


@dataclass(frozen=True)
class MovementProbe(ProbeConfig):
    """Distance of the parameters from the run's initialisation, and their change since the end of the last task."""

    name: ClassVar[str] = "movement"
    needs: ClassVar[tuple[Need, ...]] = ("kernels", "origins")

    def build(self, model: Model) -> Probe:
        """The probe.

        ``from_init`` and ``change`` are L2 norms ``[layer]``, of kernels; ``from_init_l1``, ``_l2``, ``_linf`` and
        ``change_l1``, ... are scalars, of all parameters. ``from_init`` is the distance from the run's first
        parameters, also for methods that draw new ones. ``change`` is the distance from the parameters at the end of
        the previous task (in the first task, from the first parameters): at a task's start what the method did at the
        switch, at its end the weight change of the whole task. It takes one more copy of the parameters in the state.
        """
        check_network(self, model)

        def layers(a: Params, b: Params) -> Array:
            pairs = zip(kernels(a, model), kernels(b, model), strict=True)
            return jnp.stack([tree.norm(x - y) for x, y in pairs])

        def measure(seen: ProbeInput) -> dict[str, Array]:
            values: dict[str, Array] = {}
            for name, origin in (("from_init", seen.initial()), ("change", seen.previous)):
                values[name] = layers(seen.params, origin)
                values |= {f"{name}_{norm}": value for norm, value in distances(seen.params, origin).items()}
            return values

        dims = dict.fromkeys(("from_init", "change"), ("layer",))
        return Probe(self.name, measure, dims, {"layer": model.layers}, every=self.every, needs_previous=True)
