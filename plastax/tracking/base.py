"""The protocol of sinks, and their metrics: a segment of the record, reduced to one value for each seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from plastax.records.layout import MARKS, PathLike, Segment, coords_of
from plastax.report.score import SCORES, Quantity, Score, choose

MOST_LABELS = 64
"""Sinks get no probe values with more entries than this (per seed and mark)."""

EDGES = (1e-8, 1e4)
"""Absolute eigenvalues between which live spectra have logarithmic bins, the same in every task and run."""

LAYERS = (("layer",), ("other_layer",), ("feature_layer",))
"""The axes of a probe's values whose mean is shown too."""

PER_DECADE = 20
"""Bins of a live spectrum per decade: 2 * 12 * 20 + 1 = 481 in all; W&B keeps at most 512."""


class Histogram(NamedTuple):
    """Counts ``[bins]`` (not necessarily whole numbers) between ascending ``edges`` ``[bins + 1]``."""

    counts: np.ndarray
    edges: np.ndarray


Metric = float | np.ndarray | Histogram
"""A number, a number for each seed ``[S]``, a curve for each seed ``[S, length]``, or a histogram."""

MOST_ROWS = 5000
"""Points of a curve by update, of a whole run; a longer curve is shown as means over neighbouring updates."""


class Row(NamedTuple):
    """A point of the curves by update.

    Attributes:
      update: its number; of several updates, that of the last.
      global_step: environment steps or examples that a network has seen after it.
      values: ``train/<name>`` -> ``[S]``.
    """

    update: int
    global_step: int
    values: dict[str, np.ndarray]


class Sink(Protocol):
    """Shows the numbers of a run. Each arm calls `start` once, `log` any number of times, `finish` once."""

    def start(self, config: Mapping[str, Any], directory: PathLike, method: str) -> None:
        """Begins an arm.

        Args:
          config: the content of ``config.json``.
          directory: the run directory.
          method: label of the arm.
        """

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        """Shows the metrics of one segment, which is of task number ``step``."""

    def finish(self) -> None:
        """Ends the arm, complete or interrupted."""

    def fork(self) -> Sink:
        """Another sink of this kind, for one of several arms that are trained at the same time."""


