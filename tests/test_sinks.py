"""Sinks in trouble change no run; the terminal."""

from __future__ import annotations

import io
import logging
import pathlib
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from plastax.program import parallel
from plastax.records.layout import read_segment
from plastax.runs import checkpoint, loop
from plastax.runs.plan import Plan
from plastax.tracking import Background, ConsoleSink, Guarded, WandbSink, reduce_segment
from plastax.types import Program
from tests import programs
from tests.tracked import (
    CONFIG,
    SUPERVISED,
    TASKS,
    segment,
    supervised_segment,
)


def tiny_program() -> Program:
    """Gradient descent with noise on a parabola: a state that any disturbance would change."""

    def step(state, _):
        key, x = state
        key, draw = jax.random.split(key)
        x = x - 0.1 * x + 0.01 * jax.random.normal(draw, x.shape)
        return (key, x), (x**2).sum()

    def segment(state, data, clock, length):
        state, loss = jax.lax.scan(step, state, length=length)
        return state, {"loss": loss}

    return programs.simple(segment, lambda key, data: (key, jnp.ones(3)))


class Slow:
    """A W&B that takes its time, for ever if need be."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        time.sleep(self.seconds)
        raise ConnectionError("no answer")


class FailingRun:
    """A W&B run that was opened and then fails at whatever it is asked, slowly."""

    def __getattr__(self, name: str) -> Any:
        return Slow(0.05)


@pytest.mark.parametrize("how", ["raises", "hangs", "fails later"])
def test_wandb_in_trouble_changes_no_trained_parameter(
    how: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    def trained(name: str, sinks: list[Any]) -> tuple[dict[str, np.ndarray], float]:
        started = time.monotonic()
        batch = parallel.batch(lambda _: tiny_program(), {"sgd": {}}, range(2))
        settings = {"methods": ["sgd"], "seeds": 2, "tasks": 3, "updates_per_task": 4}
        config = {"experiment": "e", "run_id": name, "hash": "h", "settings": settings}
        loop.study(tmp_path / name, config, [batch], Plan(3, 4, 4, 1), sinks)
        seconds = time.monotonic() - started
        like = batch.program.init(batch.starts[0], ())
        restored = checkpoint.restore(tmp_path / name / "checkpoints" / "sgd", config, like)
        assert restored is not None
        leaves = restored.leaves
        losses = [read_segment(path).train["loss"] for path in sorted((tmp_path / name).glob("records/sgd/*.npz"))]
        return {**leaves, "loss": np.stack(losses)}, seconds

    alone, _ = trained("alone", [])
    opened = {"raises": Slow(0.0), "hangs": Slow(60.0), "fails later": lambda **_: FailingRun()}[how]
    monkeypatch.setattr(wandb, "init", opened)
    with caplog.at_level(logging.WARNING):
        watched, seconds = trained("watched", [Background(WandbSink("offline"), patience=0.2)])
    assert alone.keys() == watched.keys()
    for name, value in alone.items():
        np.testing.assert_array_equal(value, watched[name], err_msg=name)
    assert len(alone["loss"]) == 3
    assert seconds < 30.0
    assert [record.message.count("continuing without it") for record in caplog.records if "Sink" in record.message] == [
        1
    ]


def test_a_full_queue_leaves_out_and_says_so(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    go, logged = threading.Event(), []

    class Blocked(Failing):
        def log(self, metrics: Mapping[str, Any], step: int) -> None:
            go.wait(30)
            logged.append(step)

    sink = Background(Blocked("never"), capacity=4)
    sink.start(CONFIG, tmp_path, "l2_er")
    with caplog.at_level(logging.WARNING):
        for step in range(50):
            sink.log({"x": 1.0}, step)
    go.set()
    while len(logged) < 3:
        time.sleep(0.01)
    sink.finish()
    assert logged == sorted(logged)
    assert 3 <= len(logged) <= 6
    assert [record.message for record in caplog.records] == [
        "Blocked is too slow: it lacks some tasks, the records lack none"
    ]


class Failing:
    """A sink that raises in one of its methods."""

    def __init__(self, where: str):
        self.where = where
        self.calls: list[str] = []

    def _note(self, name: str) -> None:
        self.calls.append(name)
        if name == self.where:
            raise ConnectionError("the network is gone")

    def start(self, config: Mapping[str, Any], directory: Any, method: str) -> None:
        self._note("start")

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        self._note("log")

    def finish(self) -> None:
        self._note("finish")


@pytest.mark.parametrize(
    ("where", "calls"),
    [("start", ["start"]), ("log", ["start", "log"]), ("finish", ["start", "log", "log", "finish"])],
)
def test_failing_sink_is_dropped_with_one_warning(
    where: str, calls: list[str], tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Failing(where)
    guarded = Guarded(sink)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            guarded.start(CONFIG, tmp_path, "l2_er")
            guarded.log({"x": 1.0}, 0)
            guarded.log({"x": 1.0}, 1)
            guarded.finish()
    assert sink.calls == calls
    assert len(caplog.records) == 1
    assert "the network is gone" in caplog.text


def test_wandb_that_cannot_write_does_not_stop(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    def broken(*args: Any, **kwargs: Any) -> None:
        raise wandb.Error("no space left on device")

    monkeypatch.setattr(wandb, "init", broken)
    guarded = Guarded(WandbSink("offline"))
    guarded.start(CONFIG, tmp_path, "l2_er")
    guarded.log({"x": 1.0}, 0)
    guarded.finish()
    assert "no space left" in caplog.text


def test_interrupt_is_not_swallowed(tmp_path: pathlib.Path) -> None:
    class Interrupted(Failing):
        def _note(self, name: str) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Guarded(Interrupted("start")).start(CONFIG, tmp_path, "l2_er")


def test_console_prints_lines_into_a_file(tmp_path: pathlib.Path) -> None:
    console = rich.console.Console(file=io.StringIO(), width=60)
    sink = ConsoleSink(console)
    sink.start(CONFIG, tmp_path, "l2_er")
    for task in range(TASKS):
        sink.log(reduce_segment(segment(task), CONFIG), task)
    sink.finish()
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 1 + TASKS
    assert lines[0] == "l2_er: compiled in 7.5 s"
    assert lines[2].startswith("l2_er: task 2/3  5,000 steps/s  0:00:02 left  episode return, mean over updates ")
    assert lines[3].startswith("l2_er: task 3/3  5,000 steps/s  0:00:00 left")


@pytest.mark.parametrize(
    ("regression", "first", "second"),
    [
        (False, "online accuracy 0.5", "online accuracy 0.6  final training accuracy 0.75"),
        (True, "online loss 0.25", "online loss 0.25"),
    ],
)
def test_console_shows_the_current_score(tmp_path: pathlib.Path, regression: bool, first: str, second: str) -> None:
    console = rich.console.Console(file=io.StringIO(), width=60)
    sink = ConsoleSink(console)
    sink.start(SUPERVISED, tmp_path, "l2_er")
    for part in range(2):
        sink.log(reduce_segment(supervised_segment(part, regression), SUPERVISED), part // 2)
    sink.finish()
    notice, *lines = console.file.getvalue().splitlines()
    assert notice.startswith("l2_er: SYNTHETIC DATA")
    assert lines[0] == f"l2_er: task 1/3  5,000 examples/s  0:00:04 left  {first}  (mean of 4 seeds)"
    assert lines[1] == f"l2_er: task 1/3  5,000 examples/s  0:00:02 left  {second}  (mean of 4 seeds)"


def test_arms_trained_together_share_a_line_and_keep_their_numbers(tmp_path: pathlib.Path) -> None:
    console = rich.console.Console(file=io.StringIO(), width=60)
    sink = Guarded(ConsoleSink(console))
    arms = {name: sink.fork() for name in ("l2@l2=0", "l2@l2=0.1", "l2@l2=1")}
    for name, arm in arms.items():
        arm.start(SUPERVISED, tmp_path, name)
    for k, arm in enumerate(arms.values()):
        metrics = reduce_segment(supervised_segment(0), SUPERVISED) | {"host/compile_seconds": 2.5}
        metrics |= {"task/accuracy": metrics["task/accuracy"] + 0.1 * k, "task/alive": np.array([1.0, 1.0 - k / 4])}
        arm.log(metrics, 0)
    for arm in arms.values():
        arm.finish()
    notice, second, third, compiled, line = console.file.getvalue().splitlines()
    assert notice.startswith("l2@l2=0: SYNTHETIC DATA")
    assert second.startswith("l2@l2=0.1: seed 3 is frozen")
    assert third.startswith("l2@l2=1: seed 3 is frozen")
    assert compiled == "l2@l2=0 and 2 more: compiled in 7.5 s"
    assert line == (
        "l2@l2=0 and 2 more: task 1/3  5,000 examples/s  0:00:12 left  online accuracy 0.5 to 0.7  "
        "(means of 3 arms x 4 seeds)"
    )


def test_the_line_says_how_many_seeds_its_mean_is_of(tmp_path: pathlib.Path) -> None:
    """Frozen seeds have no value: a mean of the others would flatter the method if nothing said so."""
    console = rich.console.Console(file=io.StringIO(), width=60)
    sink = ConsoleSink(console)
    sink.start(SUPERVISED, tmp_path, "l2")
    metrics = reduce_segment(supervised_segment(0), SUPERVISED)
    sink.log(metrics | {"task/accuracy": np.array([0.5, np.nan, 0.7, np.nan])}, 0)
    sink.log(metrics | {"task/accuracy": np.array([0.5, 0.7, 0.7, 0.9])}, 0)
    some, every = console.file.getvalue().splitlines()[1:]
    assert some.endswith("online accuracy 0.6 (2 of 4 seeds)")
    assert every.endswith("online accuracy 0.7  (mean of 4 seeds)")


def test_probes_are_a_part_of_the_time_that_is_left(tmp_path: pathlib.Path) -> None:
    """As a run of random_label with spectra measured it: the seconds of a segment are those of its probes too."""
    measured = {"train_seconds": (0.288, 0.110, 0.090), "probe_seconds": (0.096,) * 3, "compile_seconds": (51.9, 0, 0)}
    console = rich.console.Console(file=io.StringIO(), width=60)
    sink = ConsoleSink(console)
    sink.start(CONFIG | {"settings": CONFIG["settings"] | {"tasks": 100, "updates_per_task": 10}}, tmp_path, "l2")
    for task in range(3):
        host = {f"host/{name}": float(values[task]) for name, values in measured.items()}
        sink.log(host | {"host/clock": 10.0 * task, "host/length": 10.0}, task)
    compiled, *lines = console.file.getvalue().splitlines()
    assert compiled == "l2: compiled in 51.9 s"
    # 0.288 s for one task of a hundred, 0.488 s for three.
    assert lines == [f"l2: task {k + 1}/100  0:00:{left} left" for k, left in enumerate((29, 20, 16))]


def test_console_shows_a_bar_on_a_terminal(tmp_path: pathlib.Path) -> None:
    console = rich.console.Console(file=io.StringIO(), width=100, force_terminal=True)
    sink = ConsoleSink(console)
    for method in ("backprop", "reset"):
        sink.start(CONFIG, tmp_path, method)
        for task in range(TASKS):
            sink.log(reduce_segment(segment(task), CONFIG), task)
        sink.finish()
    text = console.file.getvalue()
    assert "compiled in 7.5 s" in text
    assert "task 3/3" in text
    assert "━" in text
