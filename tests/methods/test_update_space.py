"""The methods that act on steps, and those at task switches, against NumPy in float64, step by step.

Each reference is written from the formula of the publication; with it the optimiser's own state is compared.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from plastax import methods, tree
from plastax.models.layers import ROLES
from plastax.types import MethodArgs, Model
from tests.methods.scheme import NORMS, RATE, Adam, Flat, Sgd, features_fn, flat, init_fn, random_tree

pytestmark = pytest.mark.usefixtures("x64")

STEPS, SWITCH = 8, 3
CONV = ("actor/conv_0/kernel", "actor/conv_0/bias")


class Draw:
    """What a method may draw from its key."""

    def __init__(self, key: jax.Array) -> None:
        self.key = key

    def fresh(self) -> Flat:
        return flat(init_fn(self.key))

    def normal(self, *fold: int) -> Flat:
        key = self.key
        for number in fold:
            key = jax.random.fold_in(key, number)
        return flat(tree.normal_like(key, init_fn(key)))


class Reference:
    """The optimiser alone."""

    def __init__(self, w0: Flat, opt: Any) -> None:
        self.w0, self.opt = w0, opt

    def switch(self, w: Flat, draw: Draw) -> Flat:
        return w

    def step(self, w: Flat, g: Flat, t: int, draw: Draw) -> Flat:
        u = self.opt(g)
        return {k: w[k] + u[k] for k in w}


class L2iShrink(Reference):
    def step(self, w, g, t, draw):
        new, xi = super().step(w, g, t, draw), draw.fresh()
        return {k: (1 - 0.1) * new[k] + 0.04 * xi[k] for k in w}


class GaussianShrink(Reference):
    def step(self, w, g, t, draw):
        coupled = {k: g[k] + (0.0 if k in NORMS else 0.1 * w[k]) for k in w}
        new, n = super().step(w, coupled, t, draw), draw.normal()
        return {k: new[k] + (0.0 if k in NORMS else 0.04 * n[k]) for k in w}


class UpgdShrink(Reference):
    """Of the UPGD publication: with SGD, w <- (1 - lr d) w - lr (g + sigma n)."""

    def step(self, w, g, t, draw):
        n = draw.normal()
        return {k: (1 - RATE * 0.3) * w[k] - RATE * (g[k] - 0.2 * n[k]) for k in w}


class BoundaryShrink(Reference):
    def switch(self, w, draw):
        xi = draw.fresh()
        return {k: (1 - 0.4) * w[k] + 0.3 * xi[k] for k in w}


class Upgd(Reference):
    """Algorithm 1 with SGD, in the paper's own numbers: lr, sigma, weight decay."""

    beta, sigma, weight_decay, released, local, protecting = 0.8, 0.2, 0.3, False, False, True

    def __init__(self, w0, opt):
        super().__init__(w0, opt)
        self.trace = {k: np.zeros_like(x) for k, x in w0.items()}

    def direction(self, g: Flat) -> Flat:
        return g

    def step(self, w, g, t, draw):
        self.trace = {k: self.beta * self.trace[k] - (1 - self.beta) * g[k] * w[k] for k in w}
        corrected = {k: u / (1 - self.beta ** (t + 1)) for k, u in self.trace.items()}
        top = max(u.max() for u in (self.trace if self.released else corrected).values())
        noise, d, out = draw.normal(1), self.direction(g), {}
        for k, u in corrected.items():
            incoming = tuple(range(u.ndim - 1)) if u.ndim > 1 else 0
            z = u / np.sqrt((u**2).sum(incoming)) if self.local else u / top
            gate = 1 - 1 / (1 + np.exp(-z))
            n = -self.sigma * noise[k]  # The method adds what the paper subtracts.
            move = (d[k] + n) * gate if self.protecting else d[k] + n * gate
            out[k] = (1 - RATE * self.weight_decay) * w[k] - RATE * move
        return out


class LocalUpgd(Upgd):
    local = True


class ReleasedUpgd(Upgd):
    released = True


class NonProtectingUpgd(Upgd):
    protecting = False


class AdamUpgd(Upgd):
    """Another optimiser's step is gated in place of the gradient's."""

    def direction(self, g):
        return {k: -u / RATE for k, u in self.opt(g).items()}


class Clipping(Reference):
    def step(self, w, g, t, draw):
        new = super().step(w, g, t, draw)
        for layer in ("actor/dense_0", "actor/conv_0", "actor/output"):
            bound = 0.5 * np.abs(self.w0[f"{layer}/kernel"]).max()
            for part in ("kernel", "bias"):
                if f"{layer}/{part}" in new:
                    new[f"{layer}/{part}"] = np.clip(new[f"{layer}/{part}"], -bound, bound)
        return new


