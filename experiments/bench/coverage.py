"""Are the error bars of `plastax.curvature.spectrum` honest, and how wide are they? Measured against dense Hessians.

Networks at initialisation, trained, and collapsed (over-trained; most units dead), small enough for their Hessian's
eigenvalues in double precision. For every threshold, order and number of probes: the exact rank, the mean, standard
deviation and mean standard error of independent estimates in single precision, and the share of them within one and two
standard errors. A second table has the relative standard errors: how many probes and steps does one need?

    python -m experiments.bench.coverage --networks trained dead --repetitions 400
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.flatten_util import ravel_pytree
from rich.console import Console

from experiments.bench._bars import table
from plastax import curvature
from plastax.curvature import Spectrum


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    networks: tuple[str, ...] = ("init", "trained", "overtrained", "dead")
    """Of `STATES`."""
    widths: tuple[int, ...] = (20, 24, 16, 5)
    """Inputs, hidden layers, outputs. (64, 32, 24, 10) has 3,122 parameters; the dense reference then takes minutes."""
    orders: tuple[int, ...] = (24, 64)
    """Lanczos steps."""
    probes: tuple[int, ...] = (1, 2, 4, 8)
    """Probe vectors."""
    eps: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
    """Thresholds in units of the largest eigenvalue."""
    repetitions: int = 200
    """Independent estimates."""
    out: Path | None = None
    """Where to write the numbers as JSON."""


class State(NamedTuple):
    """How to make a network: share of dead hidden units at the start, and full-batch steps of Adam."""

    dead: float
    steps: int


STATES = {
    "init": State(0.0, 0),
    "trained": State(0.0, 60),
    "overtrained": State(0.0, 2000),
    "dead": State(0.8, 0),
    "dead, trained": State(0.8, 300),
}
Params = list[tuple[Any, Any]]


def logits(params: Params, x: Any) -> Any:
    """Outputs ``[B, C]`` of a ReLU network."""
    *hidden, (w, b) = params
    for v, c in hidden:
        x = jax.nn.relu(x @ v + c[None, :])
    return x @ w + b[None, :]


def loss_fn(params: Params, batch: Any) -> Any:
    """Mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, batch[0]), batch[1]).mean()


def fresh(widths: tuple[int, ...], dead: float, seed: int) -> Params:
    """He's initialisation with this share of dead units in every hidden layer, double precision."""
    rng, hidden = np.random.default_rng(seed), len(widths) - 2
    return [
        (np.sqrt(2 / a) * rng.standard_normal((a, b)), np.where((np.arange(b) < dead * b) & (i < hidden), -30.0, 0.0))
        for i, (a, b) in enumerate(itertools.pairwise(widths))
    ]


def network(state: State, widths: tuple[int, ...], examples: int = 256) -> tuple[Params, Any, np.ndarray]:
    """A network, its batch (the labels are another network's), and its Hessian's eigenvalues ``[P]``, in double."""
    x = np.random.default_rng(1).standard_normal((examples, widths[0]))
    y = np.argmax(np.asarray(logits(fresh(widths, 0.0, 7), x)), axis=1)
    with jax.enable_x64(True):
        params, batch = fresh(widths, state.dead, 0), (jnp.asarray(x), jnp.asarray(y))
        optimiser = optax.adam(1e-2)

        def step(carry: Any, _: None) -> Any:
            params, moments = carry
            updates, moments = optimiser.update(jax.grad(loss_fn)(params, batch), moments)
            return (optax.apply_updates(params, updates), moments), None

        @jax.jit
        def train(params: Params) -> Any:
            return jax.lax.scan(step, (params, optimiser.init(params)), None, state.steps)[0][0]

        trained = train(jax.tree.map(jnp.asarray, params))
        flat, unravel = ravel_pytree(trained)
        _, product = jax.linearize(jax.grad(lambda f: loss_fn(unravel(f), batch)), flat)
        hessian = jax.jit(lambda: jax.lax.map(product, jnp.eye(flat.size), batch_size=64))()
        return jax.tree.map(np.asarray, (trained, batch, np.linalg.eigvalsh(hessian)))


def functionals(s: Spectrum, eps: Any) -> dict[str, curvature.Estimate]:
    """What is judged: `rank` has the shape of ``eps``, the others are scalars."""
    return {
        "rank": s.rank(eps),
        "effective rank": s.effective_rank(),
        "trace": s.trace(),
        "Frobenius norm": s.frobenius(),
        "stable rank": s.stable_rank(),
        "negative mass": s.negative_mass(),
    }


def exact(values: np.ndarray, eps: np.ndarray) -> dict[str, Any]:
    """The same of known eigenvalues ``[P]``."""
    size = np.abs(values)
    p = size[size > 0] / size.sum()
    return {
        "rank": (size[None] > eps[:, None]).sum(1),
        "effective rank": np.exp(-(p * np.log(p)).sum()),
        "trace": values.sum(),
        "Frobenius norm": np.sqrt((values**2).sum()),
        "stable rank": (values**2).sum() / size.max() ** 2,
        "negative mass": -values[values < 0].sum() / size.sum(),
    }


