"""Methods that replace units against NumPy in float64, step by step: weights, moments, utilities, ages, counters."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from plastax import methods, tree
from plastax.models import CNN, MLP
from plastax.types import MethodArgs, Model

pytestmark = pytest.mark.usefixtures("x64")

STEPS, RATE, EXAMPLES = 16, 0.05, 3
Flat = dict[str, np.ndarray]
Index = tuple[str, Any]


class Net:
    """What belongs to whom, written by hand: a layer's units, their features, and their readers' rows."""

    model: Model
    widths: ClassVar[dict[str, int]]
    copies: int
    places: tuple[int, ...]

    def draw(self, key: jax.Array) -> Any:
        # Rounded: initialisers are in float32, whose last bit differs between compilations.
        return jax.tree.map(lambda x: jnp.round(jnp.float64(x), 4), self.model.init(key))

    def incoming(self, layer: str, j: int) -> list[Index]:
        raise NotImplementedError

    def outgoing(self, layer: str, f: int) -> tuple[str, list[int]]:
        """The reader of a feature, and the rows of its kernel."""
        raise NotImplementedError


class Dense(Net):
    """3 inputs, two hidden layers with LayerNorm, 2 outputs."""

    model = MLP(hidden=(5, 4), layer_norm=True).build((3,), 2)
    widths: ClassVar = {"dense_0": 5, "dense_1": 4}
    copies, places = 1, ()

    def incoming(self, layer, j):
        rest = [f"{layer}/bias", f"norm_{layer}/scale", f"norm_{layer}/bias"]
        return [(f"{layer}/kernel", np.s_[:, j]), *((name, j) for name in rest)]

    def outgoing(self, layer, f):
        return {"dense_0": "dense_1", "dense_1": "output"}[layer], [f]


class Conv(Net):
    """A convolution, flattened into a dense layer, both with two features a unit."""

    model = CNN(channels=(3,), kernels=(2,), hidden=(4,), activation="crelu").build((4, 4, 1), 2)
    widths: ClassVar = {"conv_0": 3, "dense_0": 4}
    copies, places = 2, (4, 4)

    def incoming(self, layer, j):
        return [(f"{layer}/kernel", np.s_[..., j]), (f"{layer}/bias", j)]

    def outgoing(self, layer, f):
        if layer == "dense_0":
            return "output", [f]
        # Behind the maximum there are 2 x 2 places of 6 features each, the features running fastest.
        return "dense_0", [6 * place + f for place in range(4)]


class Adam:
    """Adam, with one step count (Kingma and Ba 2015, algorithm 1) or one an entry."""

    def __init__(self, own_counts: bool = False) -> None:
        self.transform = methods.adam_per_parameter(RATE) if own_counts else optax.adam(RATE)
        self.own_counts, self.t, self.m, self.v = own_counts, {}, {}, {}

    def __call__(self, g: Flat) -> Flat:
        out = {}
        for k in g:
            self.t[k] = self.t.get(k, np.zeros(g[k].shape, int)) + 1
            self.m[k] = 0.9 * self.m.get(k, 0.0) + 0.1 * g[k]
            self.v[k] = 0.999 * self.v.get(k, 0.0) + 0.001 * g[k] ** 2
            t = self.t[k]
            out[k] = -RATE * self.m[k] / (1 - 0.9**t) / (np.sqrt(self.v[k] / (1 - 0.999**t)) + 1e-8)
        return out

    def moments(self) -> dict[str, Flat]:
        return {"mu": self.m, "nu": self.v} | ({"count": self.t} if self.own_counts else {})


class Momentum:
    """SGD with momentum 0.9."""

    def __init__(self) -> None:
        self.transform, self.trace = optax.sgd(RATE, momentum=0.9), {}

    def __call__(self, g: Flat) -> Flat:
        self.trace = {k: g[k] + 0.9 * self.trace.get(k, 0.0) for k in g}
        return {k: -RATE * v for k, v in self.trace.items()}

    def moments(self) -> dict[str, Flat]:
        return {"trace": self.trace}


def replace(net: Net, w: Flat, opt: Any, new: dict[str, list[int]], xi: Flat, fhat: Any = None) -> None:
    """In place, entry by entry."""
    rows = [
        (*net.outgoing(layer, f), layer, f)
        for layer, chosen in new.items()
        for j in chosen
        for f in range(j, net.copies * net.widths[layer], net.widths[layer])
    ]
    if fhat is not None:
        for reader, own, layer, f in rows:
            w[f"{reader}/bias"] += w[f"{reader}/kernel"][own].sum(0) * fhat[layer][f]
    places: list[Index] = []
    for reader, own, *_ in rows:
        w[f"{reader}/kernel"][own] = 0.0
        places.append((f"{reader}/kernel", own))
    for layer, chosen in new.items():
        for name, index in [entry for j in chosen for entry in net.incoming(layer, j)]:
            w[name][index] = xi[name][index]
            places.append((name, index))
    for moment in opt.moments().values():
        for name, index in places:
            moment[name][index] = 0


class ContinualBackprop:
    """Dohare et al. 2024, algorithm 1, with the utilities of methods.md."""

    def __init__(self, net: Net, config: methods.ContinualBackprop) -> None:
        self.net, self.config, self.clock = net, config, 0
        self.age = {n: np.zeros(k, int) for n, k in net.widths.items()}
        self.u = {n: np.zeros(k) for n, k in net.widths.items()}
        self.f = {n: np.zeros(net.copies * k) for n, k in net.widths.items()}
        self.owed = dict.fromkeys(net.widths, 0.0)
        self.spare: Flat = {}

    def weights(self, w: Flat, layer: str) -> tuple[np.ndarray, np.ndarray]:
        """mean|w_out| of each feature and mean|w_in| of each unit."""
        out = []
        for f in range(self.net.copies * self.net.widths[layer]):
            reader, own = self.net.outgoing(layer, f)
            out.append(abs(w[f"{reader}/kernel"][own]).mean())
        kernel = w[f"{layer}/kernel"]
        return np.array(out), abs(kernel).reshape(-1, kernel.shape[-1]).mean(0)

    def __call__(self, w: Flat, opt: Any, h: Flat, taps: Flat, key: jax.Array) -> int:
        c, eta = self.config, self.config.decay
        if self.clock % (c.maturity + 1) == 0:
            self.spare = flat(self.net.draw(key))
        self.clock += 1
        new, fhats = {}, {}
        for i, (layer, width) in enumerate(self.net.widths.items()):
            drawn = jax.random.fold_in(key, i)
            self.age[layer] += 1
            x = h[layer].reshape(-1, h[layer].shape[-1])
            corrections = 1 - eta ** self.age[layer]
            self.f[layer] = eta * self.f[layer] + (1 - eta) * x.mean(0)
            fhat = fhats[layer] = self.f[layer] / np.concatenate([corrections] * self.net.copies)
            w_out, w_in = self.weights(w, layer)
            feature = {
                "contribution": w_out * abs(x).mean(0),
                "adaptable_contribution": w_out * abs(x - fhat).mean(0),
                "zero_contribution": w_out * abs(x - fhat).mean(0),
                "weight": w_out,
                "adaptation": np.ones_like(w_out),
                "feature_by_input": abs(x - fhat).mean(0),
                "random": np.zeros_like(w_out),
                "uselessness": -w_out * abs(x).mean(0),
            }[c.utility]
            y = np.array([np.mean([feature[f] for f in range(j, len(feature), width)]) for j in range(width)])
            if c.utility in ("adaptable_contribution", "adaptation", "feature_by_input"):
                y = y / w_in
            self.u[layer] = eta * self.u[layer] + (1 - eta) * y
            uhat = self.u[layer] / corrections
            if c.utility == "random":
                uhat = np.asarray(jax.random.uniform(drawn, (width,)))
            eligible = [j for j in range(width) if self.age[layer][j] > c.maturity]
            due = c.replacement_rate * len(eligible)
            if c.accumulate:
                self.owed[layer] += due
                n = int(self.owed[layer])
                self.owed[layer] -= n
            else:
                n = int(due) if due >= 1 else int(jax.random.uniform(jax.random.fold_in(drawn, 1)) < due)
            new[layer] = sorted(eligible, key=lambda j: uhat[j])[:n]
        replace(self.net, w, opt, new, self.spare, fhats if c.compensate else None)
        for layer, chosen in new.items():
            self.age[layer][chosen] = 0
            self.u[layer][chosen] = 0.0
            self.f[layer].reshape(self.net.copies, -1)[:, chosen] = 0.0
        return sum(map(len, new.values()))

    def check(self, state: Any, opt: Any, close: Any) -> None:
        check_moments(state.inner, opt, close)
        for layer, seen in state.layers.items():
            np.testing.assert_array_equal(seen.age, self.age[layer])
            close(seen.utility, self.u[layer])
            close(seen.mean, self.f[layer])
            close(seen.owed, self.owed[layer])


class Dormant:
    """ReDo of features or ReGraMa of gradients."""

    def __init__(self, net: Net, config: Any) -> None:
        self.net, self.config, self.clock = net, config, 0

    def __call__(self, w: Flat, opt: Any, h: Flat, taps: Flat, key: jax.Array) -> int:
        clock, self.clock = self.clock, self.clock + 1
        if clock == 0 or clock % self.config.period:
            return 0
        redo = type(self.config) is methods.ReDo
        new = {}
        for layer, width in self.net.widths.items():
            x = abs((h if redo else taps)[layer]).reshape(-1, (h if redo else taps)[layer].shape[-1]).mean(0)
            score = x.reshape(-1, width).mean(0)
            new[layer] = [j for j in range(width) if score[j] / score.mean() <= self.config.threshold]
        replace(self.net, w, opt, new, flat(self.net.draw(key)))
        return sum(map(len, new.values()))

    def check(self, state: Any, opt: Any, close: Any) -> None:
        check_moments(state, opt, close)


class SelfNormalizedResets:
    """A test of each unit's silence against a geometric distribution with the mean of its own gaps."""

    def __init__(self, net: Net, config: methods.SelfNormalizedResets) -> None:
        self.net, self.config, self.clock = net, config, 0
        self.silent = {n: [0] * k for n, k in net.widths.items()}
        self.history = {n: [[config.first_gap] for _ in range(k)] for n, k in net.widths.items()}
        self.spare: Flat = {}

    def decayed(self, gaps: list[float]) -> tuple[float, float]:
        """Sum and number of the gaps, the older the less."""
        weights = [self.config.decay**i for i in range(len(gaps))][::-1]
        return float(np.dot(weights, gaps)), sum(weights)

    def __call__(self, w: Flat, opt: Any, h: Flat, taps: Flat, key: jax.Array) -> int:
        if self.clock % self.config.patience == 0:
            self.spare = flat(self.net.draw(key))
        self.clock += 1
        new: dict[str, list[int]] = {}
        for layer, width in self.net.widths.items():
            new[layer] = []
            for j in range(width):
                history = self.history[layer][j]
                if (h[layer][..., j] > 0).any():
                    history.append(self.silent[layer][j] + 1)
                    self.silent[layer][j] = 0
                    continue
                self.silent[layer][j] += 1
                total, number = self.decayed(history)
                outlasts = (1 - number / total) ** self.silent[layer][j]
                if self.silent[layer][j] >= self.config.patience and outlasts < self.config.level:
                    new[layer].append(j)
                    history.append(self.silent[layer][j])
                    self.silent[layer][j] = 0
        replace(self.net, w, opt, new, self.spare)
        return sum(map(len, new.values()))

    def check(self, state: Any, opt: Any, close: Any) -> None:
        check_moments(state.inner, opt, close)
        for layer, seen in state.layers.items():
            np.testing.assert_array_equal(seen.silent, self.silent[layer])
            expected = np.array([self.decayed(gaps) for gaps in self.history[layer]])
            close(seen.total, expected[:, 0])
            close(seen.number, expected[:, 1])


