"""Sinks: a real W&B offline run read back from its file, the terminal, and what happens when a sink fails."""

from __future__ import annotations

import io
import json
import logging
import pathlib
import struct
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from plastax import __main__ as cli
from plastax import parallel, run, tracking
from plastax.checkpoint import Checkpoints
from plastax.record import Segment, read_segment, write_json, write_segment
from plastax.tracking import Background, ConsoleSink, Guarded, Histogram, WandbSink, dashboard, reduce_segment
from plastax.types import ConfigError, Program, Record

SEEDS, TASKS = 4, 3
CONFIG = {
    "experiment": "demo",
    "run_id": "r0",
    "hash": "abc",
    "settings": {"methods": ["l2_er"], "seeds": SEEDS, "first_seed": 2, "tasks": TASKS, "updates_per_task": 5},
    "dims": {"hessian/rank": ["eps"], "hessian/nodes": ["probe", "node"], "hessian/weights": ["probe", "node"]},
    "coords": {"eps": [0.01, 0.1]},
}


def segment(task: int) -> Segment:
    rng = np.random.default_rng(task)
    episode = rng.normal(100.0 * task, 1.0, (SEEDS, 5))
    episode[:, 0] = np.nan
    nodes = np.stack([rng.normal(0.0, 3.0, (SEEDS, 2, 6)), np.full((SEEDS, 2, 6), np.nan)], axis=1)
    probe = {
        "hessian/nodes": nodes,
        "hessian/weights": np.full((SEEDS, 2, 2, 6), 1 / 6),
        "hessian/rank": np.stack([np.ones((SEEDS, 2)) * [5.0, 2.0], np.full((SEEDS, 2), np.nan)], axis=1),
        "gradient/norm": np.ones((SEEDS, 2)) * [1.0, 2.0],
    }
    host = {"segment": task, "clock": 5 * task, "length": 5, "task": task, "train_seconds": 2.0, "env_steps": 1e4}
    return Segment({"episode_return": episode}, probe, host | {"compile_seconds": 7.5 if task == 0 else 0.0})


def chunks(content: bytes) -> Iterator[bytes]:
    """The records of a W&B file: LevelDB's log format, seven bytes of header before blocks of 32 KiB.

    W&B 0.31 has no reader in Python any more. See the "log format" page in LevelDB's documentation.
    """
    if len(content) < 7:
        return
    magic, _, version = struct.unpack("<4sHB", content[:7])
    assert (magic, version) == (b":W&B", 0)
    at, parts = 7, []
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        checksum, length, kind = struct.unpack("<IHB", content[at : at + 7])
        part = content[at + 7 : at + 7 + length]
        if len(part) < length:
            return
        assert checksum == zlib.crc32(bytes([kind]) + part)
        parts.append(part)
        at += 7 + length
        # 1 is a whole record, 4 the last part of one.
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []


def read_records(directory: pathlib.Path, name: str = "") -> list[Any]:
    """All records of the only offline run in a run directory, or of the one whose id ends so."""
    from wandb.proto import wandb_internal_pb2

    (path,) = (directory / "wandb").glob(f"offline-run-*/*{name}.wandb")
    # W&B's service goes on writing for a moment after `finish`; the exit record is the last one.
    for _ in range(200):
        records = []
        for chunk in chunks(path.read_bytes()):
            records.append(wandb_internal_pb2.Record())
            records[-1].ParseFromString(chunk)
        if records and records[-1].WhichOneof("record_type") == "exit":
            break
        time.sleep(0.1)
    return records


def defined_summaries(directory: pathlib.Path) -> dict[str, tuple[bool, ...]]:
    """Metric -> whether its last, mean, highest and lowest value are kept in the summary, of those that say so."""
    metrics = [record.metric for record in read_records(directory) if record.WhichOneof("record_type") == "metric"]
    return {
        metric.name: (metric.summary.last, metric.summary.mean, metric.summary.max, metric.summary.min)
        for metric in metrics
        if metric.HasField("summary")
    }


