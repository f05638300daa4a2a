"""References of the methods that add a term to the loss, or a step that depends on the weights alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from plastax import methods
from tests.methods.scheme import (
    NORMS,
    Flat,
    Reference,
    moved,
    numpy_features,
    numpy_mean_rank,
    random_tree,
    slope_of,
)


def coupled(w: Flat, g: Flat, strength: float) -> Flat:
    return {k: g[k] + (0.0 if k in NORMS else strength * w[k]) for k in w}


def rank_slope(w: Flat, x: np.ndarray) -> Flat:
    return slope_of(lambda w: numpy_mean_rank(w, x), w)


def length_of(w: Flat) -> float:
    return float(np.sqrt(sum(np.sum(v**2) for v in w.values())))


def ascent(w: Flat, x: np.ndarray, er_lr: float, max_step: float = np.inf) -> Flat:
    """A step of its own, no longer than ``max_step`` of the weights."""
    slope = rank_slope(w, x)
    step = min(er_lr, max_step * length_of(w) / length_of(slope))
    return {k: w[k] + step * slope[k] for k in w}


def reference_l2(w, g, w0, opt, t, xi, x):
    return moved(w, opt(coupled(w, g, 0.3)))


def reference_weight_decay(w, g, w0, opt, t, xi, x):
    return {k: new - (0.0 if k in NORMS else 0.07) * w[k] for k, new in moved(w, opt(g)).items()}


def reference_l2_init(w, g, w0, opt, t, xi, x):
    return moved(w, opt({k: g[k] + 2 * 0.3 * (w[k] - w0[k]) for k in w}))


def reference_effective_rank(w, g, w0, opt, t, xi, x):
    new = moved(w, opt(g))
    return ascent(new, x, 0.2) if t % 2 == 0 else new


def reference_short_steps(w, g, w0, opt, t, xi, x):
    new = moved(w, opt(g))
    assert 0.2 * length_of(rank_slope(new, x)) > 0.01 * length_of(new)  # or it would show nothing
    return ascent(new, x, 0.2, 0.01) if t % 2 == 0 else new


def reference_rank_in_the_loss(w, g, w0, opt, t, xi, x):
    slope = rank_slope(w, x)
    return moved(w, opt({k: g[k] - 0.2 * slope[k] for k in g} if t % 2 == 0 else g))


class RankOfRecentBatches:
    """At the end of every second step, of the last three batches."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def __call__(self, w, g, w0, opt, t, xi, x):
        self.seen = [*self.seen, x][-3:]
        new = moved(w, opt(g))
        return ascent(new, np.concatenate(self.seen), 0.2) if t % 2 == 1 else new


def reference_l2_er(w, g, w0, opt, t, xi, x):
    new = moved(w, opt(coupled(w, g, 0.3)))
    return ascent(new, x, 0.2) if t % 2 == 0 else new


class Resampled:
    """The initial parameters are drawn again at every step."""

    def __call__(self, w, g, w0, opt, t, xi, x):
        return moved(w, opt({k: g[k] + 2 * 0.3 * (w[k] - xi[k]) for k in w}))


def penalised(penalty: Callable[[Flat, Flat], float], strength: float) -> Reference:
    """The gradient gains that of ``strength * penalty(w, w0)``."""

    def reference(w, g, w0, opt, t, xi, x):
        slope = slope_of(lambda w: penalty(w, w0), w)
        return moved(w, opt({k: g[k] + strength * slope[k] for k in w}))

    return reference


def reference_huber(w, g, w0, opt, t, xi, x):
    return moved(w, opt({k: g[k] + 0.3 * np.clip(w[k] - w0[k], -0.02, 0.02) for k in w}))


def reference_l1(w, g, w0, opt, t, xi, x):
    return moved(w, opt({k: g[k] + 0.3 * np.sign(w[k] - w0[k]) for k in w}))


def reference_wasserstein(w, g, w0, opt, t, xi, x):
    g = {k: v.copy() for k, v in g.items()}
    for k in w:
        order = np.argsort(w[k], None)
        g[k].flat[order] += 0.3 * 2 * (w[k].flat[order] - np.sort(w0[k], None))
    return moved(w, opt(g))


def matrices(w: Flat, *, hidden: bool) -> dict[str, np.ndarray]:
    """Kernels as [inputs, units]."""
    kernels = {k: v.reshape(-1, v.shape[-1]) for k, v in w.items() if k.endswith("kernel")}
    return {k: v for k, v in kernels.items() if not (hidden and "output" in k)}


def parseval(w: Flat, w0: Flat) -> float:
    kernels = matrices(w, hidden=True).values()
    return sum(float(np.square(m.T @ m - 0.7 * np.eye(m.shape[1])).sum()) for m in kernels)


def isometry(w: Flat, w0: Flat) -> float:
    """All singular values at one, of either side's Gram matrix: the other has the same and zeros."""
    kernels = matrices(w, hidden=True).values()
    return sum(float(np.square(np.linalg.svd(m, compute_uv=False) ** 2 - 1).sum()) for m in kernels)


def reference_decoupled_isometry(w, g, w0, opt, t, xi, x):
    slope = slope_of(lambda w: isometry(w, w0), w)
    return {k: new - 0.01 * slope[k] for k, new in moved(w, opt(g)).items()}


def spectral(w: Flat, w0: Flat) -> float:
    """At an exponent of 3 and a target of 200, above all: lower ones draw the leading two together. Converged."""
    total = sum((np.linalg.svd(m, compute_uv=False)[0] ** 3 - 200) ** 2 for m in matrices(w, hidden=False).values())
    total += sum(np.linalg.norm(v) ** 3 for k, v in w.items() if k.endswith("bias"))
    return float(total + sum(np.square(v - 1).sum() for k, v in w.items() if k.endswith("scale")))


