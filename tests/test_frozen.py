"""A seed whose loss is not finite: frozen where it was, marked in the record, named in the table and on the console."""

from __future__ import annotations

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from plastax import report
from plastax.program import parallel
from plastax.runs import checkpoint
from plastax.runs.checkpoint import to_host
from plastax.runs.plan import Saving
from plastax.tracking import ConsoleSink
from tests import killing, programs

AT = 5  # the second update of the second task


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """The same study, once with a seed that breaks down in its sixth update: directories, and what was printed."""
    folder, printed = tmp_path_factory.mktemp("frozen"), io.StringIO()
    sink = ConsoleSink(Console(file=printed, width=200))
    killing.study(folder / "sound", saving=Saving(0, 60.0))
    killing.study(folder / "broken", (sink,), saving=Saving(0, 60.0), nan_at=AT)
    return folder / "sound", folder / "broken", printed.getvalue()


def test_it_is_frozen_before_the_update_that_broke_it(studies):
    sound, broken, _ = studies
    final = {}
    for directory in (sound, broken):
        like = jax.eval_shape(killing.program(killing.OPTIMIZERS["adam"]).init, parallel.seed_keys(range(2)), ())
        restored = checkpoint.restore(directory / "checkpoints" / "adam", killing.config(), like)
        assert restored is not None
        final[directory] = restored.leaves
    np.testing.assert_array_equal(final[broken]["alive"], [True, False])
    for name, leaf in final[broken].items():
        np.testing.assert_array_equal(leaf[0], final[sound][name][0], err_msg=name)
    program = killing.program(killing.OPTIMIZERS["adam"])
    state = program.init(parallel.seed_keys(range(2)), ())
    jitted = programs.jitted(program)
    for clock, length in ((0, 4), (4, 1)):
        state, _ = jitted.segment(state, (), clock, length)
    for name, leaf in to_host(state._replace(alive=jnp.array([True, False]))).items():
        np.testing.assert_array_equal(leaf[1], final[broken][name][1], err_msg=name)


def test_the_record_says_from_when_on(studies):
    sound, broken = (report.read(directory) for directory in studies[:2])
    for name in sound:
        if not name.startswith("host/"):
            np.testing.assert_array_equal(sound[name].sel(seed=0), broken[name].sel(seed=0), err_msg=name)
            early = {"update": slice(0, AT)} if "update" in sound[name].dims else {"task": 0}
            np.testing.assert_array_equal(sound[name].isel(early), broken[name].isel(early), err_msg=name)
    loss, alive = (broken[f"train/{name}"].sel(seed=1) for name in ("loss", "alive"))
    assert np.isnan(loss.isel(update=slice(AT, None))).all()
    np.testing.assert_array_equal(alive, np.arange(alive.sizes["update"]) < AT + np.zeros((2, 1)))
    assert np.isnan(broken["probe/kernel/norm"].sel(seed=1, task=[2])).all()


def test_a_checkpoint_follows_at_once(studies):
    """It holds what the seed was before it broke down; the one at the end is made anyway."""
    found = sorted(int(path.name) for path in (studies[1] / "checkpoints" / "adam").glob("[0-9]*"))
    assert found == [AT // killing.LENGTH + 1, killing.PLAN.segments]


def test_console_and_table_name_it(studies):
    _, broken, printed = studies
    # Of two methods.
    assert printed.count(f"seed 1 is frozen: its loss was not finite in update {AT}, in task 1 (tasks") == 2
    out = io.StringIO()
    report.print_table(broken, Console(file=out, width=160))
    assert "frozen seeds" in out.getvalue()
    assert "adam: seed 1 since task 1" in " ".join(out.getvalue().split())
    out = io.StringIO()
    report.print_table(studies[0], Console(file=out, width=160))
    assert "frozen" not in out.getvalue()
