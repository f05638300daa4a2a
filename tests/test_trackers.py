"""Which trackers a run has: what they lack is refused, where W&B files runs, and what TensorBoard reads."""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import pytest

from experiments import random_label
from plastax import tracking
from plastax.errors import ConfigError
from plastax.tracking import Background, TensorBoardSink, WandbSink, reduce_segment
from tests.tracked import CONFIG, TASKS, read_offline_run, segment


def test_online_without_a_login_leaves_offline_files_and_says_how_to_upload_them(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    monkeypatch.setattr(wandb, "login", lambda **_: False)
    sink = WandbSink("online-or-offline")
    with caplog.at_level("WARNING"):
        sink.start(CONFIG, tmp_path / "a b", "l2_er")
    sink.log({"x": 1.0}, 0)
    sink.finish()
    assert read_offline_run(tmp_path / "a b")[1][0]["x"] == 1.0
    assert "wandb login" in caplog.text
    assert tracking.upload_command(tmp_path / "a b") == f"wandb sync '{tmp_path}/a b/wandb'/offline-run-*"
    assert tracking.upload_command(tmp_path) == ""


@pytest.mark.parametrize("by", ["settings", "variables", "both"])
def test_settings_and_wandbs_own_variables_file_the_runs(
    by: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"project": "mine", "entity": "lab", "group": "first", "name": "ranks", "tags": ["a", "b"]}
    variables = {"PROJECT": "mine", "ENTITY": "lab", "RUN_GROUP": "first", "NAME": "ranks", "TAGS": "a,b"}
    if by != "settings":
        for name, value in variables.items():
            monkeypatch.setenv(f"WANDB_{name}", value if by == "variables" else "other")
    config = CONFIG if by == "variables" else CONFIG | {"settings": CONFIG["settings"] | {"wandb_settings": asked}}
    own = {"l2_er": {"name": "mylab.own:L2ER", "source": "c0ffee"}}
    sink = WandbSink("offline")
    sink.start(config | {"own": own}, tmp_path, "l2_er")
    sink.finish()
    stored, _, run = read_offline_run(tmp_path)
    assert stored["own"] == own
    assert (run.project, run.entity, run.run_group, run.display_name) == ("mine", "lab", "first", "ranks-l2_er")
    assert list(run.tags) == ["a", "b"] + ["other"] * (by == "both")
    assert run.run_id == "r0-l2_er"
    assert "wandb_settings" not in stored


def test_online_without_a_login_is_refused_before_anything_is_compiled(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    line = ["--preset", "smoke", "--probes", "none", "--runs-dir", str(tmp_path / "runs"), "--wandb", "online"]
    with pytest.raises(SystemExit) as ended:
        random_label.EXPERIMENT.main(line)
    assert ended.value.code == 2
    assert capsys.readouterr().err.strip().splitlines() == [
        "error: wandb: nobody is logged in, which online needs; run `wandb login`, or give --wandb offline or "
        "--wandb online-or-offline"
    ]
    assert not (tmp_path / "runs").exists()


def test_what_a_tracker_lacks_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "tensorboard", raising=False)
    with pytest.raises(ConfigError, match="the package tensorboard is missing; pip install tensorboard, or"):
        tracking.check(("tensorboard",), "disabled")
    with pytest.raises(ConfigError, match="--wandb online needs wandb"):
        tracking.check(("tensorboard",), "online")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(ConfigError, match="online contradicts WANDB_MODE=disabled"):
        tracking.check(("wandb",), "online")


def test_tensorboard_reads_what_was_logged(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracking.check(("tensorboard",), "disabled")
    for part in (range(2), range(2, TASKS)):  # A run that was interrupted.
        sink = Background(TensorBoardSink())
        sink.start(CONFIG, tmp_path, "l2_er")
        for task in part:
            sink.log(reduce_segment(segment(task), CONFIG), task)
        sink.finish()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "l2_er"), {"scalars": 0, "histograms": 0})
    events.Reload()
    assert set(events.Tags()["scalars"]) == {
        "train/episode_return", "task/episode_return", "gradient/norm/init", "hessian/rank/init/0.01",
        "hessian/rank/init/0.1",
    }  # fmt: skip
    returns = [segment(task).train["episode_return"] for task in range(TASKS)]
    curve = {event.step: event.value for event in events.Scalars("train/episode_return")}
    wanted = {500 * (5 * t + u + 1): returns[t][:, u].mean() for t in range(TASKS) for u in range(1, 5)}
    assert list(curve) == list(wanted)
    assert list(curve.values()) == pytest.approx(list(wanted.values()))
    of_tasks = [(event.step, event.value) for event in events.Scalars("task/episode_return")]
    assert of_tasks == [(t, pytest.approx(np.nanmean(returns[t]))) for t in range(TASKS)]
    (_, _, last) = events.Histograms("hessian/spectrum/init")
    counts, limits = np.array(last.histogram_value.bucket), np.array(last.histogram_value.bucket_limit)
    negative = np.mean(segment(TASKS - 1).probe["hessian/nodes"][:, 0] < 0)
    assert (counts.sum(), counts[limits < 0].sum()) == pytest.approx((1.0, negative))