def check_moments(state: Any, opt: Any, close: Any) -> None:
    found = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        for kind, moment in opt.moments().items():
            name = tree.path_name(path).partition(f"{kind}/")[2]
            if name:
                close(leaf, moment[name])
                found += 1
    assert found == sum(map(len, opt.moments().values()))


def flat(params: Any) -> Flat:
    return {name: np.array(leaf, np.float64) for name, leaf in tree.named_leaves(params).items()}


def cases() -> Iterator[Any]:
    cbp = functools.partial(methods.ContinualBackprop, replacement_rate=0.1875, decay=0.75, maturity=2)
    utilities = ("contribution", "adaptable_contribution", "zero_contribution", "weight", "adaptation", "random")
    for utility in (*utilities, "feature_by_input", "uselessness"):
        yield Dense, cbp(utility=utility), ContinualBackprop, Adam
    for utility in ("contribution", "adaptable_contribution"):
        yield Conv, cbp(utility=utility), ContinualBackprop, functools.partial(Adam, True)
    yield Conv, cbp(accumulate=False, compensate=False), ContinualBackprop, Momentum
    for net in (Dense, Conv):
        yield net, methods.ReDo(period=3, threshold=0.9), Dormant, functools.partial(Adam, net is Conv)
        yield net, methods.ReGraMa(period=3, threshold=0.8), Dormant, Momentum
        snr = methods.SelfNormalizedResets(level=0.3, decay=0.75, first_gap=3.0, patience=2)
        yield net, snr, SelfNormalizedResets, Adam


