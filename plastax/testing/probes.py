"""What every probe promises, checked on small networks as the programs show them: supervised, and an actor-critic."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plastax import tree
from plastax.curvature import losses
from plastax.methods import Backprop
from plastax.models import MLP, ActorCritic
from plastax.program import learner
from plastax.program.learner import Learned, Learner
from plastax.rl import objective, policy
from plastax.rl.environment import Discrete
from plastax.rl.objective import PPO, RolloutBatch
from plastax.testing.promises import Promise, check_pure, close, difference, plain, quick
from plastax.types import Array, Examples, Key, Model, Params, Probe, ProbeInput, Tree

Kind = Literal["supervised", "reinforcement"]
KINDS: tuple[Kind, ...] = ("supervised", "reinforcement")
EXAMPLES, CLASSES = 10, 3
SETTINGS = PPO(kronecker_every=1)


class Sight(NamedTuple):
    """A network and what is seen of it, with running Kronecker factors of one step."""

    learner: Learner

    @property
    def model(self) -> Model:
        """The network."""
        return self.learner.model

    def learned(self, params: Params, batch: Tree, key: Key) -> Learned:
        """A network with the Kronecker factors of one step."""
        learned = self.learner.start(key, params)
        return learned._replace(factors=self.learner.step(learned, batch, jnp.int32(0), key, key)[0].factors)

    def seen(self, learned: Learned, batch: Tree, key: Key, previous: bool) -> ProbeInput:
        """What a probe gets; without ``previous`` as where no probe needs it."""
        before = jax.tree.map(jnp.zeros_like, learned.params) if previous else ()
        return self.learner.seen(learned, batch, key, jax.random.key(0), before)


def make_batch(kind: Kind, seed: int = 2) -> Any:
    """Normal inputs, and labels or what the loss of PPO needs."""
    rng = np.random.default_rng(seed)
    x, labels = rng.standard_normal((EXAMPLES, 3)), rng.integers(0, CLASSES, EXAMPLES)
    rest = -np.abs(rng.standard_normal((4, EXAMPLES)))
    batch = Examples(x, labels) if kind == "supervised" else RolloutBatch(x, labels, *rest)  # type: ignore[arg-type]
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.int32 if a.dtype.kind == "i" else jnp.float32), batch)


@functools.cache
def sight_of(kind: Kind) -> Sight:
    """The small network of a kind of training."""
    if kind == "supervised":
        model, loss = MLP(hidden=(5, 4)).build((3,), CLASSES), losses.get("cross_entropy")
        network = learner.network(model, loss, lambda z, batch: (loss.value(z, batch), {}), lambda batch: batch.x)
    else:
        model = ActorCritic(hidden=(5, 4)).build((3,), CLASSES, continuous=False)
        network = objective.network(SETTINGS, model, policy.make(Discrete(CLASSES)))
    like = jax.eval_shape(lambda: make_batch(kind))
    return Sight(Learner(model, network, Backprop().build(SETTINGS.optimizer()), SETTINGS, like, role=0))


@functools.cache
def learning(kind: Kind) -> Callable[[Params, Tree, Key], Learned]:
    """`Sight.learned` of several networks, compiled once for all probes."""
    return quick(jax.vmap(sight_of(kind).learned, in_axes=(0, None, 0)))


def make_params(model: Model) -> Params:
    """Two networks: one with nothing at zero, one whose hidden units are all silent."""
    rng = np.random.default_rng(1)

    def draw(name: str, like: Any) -> Array:
        value = rng.standard_normal(like.shape) / 2
        dead = "dense" in name and name.endswith("bias")
        both = np.stack([value, np.full(like.shape, -100.0) if dead else value])
        return jnp.asarray(both.astype(np.float32))

    return tree.map_named(draw, jax.eval_shape(model.init, tree.key_like()))


def check_declared(probe: Probe, values: dict[str, Any]) -> None:
    """Names and lengths of all axes are as the probe says; ``values`` are arrays or shape structs of one network."""
    promise, lengths = Promise(Probe, "dims"), {axis: len(labels) for axis, labels in probe.coords.items()}
    remedy = "let `dims` name the axes of each value that `measure` gives, and `coords` their labels"
    if lacking := set(probe.dims) - set(values):
        raise promise.broken(probe.name, f"dims has {', '.join(sorted(lacking))}, which measure does not give", remedy)
    for name, value in values.items():
        axes = probe.dims.get(name, ())
        if len(axes) != value.ndim:
            what = f"the value {name} has the shape {value.shape}, and dims names the axes {tuple(axes)}"
            raise promise.broken(probe.name, what, remedy)
        if not jnp.issubdtype(value.dtype, jnp.floating):
            what = f"the value {name} is of type {value.dtype}; NaN must be able to say that nothing was measured"
            raise Promise(Probe, "measure").broken(probe.name, what, "give floats: x.astype(jnp.float32)")
        for axis, size in zip(axes, value.shape, strict=True):
            if lengths.setdefault(axis, size) != size:
                what = f"the axis {axis} of {name} has {size} entries, and {lengths[axis]} labels or entries elsewhere"
                raise promise.broken(probe.name, what, remedy)
    if unused := set(probe.coords) - {axis for axes in probe.dims.values() for axis in axes}:
        raise Promise(Probe, "coords").broken(probe.name, f"no value has the axes {', '.join(sorted(unused))}", remedy)


def check_probe(config: Any, *, kinds: Sequence[Kind] = KINDS) -> None:
    """Checks that a probe keeps what `plastax.types.Probe` and `ProbeInput` promise; takes some seconds.

    It measures a network that is alive and one whose units are all silent, together in one compiled program.

    Args:
      config: the probe's settings, or their class.
      kinds: of training that it can look at: supervised (`Examples`) and reinforcement (`RolloutBatch`).

    Raises:
      AssertionError: a promise is broken; it says what is wrong, where the promise stands, and what to do.

    Examples:
      >>> from plastax import probes, testing
      >>> testing.check_probe(probes.WeightProbe(), kinds=("supervised",))
    """
    config = config() if isinstance(config, type) else config
    for kind in kinds:
        _check(config, kind)


def _check(config: Any, kind: Kind) -> None:
    sight, who, promise = sight_of(kind), f"{type(config).__name__} ({kind})", Promise(Probe, "measure")
    with Promise(Probe).kept(who, "build", "accept the model and return a plastax.types.Probe"):
        probe: Probe = config.build(sight.model)
    if probe.name != config.name:
        what = f"it is called {config.name}, and its probe {probe.name}"
        raise Promise(Probe, "name").broken(who, what, "build Probe(self.name, ...)")

    def measure(learned: Learned, batch: Tree, key: Key) -> dict[str, Array]:
        remedy = "let shapes follow from settings and model alone; say needs_previous=True if it reads `previous`"
        with promise.kept(who, "measure", remedy):
            return probe.measure(sight.seen(learned, batch, key, probe.needs_previous))

    params, batch, keys = make_params(sight.model), make_batch(kind), jax.vmap(jax.random.key)(np.arange(2))
    learned = learning(kind)(params, batch, keys)
    one = jax.tree.map(lambda x: x[0], learned), batch, keys[0]
    remedy = "keep nothing outside, and draw with jax.random and ProbeInput.key, not with NumPy"
    check_declared(probe, check_pure(Promise(ProbeInput, "key"), who, measure, *one, remedy=remedy))

    both = quick(jax.vmap(measure, in_axes=(0, None, 0)))
    values = both(learned, batch, keys)

    def filled(name: str, value: Array) -> Array:
        return jnp.where(jnp.isnan(value[:1]), 0.0, value) if name.endswith("_eigenvalues") else value

    for name, value in values.items():
        for network, which in zip(plain(filled(name, value)), ("a live network", "a network of silent units")):
            if not np.isfinite(network).all():
                remedy = "guard divisions and logarithms; NaN only pads values whose names end in _eigenvalues"
                raise promise.broken(who, f"the value {name} of {which} is not finite: {network}", remedy)
    # The live network in second place, beside another neighbour.
    twice = jax.tree.map(lambda x: jnp.stack([x[0], x[0]]), params)
    moved = both(learning(kind)(twice, batch, keys[::-1]), batch, keys[::-1])
    first, second = (jax.tree.map(lambda x, i=i: x[i], of) for of, i in ((values, 0), (moved, 1)))
    if found := difference(second, first, close(1e-5, 1e-6)):
        remedy = "look at no other network"
        raise Promise(Probe).broken(who, f"the values of a network change with its neighbour, {found}", remedy)
