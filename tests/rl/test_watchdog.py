"""Nothing hangs: many vmapped initialisations and probed updates, in a process that is killed if it does.

A batched LAPACK call under `vmap` can deadlock XLA on a CPU with few cores (see `plastax.linalg`), so that a test in
this process would never fail: it would only never end.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

LIMIT = 140.0

SCRIPT = """
import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_compilation_cache_dir", {cache!r})
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

from tests import programs
from tests.rl.toy_environments import matching_reward

from plastax.methods import METHODS
from plastax.models import ActorCritic
from plastax.program.parallel import over_seeds, seed_keys
from plastax.probes import FeatureProbe, Hessian, KroneckerSpectrum
from plastax.rl import ppo

# Six orthogonal matrices of 64 rows, where the plain form hangs.
model = ActorCritic((64, 64)).build((4,), 2, continuous=False)
init = jax.jit(jax.vmap(model.init))
keys = jax.random.split(jax.random.key(0), (1000, 8))
for k in keys:
    params = init(k)
jax.block_until_ready(params)
print("initialised", init._cache_size(), flush=True)

model = ActorCritic((16,)).build((1,), 2, continuous=False)
config = ppo.PPO(num_envs=4, num_steps=16, epochs=1, minibatches=2)
probes = [p.build(model) for p in (FeatureProbe(), Hessian(order=6, probes=1, examples=32), KroneckerSpectrum())]
program = over_seeds(
    ppo.program(
        config, matching_reward().stream, model, METHODS["backprop"].build(config.optimizer()), probes,
        updates_per_task=50, due=lambda done, ending: ending,
    ),
    4,
)
state = jax.jit(program.init)(seed_keys(range(4)), program.data)
# LAPACK is called by the same loops whatever the compiler's effort, which is most of the test's time.
jitted = programs.jitted(program, {{"xla_backend_optimization_level": 0}})
for update in range(200):
    state, record = jitted.segment(state, program.data, update, 1)
    for name in ("features/effective_rank", "hessian/nodes", "kronecker/rank"):
        assert np.isfinite(np.asarray(record.probe[name])[:, 1]).all(), name
print("updated", jitted.train._cache_size(), flush=True)
"""


@pytest.mark.slow  # what could hang takes its time
@pytest.mark.timeout(2 * LIMIT)
def test_many_initialisations_and_probed_updates_end(pytestconfig):
    root = pathlib.Path(pytestconfig.rootpath)
    script = SCRIPT.format(cache=str(root / ".pytest_cache" / "xla"))
    environment = {**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    # The deadlock needs the pool to have two workers or more, as on every machine that runs this; do not widen it here.
    environment.pop("NPROC", None)
    try:
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"still running after {LIMIT} s; got to: {error.stdout}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["initialised", "1", "updated", "1"]