class Projection(Reference):
    groups = (("actor/dense_0/kernel", "actor/dense_0/bias"), NORMS, ("actor/output/kernel",), CONV)
    period = 2

    def step(self, w, g, t, draw):
        new = super().step(w, g, t, draw)
        if t % self.period == self.period - 1:
            for group in self.groups:
                norm = np.sqrt(sum((new[k] ** 2).sum() for k in group))
                start = np.sqrt(sum((self.w0[k] ** 2).sum() for k in group))
                new |= {k: new[k] * start / norm for k in group}
        return new


class BareProjection(Projection):
    groups = (("actor/dense_0/kernel", "actor/dense_0/bias"),)
    period = 1


class Tortoise(Reference):
    def __init__(self, w0, opt):
        super().__init__(w0, opt)
        self.slow = w0

    def step(self, w, g, t, draw):
        new = super().step(w, g, t, draw)
        self.slow = {k: 0.7 * self.slow[k] + 0.3 * new[k] for k in w}
        return self.slow if t % 3 == 2 else new


class Tracking(Reference):
    betas = np.array([0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999])

    def __init__(self, w0, opt):
        super().__init__(w0, opt)
        self.v, self.sigma, self.scale = np.zeros(6), np.full(6, 1e-8), 0.0

    def step(self, w, g, t, draw):
        u = self.opt(g)
        d = {k: (w[k] - self.w0[k]) / (self.scale + 0.01) for k in w}
        h = sum((d[k] * g[k]).sum() for k in w)
        self.v = self.betas**2 * self.v + h**2
        self.sigma = self.betas * self.sigma - h
        s = 0.05 / scipy.special.erfi(2**-0.5) * scipy.special.erfi(self.sigma / (np.sqrt(2 * self.v) + 0.01))
        self.scale = s.sum()
        return {k: self.w0[k] + max(self.scale, 0.0) * (d[k] + u[k]) for k in w}


class OwnOptimizer(Reference):
    """Muon of matrices, Nesterov AdamW of the rest."""

    def __init__(self, w0, opt):
        super().__init__(w0, opt)
        self.m = {k: np.zeros_like(x) for k, x in w0.items()}
        self.v = {k: np.zeros_like(x) for k, x in w0.items()}

    def step(self, w, g, t, draw):
        new = {}
        for k in w:
            b = 0.8 if w[k].ndim == 2 else 0.9
            self.m[k] = b * self.m[k] + (1 - b) * g[k]
            nesterov = b * self.m[k] / (1 - b ** (t + 2)) + (1 - b) * g[k] / (1 - b ** (t + 1))
            if w[k].ndim == 2:
                x = nesterov / (np.linalg.norm(nesterov) + 1e-8)
                for _ in range(4):
                    gram = x @ x.T
                    x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
                rows, columns = x.shape
                new[k] = w[k] - 0.03 * (np.sqrt(max(1, columns / rows)) * x + 0.2 * w[k])
            else:
                self.v[k] = 0.999 * self.v[k] + 0.001 * g[k] ** 2
                new[k] = w[k] - 0.03 * nesterov / (np.sqrt(self.v[k] / (1 - 0.999 ** (t + 1))) + 1e-8)
        return new


class CountRestart(Reference):
    def switch(self, w, draw):
        self.opt.t = 0
        return w


class CountRestartEvery(Reference):
    def step(self, w, g, t, draw):
        if t % 3 == 0:
            self.opt.t = 0
        return super().step(w, g, t, draw)


class MomentRestart(CountRestart):
    def switch(self, w, draw):
        for name in ("m", "v", "trace"):
            if hasattr(self.opt, name):
                setattr(self.opt, name, {})
        return super().switch(w, draw)


class Shrinking(Reference):
    """DASH: two batches are looked at after a switch."""

    left = 0

    def switch(self, w, draw):
        self.left, self.mean = 2, {k: np.zeros_like(x) for k, x in w.items()}
        return w

    def step(self, w, g, t, draw):
        if not self.left:
            return super().step(w, g, t, draw)
        self.left -= 1
        self.mean = {k: 0.4 * self.mean[k] + 0.6 * -g[k] for k in w}
        if self.left:
            return w
        new = dict(w)
        for k in ("actor/dense_0/kernel", "actor/output/kernel", "actor/dense_0/bias", *CONV):
            rows = 4 if w[k].ndim == 4 else len(w[k])  # places of a convolution, inputs
            flat_w, flat_g = (x[k].reshape(rows, -1) for x in (w, self.mean))
            for unit in range(flat_w.shape[1]):
                a, b = flat_w[:, unit], flat_g[:, unit]
                flat_w[:, unit] = a * max(0.2, a @ b / np.sqrt((a @ a) * (b @ b)))
            new[k] = flat_w.reshape(w[k].shape)
        return new