@functools.partial(jax.jit, static_argnames=("order", "count"))
def single_probes(params: Params, batch: Any, order: int, count: int) -> Spectrum:
    """``count`` independent spectra of one probe each, along a leading axis."""
    op = curvature.hessian(loss_fn, params, data=batch)
    keys = jax.random.split(jax.random.key(0), count)
    return jax.lax.map(lambda key: curvature.spectrum(op, key, order, 1), keys)


@jax.jit
def estimates(one: Spectrum, groups: Any, eps: Any) -> dict[str, curvature.Estimate]:
    """Estimates of the spectra that have the probes ``groups`` ``[repetitions, R]`` of ``one``."""

    def merge(index: Any) -> Spectrum:
        rows = (x[index, 0] for x in (one.nodes, one.weights, one.residuals, one.breakdowns, one.leftovers))
        nodes, weights, residuals, breakdowns, leftovers = rows
        return one._replace(
            nodes=nodes, weights=weights, residuals=residuals, breakdowns=breakdowns, leftovers=leftovers,
            dim=jnp.asarray(one.dim)[0], complete=one.complete[0],
        )  # fmt: skip

    return jax.vmap(lambda index: functionals(merge(index), eps))(groups)


def judge(value: np.ndarray, error: np.ndarray, truth: float) -> dict[str, float]:
    """Statistics of estimates ``[repetitions]``; distances of 1e-4 of the truth are rounding."""
    distance = np.abs(value - truth) - 1e-4 * abs(truth)
    return {
        "exact": float(truth),
        "mean": float(value.mean()),
        "sd": float(value.std()),
        "mean_se": float(error.mean()),
        "within_1": float((distance <= error).mean()),
        "within_2": float((distance <= 2 * error).mean()),
        "counted": float((error <= 1e-6 * abs(truth)).mean()),
    }


def measure(config: Config, name: str) -> list[dict[str, Any]]:
    """Rows of one network: every functional, order and number of probes."""
    params, batch, values = network(STATES[name], config.widths)
    # Single precision, indices included.
    single = jax.tree.map(lambda a: a.astype(a.dtype.kind + "4"), (params, batch))
    eps = np.asarray(config.eps) * np.abs(values).max()
    truths, rows = exact(values, eps), []
    for order in config.orders:
        one = single_probes(*single, order, config.repetitions * max(config.probes))
        for probes in config.probes:
            groups = np.arange(config.repetitions * probes).reshape(config.repetitions, probes).astype(np.int32)
            found = jax.tree.map(np.asarray, estimates(one, groups, jnp.asarray(eps, jnp.float32)))
            where = {"network": name, "order": order, "probes": probes}
            for what, (value, error) in found.items():
                if what != "rank":
                    rows.append({**where, "what": what, **judge(value, error, truths[what])})
                    continue
                for i, threshold in enumerate(config.eps):
                    row = judge(value[:, i], error[:, i], truths[what][i])
                    rows.append({**where, "what": f"rank {threshold:g}", **row})
    return rows


def main(config: Config) -> None:
    """Measures and prints the tables."""
    rows = [row for name in config.networks for row in measure(config, name)]
    full = [
        {name: str(row[name]) for name in ("network", "what", "order", "probes")}
        | {name: f"{row[name]:.4g}" for name in ("exact", "mean", "sd", "mean_se")}
        | {k: "counted" if row["counted"] == row[k] == 1 else f"{row[k]:.1%}" for k in ("within_1", "within_2")}
        for row in sorted(rows, key=lambda r: (r["network"], r["what"]))
    ]
    guide = []
    columns = list(itertools.product(config.orders, config.probes))
    by_cell = {(r["network"], r["what"], r["order"], r["probes"]): r for r in rows}
    for name, what in dict.fromkeys((r["network"], r["what"]) for r in rows):
        cells = [by_cell[name, what, order, probes] for order, probes in columns]
        truth = cells[0]["exact"]
        spread = [np.hypot(c["sd"], c["mean"] - truth) for c in cells]
        scale = 100 / max(abs(truth), 1e-30)
        texts = (f"{scale * c['mean_se']:.2g} ({scale * e:.2g})" for c, e in zip(cells, spread))
        heads = (f"{order} x {probes}" for order, probes in columns)
        guide.append({"network": name, "what": what, "exact": f"{truth:.4g}", **dict(zip(heads, texts))})
    console = Console(width=max(Console().width, 160))
    title = f"error bars, {config.repetitions} repetitions, eps in units of the largest eigenvalue"
    console.print(table(title, full, left=2))
    console.print(table("relative standard errors (root mean square error in brackets), per cent", guide, left=2))
    if config.out:
        config.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Config))