def read_offline_run(directory: pathlib.Path, name: str = "") -> tuple[dict[str, Any], list[dict[str, Any]], Any]:
    """Configuration, logged rows and the run itself of the only offline run in a run directory, or of the named one."""
    records = read_records(directory, name)
    (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    rows = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            rows.append({})
            for item in record.history.item:
                *outer, last = item.nested_key or [item.key]
                inner = rows[-1]
                for key in outer:
                    inner = inner.setdefault(key, {})
                inner[last] = json.loads(item.value_json)
    return config, rows, run


def test_wandb_offline_run(tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = {"git_revision": "c0ffee", "versions": {"jax": "0.10"}, "command": "python -m x", "platform": "y"}
    write_json(tmp_path / "environment.json", place)
    sink = Background(WandbSink("offline"))
    sink.start(CONFIG, tmp_path, "l2_er")
    for task in range(TASKS):
        sink.log(reduce_segment(segment(task), CONFIG), task)
    sink.finish()
    config, rows, run = read_offline_run(tmp_path)
    *rows, last = rows
    assert (run.run_group, run.display_name, run.project, run.run_id) == ("r0", "l2_er", "demo", "r0-l2_er")
    assert config["method"] == "l2_er"
    assert config["hash"] == "abc"
    assert config["seeds"] == SEEDS
    assert config["environment"]["git_revision"] == "c0ffee"
    assert config["environment"]["versions"] == {"jax": "0.10"}
    assert {"task", "*"} <= {
        r.metric.name or r.metric.glob_name for r in read_records(tmp_path) if r.HasField("metric")
    }
    # The spectra of chosen tasks as lines, in a table.
    assert last["task"] == TASKS - 1
    table = json.loads((run_files(tmp_path) / last["hessian/density/init_table"]["path"]).read_text())
    lines = {}
    for _, key, value in table["data"]:
        lines.setdefault(key, []).append(value)
    assert set(lines) == {"task 1", "task 2", "task 3"}
    assert all(sum(line) == pytest.approx(1.0) for line in lines.values())
    assert [row["task"] for row in rows] == list(range(TASKS))
    for task, row in enumerate(rows):
        seeds = np.nanmean(segment(task).train["episode_return"], axis=1)
        name = "train/episode_return"
        assert row[name] == pytest.approx(seeds.mean())
        assert seeds.min() <= row[f"{name}/ci_low"] <= row[name] <= row[f"{name}/ci_high"] <= seeds.max()
        assert row[f"{name}/iqm"] == pytest.approx(np.sort(seeds)[1:3].mean())
        assert [row[f"gradient/norm/end/seed_{2 + k}"] for k in range(SEEDS)] == [2.0] * SEEDS
        assert [row[f"{name}/seed_{2 + k}"] for k in range(SEEDS)] == pytest.approx(seeds.tolist())
        assert row["hessian/rank/init/0.1"] == 2.0
        assert not any(key.startswith("hessian/rank/end") for key in row)
        histogram = row["hessian/spectrum/init"]
        assert histogram["_type"] == "histogram"
        assert 400 < len(histogram["values"]) == len(histogram["bins"]) - 1 <= 512
        assert sum(histogram["values"]) == pytest.approx(1.0)
        negative = np.mean(segment(task).probe["hessian/nodes"][:, 0] < 0)
        edges = np.array(histogram["bins"])
        assert np.array(histogram["values"])[edges[1:] < 0].sum() == pytest.approx(negative)
    assert capfd.readouterr() == ("", "")


def run_files(directory: pathlib.Path, name: str = "") -> pathlib.Path:
    (path,) = (directory / "wandb").glob(f"offline-run-*/*{name}.wandb")
    return path.parent / "files"


@pytest.fixture
def recorded(tmp_path: pathlib.Path) -> pathlib.Path:
    """A run directory with records and a report."""
    write_json(tmp_path / "config.json", CONFIG)
    write_json(tmp_path / "environment.json", {"git_revision": "c0ffee"})
    for task in range(TASKS):
        train, probe, host = segment(task)
        write_segment(tmp_path / "records" / "l2_er", task, Record(train, probe), host)
    (tmp_path / "report.html").write_text("<!doctype html>")
    return tmp_path


def test_every_seed_is_replayed_as_a_run_of_its_own(recorded: pathlib.Path) -> None:
    assert tracking.replay(recorded, per_seed=True) == SEEDS
    for k in range(SEEDS):
        config, rows, run = read_offline_run(recorded, f"l2_er-seed{2 + k}")
        assert (run.run_group, run.display_name, run.job_type) == ("r0-l2_er", f"l2_er-seed{2 + k}", "seed")
        assert (config["method"], config["seed"]) == ("l2_er", 2 + k)
        for task, row in enumerate(rows[:TASKS]):
            assert row["train/episode_return"] == pytest.approx(np.nanmean(segment(task).train["episode_return"][k]))
            assert row["task"] == task
            assert "train/episode_return/ci_low" not in row
            nodes = segment(task).probe["hessian/nodes"][k, 0]
            histogram = row["hessian/spectrum/init"]
            shares = np.array(histogram["values"])[np.array(histogram["bins"])[1:] < 0]
            assert shares.sum() == pytest.approx((nodes < 0).mean())
    with pytest.raises(FileNotFoundError):
        tracking.replay(recorded / "records")


def test_record_and_report_become_artifacts(recorded: pathlib.Path) -> None:
    assert tracking.publish_safely(recorded, "offline")
    artifacts = {}
    for entry in read_records(recorded, "r0-report"):
        if entry.WhichOneof("record_type") == "artifact":
            artifacts[entry.artifact.name] = entry.artifact
    assert {name: a.type for name, a in artifacts.items()} == {"record-r0": "record", "report-r0": "report"}
    held = {name: {file.path for file in a.manifest.contents} for name, a in artifacts.items()}
    records = {f"records/l2_er/{task:06d}.npz" for task in range(TASKS)}
    assert held == {"record-r0": {"config.json", "environment.json", *records}, "report-r0": {"report.html"}}


def test_the_dashboard_shows_what_was_logged(recorded: pathlib.Path) -> None:
    tracking.replay(recorded)
    rows = read_offline_run(recorded)[1]
    logged = {name for row in rows for name in row}
    found = dashboard.parts(dashboard.measured(recorded))
    shown = [panel for part in found for panel in part.panels]
    assert [part.title for part in found] == [
        "Does it still learn?", "Spectra over tasks", "Curvature in numbers", "The network"
    ]  # fmt: skip
    for panel in shown:
        names = {f"{name}_table" for name in panel.metrics} if panel.lines else set(panel.metrics)
        assert names
        assert names <= logged, panel
    assert ("hessian/spectrum/init",) in [panel.metrics for panel in shown]
    assert sum(len(part.panels) for part in dashboard.parts()) > len(shown)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # The package's own, at import.
def test_the_dashboard_is_one_that_wandb_takes(recorded: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it goes offline: what its own package would send, panel by panel."""
    from wandb_workspaces.workspaces import Workspace

    tracking.replay(recorded)
    logged = {name for row in read_offline_run(recorded)[1] for name in row}
    sent = []
    # The two that need a network.
    monkeypatch.setattr(Workspace, "save", lambda self: sent.append(self))
    monkeypatch.setattr(Workspace, "url", "https://wandb.ai/entity/project?nw=abc")
    assert dashboard.create("entity/project", recorded) == Workspace.url
    (workspace,) = sent
    assert (workspace.entity, workspace.project) == ("entity", "project")
    spec = json.loads(workspace._to_model().model_dump_json(by_alias=True))["spec"]
    sections = spec["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections[:2]] == ["Does it still learn?", "Spectra over tasks"]
    panels = [panel for section in sections for panel in section["panels"]]
    lines = [panel["config"] for panel in panels if panel["viewType"] == "Run History Line Plot"]
    assert {config["xAxis"] for config in lines} == {"task"}
    assert all(set(config["metrics"]) <= logged for config in lines)
    assert "hessian/spectrum/init" in {name for config in lines for name in config["metrics"]}
    assert any(panel["viewType"] == "Vega2" for panel in panels)


def test_the_dashboard_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(SystemExit):
        cli.main(["wandb-dashboard", "entity/project"])
    assert "wandb-workspaces" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="'project' is not of the form ENTITY/PROJECT"):
        dashboard.workspace("project")


def test_wandb_methods_one_after_the_other(tmp_path: pathlib.Path) -> None:
    sink = WandbSink("offline")
    for method in ("backprop", "reset"):
        sink.start(CONFIG, tmp_path, method)
        sink.log({"x": 1.0}, 0)
        sink.finish()
    names = sorted(path.name for path in (tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert names == ["run-r0-backprop.wandb", "run-r0-reset.wandb"]


def test_wandb_disabled_leaves_nothing(tmp_path: pathlib.Path) -> None:
    sink = WandbSink("disabled")
    sink.start(CONFIG, tmp_path, "l2_er")
    sink.log({"x": 1.0}, 0)
    sink.finish()
    assert list(tmp_path.iterdir()) == []


def test_reduced_segment() -> None:
    metrics = reduce_segment(segment(1), CONFIG)
    assert metrics["host/train_seconds"] == 2.0
    np.testing.assert_array_equal(metrics["gradient/norm/end"], np.full(SEEDS, 2.0))
    np.testing.assert_array_equal(metrics["hessian/rank/init/0.01"], np.full(SEEDS, 5.0))
    assert isinstance(metrics["hessian/spectrum/init"], Histogram)
    assert "hessian/spectrum/end" not in metrics
    empty = segment(1)
    empty.train["episode_return"][:] = np.nan
    assert np.isnan(reduce_segment(empty, CONFIG)["train/episode_return"]).all()


SUPERVISED = {**CONFIG, "settings": {**CONFIG["settings"], "data_card": {"synthetic": True}}}


def supervised_segment(part: int, regression: bool = False) -> Segment:
    """The first or second half of a task: only the second one has values at the end of the task."""
    accuracy = np.full((SEEDS, 5), np.nan if regression else 0.5 + 0.1 * part)
    final = np.stack([np.full(SEEDS, 0.125), np.full(SEEDS, 0.75 if part % 2 else np.nan)], axis=1)
    probe = {"evaluation/train_accuracy": 0.0 * accuracy[:, :2] + final, "evaluation/train_loss": 1.0 - final}
    host = {"segment": part, "clock": 5 * part, "length": 5, "task": part // 2, "train_seconds": 2.0, "env_steps": 1e4}
    return Segment({"accuracy": accuracy, "loss": np.full((SEEDS, 5), 0.25)}, probe, host)


def test_wandb_judges_supervised_runs_by_their_accuracy(tmp_path: pathlib.Path) -> None:
    sink = WandbSink("offline")
    sink.start(SUPERVISED, tmp_path, "l2_er")
    for part in range(2):
        sink.log(reduce_segment(supervised_segment(part), SUPERVISED), 0)
    sink.finish()
    _, rows, run = read_offline_run(tmp_path)
    assert list(run.tags) == ["synthetic"]
    online, final = "train/accuracy", "evaluation/train_accuracy/end"
    assert [row[f"{online}/seed_2"] for row in rows] == pytest.approx([0.5, 0.6])
    assert f"{final}/seed_2" not in rows[0]
    assert rows[1][f"{final}/seed_{2 + SEEDS - 1}"] == 0.75
    assert rows[0]["train/loss/seed_2"] == 0.25
    summaries = defined_summaries(tmp_path)
    # Accuracy: the best is the highest.
    assert summaries[final] == summaries[online] == (True, True, True, False)
    assert "train/loss" not in summaries


def tiny_program() -> Program:
    """Gradient descent with noise on a parabola: a state that any disturbance would change."""

    def step(state, _):
        key, x = state
        key, draw = jax.random.split(key)
        x = x - 0.1 * x + 0.01 * jax.random.normal(draw, x.shape)
        return (key, x), (x**2).sum()

    def segment(state, data, clock, length):
        state, loss = jax.lax.scan(step, state, length=length)
        return state, Record({"loss": loss}, {"x/norm": jnp.stack([loss[0], loss[-1]])})

    return Program(lambda key, data: (key, jnp.ones(3)), segment, (), {}, {})


class Slow:
    """A W&B that takes its time, for ever if need be."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        time.sleep(self.seconds)
        message = "no answer"
        raise ConnectionError(message)


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
        run.study(tmp_path / name, config, [batch], run.Plan(3, 4, 4, 1), sinks)
        seconds = time.monotonic() - started
        checkpoints = Checkpoints(tmp_path / name / "checkpoints" / "sgd", config)
        restored = checkpoints.restore(batch.program.init(batch.start, ()))
        checkpoints.close()
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
    assert [record.message.count("going on without it") for record in caplog.records if "Sink" in record.message] == [1]


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
    while not sink._calls.empty():
        time.sleep(0.01)
    sink.finish()
    assert logged == sorted(logged)
    assert 3 <= len(logged) <= 6
    assert [record.message for record in caplog.records] == [
        "Blocked is too slow: some tasks are missing there, none in the records"
    ]


class Failing:
    """A sink that raises in one of its methods."""

    def __init__(self, where: str):
        self.where = where
        self.calls: list[str] = []

    def _note(self, name: str) -> None:
        self.calls.append(name)
        if name == self.where:
            message = "the network is gone"
            raise ConnectionError(message)

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
        message = "no space left on device"
        raise wandb.Error(message)

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
    assert lines[2].startswith("l2_er: task 2/3  5,000 steps/s  0:00:02 left  episode return ")
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
    assert lines[0] == f"l2_er: task 1/3  5,000 examples/s  0:00:04 left  {first}"
    assert lines[1] == f"l2_er: task 1/3  5,000 examples/s  0:00:02 left  {second}"


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