Shrink = methods.ShrinkAndPerturb
CASES: dict[str, tuple[Any, type, type]] = {
    "shrink_and_perturb l2i": (Shrink(shrink=0.1, perturb=0.04, variant="l2i"), L2iShrink, Adam),
    "shrink_and_perturb gaussian": (Shrink(shrink=0.1, perturb=0.04, variant="gaussian"), GaussianShrink, Adam),
    "shrink_and_perturb upgd": (Shrink(shrink=RATE * 0.3, perturb=RATE * 0.2, variant="upgd"), UpgdShrink, Sgd),
    "shrink_and_perturb ash_adams": (Shrink(shrink=0.4, perturb=0.3, variant="ash_adams"), BoundaryShrink, Adam),
    "weight_clipping": (methods.WeightClipping(kappa=0.5), Clipping, Adam),
    "normalize_and_project": (methods.NormalizeAndProject(period=2), Projection, Adam),
    "normalize_and_project layers": (methods.NormalizeAndProject(norms=False, output=False), BareProjection, Adam),
    "hare_tortoise": (methods.HareTortoise(mu=0.7, period=3), Tortoise, Adam),
    "trac": (methods.Trac(start=0.05, eps=0.01), Tracking, Adam),
    "muon": (methods.Muon(learning_rate=0.03, beta=0.8, weight_decay=0.2, iterations=4), OwnOptimizer, Adam),
    "adam_rel": (methods.AdamRel(), CountRestart, Adam),
    "adam_rel every": (methods.AdamRel(every=3), CountRestartEvery, Adam),
    "moment_reset": (methods.MomentReset(), MomentRestart, Adam),
    "moment_reset sgd": (methods.MomentReset(), MomentRestart, Sgd),
    "dash": (methods.Dash(floor=0.2, alpha=0.6, batches=2), Shrinking, Adam),
}
for label, fields, reference in (
    ("global", {}, Upgd),
    ("local", {"variant": "local"}, LocalUpgd),
    ("released", {"variant": "released"}, ReleasedUpgd),
    ("non-protecting", {"protecting": False}, NonProtectingUpgd),
):
    CASES[f"upgd {label}"] = (methods.UPGD(RATE * 0.2, RATE * 0.3, 0.8, **fields), reference, Sgd)
CASES["upgd of adam"] = (methods.UPGD(RATE * 0.2, RATE * 0.3, 0.8), AdamUpgd, Adam)

MODEL = Model(init_fn, *[None] * 3, (), (), roles=ROLES)
NAMES = {label.partition(" ")[0] for label in CASES} | {"plasticity_injection"}


class PlainSgd(Sgd):
    """The publication's optimiser of UPGD has no momentum."""

    transform = optax.sgd(RATE)


# The same rule with another part around it or in it.
SLOW = ("upgd released", "upgd of adam", "adam_rel every", "moment_reset sgd", "normalize_and_project layers")


@pytest.mark.parametrize("label", [pytest.param(x, marks=pytest.mark.slow) if x in SLOW else x for x in CASES])
def test_steps_equal_numpy(label: str) -> None:
    config, reference, inner = CASES[label]
    inner = PlainSgd if inner is Sgd and "moment" not in label else inner
    method = config.build(inner.transform, MODEL)
    params = random_tree(0)

    @jax.jit
    def update(params: Any, state: Any, grads: Any, key: jax.Array, clock: jax.Array, boundary: jax.Array) -> Any:
        functions = (lambda p, b: jnp.zeros(()), features_fn, features_fn, init_fn)
        args = MethodArgs(key, clock, jnp.zeros((1, 3)), jnp.zeros(()), {}, {}, *functions, boundary)
        updates, state = method.update(grads, state, params, **args._asdict())
        return optax.apply_updates(params, updates), state

    w, state = flat(params), method.init(params)
    opt = inner()
    mine = reference({k: v.copy() for k, v in w.items()}, opt)
    zeros = jax.tree.map(jnp.zeros_like, params)
    for t in range(STEPS):
        grads, key = random_tree(100 + t), jax.random.key(t)
        if config.needs_boundary and t in (SWITCH, STEPS - 1):
            own = jax.random.key(1000 + t)
            w = mine.switch(w, Draw(own))
            params, state = update(params, state, zeros, own, jnp.int32(t), jnp.asarray(True))
        w = mine.step(w, flat(grads), t, Draw(key))
        params, state = update(params, state, grads, key, jnp.int32(t), jnp.asarray(False))
        for leaf, (where, expected) in zip(jax.tree.leaves(params), w.items(), strict=True):
            assert leaf.dtype == jnp.float64
            np.testing.assert_allclose(leaf, expected, rtol=1e-7, atol=1e-9, err_msg=f"step {t}, {where}")
        if isinstance(opt, Adam) and not config.replaces_optimizer:
            is_adam = lambda node: isinstance(node, optax.ScaleByAdamState)  # noqa: E731
            (adam,) = [node for node in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(node)]
            assert adam.count == opt.t
            for got, expected in ((adam.mu, opt.m), (adam.nu, opt.v)):
                for k, moment in flat(got).items():
                    np.testing.assert_allclose(moment, expected.get(k, 0.0), rtol=1e-7, atol=1e-12, err_msg=k)
