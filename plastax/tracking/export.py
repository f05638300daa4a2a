"""Weights & Biases after a run: records as W&B runs, and the report as artifacts."""

from __future__ import annotations

import pathlib

from plastax.errors import ConfigError
from plastax.records.files import PathLike
from plastax.records.layout import Segment, arm_labels, read_arm, read_config
from plastax.tracking.base import reduce_segment
from plastax.tracking.online import WandbSink, open_run
from plastax.tracking.options import Mode


def publish(directory: PathLike, mode: Mode = "offline", project: str | None = None) -> None:
    """Logs records, report and figures of a finished study as artifacts of a W&B run ``report`` in the study's group.

    Args:
      directory: the run directory.
      mode: ``offline``, ``online`` or ``disabled``.
      project: see `WandbSink`.
    """
    if mode == "disabled":
        return
    import wandb

    directory = pathlib.Path(directory)
    config = read_config(directory)
    run = open_run(config, directory, "report", mode, project, job_type="report")
    try:
        contents = {
            "record": ("config.json", "environment.json", "records"),
            "report": ("report.html", "summary.csv", "figures"),
        }
        for kind, names in contents.items():
            paths = [p for name in names for p in [directory / name, *sorted((directory / name).rglob("*"))]]
            if not any(path.is_file() for path in paths):
                continue  # A run with --no-report.
            artifact = wandb.Artifact(f"{kind}-{config['run_id']}", type=kind, metadata={"hash": config.get("hash")})
            for path in filter(pathlib.Path.is_file, paths):
                # Immutable: W&B does not copy the file to its cache first.
                artifact.add_file(str(path), name=str(path.relative_to(directory)), policy="immutable")
            run.log_artifact(artifact)
        if (overview := directory / "figures" / "overview.png").exists():
            run.log({"report/overview": wandb.Image(str(overview)), "task": 0})
    finally:
        run.finish()


def replay(
    directory: PathLike,
    mode: Mode = "offline",
    project: str | None = None,
    *,
    per_seed: bool = False,
    out: PathLike | None = None,
) -> int:
    """Writes W&B runs from the records of a study, as `WandbSink` would have during the run.

    Args:
      directory: the run directory.
      mode: ``offline`` or ``online``.
      project: see `WandbSink`.
      per_seed: one W&B run for each seed, grouped by ``<run id>-<arm>``, with plain names and ``seed`` in its
        configuration, so that W&B can average; otherwise one for each arm, as during the run.
      out: the folder whose ``wandb`` gets W&B's files; by default the run directory.

    Returns:
      The number of W&B runs.

    Raises:
      FileNotFoundError: the run directory does not exist.
      ConfigError: nothing has been recorded.
    """
    directory = pathlib.Path(directory)
    config = read_config(directory)
    first = int(config.get("settings", {}).get("first_seed", 0))
    count = 0
    for method in arm_labels(config):
        segments = read_arm(directory, config, method)
        arrays = [array for segment in segments for array in (*segment.train.values(), *segment.probe.values())]
        seeds = len(arrays[0]) if arrays else 0
        for k in range(seeds) if per_seed else range(min(seeds, 1)):
            sink, rows = WandbSink(mode, project, out=out), slice(None)
            if per_seed:
                sink = WandbSink(mode, project, out=out, seed=first + k, job_type="seed")
                rows = slice(k, k + 1)
            sink.start(config, directory, method)
            for segment in segments:
                sink.log(reduce_segment(_of(segment, rows), config, method), int(segment.host["task"]))
            sink.finish()
            count += 1
    if not count:
        raise ConfigError(f"run={str(directory)!r} has no records yet; there is nothing to export")
    return count


def _of(segment: Segment, rows: slice) -> Segment:
    """Some seeds of a segment."""
    train, probe = ({name: array[rows] for name, array in part.items()} for part in (segment.train, segment.probe))
    return Segment(train, probe, segment.host)
