"""What W&B gets: real offline runs read back from their files, replays, artifacts, the dashboard."""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
import pytest
import scipy.stats

from plastax import __main__ as cli
from plastax import tracking
from plastax.errors import ConfigError
from plastax.records.layout import Segment, write_json, write_segment
from plastax.tracking import Background, Histogram, WandbSink, dashboard, online, reduce_segment
from plastax.tracking.base import rows
from plastax.types import Record
from tests.tracked import (
    CONFIG,
    SEEDS,
    SUPERVISED,
    TASKS,
    defined_axes,
    defined_summaries,
    read_offline_run,
    read_records,
    run_files,
    segment,
    supervised_segment,
)


def test_wandb_offline_run(tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = {"git_revision": "c0ffee", "versions": {"jax": "0.10"}, "command": "python -m x", "platform": "y"}
    write_json(tmp_path / "environment.json", place)
    sink = Background(WandbSink("offline"))
    sink.start(CONFIG, tmp_path, "l2_er")
    for task in range(TASKS):
        sink.log(reduce_segment(segment(task), CONFIG), task)
    sink.finish()
    config, points, run = read_offline_run(tmp_path)
    assert (run.run_group, run.display_name, run.project, run.run_id) == ("r0", "l2_er", "demo", "r0-l2_er")
    assert config["method"] == "l2_er"
    assert config["hash"] == "abc"
    assert config["seeds"] == SEEDS
    assert config["environment"]["git_revision"] == "c0ffee"
    assert config["environment"]["versions"] == {"jax": "0.10"}
    # Five updates a task, of which the last also has what is over tasks.
    rows = points[4::5]
    assert [row["task"] for row in rows] == list(range(TASKS))
    # The spectra of chosen tasks as lines, in a table.
    table = json.loads((run_files(tmp_path) / points[-1]["hessian/density/init_table"]["path"]).read_text())
    lines = {}
    for _, key, value in table["data"]:
        lines.setdefault(key, []).append(value)
    assert set(lines) == {"task 0", "task 1", "task 2"}
    assert all(sum(line) == pytest.approx(1.0) for line in lines.values())
    for task, row in enumerate(rows):
        seeds = np.nanmean(segment(task).train["episode_return"], axis=1)
        name = "task/episode_return"
        assert row[name] == pytest.approx(seeds.mean())
        ends = scipy.stats.ttest_1samp(seeds, 0.0).confidence_interval()
        assert [row[f"{name}/ci_low"], row[f"{name}/ci_high"]] == pytest.approx(list(ends), rel=1e-6)
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


def test_curves_are_by_update_over_the_steps_of_one_network(tmp_path: pathlib.Path) -> None:
    sink = WandbSink("offline")
    sink.start(CONFIG, tmp_path, "l2_er")
    for task in range(TASKS):
        sink.log(reduce_segment(segment(task), CONFIG), task)
    sink.finish()
    _, points, _ = read_offline_run(tmp_path)
    # A segment's ten thousand steps are of four networks, in five updates.
    assert [point["global_step"] for point in points] == [500 * (k + 1) for k in range(5 * TASKS)]
    assert [point["_step"] for point in points] == list(range(5 * TASKS))
    for task in range(TASKS):
        curve = [point.get("train/episode_return") for point in points[5 * task : 5 * task + 5]]
        assert curve[0] is None  # No episode had ended.
        assert curve[1:] == pytest.approx(segment(task).train["episode_return"][:, 1:].mean(axis=0).tolist())
    axes = {metric.name: axis for metric, axis in defined_axes(tmp_path)}
    assert (axes["train/episode_return"], axes["task/episode_return"]) == ("global_step", "task")
    assert (axes["hessian/rank/init/0.1"], axes["gradient/norm/end"]) == ("task", "task")


def test_a_long_curve_is_thinned_to_means() -> None:
    long = {**CONFIG, "settings": {**CONFIG["settings"], "tasks": 2000}}
    first, second, third = rows(reduce_segment(segment(3), long), long)
    assert [row.update for row in (first, second, third)] == [16, 18, 19]
    assert [row.global_step for row in (first, second, third)] == [8500, 9500, 10000]
    returns = segment(3).train["episode_return"]
    np.testing.assert_allclose(second.values["train/episode_return"], returns[:, 2:4].mean(axis=1))


def test_a_workspace_shows_a_few_dozen_panels() -> None:
    """Of a network of eight layers with every value of the default probes, and of a probe of one's own."""
    layers = [f"Dense_{k}" for k in range(8)]
    vectors = {
        "features": "active_fraction dead_units dormant_fraction effective_rank norm pca_rank srank stable_rank",
        "weights": "mean_magnitude norm spectral_norm",
        "kronecker": "a_effective_rank a_largest g_effective_rank g_largest",
    }
    numbers = {
        "gradient": "cosine cosine_magnitude l1 norm zero_fraction",
        "evaluation": "train_loss train_accuracy test_loss test_accuracy",
        "mine": "norm",
        **dict.fromkeys(
            ("hessian", "ggn"),
            "effective_rank effective_rank_se largest smallest trace trace_se frobenius stable_rank dim complete",
        ),
    }
    every = np.ones((SEEDS, 2))
    probe = {f"{name}/{v}": every for name, values in numbers.items() for v in values.split()}
    of_layers = [f"{name}/{v}" for name, values in vectors.items() for v in values.split()]
    probe |= {name: np.ones((SEEDS, 2, 8)) for name in of_layers}
    probe |= {f"{name}/{v}": np.ones((SEEDS, 2, 2)) for name in ("hessian", "ggn") for v in ("rank", "rank_se")}
    dims = {name: ["layer"] for name in of_layers} | {f"{name}/rank": ["eps"] for name in ("hessian", "ggn")}
    config = {**CONFIG, "dims": dims, "coords": {"layer": layers, "eps": [0.01, 0.1]}}
    train = {name: np.ones((SEEDS, 5)) for name in ("loss", "accuracy", "grad_norm", "alive")}
    metrics = reduce_segment(Segment(train, probe, segment(0).host), config)
    shown = {name for name in metrics if dashboard.shown(name)}
    assert len(metrics) > 250
    assert len(shown) < 45
    assert {"train/loss", "task/accuracy", "mine/norm/init", "features/effective_rank/end/mean"} <= shown
    assert {"hessian/rank/init/0.1", "hessian/effective_rank/init"} <= shown
    assert not any(name.startswith("host/") or name.endswith(("Dense_3", "_se/init")) for name in shown)


def test_what_a_workspace_does_not_show_is_logged_and_hidden(tmp_path: pathlib.Path) -> None:
    sink = WandbSink("offline")
    sink.start(CONFIG, tmp_path, "l2_er")
    sink.log(reduce_segment(segment(0), CONFIG), 0)
    sink.finish()
    hidden = {metric.name: metric.options.hidden for metric, _ in defined_axes(tmp_path)}
    logged = {name for row in read_offline_run(tmp_path)[1] for name in row}
    assert logged - {"_step", "_runtime", "_timestamp"} <= hidden.keys()
    assert {name for name in logged & hidden.keys() if not hidden[name]} == {
        "train/episode_return", "task/episode_return", "gradient/norm/init", "hessian/rank/init/0.01",
        "hessian/rank/init/0.1", "hessian/spectrum/init",
    }  # fmt: skip


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
        for task, row in enumerate(rows[4::5]):
            assert row["task/episode_return"] == pytest.approx(np.nanmean(segment(task).train["episode_return"][k]))
            assert row["task"] == task
            assert "task/episode_return/ci_low" not in row
            nodes = segment(task).probe["hessian/nodes"][k, 0]
            histogram = row["hessian/spectrum/init"]
            shares = np.array(histogram["values"])[np.array(histogram["bins"])[1:] < 0]
            assert shares.sum() == pytest.approx((nodes < 0).mean())
    with pytest.raises(FileNotFoundError):
        tracking.replay(recorded / "records")


SWEPT = {
    **CONFIG,
    "settings": {
        **CONFIG["settings"],
        "model": "mlp",
        "model_settings": {"hidden": [64], "layer_norm": False},
        "training": {"learning_rate": 0.002, "epochs": 3},
        "l2": {"l2": 0.0},
        "effective_rank": {"er_lr": 1.0},
    },
    "arms": {
        "l2+effective_rank@lr": {
            "method": "l2+effective_rank",
            "settings": {
                "training.learning_rate": 0.01,
                "method.l2": 0.5,
                "effective_rank.er_lr": 2.0,
                "model.hidden": [8],
            },
        },
        "l2@hidden=16": {"method": "l2", "settings": {"model.hidden": [16]}},
    },
}


def test_an_arms_configuration_says_what_it_was_trained_under() -> None:
    before = json.dumps(SWEPT)
    chosen = online.settings_of(SWEPT, "l2+effective_rank@lr")
    assert (chosen["arm"], chosen["method"]) == ("l2+effective_rank@lr", "l2+effective_rank")
    assert chosen["training"] == {"learning_rate": 0.01, "epochs": 3}
    assert (chosen["l2"], chosen["effective_rank"]) == ({"l2": 0.5}, {"er_lr": 2.0})
    assert chosen["model_settings"] == {"hidden": [8], "layer_norm": False}
    # W&B joins the names of nested settings by dots: none of these may be there twice, with another value.
    assert {name: value for name, value in chosen.items() if "." in name} == {"method.l2": 0.5, "model.hidden": [8]}
    assert online.settings_of(SWEPT, "l2@hidden=16")["training"]["learning_rate"] == 0.002
    assert json.dumps(SWEPT) == before


def test_runs_of_a_swept_arm_have_its_settings_one_by_one_too(tmp_path: pathlib.Path) -> None:
    arm = "l2@hidden=16"
    write_json(tmp_path / "config.json", SWEPT)
    train, probe, host = segment(0)
    write_segment(tmp_path / "records" / arm, 0, Record(train, probe), host)
    out = tmp_path / "elsewhere"
    assert tracking.replay(tmp_path, per_seed=True, out=out) == SEEDS
    for k in range(SEEDS):
        config, _, run = read_offline_run(out, f"-seed{2 + k}")
        assert (config["arm"], config["method"], config["seed"]) == (arm, "l2", 2 + k)
        assert config["model_settings"]["hidden"] == [16]
        assert (run.run_group, run.display_name) == (f"r0-{arm}", f"{arm}-seed{2 + k}")
    assert not (tmp_path / "wandb").exists()


def test_pieces_of_an_interrupted_run_fit(tmp_path: pathlib.Path) -> None:
    steps, ids = [], set()
    for part in (range(2), range(2, TASKS)):
        sink = WandbSink("offline")
        sink.start(CONFIG, tmp_path / str(part.start), "l2_er")
        for task in part:
            sink.log(reduce_segment(segment(task), CONFIG), task)
        sink.finish()
        steps.append([row["_step"] for row in read_offline_run(tmp_path / str(part.start))[1]])
        ids.add(read_offline_run(tmp_path / str(part.start))[2].run_id)
        # `wandb sync` appends the second file to the first, as it resumes online.
        assert [record.run.resume for record in read_records(tmp_path / str(part.start)) if record.HasField("run")] == [
            True
        ]
    assert steps == [list(range(10)), list(range(10, 15))]
    assert len(ids) == 1


def test_a_name_that_is_too_long_for_wandb_is_cut_and_stays_unique(tmp_path: pathlib.Path) -> None:
    ids = set()
    for end in "ab":
        sink = WandbSink("offline")
        sink.start(CONFIG, tmp_path / end, f"{'l2=0.1,' * 40}{end}")
        sink.finish()
        run = read_offline_run(tmp_path / end)[2]
        assert max(len(name) for name in (run.run_id, run.display_name, run.run_group)) <= 128
        ids.add(run.run_id)
    assert len(ids) == 2


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
    found = dashboard.groups(dashboard.measured(recorded))
    shown = [panel for part in found for panel in part.panels]
    assert [part.title for part in found] == [
        "Does it still learn?", "Spectra over tasks", "Curvature in numbers", "The network"
    ]  # fmt: skip
    for panel in shown:
        names = {f"{name}_table" for name in panel.metrics} if panel.lines else set(panel.metrics)
        assert names
        assert names <= logged, panel
    assert ("hessian/spectrum/init",) in [panel.metrics for panel in shown]
    assert sum(len(part.panels) for part in dashboard.groups()) > len(shown)


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
    assert np.isnan(reduce_segment(empty, CONFIG)["task/episode_return"]).all()


def test_wandb_judges_supervised_runs_by_their_accuracy(tmp_path: pathlib.Path) -> None:
    sink = WandbSink("offline")
    sink.start(SUPERVISED, tmp_path, "l2_er")
    for part in range(2):
        sink.log(reduce_segment(supervised_segment(part), SUPERVISED), 0)
    sink.finish()
    _, rows, run = read_offline_run(tmp_path)
    rows = rows[4::5]
    assert list(run.tags) == ["synthetic"]
    online, final = "task/accuracy", "evaluation/train_accuracy/end"
    assert [row[f"{online}/seed_2"] for row in rows] == pytest.approx([0.5, 0.6])
    assert f"{final}/seed_2" not in rows[0]
    assert rows[1][f"{final}/seed_{2 + SEEDS - 1}"] == 0.75
    assert rows[0]["task/loss/seed_2"] == 0.25
    summaries = defined_summaries(tmp_path)
    # Accuracy: the best is the highest.
    assert summaries[final] == summaries[online] == (True, True, True, False)
    assert "task/loss" not in summaries