CASES = list(cases())
SLOW = ("zero_contribution", "weight", "adaptation", "feature_by_input", "uselessness")
RUNS = [
    pytest.param(*case, marks=pytest.mark.slow) if getattr(case[1], "utility", "") in SLOW else case for case in CASES
]
NAMES = {name for name, method in methods.METHODS.items() if any(type(method) is type(c) for _, c, *_ in CASES)}
"""Of the methods that have a reference here; `reset_head` has its own in test_surgery.py."""
NAMES |= {"reset_head"}


@pytest.mark.parametrize(("network", "config", "reference", "optimiser"), RUNS)
def test_steps_equal_numpy(network: Any, config: Any, reference: Any, optimiser: Any) -> None:
    net, opt = network(), optimiser()
    expected = reference(net, config)
    method = config.build(opt.transform, net.model)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape), net.draw(jax.random.key(5)))

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def step(params: Any, state: Any, grads: Any, key: Any, clock: Any, h: Any, taps: Any) -> Any:
        none: Any = None
        args = MethodArgs(key, clock, none, none, h, taps, none, none, none, net.draw, boundary=False)._asdict()
        updates, state = method.update(grads, state, params, **args)
        return optax.apply_updates(params, updates), state

    w, state, replaced = flat(params), method.init(params), 0
    close = functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-9)
    for t in range(STEPS):
        grads = jax.tree.map(lambda x: rng.standard_normal(x.shape), params)
        h, taps = {}, {}
        for i, (layer, width) in enumerate(net.widths.items()):
            shape = (EXAMPLES, *(net.places if i == 0 else ()))
            # Some units fire rarely: at most of the places of most batches they are silent.
            rare = np.tile(np.arange(width) % 2 * (3.0 if i == 0 and net.places else 1.5), net.copies)
            h[layer] = rng.standard_normal((*shape, net.copies * width)) - rare
            taps[layer] = rng.standard_normal((*shape, width)) * (1 + np.arange(width))
        key = jax.random.key(t)
        for name, u in opt(flat(grads)).items():
            w[name] = w[name] + u
        replaced += expected(w, opt, h, taps, key)
        params, state = step(params, state, grads, key, jnp.int32(t), h, taps)
        for name, leaf in tree.named_leaves(params).items():
            assert leaf.dtype == jnp.float64
            close(leaf, w[name], err_msg=f"step {t}, {name}")
        expected.check(state, opt, close)
    assert replaced >= 4
