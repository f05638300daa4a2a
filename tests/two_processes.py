"""One of two processes with one program over the devices of both: ``python -m tests.two_processes PORT INDEX``."""

from __future__ import annotations

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from plastax import curvature, sharding
from plastax.program import parallel
from plastax.runs.compiled import compiled
from tests import killing, programs

ARMS = {"only": {"lr": 0.1}}


def losses(batch: parallel.Batch) -> tuple[np.ndarray, str]:
    """Of two segments; and the text of the compiled program."""
    data = batch.place(batch.program.data)
    of = compiled(batch, killing.LENGTH, {})
    state, found = of.start(data), []
    for clock in (0, killing.LENGTH):
        state, record, *_ = of.run(state, data, clock)
        found.append(record.train["loss"])
    all_of = (*of.training, of.measuring.result()[0])
    return np.concatenate(found, axis=1), "".join(fn.as_text() for fn in all_of if fn is not None)


if __name__ == "__main__":
    jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
    both = parallel.batch(lambda v: killing.network(optax.adam(v["lr"])), ARMS, range(5), devices=0)
    got, text = losses(both)
    # The same on this process's own device.
    alone = parallel.over_seeds(killing.network(optax.adam(0.1)), 5)
    jitted, expected = programs.jitted(alone), []
    state = jitted.init(parallel.seed_keys(range(5)), ())
    for clock in (0, killing.LENGTH):
        state, record = jitted.segment(state, (), clock, killing.LENGTH)
        expected.append(np.asarray(record.train["loss"]))
    apart = np.abs(got - np.concatenate(expected, axis=1)).max() / np.abs(got).max()
    collectives = re.findall(r"all-reduce|all-gather|all-to-all|collective-permute", text)
    mesh = sharding.mesh()
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    w = np.random.default_rng(1).standard_normal((8, 6)).astype(np.float32)

    def nodes(w: jax.Array) -> np.ndarray:
        op = curvature.hessian(lambda w: jnp.mean(jnp.tanh(x @ w) ** 2), w)
        return np.asarray(curvature.spectrum(op, jax.random.key(0), order=6, probes=1).nodes)

    whole, cut = nodes(jnp.asarray(w)), nodes(sharding.shard_params(w, mesh))
    spectra = np.abs(whole - cut).max() / np.abs(whole).max()
    said = f"{len(jax.devices())} devices, {both.width} networks a call for {both.networks}"
    print(f"{said}, apart {0.0 if apart < 1e-5 else apart:.1e}, collectives {len(collectives)}")
    print(f"spectra apart {0.0 if spectra < 1e-5 else spectra:.1e}")