def reduce_segment(segment: Segment, config: Mapping[str, Any], arm: str = "") -> dict[str, Metric]:
    """The metrics of a segment.

    Args:
      segment: see `plastax.records.layout.Segment`.
      config: the content of ``config.json``; its ``dims`` and ``coords`` name the entries of vectors.
      arm: label of the segment's arm.

    Returns:
      ``train/<name>``: curves by update ``[S, length]``; ``task/<name>``: their means over updates ``[S]``;
      ``task/episode_return/by_episodes``: the mean over episodes.
      ``<probe>/<value>/<mark>[/<label>]``: ``[S]`` for each entry of a measured scalar or vector; of layers also their
      mean, labelled ``mean``.
      ``<operator>/spectrum/<mark>``: histogram of the eigenvalues, pooled over seeds and probe vectors; of blocks
      ``<operator>/block_spectrum/<mark>/<block>``, and their ranks at the middle threshold.
      ``host/<name>``: numbers.
    """
    metrics: dict[str, Metric] = {f"host/{name}": value for name, value in segment.host.items()}
    metrics |= {f"train/{name}": np.asarray(value, np.float64) for name, value in segment.train.items()}
    metrics |= {f"task/{name}": _mean(np.asarray(value, np.float64)) for name, value in segment.train.items()}
    for one in {score.main for score in SCORES if score.main.weights}:
        if {one.variable, one.weights} <= metrics.keys():
            values, episodes = np.asarray(metrics[one.variable]), np.asarray(metrics[one.weights])
            weights = np.where(np.isfinite(values), episodes, 0.0)
            total, count = (weights * np.nan_to_num(values)).sum(axis=1), weights.sum(axis=1)
            metrics[one.metric] = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    for name, value in segment.probe.items():
        dims = tuple(config.get("dims", {}).get(name, ()))
        for i, mark in enumerate(MARKS):
            entries = np.asarray(value[:, i], np.float64)
            if np.isnan(entries).all():
                continue
            if name.endswith("/nodes"):
                metrics |= _spectrum(name.removesuffix("nodes"), segment.probe, i)
            elif dims[:1] == ("block",) and len(dims) > 1:
                for j, label in enumerate(coords_of(config, arm)["block"]):
                    part = {key: array[:, :, j] for key, array in segment.probe.items() if "/block_" in key}
                    if name.endswith("/block_nodes"):
                        metrics |= _spectrum(name.removesuffix("nodes"), part, i, f"/{label}")
                    elif dims[1].endswith("eps"):
                        metrics[f"{name}/{MARKS[i]}/{label}"] = entries[:, j, entries.shape[2] // 2]
            elif entries.ndim == 1:
                metrics[f"{name}/{mark}"] = entries
            elif entries.ndim == 2 and entries.shape[1] <= MOST_LABELS:
                labels = coords_of(config, arm).get(dims[0] if dims else "", range(entries.shape[1]))
                metrics |= {f"{name}/{mark}/{label}": column for label, column in zip(labels, entries.T)}
                if dims in LAYERS:
                    metrics[f"{name}/{mark}/mean"] = _mean(entries)
    return metrics


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean of the values along the second axis that are not NaN; NaN without any."""
    # An update in which no episode ended has no return, and a segment may have only such updates. `np.nanmean` would
    # warn of them, and warnings cannot be silenced in one thread alone.
    with np.errstate(invalid="ignore"):
        return np.nansum(values, axis=1) / np.sum(~np.isnan(values), axis=1)


def rows(metrics: Mapping[str, Metric], config: Mapping[str, Any]) -> list[Row]:
    """The curves of a segment point by point, at most `MOST_ROWS` for a whole run.

    Args:
      metrics: from `reduce_segment`.
      config: the content of ``config.json``.
    """
    curves = {name: value for name, value in metrics.items() if isinstance(value, np.ndarray) and value.ndim == 2}
    if not curves:
        return []
    settings = config["settings"]
    first, length, steps = (int(metrics[f"host/{name}"]) for name in ("clock", "length", "env_steps"))  # type: ignore[arg-type]
    stride = math.ceil(int(settings["tasks"]) * int(settings["updates_per_task"]) / MOST_ROWS)
    found = []
    for start in range(0, length, stride):
        end = min(start + stride, length)
        values = {name: _mean(curve[:, start:end]) for name, curve in curves.items()}
        seen = (first + end) * steps / (length * int(settings["seeds"]))
        found.append(Row(first + end - 1, round(seen), values))
    return found


def _spectrum(start: str, probe: Mapping[str, np.ndarray], mark: int, end: str = "") -> dict[str, Metric]:
    """The spectrum at one mark, of the quadrature whose values' names begin with ``start``; empty without weights."""
    from plastax.report.spectra import histogram, symlog_edges

    if f"{start}weights" not in probe:
        return {}
    edges = symlog_edges(*EDGES, PER_DECADE)
    shares = histogram(probe[f"{start}nodes"][:, mark], probe[f"{start}weights"][:, mark], edges)
    name = f"{start}spectrum/{MARKS[mark]}{end}"
    return {name: Histogram(shares, edges)} if np.isfinite(shares).all() else {}


def score_values(metrics: Mapping[str, Metric]) -> tuple[Score | None, dict[Quantity, np.ndarray]]:
    """The score in a segment's metrics, and the values ``[S]`` of its curve and its main quantity.

    A segment that does not end its task lacks what is measured at the end; its score is then that of its updates.
    """
    values = {name: value for name, value in metrics.items() if isinstance(value, np.ndarray) and value.ndim == 1}
    values = {name: value for name, value in values.items() if np.isfinite(value).any()}
    score = choose(values)
    quantities = dict.fromkeys((score.curve, score.main)) if score else {}
    return score, {quantity: values[quantity.metric] for quantity in quantities if quantity.metric in values}