class SpectralAsIs:
    """One power iteration a kernel and step, from where the last one ended; the vectors' own movement has no part."""

    def __init__(self) -> None:
        start = methods.spectral_norm().init(random_tree(0)).vectors
        self.vectors = {k: np.array(v) for k, v in start.items()}

    def __call__(self, w, g, w0, opt, t, xi, x):
        g = {k: v.copy() for k, v in g.items()}
        for k, m in matrices(w, hidden=False).items():
            u = m @ self.vectors[k]
            u /= np.linalg.norm(u)
            v = m.T @ u
            sigma = np.linalg.norm(v)
            self.vectors[k] = v / sigma
            g[k] += 0.3 * (4 * (sigma**2 - 1) * sigma * np.outer(u, v / sigma)).reshape(w[k].shape)
        for k in w:
            g[k] += 0.3 * (2 * w[k] if k.endswith("bias") else 2 * (w[k] - 1) if k.endswith("scale") else 0)
        return moved(w, opt(g))


class LopJax(SpectralAsIs):
    """The gradient goes through the iterations, which start from the same vectors at every step."""

    def penalty(self, w: Flat, w0: Flat) -> float:
        total = 0.0
        for k, m in matrices(w, hidden=False).items():
            v = self.vectors[k]
            for _ in range(3):
                u = m @ v / np.linalg.norm(m @ v)
                v = m.T @ u / np.linalg.norm(m.T @ u)
            total += (u @ m @ v) ** 4 - 4 * (u @ m @ v) ** 2 + 4
        total += sum(np.square(v).sum() for k, v in w.items() if k.endswith("bias"))
        return float(total + sum(np.square(v - 1).sum() for k, v in w.items() if k.endswith("scale")))

    def __call__(self, w, g, w0, opt, t, xi, x):
        return penalised(self.penalty, 0.3)(w, g, w0, opt, t, xi, x)


class Churn:
    """Of the batch before the last one, by the last step."""

    def __init__(self) -> None:
        self.before: Flat = {}
        self.batches: list[np.ndarray] = []
        self.loss, self.churn, self.weight = 0.0, 0.0, 0.0

    def __call__(self, w, g, w0, opt, t, xi, x):
        if len(self.batches) == 2:
            reference = self.batches[0]
            old = numpy_features(self.before, reference)[-1]

            def churn(w: Flat) -> float:
                return float(np.square(numpy_features(w, reference)[-1] - old).sum() / 2 / len(old))

            self.loss = 0.9 * self.loss + 0.1 * np.mean(np.square(x))
            self.churn = 0.9 * self.churn + 0.1 * churn(w)
            self.weight = 0.9 * self.weight + 0.1
            c = max(0.05 * (self.loss / self.weight) / (self.churn / self.weight + 1e-8), 2.0)
            slope = slope_of(churn, w)
            g = {k: g[k] + c * slope[k] for k in w}
        self.batches, self.before = [*self.batches, x][-2:], w
        return moved(w, opt(g))


# By method.
CASES: dict[str, tuple[Any, Any]] = {
    "l2": (methods.L2(l2=0.3), reference_l2),
    "weight_decay": (methods.WeightDecay(decay=0.07), reference_weight_decay),
    "l2_init": (methods.L2Init(strength=0.3), reference_l2_init),
    "wasserstein_init": (methods.WassersteinInit(strength=0.3), reference_wasserstein),
    "spectral_norm": (methods.SpectralNorm(strength=0.3), SpectralAsIs),
    "parseval": (methods.Parseval(strength=0.1, scale=0.7), penalised(parseval, 0.1)),
    "isometry": (methods.Isometry(strength=0.1), penalised(isometry, 0.1)),
    "c_chain": (methods.CChain(target=0.05, least=2.0, decay=0.9), Churn),
    "effective_rank": (methods.EffectiveRank(er_lr=0.2, period=2, max_step=np.inf), reference_effective_rank),
    "l2_er": (methods.L2ER(er_lr=0.2, period=2, max_step=np.inf, l2=0.3), reference_l2_er),
}
# Static options.
VARIANTS: dict[str, tuple[Any, Any]] = {
    "l2_init by l1": (methods.L2Init(strength=0.3, variant="l1"), reference_l1),
    "l2_init by huber": (methods.L2Init(strength=0.3, variant="huber", delta=0.02), reference_huber),
    "l2_init resampled": (methods.L2Init(strength=0.3, variant="resampled"), Resampled),
    "spectral_norm converged": (
        methods.SpectralNorm(strength=0.05, target=200.0, exponent=3, iterations=300),
        penalised(spectral, 0.05),
    ),
    "spectral_norm by lop_jax": (
        methods.SpectralNorm(strength=0.3, target=2.0, iterations=3, variant="lop_jax"),
        LopJax,
    ),
    "isometry decoupled": (methods.Isometry(strength=0.01, form="decoupled"), reference_decoupled_isometry),
    "effective_rank in short steps": (methods.EffectiveRank(er_lr=0.2, period=2), reference_short_steps),
    "effective_rank in the loss": (
        methods.EffectiveRank(er_lr=0.2, period=2, form="loss"),
        reference_rank_in_the_loss,
    ),
    "effective_rank of recent batches": (
        methods.EffectiveRank(er_lr=0.2, period=2, window=3, max_step=np.inf),
        RankOfRecentBatches,
    ),
}
