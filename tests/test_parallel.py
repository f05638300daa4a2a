"""Many networks in one program: values of settings and devices against one network's own program."""

from __future__ import annotations

import functools
import os
import pathlib
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plastax import sharding
from plastax.errors import ConfigError
from plastax.methods import L2ER, Backprop
from plastax.models import MLP
from plastax.probes import PROBES
from plastax.program import parallel, supervised
from plastax.program.parallel import Batch
from plastax.program.supervised import Training
from plastax.runs.checkpoint import to_host
from plastax.streams import Permuted
from plastax.types import Program
from tests import programs
from tests.streams.tiny import CLASSES, DATASET, SHAPE

# These tests compile much and compute little.
QUICK = {"xla_backend_optimization_level": 0}
STREAM = Permuted(examples=20).build(DATASET)
MODEL = MLP((6,)).build(SHAPE, CLASSES)
SEEDS = (4, 7, 9, 11, 13, 15, 18)
FIVE = SEEDS[:5]
ARMS = {"weak": {"lr": 0.1, "er_lr": 1e-3, "l2": 0.0}, "strong": {"lr": 0.2, "er_lr": 3e-3, "l2": 0.1}}
COLLECTIVE = re.compile(r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast")


def make(values: Mapping[str, Any]) -> Program:
    """L2-ER with probes: everything that is hard to batch, decompositions and branches."""
    config = Training(learning_rate=values["lr"], batch_size=5, updates=2, evaluation_examples=15, probe_examples=8)
    method = L2ER(er_lr=values["er_lr"], period=1, l2=values["l2"]).build(config.transformation(), MODEL)
    return supervised.program(config, STREAM, MODEL, method, [PROBES["weights"].build(MODEL)])


@functools.cache
def trained(
    swept: bool, devices: int, seeds: tuple[int, ...] = SEEDS
) -> tuple[Batch, dict[str, np.ndarray], dict[str, np.ndarray], str]:
    """The batch, two tasks' records joined, the last state, and the text of the compiled program."""
    if swept:
        batch = parallel.batch(make, ARMS, seeds, devices=devices)
    else:
        batch = parallel.batch(lambda _: make(ARMS["strong"]), {"strong": {}}, seeds, devices=devices)
    data = batch.place(batch.program.data)
    jitted = programs.jitted(batch.program, QUICK)
    state, records = jitted.init(batch.starts[0], data), []
    for clock in (0, 2):
        state, record = jitted.segment(state, data, clock, 2)
        records.append(batch.real({**record.train, **record.probe}))
    joined = {name: np.concatenate([r[name] for r in records], axis=1) for name in records[0]}
    texts = [
        jitted.train.lower(state, data, jnp.int32(0), 2).compile().as_text(),
        jitted.measure.lower(batch.program.view(state), data, jnp.int32(0)).compile().as_text(),
    ]
    return batch, joined, batch.real(to_host(state)), "".join(texts)


def close(got: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert len(expected) > 5
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=2e-4, atol=2e-5, err_msg=name)


def test_an_arm_of_a_sweep_is_the_run_of_its_settings():
    """On one device beside others, and alone with fewer seeds than there are devices: each then has a device."""
    batch, records, state, _ = trained(True, 1)
    alone, expected, plain, text = trained(False, 8, FIVE)
    assert (alone.networks, alone.width, alone.mesh.size) == (5, 5, 5)
    assert not COLLECTIVE.findall(text)
    close({name: value[:5] for name, value in batch.split(records)["strong"].items()}, expected)
    first = {name: value[:5] for name, value in batch.split(state)["strong"].items()}
    close(first, {f"network.{name}": value for name, value in plain.items()})
    # The same seeds are the same networks in all arms, and only the settings tell them apart.
    weak, strong = (batch.split(state)[arm] for arm in ARMS)
    np.testing.assert_array_equal(weak["network.key"], strong["network.key"])
    np.testing.assert_array_equal(strong["settings.er_lr"], np.float32([3e-3] * 7))
    first = [batch.split(records)[arm]["evaluation/train_loss"][:, 0] for arm in ARMS]
    np.testing.assert_allclose(*first, rtol=1e-6)
    assert not np.allclose(batch.split(records)["weak"]["loss"][:5, -1], expected["loss"][:, -1], rtol=1e-2)


def test_a_call_of_one_network_is_that_networks_own_program():
    """Bit for bit, and its products have no axis of networks, over which CPUs take longer."""
    own = make(ARMS["strong"])
    key = parallel.seed_keys([4])

    def run(program: Program, key: Any) -> tuple[Any, str]:
        train = programs.jitted(program, QUICK).train
        state = jax.jit(program.init)(key, program.data)
        text = train.lower(state, program.data, jnp.int32(0), 2).as_text()
        return train(state, program.data, jnp.int32(0), 2), text

    (expected, plain), (got, alone) = run(own, key[0]), run(parallel.over_seeds(own, 1), key)
    np.testing.assert_equal(to_host(jax.tree.map(lambda x: x[0], got)), to_host(expected))
    pair = run(parallel.over_seeds(own, 2), parallel.seed_keys([4, 7]))[1]
    batched = [text.count("batching_dims") for text in (plain, alone, pair)]
    assert batched[0] == batched[1] < batched[2]


def test_devices_change_nothing_but_rounding():
    """Two arms of seven seeds on eight devices: two of the sixteen networks are copies, and none of the results."""
    one, eight = trained(True, 1), trained(True, 8)
    assert (one[0].width, eight[0].width, eight[0].networks, eight[0].mesh.size) == (14, 16, 14, 8)
    for got, expected in zip(eight[1:3], one[1:3]):
        assert {len(value) for value in got.values()} == {14}
        close(got, expected)


def test_nothing_crosses_devices():
    assert not COLLECTIVE.findall(trained(True, 8)[3])
    # What would be found, were there something.
    mesh = trained(True, 8)[0].mesh
    total = jax.shard_map(
        lambda x: jax.lax.psum(x, parallel.AXIS), mesh=mesh, in_specs=jax.P(parallel.AXIS), out_specs=jax.P()
    )
    text = jax.jit(total).lower(jnp.zeros(8)).compile().as_text()
    assert COLLECTIVE.findall(text)


@functools.cache
def wide() -> Program:
    """A network whose layers four devices divide, trained by Adam."""
    config = Training(optimizer="adam", batch_size=5, updates=2, evaluation_examples=15, probe_examples=8)
    model = MLP((8, 16)).build(SHAPE, CLASSES)
    return supervised.program(config, STREAM, model, Backprop().build(config.transformation(), model))


def test_parameters_are_cut_over_a_second_axis():
    """Two networks at a time, each over four devices: the numbers of one device, and states that stay cut."""
    mesh = jax.make_mesh((2, 4), (parallel.AXIS, sharding.AXIS), (jax.sharding.AxisType.Auto,) * 2)
    one = programs.jitted(parallel.over_seeds(wide(), 2), QUICK)
    cut = programs.jitted(
        parallel.over_devices(parallel.over_seeds(parallel.over_parameters(wide(), mesh), 1), mesh), QUICK
    )
    ends = []
    for program in (one, cut):
        state = program.init(parallel.seed_keys((4, 7)), STREAM.data)
        for clock in (0, 2):
            state, record = program.segment(state, STREAM.data, clock, 2)
        ends.append((state, record))
    (state, record), (found, again) = ends
    for a, b in zip(jax.tree.leaves((state.params, record)), jax.tree.leaves((found.params, again)), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)
    kernel = found.params["dense_0"]["kernel"]
    assert kernel.sharding.spec == jax.P(parallel.AXIS, sharding.AXIS)
    assert kernel.addressable_shards[0].data.size == kernel.size // 8


def test_every_call_trains_equally_many_networks_on_every_device():
    """Two arms of three seeds: four networks a call on two devices, the last two of which are copies."""
    batch = parallel.batch(make, ARMS, SEEDS[:3], chunk=2, devices=2)
    assert (batch.networks, batch.width, batch.calls, batch.mesh.size) == (6, 4, 2, 2)
    l2 = [start.settings["l2"] for start in batch.starts]
    np.testing.assert_array_equal(l2, np.float32([[0, 0, 0, 0.1], [0.1, 0.1, 0, 0]]))
    leaf = np.arange(6.0)
    parts = batch.spread({"x": leaf})
    np.testing.assert_array_equal([part["x"] for part in parts], [[0, 1, 2, 3], [4, 5, 0, 1]])
    np.testing.assert_array_equal(batch.real(*parts)["x"], leaf)
    assert {arm: list(part["x"]) for arm, part in batch.split({"x": leaf}).items()} == {
        "weak": [0, 1, 2],
        "strong": [3, 4, 5],
    }
    # No device and no call has copies alone.
    few = parallel.batch(make, {"a": ARMS["weak"]}, SEEDS[:3], chunk=2, devices=0)
    assert (few.width, few.calls, few.mesh.size) == (4, 1, 2)
    assert parallel.batch(make, {"a": ARMS["weak"]}, SEEDS[:2], chunk=2, devices=0).mesh is None


@pytest.mark.parametrize(
    ("options", "message"),
    [({"devices": 99}, "devices: 99 .* 0 .all. to 8"), ({"chunk": -1}, "seed_chunk: -1 .* 0 .all at once. or more")],
)
def test_refusals(options, message):
    with pytest.raises(ConfigError, match=message):
        parallel.batch(make, ARMS, SEEDS, **options)


@pytest.mark.slow  # starts two processes
def test_one_program_over_the_devices_of_two_processes():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.two_processes", str(port), str(i)],
            cwd=pathlib.Path(__file__).parent.parent, env=environment, stdout=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    printed = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    for text in printed:
        assert "2 devices, 6 networks a call for 5, apart 0.0e+00, collectives 0" in text
        assert "spectra apart 0.0e+00" in text
